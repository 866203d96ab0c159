"""Histogram equalisation in parts that merge: of a whole image, and adaptive over tiles.

Both equal scikit-image's on the whole array (``exposure.equalize_hist`` with 65,536 bins,
``exposure.equalize_adapthist`` with its defaults), however the array is cut. The adaptive one is Zuiderveld's
(Graphics Gems IV, 1994, "Contrast limited adaptive histogram equalization") with scikit-image's conventions:
14-bit grey levels, tiles of an eighth of each axis, a reflected far end, maps that are interpolated between
the tiles' centres.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled

N_BINS = 1 << 16
GREY_LEVELS = 1 << 14
TILE_BINS = 256
CLIP_LIMIT = 0.01
_LARGEST_16_BIT = 65535.0
# Neighbouring grey levels share a bin; scikit-image's rounding leaves the last three bins empty.
_LEVELS_PER_BIN = 1 + GREY_LEVELS // TILE_BINS


def counts_between(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.int64]:
    """Count values in 65,536 equal bins from ``low`` to ``high``, both included, as ``numpy.histogram`` does.

    Counts of parts add up to those of the whole. No value may lie outside.
    """
    edges = np.linspace(low, high, N_BINS + 1)
    return _counts(np.ascontiguousarray(values).reshape(-1), edges, N_BINS / (high - low))


@compiled
def _counts(values: NDArray[Any], edges: NDArray[Any], scale: float) -> NDArray[np.int64]:
    n = edges.size - 1
    counts = np.zeros(n, np.int64)
    for value in values:
        # The product may be off by one at an edge; the edges decide.
        found = min(int((value - edges[0]) * scale), n - 1)
        if value < edges[found]:
            found -= 1
        elif found < n - 1 and value >= edges[found + 1]:
            found += 1
        counts[found] += 1
    return counts


@dataclass(frozen=True, slots=True, eq=False)
class Equalisation:
    """The map of a whole image's values to their rank, between 0 and 1.

    Attributes
    ----------
    centres, ranks : float64 arrays (65536,)
        Centres of the bins, and the fraction of the values up to and including each bin.
    """

    centres: NDArray[np.float64]
    ranks: NDArray[np.float64]

    @classmethod
    def of_counts(cls, counts: NDArray[np.int64], low: float, high: float) -> Equalisation:
        """Return the map from what :func:`counts_between` found over the whole image."""
        edges = np.linspace(low, high, N_BINS + 1)
        below = np.cumsum(counts)
        return cls((edges[:-1] + edges[1:]) / 2, below / float(below[-1]))

    def apply(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rank of every value, interpolated linearly between the bins' centres."""
        flat = np.ascontiguousarray(values).reshape(-1)
        return _ranks_of(flat, self.centres, self.ranks).reshape(values.shape)


@compiled
def _ranks_of(values: NDArray[Any], centres: NDArray[Any], ranks: NDArray[Any]) -> NDArray[np.float64]:
    found = np.empty(values.size)
    last = centres.size - 1
    scale = last / (centres[last] - centres[0])
    for i in range(values.size):
        value = values[i]
        if value <= centres[0]:
            found[i] = ranks[0]
        elif value >= centres[last]:
            found[i] = ranks[last]
        else:
            k = min(int((value - centres[0]) * scale), last - 1)
            if value < centres[k]:
                k -= 1
            elif value >= centres[k + 1]:
                k = min(k + 1, last - 1)
            slope = (ranks[k + 1] - ranks[k]) / (centres[k + 1] - centres[k])
            found[i] = ranks[k] + slope * (value - centres[k])
    return found


