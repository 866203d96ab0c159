"""From windows of an image to the autocorrelation of its noise alone.

Structure is correlated too. What tells the two apart:

* Noise has the same autocorrelation in every window; structure has another one in each, so windows that hold
  structure differ by more than sampling gives. Windows are sorted by how little structure they hold, and as
  many are taken as still agree.
* What grows with a window's variance is the structure's autocorrelation. Noise ends after a few pixels, so
  how much structure is left in the windows taken shows at far lags, and that much is subtracted everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np

from denoizarr.errors import BadRequest
from denoizarr.kernels import autocorrelation as lags

Floats = np.ndarray[Any, np.dtype[np.float64]]

# A quadric: shading and slopes go, and of white noise in 32x32 pixels less than a hundredth.
DEGREE = 2
# Below this side a window has too few pairs, and detrending takes too much of the noise.
SMALLEST_SIDE = 24
# Lags compared between windows: near ones, where structure has most of its correlation.
_NEAR = 3
# Of the 24 near lags about ten are independent; their mean spread then varies by sqrt(2 / 10 / (n - 1)).
_INDEPENDENT_LAGS = 10
# A tenth more spread than sampling gives: structure adds at most a third of one window's standard error.
_SPREAD_TOLERANCE = 1.1
# From a full well's photon noise (30,000 electrons) to a good camera's read noise (1.7) is this factor of
# variance. Windows further apart are not of one detector's noise: flat parts of a clean image are.
_VARIANCE_RANGE = 1e4
# Rounding to whole numbers adds independent noise only to what varies by half a step (the rule for dither).
_RESOLVED_VARIANCE = 0.25
# How wrong the shape of the structure may be that is subtracted: it differs from window to window.
_SHAPE_ERROR = 0.3


@dataclass(frozen=True, slots=True)
class NoiseSample:
    """The autocorrelation on which windows agree.

    Attributes
    ----------
    mean, standard_error : (2R+1, 2R+1) float64 array
        At every lag (dy, dx), lag zero in the middle (1 and 0).
    leftover : (2R+1, 2R+1) float64 array
        How much of each lag structure may account for: its share differs between windows by so much, and the
        mean of a positive quantity is of the order of its spread.
    windows, window_size : int
        Windows taken, and their shorter side in pixels.
    spread : float
        Variance of near lags between windows over what sampling alone gives; about 1 for noise.
    agrees : bool
        Whether spread and range of variances are such as noise may have.
    """

    mean: Floats
    standard_error: Floats
    leftover: Floats
    windows: int
    window_size: int
    spread: float
    agrees: bool


def usable_windows(patches: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the windows that are finite and not constant.

    Raises
    ------
    BadRequest
        When the array is not (n, y, x), or its windows are too small to hold a neighbourhood.
    """
    patches = np.asarray(patches)
    if patches.ndim != 3:
        raise BadRequest("patches have the wrong shape", got=patches.shape, expected="(n, y, x)")
    if min(patches.shape[1:]) < SMALLEST_SIDE:
        expected = f"at least {SMALLEST_SIDE} pixels on a side"
        raise BadRequest(
            "windows are too small to measure noise in", got=patches.shape[1:], expected=expected
        )
    if not len(patches):
        return patches
    flat = patches.reshape(len(patches), -1)
    usable = flat.max(axis=1) > flat.min(axis=1)
    if patches.dtype.kind == "f":
        usable &= np.isfinite(flat).all(axis=1)
    chosen: np.ndarray[Any, Any] = patches[usable]
    return chosen


