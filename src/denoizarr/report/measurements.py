"""How noisy a plane was and is, and whether what was removed looks like noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from denoizarr.kernels import autocorrelation as lags

Plane = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]

# Large enough to average over, small enough that some hold no structure: about 64 windows, within limits.
_NOISE_SIDES = (12, 32)
_NOISE_WINDOWS = 64
_LAG_SIDE = 64
_SMALLEST_SIDE = 8
# Of each brightness, the quarter of windows with the least structure.
_BRIGHTNESS_BINS = 6
_FLATTEST = 0.25


@dataclass(frozen=True, slots=True)
class NoiseLevel:
    """Noise in the flattest windows of a plane.

    Attributes
    ----------
    before, after : float
        Median standard deviation of the windows in grey levels, raw and denoised.
    windows : int
        How many windows that is.
    dark, variance, gain : float
        Model of the raw noise: its variance is ``variance + gain * (intensity - dark)``; a gain above zero is
        noise that grows with brightness, as photon noise does.
    """

    before: float
    after: float
    windows: int
    dark: float
    variance: float
    gain: float

    def sigma_at(self, intensity: Plane) -> Floats:
        """Return the standard deviation of the raw noise at these intensities, of the same shape."""
        modelled = self.variance + self.gain * (intensity.astype(np.float64) - self.dark)
        # Darker than any window that was measured, the line may cross zero; the noise does not.
        sigma: Floats = np.sqrt(np.maximum(modelled, max(0.25 * self.variance, 1e-30)))
        return sigma


@dataclass(frozen=True, slots=True)
class ResidualCheck:
    """Correlation of what was removed.

    Attributes
    ----------
    autocorrelation : (2R+1, 2R+1) float64 array
        Mean over windows, 1 at lag zero in the middle.
    outside : float
        Largest correlation outside the noise kernel; structure that was removed gives such.
    lag : (int, int)
        Where that is, (y, x).
    opposite : float
        Most negative correlation outside the kernel. What is left of a pixel's noise in its neighbours'
        results is taken from their residuals, so a slightly negative one is usual.
    chance : float
        What chance alone could give at one lag: four standard errors.
    """

    autocorrelation: Floats
    outside: float
    lag: tuple[int, int]
    opposite: float
    chance: float


def noise_level(raw: Plane, denoised: Plane) -> NoiseLevel | None:
    """Measure the noise before and after in the same windows.

    Parameters
    ----------
    raw, denoised : (y, x) array
        One plane, raw intensities.

    Returns
    -------
    NoiseLevel or None
        None where the plane is too small or nothing in it varies.
    """
    side = min(int(np.clip(np.sqrt(raw.size / _NOISE_WINDOWS), *_NOISE_SIDES)), *raw.shape)
    if side < _SMALLEST_SIDE:
        return None
    before, after = windows_of(raw, side), windows_of(denoised, side)
    alive = _varying(before) & np.isfinite(after).all(axis=(1, 2))
    if not alive.any():
        return None
    before, after = before[alive], after[alive]
    flat = lags.detrend(before, 1)
    chosen = _flattest(before.mean(axis=(1, 2)), lags.coarse_share(flat, block=max(side // 4, 2)))
    spread = flat[chosen].std(axis=(1, 2))
    brightness = after[chosen].mean(axis=(1, 2))
    dark, variance, gain = _line(brightness, spread**2)
    return NoiseLevel(
        before=float(np.median(spread)),
        after=float(np.median(lags.detrend(after[chosen], 1).std(axis=(1, 2)))),
        windows=len(chosen),
        dark=dark,
        variance=variance,
        gain=gain,
    )


def residual_check(residual: Plane, mask: np.ndarray[Any, Any]) -> ResidualCheck | None:
    """Measure how what was removed is correlated, inside and outside the noise kernel.

    Parameters
    ----------
    residual : (y, x) array
        Raw minus denoised.
    mask : (odd, odd) array of bool
        The noise kernel, centred.

    Returns
    -------
    ResidualCheck or None
        None where the plane is too small or nothing was removed.
    """
    side = min(_LAG_SIDE, *residual.shape)
    wanted = max(max(mask.shape) // 2 + 4, 12)
    reach = min(wanted, side // 2 - 1)
    if side < _SMALLEST_SIDE or reach < 1:
        return None
    windows = windows_of(residual, side)
    windows = windows[_varying(windows)]
    if len(windows) == 0:
        return None
    single = lags.lag_products(lags.detrend(windows), reach).autocorrelation()
    mean: Floats = single.mean(axis=0)
    mean = 0.5 * (mean + mean[::-1, ::-1])
    aside = mean.copy()
    allowed_y, allowed_x = np.nonzero(mask)
    rows, columns = allowed_y - mask.shape[0] // 2 + reach, allowed_x - mask.shape[1] // 2 + reach
    inside = (rows >= 0) & (rows <= 2 * reach) & (columns >= 0) & (columns <= 2 * reach)
    aside[rows[inside], columns[inside]] = 0.0
    aside[reach, reach] = 0.0
    row, column = divmod(int(aside.argmax()), 2 * reach + 1)
    # White noise in a window of n pixels gives every lag a standard error of 1 / sqrt(n).
    chance = 4.0 / float(side * np.sqrt(len(windows)))
    lag = (abs(row - reach), abs(column - reach))
    return ResidualCheck(mean, float(aside[row, column]), lag, float(aside.min()), chance)


def windows_of(plane: Plane, side: int) -> Floats:
    """Cut a plane into whole windows, (n, side, side) float64; a ragged far edge is left out."""
    rows, columns = plane.shape[0] // side, plane.shape[1] // side
    cut = plane[: rows * side, : columns * side].astype(np.float64)
    return np.ascontiguousarray(cut.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side))


def _varying(windows: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Tell which windows are finite and not constant: masked borders hold no noise to measure."""
    finite = np.isfinite(windows).all(axis=(1, 2))
    varying: np.ndarray[Any, np.dtype[np.bool_]] = finite & (np.ptp(windows, axis=(1, 2)) > 0)
    return varying


def _flattest(brightness: Floats, structure: Floats) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Choose, of every brightness, the windows with the least structure."""
    order = np.argsort(brightness, kind="stable")
    chosen = []
    for group in np.array_split(order, min(_BRIGHTNESS_BINS, len(order))):
        best = group[np.argsort(structure[group], kind="stable")]
        chosen.append(best[: max(1, round(_FLATTEST * len(group)))])
    return np.concatenate(chosen)


def _line(brightness: Floats, variance: Floats) -> tuple[float, float, float]:
    """Fit variance = a + b (brightness - dark) with a, b at least zero; relative errors count alike."""
    dark = float(brightness.min())
    weight = 1.0 / np.maximum(variance, 1e-30)
    design = np.stack([weight, weight * (brightness - dark)], axis=1)
    (level, gain), *_ = np.linalg.lstsq(design, np.ones(len(weight)), rcond=None)
    if len(weight) < 3 or gain <= 0 or level <= 0:
        return dark, float(np.median(variance)), 0.0
    return dark, float(level), float(gain)
