"""The base-2 Shannon entropy of regions of two cells along each axis, over small unsigned labels."""

from __future__ import annotations

from functools import lru_cache
from math import log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .statistics import ordered_key

Volume = NDArray[Any]
SHANNON_BINS = 256
_WIDEST = 1 << 16


def entropy_labels(volume: Volume, bounds: tuple[float, float] | None) -> tuple[Volume, int]:
    """Return small unsigned labels that are equal where the entropy's values are, and their number."""
    if volume.dtype.kind in "biu":
        if volume.dtype.itemsize <= 2:
            keys = ordered_key(volume)
            return np.ascontiguousarray(keys), 1 << (8 * keys.dtype.itemsize)
        low, high = int(volume.min()), int(volume.max())
        if high - low < _WIDEST:
            return (volume - volume.dtype.type(low)).astype(np.uint16), _WIDEST
        values, numbers = np.unique(volume, return_inverse=True)
        return numbers.reshape(volume.shape).astype(np.uint32), int(values.size)
    if bounds is None:
        raise TypeError("the entropy of floats needs the bounds of its bins")
    low_bound, high_bound = bounds
    scale = SHANNON_BINS / (high_bound - low_bound) if high_bound > low_bound else 0.0
    labels = np.empty(volume.shape, np.uint8)
    wide = volume.astype(np.float32) if volume.dtype.itemsize == 2 else volume
    _bin_floats(wide.astype(wide.dtype.newbyteorder("="), copy=False), low_bound, scale, labels)
    return labels, SHANNON_BINS


@compiled
def _bin_floats(volume: Volume, low: float, scale: float, labels: NDArray[np.uint8]) -> None:
    """Fill in the number of each voxel's bin: 256 equal bins between the bounds, the rest in the end bins."""
    for z in range(volume.shape[0]):
        for y in range(volume.shape[1]):
            row = volume[z, y]
            for x in range(row.size):
                scaled = (np.float64(row[x]) - low) * scale
                labels[z, y, x] = np.uint8(min(max(scaled, 0.0), 255.0))


@lru_cache(maxsize=4)
def scaled_logarithms(largest: int) -> tuple[NDArray[np.int64], float]:
    """Return round(log2(c) * scale) for c in 0..largest, with 0 for c = 0, and the scale.

    Integers, so that a sum over labels is exact in any order. The scale is the power of two that leaves
    N log2 N of a region of ``largest`` voxels below 2**62, at most 2**40.
    """
    bits = min(40, 61 - int(np.ceil(log2(largest * max(log2(largest), 1.0)))))
    table = np.zeros(largest + 1, np.int64)
    table[1:] = np.rint(np.log2(np.arange(1, largest + 1)) * 2.0**bits)
    return table, 2.0**bits


@compiled
def fill_entropies(
    labels: Volume,
    bins: int,
    patch_z: int,
    patch_y: int,
    patch_x: int,
    logarithms: NDArray[np.int64],
    scale: float,
    regions: Volume,
) -> None:
    """Fill ``regions`` with H = log2 N - sum(c log2 c) / N, from the counts c of its labels.

    Regions of one row along x share the voxels of their cells; a voxel is in two rows in a plane, in four in
    3D. Where the labels of a row are few for its regions (a camera's grey levels) a histogram per cell is
    summed over the range of the labels; where they are many (full 16-bit noise) the sum is carried along.
    """
    depth, height = labels.shape[:2]
    histograms = np.zeros((2, bins), np.int32)
    gains = np.empty(logarithms.size, np.int64)
    for c in range(logarithms.size - 1):
        gains[c] = (c + 1) * logarithms[c + 1] - c * logarithms[c]
    for k in range(regions.shape[0]):
        z0, z1 = k * patch_z, min((k + 2) * patch_z, depth)
        for i in range(regions.shape[1]):
            row = labels[z0:z1, i * patch_y : min((i + 2) * patch_y, height)]
            out = regions[k, i]
            if not _entropies_of_few(row, patch_x, histograms, logarithms, scale, out):
                _entropies_of_many(row, patch_x, histograms[0], gains, logarithms, scale, out)


