"""The sheet every figure is drawn on: one look, no global state of matplotlib."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from denoizarr.errors import BadRequest

TITLE_SIZE = 14.0
PANEL_SIZE = 11.0
TEXT_SIZE = 9.5

IMAGE_MAP = "gray"
SCORE_MAP = "viridis"
SIGNED_MAP = "RdBu_r"

# Okabe and Ito's colours: told apart by every kind of colour vision, and in grey print by lightness.
BLUE = "#0072B2"
ORANGE = "#E69F00"
VERMILION = "#D55E00"
SKY = "#56B4E9"
INK = "#222222"
FAINT = "#8a8a8a"

LARGEST_DISPLAY = 1400
"""Pixels per side beyond which an image is reduced before it is drawn; more would not be seen."""


def new_canvas(title: str, caption: str, *, width: float = 11.0, height: float = 7.0) -> Figure:
    """Make an empty figure with a title at its top left and a caption below everything.

    Parameters
    ----------
    title : str
        One line.
    caption : str
        What is shown and how to read it, wrapped to the width here.
    width, height : float
        Inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.09, wspace=0.03, hspace=0.03)  # type: ignore[union-attr,call-arg]
    figure.suptitle(title, x=0.012, ha="left", fontsize=TITLE_SIZE, fontweight="bold", color=INK)
    if caption:
        figure.supxlabel(wrapped(caption, width), x=0.012, ha="left", fontsize=TEXT_SIZE, color=INK)
    return figure


def wrapped(text: str, width: float) -> str:
    """Break ``text`` into lines that fit ``width`` inches at the caption's size."""
    # A letter of the caption is about 0.071 inch wide on average.
    return "\n".join(textwrap.fill(part, int(width / 0.071)) for part in text.split("\n"))


def panel_title(axes: Axes, text: str) -> None:
    """Name one panel, at its left."""
    axes.set_title(text, loc="left", fontsize=PANEL_SIZE, color=INK)


def show_image(
    axes: Axes,
    image: np.ndarray,
    *,
    limits: tuple[float, float],
    colours: str = IMAGE_MAP,
    aspect: float = 1.0,
    every_pixel: bool = False,
) -> AxesImage:
    """Draw a plane in its own pixel coordinates, without ticks.

    Parameters
    ----------
    axes : Axes
        Where to draw.
    image : (y, x) array
        Any real dtype. Larger images are reduced by block means first; coordinates stay those of the image.
    limits : (float, float)
        Values drawn as the darkest and the brightest colour.
    colours : str
        Colour map.
    aspect : float
        Height of a pixel over its width.
    every_pixel : bool
        Show pixels as squares, for enlarged parts; otherwise a picture smaller than the image is smoothed
        against the patterns that leaving pixels out would draw.
    """
    height, width = image.shape
    picture = axes.imshow(
        reduced(image),
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="nearest" if every_pixel else "auto",
        # Averaged as values: averaged as colours, red and blue noise would make grey.
        interpolation_stage="data",
        aspect=aspect,
    )
    without_ticks(axes)
    return picture


def without_ticks(axes: Axes) -> None:
    """Take ticks and frame away: a picture needs neither."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def plain_plot(axes: Axes, *, x_label: str, y_label: str) -> None:
    """Dress a line plot: two spines, small ticks, both axes named."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=TEXT_SIZE, colors=INK)
    axes.set_xlabel(x_label, fontsize=TEXT_SIZE, color=INK)
    axes.set_ylabel(y_label, fontsize=TEXT_SIZE, color=INK)


def colour_bar(figure: Figure, picture: AxesImage, axes: Any, label: str, **options: Any) -> Any:
    """Add a colour bar that says what its numbers are."""
    where = {} if "cax" in options else {"ax": axes, "fraction": 0.05, "pad": 0.02, "aspect": 30}
    bar = figure.colorbar(picture, **{**where, **options})
    bar.set_label(label, fontsize=TEXT_SIZE, color=INK)
    bar.ax.tick_params(labelsize=TEXT_SIZE)
    bar.outline.set_visible(False)
    return bar


def plane_of(image: Any, what: str = "image") -> np.ndarray:
    """Take anything array-like as a finite-or-not real plane.

    Raises
    ------
    BadRequest
        When it does not have exactly two axes, or one of them is empty.
    """
    plane = np.asarray(image)
    if plane.ndim != 2 or 0 in plane.shape:
        raise BadRequest(f"the {what} to draw is not a plane", got=f"shape {plane.shape}", expected="(y, x)")
    return plane


def reduced(image: np.ndarray, largest: int = LARGEST_DISPLAY) -> np.ndarray:
    """Average whole blocks of pixels until no side is longer than ``largest``.

    Parameters
    ----------
    image : (y, x) array
        Any real dtype; returned as it is where it is small enough.
    largest : int
        Pixels.
    """
    factor = -(-max(image.shape) // largest)
    if factor <= 1:
        return image
    # The ragged far edge is averaged over the pixels it has, so that the last row is no darker than the rest.
    starts = [np.arange(0, size, factor) for size in image.shape]
    sums = np.add.reduceat(np.add.reduceat(image.astype(np.float64), starts[0], axis=0), starts[1], axis=1)
    counts = [np.diff(np.append(start, size)) for start, size in zip(starts, image.shape, strict=True)]
    means: np.ndarray = sums / (counts[0][:, None] * counts[1][None, :])
    return means


def contrast_limits(image: np.ndarray, low: float = 0.5, high: float = 99.7) -> tuple[float, float]:
    """Percentiles to draw black and white at, from at most a million finite pixels.

    Parameters
    ----------
    image : array
        Any shape.
    low, high : float
        Percentiles.

    Returns
    -------
    (float, float)
        Different from each other, also for a constant image.
    """
    values = image.reshape(-1)
    values = values[:: max(1, values.size // 1_000_000)].astype(np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    bottom, top = (float(value) for value in np.percentile(values, [low, high]))
    if top <= bottom:
        bottom, top = float(values.min()), float(values.max())
    return (bottom, top) if top > bottom else (bottom - 0.5, bottom + 0.5)


def short_number(value: float) -> str:
    """Write a number with three significant digits, without an exponent where people would not use one."""
    if not np.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-4:
        return f"{value:.2e}"
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def legend_below(axes: Axes, handles: Iterable[Any] | None = None, *, columns: int = 3) -> None:
    """Put a frameless legend under a panel, where it hides nothing."""
    options: dict[str, Any] = {} if handles is None else {"handles": list(handles)}
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        ncols=columns,
        frameon=False,
        fontsize=TEXT_SIZE,
        handlelength=1.6,
        borderaxespad=0.2,
        **options,
    )


def png_of(figure: Figure, *, dots_per_inch: float = 130.0) -> bytes:
    """Render a figure as PNG bytes that depend on nothing but the figure.

    Parameters
    ----------
    figure : Figure
        Any of this package's figures.
    dots_per_inch : float
        Resolution.
    """
    buffer = io.BytesIO()
    # Without this matplotlib writes its version into the file.
    figure.savefig(buffer, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return buffer.getvalue()
