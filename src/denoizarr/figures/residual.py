"""Is what was removed noise, or was signal lost?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

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


@dataclass(frozen=True, slots=True)
class CorrelationView:
    """Correlation of what was removed, in one kind of places.

    Attributes
    ----------
    autocorrelation : (odd, odd) array
        Of raw minus denoised, centred, 1 at lag zero.
    chance : float
        What sampling alone could give at a lag.
    marked : (odd, odd) array of bool
        Correlation that should not be there.
    windows : int
        How many windows were averaged.
    """

    autocorrelation: np.ndarray
    chance: float
    marked: np.ndarray
    windows: int


def residual_figure(
    background: CorrelationView,
    signal: CorrelationView | None,
    mask: Any,
    *,
    expected_autocorrelation: Any = None,
    title: str = "Is what was removed noise?",
) -> Figure:
    """Draw the residual's autocorrelation on background and on signal: maps, and cuts along x and y.

    Parameters
    ----------
    background : CorrelationView
    signal : CorrelationView or None
        None where there are too few places with structure; its map is then left empty.
    mask : (odd, odd) array of bool
        The noise kernel: only inside it may a residual be correlated. Outlined.
    expected_autocorrelation : (odd, odd) array, optional
        The noise's own autocorrelation as measured; dashed in the cuts.
    title : str
        Title of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        Axes in this order: map on background, map on signal, cut along x, cut along y, colour bar.

    Raises
    ------
    BadRequest
        When a map is not a plane.
    """
    views = [("background", background), ("signal", signal)]
    maps = [canvas.plane_of(view.autocorrelation).astype(np.float64) for _, view in views if view]
    shape = tuple(max(size, 3) for size in maps[0].shape)
    hidden = fitted(canvas.plane_of(mask, "mask").astype(bool), shape, fill=False)
    expected = None
    if expected_autocorrelation is not None:
        given = canvas.plane_of(expected_autocorrelation, "expected autocorrelation").astype(np.float64)
        expected = fitted(given, shape, fill=np.nan)
    limit = signed_limit(*maps, *([] if expected is None else [np.nan_to_num(expected)]))
    any_marks = any(view is not None and bool(view.marked.any()) for _, view in views)
    figure = canvas.new_canvas(title, _caption(any_marks, expected is not None), width=11, height=8.8)
    panels = figure.subplots(2, 2, height_ratios=(1.3, 1))
    for axes, (name, view) in zip(panels[0], views, strict=True):
        if view is None:
            canvas.without_ticks(axes)
            axes.text(0.5, 0.5, f"too little {name} to measure", ha="center", color=canvas.FAINT)
        else:
            drawn = fitted(np.asarray(view.autocorrelation, np.float64), shape, fill=np.nan)
            correlation_map(axes, drawn, hidden, limit=limit)
            _marks(axes, fitted(np.asarray(view.marked, bool), shape, fill=False))
        count = "" if view is None else f" ({view.windows} windows)"
        canvas.panel_title(axes, f"What was removed on {name}{count}")
    for axis, axes in ((1, panels[1, 0]), (0, panels[1, 1])):
        _cut(axes, views, expected, shape, axis, limit)
    picture = panels[0, 0].images[0]
    canvas.colour_bar(figure, picture, list(panels[0]), "correlation (centre left out)", fraction=0.03)
    return figure


def intensity_profile_figure(
    profile: IntensityProfile,
    noise_sigma: float | np.ndarray | None = None,
    *,
    title: str = "What was removed, by brightness",
) -> Figure:
    """Draw mean and spread of the residual over intensity.

    Parameters
    ----------
    profile : IntensityProfile
        Mean and spread of the residual by denoised intensity.
    noise_sigma : float or array, optional
        Grey levels; the spread that noise alone would give, one value, or one per bin of ``profile``.
    title : str
        Title of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        Axes in this order: mean, spread.
    """
    figure = canvas.new_canvas(title, _PROFILE_CAPTION, width=11, height=4.6)
    panels = figure.subplots(1, 2)
    _mean(panels[0], profile)
    _spread(panels[1], profile, noise_sigma)
    return figure


def _marks(axes: Axes, marked: np.ndarray) -> None:
    """Put a ring on every correlation that should not be there."""
    rows, columns = np.nonzero(marked)
    if rows.size:
        reach_y, reach_x = (size // 2 for size in marked.shape)
        axes.plot(
            columns - reach_x,
            rows - reach_y,
            linestyle="none",
            marker="o",
            markersize=6,
            markerfacecolor="none",
            markeredgecolor=canvas.ORANGE,
            markeredgewidth=1.4,
        )


def _cut(
    axes: Axes,
    views: list[tuple[str, CorrelationView | None]],
    expected: np.ndarray | None,
    shape: tuple[int, ...],
    axis: int,
    limit: float,
) -> None:
    """Draw the line through the centre of every map, one side of it: the other is its mirror image."""
    name, middle, reach = "yx"[axis], shape[1 - axis] // 2, shape[axis] // 2
    lags = np.arange(1, reach + 1)
    axes.axhline(0, color=canvas.FAINT, linewidth=0.8)
    colours = {"background": canvas.BLUE, "signal": canvas.VERMILION}
    shifts = {"background": -0.07, "signal": 0.07}
    for place, view in views:
        if view is None:
            continue
        whole = fitted(np.asarray(view.autocorrelation, np.float64), shape, fill=np.nan)
        profile = np.take(whole, middle, axis=1 - axis)[reach + 1 :]
        # Of each its own: where windows are few, chance reaches further.
        axes.axhspan(-view.chance, view.chance, color=colours[place], alpha=0.13, linewidth=0)
        axes.plot(
            lags + shifts[place], profile, marker="o", markersize=4, color=colours[place], label=f"on {place}"
        )
    if expected is not None:
        profile = np.take(expected, middle, axis=1 - axis)[reach + 1 :]
        axes.plot(lags, profile, linestyle="--", linewidth=1.4, color=canvas.INK, label="the noise itself")
    canvas.panel_title(axes, f"Cut along {name}")
    canvas.plain_plot(axes, x_label=f"distance along {name} (pixels)", y_label="correlation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, min_n_ticks=1))
    lowest = min(0.0, *(float(np.nanmin(line.get_ydata())) for line in axes.lines))
    axes.set_ylim(min(1.15 * lowest, -0.25 * limit), 1.3 * limit)
    axes.set_xlim(0.5, reach + 0.5)
    band = Patch(facecolor=canvas.FAINT, alpha=0.3, label="could be chance, in the colour of each")
    handles = [*axes.get_legend_handles_labels()[0], band]
    axes.legend(handles=handles, frameon=False, fontsize=canvas.TEXT_SIZE, loc="upper right")


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


def _caption(any_marks: bool, expected: bool) -> str:
    text = (
        "Each square says how strongly what was removed at two pixels of that distance agrees. Noise agrees "
        "only inside the outline, the noise kernel; negative values beside it are usual, for a little of "
        "each pixel's noise stays in its neighbours' results. "
    )
    text += (
        "Ringed in orange: correlation that chance and the kernel do not explain. On background it is noise "
        "beyond the kernel; on signal, where it exceeds the background's, it is structure that was removed."
        if any_marks
        else "Nothing is ringed: no correlation is left that chance and the kernel do not explain."
    )
    return f"{text} Dashed: the noise as it was measured." if expected else text


_PROFILE_CAPTION = (
    "Left: averaged over all pixels to which the result gives one brightness, noise cancels. Where the line "
    "lies above zero, the result is too dark on average, below zero too bright. Right: the spread should be "
    "that of the noise; more means lost signal, less means noise left."
)