def quarters(windows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Cut every window in four: flat places are easier to find for small windows. Empty if too small."""
    n, height, width = windows.shape
    y, x = height // 2, width // 2
    if min(y, x) < SMALLEST_SIDE:
        return windows[:0]
    cut = windows[:, : 2 * y, : 2 * x].reshape(n, 2, y, 2, x).swapaxes(2, 3)
    return usable_windows(cut.reshape(4 * n, y, x))


def measure(windows: np.ndarray[Any, Any], reach: int, minimum: int) -> NoiseSample:
    """Take the flattest windows, as many as agree, and subtract what structure is left in them.

    Parameters
    ----------
    windows : (n, y, x) array
        Raw intensities; none constant.
    reach : int
        Largest lag, in pixels.
    minimum : int
        Windows to take at least; n is not less.
    """
    shape = (windows.shape[1], windows.shape[2])
    detrended = lags.detrend(windows, DEGREE)
    if windows.dtype.kind in "iu":
        resolved = detrended.var(axis=(1, 2)) >= _RESOLVED_VARIANCE
        detrended = detrended[resolved] if resolved.sum() >= minimum else detrended
    flattest_first = np.argsort(lags.coarse_share(detrended), kind="stable")
    products = lags.lag_products(detrended[flattest_first], reach)
    variances = products.variances
    correlation = products.autocorrelation()
    correlation = 0.5 * (correlation + correlation[:, ::-1, ::-1])  # symmetric but for rounding
    taken = minimum
    sample = _sample_of(correlation[:taken], variances[:taken], shape)
    while taken < len(correlation):
        # The flattest few may disagree by chance where many more agree: the largest that agrees counts.
        taken = min(max(taken + 1, int(1.25 * taken)), len(correlation))
        larger = _sample_of(correlation[:taken], variances[:taken], shape)
        sample = larger if larger.agrees else sample
    mean = lags.unbiased(correlation[: sample.windows].mean(axis=0), shape, DEGREE)
    sample = replace(sample, mean=mean)
    return _without_structure(sample, correlation, variances, shape) if sample.agrees else sample


def _sample_of(correlation: Floats, variances: Floats, shape: tuple[int, int]) -> NoiseSample:
    """Compare the spread between windows with what sampling alone gives."""
    count, reach = len(correlation), correlation.shape[1] // 2
    # Two steps of the correction are near enough to predict a spread with.
    mean = lags.unbiased(correlation.mean(axis=0), shape, DEGREE, iterations=2)
    between = correlation.var(axis=0, ddof=1)
    # Errors of insignificant lags would add up in the prediction.
    clear = np.abs(mean) > 2.0 * np.sqrt(between / count)
    clear[reach, reach] = True
    sampling = lags.sampling_variance(np.where(clear, mean, 0.0), shape)
    near = (_distance(reach) <= _NEAR) & (sampling > 0)
    near[reach, reach] = False
    # Noise may be a mixture, of photon noise that follows brightness and scan noise that does not: then its
    # own lags differ between windows too, three of the near ones for a row. Structure raises them all.
    ratios = np.sort(between[near] / sampling[near])
    spread = float(ratios[: ratios.size - ratios.size // 8].mean()) if ratios.size else np.inf
    limit = _SPREAD_TOLERANCE + 3.0 * sqrt(2.0 / (_INDEPENDENT_LAGS * (count - 1)))
    error = np.sqrt(np.maximum(between, sampling) / count)
    error[reach, reach] = 0.0
    leftover = np.sqrt(max(spread - 1.0, 0.0) * sampling)
    low, high = np.quantile(variances, (0.1, 0.9))
    agrees = bool(spread <= limit and high <= _VARIANCE_RANGE * low)
    return NoiseSample(mean, error, leftover, count, min(shape), spread, agrees)


def _without_structure(
    sample: NoiseSample, correlation: Floats, variances: Floats, shape: tuple[int, int]
) -> NoiseSample:
    """Subtract the structure's autocorrelation, scaled so that far lags vanish.

    A window's correlation is (1 - f) noise + f structure, f its share of structure. Windows of high variance
    have more of it, so their mean minus that of the others is proportional to structure - noise; and the
    sample's is noise + f (structure - noise). At lags beyond the noise's reach, only the last term is left.
    """
    reach = sample.mean.shape[0] // 2
    bright = variances > np.median(variances)
    if bright.all() or not bright.any():
        return sample
    means = [lags.unbiased(correlation[chosen].mean(axis=0), shape, DEGREE) for chosen in (bright, ~bright)]
    signature = means[0] - means[1]
    far = _distance(reach) > _NEAR + 1
    used = far
    share = uncertainty = 0.0
    for _ in range(6):  # noise that reaches far along a row or column is an outlier here, and left out
        power = float((signature[used] ** 2).sum())
        if power <= 0:
            return sample
        share = float((sample.mean[used] * signature[used]).sum()) / power
        residual = sample.mean - share * signature
        scatter = 1.4826 * float(np.median(np.abs(residual[far] - np.median(residual[far]))))
        # Every lag is there twice.
        uncertainty = scatter * sqrt(2.0 / power)
        used = far & (np.abs(residual) <= 3.0 * scatter)
    structure = share * signature
    # Structure correlates neighbours positively; anything else found here is chance.
    if abs(share) <= 4.0 * uncertainty or structure[_distance(reach) <= _NEAR].mean() <= 0:
        return sample
    error = np.hypot(sample.standard_error, _SHAPE_ERROR * np.abs(structure))
    return replace(sample, mean=sample.mean - structure, standard_error=error)


def _distance(reach: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the larger of |dy| and |dx| at every lag."""
    steps = np.abs(np.arange(-reach, reach + 1))
    return np.maximum(steps[:, None], steps[None, :])
