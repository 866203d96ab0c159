"""The runner: every block once, whoever works; what failed is said by class, what is done stays done."""

from __future__ import annotations

import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
import zarr
from block_tasks import add_up, die_once, fail, fail_oddly, square
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.engine.crews import on_worker
from denoizarr.engine.deadlines import DeadlinePolicy
from denoizarr.engine.ledger import Ledger
from denoizarr.engine.retries import ONE_TRY
from denoizarr.engine.runner import Step, run_step
from denoizarr.engine.summary import Tally
from denoizarr.errors import (
    BadRequest,
    BlockFailed,
    ClusterLost,
    CorruptChunk,
    ImageNotFound,
    MissingChunk,
    StoreUnavailable,
)
from denoizarr.images.save import save_image
from denoizarr.stores import locations
from denoizarr.stores.images import as_image, open_image

IDENTITY = {"kind": "test"}


def _results(records: list[dict[str, Any]]) -> list[Any]:
    return [(r["batch"], r["blocks"], r["results"]) for r in records]


@settings(max_examples=25)
@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 3))
def test_every_block_once_and_in_order(n_blocks: int, per_batch: int, threads: int) -> None:
    records = run_step(Step("s", square, "", n_blocks, per_batch), threads=threads, progress=False)
    assert [r["batch"] for r in records] == list(range(-(-n_blocks // per_batch)))
    assert [x["block"] for r in records for x in r["results"]] == list(range(n_blocks))


@pytest.fixture(params=["thread", "threads", "dask"])
def executor(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "dask":
        return {"client": request.getfixturevalue("client")}
    return {"threads": 1 if request.param == "thread" else 3}


@pytest.mark.parametrize("merge", [None, add_up])
def test_the_records_do_not_depend_on_who_works(tmp_path: Path, executor: dict[str, Any], merge: Any) -> None:
    step = Step("s", square, "", 23, 4, merge)
    ledger = Ledger.claim(str(tmp_path / "l"), IDENTITY)
    records = run_step(step, ledger=ledger, progress=False, **executor)
    assert _results(records) == _results(run_step(step, progress=False))
    assert _results(run_step(step, progress=False, **executor)) == _results(records), (
        "with and without a ledger"
    )
    assert not any("skipped" in r for r in records)
    assert all(r["seconds"] >= 0 and r["peak_bytes"] > 1e6 for r in records)


def test_resume_does_only_what_is_not_done(tmp_path: Path, executor: dict[str, Any]) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    step = Step("s", square, str(marks), 10, 3)
    ledger = Ledger.claim(str(tmp_path / "l"), IDENTITY)
    first = run_step(step, ledger=ledger, progress=False, **executor)
    for batch in (1, 3):
        (tmp_path / "l" / "s" / f"{batch:08d}.json").unlink()
    again = run_step(step, ledger=ledger, progress=False, **executor)
    assert _results(again) == _results(first)
    assert [r.get("skipped", False) for r in again] == [True, False, True, False]
    done = sorted(p.name for p in marks.iterdir())
    assert done == sorted([f"{b}-0" for b in range(10)] + [f"{b}-1" for b in (3, 4, 5, 9)])
    tally = Tally()
    for record in again:
        tally.add(record)
    summary = tally.summary("out", seconds=1.0)
    assert (summary.blocks_total, summary.blocks_done, summary.blocks_skipped) == (10, 4, 6)


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ({"4": "missing"}, MissingChunk, "block 4"),
        ({"4": "outage"}, StoreUnavailable, "block 4"),
        ({"2": "outage", "7": "outage"}, StoreUnavailable, "block 2"),
        ({"4": "foreign"}, BlockFailed, "RuntimeError: block 4 is bad"),
        ({"2": "foreign", "7": "outage"}, BlockFailed, "2 of 10 batches failed"),
        ({"2": "foreign", "7": "value"}, BlockFailed, "2 of 10 batches failed"),
    ],
)
def test_failures_by_class(
    tmp_path: Path, executor: dict[str, Any], spec: dict[str, str], error: type[Exception], says: str
) -> None:
    step = Step("s", fail, spec, 10, 1)
    ledger = Ledger.claim(str(tmp_path / "l"), IDENTITY)
    with pytest.raises(error, match=says) as caught:
        run_step(step, ledger=ledger, progress=False, retries=ONE_TRY, **executor)
    if error is BlockFailed:
        assert caught.value.__cause__ is not None
    missing = [b for b in range(10) if ledger.get("s", b) is None]
    assert missing == sorted(int(b) for b in spec), "the rest goes on and is recorded"
    healed = run_step(Step("s", fail, {}, 10, 1), ledger=ledger, progress=False, **executor)
    assert len(healed) == 10


def test_bad_data_fails_its_block_and_the_rest_goes_on(tmp_path: Path) -> None:
    ledger = Ledger.claim(str(tmp_path / "l"), IDENTITY)
    with pytest.raises(MissingChunk):
        run_step(Step("s", fail, {"4": "missing"}, 50, 1), ledger=ledger, threads=1, progress=False)
    assert [b for b in range(50) if not ledger.get("s", b)] == [4]


def test_bad_data_of_two_kinds_is_still_bad_data() -> None:
    # Exit status 2, not 1: running the same job again would not help.
    with pytest.raises((MissingChunk, CorruptChunk)) as caught:
        run_step(Step("s", fail, {"0": "missing", "1": "corrupt"}, 2, 1), threads=2, progress=False)
    assert caught.value.exit_status == 2


def test_a_worker_that_is_killed_is_recovered(tmp_path: Path, client: Any) -> None:
    step = Step("s", die_once, str(tmp_path), 8, 1)
    ledger = Ledger.claim(str(tmp_path / "l"), IDENTITY)
    records = run_step(step, ledger=ledger, client=client, progress=False)
    assert (tmp_path / "killed").exists(), "a worker did die"
    assert [x["block"] for r in records for x in r["results"]] == list(range(8))


def test_a_local_cluster_listens_on_loopback_only(client: Any) -> None:
    client.wait_for_workers(2)
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = [c for p in family for c in p.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN]
    assert len(listening) >= 3, "scheduler and two workers"
    assert {c.laddr.ip for c in listening} <= {"127.0.0.1", "::1"}


def test_an_image_in_this_process_only_is_refused_with_a_cluster(tmp_path: Path, client: Any) -> None:
    values = np.arange(64, dtype="u2").reshape(8, 8)
    save_image(values, tmp_path / "a.ome.zarr")
    in_memory = zarr.create_array(zarr.storage.MemoryStore(), data=values)
    for image in (as_image(values), open_image(tmp_path / "a.ome.zarr") * 2, as_image(in_memory)):
        with pytest.raises(BadRequest, match="save it first"):
            save_image(image, tmp_path / "b.ome.zarr", client=client)
        assert not (tmp_path / "b.ome.zarr").exists(), "nothing was begun"


def test_a_cluster_writes_the_same_bytes(tmp_path: Path, client: Any) -> None:
    values = np.random.default_rng(0).integers(0, 9999, (3, 70, 90), dtype="u2")
    save_image(values, tmp_path / "a.ome.zarr", chunks=(1, 32, 32), levels=2)
    for name, who in (("here", None), ("there", client)):
        save_image(open_image(tmp_path / "a.ome.zarr"), tmp_path / f"{name}.ome.zarr", client=who, levels=2)
    trees = [tmp_path / "here.ome.zarr", tmp_path / "there.ome.zarr"]
    files = [sorted(p.relative_to(tree) for p in tree.rglob("*") if p.is_file()) for tree in trees]
    assert files[0] == files[1]
    for file in files[0]:
        assert (tmp_path / "here.ome.zarr" / file).read_bytes() == (
            tmp_path / "there.ome.zarr" / file
        ).read_bytes()


def test_a_process_does_not_count_its_parents_memory():
    import subprocess
    import sys

    from denoizarr.engine.runner import peak_bytes

    held = np.ones(100_000_000, np.uint8)  # resident in this process, which starts the other
    code = "from denoizarr.engine.runner import peak_bytes; print(peak_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert held[-1] == 1
    if sys.platform == "linux":
        assert int(child.stdout) < peak_bytes()


@pytest.mark.parametrize("with_ledger", [False, True])
def test_records_are_folded_one_at_a_time_in_batch_order(tmp_path, with_ledger):
    ledger = Ledger.claim(str(tmp_path / "x.ledger"), {"kind": "test"}) if with_ledger else None
    step = Step("squares", _square, None, 20, 3)
    expected = [record["results"] for record in run_step(step, threads=3, progress=False)]
    for _ in range(2):
        seen: list[object] = []
        kept = run_step(
            step,
            ledger=ledger,
            threads=3,
            progress=False,
            fold=lambda record: seen.append(record["results"]),  # noqa: B023
        )
        assert kept == []
        assert seen == expected


def _square(spec, block):
    threading.Event().wait(0.001 * (block % 4))
    return {"square": block * block}


@pytest.mark.parametrize("on_cluster", [False, True])
def test_whatever_a_block_raises_ends_as_a_failure_with_a_name(
    tmp_path: Path, request: pytest.FixtureRequest, on_cluster: bool
) -> None:
    """A Dask worker whose task raises an exit or an interrupt says nothing of it, and all would wait."""
    client = request.getfixturevalue("client") if on_cluster else None
    ledger = Ledger.claim(str(tmp_path / "l"), IDENTITY)
    step = Step("s", fail_oddly, None, 12, 1)
    deadlines = DeadlinePolicy(least_seconds=10, first_seconds=10, hard_factor=0, tries=1)
    with pytest.raises(
        BlockFailed, match="6 of 12 batches failed at s, batches 1, 2, 3, 4, 5, 6: got"
    ) as caught:
        run_step(step, ledger=ledger, client=client, progress=False, deadlines=deadlines)
    assert "holds a lock" in str(caught.value)
    assert [b for b in range(12) if ledger.get("s", b) is None] == [1, 2, 3, 4, 5, 6]


def test_a_worker_of_another_version_stops_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_worker(version("denoizarr"), lambda batch: {"batch": batch}, 3) == {"batch": 3}
    with pytest.raises(
        ClusterLost, match=r"another version of denoizarr at .*: got .*, expected 0\.0\.0-other"
    ):
        on_worker("0.0.0-other", lambda batch: {"batch": batch}, 3)


def test_a_cluster_of_another_version_is_refused(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("denoizarr.engine.crews.version", lambda _: "0.0.0-other")
    with pytest.raises(ClusterLost, match="another version"):
        run_step(Step("s", square, "", 50, 1), client=client, progress=False)


def test_records_that_a_network_disk_does_not_show_yet_are_waited_for(
    tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver has asked for them when they were not there, and its machine remembers that for a minute."""
    ledger = Ledger.claim(str(tmp_path / "l"), IDENTITY)
    get, asked = locations.get, []

    def stale(url: str) -> bytes:
        if url.endswith("00000002.json"):
            asked.append(url)
            if len(asked) < 4:
                raise ImageNotFound("nothing lies here", where=url)
        return get(url)

    monkeypatch.setattr(locations, "get", stale)
    monkeypatch.setattr("denoizarr.engine.runner._LOOK_SECONDS", 0.01)
    step = Step("s", square, "", 5, 1)
    assert [r["batch"] for r in run_step(step, ledger=ledger, client=client, progress=False)] == list(
        range(5)
    )
    assert len(asked) == 4
    monkeypatch.setattr("denoizarr.engine.runner._UNSEEN_SECONDS", 0.05)
    other = Ledger.claim(str(tmp_path / "other"), IDENTITY)
    monkeypatch.setattr(locations, "get", lambda url: _not_there(url) if "00000002" in url else get(url))
    with pytest.raises(BlockFailed, match="lost or is damaged at s, batch 2"):
        run_step(step, ledger=other, client=client, progress=False)
    assert (tmp_path / "other" / "s" / "00000002.json").exists(), "a good record that was not seen stays"


def _not_there(url: str) -> bytes:
    raise ImageNotFound("nothing lies here", where=url)
