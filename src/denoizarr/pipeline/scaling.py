"""How long a job's inference takes on so many workers: a few blocks measured, the rest played out."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from denoizarr.engine.simulation import BatchCosts, Projection, project
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.tiling import tile_for
from denoizarr.images.layout import create_array
from denoizarr.images.output import open_level, write_box
from denoizarr.inference.block import denoise_box
from denoizarr.inference.prediction import Prediction
from denoizarr.report.words import duration
from denoizarr.stores import locations
from denoizarr.training.denoiser import Denoiser

# Of client and scheduler, for each batch that is sent and noted and for each of its blocks, as measured:
# ``benchmarks/run.py scaling`` and ``engine``.
_SECONDS_OF_A_BATCH, _SECONDS_OF_A_BLOCK = 0.0025, 3e-6


@dataclass(frozen=True, slots=True)
class BlockCost:
    """What one block of the finest level costs on one core of this machine.

    Attributes
    ----------
    seconds : float
        Reading, computing, writing and reading back; the mean over the blocks measured.
    spread : float
        Their standard deviation over their mean.
    bytes_read : float
        Decoded, halo included.
    bytes_written : float
        As stored.
    blocks : int
        Measured.
    """

    seconds: float
    spread: float
    bytes_read: float
    bytes_written: float
    blocks: int


def measure_blocks(denoiser: Denoiser, planned: Prediction, n_blocks: int = 3) -> BlockCost:
    """Denoise some blocks of an image, spread over it, into a temporary folder, and say what they cost.

    Parameters
    ----------
    denoiser : Denoiser
        Of the right shape; its weights do not matter.
    planned : Prediction
    n_blocks : int
        At most; one more is done before them and not counted.

    Raises
    ------
    MissingChunk, CorruptChunk, NonFiniteData
        The image cannot be read there.
    """
    level = planned.layout.levels[0]
    units = level.write_units
    chosen = np.unique(np.linspace(0, len(units) - 1, n_blocks).astype(int)).tolist()
    seconds, read, written = [], 0.0, 0.0
    with TemporaryDirectory(prefix="denoizarr-") as folder:
        layout = replace(planned.layout, url=locations.join(folder, "blocks"), levels=(level,))
        group = locations.open_group(layout.url, "a", zarr_format=3 if layout.ome_version == "0.5" else 2)
        create_array(group, layout, level)
        array = open_level(layout, level)
        for block in [chosen[0], *chosen]:
            box = units.box(block)
            started = time.perf_counter()
            values, _ = denoise_box(
                denoiser, planned.reader, box, planned.tile_shape, np.dtype(layout.dtype), at_once=1
            )
            write_box(array, box, values)
            seconds.append(time.perf_counter() - started)
            read += _read_bytes(denoiser, planned, box)
        written = _stored_bytes(folder)
    counted = np.array(seconds[1:])
    return BlockCost(
        float(counted.mean()),
        float(counted.std() / counted.mean()),
        read / len(seconds),
        written / len(chosen),
        len(chosen),
    )


def project_workers(
    cost: BlockCost,
    planned: Prediction,
    workers: int,
    *,
    store_bytes_per_second: float = inf,
) -> Projection:
    """Return what the finest level of an image takes on so many workers like the one that was measured.

    Parameters
    ----------
    cost : BlockCost
    planned : Prediction
    workers : int
    store_bytes_per_second : float
        Of the store, for all workers together.
    """
    per_batch = planned.blocks / planned.batches
    costs = BatchCosts(
        cost.seconds * per_batch,
        cost.bytes_read * per_batch,
        cost.bytes_written * per_batch,
        store_bytes_per_second=store_bytes_per_second,
        driver_seconds=_SECONDS_OF_A_BATCH + _SECONDS_OF_A_BLOCK * per_batch,
        # The lengths of a batch's blocks even out.
        spread=cost.spread / per_batch**0.5,
    )
    return project(costs, planned.batches, workers)


def in_words(projection: Projection, workers: int) -> str:
    """Return a projection in a line for people."""
    held_up = ""
    if projection.driver_share > 0.9:
        held_up = ", held up by the scheduler: larger shards make fewer batches"
    elif projection.store_share > 0.9:
        held_up = ", held up by the store"
    elif projection.efficiency < 0.8:
        held_up = ", held up by the last batches"
    return (
        f"{workers:,} worker{'s' if workers != 1 else ''}: inference takes {duration(projection.seconds)}, "
        f"{projection.efficiency:.0%} of their time at work{held_up}"
    )


def _read_bytes(denoiser: Denoiser, planned: Prediction, box: Box) -> float:
    n = len(denoiser.halo)
    shape = planned.reader.shape[-n:]
    tile = tile_for(Box(box.start[-n:], box.stop[-n:]), shape, denoiser.halo, denoiser.stride)
    planes = box.size // Box(box.start[-n:], box.stop[-n:]).size
    return float(planes * tile.inside(shape).size * planned.reader.dtype.itemsize)


def _stored_bytes(folder: str) -> float:
    return float(sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()))
