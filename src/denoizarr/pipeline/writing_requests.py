"""What it takes to write an image through the engine: units, coarser levels, records, metadata.

::

    one block:    open the array (metadata of both Zarr formats) -> put -> get, read back     for each level
    one batch:    is it on record? (2 gets) -> whose is the output? -> ... -> put of its record
    one step:     put of its partition; a head for every batch at the start, a get of every record at the end;
                  the records of 1,024 batches are gathered in one object, in place of theirs
"""

from __future__ import annotations

from math import prod

import numpy as np

from denoizarr.engine.ledger import GROUP
from denoizarr.geometry.grids import ceil_div
from denoizarr.images.layout import LevelLayout, OutputLayout
from denoizarr.images.pyramid import pyramid_steps
from denoizarr.images.windows import LARGEST_SIDE, MOST_PLANES, MOST_VOXELS

from .array_reads import StoredArray, even_cuts
from .requests import (
    ARRAY_METADATA,
    ASK,
    DELETE,
    GET,
    LIST_NAMES,
    MISS,
    NONE,
    OPEN_ARRAY,
    OPEN_GROUP,
    PUT,
    Requests,
)

# A block's part of its batch's record: a checksum of 16 digits for the object of each level, and its names.
_RECORD_BYTES, _BLOCK_RECORD_BYTES = 2048, 128
# Whose an output is, is asked at most once before each of these: reading, computing and writing of a block.
_STAGES = 3


def recorded_step(n_blocks: int, blocks_per_batch: int, stages: int = 1, record_bytes: int = 0) -> Requests:
    """Return what a step asks of its ledger, from its beginning to the last look at its records.

    Parameters
    ----------
    n_blocks, blocks_per_batch : int
    stages : int
        Parts of a block that are tried again by themselves; 1 where a block is a single call.
    record_bytes : int
        Of a batch's record where it holds more than checksums, such as histograms.
    """
    n_batches = ceil_div(n_blocks, blocks_per_batch)
    groups = n_batches // GROUP
    n_bytes = record_bytes or _RECORD_BYTES + blocks_per_batch * _BLOCK_RECORD_BYTES
    put, get = Requests(puts=1, bytes_written=n_bytes), Requests(gets=1, bytes_read=n_bytes)
    # Is it on record, alone or in a group? Does the output still belong to the job?
    claims = 2 * n_batches + stages * n_blocks
    work = 2 * n_batches * MISS + n_batches * put + claims * GET
    begun = 2 * PUT + 2 * GET + ASK + Requests(heads=groups + n_batches)
    # Gathered: all sizes, all records, one put; they are deleted. At the end all is looked through once more.
    one = get + DELETE + 2 * Requests(heads=1) + Requests(bytes_read=n_bytes, bytes_written=n_bytes)
    gather = GROUP * one + 2 * Requests(heads=1) + MISS + PUT + GET
    return work + begun + groups * gather + (n_batches - groups * GROUP) * get + MISS


def stored_level(layout: OutputLayout, level: LevelLayout) -> StoredArray:
    """Return how a level of an output lies in its store."""
    return StoredArray.of(level.shape, level.chunks, level.shards, _itemsize(layout), is_looked_through=True)


def written_image(layout: OutputLayout, blocks_per_batch: int, stages: int, model_bytes: int = 0) -> Requests:
    """Return what writing an image takes, all levels, records and metadata, in one undisturbed run.

    Parameters
    ----------
    layout : OutputLayout
    blocks_per_batch : int
        Of the finest level.
    stages : int
        Of a block of the finest level; see ``recorded_step``.
    model_bytes : int
        Of what is kept beside the ledger.
    """
    n_levels = len(layout.levels)
    is_old = layout.ome_version == "0.4"
    # Zarr 2 keeps attributes in an object of their own, and is asked for first.
    metadata, asked = (2, Requests(heads=2 * n_levels + 6)) if is_old else (1, NONE)
    # The claim, the driver's note, the model; the group, which each of its arrays writes anew; the arrays.
    total = 12 * ASK + 3 * LIST_NAMES + DELETE + 2 * PUT + 10 * GET + OPEN_GROUP + asked
    total += metadata * (2 * n_levels + 3) * PUT + n_levels * (OPEN_ARRAY + 3 * GET)
    total += Requests(puts=1, bytes_written=model_bytes)
    for number, level in enumerate(layout.levels):
        stored = stored_level(layout, level)
        # Zarr finds the format out anew for every block.
        total += stored.n_objects * (ARRAY_METADATA + Requests(puts=1, gets=1))
        total += Requests(bytes_read=stored.stored_bytes, bytes_written=stored.stored_bytes)
        if number == 0:
            total += recorded_step(len(level.write_units), blocks_per_batch, stages)
    for number, step in enumerate(pyramid_steps(layout), 1 + layout.along):
        level, below = layout.levels[number], layout.levels[number - 1]
        total += recorded_step(step.n_blocks, step.blocks_per_batch)
        total += step.n_blocks * OPEN_ARRAY + _read_for(layout, level, below)
    return total + _windows(layout)


def _read_for(layout: OutputLayout, level: LevelLayout, below: LevelLayout) -> Requests:
    """Return what it takes to read a level for the one above it; each block opens it anew."""
    steps = [u * f for u, f in zip(level.write_units.step, level.factors, strict=True)]
    cuts = [even_cuts(n, s) for n, s in zip(below.shape, steps, strict=True)]
    return stored_level(layout, below).reading([c[:-1] for c in cuts], [c[1:] for c in cuts])


def _windows(layout: OutputLayout) -> Requests:
    """Return what the display windows take: planes of the coarsest level, for every channel."""
    if len([c for c in layout.omero.get("channels", []) if "window" in c]) > 0:
        return NONE
    level = layout.levels[-1]
    channels = level.shape[layout.dims.index("c")] if "c" in layout.dims else 1
    sides = [min(n, LARGEST_SIDE) for n in level.shape[-2:]]
    planes = max(min(prod(level.shape[:-2]) // channels, MOST_PLANES, MOST_VOXELS // prod(sides)), 1)
    one = [1] * (len(level.shape) - 2) + sides
    stored = stored_level(layout, level)
    return channels * (OPEN_ARRAY + stored.reading_anywhere(one, planes))


def _itemsize(layout: OutputLayout) -> int:
    return np.dtype(layout.dtype).itemsize
