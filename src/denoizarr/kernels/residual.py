"""What was removed, judged by its correlation on background and on signal.

A legend: ``y`` is the raw plane, ``D`` the denoised one, ``r = y - D`` the residual,
``C(l)`` an autocovariance at lag l = (dy, dx), ``n`` the noise of the raw plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special

from . import autocorrelation as lags

Plane = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]

# Windows of this side where they number enough; smaller ones in small planes.
_SIDES = (64, 32, 16)
_ENOUGH_WINDOWS = 48
# The flattest quarter is background, the more structured half signal: between them, a window may be either.
_BACKGROUND, _SIGNAL = 0.25, 0.5
# The chance that a map without any correlation is marked anywhere.
_FALSE_ALARM = 0.01
# A correlation below this is not worth a mark, however many windows make it certain.
SMALLEST_MARKED = 0.02


@dataclass(frozen=True, slots=True)
class WindowClasses:
    """Which windows of a plane hold structure.

    Attributes
    ----------
    background, signal : (n,) int64 array
        Numbers of windows, in the order of :func:`windows_of`: the flattest quarter and the more structured
        half of those that vary. A plane full of structure has no true background: these are its flattest.
    side : int
        Of a window in pixels.
    """

    background: Numbers
    signal: Numbers
    side: int


@dataclass(frozen=True, slots=True)
class ResidualCorrelation:
    """Correlation of what was removed, in one class of windows.

    Attributes
    ----------
    autocorrelation, standard_error : (2R+1, 2R+1) float64 array
        Mean over windows, lag zero in the middle (1 and 0), and its standard error.
    marked : (2R+1, 2R+1) bool array
        Correlation that should not be there: outside the noise kernel, above the sampling error of all lags
        together (one false alarm in a hundred maps) and above 0.02.
    strongest : float
        Largest correlation outside the kernel.
    lag : (int, int)
        Where that is, (y, x), without signs.
    chance : float
        What sampling alone gives at one lag, times the number of standard errors that a mark needs; median.
    windows : int
    """

    autocorrelation: Floats
    standard_error: Floats
    marked: Mask
    strongest: float
    lag: tuple[int, int]
    chance: float
    windows: int


def windows_of(plane: Plane, side: int) -> Floats:
    """Cut a plane into whole windows, (n, side, side) float64; a ragged far edge is left out."""
    rows, columns = plane.shape[0] // side, plane.shape[1] // side
    cut = plane[: rows * side, : columns * side].astype(np.float64)
    return np.ascontiguousarray(cut.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side))


def window_side(shape: tuple[int, ...]) -> int | None:
    """Return the side of windows for a plane of this shape: the largest of which there are enough.

    None for a plane without a window of the smallest side.
    """
    for side in _SIDES:
        if (shape[0] // side) * (shape[1] // side) >= _ENOUGH_WINDOWS:
            return side
    return _SIDES[-1] if min(shape) >= _SIDES[-1] else None


def classify_windows(raw: Plane, denoised: Plane) -> WindowClasses | None:
    """Tell background from signal by how much the denoised windows vary against what was removed.

    Parameters
    ----------
    raw, denoised : (y, x) array
        One plane.

    Returns
    -------
    WindowClasses or None
        None where fewer than four windows are finite and vary.
    """
    side = window_side(raw.shape)
    if side is None:
        return None
    before, after = windows_of(raw, side), windows_of(denoised, side)
    finite = np.isfinite(before).all(axis=(1, 2)) & np.isfinite(after).all(axis=(1, 2))
    usable = np.flatnonzero(finite & (np.ptp(before, axis=(1, 2)) > 0))
    if len(usable) < 4:
        return None
    before, after = before[usable], after[usable]
    removed = lags.detrend(before - after).var(axis=(1, 2))
    structure = lags.detrend(after).var(axis=(1, 2)) / np.maximum(removed, 1e-30)
    order = usable[np.argsort(structure, kind="stable")]
    flat, rich = max(2, round(_BACKGROUND * len(order))), max(2, round(_SIGNAL * len(order)))
    return WindowClasses(np.sort(order[:flat]), np.sort(order[-rich:]), side)


def residual_correlation(
    residual: Plane,
    mask: Mask,
    classes: WindowClasses,
    *,
    on: str,
    kept: Plane | None = None,
    allowed: Floats | None = None,
) -> ResidualCorrelation | None:
    """Measure how what was removed is correlated, and mark what should not be.

    Parameters
    ----------
    residual : (y, x) array
        Raw minus denoised.
    mask : (odd, odd) bool array
        The noise kernel, centred: inside it noise is correlated.
    classes : WindowClasses
        Of this plane.
    on : {"background", "signal"}
        Which windows.
    kept : (y, x) array, optional
        The denoised plane; give it on background. What it still has of the noise, W n, is missing in the
        residual, whose autocovariance so gains that of W n: as much is not marked.
    allowed : (2R+1, 2R+1) float64 array, optional
        Correlation that is known to be noise, outside the kernel too: on signal, give the background's.
        Only what exceeds it is marked.

    Returns
    -------
    ResidualCorrelation or None
        None where nothing was removed. Negative correlation is never marked: what is left of a pixel's noise
        in its neighbours' results is missing in their residuals.
    """
    side = classes.side
    reach = min(max(max(mask.shape) // 2 + 4, 12), side // 2 - 1)
    chosen = getattr(classes, on)
    windows = windows_of(residual, side)[chosen]
    alive = np.ptp(windows, axis=(1, 2)) > 0
    windows = windows[alive]
    if len(windows) < 2:
        return None
    products = lags.lag_products(lags.detrend(windows), reach)
    single = products.autocorrelation()
    mean: Floats = single.mean(axis=0)
    mean = 0.5 * (mean + mean[::-1, ::-1])
    # White noise gives one window's lag a variance of 1 / pairs; the spread over few windows may be less.
    error = np.sqrt(np.maximum(single.var(axis=0, ddof=1), 1.0 / products.pairs) / len(windows))
    error[reach, reach] = 0.0
    tested = (mean.size - 1) // 2
    needed = float(-scipy.special.ndtri(_FALSE_ALARM / tested))
    outside = ~centred(mask, mean.shape)
    outside[reach, reach] = False
    known = np.zeros_like(mean) if allowed is None else np.maximum(allowed, 0.0)
    if kept is not None:
        output = lags.lag_products(lags.detrend(windows_of(kept, side)[chosen][alive]), reach)
        share = output.autocovariance() / products.variances[:, None, None]
        known = np.maximum(known, share.mean(axis=0))
    excess = mean - known
    marked = outside & (excess > needed * error) & (excess > SMALLEST_MARKED)
    strongest = np.where(outside, mean, -np.inf)
    row, column = divmod(int(strongest.argmax()), mean.shape[1])
    return ResidualCorrelation(
        autocorrelation=mean,
        standard_error=error,
        marked=marked,
        strongest=float(mean[row, column]),
        lag=(abs(row - reach), abs(column - reach)),
        chance=needed * float(np.median(error)),
        windows=len(windows),
    )


def shared_noise(residual: Plane, other: Plane, classes: WindowClasses) -> float:
    """Return how residuals of two planes agree on background: near 0 where their noise is independent.

    Parameters
    ----------
    residual, other : (y, x) array
        Of two planes.
    classes : WindowClasses
        Of the first.

    Returns
    -------
    float
        Mean correlation over background windows; 1 where nothing can be measured.
    """
    chosen = classes.background
    first, second = (lags.detrend(windows_of(plane, classes.side)[chosen]) for plane in (residual, other))
    size = np.sqrt((first**2).sum(axis=(1, 2)) * (second**2).sum(axis=(1, 2)))
    alive = np.isfinite(size) & (size > 0)
    if not alive.any():
        return 1.0
    return float(((first * second).sum(axis=(1, 2))[alive] / size[alive]).mean())


def centred(mask: Mask, shape: tuple[int, ...]) -> Mask:
    """Crop or pad a centred mask of odd sides to another odd shape; padding is False."""
    result: Mask = np.zeros(shape, dtype=np.bool_)
    source, target = [], []
    for have, want in zip(mask.shape, shape, strict=True):
        reach = min(have, want) // 2
        source.append(slice(have // 2 - reach, have // 2 + reach + 1))
        target.append(slice(want // 2 - reach, want // 2 + reach + 1))
    result[tuple(target)] = mask[tuple(source)]
    return result
