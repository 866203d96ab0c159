"""The scores by their plain definition, in numpy alone: explicit regions, explicit windows, nothing clever.

What the kernels and the maps are compared with. Volumes are (z, y, x) and so are patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray


def spans(size: int, patch: int) -> list[tuple[int, int]]:
    """Return the regions along one axis: two neighbouring cells each, one region where there is one cell."""
    n = -(-size // patch)
    return [(0, size)] if n == 1 else [(k * patch, min((k + 2) * patch, size)) for k in range(n - 1)]


def by_region(
    volume: NDArray[Any], patch: Sequence[int], score: Callable[[NDArray[Any]], float]
) -> NDArray[np.float64]:
    """Score every region of an array, which has as many axes as the patch."""
    axes = [spans(size, step) for size, step in zip(volume.shape, patch, strict=True)]
    result = np.empty([len(axis) for axis in axes])
    for index, limits in zip(np.ndindex(result.shape), product(*axes), strict=True):
        result[index] = score(volume[tuple(slice(a, b) for a, b in limits)])
    return result


def by_cell(shape: Sequence[int], patch: Sequence[int], regions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give every cell the largest value over the regions that cover it."""
    result = np.full([-(-size // step) for size, step in zip(shape, patch, strict=True)], -np.inf)
    axes = [spans(size, step) for size, step in zip(shape, patch, strict=True)]
    for value, limits in zip(regions.ravel(), product(*axes), strict=True):
        covered = tuple(slice(a // step, -(-b // step)) for (a, b), step in zip(limits, patch, strict=True))
        result[covered] = np.maximum(result[covered], value)
    return result


def entropy(values: NDArray[Any]) -> float:
    """Return the base-2 Shannon entropy over distinct values."""
    _, counts = np.unique(values, return_counts=True)
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum())


def binned(values: NDArray[Any], bounds: tuple[float, float]) -> NDArray[np.float64]:
    """Return the number of each value's bin: 256 equal bins between the bounds, the rest in the end bins."""
    low, high = bounds
    scale = 256 / (high - low) if high > low else 0.0
    return np.clip(np.floor((values.astype(np.float64) - low) * scale), 0, 255)


def percentiles(values: NDArray[Any]) -> tuple[float, float]:
    """Return the exact 0.1 and 99.9 percentiles, of the values as float32."""
    low, high = np.quantile(values.astype(np.float32), [0.001, 0.999], method="inverted_cdf")
    return float(low), float(high)


def running_maximum(region: NDArray[Any], patch: Sequence[int]) -> NDArray[Any]:
    """Return the largest value in ``i - P//2 .. i - P//2 + P - 1`` on each axis, cropped at the border."""
    for axis, (size, step) in enumerate(zip(region.shape, patch, strict=True)):
        windows = [range(max(i - step // 2, 0), min(i - step // 2 + step, size)) for i in range(size)]
        region = np.stack([region.take(w, axis).max(axis) for w in windows], axis)
    return region


def reached(region: NDArray[Any], patch: Sequence[int], coverage: float) -> float:
    """Return the largest t such that at least ``coverage`` of the region's running maximum is >= t."""
    running = running_maximum(region, patch)
    candidates = [t for t in np.unique(running) if np.mean(running >= t) >= coverage - 1e-12]
    return float(max(candidates))


def mean_of(region: NDArray[Any]) -> float:
    """Return the mean, in the widest floats there are."""
    return float(region.astype(np.longdouble).mean())


def std_of(region: NDArray[Any]) -> float:
    """Return the population standard deviation, in the widest floats there are."""
    return float(region.astype(np.longdouble).std())
