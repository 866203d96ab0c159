"""Where a patch filter sees signal, and what its threshold keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from denoizarr.errors import BadRequest
from denoizarr.figures import canvas


def filter_map_figure(
    image_2d: Any,
    map_2d: Any,
    keep_2d: Any = None,
    *,
    threshold: float | None = None,
    label: str = "score",
    cell_shape: tuple[int, int],
    title: str = "Where the patch filter sees signal",
) -> Figure:
    """Draw an image, its filter map, the cells that are kept and the histogram of scores.

    Parameters
    ----------
    image_2d : (y, x) array
        One plane, any real dtype, raw intensities.
    map_2d : (cells y, cells x) array
        One score per cell; the last row and column of cells may reach past the image. NaN: not scored.
    keep_2d : (cells y, cells x) array of bool, optional
        True where a cell is kept. Without it, the cells with a score of at least ``threshold``.
    threshold : float, optional
        Marked in the histogram and on the colour bar.
    label : str
        What the score is, with its unit: "Shannon entropy (bit)".
    cell_shape : (int, int)
        Pixels per cell, (y, x).
    title : str
        Title of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        Axes in this order: image, map, kept cells, histogram; the colour bar is a child of the map.

    Raises
    ------
    BadRequest
        When the map's grid does not cover the image, or ``keep_2d`` has another shape than the map.
    """
    image, scores = canvas.plane_of(image_2d), canvas.plane_of(map_2d, "filter map").astype(np.float64)
    needed = tuple(-(-size // cell) for size, cell in zip(image.shape, cell_shape, strict=True))
    if scores.shape != needed:
        raise BadRequest(
            "the filter map is of another image or patch size", got=f"{scores.shape} cells", expected=needed
        )
    keep = _kept(scores, keep_2d, threshold)

    height, width = image.shape
    # Three pictures side by side: as wide as the page allows, unless a tall image would fill it.
    tall = min(3.1 * height / width, 5.0)
    figure = canvas.new_canvas(title, _caption(keep, threshold, cell_shape), width=11, height=tall + 4.6)
    grid = figure.add_gridspec(2, 3, height_ratios=(tall + 0.3, 2.4))
    pictures = [figure.add_subplot(grid[0, column]) for column in range(3)]
    bars = figure.add_subplot(grid[1, :])
    limits = canvas.contrast_limits(image)
    for panel in pictures:
        canvas.show_image(panel, image, limits=limits)
    extent = (-0.5, scores.shape[1] * cell_shape[1] - 0.5, scores.shape[0] * cell_shape[0] - 0.5, -0.5)
    lowest, highest = canvas.contrast_limits(scores, 0, 100)
    overlay = pictures[1].imshow(
        scores,
        cmap=canvas.SCORE_MAP,
        alpha=0.62,
        extent=extent,
        interpolation="nearest",
        vmin=lowest,
        vmax=highest,
    )
    tint = np.zeros((*keep.shape, 4))
    tint[~keep] = (0.0, 0.447, 0.698, 0.55)
    pictures[2].imshow(tint, extent=extent, interpolation="nearest")
    for panel in pictures:
        # The last cells may reach past the image; nothing is there to be seen.
        panel.set_xlim(-0.5, width - 0.5)
        panel.set_ylim(height - 0.5, -0.5)
    canvas.panel_title(pictures[0], "Image")
    canvas.panel_title(pictures[1], "Score of each cell")
    kept = "All cells kept" if keep.all() else f"Kept: {int(keep.sum()):,} of {keep.size:,} cells"
    canvas.panel_title(pictures[2], kept)
    if not keep.all():
        tinted = Patch(facecolor=canvas.BLUE, alpha=0.55, label="background: rarely trained on")
        canvas.legend_below(pictures[2], [tinted])

    _histogram(bars, scores, keep, threshold, label)
    # Inside the map's own axes, so that the bar is as tall as the picture whatever its proportions.
    bar = canvas.colour_bar(figure, overlay, None, label, cax=pictures[1].inset_axes((1.03, 0.0, 0.05, 1.0)))
    if threshold is not None and np.isfinite(threshold):
        bar.ax.axhline(threshold, color=canvas.VERMILION, linewidth=2.5)
    return figure


def _kept(scores: np.ndarray, keep_2d: Any, threshold: float | None) -> np.ndarray:
    if keep_2d is None:
        return np.ones(scores.shape, bool) if threshold is None else scores >= threshold
    keep = np.asarray(keep_2d).astype(bool)
    if keep.shape != scores.shape:
        raise BadRequest("the kept cells do not match the filter map", got=keep.shape, expected=scores.shape)
    return keep


def _edges(bottom: float, top: float, number: int, threshold: float | None) -> list[float]:
    """Equal bins over the scores, one edge on the threshold so that no bar is half kept."""
    width = (top - bottom) / number
    start = bottom if threshold is None or not bottom < threshold < top else threshold
    first, last = np.floor((bottom - start) / width), np.ceil((top - start) / width)
    return [start + width * step for step in range(int(first), int(last) + 1)]


def _caption(keep: np.ndarray, threshold: float | None, cell_shape: tuple[int, int]) -> str:
    size = (
        f"Each cell is {cell_shape[0]} × {cell_shape[1]} pixels (y × x), the size of one training patch; "
        "its score takes in its neighbours."
    )
    if threshold is None:
        return f"{size} No threshold is set: every cell is trained on equally."
    share = 100 * float(keep.mean()) if keep.size else 0.0
    return (
        f"{size} Cells that score at least {canvas.short_number(threshold)} hold structure and are kept "
        f"({share:.0f} %); the others, tinted blue, are background. Orange is the threshold: if blue "
        "covers structure you care about, lower it; if empty background is left clear, raise it."
    )


def _histogram(axes: Axes, scores: np.ndarray, keep: np.ndarray, threshold: float | None, label: str) -> None:
    finite = np.isfinite(scores)
    values, kept = scores[finite], keep[finite]
    if values.size:
        bottom, top = canvas.contrast_limits(values, 0, 100)
        edges = _edges(bottom, top, int(np.clip(np.sqrt(values.size), 20, 60)), threshold)
        groups = [(values[~kept], canvas.BLUE, "background"), (values[kept], "#b9b9b9", "kept")]
        shown = [group for group in groups if group[0].size]
        axes.hist(
            [group[0] for group in shown],
            bins=edges,
            stacked=True,
            color=[group[1] for group in shown],
            label=[group[2] for group in shown],
        )
    if threshold is not None and np.isfinite(threshold):
        axes.axvline(
            threshold,
            color=canvas.VERMILION,
            linewidth=2,
            label=f"threshold {canvas.short_number(threshold)}",
        )
    axes.legend(frameon=False, fontsize=canvas.TEXT_SIZE, loc="best")
    canvas.panel_title(axes, "How many cells of this plane have which score")
    canvas.plain_plot(axes, x_label=label, y_label="cells")
