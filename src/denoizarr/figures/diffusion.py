"""A diffusion series before and after: one volume, how well each is predicted, what was taken away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .canvas import (
    BLUE,
    FAINT,
    INK,
    SIGNED_MAP,
    SKY,
    TEXT_SIZE,
    VERMILION,
    contrast_limits,
    new_canvas,
    panel_title,
    plane_of,
    show_image,
)


def volume_figure(before: Any, after: Any, residual: Any, *, title: str, caption: str) -> Figure:
    """Draw a slice of one volume before and after, and what was taken away, without its sign.

    Parameters
    ----------
    before, after : (y, x) array
        In intensity units.
    residual : (y, x) array
        What was taken away.
    title, caption : str
    """
    planes = plane_of(before, "slice").astype(np.float64), plane_of(after, "slice").astype(np.float64)
    left = np.sqrt(plane_of(residual, "residual").astype(np.float64) ** 2)
    figure = new_canvas(title, caption, width=11, height=4.6)
    limits = contrast_limits(planes[0], 0.1, 99.9)
    names = ("before", "after", "residual: root of the squared difference")
    for axes, name, plane in zip(figure.subplots(1, 3), names, (*planes, left), strict=True):
        own = limits if plane is not left else (0.0, contrast_limits(left, 0.1, 99.9)[1])
        image = show_image(axes, plane, limits=own)
        panel_title(axes, name)
        if plane is left:
            figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=TEXT_SIZE)
    return figure


def predicted_figure(
    r_squared: Any,
    outliers: Sequence[int],
    bvals: Sequence[float],
    *,
    title: str,
    caption: str,
) -> Figure:
    """Draw how much of each volume's variance the others predict, outliers marked.

    Parameters
    ----------
    r_squared : (n,) array
        NaN for volumes that were kept.
    outliers : sequence of int
        Numbers of volumes.
    bvals : sequence of float
        In s/mm2; shells are told apart by lightness.
    title, caption : str
    """
    values, volumes = np.asarray(r_squared, np.float64), np.arange(len(r_squared))
    figure = new_canvas(title, caption, width=11, height=4.4)
    axes = figure.subplots()
    is_outlier = np.isin(volumes, outliers)
    b0 = np.asarray(bvals) <= min(bvals) + 50
    for chosen, colour, label in (
        (~b0 & ~is_outlier, BLUE, "diffusion-weighted"),
        (b0 & ~is_outlier, SKY, "b0"),
        (is_outlier, VERMILION, "outlier"),
    ):
        if (chosen & np.isfinite(values)).any():
            axes.plot(volumes[chosen], values[chosen], "o", color=colour, markersize=5, label=label)
    for volume in outliers:
        axes.annotate(
            str(volume),
            (volume, values[volume]),
            xytext=(4, -10),
            textcoords="offset points",
            color=VERMILION,
        )
    axes.set_xlabel("volume", color=INK)
    axes.set_ylabel("share of variance predicted", color=INK)
    axes.grid(axis="y", color=FAINT, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=TEXT_SIZE)
    return figure


def mean_residual_figure(mean_residual: Any, noise: Any, *, title: str, caption: str) -> Figure:
    """Draw what was taken away, in the mean over all volumes, and its spread over them.

    Parameters
    ----------
    mean_residual : (y, x) array
        Mean of before less after.
    noise : (y, x) array
        Standard deviation of before less after over the volumes.
    title, caption : str
    """
    figure = new_canvas(title, caption, width=11, height=5.2)
    left, right = figure.subplots(1, 2)
    mean, spread = plane_of(mean_residual, "mean residual"), plane_of(noise, "noise map")
    # At the scale of the noise, so that what is nothing beside it looks like nothing.
    widest = float(np.nanpercentile(spread, 99)) or 1.0
    images = (
        show_image(left, mean, limits=(-widest, widest), colours=SIGNED_MAP),
        show_image(right, spread, limits=(0.0, widest)),
    )
    names = ("mean of what was taken away", "its standard deviation over the volumes")
    for axes, image, name in zip((left, right), images, names, strict=True):
        panel_title(axes, name)
        figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=TEXT_SIZE)
    return figure
