"""Where training patches came from, and what they look like."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from denoizarr.errors import BadRequest
from denoizarr.figures import canvas

SHOWN_OUTLINES = 200
SHOWN_EXAMPLES = 12


def patch_origins_figure(
    image_2d: Any,
    origins: Any,
    patch_size: tuple[int, int],
    *,
    title: str = "Where training patches come from",
    note: str = "",
) -> Figure:
    """Outline patches on a plane and show some of them.

    Parameters
    ----------
    image_2d : (y, x) array
        One plane, raw intensities.
    origins : (n, 2) array of int
        First pixel of each patch, (y, x), in the plane's own pixels. As many are drawn as
        would cover the plane once, at most 200.
    patch_size : (int, int)
        Pixels, (y, x).
    title : str
        Title of the figure.
    note : str
        Added to the caption: how these patches were chosen from all there are.

    Returns
    -------
    matplotlib.figure.Figure
        The plane with one ``LineCollection`` of outlines first, then up to 12 example patches.

    Raises
    ------
    BadRequest
        When ``origins`` is not (n, 2).
    """
    image, corners = canvas.plane_of(image_2d), np.asarray(origins)
    if corners.ndim != 2 or corners.shape[1] != 2:
        raise BadRequest(
            "patch origins are not a table of (y, x)", got=f"shape {corners.shape}", expected="(n, 2)"
        )
    # About as many as would cover the plane once: more would hide it.
    once = round(image.size / (patch_size[0] * patch_size[1]))
    shown = corners[: min(max(once, SHOWN_EXAMPLES), SHOWN_OUTLINES)]
    limits = canvas.contrast_limits(image)

    caption = (
        f"Outlines: {len(shown):,} training patches of {patch_size[0]} × {patch_size[1]} pixels (y × x), "
        "drawn as training draws them. They should crowd where the structure is and be rare on empty "
        f"background. Right: some of them at the contrast of the whole plane. {note}"
    )
    ratio = image.shape[0] / image.shape[1]
    wide = float(np.clip(5.0 / ratio, 3.0, 6.8))
    tall = min(wide * ratio, 6.5)
    rows = 4 if tall >= 3.9 else 3
    columns = SHOWN_EXAMPLES // rows
    beside = max(tall, 3.4) * columns / rows
    figure = canvas.new_canvas(
        title, caption.strip(), width=max(wide + beside + 0.7, 8.5), height=max(tall, 3.4) + 1.6
    )
    halves = figure.subfigures(1, 2, width_ratios=(wide, beside), squeeze=False)
    left, right = halves[0, 0], halves[0, 1]
    axes = left.subplots()
    canvas.show_image(axes, image, limits=limits)
    axes.add_collection(
        LineCollection(_outlines(shown, patch_size), colors=canvas.ORANGE, linewidths=0.9, alpha=0.85)
    )
    axes.set_xlim(-0.5, image.shape[1] - 0.5)
    axes.set_ylim(image.shape[0] - 0.5, -0.5)
    canvas.panel_title(axes, "Patches on the image")

    examples = [
        patch for patch in (_patch(image, corner, patch_size) for corner in _spread(shown)) if patch.size
    ]
    if not examples:
        panel = right.subplots()
        canvas.without_ticks(panel)
        panel.text(
            0.5, 0.5, "No patch was drawn from this plane.", ha="center", va="center", color=canvas.INK
        )
        return figure
    grid = right.subplots(rows, columns, squeeze=False)
    for number, panel in enumerate(grid.ravel()):
        if number < len(examples):
            canvas.show_image(panel, examples[number], limits=limits, every_pixel=True)
        else:
            panel.set_axis_off()
    canvas.panel_title(grid[0, 0], "Examples")
    return figure


def _outlines(origins: np.ndarray, patch_size: tuple[int, int]) -> list[np.ndarray]:
    """Return closed paths of (x, y) points around whole pixels."""
    corners = np.array([(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)], float)
    steps = corners * np.array([patch_size[1], patch_size[0]])
    return [steps + np.array([float(x) - 0.5, float(y) - 0.5]) for y, x in origins]


def _spread(origins: np.ndarray) -> np.ndarray:
    """Take a dozen, evenly from the list, so that neighbours in it are not all there is."""
    chosen = np.unique(np.linspace(0, max(len(origins) - 1, 0), SHOWN_EXAMPLES).astype(int))
    return origins[chosen] if len(origins) else origins


def _patch(image: np.ndarray, origin: np.ndarray, patch_size: tuple[int, int]) -> np.ndarray:
    y, x = (max(int(value), 0) for value in origin)
    return image[y : y + patch_size[0], x : x + patch_size[1]]
