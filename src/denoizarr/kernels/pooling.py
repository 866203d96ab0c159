"""Block means: the step from one pyramid level to the next."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .intensity import cast_intensities

_BAND_VOXELS = 2**17


def mean_pool(values: NDArray[Any], factors: Sequence[int]) -> NDArray[Any]:
    """Return the mean over boxes of ``factors`` voxels; a box cut by the far end counts what is there.

    Parameters
    ----------
    values : ndarray of any real dtype
    factors : sequence of int
        One per axis, in voxels.

    Returns
    -------
    ndarray
        Shape ``ceil(shape / factors)``, dtype as given; integers rounded half to even, never wrapped
        (64-bit ones above 2**53 to the precision of a float64).
    """
    shape = tuple(-(-n // f) for n, f in zip(values.shape, factors, strict=True))
    pooled = np.empty(shape, values.dtype)
    axis = max(values.ndim - 2, 0)
    lead = (slice(None),) * axis
    # In bands that stay in a processor's cache: whole volumes of sums would each go out to memory and back.
    rows = max(_BAND_VOXELS * values.shape[axis] // max(values.size * factors[axis], 1), 1)
    for first in range(0, shape[axis], rows):
        band = values[(*lead, slice(first * factors[axis], (first + rows) * factors[axis]))]
        pooled[(*lead, slice(first, first + rows))] = _means(band, factors)
    return pooled


def _means(values: NDArray[Any], factors: Sequence[int]) -> NDArray[Any]:
    sums, counts = values, np.ones((1,) * values.ndim)
    # Of small integers the sums are exact in small integers, too: a quarter of the memory, and of the time.
    small = values.dtype.kind in "uib" and values.dtype.itemsize <= 2 and prod(factors) < 2**15
    kind = np.dtype(np.int32 if values.dtype.kind == "i" else np.uint32) if small else np.dtype(np.float64)
    for axis, factor in enumerate(factors):
        if factor == 1:
            continue
        sums = _summed(sums, axis, factor, kind)
        starts = np.arange(0, values.shape[axis], factor)
        present = np.minimum(starts + factor, values.shape[axis]) - starts
        counts = counts * present.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    means = sums / counts
    if values.dtype.kind == "b":
        return means >= 0.5
    if values.dtype.kind in "ui":
        if values.dtype.itemsize < 8:
            return np.rint(means, out=means)
        # A float64 holds no int64 above 2**53 exactly: a mean may round up past the largest, and would wrap.
        return cast_intensities(means, values.dtype)
    return means


def _summed(values: NDArray[Any], axis: int, factor: int, kind: np.dtype[Any]) -> NDArray[Any]:
    """Return sums of ``factor`` neighbours along an axis, the last of fewer, added in their order."""
    lead = (slice(None),) * axis
    sums = values[(*lead, slice(0, None, factor))].astype(kind)
    for offset in range(1, factor):
        part = values[(*lead, slice(offset, None, factor))]
        sums[(*lead, slice(0, part.shape[axis]))] += part
    return sums
