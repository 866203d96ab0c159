"""Whether a coarser level can have been made from the finer one, by whoever wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter

from .pooling import mean_pool

# Of the largest magnitude in a box: writers average in float32, in other orders than ours.
_ROUNDING = 1e-5


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many voxels of a coarser level contradict each way of making it.

    Attributes
    ----------
    n_voxels : int
        Compared.
    not_mean : int
        Not the mean of their box, rounded either way.
    not_picked : int
        Not one of the values in their box: no striding, median or maximum.
    out_of_range : int
        Below the smallest or above the largest value of their box and its neighbours: no smoothing either.
    """

    n_voxels: int
    not_mean: int
    not_picked: int
    out_of_range: int


def agreement(
    fine: NDArray[Any], coarse: NDArray[Any], factors: Sequence[int], margin: Sequence[tuple[int, int]]
) -> Agreement:
    """Compare part of a coarser level with the finer voxels below it.

    Parameters
    ----------
    fine : ndarray of any real dtype
        The boxes of ``factors`` voxels below ``coarse`` and below ``margin`` more coarse voxels around it;
        the last box of an axis may be cut short by the image's end.
    coarse : ndarray
    factors : sequence of int
        One per axis, in voxels.
    margin : sequence of (int, int)
        Coarse voxels that ``fine`` reaches further than ``coarse``, before and after, per axis; neighbours
        count where they are given, so that a smoothed level is judged alike at a cut and inside.

    Returns
    -------
    Agreement
        NaN agrees with anything: what became of it is the writer's choice.
    """
    padding = [(0, -n % f) for n, f in zip(fine.shape, factors, strict=True)]
    padded = np.pad(fine.astype(np.float64), padding, mode="edge")
    inside = tuple(slice(a, a + n) for (a, _), n in zip(margin, coarse.shape, strict=True))
    wanted = coarse.astype(np.float64)
    with np.errstate(invalid="ignore"):  # of infinities of both signs
        means = mean_pool(fine.astype(np.float64), factors)
    low, high = np.full(means.shape, np.inf), np.full(means.shape, -np.inf)
    picked = np.zeros(wanted.shape, bool)
    for offset in product(*map(range, factors)):
        values = padded[tuple(slice(o, None, f) for o, f in zip(offset, factors, strict=True))]
        np.fmin(low, values, out=low)
        np.fmax(high, values, out=high)
        picked |= values[inside] == wanted
    size = [3 if f > 1 else 1 for f in factors]
    around_low, around_high = minimum_filter(low, size)[inside], maximum_filter(high, size)[inside]
    means = means[inside]
    whole = coarse.dtype.kind in "uib"
    unknown = ~np.isfinite(wanted) | ~np.isfinite(means)
    with np.errstate(invalid="ignore"):  # infinities less themselves are among the unknown
        slack = _ROUNDING * np.maximum(np.abs(around_low), np.abs(around_high))
        apart = np.abs(wanted - means)
        # An integer that was cut, not rounded, is almost one off.
        far = apart >= 1 if whole else apart > slack
        outside = (wanted < around_low - slack) | (wanted > around_high + slack)
    return Agreement(
        int(wanted.size),
        int(np.count_nonzero(far & ~unknown)),
        int(np.count_nonzero(~picked & ~unknown)),
        int(np.count_nonzero(outside & ~unknown)),
    )
