"""How much of a pixel's own noisy value belongs into its answer: what a blind-spot network leaves unused.

A blind-spot network answers with the mean ``m`` of what a pixel may be, as its surroundings tell, and never
looks at the pixel's own value ``x``. Both err independently: ``m`` by ``e = s - m``, ``x`` by its noise. The
best linear use of both is their posterior mean::

    answer = m + w (x - m),        w = E[e^2] / E[(x - m)^2]

The denominator is seen. The numerator is not, but what a pixel may be varies smoothly, and noise outside a
blind-spot kernel is independent: where two neighbours with independent noise are hidden together, so that
neither's value is in either's answer, the mean product of their two residuals has no noise in it. It is
``E[e(p) e(q)]``, a little less than ``E[e^2]``, so that the weight errs towards the network's answer::

    . . # # # # # . .
    . . # # p # # . .        kernel 1 x 5: noise correlated along x
    . . # # q # # . .        q: the nearest pixel whose noise is not p's
    . . # # # # # . .        (the kernel of q)

Weights go by brightness, because photon noise and the spread of what a pixel may be grow with it.

Where noise is correlated on all sides, the nearest pixel with noise of its own is some pixels off, and what
the network errs by is as much alike at all that lie nearer. Then not the pixel's own residual is kept but the
mean of theirs, the *footprint*: their noise partly cancels, what the network errs by does not. In a kernel
of a single pixel or a single row the footprint is the pixel itself.

Source of the posterior mean: Laine et al. 2019, "High-quality self-supervised deep image denoising", eq. 4,
where a network answers with the variances and the noise is known; the pairs are this package's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Floats = NDArray[np.float64]
Kernel = NDArray[np.bool_]

# A weight from so many pairs is right to .02, and to a part in eight from what follows from that.
FEWEST_PAIRS = 2500
_PARTS = 8
_FINE_LEVELS, _MOST_LEVELS = 256, 16
# Levels closer than this part of the noise would let the weight jump within it.
_CLOSEST = 0.25


def pair_lags(kernel: Kernel) -> list[tuple[int, ...]]:
    """Return the nearest lags, one of each pair of opposites, at which noise is not a pixel's own."""
    return _nearest(_lags_outside(kernel))


def axis_lags(kernel: Kernel) -> list[tuple[int, ...]]:
    """Return the nearest lags along an axis at which noise is not a pixel's own.

    The nearest of all may lie diagonally in a corner of the kernel, where weak correlations add up.
    """
    return _nearest([lag for lag in _lags_outside(kernel) if np.count_nonzero(lag) == 1])


