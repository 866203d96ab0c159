"""Which chunks, blocks and tiles a prediction is cut into: the cheapest that the memory allows.

::

    block (a shard of the output)            read once, with its halo, in chunks of the input
    +-----------+-----------+                larger: fewer chunks are decoded twice, and more memory
    |   tile    |   tile    |
    |           |           |                tile: one run of the network
    +-----------+-----------+                larger: less of the halo is computed twice, and more memory
    |   tile    |   tile    |
    +-----------+-----------+                smaller blocks: cores are busy to the end, a kill costs less

Block and tile are chosen together, for what all of it would take on four workers: voxels computed, chunks
decoded, a little for every tile and block, and what reading level 0 again for the pyramid would cost. The
choice follows from shapes, model and memory limit alone, because it is part of a job's identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod

import numpy as np
from numpy.typing import NDArray

from denoizarr.errors import BadRequest, MemoryLimitTooSmall
from denoizarr.geometry.grids import ceil_div, round_up

from .amounts import AxisAmounts, along_axis, tile_sides
from .memory_model import MemoryModel

# The standard network (depth 2, 32 features) on one CPU core.
VOXELS_PER_SECOND = 0.44e6
# In voxels that the standard network computes: to decode one voxel (between .003 of a CPU core and half of
# a GPU), to begin a tile, to begin a block.
_DECODE, _TILE, _BLOCK = 0.05, 1e3, 2e4
# A layer of over 64 MiB, a seventh of a tile's bytes, is not kept by malloc for the next one: a sixth slower
# (decision 014).
_KEPT_BYTES, _NOT_KEPT = 7.5 * 64 * 2**20, 1.17
# Of a CPU core: a block is what a kill costs, and what others wait for at the end. Smaller ones decode more.
_LONGEST_SECONDS = 120.0
_WORKERS = 4
# A shard is encoded as a whole, and fetched as a whole by some readers.
_MOST_BLOCK_VOXELS = 16 * 2**20
# What a viewer fetches for a corner of its screen.
_MOST_CHUNK_BYTES = 4 * 2**20
_SMALLEST_SIDE = 64
_SMALLEST_TILE = 8
# Within so much of the cheapest, the one with the most of the pyramid along, and the least memory, is taken.
_NEARLY = 1.02
_LEVELS_ALONG = 2

Costs = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to cut.

    Attributes
    ----------
    shape, halo, stride : tuple of int
        Of the image and the network, along all dims; halo 0 and stride 1 along those it does not know.
    n_model_axes : int
        The last dims.
    input_chunks, offset : tuple of int
        The unit of decoding, and where the image begins in its first one.
    chunks : tuple of int
        Of the output: blocks are whole multiples of them.
    memory : MemoryModel
    cost : float
        To compute one voxel, in those of the standard network.
    factors : tuple of tuple of int
        Voxels of the finest level in one of each coarser level, per dim.
    """

    shape: tuple[int, ...]
    halo: tuple[int, ...]
    stride: tuple[int, ...]
    n_model_axes: int
    input_chunks: tuple[int, ...]
    offset: tuple[int, ...]
    chunks: tuple[int, ...]
    memory: MemoryModel
    cost: float
    factors: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class WorkShape:
    """How it is cut.

    Attributes
    ----------
    block : tuple of int
        Along all dims, a whole multiple of chunks.
    tile : tuple of int
        Largest valid part, along the model's axes.
    peak_bytes : int
        Projected, of a worker process.
    cost : float
        Of everything on four workers, in voxels that the standard network computes.
    read_again : float
        Voxels of the output that are read for the pyramid: what is not written along with the finest level.
    seconds : float
        Of a block, on a CPU core.
    """

    block: tuple[int, ...]
    tile: tuple[int, ...]
    peak_bytes: int
    cost: float
    read_again: float
    seconds: float


