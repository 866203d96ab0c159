"""Thresholds of filter maps: checked, and chosen from the map's own values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoizarr.errors import BadRequest, DegenerateData

# Fine enough for a narrow mode far from zero; Otsu's criterion is summed over the bins.
_OTSU_BINS = 1 << 16
_PIECE = 1 << 20


def check_threshold(value: float | None, name: str) -> None:
    """Refuse a threshold that no value can be compared with."""
    if value is not None and not isfinite(value):
        raise BadRequest("not a threshold", where=name, got=value, expected="a finite number")


def otsu_threshold(*values: NDArray[Any]) -> float:
    """Return the threshold that maximises the variance between the two groups that it makes.

    Parameters
    ----------
    *values : arrays of any shape
        Taken together; NaN and infinity are left out.

    Returns
    -------
    float
        ``value >= threshold`` is the upper group. Where every threshold in a gap does equally well, the
        middle of the gap.

    Raises
    ------
    DegenerateData
        There is no finite value.

    Notes
    -----
    Otsu, IEEE Trans. SMC 9 (1979) 62, eq. 18, over 65,536 bins between the extremes.
    """
    extremes = [(float(p.min()), float(p.max())) for p in _finite_pieces(values)]
    if not extremes:
        raise DegenerateData("no finite score to choose a threshold from")
    low, high = min(a for a, _ in extremes), max(b for _, b in extremes)
    if low == high:
        return low
    edges = np.linspace(low, high, _OTSU_BINS + 1)
    counts = sum(np.histogram(p, _OTSU_BINS, (low, high))[0] for p in _finite_pieces(values))
    centres = (edges[:-1] + edges[1:]) / 2 - low
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = float(np.sum(counts)) - below
    moment = np.cumsum(counts * centres)
    difference = moment[:-1] / below - (moment[-1] - moment[:-1]) / above
    between = below * above * difference**2
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    # Only the first unbroken run: two far maxima must not be averaged.
    run = best[: int(np.argmax(np.diff(best, append=best[-1] + 2) > 1)) + 1]
    return float((edges[run[0] + 1] + edges[run[-1] + 1]) / 2)


def _finite_pieces(values: Sequence[NDArray[Any]]) -> Iterator[NDArray[np.float64]]:
    """Yield the finite values a million at a time: a map may be half a gigabyte, its copies need not be."""
    for array in values:
        flat = array.reshape(-1)
        for first in range(0, flat.size, _PIECE):
            piece = flat[first : first + _PIECE].astype(np.float64)
            finite = piece[np.isfinite(piece)]
            if finite.size:
                yield finite