def _lags_outside(kernel: Kernel) -> list[tuple[int, ...]]:
    reach = [n // 2 + 1 for n in kernel.shape]
    backwards = (slice(None, None, -1),) * kernel.ndim
    return [
        lag
        for lag in product(*(range(-r, r + 1) for r in reach))
        # Either way: what one pixel shares with another, that one shares with it.
        if lag > (0,) * len(lag) and not _holds(kernel, lag) and not _holds(kernel[backwards], lag)
    ]


def _nearest(lags: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    nearest = min(sum(step**2 for step in lag) for lag in lags)
    return [lag for lag in lags if sum(step**2 for step in lag) == nearest]


def pair_kernel(kernel: Kernel, lag: tuple[int, ...]) -> Kernel:
    """Return what is hidden around a pixel so that the one at ``lag`` is hidden with it: both kernels."""
    halves = [n // 2 for n in kernel.shape]
    pair = np.zeros([2 * (half + abs(step)) + 1 for half, step in zip(halves, lag, strict=True)], np.bool_)
    for shift in ((0,) * len(lag), lag):
        part = tuple(
            slice(abs(step) + moved, abs(step) + moved + 2 * half + 1)
            for half, step, moved in zip(halves, lag, shift, strict=True)
        )
        pair[part] |= kernel
    return pair


def footprint_of(kernel: Kernel) -> Kernel:
    """Return, as a centred mask, the pixels nearer than the nearest one whose noise is not a pixel's own."""
    nearest = sum(step**2 for step in pair_lags(kernel)[0])
    reach = [next(r for r in range(n) if r + 1 > n // 2 or (r + 1) ** 2 >= nearest) for n in kernel.shape]
    squares = [np.arange(-r, r + 1) ** 2 for r in reach]
    return np.asarray(sum(np.meshgrid(*squares, indexing="ij")) < nearest)


def fit_centre_weights(
    first: Floats, second: Floats, level: Floats, kept: Floats | None = None
) -> tuple[Floats, Floats] | None:
    """Return the weight of a pixel's own value, or of its footprint's mean, by brightness.

    Parameters
    ----------
    first, second : (n,) float64 array
        The residuals of the two pixels of each pair, noisy less predicted, in intensities.
    level : (n,) float64 array
        The mean of their two predictions.
    kept : (n,) float64 array, optional
        The square of what is kept there with this weight; None: of the two residuals.

    Returns
    -------
    (levels, weights) or None
        Float64 arrays (k,), levels ascending, k two or more: the weight, 0 to 1, where the prediction has
        this level; in between on straight lines, beyond the ends constant. None for too few pairs.
    """
    if len(level) < 2 * FEWEST_PAIRS or not np.isfinite(first).all() or not np.isfinite(second).all():
        return None
    own = 0.5 * (first**2 + second**2)
    kept = own if kept is None else kept
    share = max((first * second).sum() / max(own.sum(), 1e-300), len(level) ** -0.5)
    accurate = min((_PARTS / share) ** 2, len(level) // 3)
    fewest = max(FEWEST_PAIRS, len(level) // _MOST_LEVELS, accurate)
    order = np.argsort(level, kind="stable")
    total, apart = np.zeros(5), -np.inf
    levels: list[float] = []
    weights: list[float] = []
    for part in np.array_split(order, _FINE_LEVELS):
        both = first[part] * second[part]
        total += [len(part), level[part].sum(), both.sum(), own[part].sum(), kept[part].sum()]
        count, mean, noise = total[0], total[1] / total[0], np.sqrt(total[3] / total[0])
        # Where nothing is noisy, as in a saturated area, levels could be one in the float32 of a network.
        if count >= fewest and mean - apart >= _CLOSEST * noise and np.float32(mean) > np.float32(apart):
            levels.append(mean)
            weights.append(total[2] / max(total[4], 1e-300))
            total, apart = np.zeros(5), mean
    if len(levels) < 2:
        return None
    return np.array(levels), np.clip(weights, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Centre:
    """What is kept of a voxel's own value, in the units of a network.

    Attributes
    ----------
    levels, weights : Tensor of shape (k,)
        Levels of the prediction, ascending, and the weight at each.
    shift : (Tensor, Tensor) of shape (j,), optional
        Levels of the prediction, ascending, and what is added to it at each.
    """

    levels: Tensor
    weights: Tensor
    shift: tuple[Tensor, Tensor] | None = None


def keep_centres(noisy: Tensor, predicted: Tensor, centre: Centre, footprint: Kernel | None = None) -> Tensor:
    """Return ``m + w (x - m)`` voxel by voxel, with ``w`` on straight lines between the levels.

    Parameters
    ----------
    noisy, predicted : Tensor of the same shape, (..., [z,] y, x)
    centre : Centre
        In the same units.
    footprint : ndarray of bool, odd extents ([z,] y, x), optional
        Over which voxels around each ``x - m`` is averaged; None: the voxel alone.
    """
    weight = on_lines(predicted, centre.levels, centre.weights)
    if centre.shift is not None:
        predicted = predicted + on_lines(predicted, *centre.shift)
    residual = noisy - predicted
    return predicted + weight * (residual if footprint is None else mean_nearby(residual, footprint))


def on_lines(at: Tensor, levels: Tensor, values: Tensor) -> Tensor:
    """Return values on straight lines between levels, constant beyond the first and the last."""
    above = torch.bucketize(at, levels).clamp(1, levels.shape[0] - 1)
    low, high = levels[above - 1], levels[above]
    # Levels that are one after scaling divide by next to nothing, not by zero.
    part = ((at - low) / (high - low).clamp_min(torch.finfo(levels.dtype).tiny)).clamp(0, 1)
    return torch.lerp(values[above - 1], values[above], part)


def fit_shift(shown: Floats, hidden: Floats) -> tuple[Floats, Floats] | None:
    """Return, by level, what an answer to pixels that are seen is to be shifted by.

    Where noise is correlated on all sides, a network that sees the pixels below its kernel makes some use of
    them, of their noise too: it answers too bright what it answers bright. Hidden, it cannot.

    Parameters
    ----------
    shown, hidden : (n,) float64 array
        Answers where nothing is hidden, and for the same pixels where their kernel is.

    Returns
    -------
    (levels, shifts) or None
        Float64 arrays (k,), k two or more, levels ascending. None for too few pixels or a single level.
    """
    n = min(_MOST_LEVELS, len(shown) // FEWEST_PAIRS)
    if n < 2:
        return None
    parts = np.array_split(np.argsort(shown, kind="stable"), n)
    levels = np.array([shown[part].mean() for part in parts])
    shifts = np.array([(hidden[part] - shown[part]).mean() for part in parts])
    apart = bool((np.diff(levels.astype(np.float32)) > 0).all())
    return (levels, shifts) if apart else None


def mean_nearby(values: Tensor, footprint: Kernel) -> Tensor:
    """Return the mean of the voxels under the footprint around each voxel, of those that there are.

    Voxel by voxel in one order, so that every cut of an image gives the same bits.

    Parameters
    ----------
    values : Tensor of shape (..., [z,] y, x)
    footprint : ndarray of bool, odd extents ([z,] y, x)
    """
    halves = [n // 2 for n in footprint.shape]
    margins = [half for half in reversed(halves) for _ in range(2)]
    inside = functional.pad(torch.ones_like(values), margins)
    values = functional.pad(values, margins)
    total, count = torch.zeros(()), torch.zeros(())
    for place in np.argwhere(footprint).tolist():
        # Counted from the end: a traced network's extents are not known.
        under: Any = tuple(
            slice(at, at + 1 - n or None) for at, n in zip(place, footprint.shape, strict=True)
        )
        total, count = total + values[(..., *under)], count + inside[(..., *under)]
    return total / count


def _holds(kernel: Kernel, lag: tuple[int, ...]) -> bool:
    place: Any = tuple(n // 2 + step for n, step in zip(kernel.shape, lag, strict=True))
    inside = all(0 <= p < n for p, n in zip(place, kernel.shape, strict=True))
    return inside and bool(kernel[place])
