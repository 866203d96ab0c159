"""A Dask cluster for a job: on this machine, or one that runs already. Loopback unless told an address."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import dask
from distributed import Client, LocalCluster

from denoizarr.errors import BadRequest, ClusterLost

_LOG = logging.getLogger(__name__)

# Each with its reason; distributed's own defaults suit short interactive graphs, not long unattended jobs.
SETTINGS: dict[str, Any] = {
    "distributed.scheduler.no-workers-timeout": "300s",  # default: without workers a job waits for ever
    "distributed.scheduler.allowed-failures": 10,  # default 3: too few for preemptible nodes
    "distributed.worker.memory.target": False,  # tasks return records, not arrays: nothing to spill
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,  # our own plan bounds memory; a paused worker would only hang
    "distributed.worker.memory.terminate": 0.98,
    "distributed.comm.timeouts.connect": "60s",
    # One arena of malloc for all threads: only there does a process keep what a layer of a network frees.
    "distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": "1",
    # A terminal sends Ctrl-C to workers too, and they would die of it in the middle of what is waited for.
    "distributed.worker.preload": ["denoizarr.engine.worker_signals"],
}


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Which cluster does the work.

    Attributes
    ----------
    kind : {"local", "address"}
        Processes on this machine, or a scheduler that runs already.
    workers : int or "auto"
        Worker processes of one thread each; "auto" is the number of cores. Where there are fewer batches than
        that, there are as few workers, with the threads and the memory of those that are not there.
    memory_limit_bytes : int
        Per worker process and thread.
    address : str, optional
        Of the running scheduler.
    """

    kind: Literal["local", "address"] = "local"
    workers: int | Literal["auto"] = "auto"
    memory_limit_bytes: int = 2 * 2**30
    address: str | None = None


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def open_client(settings: ClusterSettings, *, at_most: int | None = None) -> Iterator[Client]:
    """Yield a client of the cluster that the settings describe; a local one ends with the block.

    Parameters
    ----------
    settings : ClusterSettings
    at_most : int, optional
        No more local workers than this: a job of three batches needs no fourth.

    Raises
    ------
    BadRequest, ClusterLost
    """
    with dask.config.set(SETTINGS):
        if settings.kind == "address":
            yield from _existing(settings)
            return
        workers = usable_cores() if settings.workers == "auto" else settings.workers
        if workers < 1:
            raise BadRequest("a cluster needs a worker", got=workers, expected="1 or more")
        processes = max(min(workers, at_most or workers), 1)
        threads = workers // processes
        with (
            _quiet(),
            LocalCluster(
                n_workers=processes,
                threads_per_worker=threads,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                memory_limit=settings.memory_limit_bytes * threads,
                silence_logs=logging.ERROR,
            ) as cluster,
            # Not the default of every .compute(): an image that only this process has would be sent there.
            Client(cluster, set_as_default=False) as client,
        ):
            _LOG.info("%d local workers, dashboard at %s", len(client.nthreads()), cluster.dashboard_link)
            yield client


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep a cluster that begins and ends with a job from narrating both; its errors still show."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.ERROR)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("distributed."):
            logging.getLogger(name).setLevel(
                logging.NOTSET
            )  # distributed gives some of them levels of their own
    try:
        yield
    finally:
        logger.setLevel(before)


def _existing(settings: ClusterSettings) -> Iterator[Client]:
    if not settings.address:
        raise BadRequest(
            "cluster kind address needs an address", where="cluster.address", expected="tcp://host:port"
        )
    try:
        client = Client(settings.address, timeout="30s", set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterLost("no scheduler answers", where=settings.address, got=str(error)) from error
    with client:
        yield client
