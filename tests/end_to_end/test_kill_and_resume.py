"""SIGKILL in each phase, then the same command again: the same bytes, and little done twice."""

from __future__ import annotations

import signal
import subprocess
import threading
from pathlib import Path

import pytest

from .jobs import command, environment, run_cli, scan_noise, tree_hash, write_job

# What appears in the run folder once a phase is under way: the moment to kill.
PHASES = {
    "statistics": "filter_map.zarr.ledger/*/00000000.json",
    "index": "stage1/index.zarr/zarr.json",
    "stage 1": "stage1/checkpoints/*",
    "stage 2": "stage2/checkpoints/*",
    "inference": "denoised.ome.zarr.ledger/level-0/00000000.json",
    "pyramid": "denoised.ome.zarr.ledger/level-1/00000000.json",
}
OUTPUTS = (
    "denoised.ome.zarr",
    "noise_kernel.json",
    "stage1/model.safetensors",
    "stage2/model.safetensors",
    "statistics.json",
)


def kill_when(job: Path, pattern: str) -> bool:
    """Start the job, kill it as soon as ``pattern`` appears; tell whether it was killed before it ended."""
    run = job.parent / "run"
    process = subprocess.Popen(
        command("run", str(job)), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment()
    )
    try:
        while process.poll() is None and not any(run.glob(pattern)):
            threading.Event().wait(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.wait()
    return process.returncode == -signal.SIGKILL


def hashes(run: Path) -> dict[str, str]:
    return {
        name: tree_hash(run / name) if (run / name).is_dir() else (run / name).read_bytes().hex()
        for name in OUTPUTS
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The job file of a run that nothing disturbed."""
    job = write_job(tmp_path_factory.mktemp("undisturbed"), scan_noise())
    result = run_cli("run", str(job))
    assert result.returncode == 0, result.stderr
    return job


@pytest.fixture(scope="module")
def undisturbed(finished):
    return hashes(finished.parent / "run")


def test_killed_in_every_phase_one_after_the_other(undisturbed, tmp_path):
    job = write_job(tmp_path, scan_noise())
    run = job.parent / "run"
    checkpoints: dict[Path, int] = {}
    for phase, pattern in PHASES.items():
        assert kill_when(job, pattern), f"the job ended before it could be killed in {phase}"
        assert not (run / "denoised.ome.zarr").exists() or run_cli(
            "info", str(run / "denoised.ome.zarr")
        ).stdout.count("incomplete")
        checkpoints |= {
            path: path.stat().st_mtime_ns
            for path in run.glob("stage*/checkpoints/*.safetensors")
            if path not in checkpoints
        }
    assert checkpoints, "stage 1 and stage 2 were killed after an epoch"
    batches = {path: path.stat().st_mtime_ns for path in run.glob("denoised.ome.zarr.ledger/*/*.json")}
    assert batches, "the last kill was in the pyramid: level 0 is on record"
    result = run_cli("run", str(job), "--json")
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in batches} == batches, "no batch on record is done again"
    assert {path: path.stat().st_mtime_ns for path in checkpoints} == checkpoints, "no epoch is done again"
    assert hashes(run) == undisturbed


def test_a_finished_job_is_found_finished(finished, undisturbed):
    run = finished.parent / "run"
    before = {path: path.stat().st_mtime_ns for path in (run / "denoised.ome.zarr").rglob("*")}
    assert run_cli("run", str(finished)).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert hashes(run) == undisturbed


def test_sigterm_stops_in_an_orderly_way(undisturbed, tmp_path):
    job = write_job(tmp_path, scan_noise())
    run = job.parent / "run"
    # Sent by the job to itself, so that a busy machine cannot bring it too late.
    stopped = run_cli("run", str(job), fail_at="saved:2:TERM")
    assert stopped.returncode == 75, stopped.stderr
    last = stopped.stderr.strip().splitlines()[-1]
    assert last.startswith("Stopped: stopped by SIGTERM; run the same command again")
    saved = sorted(path.name for path in run.glob("stage1/checkpoints/*.safetensors"))
    assert len(saved) == 2, "no epoch was begun after it"
    assert not (run / "stage2").exists()
    assert run_cli("run", str(job)).returncode == 0
    assert hashes(run) == undisturbed
