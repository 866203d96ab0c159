"""Sums of products of short integers, in integers: exact, and more than twice as fast as in float64.

Processors multiply 16 or 32 pairs of 16-bit integers in one instruction and add them up in 32 bits; compilers
find it in the plain loop below. Two things make it fit::

    values       0 ... 4095     deviations from a number near the middle   -2048 ... 2047      16 bits
    their products, up to 2^22  some hundred voxels at a time               below 2^31          32 bits
                                and then into a sum in                                          64 bits

Where deviations are so large that hardly any of their products fit, these sums are left to float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled

Integers = NDArray[np.int64]
# Products of so many voxels are summed at a time, as a core's first cache has room for; with far fewer the
# sums themselves would take the time.
_AT_ONCE, _FEWEST_AT_ONCE = 256, 128
# Every how many voxels one is looked at for the middle.
_SAMPLED = 16
# Rows of a power of two bytes would all claim the same few places of the cache.
_APART = 32


class DeviationProducts:
    """Sums of products of all pairs of variables, about a number for each that is near its middle.

    Parameters
    ----------
    rows : integer array (m, v)
        Some of the observations, or all: the middle of each variable is taken from them.
    """

    def __init__(self, rows: NDArray[np.integer[Any]]) -> None:
        sample = rows[:, ::_SAMPLED].astype(np.int64)
        self._centre: Integers = (sample.min(axis=1) + sample.max(axis=1)) // 2
        m = len(rows)
        # The last row is that of ones, whose products with the others are their sums.
        self._products = np.zeros((m + 1, m + 1), np.int64)

    def add(self, rows: NDArray[np.integer[Any]]) -> bool:
        """Add some observations (m, v), v > 0; tell whether that was possible."""
        m, v = rows.shape
        rows = rows.astype(rows.dtype.newbyteorder("="), copy=False)  # as compiled loops take it
        if self._farthest(rows) > np.iinfo(np.int16).max:
            return False
        deviations = np.empty((m + 1, v + _APART), np.int16)
        deviations[m] = 1
        (_by_voxel if rows.flags.f_contiguous else _by_variable)(rows, self._centre, deviations)
        largest = max(-int(deviations[:, :v].min()), int(deviations[:, :v].max()))
        at_once = min(np.iinfo(np.int32).max // largest**2, _AT_ONCE)
        if at_once < _FEWEST_AT_ONCE:
            return False
        _add_products(deviations, v, at_once, self._products)
        return True

    def _farthest(self, rows: NDArray[np.integer[Any]]) -> int:
        """Return how far a value may lie from its variable's middle, at most."""
        centre = self._centre
        among_all = max(int(rows.max() - centre.min()), int(centre.max() - rows.min()))
        if among_all <= np.iinfo(np.int16).max:
            return among_all
        # Bright variables beside dark ones: each for itself, which takes longer to find out.
        return int(max((rows.max(axis=1) - centre).max(), (centre - rows.min(axis=1)).max()))

    def take_about_zero(self) -> tuple[Integers, Integers]:
        """Return sums of all observations (m,) and of their products (m, m), and forget them."""
        _mirror(self._products)
        count, sums, products = int(self._products[-1, -1]), self._products[-1, :-1], self._products[:-1, :-1]
        move_products(products, sums, self._centre, count)
        return sums + count * self._centre, products


def move_products(products: Integers, sums: Integers, by: Integers, count: int) -> None:
    """Change sums of products, in place: of deviations from a point into those from the point less ``by``.

    Parameters
    ----------
    products : int64 array (m, m)
        Symmetric.
    sums : int64 array (m,)
        Of the deviations as they were.
    by : int64 array (m,)
    count : int
        Observations.
    """
    products += np.outer(sums, by)
    products += np.outer(by, sums + count * by)


@compiled
def _by_voxel(rows: Any, centre: Any, deviations: Any) -> None:
    for k in range(rows.shape[1]):
        for i in range(rows.shape[0]):
            deviations[i, k] = rows[i, k] - centre[i]


@compiled
def _by_variable(rows: Any, centre: Any, deviations: Any) -> None:
    for i in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            deviations[i, k] = rows[i, k] - centre[i]


@compiled
def _add_products(deviations: Any, v: int, at_once: int, total: Any) -> None:
    for first in range(0, v, at_once):
        end = min(first + at_once, v)
        for i in range(len(deviations)):
            one = deviations[i, first:end]
            for j in range(i + 1):
                other, found = deviations[j, first:end], np.int32(0)
                for k in range(len(one)):
                    found = np.int32(found + np.int32(np.int32(one[k]) * np.int32(other[k])))
                total[i, j] += found


@compiled
def _mirror(lower: Any) -> None:
    for i in range(len(lower)):
        for j in range(i):
            lower[j, i] = lower[i, j]