@compiled
def _entropies_of_few(
    row: Volume,
    patch_x: int,
    histograms: NDArray[np.int32],
    logarithms: NDArray[np.int64],
    scale: float,
    regions: Volume,
) -> bool:
    """Count every cell once, sum over the labels of two neighbours; False where those are too many."""
    width = row.shape[2]
    columns = regions.size + 1 if width > patch_x else 1
    ranges = np.zeros((2, 2), np.int64)
    few = True
    for j in range(columns):
        x0, x1 = j * patch_x, min((j + 1) * patch_x, width)
        here = j & 1
        ranges[here] = _count(row[:, :, x0:x1], histograms[here])
        if j == 0 and columns > 1:
            continue
        start = x0 if columns == 1 else x0 - patch_x
        low = min(ranges[0, 0], ranges[1, 0]) if columns > 1 else ranges[0, 0]
        high = max(ranges[0, 1], ranges[1, 1]) if columns > 1 else ranges[0, 1]
        size = row.shape[0] * row.shape[1] * (x1 - start)
        few = high - low < size
        if few:
            held = _held_bits(histograms[0, low : high + 1], histograms[1, low : high + 1], logarithms)
            regions[max(j - 1, 0)] = (logarithms[size] * size - held) / (float(size) * scale)
        histograms[1 - here, ranges[1 - here, 0] : ranges[1 - here, 1] + 1] = 0
        if not few:
            break
    histograms[here, ranges[here, 0] : ranges[here, 1] + 1] = 0
    return few


@compiled
def _held_bits(
    first: NDArray[np.int32], second: NDArray[np.int32], logarithms: NDArray[np.int64]
) -> np.int64:
    """Return sum(c log2 c) over the counts c of two histograms together."""
    held = np.int64(0)
    for label in range(first.size):
        count = np.int64(first[label]) + second[label]
        held += count * logarithms[count]
    return held


@compiled
def _entropies_of_many(
    row: Volume,
    patch_x: int,
    histogram: NDArray[np.int32],
    gains: NDArray[np.int64],
    logarithms: NDArray[np.int64],
    scale: float,
    regions: Volume,
) -> None:
    """Carry sum(c log2 c) along the row: a cell's voxels change it as they come in and as they leave."""
    width = row.shape[2]
    columns = regions.size + 1 if width > patch_x else 1
    held = np.int64(0)
    for j in range(columns):
        x0, x1 = j * patch_x, min((j + 1) * patch_x, width)
        held += _enter(row[:, :, x0:x1], histogram, gains)
        if j > 0 or columns == 1:
            start = x0 if columns == 1 else x0 - patch_x
            size = row.shape[0] * row.shape[1] * (x1 - start)
            regions[max(j - 1, 0)] = (logarithms[size] * size - held) / (float(size) * scale)
        if j > 0:
            held -= _leave(row[:, :, x0 - patch_x : x0], histogram, gains)
    _leave(row[:, :, (columns - 1) * patch_x :], histogram, gains)


@compiled
def _enter(part: Volume, histogram: NDArray[np.int32], gains: NDArray[np.int64]) -> np.int64:
    """Add the labels to the histogram; return what sum(c log2 c) gains."""
    gained = np.int64(0)
    for z in range(part.shape[0]):
        for y in range(part.shape[1]):
            line = part[z, y]
            for x in range(line.size):
                count = histogram[line[x]]
                gained += gains[count]
                histogram[line[x]] = count + 1
    return gained


@compiled
def _leave(part: Volume, histogram: NDArray[np.int32], gains: NDArray[np.int64]) -> np.int64:
    """Take the labels out of the histogram; return what sum(c log2 c) loses."""
    lost = np.int64(0)
    for z in range(part.shape[0]):
        for y in range(part.shape[1]):
            line = part[z, y]
            for x in range(line.size):
                count = histogram[line[x]] - 1
                lost += gains[count]
                histogram[line[x]] = count
    return lost


@compiled
def _count(part: Volume, histogram: NDArray[np.int32]) -> tuple[np.int64, np.int64]:
    """Add the labels to the histogram; return the smallest and the largest."""
    low = high = part[0, 0, 0]
    for z in range(part.shape[0]):
        for y in range(part.shape[1]):
            row = part[z, y]
            for x in range(row.size):
                low = min(low, row[x])
                high = max(high, row[x])
            for x in range(row.size):
                histogram[row[x]] += 1
    return np.int64(low), np.int64(high)
