"""The base-2 Shannon entropy of regions of two by two cells, over small unsigned labels."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .statistics import ordered_key

Plane = NDArray[Any]
SHANNON_BINS = 256
# log2 is kept as an integer times 2**-32, so that sums are exact in any order; N log2 N of a region of
# 2**24 voxels still fits into 63 bits.
LOG2_SCALE = 1 << 32


def entropy_labels(plane: Plane, bounds: tuple[float, float] | None) -> tuple[Plane, int]:
    """Return small unsigned labels that are equal where the entropy's values are, and their number."""
    if plane.dtype.kind in "biu":
        if plane.dtype.itemsize <= 2:
            keys = ordered_key(plane)
            return np.ascontiguousarray(keys), 1 << (8 * keys.dtype.itemsize)
        values, labels = np.unique(plane, return_inverse=True)
        return labels.reshape(plane.shape).astype(np.uint32), int(values.size)
    if bounds is None:
        raise TypeError("the entropy of floats needs the bounds of its bins")
    return bin_floats(plane, bounds), SHANNON_BINS


def bin_floats(plane: Plane, bounds: tuple[float, float]) -> NDArray[np.uint8]:
    """Return the number of each voxel's bin: 256 equal bins between the bounds, the rest in the end bins."""
    low, high = bounds
    scale = SHANNON_BINS / (high - low) if high > low else 0.0
    scaled = (plane.astype(np.float64) - low) * scale
    return np.clip(scaled, 0, SHANNON_BINS - 1).astype(np.uint8)


@lru_cache(maxsize=4)
def scaled_logarithms(largest: int) -> NDArray[np.int64]:
    """Return round(log2(c) * 2**32) for c in 0..largest, with 0 for c = 0."""
    table = np.zeros(largest + 1, np.int64)
    table[1:] = np.rint(np.log2(np.arange(1, largest + 1)) * LOG2_SCALE)
    return table


@compiled
def shannon_regions(
    labels: Plane, bins: int, patch_y: int, patch_x: int, logarithms: NDArray[np.int64], regions: Plane
) -> None:
    """Fill ``regions`` with H = log2 N - sum(c log2 c) / N, from one histogram per column of a strip.

    Two neighbouring columns make a region, so a voxel is counted once per strip, twice in all. The sum runs
    over the range of the labels where that is short; where it is wide (full 16-bit noise) it runs over the
    voxels instead, each with log2 of its own label's count, which is the same sum.
    """
    height, width = labels.shape
    columns = regions.shape[1] + 1 if width > patch_x else 1
    histograms = np.zeros((2, bins), np.int32)
    ranges = np.zeros((2, 2), np.int64)
    for i in range(regions.shape[0]):
        y0, y1 = i * patch_y, min((i + 2) * patch_y, height)
        for j in range(columns):
            x0, x1 = j * patch_x, min((j + 1) * patch_x, width)
            here = j & 1
            ranges[here] = _count(labels[y0:y1, x0:x1], histograms[here])
            if j > 0 or columns == 1:
                start = x0 if columns == 1 else x0 - patch_x
                low = min(ranges[0, 0], ranges[1, 0]) if columns > 1 else ranges[0, 0]
                high = max(ranges[0, 1], ranges[1, 1]) if columns > 1 else ranges[0, 1]
                region = labels[y0:y1, start:x1]
                total = logarithms[region.size] * region.size
                held = _held_bits(region, histograms, low, high, logarithms)
                regions[i, j - 1 if j > 0 else 0] = (total - held) / (float(region.size) * LOG2_SCALE)
            if j > 0:
                _clear(labels[y0:y1, x0 - patch_x : x0], histograms[1 - here], ranges[1 - here])
        last = (columns - 1) & 1
        _clear(labels[y0:y1, (columns - 1) * patch_x : width], histograms[last], ranges[last])


@compiled
def _count(part: Plane, histogram: NDArray[np.int32]) -> tuple[np.int64, np.int64]:
    """Add the labels to the histogram; return the smallest and the largest."""
    low = high = part[0, 0]
    for y in range(part.shape[0]):
        row = part[y]
        for x in range(row.size):
            low = min(low, row[x])
            high = max(high, row[x])
        for x in range(row.size):
            histogram[row[x]] += 1
    return np.int64(low), np.int64(high)


@compiled
def _held_bits(
    region: Plane, histograms: NDArray[np.int32], low: int, high: int, logarithms: NDArray[np.int64]
) -> np.int64:
    """Return sum(c log2 c) over the labels' counts c, scaled by 2**32."""
    first, second = histograms[0], histograms[1]
    held = np.int64(0)
    if high - low < region.size:
        for label in range(low, high + 1):
            count = np.int64(first[label]) + second[label]
            held += count * logarithms[count]
    else:
        for y in range(region.shape[0]):
            row = region[y]
            for x in range(row.size):
                held += logarithms[first[row[x]] + second[row[x]]]
    return held


@compiled
def _clear(part: Plane, histogram: NDArray[np.int32], limits: NDArray[np.int64]) -> None:
    """Set the histogram back to zero where these labels had counted."""
    if limits[1] - limits[0] < part.size:
        histogram[limits[0] : limits[1] + 1] = 0
    else:
        for y in range(part.shape[0]):
            for x in range(part.shape[1]):
                histogram[part[y, x]] = 0
