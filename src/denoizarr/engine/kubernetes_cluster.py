"""Workers that are asked of the Dask operator of Kubernetes, by dask-kubernetes.

For a cluster that is used as it stands, from inside or by port forwarding. Node selectors, secrets, volumes
and TLS are a DaskJob's to say, whose driver then uses kind ``address``.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distributed import Client

from denoizarr.errors import BadRequest, ClusterLost

from .cluster_settings import ClusterSettings, KubernetesSettings
from .dask_settings import worker_environment

_LOG = logging.getLogger(__name__)
# As long as a node takes to be made, and to fetch an image of gigabytes.
_START_SECONDS = 600


@contextmanager
def kubernetes_client(settings: ClusterSettings, at_most: int | None = None) -> Iterator[Client]:
    """Yield a client of workers in pods, once the first of them is there; they are deleted with the block.

    Raises
    ------
    BadRequest
        dask-kubernetes is not installed.
    ClusterLost
        There is no Kubernetes or no operator in it, or no worker came.
    """
    try:
        from dask_kubernetes.operator import KubeCluster
    except ImportError as error:
        raise BadRequest(
            "kind kubernetes needs the package dask-kubernetes",
            where="cluster.kind",
            remedy="pip install 'denoizarr[kubernetes]'",
        ) from error
    try:
        cluster = KubeCluster(
            custom_cluster_spec=cluster_object(settings, f"denoizarr-{uuid.uuid4().hex[:10]}", at_most),
            namespace=settings.kubernetes and settings.kubernetes.namespace,
            resource_timeout=_START_SECONDS,
            quiet=True,
        )
    except Exception as error:  # the libraries beneath raise what they like
        raise ClusterLost(
            "Kubernetes gives no cluster",
            got=f"{type(error).__name__}: {str(error)[:300]}",
            remedy="is the Dask operator installed, and may this account create a DaskCluster?",
        ) from error
    with cluster:
        _LOG.warning("the scheduler is reached without TLS: a network policy must keep others from it")
        if settings.is_adaptive:
            cluster.adapt(minimum=settings.minimum, maximum=settings.maximum)
        with Client(cluster, set_as_default=False) as client:
            try:
                client.wait_for_workers(1, timeout=_START_SECONDS)
            except TimeoutError as error:
                raise ClusterLost(
                    "no worker came", got=f"{_START_SECONDS} s", remedy="look at the workers' pods"
                ) from error
            yield client


def cluster_object(settings: ClusterSettings, name: str, at_most: int | None = None) -> dict[str, Any]:
    """Return the DaskCluster object that the operator is asked for."""
    from dask_kubernetes.operator import make_cluster_spec

    assert settings.kubernetes is not None, "checked"
    wanted: KubernetesSettings = settings.kubernetes
    memory = settings.memory_limit_bytes * wanted.cores
    workers = settings.minimum if settings.minimum is not None else settings.workers
    assert workers != "auto", "checked"
    command = ["dask", "worker", "--nthreads", str(wanted.cores), "--memory-limit", f"{memory}B"]
    if wanted.gpus:
        command += ["--resources", "GPU=1"]
    spec: dict[str, Any] = make_cluster_spec(
        name,
        image=wanted.image,
        n_workers=min(workers, at_most or workers),
        env=worker_environment(),
        worker_command=command,
        resources={},
    )
    # The nanny beside the worker has memory of its own; a GPU is the worker's, not the scheduler's too.
    amounts: dict[str, str] = {"cpu": str(wanted.cores), "memory": f"{-(-memory // 2**20) + 512}Mi"}
    limits = {**amounts, **({"nvidia.com/gpu": str(wanted.gpus)} if wanted.gpus else {})}
    spec["spec"]["worker"]["spec"]["containers"][0]["resources"] = {"limits": limits, "requests": limits}
    least = {"cpu": "1", "memory": "2Gi"}
    spec["spec"]["scheduler"]["spec"]["containers"][0]["resources"] = {"limits": least, "requests": least}
    return spec
