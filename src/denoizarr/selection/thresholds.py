"""Thresholds of filter maps: checked, and chosen from the map's own values."""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np

from denoizarr.errors import BadRequest, DegenerateData

# Fine enough for a narrow mode far from zero; Otsu's criterion is summed over the bins.
_OTSU_BINS = 1 << 16


def check_threshold(value: float | None, name: str) -> None:
    """Refuse a threshold that no value can be compared with."""
    if value is not None and not isfinite(value):
        raise BadRequest("not a threshold", where=name, got=value, expected="a finite number")


def otsu_threshold(values: np.ndarray[Any, Any]) -> float:
    """Return the threshold that maximises the variance between the two groups that it makes.

    Parameters
    ----------
    values : array of any shape; NaN is left out

    Returns
    -------
    float
        ``value >= threshold`` is the upper group. Where every threshold in a gap does equally well, the
        middle of the gap.

    Notes
    -----
    Otsu, IEEE Trans. SMC 9 (1979) 62, eq. 18, over 65,536 bins between the extremes.
    """
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        raise DegenerateData("no finite score to choose a threshold from")
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        return low
    counts, edges = np.histogram(finite, _OTSU_BINS, (low, high))
    centres = (edges[:-1] + edges[1:]) / 2 - low
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = finite.size - below
    moment = np.cumsum(counts * centres)
    difference = moment[:-1] / below - (moment[-1] - moment[:-1]) / above
    between = below * above * difference**2
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    # Only the first unbroken run: two far maxima must not be averaged.
    run = best[: int(np.argmax(np.diff(best, append=best[-1] + 2) > 1)) + 1]
    return float((edges[run[0] + 1] + edges[run[-1] + 1]) / 2)
