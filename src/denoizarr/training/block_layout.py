"""How an image is cut into the blocks that an epoch reads: integers only.

Every axis of the patch is cut into blocks of a few whole chunks (fewer where chunks are huge); the cuts shift
by whole chunks from epoch to epoch, so a patch that one epoch's cuts forbid is inside a block in another::

    chunks     |    |    |    |    |    |    |
    epoch 0    [  block  |  block  |  block  ]
    epoch 1    [    |  block  |  block  |    ]

Along the other axes (t; z where patches are planes) a block lies inside one chunk. A cell belongs to the
block that holds its centre, so its patches need moving by half a patch at most to lie inside the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import ceil_div
from denoizarr.selection.patch_index import PatchIndex

Integers = NDArray[np.int64]
# A block this many patches wide loses little to its border.
_PATCHES_ACROSS = 4
_CELLS_AT_ONCE = 1 << 20
_LAYOUTS_KEPT = 32
# What is read of an image at a time, at most, where its chunks allow it.
BLOCK_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True)
class ChunkGrid:
    """The chunks of one image along the index's dims, and what a voxel of it weighs.

    Attributes
    ----------
    chunks : tuple of int
        In voxels.
    offset : tuple of int
        Position of the image's first voxel inside its chunk; not zero for a slice of a stored image.
    voxel_bytes : int
        Of all channels of one voxel together.
    """

    chunks: tuple[int, ...]
    offset: tuple[int, ...]
    voxel_bytes: int = 1


def cut_axis(size: int, chunk: int, per_block: int, shift: int, smallest: int, offset: int = 0) -> Integers:
    """Return the ends of the blocks along one axis: 0, ..., ``size``; every block at least ``smallest`` long.

    Parameters
    ----------
    size, chunk : int
        Extent of the image and of its chunks, in voxels.
    per_block, shift : int
        In chunks; ``shift`` is the length of the first block, 0 for a full one.
    smallest : int
        In voxels, at most ``size``.
    offset : int
        Voxels of the first chunk that lie before the image.
    """
    step = chunk * per_block
    cuts = [0]
    for cut in range((shift * chunk or step) - offset, size, step):
        if cut - cuts[-1] >= smallest:
            cuts.append(cut)
    if size - cuts[-1] < smallest and len(cuts) > 1:
        cuts.pop()
    return np.array([*cuts, size], np.int64)


def cut_chunks(size: int, chunk: int, thickness: int, offset: int = 0) -> Integers:
    """Return the ends of blocks up to ``thickness`` long, each part of one chunk: 0, ..., ``size``."""
    part = ceil_div(chunk, ceil_div(chunk, thickness))
    starts = (p for a in range(-offset, size, chunk) for p in range(a, min(a + chunk, size), part))
    return np.array([0, *(p for p in starts if p > 0), size], np.int64)


@dataclass(frozen=True, slots=True)
class Layout:
    """The blocks of one image in one epoch.

    Attributes
    ----------
    cuts : tuple of int64 arrays
        Ends of the blocks along each of the index's dims, in voxels.
    cells : tuple of int64 arrays
        The first cell of each block along each dim, and the number of cells at last.
    shift : tuple of int
        How far the cuts are shifted along each axis of the patch; of one image, it decides all else.
    """

    cuts: tuple[Integers, ...]
    cells: tuple[Integers, ...]
    shift: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of blocks along each dim."""
        return tuple(c.size - 1 for c in self.cuts)

    def cell_box(self, block: Sequence[int]) -> Box:
        """Return the cells of a block."""
        return _box_between(self.cells, block)

    def voxel_box(self, block: Sequence[int]) -> Box:
        """Return the voxels of a block, along the index's dims."""
        return _box_between(self.cuts, block)


def _box_between(ends: Sequence[Integers], block: Sequence[int]) -> Box:
    pairs = [(int(e[i]), int(e[i + 1])) for e, i in zip(ends, block, strict=True)]
    return Box(tuple(a for a, _ in pairs), tuple(b for _, b in pairs))


