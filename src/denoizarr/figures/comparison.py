"""Before, after, and what was taken away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from denoizarr.errors import BadRequest
from denoizarr.figures import canvas

RESIDUAL_LIMIT = 4.0
"""The residual is drawn from minus to plus this many standard deviations of the noise."""

_READING = (
    "Every row has one contrast for raw and denoised. The right column is what was removed: it should look "
    "like noise without shapes. Edges or objects in it are signal that was lost."
)
_TARGET_READING = (
    "The network predicts a target, whose grey levels may be others than the raw image's: every picture has "
    "its own contrast, and no difference is shown. Shapes of which the raw image shows nothing may be "
    "invented; shapes that the result lacks are lost."
)


@dataclass(frozen=True, slots=True)
class Crop:
    """A square part of a plane that is shown enlarged, and why."""

    y: int
    x: int
    side: int
    reason: str

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the crop in the plane."""
        return slice(self.y, self.y + self.side), slice(self.x, self.x + self.side)


def comparison_figure(
    raw: Any,
    stage1: Any,
    denoised: Any,
    residual: Any = None,
    *,
    noise_sigma: float | np.ndarray | None = None,
    pixel_size_um: tuple[float, float] | None = None,
    crops: list[Crop] | None = None,
    title: str = "Before and after",
    note: str = "",
    other_grey_levels: bool = False,
) -> Figure:
    """Draw a plane before and after, what was removed, and enlarged parts.

    Parameters
    ----------
    raw, denoised : (y, x) array
        Raw intensities, before and after.
    stage1 : (y, x) array or None
        The result of the first stage, where it was kept.
    residual : (y, x) array, optional
        What was removed; raw minus denoised by default.
    noise_sigma : float or (y, x) array, optional
        Standard deviation of the noise in ``raw``, in grey levels; one value per pixel where it grows with
        brightness; the spread of the residual by default.
    pixel_size_um : (float, float), optional
        Height and width of a pixel in micrometres; draws a scale bar and the right proportions.
    crops : list of Crop, optional
        Parts to enlarge; :func:`choose_crops` by default.
    title : str
        Title of the figure.
    note : str
        Added to the caption.
    other_grey_levels : bool
        The result is a prediction of a target, whose grey levels may be others than the raw image's: every
        picture then has its own contrast, and there is no residual to draw.

    Returns
    -------
    matplotlib.figure.Figure
        Rows: the whole plane, then one per crop. Columns: raw, first stage where given, denoised, residual.
        Each row has one contrast but for the residual, unless grey levels are others.

    Raises
    ------
    BadRequest
        When the planes differ in shape.
    """
    before, after = canvas.plane_of(raw), canvas.plane_of(denoised)
    planes = [("Raw", before)]
    if stage1 is not None:
        planes.append(("After stage 1", canvas.plane_of(stage1)))
    planes.append(("Denoised", after))
    for name, plane in planes:
        _check_extent(name, plane, before)
    removed = scaled = sigma = None
    if not other_grey_levels:
        removed = before.astype(np.float64) - after if residual is None else canvas.plane_of(residual)
        _check_extent("residual", removed, before)
        sigma = np.asarray(spread(removed) if noise_sigma is None else noise_sigma, np.float64)
        scaled = removed.astype(np.float64) / np.where(sigma > 0, sigma, 1.0)
    shown = choose_crops(after, removed) if crops is None else crops

    aspect = pixel_size_um[0] / pixel_size_um[1] if pixel_size_um else 1.0
    columns, rows = len(planes) + (scaled is not None), len(shown) + 1
    # One width on the page whatever the number of columns, so that the letters keep their size.
    side = 9.9 / columns
    overview = side * float(np.clip(before.shape[0] * aspect / before.shape[1], 0.35, 1.6))
    heights = [overview, *[side * aspect] * len(shown)]
    caption = _caption(shown, note, other_grey_levels)
    figure = canvas.new_canvas(title, caption, width=11.4, height=sum(heights) + 2.1)
    panels = figure.subplots(rows, columns, height_ratios=heights, squeeze=False)
    for row in range(rows):
        part = (slice(None), slice(None)) if row == 0 else shown[row - 1].slices
        label = "Whole plane" if row == 0 else f"{row}: {shown[row - 1].reason}"
        _planes_row(panels[row], [plane[part] for _, plane in planes], label, other_grey_levels, row, aspect)
        if pixel_size_um:
            _scale_bar(panels[row, 0], before[part].shape, pixel_size_um)
    for panel, (name, _) in zip(panels[0], planes, strict=False):
        canvas.panel_title(panel, name)
    if scaled is not None and sigma is not None:
        canvas.panel_title(panels[0, -1], "Removed (raw − denoised)")
        picture = _residual_column(panels[:, -1], scaled, shown, aspect)
        canvas.colour_bar(figure, picture, list(panels[:, -1]), _residual_label(sigma))
    for panel in panels[0]:
        _mark(panel, shown)
    return figure


