"""The ledger of a job of many batches: few files, a quick start, and no trust in listings or locks."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from block_tasks import square

from denoizarr.engine import ledger as ledger_module
from denoizarr.engine.ledger import GROUP, Ledger, group_name, record_name
from denoizarr.engine.runner import Step, is_done, run_step
from denoizarr.engine.shares import Share
from denoizarr.errors import BlockFailed, LedgerMismatch
from denoizarr.stores import locations, records


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> int:
    """Groups of eight batches."""
    for module in ("ledger", "runner"):
        monkeypatch.setattr(f"denoizarr.engine.{module}.GROUP", 8)
    return 8


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def by_block(found: list[dict[str, Any]]) -> list[Any]:
    return [x["square"] for r in found for x in r["results"]]


@pytest.mark.usefixtures("small_groups")
def test_full_groups_become_one_object_each_and_nothing_else_changes(tmp_path: Path) -> None:
    step = Step("s", square, "", 61, 3)  # 21 batches: two groups and five batches
    ledger = Ledger.claim(str(tmp_path / "l"), {})
    first = run_step(step, ledger=ledger, threads=3, progress=False)
    singles = [record_name(b) for b in range(16, 21)]
    assert files(tmp_path / "l" / "s") == sorted([*singles, group_name(0), group_name(1), "step.json"])
    assert by_block(first) == [n * n for n in range(61)]
    assert bytes(ledger.done("s", 21)) == b"\1" * 21
    assert ledger.holds("s", 21)
    assert not ledger.holds("s", 22)
    for batch in range(21):
        record = ledger.get("s", batch)
        assert record is not None
        assert (record["batch"], record["job"]) == (batch, ledger.job)
    again = run_step(step, ledger=ledger, progress=False)
    assert all(r["skipped"] for r in again)
    assert [{**r, "skipped": True} for r in first] == again


@pytest.mark.usefixtures("small_groups")
def test_a_kill_at_any_moment_of_gathering_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Step("s", square, "", 16, 1)
    delete = locations.delete
    for moment in range(12):
        marks = tmp_path / f"marks-{moment}"
        marks.mkdir()
        ledger = Ledger.claim(str(tmp_path / f"l{moment}"), {})
        left = [moment]

        def killed(url: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            delete(url)

        with monkeypatch.context() as patched:
            patched.setattr(ledger_module, "_READERS", 1)
            patched.setattr(locations, "delete", killed)
            if moment < 8:
                with pytest.raises(KeyboardInterrupt):
                    run_step(step, ledger=ledger, progress=False)
        resumed = run_step(Step("s", square, str(marks), 16, 1), ledger=ledger, progress=False)
        assert by_block(resumed) == [n * n for n in range(16)]
        assert len(list(marks.iterdir())) == (8 if moment < 8 else 16), "what was done is not done again"
        assert files(tmp_path / f"l{moment}" / "s") == [group_name(0), group_name(1), "step.json"]


def test_a_late_twins_record_beside_its_group_does_no_harm(tmp_path: Path, small_groups: int) -> None:
    ledger = Ledger.claim(str(tmp_path / "l"), {})
    run_step(Step("s", square, "", small_groups, 1), ledger=ledger, progress=False)
    ledger.put("s", 3, {"batch": 3, "blocks": [3, 4], "results": [{"block": 3, "square": 9}]})
    assert by_block(run_step(Step("s", square, "", small_groups, 1), ledger=ledger, progress=False)) == [
        n * n for n in range(small_groups)
    ]
    assert files(tmp_path / "l" / "s") == [group_name(0), "step.json"], "and it is tidied away"


def test_two_drivers_may_gather_the_same_group(tmp_path: Path, small_groups: int) -> None:
    ledger = Ledger.claim(str(tmp_path / "l"), {})
    for batch in range(small_groups):
        ledger.put("s", batch, {"batch": batch, "blocks": [batch, batch + 1], "results": []})
    barrier, errors = threading.Barrier(4), []

    def gather() -> None:
        barrier.wait()
        try:
            ledger.gather("s", 0)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=gather) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [r["batch"] for r in ledger.records("s", small_groups) if r] == list(range(small_groups))


def test_a_group_that_a_power_cut_left_empty_vouches_for_nothing(tmp_path: Path, small_groups: int) -> None:
    ledger = Ledger.claim(str(tmp_path / "l"), {})
    step = Step("s", square, "", small_groups, 1)
    run_step(step, ledger=ledger, progress=False)
    (tmp_path / "l" / "s" / group_name(0)).write_bytes(b"")
    assert not any(ledger.done("s", small_groups))
    assert len(run_step(step, ledger=ledger, progress=False)) == small_groups
    (tmp_path / "l" / "s" / group_name(0)).write_bytes(b'{"job": ')
    with pytest.raises(BlockFailed, match="lost or is damaged"):
        run_step(step, ledger=ledger, progress=False)
    assert len(run_step(step, ledger=ledger, progress=False)) == small_groups


def test_large_records_stay_where_they_are(
    tmp_path: Path, small_groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_GROUP_BYTES", 100)
    ledger = Ledger.claim(str(tmp_path / "l"), {})
    run_step(Step("s", square, "", small_groups, 1), ledger=ledger, progress=False)
    assert group_name(0) not in files(tmp_path / "l" / "s")


def test_the_partition_on_record_counts_and_other_blocks_are_refused(tmp_path: Path) -> None:
    ledger = Ledger.claim(str(tmp_path / "l"), {})
    marks = tmp_path / "marks"
    marks.mkdir()
    run_step(Step("s", square, str(marks), 10, 2), ledger=ledger, progress=False)
    other = Step("s", square, str(marks), 10, 5)
    assert is_done(other, ledger), "by whoever thinks that a batch should be larger as well"
    (tmp_path / "l" / "s" / record_name(3)).unlink()
    assert not is_done(other, ledger)
    again = run_step(other, ledger=ledger, progress=False)
    assert [record["blocks"] for record in again] == [[n, n + 2] for n in range(0, 10, 2)]
    assert sorted(p.name for p in marks.iterdir() if p.name.endswith("-1")) == ["6-1", "7-1"]
    with pytest.raises(LedgerMismatch, match=r"other blocks .*: got 10 blocks, expected 11 blocks"):
        run_step(Step("s", square, "", 11, 2), ledger=ledger, progress=False)
    (tmp_path / "l" / "s" / "step.json").write_text("")  # a power cut's
    assert len(run_step(Step("s", square, "", 10, 2), ledger=ledger, progress=False)) == 5
    assert json.loads((tmp_path / "l" / "s" / "step.json").read_text())["blocks"] == 10


def test_a_job_of_a_hundred_thousand_batches_is_planned_in_under_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, n_done = 100_000, 99_000
    ledger = Ledger.claim(str(tmp_path / "l"), {})
    folder = tmp_path / "l" / "s"
    for group in range(n_done // GROUP):
        batches = range(group * GROUP, (group + 1) * GROUP)
        bodies = [{"batch": b, "blocks": [b, b + 1], "results": [{"checksum": "0" * 16}]} for b in batches]
        records.create_compact_json(folder / group_name(group), {"job": ledger.job, "records": bodies})
    for batch in range(n_done // GROUP * GROUP, n_done):
        ledger.put("s", batch, {"batch": batch, "blocks": [batch, batch + 1], "results": []})
    assert len(files(folder)) < 1000
    read: list[str] = []
    get = locations.get
    monkeypatch.setattr(locations, "get", lambda url: (read.append(url), get(url))[1])
    began = time.process_time()
    done = ledger.done("s", n)
    seconds = time.process_time() - began
    assert sum(done) == n_done
    assert done.find(0) == n_done
    assert not read, "no record is read"
    assert seconds < 1


@pytest.mark.parametrize("torn", [b"", b'{"job": ', b"{}"])
def test_a_torn_group_does_not_take_the_good_records_beside_it_with_it(
    tmp_path: Path, small_groups: int, torn: bytes
) -> None:
    ledger = Ledger.claim(str(tmp_path / "l"), {})
    marks = tmp_path / "marks"
    marks.mkdir()
    step = Step("s", square, str(marks), small_groups, 1)
    for batch in range(small_groups):
        run_step(step, ledger=ledger, progress=False, share=Share(batch + 1, small_groups))
    there = tmp_path / "l" / "s" / group_name(0)
    there.write_bytes(torn)  # a power cut's, before it was safe and its members were deleted
    assert by_block(run_step(step, ledger=ledger, progress=False)) == [n * n for n in range(small_groups)]
    assert len(list(marks.iterdir())) == small_groups, "nothing was done again"
    assert files(tmp_path / "l" / "s") == [group_name(0), "step.json"]


@pytest.mark.parametrize(
    "torn", [b'{"job": "JOB"}', b'{"job": "JOB", "records": [{}]}', b"{}", b"[]", b"\0" * 99]
)
def test_what_is_no_group_is_done_again(tmp_path: Path, small_groups: int, torn: bytes) -> None:
    ledger = Ledger.claim(str(tmp_path / "l"), {})
    step = Step("s", square, "", small_groups, 1)
    run_step(step, ledger=ledger, progress=False)
    (tmp_path / "l" / "s" / group_name(0)).write_bytes(torn.replace(b"JOB", ledger.job.encode()))
    assert ledger.get("s", 3) is None
    with pytest.raises(BlockFailed, match="lost or is damaged"):
        run_step(step, ledger=ledger, progress=False)
    assert by_block(run_step(step, ledger=ledger, progress=False)) == [n * n for n in range(small_groups)]


def test_who_only_reads_deletes_nothing(tmp_path: Path, small_groups: int) -> None:
    """On a network disk a record that another machine is just creating may look empty for a moment."""
    ledger = Ledger.claim(str(tmp_path / "l"), {})
    run_step(Step("s", square, "", small_groups + 2, 1), ledger=ledger, progress=False)
    good = {}
    for name in (group_name(0), record_name(small_groups)):
        path = tmp_path / "l" / "s" / name
        good[path] = path.read_bytes()
        path.write_bytes(b"")
    assert [ledger.get("s", batch) for batch in (0, small_groups)] == [None, None]
    for path, data in good.items():
        assert path.exists()
        path.write_bytes(data)
    assert ledger.holds("s", small_groups + 2)
    assert all(ledger.records("s", small_groups + 2))
