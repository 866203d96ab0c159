"""What one epoch of a patch stream draws, and in which order: pure arithmetic, nothing is read here.

Every axis of the plane is cut into blocks of a few whole chunks (thinner or fewer where chunks are huge); the
cuts shift by whole chunks from epoch to epoch, so a patch that one epoch's cuts forbid is inside a block in
another::

    chunks     |    |    |    |    |    |    |
    epoch 0    [  block  |  block  |  block  ]
    epoch 1    [    |  block  |  block  |    ]

A cell belongs to the block that holds its centre, so its patches need moving by half a patch at most to lie
inside the block. How many patches a block gives is drawn by systematic sampling: blocks are laid end to end
in a random order, each as long as its weight, and counted against equally spaced marks with a random start.
Expectations are exactly proportional to the weights, however few blocks an epoch visits, and no block is
visited twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import ceil_div
from denoizarr.selection.patch_index import PatchIndex
from denoizarr.selection.weighted import weighted_choice
from denoizarr.stores.sources import ImageReader

Integers = NDArray[np.int64]
# A block this many patches wide loses little to its border.
_PATCHES_ACROSS = 4
# One patch is drawn from so many cells while a block is decoded: voxels read per voxel used, before borders.
_CELLS_PER_PATCH = 2
_FEWEST_PER_BLOCK, _FEWEST_BLOCKS = 16, 16
_CELLS_AT_ONCE = 1 << 20
_RESIDENT_BYTES = 256 * 2**20
_BLOCK_BYTES = 256 * 2**20
# Streams of random numbers for the different purposes of one epoch.
_LAYOUT, _DRAWS, _ORDER = 1, 2, 3


def generator_of(seed: int, epoch: int, purpose: int, number: int = 0) -> np.random.Generator:
    """Return the random numbers of one purpose: a counter-based function of its arguments (Philox)."""
    # The lowest word of the counter is left to the drawing; the others name the stream.
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, number, epoch, 0]))


def cut_axis(size: int, chunk: int, chunks_per_block: int, shift: int, smallest: int) -> Integers:
    """Return the ends of the blocks along one axis: 0, ..., ``size``; every block at least ``smallest`` long.

    Parameters
    ----------
    size, chunk : int
        Extent of the image and of its chunks, in voxels.
    chunks_per_block, shift : int
        In chunks; ``shift`` is the length of the first block, 0 for a full one.
    smallest : int
        In voxels, at most ``size``.
    """
    step = chunk * chunks_per_block
    cuts = [0]
    for cut in range(shift * chunk or step, size, step):
        if cut - cuts[-1] >= smallest:
            cuts.append(cut)
    if size - cuts[-1] < smallest and len(cuts) > 1:
        cuts.pop()
    return np.array([*cuts, size], np.int64)


@dataclass(frozen=True, slots=True)
class Layout:
    """The blocks of one image in one epoch.

    Attributes
    ----------
    cuts : tuple of int64 arrays
        Ends of the blocks along each of the index's dims, in voxels.
    cells : tuple of int64 arrays
        The first cell of each block along each dim, and the number of cells at last.
    """

    cuts: tuple[Integers, ...]
    cells: tuple[Integers, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of blocks along each dim."""
        return tuple(c.size - 1 for c in self.cuts)

    def cell_box(self, block: Sequence[int]) -> Box:
        """Return the cells of a block."""
        ends = [(int(c[i]), int(c[i + 1])) for c, i in zip(self.cells, block, strict=True)]
        return Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))

    def voxel_box(self, block: Sequence[int]) -> Box:
        """Return the voxels of a block, along the index's dims."""
        ends = [(int(c[i]), int(c[i + 1])) for c, i in zip(self.cuts, block, strict=True)]
        return Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))


def cut_chunks(size: int, chunk: int, thickness: int) -> Integers:
    """Return the ends of blocks up to ``thickness`` long, each part of one chunk: 0, ..., ``size``."""
    part = ceil_div(chunk, ceil_div(chunk, thickness))
    return np.array([*(p for a in range(0, size, chunk) for p in range(a, min(a + chunk, size), part)), size])