def _check_extent(name: str, plane: np.ndarray, before: np.ndarray) -> None:
    if plane.shape != before.shape:
        raise BadRequest(
            f"the planes to compare differ in shape ({name})", got=plane.shape, expected=before.shape
        )


def _planes_row(
    panels: np.ndarray, planes: list[np.ndarray], label: str, apart: bool, row: int, aspect: float
) -> None:
    """Draw one part of every plane, at the contrast of the first, or ``apart``, each at its own."""
    high = 99.7 if row == 0 else 99.2
    limits = canvas.contrast_limits(planes[0], high=high)
    for column, (panel, plane) in enumerate(zip(panels, planes, strict=False)):
        if apart:
            limits = canvas.contrast_limits(plane, high=high)
        canvas.show_image(panel, plane, limits=limits, aspect=aspect, every_pixel=row > 0)
        grey = "black {}, white {}".format(*(canvas.short_number(value) for value in limits))
        if column == 0:
            panel.set_ylabel(f"{label}\n{grey}", fontsize=canvas.TEXT_SIZE, color=canvas.INK)
        elif apart:
            panel.set_ylabel(grey, fontsize=canvas.TEXT_SIZE, color=canvas.INK)


def _residual_column(panels: np.ndarray, scaled: np.ndarray, crops: list[Crop], aspect: float) -> AxesImage:
    parts = [(slice(None), slice(None)), *(crop.slices for crop in crops)]
    pictures = [
        canvas.show_image(
            panel,
            scaled[part],
            limits=(-RESIDUAL_LIMIT, RESIDUAL_LIMIT),
            colours=canvas.SIGNED_MAP,
            every_pixel=row > 0,
            aspect=aspect,
        )
        for row, (panel, part) in enumerate(zip(panels, parts, strict=True))
    ]
    return pictures[-1]