def tile_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the extent of a tile of the adaptive equalisation: an eighth of every axis, at least 1."""
    return tuple(max(n // 8, 1) for n in shape)


def tile_counts_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the number of tiles along every axis; the last one may reach past the end."""
    return tuple(-(-n // k) for n, k in zip(shape, tile_shape(shape), strict=True))


def grey_levels(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint16]:
    """Return 14-bit grey levels of values in 0..1, where ``low`` and ``high`` are the plane's extremes.

    Two roundings, as in scikit-image: to 16 bits of the range 0..1, then to 14 bits of the plane's own range.
    """
    sixteen = np.clip(np.rint(values * _LARGEST_16_BIT), 0, _LARGEST_16_BIT)
    darkest, brightest = (
        float(np.clip(np.rint(v * _LARGEST_16_BIT), 0, _LARGEST_16_BIT)) for v in (low, high)
    )
    if darkest == brightest:
        return np.asarray(np.clip(sixteen, 0, GREY_LEVELS - 1), np.uint16)
    spread = (sixteen - darkest) / (brightest - darkest)
    return np.asarray(np.round(spread * (GREY_LEVELS - 1.0)), np.uint16)


def tile_counts(
    grey: NDArray[np.uint16], start: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[tuple[int, ...], NDArray[np.int64]]:
    """Count the grey levels of a part of a plane or volume, tile by tile.

    Parameters
    ----------
    grey : uint16 array
        The part.
    start : tuple of int
        Where it lies in the whole.
    shape : tuple of int
        Of the whole.

    Returns
    -------
    first : tuple of int
        The first tile that the part touches.
    counts : int64 array, tiles + (256,)
        Counts of the parts of a plane add up. A pixel that is reflected into the last tile counts twice.
    """
    spans = [
        _tiles_along(a, m, n, k)
        for a, m, n, k in zip(start, grey.shape, shape, tile_shape(shape), strict=True)
    ]
    first = tuple(int(min(tiles)) for tiles, _ in spans)
    extent = tuple(int(max(tiles)) - f + 1 for (tiles, _), f in zip(spans, first, strict=True))
    # One axis at a time: the position of every line, twice for those that are reflected.
    lines = np.ix_(*[where for _, where in spans])
    tiles = np.zeros((1,) * grey.ndim, np.int64)
    for axis, ((numbers, _), f, count) in enumerate(zip(spans, first, extent, strict=True)):
        tiles = tiles * count + (numbers - f).reshape([-1 if a == axis else 1 for a in range(grey.ndim)])
    bins = grey[lines] // _LEVELS_PER_BIN + tiles * TILE_BINS
    counts = np.bincount(bins.reshape(-1), minlength=int(np.prod(extent)) * TILE_BINS)
    return first, counts.reshape((*extent, TILE_BINS)).astype(np.int64)


def _tiles_along(start: int, extent: int, size: int, tile: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the tile and the line (from ``start`` on) of every count along one axis, reflections last."""
    lines = np.arange(start, start + extent)
    beyond = np.arange(size, -(-size // tile) * tile)
    mirrored = np.maximum(2 * (size - 1) - beyond, 0)
    inside = (mirrored >= start) & (mirrored < start + extent)
    numbers = np.concatenate([lines // tile, beyond[inside] // tile])
    return numbers, np.concatenate([lines, mirrored[inside]]) - start


def tile_maps(counts: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Return the map of grey levels of every tile, from its counts over the whole plane or volume.

    Parameters
    ----------
    counts : int64 array, tiles + (256,)
    shape : tuple of int
        Of the plane or volume.
    """
    n_pixels = int(np.prod(tile_shape(shape)))
    limit = max(int(CLIP_LIMIT * n_pixels), 1)
    clipped = _clip_all(counts.reshape(-1, TILE_BINS).copy(), limit)
    risen = np.cumsum(clipped, axis=1) * ((GREY_LEVELS - 1) / n_pixels)
    return np.asarray(np.minimum(risen, GREY_LEVELS - 1), np.uint16).reshape(counts.shape)


@compiled
def _clip_all(counts: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    for tile in range(counts.shape[0]):
        _clip(counts[tile], limit)
    return counts


@compiled
def _clip(bins: NDArray[np.int64], limit: int) -> None:
    """Cut bins at the limit and hand what was cut to the others, evenly, then one by one in strides."""
    excess = 0
    for k in range(bins.size):
        if bins[k] > limit:
            excess += bins[k] - limit
            bins[k] = limit
    share = excess // bins.size
    for k in range(bins.size):
        if bins[k] < limit - share:
            bins[k] += share
            excess -= share
        # Also what has just been raised: scikit-image fills every bin that the share brought near the limit.
        if limit - share <= bins[k] < limit:
            excess -= limit - bins[k]
            bins[k] = limit
    given = 1
    while excess > 0 and given > 0:
        given = 0
        for first in range(bins.size):
            room = 0
            for k in range(bins.size):
                room += bins[k] < limit
            stride = max(1, room // excess)
            for k in range(first, bins.size, stride):
                if bins[k] < limit:
                    bins[k] += 1
                    excess -= 1
                    given += 1
            if excess <= 0:
                break


def apply_tile_maps(
    grey: NDArray[np.uint16], maps: NDArray[np.uint16], start: tuple[int, ...], shape: tuple[int, ...]
) -> NDArray[np.uint16]:
    """Return the equalised grey levels of a part: its maps interpolated between the centres of the tiles.

    Parameters
    ----------
    grey : uint16 array
        A part of the plane or volume, grey levels of 14 bits.
    maps : uint16 array, tiles + (256,)
    start, shape : tuple of int
        Where the part lies, and the extent of the whole.
    """
    tile = tile_shape(shape)
    bins = grey // _LEVELS_PER_BIN
    sides, shares = [], []
    for axis, (a, m, k) in enumerate(zip(start, grey.shape, tile, strict=True)):
        along = [-1 if b == axis else 1 for b in range(grey.ndim)]
        position = np.arange(a, a + m) + k // 2
        last = maps.shape[axis] - 1
        sides.append([np.clip(position // k - 1 + side, 0, last).reshape(along) for side in (0, 1)])
        share = (position % k / k).reshape(along)
        shares.append([1 - share, share])
    # scikit-image adds single precision numbers and truncates: so must we, or a level would be missed.
    total = np.zeros(grey.shape, np.float32)
    for corner in product((0, 1), repeat=grey.ndim):
        weight = shares[-1][corner[-1]]
        for axis in reversed(range(grey.ndim - 1)):
            weight = weight * shares[axis][corner[axis]]
        mapped = maps[(*[sides[axis][side] for axis, side in enumerate(corner)], bins)]
        total += (mapped * weight).astype(np.float32)
    return total.astype(np.uint16)
