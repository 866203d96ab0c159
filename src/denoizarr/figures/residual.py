"""Is what was removed noise, or was signal lost?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from denoizarr.errors import BadRequest
from denoizarr.figures import canvas
from denoizarr.figures.noise_kernel import correlation_map, fitted, signed_limit


@dataclass(frozen=True, slots=True)
class IntensityProfile:
    """Mean and spread of the residual among pixels of similar denoised intensity.

    All arrays have one value per bin that holds enough pixels.
    """

    intensity: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    count: np.ndarray


def intensity_profile(
    denoised: Any, residual: Any, *, bins: int = 24, smallest_count: int = 100
) -> IntensityProfile:
    """Bin the residual by denoised intensity.

    Parameters
    ----------
    denoised, residual : array
        Of one shape, any number of axes.
    bins : int
        Bins of equal width between the 0.1 and 99.9 percentiles of ``denoised``.
    smallest_count : int
        Bins with fewer pixels are left out.

    Raises
    ------
    BadRequest
        When the shapes differ.
    """
    values, removed = np.asarray(denoised, np.float64).ravel(), np.asarray(residual, np.float64).ravel()
    if values.shape != removed.shape:
        raise BadRequest(
            "denoised image and residual differ in size", got=removed.shape, expected=values.shape
        )
    finite = np.isfinite(values) & np.isfinite(removed)
    values, removed = values[finite], removed[finite]
    if values.size == 0:
        return IntensityProfile(*(np.zeros(0) for _ in range(4)))
    low, high = np.percentile(values, [0.1, 99.9])
    number = np.clip(((values - low) / max(high - low, 1e-30) * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(number, minlength=bins).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(number, removed, bins) / count
        centre = np.bincount(number, values, bins) / count
        # Around each bin's mean: the difference of two large sums would lose a small variance.
        variance = np.bincount(number, (removed - mean[number]) ** 2, bins) / count
    enough = count >= min(smallest_count, max(values.size // (4 * bins), 1))
    return IntensityProfile(centre[enough], mean[enough], np.sqrt(variance[enough]), count[enough])


def residual_figure(
    residual_autocorrelation: Any,
    mask: Any,
    profile: IntensityProfile | None = None,
    *,
    expected_autocorrelation: Any = None,
    noise_sigma: float | np.ndarray | None = None,
    title: str = "Is what was removed noise?",
) -> Figure:
    """Draw the residual's autocorrelation beside what it should be, and the residual over intensity.

    Parameters
    ----------
    residual_autocorrelation : (odd, odd) array
        Of raw minus denoised, centred, 1 at lag zero.
    mask : (odd, odd) array of bool
        The noise kernel: only inside it may a residual be correlated.
    profile : IntensityProfile, optional
        Mean and spread of the residual by intensity.
    expected_autocorrelation : (odd, odd) array, optional
        The noise's own autocorrelation as measured; shown inside the kernel, zero outside.
    noise_sigma : float or array, optional
        Grey levels; the spread that noise alone would give, one value, or one per bin of ``profile``.
    title : str
        Title of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        Axes in this order: measured, expected, mean over intensity, spread over intensity, colour bar.
        Without ``profile`` mean and spread are left out.
    """
    measured = canvas.plane_of(residual_autocorrelation, "autocorrelation").astype(np.float64)
    shape = tuple(max(size, 3) for size in measured.shape)
    measured = fitted(measured, shape, fill=0.0)
    hidden = fitted(canvas.plane_of(mask, "mask").astype(bool), shape, fill=False)
    expected = np.zeros(shape)
    if expected_autocorrelation is not None:
        expected = fitted(canvas.plane_of(expected_autocorrelation).astype(np.float64), shape, fill=0.0)
        expected = np.where(hidden, np.nan_to_num(expected), 0.0)
    rows = 1 if profile is None or profile.intensity.size == 0 else 2
    figure = canvas.new_canvas(title, _caption(rows == 2), width=11, height=5.2 + 3.6 * (rows - 1))
    panels = figure.subplots(rows, 2, squeeze=False, height_ratios=(1.25, 1)[:rows])
    limit = signed_limit(measured, expected)
    picture = correlation_map(panels[0, 0], measured, hidden, limit=limit)
    canvas.panel_title(panels[0, 0], "Correlation in what was removed")
    correlation_map(panels[0, 1], expected, hidden, limit=limit)
    canvas.panel_title(panels[0, 1], "What it should be: the noise's own")
    if rows == 2 and profile is not None:
        _mean(panels[1, 0], profile)
        _spread(panels[1, 1], profile, noise_sigma)
    canvas.colour_bar(figure, picture, list(panels[0]), "correlation (centre left out)", fraction=0.03)
    return figure


def _mean(axes: Axes, profile: IntensityProfile) -> None:
    error = 2 * profile.std / np.sqrt(np.maximum(profile.count, 1))
    axes.axhline(0, color=canvas.FAINT, linewidth=1)
    axes.fill_between(
        profile.intensity,
        profile.mean - error,
        profile.mean + error,
        color=canvas.SKY,
        alpha=0.4,
        linewidth=0,
    )
    axes.plot(profile.intensity, profile.mean, color=canvas.BLUE, marker="o", markersize=3.5)
    # A tenth of the noise at the least: a scale that fits a tiny bias would make it look like a large one.
    reach = max(1.15 * float(np.abs(profile.mean).max()), 0.1 * float(profile.std.mean()), 1e-12)
    axes.set_ylim(-reach, reach)
    canvas.panel_title(axes, "Mean removed (should be zero)")
    canvas.plain_plot(axes, x_label="denoised intensity (grey levels)", y_label="grey levels")


def _spread(axes: Axes, profile: IntensityProfile, noise_sigma: float | np.ndarray | None) -> None:
    axes.plot(profile.intensity, profile.std, color=canvas.BLUE, marker="o", markersize=3.5, label="removed")
    highest = float(profile.std.max())
    if noise_sigma is not None:
        wanted = np.broadcast_to(np.asarray(noise_sigma, np.float64), profile.intensity.shape)
        highest = max(highest, float(wanted.max()))
        axes.plot(
            profile.intensity,
            wanted,
            color=canvas.VERMILION,
            linestyle="--",
            label="noise, measured in flat parts",
        )
        axes.legend(frameon=False, fontsize=canvas.TEXT_SIZE, loc="best")
    axes.set_ylim(0, 1.3 * max(highest, 1e-12))
    canvas.panel_title(axes, "Spread of what was removed")
    canvas.plain_plot(
        axes, x_label="denoised intensity (grey levels)", y_label="standard deviation (grey levels)"
    )


def _caption(with_profile: bool) -> str:
    text = (
        "Top: noise agrees with itself only inside the outline. Colour outside the outline of the left map, "
        "where the right one is white, means that structure was removed with the noise."
    )
    if with_profile:
        text += (
            " Bottom left: averaged over many pixels of one brightness, noise cancels; a line that leaves "
            "zero at the bright end means that bright structures were dimmed (above zero) or inflated "
            "(below). Bottom right: the spread should be that of the noise; more means lost signal, less "
            "means noise left."
        )
    return text
