"""How much structure was taken away, and how much of the noise's correlation is left."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from denoizarr.figures import canvas

_ZONES = ("#d9ead9", "#fbeccb", "#f5d5c8")


def signal_loss_figure(
    share: float,
    standard_error: float,
    limits: tuple[float, float],
    reading: str,
    *,
    scales: Sequence[float],
    by_scale: Any,
    by_scale_error: Any,
    floor_by_scale: Any,
    left: tuple[Sequence[str], Sequence[float], Sequence[float], str] | None = None,
    caption: str = "",
    title: str = "Was signal removed, and is noise left?",
) -> Figure:
    """Draw the gauge of signal loss, the loss by scale, and the noise's correlation before and after.

    Parameters
    ----------
    share, standard_error : float
        Share of the structure's contrast that is in the residual; NaN draws no pointer.
    limits : (float, float)
        Where "good" ends, and where "signal is being removed" begins.
    reading : str
        The gauge in words.
    scales : sequence of float
        Edges of the bands, one more than bands, in pixels.
    by_scale, by_scale_error, floor_by_scale : (n,) array
        Share of each band, its standard error, and what the best linear filter would lose; NaN is left out.
    left : (names, values, errors, label), optional
        Bars of the noise's correlation and the label of their axis; the panel is left out without it.
    caption, title : str

    Returns
    -------
    matplotlib.figure.Figure
        Axes in this order: gauge, share by scale, bars.
    """
    figure = canvas.new_canvas(title, caption, width=11, height=6.6)
    grid = figure.add_gridspec(2, 2, height_ratios=(0.42, 1))
    gauge = figure.add_subplot(grid[0, :])
    _gauge(gauge, share, standard_error, limits, reading)
    _by_scale(
        figure.add_subplot(grid[1, 0] if left else grid[1, :]),
        scales,
        np.asarray(by_scale, np.float64),
        np.asarray(by_scale_error, np.float64),
        np.asarray(floor_by_scale, np.float64),
    )
    if left is not None:
        _bars(figure.add_subplot(grid[1, 1]), *left)
    return figure


def _gauge(
    axes: Axes, share: float, standard_error: float, limits: tuple[float, float], reading: str
) -> None:
    end = max(0.16, 1.2 * (share + 2 * standard_error)) if np.isfinite(share) else 0.16
    start = -0.03 if not np.isfinite(share) else min(-0.03, 1.2 * (share - 2 * standard_error))
    edges = (start, *limits, end)
    names = ("good", "look closer", "signal is being removed")
    for (low, high), colour, name in zip(pairwise(edges), _ZONES, names, strict=True):
        axes.axvspan(low, high, color=colour, linewidth=0)
        # A zone much narrower than its name would have it written over its neighbour's.
        if (high - low) / (end - start) > 0.011 * len(name):
            axes.text(
                0.5 * (low + high),
                0.86,
                name,
                ha="center",
                va="top",
                fontsize=canvas.TEXT_SIZE,
                color=canvas.INK,
            )
    if np.isfinite(share):
        axes.errorbar(
            share,
            0.34,
            xerr=2 * standard_error,
            color=canvas.INK,
            marker="D",
            markersize=9,
            elinewidth=2.2,
            capsize=5,
        )
    axes.axvline(0, color=canvas.FAINT, linewidth=1)
    axes.set_xlim(start, end)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    canvas.panel_title(axes, f"Structure found in what was removed: {reading}")
    canvas.plain_plot(
        axes, x_label="share of the structure's contrast (bar: two standard errors)", y_label=""
    )
    axes.spines["left"].set_visible(False)


def _by_scale(
    axes: Axes, scales: Sequence[float], share: np.ndarray, error: np.ndarray, floor: np.ndarray
) -> None:
    places = np.arange(len(share))
    names = [f"below {high:g}" if low == 0 else f"{low:g} to {high:g}" for low, high in pairwise(scales)]
    axes.axhline(0, color=canvas.FAINT, linewidth=1)
    known = np.isfinite(share)
    if known.any():
        axes.errorbar(
            places[known],
            share[known],
            yerr=2 * error[known],
            color=canvas.BLUE,
            marker="o",
            capsize=4,
            label="in what was removed",
        )
    for place in places[~known]:
        axes.text(
            place,
            0.02,
            "cannot\nbe told",
            ha="center",
            va="bottom",
            fontsize=canvas.TEXT_SIZE,
            color=canvas.FAINT,
        )
    highest = float(np.nanmax(share + 2 * error)) if known.any() else 0.0
    there = np.isfinite(floor)
    if there.any():
        axes.plot(
            places[there],
            floor[there],
            color=canvas.FAINT,
            linestyle="--",
            marker="_",
            markersize=12,
            label="what the best linear filter would lose",
        )
        highest = max(highest, float(floor[there].max()))
    axes.set_xticks(places, names)
    axes.set_xlim(-0.5, len(places) - 0.5)
    lowest = float(np.nanmin(np.where(known, share - 2 * error, 0.0), initial=0.0))
    axes.set_ylim(min(1.2 * lowest, -0.02), max(1.35 * highest, 0.15))
    # There is no more than all; above it lies the legend.
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %" if value < 1.01 else "")
    canvas.panel_title(axes, "The same, by size of structure")
    canvas.plain_plot(axes, x_label="radius (pixels)", y_label="share of contrast")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=canvas.TEXT_SIZE, loc="upper right")


def _bars(
    axes: Axes, names: Sequence[str], values: Sequence[float], errors: Sequence[float], label: str
) -> None:
    colours = (canvas.FAINT, canvas.SKY, canvas.VERMILION)
    axes.bar(names, values, color=colours[: len(names)], width=0.6)
    axes.errorbar(
        range(len(values)), values, yerr=2 * np.asarray(errors), fmt="none", ecolor=canvas.INK, capsize=4
    )
    axes.axhline(0, color=canvas.FAINT, linewidth=1)
    tops = [value + 2 * error for value, error in zip(values, errors, strict=True)]
    low, high = min(0.0, *values), max(0.02, *tops)
    for place, (value, top) in enumerate(zip(values, tops, strict=True)):
        axes.text(
            place,
            max(top, 0) + 0.02 * (high - low),
            canvas.short_number(round(value, 4)),
            ha="center",
            va="bottom",
            fontsize=canvas.TEXT_SIZE,
            color=canvas.INK,
        )
    axes.set_ylim(1.15 * low, low + 1.2 * (high - low))
    canvas.panel_title(axes, "The noise's own correlation on background")
    canvas.plain_plot(axes, x_label="", y_label=label)
