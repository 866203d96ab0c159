"""BM3D, in an environment of its own: numpy, scipy and bm3d only.

Noise of a camera or a photomultiplier grows with the signal, so the image is first stabilised: a generalised
Anscombe transform with the gain and the variance at zero that are measured on the noisy image, BM3D with
deviation 1, and the closed form of the exact unbiased inverse (Makitalo and Foi, IEEE TIP 22, 2013, eq. 10).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

Pixels = np.ndarray[Any, Any]

_BIN_PIXELS = 500
_WINDOW = 32
# Autocovariances of windows beyond this lag are chance.
_LAGS = 10
_FLATTEST = 0.15


def denoise(settings: dict[str, Any]) -> tuple[Pixels, dict[str, Any]]:
    """Denoise an array, (y, x) or plane by plane.

    ``settings["noise"]`` says what is known of its noise: "signal dependent" (measured, white once
    stabilised), "signal dependent, spectrum" (its spectrum is measured, too), "known spectrum" (of a file),
    "lines, then white" (a sinusoid is measured and taken off first, the deviation is then measured).
    """
    noisy = np.load(settings["noisy"]).astype(np.float64)
    started = time.process_time()
    planes = noisy.reshape(-1, *noisy.shape[-2:])
    found = [_PLANES[settings["noise"]](plane, settings) for plane in planes]
    denoised = np.stack([plane for plane, _ in found]).reshape(noisy.shape)
    facts = {name: [facts[name] for _, facts in found] for name in found[0][1]}
    facts = {name: values[0] if len(values) == 1 else values for name, values in facts.items()}
    return denoised.astype(np.float32), {"cpu_seconds": time.process_time() - started, "noise": facts}


def _signal_dependent(plane: Pixels, _settings: dict[str, Any]) -> tuple[Pixels, dict[str, Any]]:
    gain, at_zero = noise_parameters(plane)
    stabilised = anscombe(plane, gain, at_zero)
    return inverse(_bm3d(stabilised, 1.0), gain, at_zero), {"gain": gain, "variance_at_zero": at_zero}


def _with_spectrum(plane: Pixels, _settings: dict[str, Any]) -> tuple[Pixels, dict[str, Any]]:
    gain, at_zero = noise_parameters(plane)
    stabilised = anscombe(plane, gain, at_zero)
    spectrum = flat_spectrum(stabilised)
    denoised = inverse(_bm3d(stabilised, spectrum), gain, at_zero)
    deviation = float(np.sqrt(spectrum.mean() / spectrum.size))
    return denoised, {"gain": gain, "variance_at_zero": at_zero, "stabilised_deviation": deviation}


def _known_spectrum(plane: Pixels, settings: dict[str, Any]) -> tuple[Pixels, dict[str, Any]]:
    return _bm3d(plane, np.load(settings["spectrum"])), {}


def _lines_then_white(plane: Pixels, _settings: dict[str, Any]) -> tuple[Pixels, dict[str, Any]]:
    line, period, amplitude = sinusoid(plane)
    deviation = white_deviation(plane - line)
    return _bm3d(plane - line, deviation), {"period": period, "amplitude": amplitude, "deviation": deviation}


_PLANES = {
    "signal dependent": _signal_dependent,
    "signal dependent, spectrum": _with_spectrum,
    "known spectrum": _known_spectrum,
    "lines, then white": _lines_then_white,
}


def _bm3d(plane: Pixels, noise: float | Pixels) -> Pixels:
    """Call it with intensities in 0..1, as its authors do; a spectrum scales with the square."""
    import bm3d

    lowest, extent = float(plane.min()), float(np.ptp(plane))
    scaled = noise / extent if isinstance(noise, float) else noise / extent**2
    denoised: Pixels = bm3d.bm3d((plane - lowest) / extent, scaled)
    return denoised * extent + lowest


# ---- the noise, from the noisy image


def diagonal_differences(plane: Pixels) -> Pixels:
    """Return second differences along both axes: little structure stays, white noise keeps its deviation."""
    along_y = plane[:-2] - 2 * plane[1:-1] + plane[2:]
    return np.asarray(along_y[:, :-2] - 2 * along_y[:, 1:-1] + along_y[:, 2:]) / 6


def white_deviation(plane: Pixels) -> float:
    """Return the deviation of white noise, from the median absolute value of the diagonal differences."""
    differences = diagonal_differences(plane)
    return float(np.median(np.abs(differences - np.median(differences))) * 1.4826)


def noise_parameters(plane: Pixels) -> tuple[float, float]:
    """Return gain and variance at zero of noise with variance = gain x intensity + variance at zero.

    Pixels are sorted by a local mean; in every bin the mean square of the diagonal differences is a variance
    (a median would be too low where a few photons make the noise skewed), and a line is fitted through the
    variances, bins far from it counting less (weights of the absolute deviation, 30 rounds). The brightest,
    clipped pixels are left out.
    """
    from scipy.ndimage import uniform_filter

    means = uniform_filter(plane, 5)[1:-1, 1:-1].ravel()
    differences = diagonal_differences(plane).ravel()
    unclipped = means < 0.95 * plane.max()
    order = np.argsort(means[unclipped])
    bins = np.array_split(order, max(order.size // _BIN_PIXELS, 4))
    level = np.array([means[unclipped][b].mean() for b in bins])
    variance = np.array([np.mean(differences[unclipped][b] ** 2) for b in bins])
    # A measured variance is uncertain in proportion to itself.
    certainty = 1 / np.maximum(variance, np.median(variance) * 0.05)
    weights = np.ones_like(level)
    for _ in range(30):
        gain, at_zero = np.polyfit(level, variance, 1, w=certainty * np.sqrt(weights))
        off = np.abs(variance - gain * level - at_zero) * certainty
        weights = 1 / np.maximum(off, 0.02)
    return max(float(gain), 1e-3), float(at_zero)


def flat_spectrum(plane: Pixels) -> Pixels:
    """Return the noise's power spectrum at the plane's size, from its flattest windows.

    Their planes of best fit are taken off, their autocovariances averaged up to lag 10 and transformed.
    """
    step = _WINDOW // 2
    windows = np.lib.stride_tricks.sliding_window_view(plane, (_WINDOW, _WINDOW))[::step, ::step]
    windows = windows.reshape(-1, _WINDOW, _WINDOW)
    y, x = np.mgrid[:_WINDOW, :_WINDOW] / _WINDOW
    shape = np.stack([np.ones_like(x), x, y, x * y, x**2, y**2], axis=-1).reshape(-1, 6)
    projection = shape @ np.linalg.pinv(shape)
    flat = windows.reshape(len(windows), -1)
    rest = (flat - flat @ projection.T).reshape(windows.shape)
    quietest = np.argsort(rest.var(axis=(1, 2)))[: max(int(_FLATTEST * len(rest)), 8)]
    padded = np.fft.rfft2(rest[quietest], s=(2 * _WINDOW, 2 * _WINDOW))
    products = np.fft.irfft2(np.mean(np.abs(padded) ** 2, axis=0))
    pairs = np.fft.irfft2(
        np.abs(np.fft.rfft2(np.ones((_WINDOW, _WINDOW)), s=(2 * _WINDOW, 2 * _WINDOW))) ** 2
    )
    lags = np.arange(-_LAGS, _LAGS + 1)
    taper = np.cos(np.pi / 2 * lags / (_LAGS + 1)) ** 2
    near = np.ix_(lags, lags)
    covariance = products[near] / pairs[near] * taper[:, None] * taper
    whole = np.zeros(plane.shape)
    whole[near] = covariance
    spectrum = np.fft.fft2(whole).real
    return np.asarray(np.maximum(spectrum, 0.01 * spectrum.mean()) * plane.size)


def sinusoid(plane: Pixels) -> tuple[Pixels, float, float]:
    """Return the strongest sinusoid along x that all rows share, its period in pixels and its amplitude."""
    from scipy.ndimage import median_filter

    rows, finer = plane.mean(axis=0), 16
    window = np.hanning(rows.size)
    # Of second differences: what is left of an image is then about as strong at all frequencies.
    power = np.abs(np.fft.rfft(np.diff(rows, 2) * window[1:-1], finer * rows.size)) ** 2
    surroundings = median_filter(power, finer * rows.size // 20, mode="nearest")
    first = finer * rows.size // 32  # slower ones would be structure
    peak = first + int(np.argmax((power / surroundings)[first:]))
    fits = [_fit(rows, window, (peak + part) / (finer * rows.size)) for part in np.linspace(-6, 6, 49)]
    _, frequency, weights = min(fits, key=lambda fit: fit[0])
    line = _waves(rows.size, frequency) @ weights[:2]
    return np.broadcast_to(line, plane.shape), float(1 / frequency), float(np.hypot(*weights[:2]))


def _waves(size: int, frequency: float) -> Pixels:
    phase = 2 * np.pi * frequency * np.arange(size)
    return np.stack([np.cos(phase), np.sin(phase)], axis=1)


def _fit(rows: Pixels, window: Pixels, frequency: float) -> tuple[float, float, Pixels]:
    """Return what a sinusoid of one frequency and a smooth background leave, and the sinusoid's weights."""
    x = np.linspace(-1, 1, rows.size)
    basis = np.concatenate([_waves(rows.size, frequency), np.polynomial.legendre.legvander(x, 12)], axis=1)
    basis, wanted = basis * window[:, None], rows * window
    weights = np.linalg.lstsq(basis, wanted, rcond=None)[0]
    return float(np.sum((wanted - basis @ weights) ** 2)), frequency, weights


# ---- stabilising


def anscombe(plane: Pixels, gain: float, at_zero: float) -> Pixels:
    """Return values whose noise has deviation 1 whatever the signal."""
    return np.asarray(2 * np.sqrt(np.maximum(plane / gain + 3 / 8 + at_zero / gain**2, 0)))


def inverse(stabilised: Pixels, gain: float, at_zero: float) -> Pixels:
    """Return the means that belong to denoised stabilised values: not the plain inverse, which is too low."""
    d = np.maximum(stabilised, 2 * np.sqrt(3 / 8))
    root = np.sqrt(3 / 2)
    mean = d**2 / 4 + root / (4 * d) - 11 / (8 * d**2) + 5 * root / (8 * d**3) - 1 / 8
    return np.asarray((mean - at_zero / gain**2) * gain)
