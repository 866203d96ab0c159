"""What a local cluster is made of, where there are fewer batches than cores."""

from __future__ import annotations

import os
from typing import Any

import pytest

from denoizarr.engine.cluster import ClusterSettings, open_client
from denoizarr.errors import BadRequest
from denoizarr.inference.tile_threads import cores_of_process


def arena_limit() -> str | None:
    """Return what malloc was told when the worker began."""
    return os.environ.get("MALLOC_ARENA_MAX")


def test_workers_that_are_not_there_leave_their_threads_and_memory_to_those_that_are() -> None:
    settings = ClusterSettings(workers=7, memory_limit_bytes=2**28)
    with open_client(settings, at_most=2) as client:
        workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
        assert [w["nthreads"] for w in workers.values()] == [3, 3]
        assert [w["memory_limit"] for w in workers.values()] == [3 * 2**28] * 2
        assert client.submit(cores_of_process, pure=False).result() == 3, "a block alone has all of them"
        assert client.submit(arena_limit, pure=False).result() == "1", "or a worker keeps no freed memory"


def test_a_cluster_of_no_workers_is_refused() -> None:
    with pytest.raises(BadRequest, match="a cluster needs a worker"), open_client(ClusterSettings(workers=0)):
        pass
