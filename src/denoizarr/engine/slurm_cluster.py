"""Workers that are asked of SLURM, one job each, by dask-jobqueue; the scheduler is in this process."""

from __future__ import annotations

import logging
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import dask
from distributed import Client

from denoizarr.errors import BadRequest, ClusterLost

from .cluster_addresses import is_loopback
from .cluster_security import security_of, temporary_files
from .cluster_settings import ClusterSettings, SlurmSettings, TLSFiles, walltime_seconds
from .dask_settings import patience, worker_environment

_LOG = logging.getLogger(__name__)
# What a worker's job gets beyond the worker's own limit: the nanny beside it, and files of the node's cache.
_BESIDE_BYTES = 512 * 2**20
# How often lost workers are looked for, and how often the queue.
_LOOK_SECONDS, _QUEUE_SECONDS, _SAY_SECONDS = 5.0, 10.0, 60.0
_SLURM_SECONDS = 60.0


@contextmanager
def slurm_client(settings: ClusterSettings, at_most: int | None = None) -> Iterator[Client]:
    """Yield a client of workers that are jobs of SLURM, once the first of them is there.

    A worker that is cancelled, dies or comes to the end of its time is asked for again. At the end of the
    block, or of this process, the jobs are cancelled; were it killed, they end by themselves.

    Parameters
    ----------
    settings : ClusterSettings
        Connections use its certificates; without any, one that is made for this run alone, whose key is in
        a folder of the home folder that only its owner enters. TLS is left out only where it says so.
    at_most : int, optional

    Raises
    ------
    BadRequest
        dask-jobqueue, cryptography or SLURM itself is missing; SLURM would not take such a job.
    ClusterLost
        All jobs ended before a worker came, or none came in time.
    """
    SLURMCluster = _slurm_cluster_class()  # noqa: N806
    slurm = settings.slurm or SlurmSettings()
    with (
        dask.config.set(patience(slurm.wait_hours * 3600)),
        _files(settings) as files,
        SLURMCluster(**options(settings, files)) as cluster,
    ):
        _say_where(cluster.scheduler_address, settings)
        _try_out(cluster.job_script())
        if settings.is_adaptive:
            # Waves keep two batches a thread with the scheduler, and no more: all that there are ask for a
            # worker, or their number would never grow with them.
            cluster.adapt(minimum=settings.minimum, maximum=settings.maximum, target_duration="10ms")
        else:
            assert settings.workers != "auto", "checked"
            cluster.scale(min(settings.workers, at_most or settings.workers))
        stop = _replace_lost(cluster)
        try:
            with Client(cluster, set_as_default=False) as client:
                _wait(client, cluster, slurm)
                yield client
        finally:
            stop()


def _files(settings: ClusterSettings) -> AbstractContextManager[TLSFiles | None]:
    if settings.insecure or settings.tls is not None:
        return nullcontext(settings.tls)
    shared = None if settings.slurm is None else settings.slurm.shared_directory
    return temporary_files(shared or str(Path.home()))


