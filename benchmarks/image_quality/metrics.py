"""How good a denoised array is: against the truth, or, where there is none, by what was taken away."""

from __future__ import annotations

from typing import Any

import numpy as np

Pixels = np.ndarray[Any, Any]
# Of what is kept: a number of an older version is computed again from the array.
VERSION = 4
PEAK = 255.0
SSIM_WINDOW = 7
BIAS_BINS = 16
# A bin's mean says little of fewer: the noise of a single pixel is not bias.
BIN_PIXELS = 100


def psnr(truth: Pixels, predicted: Pixels) -> float:
    """Return the peak signal-to-noise ratio in dB, with the peak of 8-bit images."""
    truth, predicted = truth.astype(np.float64), predicted.astype(np.float64)
    return float(10 * np.log10(PEAK**2 / np.mean((truth - predicted) ** 2)))


def above_own_range(truth: Pixels) -> float:
    """Return how many dB the PSNR lies above that with the truth's own range as its peak."""
    return float(20 * np.log10(PEAK / np.ptp(truth.astype(np.float64))))


def best_affine(truth: Pixels, predicted: Pixels) -> Pixels:
    """Return the prediction after the gain and the offset that bring it closest to the truth."""
    predicted = predicted.astype(np.float64)
    centred = predicted - predicted.mean()
    offset = truth.mean(dtype=np.float64)
    gain = float(np.sum(centred * (truth - offset)) / max(float(np.sum(centred**2)), 1e-30))
    return np.asarray(gain * centred + offset)


def ssim(truth: Pixels, predicted: Pixels) -> float:
    """Return the mean structural similarity; uniform windows, the data range is the range of the truth."""
    from skimage.metrics import structural_similarity

    truth = truth.astype(np.float64)
    return float(
        structural_similarity(
            truth, predicted.astype(np.float64), win_size=SSIM_WINDOW, data_range=float(np.ptp(truth))
        )
    )


def bias(truth: Pixels, predicted: Pixels, *, by: Pixels | None = None) -> list[dict[str, float]]:
    """Return the mean error in equal bins of the truth's range, in per cent of that range.

    Parameters
    ----------
    by : array, optional
        What sorts the pixels into bins; the truth without. By the prediction it says whether a mean of output
        values can be believed; by the truth also how much of a sharp peak is lost, as with any smoothing.

    Returns
    -------
    list of dict
        ``lower``, ``upper``: of the bin, in grey levels. ``pixels``: in it. ``bias``: mean of prediction less
        truth, per cent of the range; ``error``: its standard error, pixels taken as independent. Bins with
        fewer than ``BIN_PIXELS`` pixels are left out.
    """
    values = truth.astype(np.float64).ravel()
    error = predicted.astype(np.float64).ravel() - values
    edges = np.linspace(values.min(), values.max(), BIAS_BINS + 1)
    sorter = values if by is None else by.astype(np.float64).ravel()
    bins = np.clip(np.digitize(sorter, edges) - 1, 0, BIAS_BINS - 1)
    per_cent = 100 / np.ptp(values)
    found = []
    for number in range(BIAS_BINS):
        here = error[bins == number]
        if here.size >= BIN_PIXELS:
            found.append(
                {
                    "lower": float(edges[number]),
                    "upper": float(edges[number + 1]),
                    "pixels": int(here.size),
                    "bias": float(here.mean() * per_cent),
                    "error": float(here.std() / np.sqrt(here.size) * per_cent),
                }
            )
    return found


def correlation_at(planes: Pixels, dy: int, dx: int) -> float:
    """Return the correlation of pixels (dy, dx) apart, over planes (n, y, x), each less its own mean."""
    values = planes.astype(np.float64) - planes.mean(axis=(-2, -1), dtype=np.float64, keepdims=True)
    y, x = values.shape[-2:]
    near, far = values[..., : y - dy, : x - dx], values[..., dy:, dx:]
    return float(np.mean(near * far) / np.mean(values**2))


