"""Which cells to hold out for validation, and the guard around them.

A training patch may begin half a patch before or after its cell, so it reaches into the cells beside it and
no farther. Cells that touch a held-out cell, corners included, are therefore given up::

    t t t t t t t      v  held out: validation patches begin exactly on these cells
    t t g g g g t      g  guard: drawn for neither
    t t g v v g t      t  training: its patches reach into g at most
    t t g v v g t
    t t g g g g t

With 3D patches the picture is that of the two longest axes, and what it holds out goes through the whole of
the third.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from denoizarr.geometry.grids import Grid

from .cells import Patch

Mask = NDArray[np.bool_]
Classes = NDArray[np.uint8]
# Held-out cells and their guard together never take more than this share of the weight.
_LARGEST_LOSS = 0.5
# Whole planes need no guard, and are held out where the fraction is at least two of them; also where the
# planes are too small for tiles and there are a few.
_FEWEST_HELD_PLANES, _FEWEST_PLANES = 2, 4
_SINGLE_TRIES = 32
_LARGEST_TILE = 4
_SPLIT_TAG = 0x5A11D


def hold_out(
    classes: Sequence[Classes],
    table: NDArray[np.float32],
    shapes: Sequence[tuple[int, ...]],
    patch: Patch,
    fraction: float,
    seed: int,
) -> tuple[list[Mask], list[Mask]]:
    """Choose tiles of cells by weight, without replacement, until they hold ``fraction`` of it.

    Parameters
    ----------
    classes, table
        Of the index: class of every cell, weight of every class.
    shapes : sequence of tuple of int
        Extent of each image, in voxels; in the plane of the tiles a short last cell is never held out, since
        a patch on it reaches back over its neighbour.
    patch : (y, x) or (z, y, x)
    fraction : float
    seed : int

    Returns
    -------
    (held, given up)
        One bool array per image each, in the shape of its classes; held-out cells are also given up. All
        False where no choice leaves half of the weight to training.
    """
    total = sum(_weight_of(c, table) for c in classes)
    through = _axis_through(classes, patch)
    if through is not None:
        turned = [np.moveaxis(c, through, -1) for c in classes]
        extents = [_moved(s, through) for s in shapes]
        plane = tuple(p for a, p in enumerate(patch) if a - len(patch) != through)
        held, guard = _hold_out(turned, table, extents, (plane[0], plane[1]), fraction, seed, total)
        back = ([np.moveaxis(m, -1, through) for m in masks] for masks in (held, guard))
        return next(back), next(back)
    single = [c[..., np.newaxis] for c in classes]
    held, guard = _hold_out(single, table, shapes, (patch[0], patch[1]), fraction, seed, total)
    return [m[..., 0] for m in held], [m[..., 0] for m in guard]


def _axis_through(classes: Sequence[Classes], patch: Patch) -> int | None:
    """Return the axis of the shortest grid of cells, -3 to -1, of 3D patches; None for those in a plane."""
    if len(patch) == 2:
        return None
    largest = [max(c.shape[axis] for c in classes) for axis in (-3, -2, -1)]
    return int(np.argmin(largest)) - 3


def _moved(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(n for a, n in enumerate(shape) if a - len(shape) != axis)


def _hold_out(
    classes: Sequence[Classes],
    table: NDArray[np.float32],
    shapes: Sequence[tuple[int, ...]],
    patch: tuple[int, int],
    fraction: float,
    seed: int,
    total: float,
) -> tuple[list[Mask], list[Mask]]:
    """Do it for cells (..., rows, columns, through), whose last axis is held out as a whole."""
    n_planes = sum(int(np.prod(c.shape[:-3])) for c in classes)
    target = int(sum(c.size for c in classes) * fraction)
    by_plane = fraction * n_planes >= _FEWEST_HELD_PLANES
    tiles = [
        _Tiles(c.shape, shape, patch, target, by_plane) for c, shape in zip(classes, shapes, strict=True)
    ]
    if all(t.step == (0, 0) for t in tiles) and n_planes >= _FEWEST_PLANES:
        tiles = [
            _Tiles(c.shape, shape, patch, target, True) for c, shape in zip(classes, shapes, strict=True)
        ]
    weights = [t.weights(c, table) for t, c in zip(tiles, classes, strict=True)]
    order = _by_weight(np.concatenate([w.reshape(-1) for w in weights]), seed)
    for choice in _choices(np.concatenate([w.reshape(-1) for w in weights]), order, fraction * total):
        ends = np.cumsum([w.size for w in weights])[:-1]
        held = [t.cells(part) for t, part in zip(tiles, np.split(choice, ends), strict=True)]
        given_up = [t.guarded(h) for t, h in zip(tiles, held, strict=True)]
        lost = sum(_weight_of(c, table, g) for c, g in zip(classes, given_up, strict=True))
        if lost <= _LARGEST_LOSS * total:
            return held, given_up
    nothing = [np.zeros(c.shape, bool) for c in classes]
    return nothing, nothing


def _choices(weights: NDArray[np.float64], order: NDArray[np.int64], wanted: float) -> Iterator[Mask]:
    """Yield sets of tiles to try: as many as wanted, then fewer, then single ones (a corner loses least)."""
    if wanted <= 0 or order.size == 0:
        return
    enough = min(int(np.searchsorted(np.cumsum(weights[order]), wanted)) + 1, order.size)
    counts = [enough >> k for k in range(enough.bit_length() - 1)]
    for tiles in [order[:n] for n in counts] + [
        order[k : k + 1] for k in range(min(order.size, _SINGLE_TRIES))
    ]:
        choice = np.zeros(weights.size, bool)
        choice[tiles] = True
        yield choice


def _by_weight(weights: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """Return the tiles of positive weight in weighted random order (Efraimidis and Spirakis 2006)."""
    generator = np.random.Generator(np.random.Philox(key=[seed, _SPLIT_TAG]))
    uniform = generator.random(weights.size)
    candidates = np.flatnonzero(weights > 0)
    keys = np.log1p(-uniform[candidates]) / weights[candidates]
    return candidates[np.argsort(-keys, kind="stable")]


def _weight_of(classes: Classes, table: NDArray[np.float32], mask: Mask | None = None) -> float:
    # Class by class: a count of bytes needs eight of them each.
    counts = [
        np.count_nonzero(classes == number if mask is None else (classes == number) & mask)
        for number in range(table.size)
    ]
    return float(np.array(counts) @ table.astype(np.float64))


class _Tiles:
    """Squares of whole cells on every plane of one image, or its whole planes.

    ``counts`` has one axis more than ``shape``: the one that a tile goes through.
    """

    def __init__(
        self,
        counts: tuple[int, ...],
        shape: tuple[int, ...],
        patch: tuple[int, int],
        target: int,
        whole_planes: bool,
    ) -> None:
        self.counts, self.whole_planes = counts, whole_planes
        self.n_planes = int(np.prod(counts[:-3]))
        full = [shape[axis] // patch[axis] for axis in (-2, -1)]  # without a short last cell
        self.full = (full[0], full[1])
        smallest = min(counts[-3:-1])
        # Large tiles lose less to their guard; a small plane, or a small share of it, has no room for them.
        side = max(min(_LARGEST_TILE, smallest // 3, isqrt(target)), 1) if smallest >= 4 else 0
        self.step = self.full if whole_planes else (side, side)

    def weights(self, classes: Classes, table: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the weight of every tile: (planes, tiles y, tiles x)."""
        if self.step == (0, 0):
            return np.zeros(0)
        grid = Grid(self.full, self.step)
        planes = classes.reshape(self.n_planes, *self.counts[-3:])[:, : self.full[0], : self.full[1]]
        result = np.empty((self.n_planes, *grid.counts))
        starts = [np.arange(0, n, s) for n, s in zip(grid.shape, grid.step, strict=True)]
        for number, plane in enumerate(planes):
            columns = table[plane].sum(axis=-1, dtype=np.float64)
            rows = np.add.reduceat(columns, starts[0], axis=0)
            result[number] = np.add.reduceat(rows, starts[1], axis=1)
        return result

    def cells(self, taken: Mask) -> Mask:
        """Return the cells of the taken tiles."""
        held = np.zeros((self.n_planes, *self.counts[-3:]), bool)
        if taken.size:
            grid = Grid(self.full, self.step)
            tiles = taken.reshape(self.n_planes, *grid.counts)
            spread = np.repeat(np.repeat(tiles, grid.step[0], axis=1), grid.step[1], axis=2)
            held[:, : self.full[0], : self.full[1]] = spread[:, : self.full[0], : self.full[1], np.newaxis]
        return held.reshape(self.counts)

    def guarded(self, held: Mask) -> Mask:
        """Return the held-out cells and those that touch them; with whole planes, the whole of each plane."""
        if self.whole_planes:
            any_held = np.asarray(held.any(axis=(-3, -2, -1), keepdims=True))
            return np.broadcast_to(any_held, held.shape).copy()
        grown = held.copy()
        grown[..., 1:, :, :] |= held[..., :-1, :, :]
        grown[..., :-1, :, :] |= held[..., 1:, :, :]
        wide = grown.copy()
        wide[..., 1:, :] |= grown[..., :-1, :]
        wide[..., :-1, :] |= grown[..., 1:, :]
        return wide
