"""What a network makes of a few patches while it learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from . import canvas

_CONTRAST = "All pictures of a row share one contrast."
_READING = "It should look like pure noise: shapes of the specimen in it are structure that is lost."
_TARGET_CONTRAST = (
    "Prediction and target of a row share one contrast; the noisy patch, which may have other grey levels, "
    "has its own."
)
_TARGET_READING = (
    "It should be pale, or look like noise where the target is noisy: shapes in it are structure that is "
    "lost or invented."
)


def sample_predictions_figure(
    patches: Sequence[Any],
    predictions: Sequence[Any],
    names: Sequence[str],
    *,
    targets: Sequence[Any] | None = None,
    title: str = "What the network has learnt",
) -> Figure:
    """Draw patches, what the network makes of them, and the difference, one row per patch.

    Parameters
    ----------
    patches, predictions : sequences of (y, x) arrays
        Raw intensities; predictions are on the targets' grey levels, where there are targets.
    names : sequence of str
        Where each patch lies.
    targets : sequence of (y, x) arrays, optional
        What was to be predicted, where that is not the patch itself; the difference is to these then.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    against = "noisy" if targets is None else "target"
    contrast, reading = (_CONTRAST, _READING) if targets is None else (_TARGET_CONTRAST, _TARGET_READING)
    caption = (
        "Patches that are never trained on, from the one with the most structure to the one with the least; "
        f"the same ones after every epoch. {contrast} Difference: {against} minus prediction, red where the "
        f"prediction is darker; one scale for all rows. {reading}"
    )
    columns = 3 if targets is None else 4
    figure = canvas.new_canvas(title, caption, width=2.55 * columns + 1.4, height=2.45 * len(patches) + 1.6)
    references = patches if targets is None else targets
    differences = [
        canvas.plane_of(r).astype(np.float64) - canvas.plane_of(p)
        for r, p in zip(references, predictions, strict=True)
    ]
    spread = canvas.contrast_limits(np.abs(np.stack(differences)), 0, 99)[1]
    grid = figure.subplots(len(patches), columns, squeeze=False)
    for row, (patch, prediction, name) in enumerate(zip(patches, predictions, names, strict=True)):
        own = canvas.contrast_limits(canvas.plane_of(patch))
        limits = own if targets is None else canvas.contrast_limits(canvas.plane_of(targets[row]))
        shown = [("noisy", patch, own), ("prediction", prediction, limits)]
        if targets is not None:
            shown.append(("target", targets[row], limits))
        for axes, (column, plane, limits) in zip(grid[row], shown, strict=False):
            canvas.show_image(axes, canvas.plane_of(plane), limits=limits, every_pixel=True)
            if row == 0:
                canvas.panel_title(axes, column)
        last = canvas.show_image(
            grid[row, -1],
            differences[row],
            limits=(-spread, spread),
            colours=canvas.SIGNED_MAP,
            every_pixel=True,
        )
        grid[row, 0].set_ylabel(name, fontsize=canvas.TEXT_SIZE, color=canvas.INK)
    canvas.panel_title(grid[0, -1], f"{against} − prediction")
    canvas.colour_bar(figure, last, grid[:, -1], "intensity")
    return figure
