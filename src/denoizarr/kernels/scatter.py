"""Means and centred scatter of many variables, in float64, in parts that merge.

Legend: ``m`` variables, ``v`` observations. Exactness: *order-rounded*; merge in block order. Sums of raw
products would lose everything where the mean is large beside the spread: of float32 with a mean of 10,000,
all but two digits. Deviations from the part's own mean, and Chan's merge, keep twelve.

Integers of at most 16 bits need neither: sums of their products are exact, in integers where they are not too
far apart, else in float64, which counts so far; int64 moves them to the mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .integer_products import DeviationProducts, move_products

Floats = NDArray[np.float64]
# So many products of two 16-bit integers add up to at most 2^53, which float64 counts to.
_EXACT_ITEMSIZE, _EXACT_COUNT = 2, 2**21


@dataclass(frozen=True, slots=True, eq=False)
class Scatter:
    """Count, means and sums of products of deviations from them.

    Attributes
    ----------
    count : int
        Observations.
    mean : float64 array (m,)
    scatter : float64 array (m, m)
        Symmetric; divided by ``count`` it is the covariance.
    """

    count: int
    mean: Floats
    scatter: Floats


def scatter_of(rows: NDArray[Any]) -> Scatter:
    """Return the scatter of some observations.

    Parameters
    ----------
    rows : array (m, v)
        A row for each variable, of any real dtype and memory order; finite.
    """
    m, v = rows.shape
    if v == 0:
        return Scatter(0, np.zeros(m), np.zeros((m, m)))
    # In the order of memory: a transposed array stays one, and is multiplied as such.
    wide = rows.astype(np.float64, order="K")
    ones = np.ones(v)
    mean = wide @ ones / v
    wide -= mean[:, None]
    # What the mean was rounded by would enter the products squared, times v.
    remainder = wide @ ones / v
    products = wide @ wide.T
    products -= v * np.outer(remainder, remainder)
    np.fill_diagonal(products, np.maximum(np.diagonal(products), 0))  # of a constant, rounding alone is left
    return Scatter(v, mean + remainder, products)


def scatter_of_parts(parts: Iterable[NDArray[Any]]) -> Scatter:
    """Return the scatter of observations that come in parts, added in this order.

    Parameters
    ----------
    parts : iterable of array (m, v)
        As for :func:`scatter_of`; all of one dtype.

    Raises
    ------
    ValueError
        There is no part.
    """
    parts = iter(parts)
    first = next(parts, None)
    if first is None:
        return merged([])
    together = chain([first], parts)
    if first.dtype.kind in "iu" and first.dtype.itemsize <= _EXACT_ITEMSIZE:
        return merged(_of_integers(together, len(first)))
    return merged(map(scatter_of, together))


def _of_integers(parts: Iterable[NDArray[Any]], m: int) -> Iterator[Scatter]:
    sums = _ExactSums(m)
    for part in parts:
        for first in range(0, part.shape[1], _EXACT_COUNT):
            rows = part[:, first : first + _EXACT_COUNT]
            if sums.count + rows.shape[1] > _EXACT_COUNT:
                yield sums.about_the_mean()
                sums = _ExactSums(m)
            sums.add(rows)
    yield sums.about_the_mean()


class _ExactSums:
    """Sums of integers and of their products, without rounding: in integers, else as float64 counts them."""

    def __init__(self, m: int) -> None:
        self.count = 0
        self._total = np.zeros(m, np.int64)
        self._products: Floats | None = None
        self._deviations: DeviationProducts | None = None

    def add(self, rows: NDArray[Any]) -> None:
        """Add observations (m, v), v > 0."""
        self.count += rows.shape[1]
        if self._deviations is None:
            self._deviations = DeviationProducts(rows)
        if self._deviations.add(rows):
            return
        wide = rows.astype(np.float64, order="K")
        products = wide @ wide.T
        if self._products is not None:
            products += self._products
        self._products = products
        self._total += (wide @ np.ones(rows.shape[1])).astype(np.int64)

    def about_the_mean(self) -> Scatter:
        """Return it, and forget the sums: large matrices are changed in place."""
        count, total, products = self.count, self._total, None
        if self._deviations is not None:
            sums, products = self._deviations.take_about_zero()
            total, self._deviations = total + sums, None
        if self._products is not None:
            wide, self._products = self._products.astype(np.int64), None
            products = wide if products is None else np.add(products, wide, out=products)
        if products is None:
            products = np.zeros((len(total), len(total)), np.int64)
        near = np.rint(total / max(count, 1)).astype(np.int64)
        move_products(products, total, -near, count)
        left = (total - count * near) / max(count, 1)
        about = products.astype(np.float64)
        about -= count * np.outer(left, left)
        return Scatter(count, near + left, about)


def merged(parts: Iterable[Scatter]) -> Scatter:
    """Return the scatter of all observations together (Chan, Golub and LeVeque 1979), merged in this order.

    One part and the sum are in memory, whatever the number of parts.

    Raises
    ------
    ValueError
        There is no part.
    """
    count, mean, scatter = 0, None, None
    for part in parts:
        if mean is None or scatter is None:
            count, mean, scatter = part.count, part.mean.copy(), part.scatter.copy()
            continue
        if part.count == 0:
            continue
        whole = count + part.count
        apart = part.mean - mean
        scatter += part.scatter
        if count:
            scaled = apart * sqrt(count * (part.count / whole))
            scatter += np.outer(scaled, scaled)  # symmetric to the last bit
        mean += apart * (part.count / whole)
        count = whole
    if mean is None or scatter is None:
        message = "no parts to merge"
        raise ValueError(message)
    return Scatter(count, mean, scatter)