def with_truth(truth: Pixels, predicted: Pixels) -> dict[str, Any]:
    """Return the figures of an array whose truth is known."""
    fitted = best_affine(truth, predicted)
    return {
        "psnr": psnr(truth, predicted),
        "si_psnr": psnr(truth, fitted),
        "ssim": ssim(truth, predicted),
        "si_ssim": ssim(truth, fitted),
        "bias": bias(truth, predicted),
        "bias_by_output": bias(truth, predicted, by=predicted),
    }


def rows_left(noisy: Pixels, predicted: Pixels) -> float:
    """Return what an output's background keeps of noise along rows, as a share of the noisy variance.

    A denoised background is smooth, so its neighbours correlate in all directions; scan noise is what they
    have along x more than along y: the covariance at x=1 less that at y=1. Background are the flattest 15 %
    of windows of 32 x 32, by the variance of the noisy stack blurred by 3 pixels; each loses the quadratic
    surface that fits it best.

    Parameters
    ----------
    noisy, predicted : (z, y, x) array
    """
    from scipy.ndimage import gaussian_filter

    blurred = np.stack([gaussian_filter(plane.astype(np.float64), 3) for plane in noisy])
    detail = _windows(blurred).var(axis=(1, 2))
    flat = detail <= np.quantile(detail, 0.15)
    # Slopes would add to the variance, and make what is left look less.
    kept, whole = (_levelled(_windows(stack.astype(np.float64))[flat]) for stack in (predicted, noisy))
    along_x, along_y = np.mean(kept[:, :, 1:] * kept[:, :, :-1]), np.mean(kept[:, 1:] * kept[:, :-1])
    return float((along_x - along_y) / np.mean(whole**2))


def _windows(stack: Pixels, side: int = 32) -> Pixels:
    """Return the stack's windows (n, side, side), next to each other; short ones at the ends are left out."""
    z, y, x = stack.shape[0], stack.shape[1] // side, stack.shape[2] // side
    cut = stack[:, : y * side, : x * side].reshape(z, y, side, x, side)
    return cut.transpose(0, 1, 3, 2, 4).reshape(-1, side, side)


def _levelled(windows: Pixels) -> Pixels:
    """Return windows (n, side, side) less the quadratic surface that fits each best."""
    y, x = np.mgrid[-1 : 1 : windows.shape[1] * 1j, -1 : 1 : windows.shape[2] * 1j]
    surfaces = np.stack([np.ones_like(x), x, y, x * y, x**2, y**2], axis=-1).reshape(-1, 6)
    flat = windows.reshape(len(windows), -1)
    return np.asarray(flat - flat @ np.linalg.pinv(surfaces).T @ surfaces.T).reshape(windows.shape)


def without_truth(noisy: Pixels, predicted: Pixels) -> dict[str, Any]:
    """Return the figures of a stack (z, y, x) without truth.

    ``residual_x1``, ``residual_y1``: correlation of neighbours along x and y in what was taken away (noise of
    the scan along rows; of structure there would be as much along y). ``removed_deviation``: its standard
    deviation. ``rows_left``: see :func:`rows_left`. ``slices_rms``: root mean square difference of
    neighbouring slices, in grey levels: their noise differs, their structure hardly does.
    ``slices_correlation``: of neighbouring slices.
    """
    noisy, predicted = noisy.astype(np.float64), predicted.astype(np.float64)
    residual = noisy - predicted
    figures: dict[str, Any] = {"removed_deviation": float(residual.std())}
    if residual.std() > 0:
        figures["residual_x1"] = correlation_at(residual, 0, 1)
        figures["residual_y1"] = correlation_at(residual, 1, 0)
    figures["rows_left"] = rows_left(noisy, predicted)
    figures["slices_rms"] = float(np.sqrt(np.mean(np.diff(predicted, axis=0) ** 2)))
    centred = predicted - predicted.mean(axis=(1, 2), keepdims=True)
    figures["slices_correlation"] = float(np.mean(centred[1:] * centred[:-1]) / np.mean(centred**2))
    return figures