def viewer_chunks(
    dims: Sequence[str], chunks: Sequence[int], shape: Sequence[int], itemsize: int
) -> tuple[int, ...] | None:
    """Return an input's chunks, halved until they suit a viewer; None where they are slivers of planes.

    Halves of a chunk still divide it, so that nothing is decoded for the sake of another alignment.
    """
    found = [min(int(c), int(n)) for c, n in zip(chunks, shape, strict=True)]
    lateral = [i for i, d in enumerate(dims) if d in "yx"]
    if any(found[i] < min(_SMALLEST_SIDE, shape[i]) for i in lateral):
        return None
    while prod(found) * itemsize > _MOST_CHUNK_BYTES:
        longest = max(range(len(found)), key=lambda i: found[i])
        found[longest] = ceil_div(found[longest], 2)
    if any(found[i] < min(_SMALLEST_SIDE, shape[i]) for i in lateral):
        return None
    return tuple(found)


def choose_work_shape(
    work: Work,
    limit_bytes: int,
    *,
    block: Sequence[int] | None = None,
    tile: Sequence[int] | None = None,
) -> WorkShape:
    """Return the cheapest block and tile whose projected peak is under the limit.

    Parameters
    ----------
    work : Work
    limit_bytes : int
        Per worker process.
    block, tile : sequence of int, optional
        Asked for, and not chosen here.

    Raises
    ------
    MemoryLimitTooSmall
        Names the smallest limit that works.
    BadRequest
        A tile that is no multiple of the stride.
    """
    if tile is not None:
        _check_tile(tile, work.stride[-work.n_model_axes :])
    blocks = list(_blocks(work)) if block is None else [tuple(int(b) for b in block)]
    candidates = [_Candidates(work, b, tile) for b in blocks]
    fitting = [found for c in candidates if (found := c.best(limit_bytes)) is not None]
    if not fitting:
        smallest = min(c.least_bytes for c in candidates)
        raise MemoryLimitTooSmall(
            "not even one tile fits" if tile is None else "this tile does not fit",
            where="memory_limit",
            got=f"{limit_bytes / 2**20:.0f} MiB",
            expected=f"at least {ceil_div(smallest, 2**20)} MiB",
            remedy="raise it or ask for smaller shards"
            if tile is None
            else "raise it or leave tile_shape out",
        )
    longest = max(_LONGEST_SECONDS, min(found.seconds for found in fitting))
    fitting = [found for found in fitting if found.seconds <= longest]
    cheapest = min(found.cost for found in fitting)
    near = [found for found in fitting if found.cost <= cheapest * _NEARLY]
    return min(near, key=lambda found: (found.read_again, found.peak_bytes, found.cost, found.block))


def _check_tile(tile: Sequence[int], stride: tuple[int, ...]) -> None:
    if len(tile) != len(stride) or any(t < 1 or t % s for t, s in zip(tile, stride, strict=False)):
        raise BadRequest(
            "a tile is a multiple of the network's stride",
            where="tile_shape",
            got=tuple(tile),
            expected=f"multiples of {stride}",
        )


def _blocks(work: Work) -> Iterator[tuple[int, ...]]:
    """Yield blocks to choose from: chunks, twice, four times ... as many along each axis."""
    lead = len(work.shape) - work.n_model_axes
    sides = []
    for axis, (n, c, decoded) in enumerate(zip(work.shape, work.chunks, work.input_chunks, strict=True)):
        # Along axes that the network loops over, only to read what is decoded together once, and so that
        # there are whole voxels of the coarser levels above it.
        deep = [f[axis] for f in work.factors[:_LEVELS_ALONG]]
        most = n if axis >= lead else min(n, max(decoded, c * max(deep, default=1)))
        multiples = [c]
        while multiples[-1] < most:
            multiples.append(min(2 * multiples[-1], round_up(n, c)))
        if axis < lead and round_up(min(decoded, n), c) not in multiples:
            multiples.append(round_up(min(decoded, n), c))
        sides.append(multiples)
    largest = max(_MOST_BLOCK_VOXELS, prod(work.chunks))
    yield from (block for block in product(*sides) if prod(map(min, block, work.shape)) <= largest)


