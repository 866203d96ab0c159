"""Versions of one plane side by side, at one contrast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from .canvas import contrast_limits, new_canvas, panel_title, plane_of, reduced, show_image


def panels_figure(images: Mapping[str, Any], *, reference: str, title: str, caption: str) -> Figure:
    """Draw versions of one plane in a row.

    Parameters
    ----------
    images : mapping of str to (y, x) array
        Panel title to plane, drawn from left to right.
    reference : str
        The panel that decides black and white for all.
    title, caption : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = new_canvas(title, caption, width=3.1 * len(images), height=4.2)
    planes = {name: reduced(plane_of(image, name)) for name, image in images.items()}
    limits = contrast_limits(planes[reference], 0.1, 99.9)
    for axes, (name, plane) in zip(
        figure.subplots(1, len(planes), squeeze=False)[0], planes.items(), strict=True
    ):
        show_image(axes, plane, limits=limits)
        panel_title(axes, name)
    return figure
