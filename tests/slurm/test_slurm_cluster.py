"""Jobs whose workers SLURM starts: the bytes are those of a local run, whatever becomes of the workers."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from denoizarr.engine.cluster import ClusterSettings, open_client
from denoizarr.engine.cluster_settings import SlurmSettings
from denoizarr.engine.dask_settings import SETTINGS, patience_seconds
from denoizarr.errors import BadRequest, ClusterLost
from denoizarr.inference import predict as inference
from denoizarr.inference import prediction
from denoizarr.pipeline.run import run_pipeline
from tests.end_to_end.jobs import scan_noise, tree_hash, write_job
from tests.end_to_end.predictions import BATCH_VOXELS, Case

from .slurm_site import Site, wait_until

WORKERS = "denoizarr-worker"
# Of loopback: both nodes are this machine.
SLURM = {"interface": "lo", "walltime": "10"}
SMALL = {"features": 4, "num_epochs": 1, "patches_per_epoch": 32, "patch_size": 32}


def settings(**changes: Any) -> ClusterSettings:
    slurm = SlurmSettings(**{**SLURM, **changes.pop("slurm", {})})
    given: dict[str, Any] = {"workers": 2, "memory_limit_bytes": 2**30, **changes}
    return ClusterSettings("slurm", slurm=slurm, **given)


def records(ledger: Path) -> int:
    return len(list(ledger.glob("level-0/0*.json")))


@contextmanager
def beside(work: Any) -> Iterator[list[Any]]:
    """Do something in a thread meanwhile; what it raised is raised here."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield outcome
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]


def many_batches(monkeypatch: pytest.MonkeyPatch, voxels: int) -> None:
    """Cut jobs into so many batches that a worker can be lost in the middle, and soon taken for lost."""
    for module in (inference, prediction):
        monkeypatch.setattr(module, "PREDICTION_BATCH_VOXELS", voxels)
    monkeypatch.setitem(SETTINGS, "distributed.deploy.lost-worker-timeout", "1s")


def keys_of_runs() -> list[Path]:
    return list(Path.home().glob(".denoizarr-tls-*"))


