"""How an image is read for its regions: in blocks, and each block in slabs that overlap in memory only.

Neighbouring regions share a cell, so a block of regions needs one cell more than it has regions. Read block
by block, the chunks along that border are decoded twice. A block is therefore as long as it may be along one
axis, and swept: slabs of whole chunks are read one after the other, and what the next regions still need of
the last one stays in memory::

    chunks   |     |     |     |     |     |     |
    slabs    [==========)[==========)[===========]      read once each
    regions  [--][--][--]                               done after the first slab
                    [--][--][--][--]                    after the second, which begins in what was kept

An axis that is not swept is cut only where a slab of its whole length would not fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import Grid, ceil_div, round_up
from denoizarr.stores.sources import ImageReader

from .cells import Cells

# Planes up to this size, and volumes of 3D patches, are scored whole.
_WHOLE_BYTES = 64 * 2**20
# A slab and what is kept of the one before it: the larger, the fewer borders across the sweep.
_SLAB_BYTES = 192 * 2**20
_VOLUME_SLAB_BYTES = 384 * 2**20  # with 3D patches they overlap along two axes
# A block lasts seconds to a minute: what a kill costs, and enough of them for every core.
_SMALLEST_BLOCK_BYTES, _LARGEST_BLOCK_BYTES, _WANTED_BLOCKS = 64 * 2**20, 2**30, 32
# A block is at least this many chunks or patches long, so that a border along the sweep costs a few per cent.
_SHORTEST_SWEEP = 16
_PATCHES_PER_SLAB = 8
# Several small planes share a task up to this size, so that there still are tasks enough for every core.
_GROUP_BYTES = 16 * 2**20
_MOST_CUTS = 4096


@dataclass(frozen=True, slots=True)
class Slab:
    """What one step of a sweep brings.

    Attributes
    ----------
    regions : Box
        Those that are complete now; over a block, each once. May be empty along the axis of the sweep.
    voxels : array
        What ``cells.voxels_of_regions(regions)`` holds.
    box : Box
        The voxels that were read now, for the first time in this block.
    read : array
        What ``box`` holds.
    """

    regions: Box
    voxels: NDArray[Any]
    box: Box
    read: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Sweep:
    """The blocks of regions of one image, and how a block is read.

    Attributes
    ----------
    cells : Cells
    grid : Grid
        Of regions.
    axis : int
        Along which a block is swept.
    slab : int
        Voxels along ``axis`` that are read at once: whole chunks.
    """

    cells: Cells
    grid: Grid
    axis: int
    slab: int

    @property
    def slab_voxels(self) -> int:
        """Most voxels that are held at once: a slab, and what is kept of the one before it."""
        extents = list(self.cells.voxels_of_regions(self.grid.box(0)).shape)
        extents[self.axis] = min(self.slab + 2 * self.cells.step[self.axis], extents[self.axis])
        return prod(extents)

    def slabs(self, reader: ImageReader, block: Box) -> Iterator[Slab]:
        """Read a block of regions, each of its voxels once."""
        cells, axis, step = self.cells, self.axis, self.cells.step[self.axis]
        whole = cells.voxels_of_regions(block)
        kept: NDArray[Any] | None = None
        first, begin = block.start[axis], whole.start[axis]
        for box in self.pieces(reader, whole):
            piece, stop = reader.read(box), box.stop[axis]
            held = piece if kept is None else np.concatenate([kept, piece], axis)
            done = block.stop[axis] if stop == whole.stop[axis] else max(stop // step - 1, first)
            regions = _along(block, axis, first, done)
            inner = cells.voxels_of_regions(regions)
            yield Slab(regions, held[_cut(held.ndim, axis, 0, inner.stop[axis] - begin)], box, piece)
            kept = held[_cut(held.ndim, axis, done * step - begin, held.shape[axis])]
            first, begin = done, done * step

    def pieces(self, reader: ImageReader, box: Box) -> Iterator[Box]:
        """Cut a box of voxels along the axis of the sweep, where chunks end."""
        offset, position, stop = reader.offset[self.axis], box.start[self.axis], box.stop[self.axis]
        while position < stop:
            end = ((position + offset) // self.slab + 1) * self.slab - offset
            # A rest below a patch has no region of its own.
            end = stop if stop - end < self.cells.step[self.axis] else end
            yield _along(box, self.axis, position, end)
            position = end


def _along(box: Box, axis: int, start: int, stop: int) -> Box:
    return Box(
        (*box.start[:axis], start, *box.start[axis + 1 :]), (*box.stop[:axis], stop, *box.stop[axis + 1 :])
    )


def _cut(ndim: int, axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return tuple(slice(start, stop) if a == axis else slice(None) for a in range(ndim))


def plan_sweep(cells: Cells, chunks: tuple[int, ...], itemsize: int, *, swept: bool = True) -> Sweep:
    """Choose blocks and slabs that read each chunk about once within a bounded memory.

    Parameters
    ----------
    cells : Cells
    chunks : tuple of int
        The unit of decoding along every dim, in voxels.
    itemsize : int
        Bytes per voxel.
    swept : bool
        Without, a block is a single slab: for voxels that a graph hands over whole.
    """
    n_lead, regions = cells.n_lead, cells.region_counts
    lead = [min(c, n) for c, n in zip(chunks[:n_lead], cells.shape[:n_lead], strict=True)]
    volume_bytes = prod(cells.shape[n_lead:]) * itemsize
    if prod(lead) * volume_bytes <= _WHOLE_BYTES:
        for axis in reversed(range(n_lead)):
            fits = _GROUP_BYTES // (prod(lead) * volume_bytes)
            lead[axis] = min(lead[axis] * max(fits, 1), cells.shape[axis])
        grid = Grid(regions, (*lead, *regions[n_lead:]))
        return Sweep(cells, grid, n_lead, round_up(cells.shape[n_lead], chunks[n_lead]))
    slab_bytes = _SLAB_BYTES if len(cells.patch) == 2 else _VOLUME_SLAB_BYTES
    room = slab_bytes // (itemsize * prod(lead))
    # The last axis is never swept: its voxels lie together.
    candidates = [_crossing(cells, chunks, axis, room) for axis in range(n_lead, len(cells.dims) - 1)]
    _, axis, crossing, slab = min(candidates, key=lambda c: c[0])
    total_bytes = prod(cells.shape) * itemsize
    wanted = min(max(total_bytes // _WANTED_BLOCKS, _SMALLEST_BLOCK_BYTES), _LARGEST_BLOCK_BYTES)
    voxels = prod(lead) * prod(crossing.values())
    shortest = max(_SHORTEST_SWEEP * max(chunks[axis], cells.step[axis]), slab)
    length = max(ceil_div(wanted // itemsize, voxels), shortest) if swept else slab
    crossing[axis] = min(length, cells.shape[axis])
    extents = [max(min(crossing[a] // cells.step[a], regions[a]), 1) for a in range(n_lead, len(cells.dims))]
    # The last block takes no fewer regions than it must: equal parts.
    extents = [ceil_div(n, ceil_div(n, e)) for n, e in zip(regions[n_lead:], extents, strict=True)]
    return Sweep(cells, Grid(regions, (*lead, *extents)), axis, slab)


def _crossing(
    cells: Cells, chunks: tuple[int, ...], axis: int, room: int
) -> tuple[float, int, dict[int, int], int]:
    """Return what sweeping along ``axis`` decodes per voxel, the axis, the extents across it, the slab."""
    others = [a for a in range(cells.n_lead, len(cells.dims)) if a != axis]
    pieces = dict.fromkeys(others, 1)

    def extent(a: int) -> int:
        return ceil_div(cells.shape[a], pieces[a])

    def needed(thickness: int) -> int:
        return thickness * prod(min(extent(a) + cells.step[a], cells.shape[a]) for a in others)

    def overhead(a: int) -> float:
        twice = (pieces[a] - 1) * max(chunks[a], cells.step[a])
        return 1 + twice / cells.shape[a]

    # Kept voxels of up to two patches, and at least one chunk of new ones.
    smallest = min(chunks[axis] + 2 * cells.step[axis], cells.shape[axis])
    for _ in range(_MOST_CUTS):
        possible = [a for a in others if extent(a) > 2 * max(chunks[a], cells.step[a])]
        if needed(smallest) <= room or not possible:
            break
        cheapest = min(possible, key=lambda a: (max(chunks[a], cells.step[a]) / cells.shape[a], a))
        pieces[cheapest] += 1
    chunks_at_once = max((room // needed(1) - 2 * cells.step[axis]) // chunks[axis], 1)
    # More than some patches at once save no copying worth having, and fresh memory is not free.
    chunks_at_once = min(chunks_at_once, ceil_div(_PATCHES_PER_SLAB * cells.step[axis], chunks[axis]))
    slab = min(chunks_at_once * chunks[axis], round_up(cells.shape[axis], chunks[axis]))
    return prod(overhead(a) for a in others), axis, {a: extent(a) for a in others}, slab