def options(settings: ClusterSettings, files: TLSFiles | None) -> dict[str, Any]:
    """Return what ``SLURMCluster`` is called with."""
    slurm = settings.slurm or SlurmSettings()
    walltime = walltime_seconds(slurm.walltime)
    # A worker leaves before its time is up, and not at one time with all others.
    margin = min(60 * 5, walltime // 10)
    memory = settings.memory_limit_bytes * slurm.cores
    worker = ["--no-dashboard", "--lifetime", f"{walltime - 2 * margin}s", "--lifetime-stagger", f"{margin}s"]
    directives = list(slurm.directives)
    if slurm.gres is not None:
        directives.append(f"--gres={slurm.gres}")
        worker += ["--resources", "GPU=1"]
    security = None if files is None else security_of(files)
    given: dict[str, Any] = {
        "cores": slurm.cores,
        "processes": 1,
        "memory": f"{memory}B",
        "job_mem": f"{-(-(memory + _BESIDE_BYTES) // 2**20)}M",
        "walltime": slurm.walltime,
        "job_name": "denoizarr-worker",
        "queue": slurm.queue,
        "account": slurm.account,
        "interface": slurm.interface,
        "local_directory": slurm.local_directory,
        "log_directory": slurm.log_directory,
        "python": slurm.python,
        "security": security,
        "protocol": "tcp://" if security is None else "tls://",
        "worker_extra_args": worker,
        "job_extra_directives": directives,
        "job_script_prologue": [
            *(f"export {name}={shlex.quote(value)}" for name, value in worker_environment().items()),
            *slurm.prologue,
        ],
        "scheduler_options": {
            "dashboard_address": "127.0.0.1:0",
            **({} if slurm.interface is None else {"interface": slurm.interface}),
        },
    }
    return given


def _slurm_cluster_class() -> Any:
    if shutil.which("sbatch") is None:
        raise BadRequest(
            "this machine has no sbatch", where="cluster.kind", got="slurm", remedy="run it on a login node"
        )
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise BadRequest(
            "kind slurm needs the package dask-jobqueue",
            where="cluster.kind",
            remedy="pip install 'denoizarr[slurm]'",
        ) from error
    return SLURMCluster


def _say_where(address: str, settings: ClusterSettings) -> None:
    how = "with TLS of this run alone" if settings.tls is None else "with TLS"
    if settings.insecure:
        host = address.split("://")[-1].rpartition(":")[0].strip("[]")
        how = "without TLS"
        if not is_loopback(host):
            _LOG.warning("whoever reaches the scheduler can run programs as you: insecure: true")
    _LOG.info("scheduler at %s, %s", address, how)


def _try_out(script: str) -> None:
    """Ask SLURM whether it would take such a job: by itself, Dask would only log that it did not."""
    done = _call(["sbatch", "--test-only"], script)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [
            f"exit status {done.returncode}"
        ]
        for prefix in ("sbatch: error: ", "allocation failure: "):
            said[-1] = said[-1].removeprefix(prefix)
        raise BadRequest("SLURM would not take a worker's job", where="cluster.slurm", got=said[-1])


def _replace_lost(cluster: Any) -> Any:
    """Begin to ask again for workers that are gone; returns what ends it.

    Dask forgets a worker that has been gone for some seconds, but asks for another only at the next change of
    scale, which a job of a fixed number never has.
    """
    from tornado.ioloop import PeriodicCallback

    again = PeriodicCallback(lambda: cluster.scale(len(cluster.worker_spec)), _LOOK_SECONDS * 1000)
    cluster.loop.add_callback(again.start)
    return lambda: cluster.loop.add_callback(again.stop)


def _wait(client: Client, cluster: Any, slurm: SlurmSettings) -> None:
    """Wait for the first worker, in the queue for hours if need be; not for jobs that have ended."""
    began = said = time.monotonic()
    while True:
        try:
            client.wait_for_workers(1, timeout=_QUEUE_SECONDS)
        except TimeoutError:
            pass
        else:
            _LOG.info("first worker after %.1f s", time.monotonic() - began)
            return
        now = time.monotonic()
        jobs = {str(job.job_id) for job in cluster.workers.values() if getattr(job, "job_id", None)}
        if not jobs and now - began > _SLURM_SECONDS:
            raise ClusterLost(
                "SLURM has taken none of the workers' jobs",
                remedy="look above for what it said, and at its limits",
            )
        states = _states()
        if jobs and states is not None and not jobs & states.keys() and not client.nthreads():
            raise ClusterLost(
                "the workers' jobs ended before a worker came",
                where=f"SLURM jobs {', '.join(sorted(jobs))}",
                remedy=f"look at their output in {slurm.log_directory or 'the working directory'}",
            )
        if now - began > slurm.wait_hours * 3600:
            raise ClusterLost(
                "no worker came out of SLURM's queue",
                got=f"{now - began:.0f} s",
                remedy="run the same job again, or raise cluster.slurm.wait_hours",
            )
        if now - said >= _SAY_SECONDS:
            said = now
            queued = sorted({states[job] for job in jobs & states.keys()}) if states else []
            _LOG.info("waiting for a worker: jobs %s %s", ", ".join(sorted(jobs)), ", ".join(queued))


def _states() -> dict[str, str] | None:
    """Return the states of this user's jobs by number; None where SLURM does not say."""
    done = _call(["squeue", "--me", "--noheader", "--format=%A %T"])
    if done.returncode:
        return None
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if " " in line)


def _call(command: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        # Of SLURM's own programs, wherever the site has them on its path.
        return subprocess.run(  # noqa: S603
            command, input=text, capture_output=True, text=True, check=False, timeout=_SLURM_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", f"error: {type(error).__name__} of {command[0]}")
