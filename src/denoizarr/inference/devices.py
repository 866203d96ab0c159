"""Where the blocks of a prediction are computed: which device, on which workers, how many in a batch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from denoizarr.errors import ClusterLost
from denoizarr.geometry.grids import Grid

# What a Dask worker that has a GPU declares: dask worker --resources "GPU=1".
GPU = "GPU"
# How many workers may be gone by the time that they are asked, and how long the next one is waited for.
_ASKED_AGAIN, _WAIT_SECONDS = 3, 60
# How long a batch may get, in voxels: a minute of a CPU core, some seconds of a GPU. And how many there
# must be of them for that, so that workers end together: hundreds of CPUs, tens of GPUs.
_LONGEST = {"cpu": 16 * 2**20, "cuda": 512 * 2**20}
_MANY = {"cpu": 4096, "cuda": 64}


@dataclass(frozen=True, slots=True)
class Place:
    """Where blocks are computed.

    Attributes
    ----------
    device : {"cpu", "cuda"}
        Part of a job's identity: their last bits differ.
    resources : dict, optional
        What each batch needs of a Dask worker.
    """

    device: str
    resources: dict[str, float] | None = None


def has_cuda() -> bool:
    """Tell whether this process has a GPU."""
    return bool(torch.cuda.is_available())


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that this process sees, as ``CUDA_VISIBLE_DEVICES`` names them.

    Counting them begins nothing on them.
    """
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(named[:count]) if named else tuple(str(number) for number in range(count))


def place_of(client: Any) -> Place:
    """Return where blocks are computed: by workers with a GPU where any declares one, else by all.

    A worker is asked for its device, not this process, which may be a laptop before a cluster or the other
    way round. The workers that do blocks must all be of one kind.

    Parameters
    ----------
    client : distributed.Client or None

    Raises
    ------
    ClusterLost
        The scheduler or the worker does not answer.
    """
    if client is None:
        return Place("cuda" if has_cuda() else "cpu")
    tries = 0
    while True:
        try:
            workers = client.scheduler_info(n_workers=-1)["workers"]
            if not workers:  # those that are still to come are taken to be like this machine
                return Place("cuda" if has_cuda() else "cpu")
            declaring = [name for name, worker in workers.items() if worker["resources"].get(GPU, 0) >= 1]
            asked = (declaring or list(workers))[0]
            found = _answer(client, asked)
            if found is None and tries < _ASKED_AGAIN:
                tries += 1
                client.wait_for_workers(1, timeout=_WAIT_SECONDS)
                continue
        except (OSError, TimeoutError) as error:
            raise _silent(f"{type(error).__name__}: {error}") from error
        if found is None:
            raise _silent(f"nothing from {asked}")
        return Place("cuda" if found else "cpu", {GPU: 1} if declaring else None)


def _answer(client: Any, worker: str) -> bool | None:
    """Return whether a worker has a GPU; None where it is gone, as workers that come and go may be."""
    found = client.run(has_cuda, workers=[worker], on_error="return").get(worker)
    if isinstance(found, OSError):
        return None
    if isinstance(found, BaseException):
        raise found
    return found if found is None else bool(found)


def _silent(got: str) -> ClusterLost:
    return ClusterLost("the Dask cluster does not answer", got=got, remedy="run the same job again to resume")


def batch_voxels(device: str, units: Grid, least: int) -> int:
    """Return the voxels of a batch: seconds to a minute of its device, whoever has it.

    Within a batch the next block is read while one is computed. That tells on a GPU, whose blocks take
    hundredths of a second; on a CPU core reading is a hundredth of computing.

    Parameters
    ----------
    device : {"cpu", "cuda"}
    units : Grid
        The blocks of the finest level.
    least : int
        Voxels that make a batch of a CPU core last seconds.
    """
    block = units.box(0).size
    return max(least, min(_LONGEST[device], len(units) // _MANY[device] * block))
