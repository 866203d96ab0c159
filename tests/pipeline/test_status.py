"""What ``status`` says of a job that is half done, that died, that runs, that is finished."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pytest
from typer.testing import CliRunner

import denoizarr.cli  # noqa: F401  # its verbs
from denoizarr.cli.app import app
from denoizarr.engine.ledger import Ledger
from denoizarr.errors import ImageNotFound
from denoizarr.images.convert import convert
from denoizarr.pipeline.status import job_status
from denoizarr.stores import records

HOW = {"axes": "zyx", "chunks": (1, 32, 32), "shards": (1, 64, 64), "threads": 1}


@pytest.fixture
def output(tmp_path, monkeypatch):
    """An output of which half is done: 6 blocks of 12, a block a batch."""
    monkeypatch.setattr("denoizarr.images.save.BATCH_VOXELS", 1)
    np.save(tmp_path / "in.npy", np.arange(12 * 60 * 60, dtype="u2").reshape(12, 60, 60))
    convert(tmp_path / "in.npy", tmp_path / "out.ome.zarr", share=(1, 2), **HOW)
    return tmp_path / "out.ome.zarr"


def tree(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_half_done_and_done(output, tmp_path):
    before = tree(tmp_path)
    found = job_status(str(output))
    assert tree(tmp_path) == before, "it reads only"
    assert not found.is_complete
    assert found.driver == "none"
    (step,) = found.outputs[0].ledger.steps
    assert (step.name, step.batches_done, step.batches, step.blocks) == ("level-0", 6, 12, 12)
    written = datetime.fromisoformat(str(found.outputs[0].ledger.last_record))
    assert abs((datetime.now(UTC) - written).total_seconds()) < 100
    assert found.next_step.startswith("the same command again")
    assert "level-0: 6 of 12 batches (12 blocks)" in found.in_words()
    assert job_status(f"{output}.ledger") == found

    convert(tmp_path / "in.npy", output, **HOW)
    found = job_status(str(output))
    assert found.is_complete
    assert found.next_step == "nothing, it is finished"
    assert found.outputs[0].ledger.steps[0].batches_done == 12


@pytest.mark.parametrize("who", ["alive", "dead", "elsewhere"])
def test_the_driver(output, who):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    host = "another" if who == "elsewhere" else socket.gethostname()
    if who == "dead":
        process.communicate(b"\n")
    try:
        records.write_json(f"{output}.ledger/driver.json", {"host": host, "process": process.pid})
        found = job_status(str(output))
    finally:
        if who != "dead":
            process.communicate(b"\n")
    driver, advice = {
        "alive": ("running", "wait; it is running on this machine"),
        "dead": ("none", "the same command again"),
        "elsewhere": ("elsewhere", "if that driver is no more: the same command again"),
    }[who]
    assert found.driver == driver
    assert found.next_step.startswith(advice)


def test_a_run_folder(tmp_path, output):
    run = tmp_path / "run"
    Ledger.claim(str(run / "ledger"), {"kind": "run"})
    assert "denoizarr run with the same job file" in job_status(str(run)).next_step
    for name in ("out.ome.zarr", "out.ome.zarr.ledger"):
        os.rename(tmp_path / name, run / name)  # noqa: PTH104
    table = {"steps": [{"name": "training of stage1", "seconds": 12.5, "resumed": False, "note": "3 epochs"}]}
    records.write_json(run / "summary.json", table)
    found = job_status(str(run))
    assert [o.ledger.steps[0].batches_done for o in found.outputs] == [6]
    assert "step training of stage1: 12.5 s, 3 epochs" in found.in_words()
    assert not found.is_complete


def test_on_the_command_line(output, tmp_path):
    done = CliRunner().invoke(app, ["status", str(output), "--json"], catch_exceptions=False)
    *lines, last = done.output.strip().splitlines()
    assert done.exit_code == 0
    assert lines[-1].startswith("next: the same command again")
    assert json.loads(last)["outputs"][0]["ledger"]["steps"][0]["batches_done"] == 6
    with pytest.raises(ImageNotFound, match="no job has begun here"):
        CliRunner().invoke(app, ["status", str(tmp_path / "nothing")], catch_exceptions=False)
