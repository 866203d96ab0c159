"""What a denoised background still has of the noise's correlation, told from what is merely smooth.

A legend: ``C(l)`` is an autocovariance at lag l = (dy, dx).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import autocorrelation as lags
from .residual import WindowClasses, windows_of

Plane = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

# How far out a remainder is looked for, in pixels.
_FARTHEST = 12


@dataclass(frozen=True, slots=True)
class NoiseLeft:
    """Noise-like correlation in the background, all in units of the raw noise's variance there.

    A denoised background is smooth: its pixels agree with their neighbours in every direction, and a plain
    correlation near 1 says nothing. What noise of a direction leaves behind has that direction. So the
    measure is the autocovariance at a lag of the noise kernel minus that at the same lag turned by a
    quarter, over the variance of the raw noise: for a row kernel ``(C(0, 1) - C(1, 0)) / C_raw(0, 0)``.
    Smooth remains of any kind cancel in the difference, and dividing by the raw variance keeps a small
    remainder small.

    Attributes
    ----------
    lag : (int, int)
        The nearest lag of the kernel, (dy, dx), that the turned kernel lacks.
    turned : (int, int) or None
        The lag subtracted; None where the kernel looks the same after a quarter turn: nothing is subtracted
        then, smooth remains count in full, and ``left`` is an upper bound.
    raw, removed, left : float
        In the raw plane, in raw minus denoised, and in the denoised plane.
    left_anywhere, left_anywhere_error : float
        The largest of the denoised plane at this lag and its multiples up to 12 pixels, and its standard
        error: a smooth remainder agrees with its turned self at one pixel and shows its direction farther
        out.
    raw_error, removed_error, left_error : float
        Standard errors, from the spread over windows.
    removed_correlation : float
        Plain correlation of the residual at ``lag``.
    variance_left : float
        All that varies in the denoised background, smooth or not, in the same units.
    windows : int
    from_difference : bool
        Whether differences of two planes were measured: structure that both share is gone from them.
    """

    lag: tuple[int, int]
    turned: tuple[int, int] | None
    raw: float
    removed: float
    left: float
    left_anywhere: float
    left_anywhere_error: float
    raw_error: float
    removed_error: float
    left_error: float
    removed_correlation: float
    variance_left: float
    windows: int
    from_difference: bool


def noise_left(
    raw: Plane,
    denoised: Plane,
    mask: Mask,
    classes: WindowClasses,
    *,
    other: tuple[Plane, Plane] | None = None,
) -> NoiseLeft | None:
    """Measure what correlation of the noise the output's background still has.

    Parameters
    ----------
    raw, denoised : (y, x) array
        One plane.
    mask : (odd, odd) bool array
        The noise kernel. A single pixel is looked at as a row.
    classes : WindowClasses
        Of this plane.
    other : (raw, denoised), optional
        Another plane of independent noise: then differences of the two are measured, and halved.

    Returns
    -------
    NoiseLeft or None
        None where the raw background does not vary.
    """
    lag, turned = lag_to_compare(mask)
    step = max(map(abs, lag))
    multiples = range(1, max(_FARTHEST // step, 1) + 1)
    reach = step * multiples[-1]
    if reach >= classes.side:
        return None
    planes = [plane.astype(np.float64) for plane in (raw, denoised)]
    if other is not None:
        # The difference of two planes has the noise of both: a root of two undoes that.
        planes = [(mine - its) / np.sqrt(2.0) for mine, its in zip(planes, other, strict=True)]
    planes.append(planes[0] - planes[1])
    cut = [lags.detrend(windows_of(plane, classes.side)[classes.background]) for plane in planes]
    finite = np.all([np.isfinite(windows).all(axis=(1, 2)) for windows in cut], axis=0)
    before, after, removed = (lags.lag_products(w[finite], reach).autocovariance() for w in cut)
    variance = before[:, reach, reach]
    if variance.size < 2 or variance.sum() <= 0:
        return None
    found = [_ratio(_excess(c, lag, turned), variance) for c in (before, removed, after)]
    own = float(removed[:, reach, reach].sum())
    at_lag = float(removed[:, reach + lag[0], reach + lag[1]].sum())
    farther = max(_ratio(_excess(after, lag, turned, times), variance) for times in multiples)
    return NoiseLeft(
        lag=lag,
        turned=turned,
        raw=found[0][0],
        removed=found[1][0],
        left=found[2][0],
        left_anywhere=farther[0],
        left_anywhere_error=farther[1],
        raw_error=found[0][1],
        removed_error=found[1][1],
        left_error=found[2][1],
        removed_correlation=at_lag / own if own > 0 else 0.0,
        variance_left=float(after[:, reach, reach].sum() / variance.sum()),
        windows=int(variance.size),
        from_difference=other is not None,
    )


def lag_to_compare(mask: Mask) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Return the nearest lag of a kernel that its quarter turn lacks, and that lag turned.

    Parameters
    ----------
    mask : (odd, odd) bool array
        Centred. A single pixel counts as a row of three: rows are how detectors are read.

    Returns
    -------
    lag : (int, int)
        (dy, dx).
    turned : (int, int) or None
        None where a quarter turn leaves more than half of the kernel in place: it has no direction then, and
        ``lag`` is its nearest.
    """
    if int(mask.sum()) == 1:
        return (0, 1), (1, 0)
    middle = np.array(mask.shape) // 2
    found = [(int(dy), int(dx)) for dy, dx in np.argwhere(mask) - middle]
    half = [(dy, dx) for dy, dx in found if dy > 0 or (dy == 0 and dx > 0)]
    order = sorted(half, key=lambda lag: (lag[0] ** 2 + lag[1] ** 2, lag))
    present = set(found)
    own = [(dy, dx) for dy, dx in order if (dx, -dy) not in present]
    if 2 * len(own) < len(order):
        return order[0], None
    dy, dx = own[0]
    # Of a lag and its opposite, which are one, the upper half of the plane is named.
    turned = (dx, -dy) if dx > 0 or (dx == 0 and dy < 0) else (-dx, dy)
    return (dy, dx), turned


def _excess(
    covariance: Floats, lag: tuple[int, int], turned: tuple[int, int] | None, times: int = 1
) -> Floats:
    """Return each window's covariance at a multiple of a lag minus that at the turned one."""
    reach = covariance.shape[1] // 2
    excess: Floats = covariance[:, reach + times * lag[0], reach + times * lag[1]]
    if turned is not None:
        excess = excess - covariance[:, reach + times * turned[0], reach + times * turned[1]]
    return excess


def _ratio(part: Floats, whole: Floats) -> tuple[float, float]:
    """Return a ratio of sums over windows and its standard error (linearised)."""
    total = float(whole.sum())
    ratio = float(part.sum()) / total
    count = len(part)
    spread = float(((part - ratio * whole) ** 2).sum()) * count / max(count - 1, 1)
    return ratio, float(np.sqrt(spread)) / abs(total)
