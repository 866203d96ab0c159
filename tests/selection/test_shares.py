"""Job arrays for filter maps and indices: shares that know nothing of each other, and one last call."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import denoizarr.cli  # noqa: F401  # its verbs
from denoizarr.cli.app import app
from denoizarr.engine.shares import Share
from denoizarr.images.save import save_image
from denoizarr.pipeline.status import job_status
from denoizarr.selection import survey, sweeps
from denoizarr.selection.filters import ShannonPatchFilter
from denoizarr.selection.on_disk import open_filter_map, write_filter_map, write_index
from denoizarr.selection.patch_index import PatchIndex
from denoizarr.selection.regions_of_interest import RegionOfInterest

RNG = np.random.default_rng(0)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "_GROUP_BYTES", 0)  # a plane a block
    monkeypatch.setattr(survey, "_MOST_BLOCKS_PER_BATCH", 1)


@pytest.fixture(params=["uint16", "float32"])
def source(request: pytest.FixtureRequest, tmp_path: Path, small_blocks: None) -> str:
    values = RNG.normal(100, 5, (9, 96, 96))
    values[:, 20:60, 10:70] += RNG.normal(0, 60, (9, 40, 60))
    url = tmp_path / "in.ome.zarr"
    save_image(values.clip(0).astype(request.param), url, chunks=(1, 32, 32), levels=1)
    return str(url)


def test_shares_at_once_and_a_last_call_give_the_same_map(source: str, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.zarr", tmp_path / "out.zarr"
    options: dict[str, Any] = {"progress": False}
    write_filter_map(source, whole, 16, ShannonPatchFilter(), **options)
    for _ in range(3):  # of floats, a pass needs all of the one before it
        with ThreadPoolExecutor(3) as pool:
            calls = [
                pool.submit(
                    write_filter_map, source, out, 16, ShannonPatchFilter(), share=Share(n, 3), **options
                )
                for n in (2, 3, 1)
            ]
            assert [call.result() for call in calls] == [None] * 3
    assert not out.exists(), "shares finish nothing"
    status = job_status(str(out))
    assert not status.is_complete
    steps = [(s.batches_done, s.batches) for o in status.outputs for s in o.ledger.steps]
    assert all(done == n >= 3 for done, n in steps), steps
    assert "same command" in status.next_step
    found = write_filter_map(source, out, 16, ShannonPatchFilter(), **options)
    assert found is not None
    assert np.array_equal(found.values, open_filter_map(whole).values)
    assert job_status(str(out)).is_complete


def test_a_last_call_does_what_no_share_did(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    options: dict[str, Any] = {
        "patch_filter": ShannonPatchFilter(),
        "roi": RegionOfInterest(sigma=2.0, select_background=False, threshold=0.3),
        "progress": False,
    }
    assert write_index(source, out, 16, share=Share(2, 3), **options) is None
    steps = job_status(str(out)).outputs[0].ledger.steps
    assert [s.batches_done < s.batches for s in steps] == [True] * len(steps)
    index = write_index(source, out, 16, **options)
    expected = write_index(source, tmp_path / "whole.zarr", 16, **options)
    assert index is not None
    assert expected is not None
    assert index.sample(200, 0).tolist() == expected.sample(200, 0).tolist()
    assert PatchIndex.open(out).n_patches == expected.n_patches


def test_on_the_command_line(source: str, tmp_path: Path) -> None:
    run = CliRunner()
    out = str(tmp_path / "out.zarr")
    for verb in ("index", "filter-map"):
        where = f"{out}-{verb}"
        arguments = [verb, source, "--out", where, "--patch-size", "16"]
        first = run.invoke(app, [*arguments, "--blocks", "1/2", "--json"])
        assert first.exit_code == 0, first.output
        assert "run once more without --blocks" in first.output
        assert json.loads(first.output.splitlines()[-1])["blocks"] == "1/2"
        told = run.invoke(app, ["status", where])
        assert "not complete" in told.output
        assert run.invoke(app, arguments).exit_code == 0
        assert run.invoke(app, ["status", where]).output.splitlines()[0].endswith(": complete")
