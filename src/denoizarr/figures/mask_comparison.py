"""Blind-spot kernels side by side, on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from denoizarr.errors import BadRequest
from denoizarr.figures import canvas
from denoizarr.figures.noise_kernel import fitted, kernel_panel, middle_plane

# So many squares are still told apart on a page, and in so many pixels a side a number is still read.
_MOST, _COLUMNS, _NUMBERS = 12, 4, 21


def compare_masks(*masks: Any, labels: Sequence[str] | None = None) -> Figure:
    """Draw kernels side by side, and how often each pixel is hidden.

    Parameters
    ----------
    *masks : bool arrays of odd sides, or NoiseKernels
        (y, x), or (z, y, x), of which the plane of the predicted voxel is drawn; True is hidden.
    labels : sequence of str, optional
        One a mask; by default "mask 1", "mask 2", ...

    Returns
    -------
    matplotlib.figure.Figure
        One panel a mask, all of one extent; with two masks or more, a last one that shows by how many of
        them a pixel is hidden. The titles say how many pixels each hides, and which share of the first one's
        and its own pixels both hide (intersection over union).

    Raises
    ------
    BadRequest
        There is no mask or too many, a side is even, a centre is not hidden, or labels are missing.
    """
    if not 0 < len(masks) <= _MOST:
        raise BadRequest("nothing to compare", got=f"{len(masks)} masks", expected=f"1 to {_MOST}")
    names = [f"mask {n}" for n in range(1, len(masks) + 1)] if labels is None else [str(n) for n in labels]
    if len(names) != len(masks):
        raise BadRequest("one label for each mask", got=len(names), expected=len(masks))
    hidden = [_hidden(mask, name) for mask, name in zip(masks, names, strict=True)]
    whole = _on_one_extent(hidden)
    side = max(max(mask.shape[-2:]) for mask in hidden) + 2
    planes = [fitted(middle_plane(mask), (side, side), fill=False) for mask in hidden]

    together = len(masks) > 1
    panels = len(masks) + together
    columns = min(panels, _COLUMNS)
    rows = -(-panels // columns)
    figure = canvas.new_canvas(
        "Blind-spot kernels compared",
        _caption(any(mask.ndim == 3 for mask in hidden), together),
        width=max(3.1 * columns + 0.8, 6.0),
        height=3.3 * rows + 1.5,
    )
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for place, plane, mask, name in zip(axes, planes, whole, names, strict=False):
        kernel_panel(place, plane)
        canvas.panel_title(place, _title(name, mask, whole[0], first=mask is whole[0]))
    if together:
        place = axes[len(masks)]
        _counts(place, np.sum(planes, axis=0), len(masks))
    for place in axes[panels:]:
        place.set_axis_off()
    return figure


def _hidden(mask: Any, name: str) -> np.ndarray:
    values = np.asarray(getattr(mask, "mask", mask))
    if values.ndim not in (2, 3) or any(n % 2 == 0 for n in values.shape):
        raise BadRequest(
            "a mask has no centre", where=name, got=f"shape {values.shape}", expected="2 or 3 odd sides"
        )
    if not np.isin(values, (0, 1)).all():
        raise BadRequest("a mask holds 0 and 1", where=name, got=values.dtype)
    hidden = values.astype(bool)
    if not hidden[tuple(n // 2 for n in hidden.shape)]:
        raise BadRequest("a mask hides its own centre", where=name, got="False", expected="True")
    return hidden


def _on_one_extent(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return all masks as volumes of one shape, centred on each other."""
    volumes = [mask if mask.ndim == 3 else mask[None] for mask in masks]
    shape = tuple(max(sides) for sides in zip(*(volume.shape for volume in volumes), strict=True))
    return [fitted(volume, shape, fill=False) for volume in volumes]


def _title(name: str, mask: np.ndarray, reference: np.ndarray, *, first: bool) -> str:
    count = int(mask.sum())
    text = f"{name}\n{count} pixel{'s' if count != 1 else ''}"
    if first:
        return text
    shared = int((mask & reference).sum()) / int((mask | reference).sum())
    return f"{text}, {'same as the first' if shared == 1 else f'{shared:.0%} shared'}"


def _counts(axes: Axes, counts: np.ndarray, masks: int) -> None:
    """Draw by how many masks each pixel is hidden, with numbers where there is room for them."""
    kernel_panel(axes, counts / masks)
    canvas.panel_title(axes, f"together\nhidden by 1 (light) to {masks} (dark)")
    middle = len(counts) // 2
    if len(counts) <= _NUMBERS:
        for y, x in np.argwhere(counts):
            if (y, x) != (middle, middle):
                axes.text(x - middle, y - middle, str(counts[y, x]), ha="center", va="center", fontsize=8)


def _caption(volumes: bool, together: bool) -> str:
    text = "Grey pixels are hidden from the network while it predicts the pixel in the middle (the dot). "
    if together:
        text += "Shared: pixels that the first mask and this one hide, of those that either hides. "
    if volumes:
        text += "Of (z, y, x) the plane of the predicted voxel is drawn; all planes are counted."
    return text.strip()