def choose_crops(denoised: np.ndarray, residual: np.ndarray | None, side: int | None = None) -> list[Crop]:
    """Choose what to enlarge: most structure, flattest part, and where the residual is least like noise.

    Parameters
    ----------
    denoised : (y, x) array
        The result.
    residual : (y, x) array or None
        What was removed; without it, the last of the three is left out.
    side : int, optional
        Pixels; a sixth of the shorter side by default, between 48 and 192.

    Returns
    -------
    list of Crop
        One to three that do not overlap; fewer where the plane is small.
    """
    shortest = min(denoised.shape)
    side = min(int(np.clip(shortest // 6, 48, 192)) if side is None else side, shortest)
    step = max(side // 2, 1)
    tops, lefts = (np.arange(0, size - side + 1, step) for size in denoised.shape)
    ground = denoised if residual is None else residual
    smooth, coarse = _coarse(denoised), _coarse(ground)
    structure, bias, empty = (np.zeros((len(tops), len(lefts))) for _ in range(3))
    for row, y in enumerate(tops):
        for column, x in enumerate(lefts):
            part = (slice(y // 4, (y + side) // 4), slice(x // 4, (x + side) // 4))
            structure[row, column] = _slope(smooth[part])
            bias[row, column] = coarse[part].std() if coarse[part].size else 0.0
            # A masked-out border has no noise to look at: not the flat part that anyone wants to see.
            empty[row, column] = np.ptp(ground[y : y + side : 3, x : x + side : 3]) == 0
    free = np.ones(structure.shape, bool)
    crops: list[Crop] = []
    wishes = [
        ("most structure", structure),
        ("flattest part", np.where(empty > 0, -np.inf, -structure)),
        ("least like noise", bias),
    ]
    for reason, score in wishes if residual is not None else wishes[:2]:
        if not free.any():
            break
        row, column = divmod(int(np.argmax(np.where(free, score, -np.inf))), score.shape[1])
        if not np.isfinite(score[row, column]):
            continue
        y, x = int(tops[row]), int(lefts[column])
        crops.append(Crop(y, x, side, reason))
        free &= (np.abs(tops - y) >= side)[:, None] | (np.abs(lefts - x) >= side)[None, :]
    return crops


def spread(residual: np.ndarray) -> float:
    """Estimate the standard deviation from the median absolute deviation, never zero."""
    values = residual[np.isfinite(residual)]
    if values.size == 0:
        return 1.0
    robust = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    return robust or float(values.std()) or 1.0


def _coarse(plane: np.ndarray, factor: int = 4) -> np.ndarray:
    height, width = (size // factor * factor for size in plane.shape)
    if height == 0 or width == 0:
        return plane.astype(np.float64)
    blocks = (
        plane[:height, :width].astype(np.float64).reshape(height // factor, factor, width // factor, factor)
    )
    means: np.ndarray = blocks.mean(axis=(1, 3))
    return means


def _slope(plane: np.ndarray) -> float:
    steps = [np.abs(np.diff(plane, axis=axis)) for axis in (0, 1)]
    return float(sum(step.mean() for step in steps if step.size))


def _mark(axes: Axes, crops: list[Crop]) -> None:
    for number, crop in enumerate(crops, start=1):
        corner = (crop.x - 0.5, crop.y - 0.5)
        axes.add_patch(
            Rectangle(corner, crop.side, crop.side, fill=False, edgecolor=canvas.ORANGE, linewidth=1.5)
        )
        axes.text(
            crop.x + crop.side * 0.08,
            crop.y + crop.side * 0.08,
            str(number),
            color="black",
            backgroundcolor=canvas.ORANGE,
            fontsize=8,
            va="top",
            bbox={"facecolor": canvas.ORANGE, "edgecolor": "none", "pad": 1.5},
        )


def _scale_bar(axes: Axes, shape: tuple[int, ...], pixel_size_um: tuple[float, float]) -> None:
    """Draw a bar of a round length, about a quarter of the panel, in its lower left corner."""
    height, width = shape
    wanted = 0.25 * width * pixel_size_um[1]
    power = 10.0 ** np.floor(np.log10(wanted))
    length = float(max(step * power for step in (1, 2, 5) if step * power <= wanted))
    pixels = length / pixel_size_um[1]
    label = f"{length:g} µm" if length >= 1 else f"{length * 1000:g} nm"
    left, bottom, thick = 0.05 * width, 0.95 * height, max(0.012 * height, 1.0)
    axes.add_patch(
        Rectangle((left, bottom - thick), pixels, thick, facecolor="white", edgecolor="black", linewidth=0.6)
    )
    axes.text(
        left + pixels / 2,
        bottom - 2 * thick,
        label,
        ha="center",
        va="bottom",
        fontsize=8.5,
        color="white",
        bbox={"facecolor": "black", "alpha": 0.55, "edgecolor": "none", "pad": 1.5},
    )


def _residual_label(sigma: np.ndarray) -> str:
    low, high = (canvas.short_number(float(value)) for value in (sigma.min(), sigma.max()))
    if low == high:
        return f"removed ÷ noise (1 is {low} grey levels)"
    return f"removed ÷ noise (1 is {low} grey levels where dark, {high} where bright)"


def _caption(crops: list[Crop], note: str, other_grey_levels: bool) -> str:
    reading = _TARGET_READING if other_grey_levels else _READING
    lines = [reading]
    if crops:
        lines.append(
            "Numbered squares are enlarged below, chosen by the program: "
            + ", ".join(f"{number} {crop.reason}" for number, crop in enumerate(crops, start=1))
            + "."
        )
    return " ".join([*lines, note]).strip()
