"""Where regions of interest lie in a plane."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from denoizarr.errors import BadRequest
from denoizarr.figures import canvas

SHOWN_OUTLINES = 2000


def roi_patches_figure(
    image_2d: Any,
    origins: Any,
    patch_size: tuple[int, ...],
    *,
    n_all: int | None = None,
    where: str = "",
    title: str = "ROI patches",
) -> Figure:
    """Draw a plane twice: as it is, and with the outlines of the patches selected on it.

    Parameters
    ----------
    image_2d : (y, x) array
        One plane, raw intensities.
    origins : (n, 2) array of int
        First pixel of every patch, (y, x). 2,000 are drawn at most, taken evenly from the list.
    patch_size : (int, int)
        Pixels, (y, x).
    n_all : int, optional
        Patches on all planes together.
    where : str
        Which plane this is: "z = 3".
    title : str

    Returns
    -------
    matplotlib.figure.Figure
        Axes: the plane; the plane with one ``LineCollection`` of outlines.

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
    shown = corners
    if len(corners) > SHOWN_OUTLINES:
        shown = corners[np.linspace(0, len(corners) - 1, SHOWN_OUTLINES).astype(int)]
    limits = canvas.contrast_limits(image)
    height, width = image.shape
    wide = float(np.clip(5.2 * width / height, 2.2, 6.2))
    covered = _covered(corners, patch_size, image.shape)
    figure = canvas.new_canvas(
        f"{title} (n = {len(corners) if n_all is None else n_all:,})",
        _caption(len(corners), len(shown), float(covered.mean()), patch_size, where, n_all),
        width=max(2 * wide + 0.6, 8.5),
        height=wide * height / width + 1.6,
    )
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        canvas.show_image(axes, image, limits=limits)
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)
    _shade(right, ~covered)
    right.add_collection(
        LineCollection(list(_outlines(shown, patch_size)), colors=canvas.ORANGE, linewidths=0.7, alpha=0.65)
    )
    canvas.panel_title(left, f"Image, {where}" if where else "Image")
    canvas.panel_title(right, f"Selected here: {len(corners):,}, on {covered.mean():.0%} of the plane")
    return figure


def _caption(
    n_here: int, n_shown: int, share: float, patch_size: tuple[int, ...], where: str, n_all: int | None
) -> str:
    text = (
        f"Orange: the outlines of the selected patches, {patch_size[0]} × {patch_size[1]} pixels (y × x). "
        "They overlap, so outlines cross and make a finer grid."
    )
    text += " What lies in no patch is darkened." if share < 1 else " They cover all of this plane."
    if n_shown < n_here:
        text += f" Only {n_shown:,} of the {n_here:,} are drawn."
    if n_all is not None and n_all > n_here:
        text += f" The other {n_all - n_here:,} lie on other planes; {where or 'this one'} has the most."
    return text


def _covered(corners: np.ndarray, patch_size: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Tell for every pixel whether it lies in a patch."""
    # One up at each patch's first corner, one down past its ends: sums along both axes count the patches.
    steps = np.zeros((shape[0] + 1, shape[1] + 1), np.int32)
    for far_y, far_x, step in ((0, 0, 1), (1, 0, -1), (0, 1, -1), (1, 1, 1)):
        rows = np.clip(corners[:, 0] + far_y * patch_size[0], 0, shape[0]).astype(int)
        columns = np.clip(corners[:, 1] + far_x * patch_size[1], 0, shape[1]).astype(int)
        np.add.at(steps, (rows, columns), step)
    covered: np.ndarray = steps.cumsum(0).cumsum(1)[:-1, :-1] > 0
    return covered


def _shade(axes: Axes, where: np.ndarray) -> None:
    """Darken a part of the picture."""
    thin = -(-max(where.shape) // canvas.LARGEST_DISPLAY)
    shade = np.zeros((*where[::thin, ::thin].shape, 4))
    shade[..., 3] = 0.6 * where[::thin, ::thin]
    height, width = where.shape
    axes.imshow(shade, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest")


def _outlines(origins: np.ndarray, patch_size: tuple[int, ...]) -> np.ndarray:
    """Return closed paths of (x, y) points around whole pixels."""
    corners = np.array([(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)], float)
    steps = corners * np.array([patch_size[1], patch_size[0]])
    return np.asarray(steps[None] + (origins[:, ::-1].astype(float) - 0.5)[:, None])
