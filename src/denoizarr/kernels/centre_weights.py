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

Source of the posterior mean: Laine et al. 2019, "High-quality self-supervised deep image denoising", eq. 4,
where a network answers with the variances and the noise is known; the pairs are this package's own.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Kernel = NDArray[np.bool_]

# A weight from so many pairs is right to .02.
FEWEST_PAIRS = 2500
_FINE_LEVELS, _MOST_LEVELS = 256, 16
# Levels closer than this part of the noise would let the weight jump within it.
_CLOSEST = 0.25


def pair_lags(kernel: Kernel) -> list[tuple[int, ...]]:
    """Return the nearest lags, one of each pair of opposites, at which noise is not a pixel's own."""
    reach = [n // 2 + 1 for n in kernel.shape]
    backwards = (slice(None, None, -1),) * kernel.ndim
    candidates = [
        lag
        for lag in product(*(range(-r, r + 1) for r in reach))
        # Either way: what one pixel shares with another, that one shares with it.
        if lag > (0,) * len(lag) and not _holds(kernel, lag) and not _holds(kernel[backwards], lag)
    ]
    nearest = min(sum(step**2 for step in lag) for lag in candidates)
    return [lag for lag in candidates if sum(step**2 for step in lag) == nearest]


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


def fit_centre_weights(first: Floats, second: Floats, level: Floats) -> tuple[Floats, Floats] | None:
    """Return the weight of a pixel's own value by brightness.

    Parameters
    ----------
    first, second : (n,) float64 array
        The residuals of the two pixels of each pair, noisy less predicted, in intensities.
    level : (n,) float64 array
        The mean of their two predictions.

    Returns
    -------
    (levels, weights) or None
        Float64 arrays (k,), levels ascending, k two or more: the weight, 0 to 1, where the prediction has
        this level; in between on straight lines, beyond the ends constant. None for too few pairs.
    """
    if len(level) < 2 * FEWEST_PAIRS or not np.isfinite(first).all() or not np.isfinite(second).all():
        return None
    fewest = max(FEWEST_PAIRS, len(level) // _MOST_LEVELS)
    order = np.argsort(level, kind="stable")
    total, apart = np.zeros(4), -np.inf
    levels: list[float] = []
    weights: list[float] = []
    for part in np.array_split(order, _FINE_LEVELS):
        both, squares = first[part] * second[part], 0.5 * (first[part] ** 2 + second[part] ** 2)
        total += [len(part), level[part].sum(), both.sum(), squares.sum()]
        count, mean, noise = total[0], total[1] / total[0], np.sqrt(total[3] / total[0])
        # Where nothing is noisy, as in a saturated area, levels could be one in the float32 of a network.
        if count >= fewest and mean - apart >= _CLOSEST * noise and np.float32(mean) > np.float32(apart):
            levels.append(mean)
            weights.append(total[2] / max(total[3], 1e-300))
            total, apart = np.zeros(4), mean
    if len(levels) < 2:
        return None
    return np.array(levels), np.clip(weights, 0.0, 1.0)


def keep_centres(noisy: Tensor, predicted: Tensor, levels: Tensor, weights: Tensor) -> Tensor:
    """Return ``m + w (x - m)`` voxel by voxel, with ``w`` on straight lines between the levels.

    Parameters
    ----------
    noisy, predicted : Tensor of the same shape
    levels, weights : Tensor of shape (k,)
        In the same units; ascending.
    """
    above = torch.bucketize(predicted, levels).clamp(1, levels.shape[0] - 1)
    low, high = levels[above - 1], levels[above]
    # Levels that are one after scaling divide by next to nothing, not by zero.
    part = ((predicted - low) / (high - low).clamp_min(torch.finfo(levels.dtype).tiny)).clamp(0, 1)
    weight = torch.lerp(weights[above - 1], weights[above], part)
    return predicted + weight * (noisy - predicted)


def _holds(kernel: Kernel, lag: tuple[int, ...]) -> bool:
    place: Any = tuple(n // 2 + step for n, step in zip(kernel.shape, lag, strict=True))
    inside = all(0 <= p < n for p, n in zip(place, kernel.shape, strict=True))
    return inside and bool(kernel[place])
