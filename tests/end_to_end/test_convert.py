"""A conversion on the command line that is killed goes on, and gives the bytes of an undisturbed one."""

from __future__ import annotations

import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import tifffile

from .jobs import command, environment, run_cli, tree_hash


def test_a_killed_conversion_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "planes").mkdir()
    for z in range(40):
        plane = rng.integers(0, 256, (1024, 1024), dtype=np.uint8)
        tifffile.imwrite(tmp_path / "planes" / f"p{z}.tif", plane, compression="zlib")
    how = ("--chunks", "1,256,256", "--shards", "2,512,512")
    process = subprocess.Popen(
        command("convert", str(tmp_path / "planes"), str(tmp_path / "a" / "i.ome.zarr"), *how),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    records = tmp_path / "a" / "i.ome.zarr.ledger" / "level-0"
    try:
        while process.poll() is None and not any(records.glob("0*.json")):
            threading.Event().wait(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    done = {path: path.stat().st_mtime_ns for path in records.glob("0*.json")}
    told = run_cli("status", str(tmp_path / "a" / "i.ome.zarr"))
    assert "what is done is not done again" in told.stdout
    for name in ("a", "b"):
        result = run_cli("convert", str(tmp_path / "planes"), str(tmp_path / name / "i.ome.zarr"), *how)
        assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done, "what was on record was not done again"
    assert tree_hash(tmp_path / "a" / "i.ome.zarr") == tree_hash(tmp_path / "b" / "i.ome.zarr")
    assert run_cli("verify", str(tmp_path / "a" / "i.ome.zarr")).returncode == 0
