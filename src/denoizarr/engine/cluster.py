"""A Dask cluster for a job: on this machine, of SLURM or Kubernetes, or one that runs already."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import dask
from distributed import Client, LocalCluster
from distributed.versions import VersionMismatchWarning

from denoizarr.errors import ClusterLost

from .cluster_addresses import is_loopback, split
from .cluster_security import security_for_address, security_of
from .cluster_settings import ClusterSettings as ClusterSettings
from .cluster_versions import check_versions
from .dask_settings import SETTINGS as SETTINGS

_LOG = logging.getLogger(__name__)
_ANSWER_SECONDS = 30
_START_SECONDS = 120


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def open_client(
    settings: ClusterSettings, *, at_most: int | None = None, gpus: Sequence[str] = ()
) -> Iterator[Client]:
    """Yield a client of the cluster that the settings describe; one that this started ends with the block.

    Parameters
    ----------
    settings : ClusterSettings
    at_most : int, optional
        No more workers than this: a job of three batches needs no fourth. Not where they come and go.
    gpus : sequence of str
        This machine's, as ``CUDA_VISIBLE_DEVICES`` names them, where a local cluster is to compute on them:
        one worker each, which sees that one and declares it.

    Raises
    ------
    BadRequest, ClusterLost
    """
    settings.check()
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(SETTINGS))
        if settings.kind == "local":
            yield stack.enter_context(_local(settings, at_most, gpus))
            return
        with warnings.catch_warnings():
            # What follows says it in one line, where it matters.
            warnings.simplefilter("ignore", VersionMismatchWarning)
            opened = stack.enter_context(_elsewhere(settings, at_most))
            check_versions(opened)
        yield opened


@contextmanager
def _elsewhere(settings: ClusterSettings, at_most: int | None) -> Iterator[Client]:
    # Here: neither is installed everywhere, nor quick to import.
    if settings.kind == "slurm":
        from .slurm_cluster import slurm_client

        with _quiet(), slurm_client(settings, at_most) as client:
            yield client
    elif settings.kind == "kubernetes":
        from .kubernetes_cluster import kubernetes_client

        with _quiet(), kubernetes_client(settings, at_most) as client:
            yield client
    else:
        with _existing(settings) as client:
            yield client


class _LocalWorkers(LocalCluster):
    """Worker processes of this machine, each with a GPU of its own where there are any."""

    def __init__(self, gpus: Sequence[str], count: int, **options: Any) -> None:
        self._gpus = tuple(gpus)
        # Those that are there from the start tell at once why they do not start, and are all alike.
        super().__init__(n_workers=0 if gpus else count, **options)  # type: ignore[no-untyped-call]
        if gpus:
            self.scale(count)  # type: ignore[no-untyped-call]

    def new_worker_spec(self) -> dict[Any, dict[str, Any]]:
        """Return name and options of the next worker."""
        ((name, spec),) = super().new_worker_spec().items()  # type: ignore[no-untyped-call]
        if not self._gpus:
            return {name: spec}
        taken = [each["options"]["env"]["CUDA_VISIBLE_DEVICES"] for each in self.worker_spec.values()]
        gpu = next(gpu for gpu in self._gpus if gpu not in taken)
        own = {"env": {"CUDA_VISIBLE_DEVICES": gpu}, "resources": {"GPU": 1}}
        return {name: {**spec, "options": {**spec["options"], **own}}}


@contextmanager
def _local(settings: ClusterSettings, at_most: int | None, gpus: Sequence[str]) -> Iterator[Client]:
    workers = usable_cores() if settings.workers == "auto" else settings.workers
    processes = min(workers, at_most or workers, len(gpus) or workers)
    threads = workers // processes
    most = None if settings.maximum is None else min(settings.maximum, len(gpus) or settings.maximum)
    if most is not None:
        processes, threads = min(settings.minimum or 1, most), 1
    security = None if settings.tls is None else security_of(settings.tls)
    with (
        _quiet(),
        _LocalWorkers(
            gpus,
            processes,
            threads_per_worker=threads,
            processes=True,
            host="127.0.0.1",
            protocol="tcp://" if security is None else "tls://",
            security=security,
            dashboard_address="127.0.0.1:0",
            memory_limit=settings.memory_limit_bytes * threads,
            silence_logs=logging.ERROR,
        ) as cluster,
        # Not the default of every .compute(): an image that only this process has would be sent there.
        Client(cluster, set_as_default=False) as client,
    ):
        if most is not None:
            # All batches that are out ask for a worker: see slurm_cluster.
            cluster.adapt(minimum=processes, maximum=most, target_duration="10ms")
        try:
            client.wait_for_workers(processes, timeout=_START_SECONDS)
        except TimeoutError as error:
            raise ClusterLost("worker processes do not start", got=f"{_START_SECONDS} s") from error
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


@contextmanager
def _existing(settings: ClusterSettings) -> Iterator[Client]:
    assert settings.address is not None, "checked"
    security = security_for_address(settings)
    if security is None and not is_loopback(split(settings.address)[1]):
        text = "the scheduler at %s has no TLS: whoever else reaches it can run programs as its owner"
        _LOG.warning(text, settings.address)
    try:
        client = Client(
            settings.address, timeout=f"{_ANSWER_SECONDS}s", set_as_default=False, security=security
        )
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterLost("no scheduler answers", where=settings.address, got=str(error)) from error
    with client:
        yield client
