"""Block means: the step from one pyramid level to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .intensity import cast_intensities


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
    sums = values.astype(np.float64)
    counts = np.ones((1,) * values.ndim)
    for axis, factor in enumerate(factors):
        if factor == 1:
            continue
        starts = np.arange(0, values.shape[axis], factor)
        sums = np.add.reduceat(sums, starts, axis=axis)
        present = np.minimum(starts + factor, values.shape[axis]) - starts
        counts = counts * present.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    means = sums / counts
    if values.dtype.kind in "ui":
        # A float64 holds no int64 above 2**53 exactly: a mean may round up past the largest, and would wrap.
        return cast_intensities(means, values.dtype)
    if values.dtype.kind == "b":
        return means >= 0.5
    return means.astype(values.dtype)
