"""How certain a measured correlation of noise is, lag by lag."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from denoizarr.figures import canvas
from denoizarr.figures.noise_kernel import correlation_map, fitted

# Beyond so many thresholds more certainty is not told apart: one strong neighbour would fade all others.
_SATURATED = 3.0


def z_score_figure(
    z_scores: Any, mask: Any, z_threshold: float, *, title: str = "How certain the correlation is"
) -> Figure:
    """Draw the z-scores of a noise's autocorrelation with the kernel, and how many of them reach how far.

    Parameters
    ----------
    z_scores : (odd, odd) array
        Correlation over its standard error, centred, (y, x).
    mask : (odd, odd) array of bool
        The kernel, centred. Outlined.
    z_threshold : float
        What a z-score had to exceed.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
        Axes in this order: map, scores by distance, colour bar.
    """
    scores = canvas.plane_of(z_scores, "z-scores").astype(np.float64)
    hidden = fitted(canvas.plane_of(mask, "mask").astype(bool), scores.shape, fill=False)
    limit = _SATURATED * z_threshold
    caption = (
        "The correlation at each distance over its standard error. Certain is what lies beyond "
        f"{canvas.short_number(z_threshold)} (dashed), the chance of a false alarm being shared by all "
        f"distances; what is beyond {canvas.short_number(limit)} is drawn there. Certain is not yet strong: "
        "the kernel, outlined, also asks for a correlation that is worth hiding, and for noise that looks "
        "alike in all windows."
    )
    figure = canvas.new_canvas(title, caption, width=11, height=5.4)
    left, right = figure.subplots(1, 2)
    picture = correlation_map(left, scores, hidden, limit=limit)
    canvas.panel_title(left, "z-score of every distance")
    canvas.colour_bar(figure, picture, left, "standard errors", extend="both")
    _by_distance(right, np.clip(scores, -limit, limit), hidden, z_threshold)
    return figure


def _by_distance(axes: Any, scores: np.ndarray, hidden: np.ndarray, z_threshold: float) -> None:
    """Draw every score once, a lag and its opposite being one, over its distance from the pixel."""
    rows, columns = (np.arange(size) - size // 2 for size in scores.shape)
    distance = np.hypot(rows[:, None], columns[None, :])
    half = np.arange(scores.size).reshape(scores.shape) > scores.size // 2
    for chosen, colour, label in ((~hidden, canvas.BLUE, "not hidden"), (hidden, canvas.VERMILION, "hidden")):
        here = chosen & half
        if here.any():
            axes.plot(
                distance[here],
                scores[here],
                linestyle="none",
                marker="o",
                markersize=3,
                color=colour,
                label=label,
            )
    for sign in (-1, 1):
        axes.axhline(sign * z_threshold, color=canvas.INK, linestyle="--", linewidth=1)
    axes.axhline(0, color=canvas.FAINT, linewidth=0.8)
    canvas.panel_title(axes, "The same, by distance")
    canvas.plain_plot(axes, x_label="distance (pixels)", y_label="standard errors")
    axes.legend(frameon=False, fontsize=canvas.TEXT_SIZE, loc="upper right")
