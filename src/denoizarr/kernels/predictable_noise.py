"""How much of a hidden pixel's noise the visible ones around it tell, and a kernel that hides enough.

A blind spot hides the pixels whose noise is a pixel's own to a good part. What is left outside may be weak
lag by lag and still tell much together: in a wide-field image whose noise is correlated by .58 and .33
between neighbours, and by .09 at most from two pixels off, the visible pixels around a kernel of thirteen
tell 16 % of the noise in its centre. A network learns to tell it, and puts that part into its answer.

With ``R`` the correlations among the visible pixels and ``r`` those with the hidden one, the best linear
prediction has the share ``r' R^-1 r`` of its variance.
"""

from __future__ import annotations

from functools import cached_property
from itertools import permutations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kernel = NDArray[np.bool_]
Lag = tuple[int, ...]

# What a network may be told of the noise: -11 dB, below what it errs by elsewhere. A kernel that hides more
# costs as much in what is told of the signal.
MOST = 0.08
# Where a larger kernel does not take a fifth of the share away, it is not noise that is told of.
_LEAST_GAIN = 0.2
# Visible pixels that count: so many beyond the kernel along an axis, by number of axes.
_REACH = {2: 3, 3: 2}
# Those nearest the pixel tell of it; more would cost seconds in volumes.
_MOST_VISIBLE = 600
# A correlation matrix put together from measured lags may have directions of no or of negative variance.
_LEAST_VARIANCE = 0.02


def predictable_share(mask: Kernel, correlation: Floats) -> float:
    """Return the share of a pixel's noise that linear prediction from the visible pixels has, 0 to about 1.

    Parameters
    ----------
    mask : ndarray of bool, odd extents ([z,] y, x)
        What is hidden around the pixel.
    correlation : float64 array of as many axes, odd extents
        Of the noise by lag, centred, 1 at lag zero; nothing is taken for known beyond.
    """
    return _Noise(correlation).share_told(_lags_of(mask))


def enclosing_kernel(mask: Kernel, correlation: Floats, most: float = MOST) -> Kernel:
    """Return the kernel, grown until visible pixels tell at most ``most`` of its centre's noise.

    It grows by the neighbours that take most of the share away, by all at once that the kernel's own
    symmetries make alike, so that it keeps them. It stops where that no longer helps.

    Parameters
    ----------
    mask : ndarray of bool, odd extents ([z,] y, x)
    correlation : float64 array of as many axes, odd extents
        As :func:`predictable_share` takes it.
    most : float

    Returns
    -------
    ndarray of bool, odd extents
        No smaller than ``mask``; the same array where that hides enough.
    """
    noise, hidden = _Noise(correlation), _lags_of(mask)
    share, alike = noise.share_told(hidden), _symmetries(hidden, mask.ndim)
    grown = hidden
    while share > most:
        rings = _rings(grown, alike)
        # One alone may be of no use, such as the plane above a kernel, pixel by pixel.
        for candidates in ([grown | ring for ring in rings], [grown.union(*rings)]):
            shares = [noise.share_told(candidate) for candidate in candidates]
            best = int(np.argmin(shares))
            helps = shares[best] <= (1 - _LEAST_GAIN) * share
            if helps:
                grown, share = candidates[best], shares[best]
                break
        if not helps:
            break
    return mask if grown == hidden else _mask_of(grown, mask.ndim)


class _Noise:
    """Noise by its correlation at each lag."""

    def __init__(self, correlation: Floats) -> None:
        self.correlation = correlation

    @cached_property
    def _halves(self) -> NDArray[np.int64]:
        return np.array([n // 2 for n in self.correlation.shape])

    def at(self, lags: NDArray[np.int64]) -> Floats:
        """Return the correlation at lags (..., axes), 0 where it was not measured."""
        places = lags + self._halves
        known: Kernel = np.all((places >= 0) & (places <= 2 * self._halves), axis=-1)
        inside: Any = tuple(np.moveaxis(np.where(known[..., None], places, 0), -1, 0))
        return np.where(known, self.correlation[inside], 0.0)

    def share_told(self, hidden: frozenset[Lag]) -> float:
        axes = self.correlation.ndim
        reach = np.abs(np.array(list(hidden))).max(0) + _REACH[axes]
        around = product(*(range(-r, r + 1) for r in reach.tolist()))
        outside = sorted((lag for lag in around if lag not in hidden), key=_distance)
        visible = np.array(outside[:_MOST_VISIBLE])
        own = self.at(visible)
        # Only those count that tell of the pixel, or of another that does.
        among = self.at(visible[:, None] - visible[None])
        variances, directions = np.linalg.eigh(among)
        told = directions.T @ own
        return float((told**2 / np.maximum(variances, _LEAST_VARIANCE)).sum())


def _distance(lag: Lag) -> tuple[int, Lag]:
    return sum(step**2 for step in lag), lag


def _lags_of(mask: Kernel) -> frozenset[Lag]:
    places = np.argwhere(mask) - np.array([n // 2 for n in mask.shape])
    return frozenset(tuple(place) for place in places.tolist())


def _mask_of(lags: frozenset[Lag], axes: int) -> Kernel:
    places = np.array(sorted(lags))
    halves = np.abs(places).max(0)
    mask = np.zeros(2 * halves + 1, np.bool_)
    mask[tuple((places + halves).T)] = True
    assert mask.ndim == axes
    return mask


def _symmetries(lags: frozenset[Lag], axes: int) -> list[Any]:
    """Return the flips and exchanges of axes that leave the kernel as it is; through the centre always."""
    every = product(permutations(range(axes)), product((1, -1), repeat=axes))
    opposite = (tuple(range(axes)), (-1,) * axes)
    return [s for s in every if s == opposite or {_moved(lag, s) for lag in lags} == lags]


def _moved(lag: Lag, symmetry: Any) -> Lag:
    order, signs = symmetry
    return tuple(sign * lag[axis] for axis, sign in zip(order, signs, strict=True))


def _rings(lags: frozenset[Lag], symmetries: list[Any]) -> list[frozenset[Lag]]:
    """Return the neighbours of a kernel, diagonal ones too, in sets that its symmetries make alike."""
    steps = list(product((-1, 0, 1), repeat=len(next(iter(lags)))))
    beside = {tuple(map(sum, zip(lag, step, strict=True))) for lag in lags for step in steps} - lags
    rings = {frozenset(_moved(lag, symmetry) for symmetry in symmetries) for lag in beside}
    return sorted(rings, key=sorted)
