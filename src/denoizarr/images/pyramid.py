"""The coarser levels that are not written along with the finest: each from the one below it, block by block.

A block of the finest level is a single shard. Above it there are whole shards for a level or two (see
``layout``); for those above these, a pass reads the level below, a sixteenth or less of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from denoizarr.engine import failpoints
from denoizarr.engine.ledger import Ledger
from denoizarr.engine.runner import Record, Step, run_step
from denoizarr.geometry.boxes import Box
from denoizarr.kernels.pooling import mean_pool
from denoizarr.stores.sources import ImageSource, open_array, reader_of_array

from .layout import OutputLayout
from .output import open_level, write_box

BATCH_VOXELS = 8 * 2**20  # of the level being written: about a second of work


@dataclass(frozen=True, slots=True)
class PyramidSpec:
    """What a task needs to compute blocks of one level."""

    layout: OutputLayout
    level: int


def write_level_block(spec: PyramidSpec, block: int) -> Record:
    """Compute one write unit of a level from the level below, which is complete."""
    level = spec.layout.levels[spec.level]
    box = level.write_units.box(block)
    below = spec.layout.levels[spec.level - 1]
    source = Box(
        tuple(a * f for a, f in zip(box.start, level.factors, strict=True)),
        tuple(min(b * f, n) for b, f, n in zip(box.stop, level.factors, below.shape, strict=True)),
    )
    # Not the cached reader: what it knows of the level's shards is from before they were written.
    where = ImageSource(spec.layout.url, below.path, spec.layout.dims)
    values = reader_of_array(open_array(where.url, where.path), where).read(source)
    pooled = mean_pool(values, level.factors)
    failpoints.reach("pooled")
    return write_box(open_level(spec.layout, level), box, pooled) | {"read_bytes": values.nbytes}


def pyramid_steps(layout: OutputLayout) -> list[Step]:
    """Return the steps that write the levels that are not written along with the finest, in order."""
    steps = []
    for number in range(1 + layout.along, len(layout.levels)):
        units = layout.levels[number].write_units
        size = blocks_per_batch(units.box(0).size)
        steps.append(
            Step(f"level-{number}", write_level_block, PyramidSpec(layout, number), len(units), size)
        )
    return steps


def build_pyramid(
    layout: OutputLayout,
    ledger: Ledger,
    *,
    client: Any = None,
    threads: int = 1,
    progress: bool = True,
    fold: Callable[[Record], None],
) -> None:
    """Write the other levels, one after the other. Their batch records go to ``fold``, in order."""
    for step in pyramid_steps(layout):
        label = step.name.replace("level-", "pyramid level ")
        run_step(
            step, ledger=ledger, client=client, threads=threads, progress=progress, label=label, fold=fold
        )
        failpoints.reach("level-done")


def blocks_per_batch(block_voxels: int, batch_voxels: int = BATCH_VOXELS) -> int:
    """Return how many blocks make one task: a function of their size alone: the partition is fixed."""
    return max(batch_voxels // max(block_voxels, 1), 1)
