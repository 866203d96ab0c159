"""What one epoch of a patch stream draws, and in which order: pure arithmetic, nothing is read here.

How many patches a block gives is drawn by systematic sampling: blocks are laid end to end in a random order,
each as long as its weight, and counted against equally spaced marks with a random start. Expectations are
exactly proportional to the weights, however few blocks an epoch visits, and no block is visited twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from denoizarr.selection.patch_index import PatchIndex
from denoizarr.selection.weighted import weighted_choice

from .block_layout import BlockWeights, ChunkGrid, Integers, layout_of

_FEWEST_PER_BLOCK, _FEWEST_BLOCKS = 16, 16
# Blocks of one group, decoded, and the patches cut from them.
_GROUP_BYTES, _GROUP_PATCH_BYTES = 128 * 2**20, 128 * 2**20
# The first two groups are a quarter and half as large as the others: training begins sooner.
_RISING = 2
# Streams of random numbers for the different purposes of one epoch.
_LAYOUT, _DRAWS, _ORDER = 1, 2, 3


def generator_of(seed: int, epoch: int, purpose: int, number: int = 0) -> np.random.Generator:
    """Return the random numbers of one purpose: a counter-based function of its arguments (Philox)."""
    # The lowest word of the counter is left to the drawing; the others name the stream.
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, number, epoch, 0]))


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
class Group:
    """Consecutive visits whose patches are interleaved.

    Attributes
    ----------
    first, stop : int
        Of the visits.
    before, size : int
        Patches of the epoch that come before the group's, and the group's.
    """

    first: int
    stop: int
    before: int
    size: int


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


def patches_per_visit(n_cells: int, n_blocks: int, n_patches: int) -> int:
    """Return how many patches are drawn from a block at a time, of an epoch that cannot visit all blocks."""
    # As many patches as cells: each voxel that is decoded is used once on average.
    portion = max(n_cells // n_blocks, _FEWEST_PER_BLOCK)
    return max(min(portion, n_patches // _FEWEST_BLOCKS), _FEWEST_PER_BLOCK)


class EpochPlan:
    """The patches of one epoch, as a function of the index, the chunks, the seed and the epoch.

    Parameters
    ----------
    index : PatchIndex
    grids : sequence of ChunkGrid
        Of each image.
    n_patches : int
        In the epoch.
    seed, epoch : int
    resident_blocks : int
        At most half as many are interleaved: half are being drawn from, half are being read. Fewer where
        blocks are large, and at the beginning, which nothing can be read ahead of.
    weights : BlockWeights, optional
        Of the index; worth keeping from one epoch to the next.

    Attributes
    ----------
    visits : list of Visit
        The blocks in order of reading. A block whose patches would not fit into memory is visited several
        times.
    groups : list of Group
    """

    def __init__(
        self,
        index: PatchIndex,
        grids: Sequence[ChunkGrid],
        n_patches: int,
        seed: int,
        epoch: int,
        resident_blocks: int,
        weights: BlockWeights | None = None,
    ) -> None:
        self.index, self.seed, self.epoch, self.n_patches = index, seed, epoch, n_patches
        numbers = generator_of(seed, epoch, _LAYOUT)
        axes = len(index.patch_size)
        self.layouts = [layout_of(index, i, grid, numbers.random(axes)) for i, grid in enumerate(grids)]
        self._voxel_bytes = [grid.voxel_bytes for grid in grids]
        weights = weights or BlockWeights(index)
        self.visits = self._visits(
            [weights.of(i, layout).reshape(-1) for i, layout in enumerate(self.layouts)], numbers
        )
        self.groups = self._groups(resident_blocks)

    def _visits(self, weights: list[NDArray[np.float64]], generator: np.random.Generator) -> list[Visit]:
        everything = np.concatenate(weights)
        first = np.cumsum([0, *(w.size for w in weights)])
        order = generator.permutation(np.flatnonzero(everything > 0))
        portion = patches_per_visit(self.index.n_cells, everything.size, self.n_patches)
        # Where the epoch is long enough for every block, shares are exact to a patch.
        grain = portion if order.size * portion > self.n_patches else 1
        quotas = systematic_quotas(everything[order], self.n_patches, grain, generator.random())
        visits = []
        for block, quota in zip(order[quotas > 0].tolist(), quotas[quotas > 0].tolist(), strict=True):
            image = int(np.searchsorted(first, block, side="right")) - 1
            place = np.unravel_index(block - first[image], self.layouts[image].counts)
            most = max(_GROUP_PATCH_BYTES // self._patch_bytes(image), 1)
            for part in range(ceil(quota / most)):
                share = min(most, quota - part * most)
                stream = block + part * everything.size
                visits.append(Visit(image, tuple(int(p) for p in place), share, stream))
        return visits

    def _patch_bytes(self, image: int) -> int:
        return prod(self.index.patch_size) * self._voxel_bytes[image]

    def _groups(self, resident_blocks: int) -> list[Group]:
        """Group the visits: few blocks first, then up to half of the resident ones."""
        groups: list[Group] = []
        first = before = patches = block_bytes = patch_bytes = 0
        for number, visit in enumerate(self.visits):
            layout = self.layouts[visit.image]
            block_bytes += prod(layout.voxel_box(visit.block).shape) * self._voxel_bytes[visit.image]
            patch_bytes += visit.quota * self._patch_bytes(visit.image)
            patches += visit.quota
            most = max(resident_blocks // 2 >> max(_RISING - len(groups), 0), 1)
            full = number + 1 - first == most or block_bytes >= _GROUP_BYTES
            if full or patch_bytes >= _GROUP_PATCH_BYTES or number + 1 == len(self.visits):
                groups.append(Group(first, number + 1, before, patches))
                first, before = number + 1, before + patches
                patches = block_bytes = patch_bytes = 0
        return groups

    def draws(self, group: Group) -> Draws:
        """Return the patches of one group, interleaved in a random order."""
        visits = self.visits[group.first : group.stop]
        origins = [self._origins(v) for v in visits]
        owner = np.repeat(np.arange(len(visits)), [v.quota for v in visits])
        order = generator_of(self.seed, self.epoch, _ORDER, group.first).permutation(owner.size)
        return Draws(visits, owner[order], np.concatenate(origins)[order])

    def _origins(self, visit: Visit) -> Integers:
        """Draw one block's patches: cells by weight, stratified so that none is missed by chance."""
        index, layout = self.index, self.layouts[visit.image]
        generator = generator_of(self.seed, self.epoch, _DRAWS, visit.stream)
        cells_of_block = layout.cell_box(visit.block)
        weights = index.table[index.classes[visit.image][cells_of_block.slices]].reshape(-1)
        strata = (np.arange(visit.quota) + generator.random(visit.quota)) / visit.quota
        chosen = weighted_choice(weights, strata * weights.sum(dtype=np.float64))
        cells = np.stack(np.unravel_index(chosen, cells_of_block.shape), axis=1)
        uniform = generator.random((visit.quota, len(index.patch_size)))
        within = layout.voxel_box(visit.block)
        return index.origins_of(visit.image, cells + np.array(cells_of_block.start), uniform, within)
