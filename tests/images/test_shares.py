"""Job arrays without Dask: shares that know nothing of each other, and one last call."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import denoizarr.cli  # noqa: F401  # its verbs
from denoizarr.cli.app import app
from denoizarr.engine.shares import Share
from denoizarr.errors import BadRequest, BlockFailed, IncompleteOutput, LedgerMismatch
from denoizarr.images.convert import convert
from denoizarr.images.layout import plan_layout
from denoizarr.images.output import begin_output, is_complete
from denoizarr.images.shared import begin_shared, is_laid_out
from denoizarr.stores import locations
from denoizarr.stores.images import open_image

VALUES = np.random.default_rng(0).integers(0, 9999, (24, 70, 90), dtype="u2")
# Sixty-four planes in a batch would be all of them: large chunks make more batches.
HOW: dict[str, Any] = {"axes": "zyx", "chunks": (1, 32, 32), "shards": (1, 64, 64), "threads": 1}


def tree_hash(folder: Path) -> str:
    digest = hashlib.blake2b()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("denoizarr.images.save.BATCH_VOXELS", 3 * 64 * 64)  # 32 batches of three blocks
    np.save(tmp_path / "in.npy", VALUES)
    return tmp_path / "in.npy"


@given(st.integers(0, 50), st.integers(1, 9))
def test_shares_are_a_partition(n_batches: int, count: int) -> None:
    shares = [set(Share(number, count).batches(n_batches)) for number in range(1, count + 1)]
    assert sum(map(len, shares)) == n_batches
    assert set().union(*shares) == set(range(n_batches))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("share", [(0, 3), (4, 3), (-1, 3), (1, 0)])
def test_there_is_no_share_zero(source: Path, tmp_path: Path, share: tuple[int, int]) -> None:
    with pytest.raises(BadRequest, match="1/n to n/n"):
        convert(source, tmp_path / "out.ome.zarr", share=share, **HOW)
    assert not (tmp_path / "out.ome.zarr").exists()


def test_shares_at_once_and_a_last_call_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "whole.ome.zarr", **HOW)
    out = tmp_path / "out.ome.zarr"
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(convert, source, out, share=(n, 3), **HOW) for n in (3, 1, 2)]
        summaries = [future.result() for future in futures]
    assert sum(s.blocks_total for s in summaries) == sum(s.blocks_done for s in summaries) == 24 * 4
    assert not is_complete(str(out)), "shares finish nothing"
    with pytest.raises(IncompleteOutput):
        open_image(out)
    last = convert(source, out, **HOW)
    assert last.blocks_skipped == 24 * 4
    assert is_complete(str(out))
    # The groups differ in their names, which are those of the destinations.
    a, b = (zarr.open_group(str(tmp_path / f"{n}.ome.zarr"), mode="r") for n in ("whole", "out"))
    assert sorted(a) == sorted(b)
    for level in a:
        assert np.array_equal(a[level][:], b[level][:])  # type: ignore[index]
        assert tree_hash(tmp_path / "whole.ome.zarr" / level) == tree_hash(out / level)


def test_a_last_call_does_what_no_share_did_and_a_share_resumes(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.zarr"
    first = convert(source, out, share=(2, 3), **HOW)
    again = convert(source, out, share=(2, 3), **HOW)
    assert first.blocks_done == again.blocks_skipped == again.blocks_total == first.blocks_total > 0
    last = convert(source, out, **HOW)
    assert last.blocks_skipped == first.blocks_done
    assert np.array_equal(open_image(out).values, VALUES)
    late = convert(source, out, share=(1, 3), **HOW)
    assert late.blocks_done == 0
    assert is_complete(str(out)), "a share that comes late takes no mark away"


def test_what_a_share_may_not_do(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.zarr"
    with pytest.raises(BadRequest, match="overwrite would delete"):
        convert(source, out, share=(1, 2), overwrite=True, **HOW)
    with pytest.raises(BadRequest, match="for one process"):
        convert(source, out, share=(1, 2), client=object(), **HOW)
    assert not out.exists()
    convert(source, out, share=(1, 2), **HOW)
    with pytest.raises(LedgerMismatch):
        convert(source, out, share=(2, 2), **HOW | {"shards": (1, 32, 32)})


def test_on_the_command_line(source: Path, tmp_path: Path) -> None:
    arguments = ["convert", str(source), str(tmp_path / "out.ome.zarr"), "--axes", "zyx"]
    for number in (1, 2):
        done = CliRunner().invoke(app, [*arguments, "--blocks", f"{number}/2"], catch_exceptions=False)
        assert done.exit_code == 0
        assert f"share {number}/2 is done" in done.output
        assert "without --blocks" in done.output
    assert "incomplete" in CliRunner().invoke(app, ["info", arguments[2]], catch_exceptions=False).output
    assert "share" not in CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert np.array_equal(open_image(tmp_path / "out.ome.zarr").values, VALUES)
    with pytest.raises(BadRequest, match="not a share"):
        CliRunner().invoke(app, [*arguments, "--blocks", "1-2"], catch_exceptions=False)


def _layout(url: Path) -> Any:
    return plan_layout(
        str(url),
        dims=("y", "x"),
        shape=(600, 600),
        dtype=np.dtype("u2"),
        scale=(1.0, 1.0),
        translation=(0.0, 0.0),
        units=(None, None),
        chunks=(32, 32),
    )


def test_many_that_begin_at_once_make_one_output(tmp_path: Path) -> None:
    for turn in range(4):
        layout = _layout(tmp_path / str(turn) / "out.ome.zarr")
        barrier = threading.Barrier(6)

        def begin(layout: Any = layout, barrier: threading.Barrier = barrier) -> str:
            barrier.wait()
            ledger = begin_shared(layout, {"kind": "test"})
            assert is_laid_out(layout)
            ledger.put("level-0", 0, {})
            return ledger.job

        with ThreadPoolExecutor(6) as pool:
            jobs = {future.result() for future in [pool.submit(begin) for _ in range(6)]}
        assert len(jobs) == 1
    alone = _layout(tmp_path / "alone" / "out.ome.zarr")
    begin_output(alone, {"kind": "test"})
    assert tree_hash(tmp_path / "alone" / "out.ome.zarr") == tree_hash(tmp_path / "3" / "out.ome.zarr")


def test_one_that_died_at_the_beginning_is_replaced_and_patience_ends(tmp_path: Path) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    layout = _layout(tmp_path / "out.ome.zarr")
    beside = tmp_path / "out.ome.zarr.ledger"
    beside.mkdir()
    (beside / "begin-0.json").write_text("{}")
    begin_shared(layout, {}, clock=lambda: now[0], sleep=sleep)
    assert 90 <= now[0] < 91
    assert is_laid_out(layout)
    locations.delete_prefix(tmp_path / "out.ome.zarr")
    (beside / "begin-2.json").write_text("{}")
    with pytest.raises(BlockFailed, match="nobody created"):
        begin_shared(layout, {}, clock=lambda: now[0], sleep=sleep)