def block_extent(
    shape: Sequence[int], chunks: Sequence[int], patch: Sequence[int], voxel_bytes: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return how thick a block is along the axes that a patch lacks, and how many chunks wide along its own.

    One whole chunk thick, in voxels, and at least two chunks wide, so that shifted cuts let a patch lie
    across a chunk's border. Where that is too many bytes a block is thinner than a chunk, and at last one
    chunk wide where that is wide enough for the patches.
    """
    lead = len(shape) - len(patch)
    thickness = [min(c, n) for c, n in zip(chunks[:lead], shape[:lead], strict=True)]
    sizes = [(min(c, n), n) for c, n in zip(chunks[lead:], shape[lead:], strict=True)]
    fewest = [ceil(_PATCHES_ACROSS * p / c) for p, (c, _) in zip(patch, sizes, strict=True)]
    wide = [max(2, n) for n in fewest]

    def patch_axes_bytes() -> int:
        return prod(min(w * c, n) for w, (c, n) in zip(wide, sizes, strict=True)) * voxel_bytes

    for axis, whole in enumerate(thickness):
        others = prod(thickness) // whole * patch_axes_bytes()
        thickness[axis] = min(max(BLOCK_BYTES // others, 1), whole)
    # The longest side first.
    for axis in sorted(range(len(sizes)), key=lambda a: -sizes[a][0]):
        if prod(thickness) * patch_axes_bytes() > BLOCK_BYTES:
            wide[axis] = fewest[axis]
    return tuple(thickness), tuple(wide)


def layout_of(index: PatchIndex, number: int, grid: ChunkGrid, uniform: NDArray[np.float64]) -> Layout:
    """Cut one image into blocks.

    Parameters
    ----------
    index : PatchIndex
    number : int
        Of the image.
    grid : ChunkGrid
    uniform : float64 array (axes of the patch,)
        In [0, 1): how far the cuts along each shift.
    """
    shape, patch = index.shapes[number], index.patch_size
    lead = len(shape) - len(patch)
    chunks = tuple(min(c, n) for c, n in zip(grid.chunks, shape, strict=True))
    offset = tuple(o if c < n else 0 for o, c, n in zip(grid.offset, grid.chunks, shape, strict=True))
    thickness, wide = block_extent(shape, chunks, patch, grid.voxel_bytes)
    cuts = [cut_chunks(shape[a], chunks[a], thickness[a], offset[a]) for a in range(lead)]
    cells = list(cuts)  # a cell is one voxel thick there
    shift = []
    for k, extent in enumerate(patch):
        size, chunk = shape[lead + k], chunks[lead + k]
        if wide[k] > 1:
            shift.append(int(uniform[k] * wide[k]))
            cut = cut_axis(size, chunk, wide[k], shift[k], extent, offset[lead + k])
        else:
            # Shifted by half a chunk in every other epoch, or no patch would ever lie across a border.
            shift.append(chunk // 2 * int(uniform[k] * 2))
            cut = cut_axis(size, 1, chunk, shift[k], extent, offset[lead + k])
        centres = np.minimum(np.arange(0, size, extent) + extent // 2, size - 1)
        cuts.append(cut)
        cells.append(np.append(np.searchsorted(centres, cut[:-1]), centres.size))
    return Layout(tuple(cuts), tuple(cells), tuple(shift))


class BlockWeights:
    """The sums of an index's weights over blocks; those of the last few layouts are remembered.

    A sum over the cells of a terabyte takes a second, and there are few ways for the cuts to shift.
    """

    def __init__(self, index: PatchIndex) -> None:
        self._index = index
        self._known: dict[tuple[int, tuple[int, ...]], NDArray[np.float64]] = {}

    def of(self, number: int, layout: Layout) -> NDArray[np.float64]:
        """Return :func:`block_weights` of one image."""
        key = (number, layout.shift)
        if key not in self._known:
            while len(self._known) >= _LAYOUTS_KEPT:
                self._known.pop(next(iter(self._known)))
            self._known[key] = block_weights(self._index, number, layout)
        return self._known[key]


def block_weights(index: PatchIndex, number: int, layout: Layout) -> NDArray[np.float64]:
    """Return the sum of the weights of every block's cells, in the shape of ``layout.counts``."""
    classes, table = index.classes[number], index.table.astype(np.float64)
    n_planes, plane = prod(classes.shape[:-2]), prod(classes.shape[-2:])
    planes = np.empty((n_planes, *layout.counts[-2:]))
    slab = max(_CELLS_AT_ONCE // plane, 1)
    for first in range(0, n_planes, slab):
        some = classes.rows(first, min(first + slab, n_planes))
        rows = np.add.reduceat(table[some], layout.cells[-2][:-1], axis=1)
        planes[first : first + slab] = np.add.reduceat(rows, layout.cells[-1][:-1], axis=2)
    sums = planes.reshape(*classes.shape[:-2], *layout.counts[-2:])
    for axis in range(classes.ndim - 2):
        sums = np.add.reduceat(sums, layout.cells[axis][:-1], axis=axis)
    return sums