def block_extent(
    shape: Sequence[int], chunks: Sequence[int], patch: tuple[int, int], voxel_bytes: int
) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Return how thick a block is along t and z, in voxels, and how many chunks wide it is along y and x.

    One whole chunk thick and at least two wide, so that shifted cuts let a patch lie across a chunk's border.
    Where that is too many bytes a block is thinner than a chunk, and at last one chunk wide where that is
    wide enough for the patches.
    """
    thickness = [min(c, n) for c, n in zip(chunks[:-2], shape[:-2], strict=True)]
    sizes = [(min(c, n), n) for c, n in zip(chunks[-2:], shape[-2:], strict=True)]
    fewest = [ceil(_PATCHES_ACROSS * p / c) for p, (c, _) in zip(patch, sizes, strict=True)]
    wide = [max(2, n) for n in fewest]

    def plane_bytes() -> int:
        return prod(min(w * c, n) for w, (c, n) in zip(wide, sizes, strict=True)) * voxel_bytes

    for axis, whole in enumerate(thickness):
        others = prod(thickness) // whole * plane_bytes()
        thickness[axis] = min(max(_BLOCK_BYTES // others, 1), whole)
    # The longer side first.
    for axis in sorted((0, 1), key=lambda a: -sizes[a][0]):
        if prod(thickness) * plane_bytes() > _BLOCK_BYTES:
            wide[axis] = fewest[axis]
    return tuple(thickness), (wide[0], wide[1])


def layout_of(
    index: PatchIndex,
    number: int,
    chunks: Sequence[int],
    uniform: NDArray[np.float64],
    voxel_bytes: int = 1,
) -> Layout:
    """Cut one image into blocks.

    Parameters
    ----------
    index : PatchIndex
    number : int
        Of the image.
    chunks : sequence of int
        Its chunks along the index's dims.
    uniform : float64 array (2,)
        In [0, 1): how far the cuts along y and x shift.
    voxel_bytes : int
        Of all channels of one voxel together.
    """
    shape, lead = index.shapes[number], len(index.dims) - 2
    thickness, wide = block_extent(shape, chunks, index.plane_patch, voxel_bytes)
    # A patch is one voxel thick in t and z: a block is at most one chunk thick there, and nothing is shifted.
    cuts = [cut_chunks(shape[a], chunks[a], thickness[a]) for a in range(lead)]
    cells = list(cuts)
    for k, patch in enumerate(index.plane_patch):
        size, chunk = shape[lead + k], min(chunks[lead + k], shape[lead + k])
        if wide[k] > 1:
            cut = cut_axis(size, chunk, wide[k], int(uniform[k] * wide[k]), patch)
        else:
            # Shifted by half a chunk in every other epoch, or no patch would ever lie across a border.
            cut = cut_axis(size, 1, chunk, chunk // 2 * int(uniform[k] * 2), patch)
        centres = np.minimum(np.arange(0, size, patch) + patch // 2, size - 1)
        cuts.append(cut)
        cells.append(np.append(np.searchsorted(centres, cut[:-1]), centres.size))
    return Layout(tuple(cuts), tuple(cells))


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


def systematic_quotas(weights: NDArray[np.float64], n: int, grain: int, start: float) -> Integers:
    """Share ``n`` patches among blocks, in portions of ``grain`` (the last portion perhaps smaller).

    Parameters
    ----------
    weights : float64 array (blocks,)
        Not negative, in the order in which the blocks are laid end to end.
    n, grain : int
    start : float
        In [0, 1): where between its neighbours every mark stands.

    Returns
    -------
    int64 array (blocks,)
        Sums to ``n``; each within one portion of its exact share, and equal to it in expectation.
    """
    marks = ceil(n / grain)
    positions = (np.arange(marks) + start) / marks * weights.sum()
    hit = weighted_choice(weights, positions)
    portions = np.full(marks, grain, np.int64)
    portions[-1] = n - (marks - 1) * grain
    quotas = np.zeros(weights.size, np.int64)
    np.add.at(quotas, hit, portions)
    return quotas


@dataclass(frozen=True, slots=True)
class Visit:
    """One block of the epoch: which, how many patches it gives, and its number in the random streams."""

    image: int
    block: tuple[int, ...]
    quota: int
    stream: int


@dataclass(frozen=True, slots=True)
class Draws:
    """The patches of one group of blocks, in the order in which they are yielded.

    Attributes
    ----------
    visits : list of Visit
    visit : int64 array (n,)
        Position of each patch's block in ``visits``.
    origin : int64 array (n, dims)
        First voxel of each patch, along the index's dims.
    """

    visits: list[Visit]
    visit: Integers
    origin: Integers


class EpochPlan:
    """The patches of one epoch, as a function of the index, the chunks, the seed and the epoch.

    Parameters
    ----------
    index : PatchIndex
    readers : sequence of ImageReader
    n_patches : int
        In the epoch.
    seed, epoch : int
    resident_blocks : int
        At most so many blocks are interleaved; fewer where they are large.

    Attributes
    ----------
    visits : list of Visit
        The blocks in order of reading.
    groups : list of (first, stop, patches before)
        Runs of visits that are interleaved, and how many patches come before each.
    """

    def __init__(
        self,
        index: PatchIndex,
        readers: Sequence[ImageReader],
        n_patches: int,
        seed: int,
        epoch: int,
        resident_blocks: int,
    ) -> None:
        self.index, self.seed, self.epoch, self.n_patches = index, seed, epoch, n_patches
        layout_numbers = generator_of(seed, epoch, _LAYOUT)
        self.layouts = [
            layout_of(
                index, i, chunks_along(reader, index.dims), layout_numbers.random(2), _voxel_bytes(reader)
            )
            for i, reader in enumerate(readers)
        ]
        weights = [block_weights(index, i, layout).reshape(-1) for i, layout in enumerate(self.layouts)]
        self.visits = self._visits(weights, layout_numbers)
        self.groups = self._groups(readers, resident_blocks)

    def _visits(self, weights: list[NDArray[np.float64]], generator: np.random.Generator) -> list[Visit]:
        everything = np.concatenate(weights)
        first = np.cumsum([0, *(w.size for w in weights)])
        order = generator.permutation(np.flatnonzero(everything > 0))
        portion = self.index.n_cells // (everything.size * _CELLS_PER_PATCH)
        portion = max(min(portion, self.n_patches // _FEWEST_BLOCKS), _FEWEST_PER_BLOCK)
        # Where the epoch is long enough for every block, shares are exact to a patch.
        grain = portion if order.size * portion > self.n_patches else 1
        quotas = systematic_quotas(everything[order], self.n_patches, grain, generator.random())
        visits = []
        for block, quota in zip(order[quotas > 0], quotas[quotas > 0], strict=True):
            image = int(np.searchsorted(first, block, side="right")) - 1
            place = np.unravel_index(int(block - first[image]), self.layouts[image].counts)
            visits.append(Visit(image, tuple(int(p) for p in place), int(quota), int(block)))
        return visits

    def _groups(self, readers: Sequence[ImageReader], resident_blocks: int) -> list[tuple[int, int, int]]:
        """Group the visits; half of the resident blocks are being drawn from, half are being read."""
        most, groups = max(resident_blocks // 2, 1), []
        first = size = before = patches = 0
        for number, visit in enumerate(self.visits):
            reader = readers[visit.image]
            size += prod(self.layouts[visit.image].voxel_box(visit.block).shape) * _voxel_bytes(reader)
            patches += visit.quota
            if number + 1 - first == most or size >= _RESIDENT_BYTES // 2 or number + 1 == len(self.visits):
                groups.append((first, number + 1, before))
                first, size, before = number + 1, 0, before + patches
                patches = 0
        return groups

    def draws(self, group: int) -> Draws:
        """Return the patches of one group, interleaved in a random order."""
        first, stop, _ = self.groups[group]
        visits = self.visits[first:stop]
        origins = [self._origins(v) for v in visits]
        owner = np.repeat(np.arange(len(visits)), [v.quota for v in visits])
        order = generator_of(self.seed, self.epoch, _ORDER, group).permutation(owner.size)
        return Draws(visits, owner[order], np.concatenate(origins)[order])

    def _origins(self, visit: Visit) -> Integers:
        """Draw one block's patches: cells by weight, stratified so that none is missed by chance."""
        index, layout = self.index, self.layouts[visit.image]
        generator = generator_of(self.seed, self.epoch, _DRAWS, visit.stream)
        box = layout.cell_box(visit.block)
        weights = index.table[index.classes[visit.image][box.slices]].reshape(-1)
        strata = (np.arange(visit.quota) + generator.random(visit.quota)) / visit.quota
        chosen = weighted_choice(weights, strata * weights.sum(dtype=np.float64))
        cells = np.stack(np.unravel_index(chosen, box.shape), axis=1) + np.array(box.start)
        origins = index.origins_of(visit.image, cells, generator.random((visit.quota, 2)))
        voxels = layout.voxel_box(visit.block)
        for axis, patch in ((-2, index.patch_size[0]), (-1, index.patch_size[1])):
            np.clip(origins[:, axis], voxels.start[axis], voxels.stop[axis] - patch, out=origins[:, axis])
        return origins


def _voxel_bytes(reader: ImageReader) -> int:
    return int(dict(zip(reader.dims, reader.shape, strict=True)).get("c", 1)) * reader.dtype.itemsize


def chunks_along(reader: ImageReader, dims: Sequence[str]) -> tuple[int, ...]:
    """Return the reader's chunks along the index's dims."""
    by_dim: dict[str, Any] = {
        d: min(c, n) for d, c, n in zip(reader.dims, reader.chunks, reader.shape, strict=True)
    }
    return tuple(int(by_dim[d]) for d in dims)