class _Candidates:
    """The tiles that one block could be cut into, all at once: sides along each axis, products over them."""

    def __init__(self, work: Work, block: tuple[int, ...], tile: Sequence[int] | None) -> None:
        self.work, self.block = work, block
        lead = len(work.shape) - work.n_model_axes
        self._sides: list[Sequence[int]] = []
        for axis, (n, b, s) in enumerate(zip(work.shape, block, work.stride, strict=True)):
            if axis < lead:
                self._sides.append([1])
            elif tile is not None:
                self._sides.append([int(tile[axis - lead])])
            else:
                self._sides.append(tile_sides(min(b, n), s, _SMALLEST_TILE))
        self._axes = [[self._along(axis, side) for side in sides] for axis, sides in enumerate(self._sides)]
        first = [axis[0] for axis in self._axes]
        self._blocks = prod(a.blocks for a in first)
        self._decoded = prod(a.decoded for a in first) * prod(work.input_chunks)
        self._around = (
            prod(a.widest_block for a in first),
            prod(map(min, block, work.shape)),
            prod(a.most_touched for a in first),
        )
        self._tiles = self._product("widest_tile")
        self._pyramid = work.memory.pyramid_bytes(self._below()) if work.factors else 0

    def _along(self, axis: int, side: int) -> AxisAmounts:
        w = self.work
        return along_axis(
            w.shape[axis], self.block[axis], side, w.halo[axis], w.stride[axis], w.input_chunks[axis],
            w.offset[axis],
        )  # fmt: skip

    def _product(self, name: str) -> Costs:
        """Return a product over the axes for every combination of sides."""
        found: Costs = np.ones((1,) * len(self._axes))
        for axis, amounts in enumerate(self._axes):
            values = np.array([getattr(a, name) for a in amounts], np.float64)
            found = found * values.reshape([-1 if i == axis else 1 for i in range(len(self._axes))])
        return found

    @property
    def least_bytes(self) -> int:
        """The peak with the smallest tile."""
        return self._peak(int(self._tiles.min()))

    def _peak(self, tile_voxels: int) -> int:
        return max(self.work.memory.peak_bytes(tile_voxels, *self._around), self._pyramid)

    def best(self, limit_bytes: int) -> WorkShape | None:
        """Return the cheapest tile under the limit, if any is."""
        costs = self._costs()
        around = self.work.memory.peak_bytes(0, *self._around)
        allowed = self._tiles * self.work.memory.tile_bytes + around <= limit_bytes
        if self._pyramid > limit_bytes or not allowed.any():
            return None
        cheapest = costs[allowed].min()
        near = allowed & (costs <= cheapest * _NEARLY)
        at = [int(i) for i in np.unravel_index(np.argmin(np.where(near, self._tiles, np.inf)), costs.shape)]
        sides = [sides[i] for sides, i in zip(self._sides, at, strict=True)][-self.work.n_model_axes :]
        chosen = tuple(at)
        peak = self._peak(int(self._tiles[chosen]))
        seconds = self.work.cost * float(self._product("computed")[chosen]) / self._blocks / VOXELS_PER_SECOND
        return WorkShape(self.block, tuple(sides), peak, float(costs[chosen]), self._again(), seconds)

    def _costs(self) -> Costs:
        """Return what everything takes on a few workers, idle ones included."""
        work = self.work
        slower = np.where(self._tiles * work.memory.tile_bytes > _KEPT_BYTES, _NOT_KEPT, 1.0)
        whole = work.cost * (slower * self._product("computed") + _TILE * self._product("tiles"))
        whole = whole + _DECODE * (self._decoded + self._again()) + _BLOCK * self._blocks
        return np.asarray(whole / self._blocks * (ceil_div(self._blocks, _WORKERS) * _WORKERS))

    def _below(self) -> int:
        """Return the most voxels that are averaged to one block of a coarser level."""
        levels = [(1,) * len(self.block), *self.work.factors]
        return max(
            prod(
                min(b * (c // f), ceil_div(n, f))
                for b, n, f, c in zip(self.block, self.work.shape, finer, coarser, strict=True)
            )
            for finer, coarser in pairwise(levels)
        )

    def _again(self) -> float:
        """Return the voxels that are read again for the pyramid: those of the last level written along."""
        along = 0
        for factors in self.work.factors[:_LEVELS_ALONG]:
            axes = zip(self.block, self.work.shape, self.work.chunks, factors, strict=True)
            if not all(b >= n or b % (f * c) == 0 for b, n, c, f in axes):
                break
            along += 1
        of = self.work.factors[along - 1] if along else (1,)
        return prod(self.work.shape) / prod(of) if self.work.factors else 0.0
