"""A Gaussian blur normalised at the border, and a cheaper one for large sigma whose error has a bound.

Along one axis of n pixels the true blur is a matrix G with rows that sum to one::

    G[p, i] = exp(-(i - p)^2 / 2 sigma^2) / (sum over i)     |i - p| <= 4 sigma, 0 <= i < n

The cheap blur takes means over boxes of b pixels, blurs them at knots q pixels apart, with the weights of G
summed over each box, and interpolates linearly between knots::

    pixels   . . . . . . . . . . . . . .
    boxes    [---b---][---b---][---b--]            what is stored of the image
    knots    |        q        |       |           always at pixels, the last at the end

Its rows sum to one as well. Of values within a range R, two such matrices A and B differ by no more than
``R / 2 * max over rows of sum |A - B|``; over several axes these add up. The sums are computed, not guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled

TRUNCATE = 4.0
ERROR_LIMIT = 0.01
"""Largest bound accepted for the cheap method, as a fraction of the range of the values."""
# Below this, nothing is won by leaving pixels out.
_SMALLEST_SIGMA = 16.0


@dataclass(frozen=True, slots=True)
class AxisBlur:
    """The blur along one axis.

    Attributes
    ----------
    size : int
        Pixels along the axis.
    sigma : float
        In pixels; 0 does nothing.
    box, spacing : int
        Pixels averaged into one value beforehand, and pixels between knots; 1 and 1 is the true blur.
    """

    size: int
    sigma: float
    box: int = 1
    spacing: int = 1

    @property
    def n_boxes(self) -> int:
        """Number of box means along the axis."""
        return -(-self.size // self.box)

    @property
    def n_knots(self) -> int:
        """Number of knots along the axis."""
        return -(-(self.size - 1) // self.spacing) + 1

    @property
    def error(self) -> float:
        """Bound of the difference from the true blur, as a fraction of the values' range."""
        return _error(self)

    def boxes_for(self, first: int, stop: int) -> tuple[int, int]:
        """Return the range of boxes that the knots ``first .. stop - 1`` are made of."""
        starts, counts, _ = _weights(self)
        return int(starts[first]), int(starts[stop - 1] + counts[stop - 1])

    def knots_for(self, first: int, stop: int) -> tuple[int, int]:
        """Return the range of knots that the pixels ``first .. stop - 1`` are interpolated from."""
        return first // self.spacing, min((stop - 1) // self.spacing + 2, self.n_knots)

    def at_knots(
        self, boxes: NDArray[np.float64], axis: int, first: int, stop: int, offset: int
    ) -> NDArray[np.float64]:
        """Return the blurred values at the knots ``first .. stop - 1``.

        Parameters
        ----------
        boxes : float64 array
            Box means; along ``axis`` those from number ``offset`` on.
        axis, first, stop, offset : int
        """
        starts, counts, weights = _weights(self)
        lines = np.moveaxis(boxes, axis, 0)
        flat = np.ascontiguousarray(lines).reshape(lines.shape[0], -1)
        part = slice(first, stop)
        blurred = _weighted_rows(flat, starts[part] - offset, counts[part], weights[part])
        return np.moveaxis(blurred.reshape((stop - first, *lines.shape[1:])), 0, axis)

    def at_pixels(
        self, knots: NDArray[np.float64], axis: int, first: int, stop: int, offset: int
    ) -> NDArray[np.float64]:
        """Return the values at the pixels ``first .. stop - 1``, from the knots from number ``offset`` on.

        Never beyond the knots on either side, not even by rounding: the extremes of an image are at knots.
        """
        pixels = np.arange(first, stop)
        if self.spacing == 1:
            return np.take(knots, pixels - offset, axis=axis)
        before = np.minimum(pixels // self.spacing, max(self.n_knots - 2, 0))
        after = np.minimum(before + 1, self.n_knots - 1)
        left = before * self.spacing
        gap = np.minimum(after * self.spacing, self.size - 1) - left
        along = [1] * knots.ndim
        along[axis] = -1
        share = ((pixels - left) / np.maximum(gap, 1)).reshape(along)
        low = np.take(knots, before - offset, axis=axis)
        high = np.take(knots, after - offset, axis=axis)
        high -= low
        high *= share
        low += high
        return low


def choose_blurs(
    sizes: Sequence[int], sigmas: Sequence[float], limit: float = ERROR_LIMIT
) -> tuple[AxisBlur, ...]:
    """Return the cheapest blurs whose bounds, added up over the axes, stay within ``limit``.

    Parameters
    ----------
    sizes, sigmas : sequences
        Per axis, in pixels.
    limit : float
        As a fraction of the values' range.
    """
    share = limit / len(sizes)
    return tuple(_cheapest(int(n), float(s), share) for n, s in zip(sizes, sigmas, strict=True))


@lru_cache(maxsize=64)
def _cheapest(size: int, sigma: float, limit: float) -> AxisBlur:
    if sigma >= _SMALLEST_SIGMA:
        widest = int(sigma / 8)
        for box in range(max(int(sigma / 16), 1), 0, -1):
            # Knots a whole number of boxes apart: their rows repeat, so the bound needs few of them.
            blur = AxisBlur(size, sigma, box, max(widest // box, 1) * box)
            if blur.error <= limit:
                return blur
    return AxisBlur(size, sigma)


@lru_cache(maxsize=64)
def _kernel(sigma: float) -> NDArray[np.float64]:
    """Return the Gaussian at the distances 0, 1, ..., the largest that is not left out."""
    reach = int(TRUNCATE * sigma + 0.5)
    return np.asarray(np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2))


@lru_cache(maxsize=64)
def _weights(blur: AxisBlur) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    """Return, per knot, the number of its first box, how many boxes it takes, and their weights."""
    starts, counts, weights = _knot_weights(
        blur.size, _kernel(blur.sigma), blur.box, blur.spacing, blur.n_knots
    )
    return starts, counts, weights


@compiled
def _knot_weights(size: int, kernel: NDArray[Any], box: int, spacing: int, n_knots: int) -> Any:
    reach = kernel.size - 1
    starts = np.empty(n_knots, np.int64)
    counts = np.empty(n_knots, np.int64)
    weights = np.zeros((n_knots, 2 * reach // box + 2))
    for k in range(n_knots):
        at = min(k * spacing, size - 1)
        low, high = max(at - reach, 0), min(at + reach, size - 1)
        starts[k], counts[k] = low // box, high // box - low // box + 1
        total = 0.0
        for i in range(low, high + 1):
            weights[k, i // box - starts[k]] += kernel[abs(i - at)]
            total += kernel[abs(i - at)]
        weights[k] /= total
    return starts, counts, weights


@compiled
def _weighted_rows(
    rows: NDArray[Any], starts: NDArray[Any], counts: NDArray[Any], weights: NDArray[Any]
) -> NDArray[np.float64]:
    found = np.zeros((starts.size, rows.shape[1]))
    for k in range(starts.size):
        line = found[k]
        for b in range(counts[k]):
            weight = weights[k, b]
            source = rows[starts[k] + b]
            for j in range(line.size):
                line[j] += weight * source[j]
    return found


@lru_cache(maxsize=256)
def _error(blur: AxisBlur) -> float:
    if blur.sigma == 0 or (blur.box == 1 and blur.spacing == 1):
        return 0.0
    reach = int(TRUNCATE * blur.sigma + 0.5)
    # Further in, no kernel and no box is cut, and the rows repeat with every knot.
    border = reach + blur.spacing + blur.box
    if blur.size <= 2 * border + blur.spacing:
        rows = np.arange(blur.size)
    else:
        rows = np.concatenate(
            [np.arange(border + blur.spacing), np.arange(blur.size - border - blur.spacing, blur.size)]
        )
    return 0.5 * float(
        _largest_difference(blur.size, _kernel(blur.sigma), blur.box, blur.spacing, rows, *_weights(blur))
    )


@compiled
def _largest_difference(
    size: int,
    kernel: NDArray[Any],
    box: int,
    spacing: int,
    rows: NDArray[Any],
    starts: NDArray[Any],
    counts: NDArray[Any],
    weights: NDArray[Any],
) -> float:
    """Return the largest sum of absolute differences between a row of the cheap blur and of the true one."""
    reach = kernel.size - 1
    n_knots = starts.size
    largest = 0.0
    for p in rows:
        before = min(p // spacing, max(n_knots - 2, 0))
        after = min(before + 1, n_knots - 1)
        gap = max(min(after * spacing, size - 1) - before * spacing, 1)
        share = (p - before * spacing) / gap
        total = 0.0
        for i in range(max(p - reach, 0), min(p + reach, size - 1) + 1):
            total += kernel[abs(i - p)]
        first = min(starts[before] * box, max(p - reach, 0))
        stop = max((starts[after] + counts[after]) * box, p + reach + 1)
        difference = 0.0
        for i in range(first, min(stop, size)):
            found = 0.0
            b = i // box
            present = min((b + 1) * box, size) - b * box
            if 0 <= b - starts[before] < counts[before]:
                found += (1 - share) * weights[before, b - starts[before]] / present
            if 0 <= b - starts[after] < counts[after]:
                found += share * weights[after, b - starts[after]] / present
            true = kernel[abs(i - p)] / total if abs(i - p) <= reach else 0.0
            difference += abs(found - true)
        largest = max(largest, difference)
    return largest