def test_a_whole_job_with_a_worker_cancelled_in_mid_run_has_the_bytes_of_a_local_run(
    slurm: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    many_batches(monkeypatch, 64 * 64)
    caplog.set_level(logging.INFO, "denoizarr")
    image = scan_noise((8, 256, 256))
    common = {
        "stage1": SMALL,
        "stage2": SMALL,
        "output": {"url": "run", "shards": [1, 64, 64], "chunks": [1, 64, 64], "levels": 2},
    }
    job = write_job(
        tmp_path / "slurm", image, cluster={"kind": "slurm", "workers": 2, "slurm": SLURM}, **common
    )
    ledger = tmp_path / "slurm/run/denoised.ome.zarr.ledger"

    def cancel_one() -> tuple[float, int, str]:
        wait_until(lambda: slurm.run("squeue", "--noheader", f"--name={WORKERS}"), "workers are asked for")
        asked = time.monotonic()
        wait_until(lambda: len(slurm.living(WORKERS)) == 2, "both run")
        gone = slurm.living(WORKERS)[0]
        wait_until(lambda: records(ledger), "the first block", pause=0.002)
        first = time.monotonic() - asked
        slurm.run("scancel", gone)
        return first, records(ledger), gone

    with beside(cancel_one) as seen:
        summary = run_pipeline(job, progress=False)
    first, at, gone = seen[0]
    logging.getLogger("denoizarr").info("first block %.1f s after workers were asked for", first)
    assert at < summary.blocks_total // 2, "it was in the middle"
    assert slurm.wait_for(gone, "CANCELLED") == "CANCELLED"
    assert "with TLS of this run alone" in caplog.text
    wait_until(lambda: not slurm.run("squeue", "--noheader"), "no job is left")
    assert not keys_of_runs(), "nor the key of this run"
    # The same models, which this process trained, on workers of this machine.
    local = tmp_path / "local.ome.zarr"
    with open_client(ClusterSettings(workers=1)) as client:
        source, model = tmp_path / "slurm/in.ome.zarr", tmp_path / "slurm/run/stage2/model.safetensors"
        layout = {key: value for key, value in common["output"].items() if key != "url"}
        inference.predict(model, source, local, client=client, progress=False, **layout)
    assert tree_hash(local) == tree_hash(tmp_path / "slurm/run/denoised.ome.zarr")


def test_a_worker_that_is_killed_is_asked_for_again(
    slurm: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many_batches(monkeypatch, BATCH_VOXELS)
    case = Case(tmp_path, (20, 70, 100))
    with open_client(settings(workers=1)) as client:
        (before,) = slurm.living(WORKERS)
        slurm.run("scancel", "--signal=KILL", "--full", before)
        case.predict(tmp_path / "out", client=client)
        (after,) = slurm.living(WORKERS)
    assert after != before
    assert tree_hash(tmp_path / "out") == case.expected


def test_workers_have_what_was_asked_for(slurm: Site, tmp_path: Path) -> None:
    asked = {
        "gres": "gpu:1",
        "cores": 2,
        "queue": "test",
        "directives": ("--comment=ours",),
        "prologue": ("export DENOIZARR_TOLD=so",),
        "log_directory": str(tmp_path / "logs"),
        "local_directory": str(tmp_path / "scratch"),
        "walltime": "0-1",
    }
    with open_client(settings(slurm=asked)) as client:
        client.wait_for_workers(2, timeout=60)
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        assert [w["nthreads"] for w in workers] == [2, 2]
        assert [w["memory_limit"] for w in workers] == [2 * 2**30] * 2
        assert [w["resources"] for w in workers] == [{"GPU": 1}] * 2
        assert {w["local_directory"].startswith(str(tmp_path / "scratch")) for w in workers} == {True}
        assert patience_seconds() == 24 * 3600, "a queue may be long"
        told = slurm.run("squeue", "--noheader", f"--name={WORKERS}", "--format=%N %P %C %m %b %l %k")
        rest = "test 2 2.50G gres:gpu:1 1:00:00 ours"
        assert sorted(told.splitlines()) == [f"{node} {rest}" for node in ("n1", "n2")]
        seen = client.run(
            lambda: {
                name: os.environ.get(name)
                for name in ("DENOIZARR_TOLD", "MALLOC_ARENA_MAX", "CUDA_VISIBLE_DEVICES")
            }
        )
        assert (
            list(seen.values())
            == [{"DENOIZARR_TOLD": "so", "MALLOC_ARENA_MAX": "1", "CUDA_VISIBLE_DEVICES": "0"}] * 2
        )
        import dask

        names = [name for name in SETTINGS if "pre-spawn" not in name]  # seen above, as what they become
        shipped = client.run(lambda names: [dask.config.get(name) for name in names], names)
        assert list(shipped.values()) == [[SETTINGS[name] for name in names]] * 2
    assert len(list((tmp_path / "logs").glob("*.err"))) == 2


@pytest.mark.slow
def test_as_many_workers_as_there_is_work_for(
    slurm: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many_batches(monkeypatch, BATCH_VOXELS)
    case = Case(tmp_path, (60, 70, 100))
    most = 0
    with open_client(settings(workers="auto", minimum=1, maximum=2)) as client:
        assert len(client.nthreads()) == 1

        def work() -> Any:
            return case.predict(tmp_path / "out", client=client)

        with beside(work) as outcome:
            while not outcome:
                most = max(most, len(client.nthreads()))
                threading.Event().wait(0.05)
    assert most == 2
    assert tree_hash(tmp_path / "out") == case.expected


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {"queue": "nope"},
            "SLURM would not take a worker's job at cluster.slurm: got .*[Ii]nvalid partition",
        ),
        ({"cores": 100}, "SLURM would not take a worker's job at cluster.slurm: got .*not available"),
    ],
)
def test_what_slurm_would_refuse_is_refused_at_once(slurm: Site, asked: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest, match=says), open_client(settings(slurm=asked)):
        pass
    assert not slurm.run("squeue", "--noheader")


def test_jobs_that_end_before_a_worker_comes_are_not_waited_for(
    slurm: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("denoizarr.engine.slurm_cluster._QUEUE_SECONDS", 1.0)
    broken = settings(slurm={"prologue": ("exit 3",)})
    with (
        pytest.raises(ClusterLost, match="jobs ended before a worker came at SLURM jobs"),
        open_client(broken),
    ):
        pass


def test_nobody_waits_in_the_queue_for_ever(slurm: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("denoizarr.engine.slurm_cluster._QUEUE_SECONDS", 0.5)
    held = settings(slurm={"directives": ("--hold",), "wait_hours": 2 / 3600})
    with pytest.raises(ClusterLost, match="no worker came out of SLURM's queue"), open_client(held):
        pass
    wait_until(lambda: not slurm.run("squeue", "--noheader"), "no job is left")


def test_workers_of_a_driver_that_was_killed_end_by_themselves(slurm: Site, tmp_path: Path) -> None:
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(yaml.safe_dump({"kind": "slurm", "workers": 2, "slurm": SLURM}))
    program = (
        "import sys; from denoizarr.engine.cluster import open_client\n"
        "from denoizarr.pipeline.cluster_file import cluster_of\n"
        "with open_client(cluster_of(sys.argv[1])) as client:\n"
        "    client.wait_for_workers(2); print('ready', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(cluster)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        assert len(slurm.living(WORKERS)) == 2
        driver.send_signal(signal.SIGKILL)
    wait_until(lambda: not slurm.living(), "the workers' jobs have ended", 90)
    assert len(keys_of_runs()) == 1, "which is left, and of use to nobody: its scheduler is no more"
