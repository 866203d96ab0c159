"""How far noise is correlated, and which pixels are therefore hidden in training."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from denoizarr.errors import BadRequest
from denoizarr.figures import canvas

# From nearly white to a grey on which the outline and the dot are still seen.
_KERNEL_COLOURS = LinearSegmentedColormap.from_list("kernel", ("#f0f0f0", "#9e9e9e"))

# Lags to each side over which the standard error is taken as one.
_NEIGHBOURHOOD = 8


def noise_kernel_figure(
    mask: Any,
    autocorrelation: Any,
    z_scores: Any = None,
    *,
    z_threshold: float = 4.0,
    title: str = "The shape of the noise",
) -> Figure:
    """Draw the noise's autocorrelation with the blind-spot kernel that was made from it.

    Parameters
    ----------
    mask : array of bool of odd sides
        The kernel, (y, x), centred; True is hidden. Of (z, y, x) the middle plane is drawn, here and below.
    autocorrelation : array of odd sides
        Correlation at each lag, (y, x), centred, 1 at lag zero; of any odd shape.
    z_scores : array of odd sides, optional
        Correlation over its standard error, as ``autocorrelation``; gives the significance floor. Zero where
        nothing was tested.
    z_threshold : float
        Standard errors that count as significant.
    title : str
        Title of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        Axes in this order: heat map, kernel, cross-section along x, along y, colour bar.

    Raises
    ------
    BadRequest
        When an array has not two or three odd sides.
    """
    volume = np.asarray(mask)
    mask, autocorrelation = middle_plane(volume), middle_plane(autocorrelation)
    z_scores = None if z_scores is None or not np.any(z_scores) else middle_plane(z_scores)
    hidden = _centred(mask, "mask").astype(bool)
    correlation = _centred(autocorrelation, "autocorrelation").astype(np.float64)
    shape = tuple(max(sides) for sides in zip(hidden.shape, correlation.shape, (3, 3), strict=True))
    correlation = fitted(correlation, (shape[0], shape[1]), fill=np.nan)
    hidden = fitted(hidden, correlation.shape, fill=False)
    floor = None
    if z_scores is not None:
        scores = fitted(_centred(z_scores, "z-scores").astype(np.float64), correlation.shape, fill=np.nan)
        floor = z_threshold * _standard_errors(correlation, scores, hidden)

    caption = _caption(volume, floor is not None, z_threshold)
    figure = canvas.new_canvas(title, caption, width=11, height=8.2)
    panels = figure.subplots(2, 2, height_ratios=(1.35, 1))
    limit = signed_limit(correlation)
    if floor is not None and np.isfinite(floor).any():
        limit = max(limit, float(np.nanmedian(floor)))
    seen = _worth_seeing(correlation, hidden, limit)
    shown, outlined = (
        fitted(array, seen, fill=fill) for array, fill in ((correlation, np.nan), (hidden, False))
    )
    picture = correlation_map(panels[0, 0], shown, outlined, limit=limit)
    canvas.panel_title(panels[0, 0], "Correlation of the noise")
    # The kernel with a little around it: at the map's scale a small one would be a dot.
    near = [
        2 * min(size // 2, reach + 3) + 1 for size, reach in zip(hidden.shape, _reach(hidden), strict=True)
    ]
    _kernel(panels[0, 1], fitted(hidden, (max(near), max(near)), fill=False))
    _section(panels[1, 0], correlation, hidden, floor, axis=1, limit=limit)
    _section(panels[1, 1], correlation, hidden, floor, axis=0, limit=limit)
    canvas.colour_bar(figure, picture, panels[0, 0], "correlation (centre left out)")
    return figure


def _standard_errors(correlation: np.ndarray, scores: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Return the standard error of every lag; NaN where nothing was tested.

    It changes slowly with the lag. A single quotient of two numbers near zero, measured at different
    frequencies, does not: beside the kernel it is the median over the neighbourhood.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.abs(correlation / scores)
    own[~np.isfinite(own)] = np.nan
    width = 2 * _NEIGHBOURHOOD + 1
    beside = np.pad(np.where(hidden, np.nan, own), _NEIGHBOURHOOD, constant_values=np.nan)
    around = np.lib.stride_tricks.sliding_window_view(beside, (width, width)).reshape(*own.shape, -1)
    known = np.isfinite(around).any(axis=-1)
    typical = np.full(own.shape, np.nan)
    typical[known] = np.nanmedian(around[known], axis=-1)
    return np.where(hidden, own, typical)


def correlation_map(axes: Axes, correlation: np.ndarray, hidden: np.ndarray, *, limit: float) -> Any:
    """Draw a centred autocorrelation with the centre grey and the kernel outlined.

    Parameters
    ----------
    axes : Axes
        Where to draw.
    correlation : (odd, odd) array
        Centred; NaN is left white.
    hidden : (odd, odd) array of bool
        The kernel at the same shape.
    limit : float
        The colour scale runs from minus to plus this.
    """
    reach_y, reach_x = (size // 2 for size in correlation.shape)
    shown = correlation.copy()
    shown[reach_y, reach_x] = np.nan
    extent = (-reach_x - 0.5, reach_x + 0.5, reach_y + 0.5, -reach_y - 0.5)
    picture = axes.imshow(
        shown,
        cmap=canvas.SIGNED_MAP,
        vmin=-limit,
        vmax=limit,
        extent=extent,
        interpolation="nearest",
        aspect="equal",
    )
    axes.add_patch(_square(0, 0, facecolor="#9a9a9a"))
    axes.add_collection(LineCollection(mask_outline(hidden), colors=canvas.INK, linewidths=1.6))
    _lag_axes(axes)
    return picture


def _worth_seeing(correlation: np.ndarray, hidden: np.ndarray, limit: float) -> tuple[int, int]:
    """Return how much of a map to show: the kernel, what is strong, and a little around."""
    strong = np.abs(np.nan_to_num(correlation)) >= 0.25 * limit
    strong[tuple(size // 2 for size in strong.shape)] = False
    wanted = max(*(reach + 4 for reach in _reach(hidden)), *(reach + 2 for reach in _reach(strong)), 8)
    height, width = (2 * min(size // 2, wanted) + 1 for size in correlation.shape)
    return height, width


def kernel_panel(axes: Axes, hidden: np.ndarray) -> Any:
    """Draw a kernel around the pixel that is predicted; returns the image, 0 (seen) to 1 (hidden).

    Parameters
    ----------
    axes : Axes
        Where to draw.
    hidden : (odd, odd) array
        Of bool, or of shares of several kernels; where there is any share, an outline is drawn.
    """
    reach_y, reach_x = (size // 2 for size in hidden.shape)
    picture = axes.imshow(
        hidden.astype(np.float64),
        cmap=_KERNEL_COLOURS,
        vmin=0,
        vmax=1,
        extent=(-reach_x - 0.5, reach_x + 0.5, reach_y + 0.5, -reach_y - 0.5),
        interpolation="nearest",
    )
    axes.add_collection(LineCollection(mask_outline(hidden > 0), colors=canvas.INK, linewidths=1.6))
    axes.plot(0, 0, marker="o", color=canvas.VERMILION, markersize=7, linestyle="none")
    _lag_axes(axes)
    return picture


def middle_plane(array: Any) -> np.ndarray:
    """Return the plane of the predicted voxel of a centred array over (z, y, x); one over (y, x) as it is."""
    values = np.asarray(array)
    return values[len(values) // 2] if values.ndim == 3 and len(values) % 2 else values


def signed_limit(*correlations: np.ndarray) -> float:
    """Largest correlation away from the centre of any of these, for one symmetric colour scale."""
    largest = 0.0
    for correlation in correlations:
        aside = np.abs(correlation.astype(np.float64))
        aside[tuple(size // 2 for size in aside.shape)] = 0
        if np.isfinite(aside).any():
            largest = max(largest, float(np.nanmax(aside)))
    # Below this, what is there is estimation noise, and full colour would make it look like a finding.
    return max(largest, 0.05)


def fitted(array: np.ndarray, shape: tuple[int, ...], *, fill: Any) -> np.ndarray:
    """Crop or pad a centred array of odd shape to another odd shape, keeping the centre."""
    result = np.full(shape, fill, dtype=array.dtype)
    source, target = [], []
    for have, want in zip(array.shape, shape, strict=True):
        reach = min(have, want) // 2
        source.append(slice(have // 2 - reach, have // 2 + reach + 1))
        target.append(slice(want // 2 - reach, want // 2 + reach + 1))
    result[tuple(target)] = array[tuple(source)]
    return result


def mask_outline(hidden: np.ndarray) -> list[list[tuple[float, float]]]:
    """Edges between hidden and other pixels, as segments of (x, y) lags around the centre."""
    padded = np.pad(hidden, 1)
    middle_y, middle_x = (size // 2 for size in hidden.shape)
    segments: list[list[tuple[float, float]]] = []
    for y, line in enumerate(padded[1:, 1:-1] != padded[:-1, 1:-1]):
        height = y - middle_y - 0.5
        segments += [[(a - middle_x - 0.5, height), (b - middle_x - 0.5, height)] for a, b in _runs(line)]
    for x, line in enumerate((padded[1:-1, 1:] != padded[1:-1, :-1]).T):
        side = x - middle_x - 0.5
        segments += [[(side, a - middle_y - 0.5), (side, b - middle_y - 0.5)] for a, b in _runs(line)]
    return segments


def _runs(line: np.ndarray) -> list[tuple[int, int]]:
    """Return first and end of every run of True: one long stroke has no joints to be seen."""
    steps = np.flatnonzero(np.diff(np.concatenate([[False], line, [False]])))
    return [(int(first), int(end)) for first, end in steps.reshape(-1, 2)]


def _centred(array: Any, what: str) -> np.ndarray:
    values = canvas.plane_of(array, what)
    if any(size % 2 == 0 for size in values.shape):
        raise BadRequest(f"the {what} has no centre", got=f"shape {values.shape}", expected="odd sides")
    return values


def _square(y: int, x: int, **colours: Any) -> Any:
    return Rectangle((x - 0.5, y - 0.5), 1, 1, edgecolor="none", **colours)


def _lag_axes(axes: Axes) -> None:
    canvas.plain_plot(axes, x_label="distance along x (pixels)", y_label="distance along y (pixels)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
    axes.spines[["left", "bottom"]].set_visible(False)


def _reach(hidden: np.ndarray) -> tuple[int, int]:
    """Return how far from the centre the kernel goes, (y, x)."""
    offsets = np.abs(np.argwhere(hidden) - np.array(hidden.shape) // 2)
    return int(offsets[:, 0].max(initial=0)), int(offsets[:, 1].max(initial=0))


def _kernel(axes: Axes, hidden: np.ndarray) -> None:
    kernel_panel(axes, hidden)
    count = int(hidden.sum())
    canvas.panel_title(axes, f"Hidden in training: {count} pixel{'s' if count != 1 else ''}")
    handles = [
        Line2D([], [], marker="o", color=canvas.VERMILION, linestyle="none", label="pixel being predicted"),
        Line2D(
            [],
            [],
            marker="s",
            color="#9e9e9e",
            markersize=9,
            linestyle="none",
            label="hidden from the network",
        ),
    ]
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        ncols=2,
        frameon=False,
        fontsize=canvas.TEXT_SIZE,
    )


def _section(
    axes: Axes,
    correlation: np.ndarray,
    hidden: np.ndarray,
    floor: np.ndarray | None,
    *,
    axis: int,
    limit: float,
) -> None:
    """One line through the centre; the centre itself, always 1, would flatten everything else."""
    middle = correlation.shape[1 - axis] // 2
    profile, mask = (np.take(array, middle, axis=1 - axis) for array in (correlation, hidden))
    reach = len(profile) // 2
    lags = np.arange(-reach, reach + 1)
    aside = lags != 0
    if floor is not None:
        level = np.take(floor, middle, axis=1 - axis)[aside]
        axes.fill_between(
            lags[aside], -level, level, color="#dcdcdc", step="mid", linewidth=0, label="could be chance"
        )
    axes.axhline(0, color=canvas.FAINT, linewidth=0.8)
    for chosen, colour, label in ((mask, canvas.VERMILION, "hidden"), (~mask, canvas.BLUE, "not hidden")):
        here = chosen & aside & np.isfinite(profile)
        if here.any():
            axes.vlines(lags[here], 0, profile[here], color=colour, linewidth=1.2)
            axes.plot(
                lags[here],
                profile[here],
                marker="o",
                markersize=4.5,
                linestyle="none",
                color=colour,
                label=label,
            )
    name = "yx"[axis]
    canvas.panel_title(axes, f"Cut along {name}")
    canvas.plain_plot(axes, x_label=f"distance along {name} (pixels)", y_label="correlation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, min_n_ticks=1))
    lowest = float(np.nanmin(profile))
    axes.set_ylim(-1.25 * limit if lowest < -0.3 * limit or limit < 0.2 else -0.4 * limit, 1.45 * limit)
    axes.set_xlim(-reach - 0.5, reach + 0.5)
    if not np.isfinite(profile[aside]).any():
        text = "no correlation was recorded\nbeyond the pixel itself"
        axes.text(0.5, 0.6, text, transform=axes.transAxes, ha="center", color=canvas.FAINT)
    elif axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=canvas.TEXT_SIZE, loc="upper right")


def _caption(volume: np.ndarray, floor_known: bool, z_threshold: float) -> str:
    meaning = (
        "Each square of the map says how strongly the noise of two pixels at that distance agrees: red, "
        "together; blue, opposite; white, independently. A pixel that shares noise with the one being "
        "predicted would give it away, so it is hidden (outlined). "
    )
    if volume.ndim == 3:
        meaning += (
            f"The kernel spans {len(volume)} planes along z and hides {int(volume.sum())} voxels; this is "
            "the plane of the predicted one. "
        )
    if int(volume.sum()) == 1:
        meaning += (
            "Here no other pixel was found to share noise, or not enough of it to be worth hiding, so only "
            "the pixel itself is hidden. "
        )
    if floor_known:
        meaning += (
            f"Grey band: what chance alone could give ({z_threshold:.2g} standard errors). A blue dot beyond "
            "it is correlated, but too little to be worth hiding, or not surely noise."
        )
    return meaning.strip()
