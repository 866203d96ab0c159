"""Where a patch filter sees signal, and what its threshold keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import AsinhNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from denoizarr.errors import BadRequest
from denoizarr.figures import canvas

_TINT = (0.0, 0.447, 0.698, 0.58)
_KEPT = "#b9b9b9"
_UNSCORED = "#dddddd"
_FEW_PIXELS = 120
# Pictures wider than this stand one above the other instead of side by side.
_WIDE = 2.4
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class _Map:
    """One map as it is drawn."""

    label: str
    scores: np.ndarray
    threshold: float | None
    limits: tuple[float, float]
    linear_width: float | None

    def norm(self) -> Normalize:
        """Colours: equal steps, or logarithmic far from zero where a few cells are far brighter."""
        low, high = self.limits
        if self.linear_width is None:
            return Normalize(low, high)
        return AsinhNorm(self.linear_width, low, high)

    def mark(self) -> float | None:
        """Return where the threshold is drawn: nowhere if it is far off all scores."""
        low, high = self.limits
        inside = self.threshold is not None and low <= self.threshold <= high
        return self.threshold if inside else None


def filter_map_figure(
    plane: Any,
    maps: Mapping[str, Any],
    keep: Any = None,
    *,
    thresholds: Mapping[str, float] | None = None,
    cell_shape: tuple[int, int],
    title: str = "Where the patch filter sees signal",
    plane_label: str | None = None,
    origin: str | None = None,
) -> Figure:
    """Draw an image, its filter maps, the cells that are kept and the histogram of scores.

    Parameters
    ----------
    plane : (y, x) array
        One plane of the image, any real dtype, raw intensities.
    maps : mapping of str to (cells y, cells x) array
        One map or two, under what its score is, with the unit: "Shannon entropy (bit)". The last row and
        column of cells may reach past the image. NaN: not scored.
    keep : (cells y, cells x) array of bool, optional
        True where a cell is kept. Without it, the cells that reach every threshold.
    thresholds : mapping of str to float, optional
        By the labels of ``maps``, any of which may be absent. Marked in the histogram and on the colour bar.
    cell_shape : (int, int)
        Pixels of ``plane`` per cell, (y, x).
    title : str
        Title of the figure.
    plane_label : str, optional
        Which plane this is: "z = 13".
    origin : str, optional
        Where the thresholds come from, as it reads in brackets: "suggested from the scores of 26 planes".

    Returns
    -------
    matplotlib.figure.Figure
        Axes in this order: image, every map, kept cells, one histogram per map; a colour bar is a child of
        its map.

    Raises
    ------
    BadRequest
        When a map's grid does not cover the image, ``keep`` has another shape than the maps, there is no
        map, or a threshold belongs to none of them.
    """
    image = canvas.plane_of(plane)
    needed = tuple(-(-size // cell) for size, cell in zip(image.shape, cell_shape, strict=True))
    drawn = _checked(maps, thresholds or {}, needed)
    kept = _kept(drawn, keep)

    caption = _caption(drawn, kept, cell_shape, origin)
    figure, pictures, histograms = _panels(image.shape, len(drawn), title, caption)
    limits = canvas.contrast_limits(image)
    extent = (-0.5, needed[1] * cell_shape[1] - 0.5, needed[0] * cell_shape[0] - 0.5, -0.5)
    for panel in (pictures[0], pictures[-1]):
        canvas.show_image(panel, image, limits=limits, every_pixel=max(image.shape) <= _FEW_PIXELS)
    canvas.panel_title(pictures[0], "Image" if plane_label is None else f"Image, {plane_label}")
    for panel, part in zip(pictures[1:-1], drawn, strict=True):
        _map_panel(figure, panel, part, extent, cell_shape)
    _kept_panel(pictures[-1], kept, extent, cell_shape)
    for panel in pictures:
        # The last cells may reach past the image; nothing is there to be seen.
        panel.set_xlim(-0.5, image.shape[1] - 0.5)
        panel.set_ylim(image.shape[0] - 0.5, -0.5)
    for panel, part in zip(histograms, drawn, strict=True):
        # The same colours in every panel: with two maps a cell may be dropped by the other's threshold.
        _histogram(panel, part, kept)
    return figure


def _checked(maps: Mapping[str, Any], thresholds: Mapping[str, float], needed: tuple[int, ...]) -> list[_Map]:
    if not maps:
        raise BadRequest("no filter map to draw", where="maps", got="none", expected="one or two")
    stray = [label for label in thresholds if label not in maps]
    if stray:
        raise BadRequest("a threshold of no map", where="thresholds", got=stray, expected=list(maps))
    drawn = []
    for label, given in maps.items():
        scores = canvas.plane_of(given, "filter map").astype(np.float64)
        if scores.shape != needed:
            raise BadRequest(
                "the filter map is of another image or patch size",
                where=label,
                got=f"{scores.shape} cells",
                expected=needed,
            )
        drawn.append(_scaled(label, scores, thresholds.get(label)))
    return drawn


def _scaled(label: str, scores: np.ndarray, threshold: float | None) -> _Map:
    """Choose what the colours and the histogram span, and whether equally."""
    if threshold is not None and not np.isfinite(threshold):
        threshold = None
    low, high = canvas.contrast_limits(scores, 0, 100)
    if threshold is not None and 2 * low - high <= threshold <= 2 * high - low:
        low, high = min(low, threshold), max(high, threshold)
    finite = scores[np.isfinite(scores)]
    middle = float(np.median(np.abs(finite))) if finite.size else 0.0
    scale = max(min(middle, threshold), middle / 20) if threshold is not None and threshold > 0 else middle
    skewed = low >= 0 and 0 < scale < high / 8
    return _Map(label, scores, threshold, (low, high), scale if skewed else None)


def _reaches(part: _Map) -> np.ndarray:
    if part.threshold is None:
        return np.ones(part.scores.shape, bool)
    reached: np.ndarray = part.scores >= part.threshold
    return reached


def _kept(drawn: list[_Map], keep: Any) -> np.ndarray:
    if keep is None:
        every: np.ndarray = np.logical_and.reduce([_reaches(part) for part in drawn])
        return every
    kept = np.asarray(keep).astype(bool)
    shape = drawn[0].scores.shape
    if kept.shape != shape:
        raise BadRequest("the kept cells do not match the filter map", got=kept.shape, expected=shape)
    return kept


def _panels(
    shape: tuple[int, ...], number: int, title: str, caption: str
) -> tuple[Figure, list[Axes], list[Axes]]:
    """Lay out the pictures, side by side or, of a wide image, one above the other; the histograms below."""
    height, width = shape
    pictures = number + 2
    page = 11.0 if pictures == 3 else 14.0
    stacked = width > _WIDE * height
    each = (page - 1.6) * height / width if stacked else (page / pictures - 0.75) * height / width
    each = float(np.clip(each, 0.5, 6.5))
    rows = pictures if stacked else 1
    # Room for the titles of the pictures, the histograms, the title and the caption.
    # Wrapped early: hinting at a low resolution makes letters wider than they are on paper.
    caption = canvas.wrapped(caption, 0.92 * page)
    figure = canvas.new_canvas(title, caption, width=page, height=rows * (each + 0.45) + 4.5)
    grid = figure.add_gridspec(2, 1, height_ratios=(rows * (each + 0.45), 2.5))
    upper = grid[0].subgridspec(rows, 1 if stacked else pictures)
    lower = grid[1].subgridspec(1, number)
    return (
        figure,
        [figure.add_subplot(upper[index]) for index in range(pictures)],
        [figure.add_subplot(lower[index]) for index in range(number)],
    )


def _map_panel(
    figure: Figure,
    panel: Axes,
    part: _Map,
    extent: tuple[float, float, float, float],
    cell_shape: tuple[int, int],
) -> None:
    panel.set_facecolor(_UNSCORED)
    picture = panel.imshow(
        part.scores, cmap=canvas.SCORE_MAP, norm=part.norm(), extent=extent, interpolation="nearest"
    )
    canvas.without_ticks(panel)
    canvas.panel_title(panel, _sentence_case(part.label))
    _outline(panel, _reaches(part), cell_shape)
    # Inside the map's own axes, so that the bar is as tall as the picture whatever its proportions.
    height, width = part.scores.shape[0] * cell_shape[0], part.scores.shape[1] * cell_shape[1]
    thick = 0.02 if width > _WIDE * height else max(0.05, 0.03 * height / width)
    place = panel.inset_axes((1 + 0.6 * thick, 0.0, thick, 1.0))
    bar = canvas.colour_bar(figure, picture, None, "", cax=place)
    if part.linear_width is not None:
        bar.set_ticks(_ticks(part), labels=[f"{tick:,.10g}" for tick in _ticks(part)])
        bar.ax.minorticks_off()
    mark = part.mark()
    if mark is not None:
        bar.ax.axhline(mark, color="white", linewidth=4.5)
        bar.ax.axhline(mark, color=canvas.VERMILION, linewidth=2.5)
        # Beside the bar as well: on its own end a line would be half hidden.
        bar.ax.plot(
            [-0.25], [mark], marker=">", color=canvas.VERMILION, markersize=7, clip_on=False,
            transform=bar.ax.get_yaxis_transform(),
        )  # fmt: skip


def _kept_panel(
    panel: Axes,
    kept: np.ndarray,
    extent: tuple[float, float, float, float],
    cell_shape: tuple[int, int],
) -> None:
    tint = np.zeros((*kept.shape, 4))
    tint[~kept] = _TINT
    panel.imshow(tint, extent=extent, interpolation="nearest")
    _outline(panel, kept, cell_shape)
    counted = f"Kept: {int(kept.sum()):,} of {kept.size:,} cells"
    canvas.panel_title(panel, "All cells kept" if kept.all() else counted)
    if not kept.all():
        tinted = Patch(facecolor=canvas.BLUE, alpha=_TINT[3], label="background: rarely trained on")
        canvas.legend_below(panel, [tinted])


def _outline(panel: Axes, kept: np.ndarray, cell_shape: tuple[int, int]) -> None:
    """Draw the border between kept and other cells along the cells' edges."""
    high, wide = cell_shape
    rows, columns = np.nonzero(kept[1:] != kept[:-1])
    level = (rows + 1) * high - 0.5
    segments = [
        np.stack(
            [np.stack([columns * wide - 0.5, level], 1), np.stack([(columns + 1) * wide - 0.5, level], 1)], 1
        )
    ]
    rows, columns = np.nonzero(kept[:, 1:] != kept[:, :-1])
    upright = (columns + 1) * wide - 0.5
    segments.append(
        np.stack(
            [np.stack([upright, rows * high - 0.5], 1), np.stack([upright, (rows + 1) * high - 0.5], 1)], 1
        )
    )
    # Thinner where there are many cells, so that they do not drown in their borders.
    thin = float(np.clip(30 / max(kept.shape), 0.5, 1.3))
    panel.add_collection(
        LineCollection(list(np.concatenate(segments)), colors=canvas.VERMILION, linewidths=thin),
        autolim=False,
    )


def _histogram(axes: Axes, part: _Map, kept: np.ndarray) -> None:
    finite = np.isfinite(part.scores)
    values, inside = part.scores[finite], kept[finite]
    if part.linear_width is not None:
        axes.set_xscale("asinh", linear_width=part.linear_width)
    if values.size:
        groups = [(values[~inside], canvas.BLUE, "background"), (values[inside], _KEPT, "kept")]
        shown = [group for group in groups if group[0].size]
        axes.hist(
            [group[0] for group in shown],
            bins=list(_edges(part, int(np.clip(np.sqrt(values.size), 20, 60)))),
            stacked=True,
            color=[group[1] for group in shown],
            label=[group[2] for group in shown],
        )
    mark = part.mark()
    handles, labels = axes.get_legend_handles_labels()
    if part.threshold is not None:
        text = f"threshold {canvas.short_number(part.threshold)}"
        if mark is not None:
            axes.axvline(mark, color=canvas.VERMILION, linewidth=2, label=text)
        else:
            text += ", above all scores" if part.threshold > part.limits[1] else ", below all scores"
        handles, labels = [*handles, Line2D([], [], color=canvas.VERMILION, linewidth=2)], [*labels, text]
    # Beside the title, where it hides no bar.
    axes.legend(
        handles,
        labels,
        loc="lower right",
        bbox_to_anchor=(1.0, 0.99),
        ncols=3,
        frameon=False,
        fontsize=canvas.TEXT_SIZE,
        handlelength=1.4,
        columnspacing=1.2,
    )
    canvas.panel_title(axes, "Cells of this plane by score")
    canvas.plain_plot(axes, x_label=part.label, y_label="cells")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    if part.linear_width is not None:
        axes.set_xticks(_ticks(part), labels=[f"{tick:,.10g}" for tick in _ticks(part)])
        axes.minorticks_off()


def _ticks(part: _Map) -> list[float]:
    """Round numbers: 1, 2, 5 or, over many decades, 1 alone, times powers of ten."""
    low, high = part.limits
    powers = range(int(np.floor(np.log10(part.linear_width or 1))), int(np.ceil(np.log10(high))) + 1)
    leading = (1, 2, 5) if len(powers) < 5 else (1,)
    ticks = [float(f"{digit}e{power}") for power in powers for digit in leading]
    return [tick for tick in [0.0, *ticks] if low <= tick <= high]


def _edges(part: _Map, number: int) -> np.ndarray:
    """Bins that are equal on the axis drawn, one edge on the threshold so that no bar is half kept."""
    scale = part.linear_width
    places = np.array([*part.limits, part.mark() if part.mark() is not None else part.limits[0]])
    bottom, top, start = places if scale is None else np.arcsinh(places / scale)
    width = (top - bottom) / number
    # A whole number but for rounding is that number: no bin of nothing beyond an extreme.
    first = np.floor((bottom - start) / width + _ROUNDING)
    last = np.ceil((top - start) / width - _ROUNDING)
    edges: np.ndarray = start + width * np.arange(first, last + 1)
    if scale is not None:
        edges = scale * np.sinh(edges)
    if part.mark() is not None:
        # Exactly: through the functions above it would come back with its last bit changed.
        edges[int(-first)] = part.mark()
    # Nor may rounding leave the extremes outside.
    edges[0], edges[-1] = min(edges[0], part.limits[0]), max(edges[-1], part.limits[1])
    return edges


def _caption(drawn: list[_Map], kept: np.ndarray, cell_shape: tuple[int, int], origin: str | None) -> str:
    high, wide = cell_shape
    cell = (
        "A cell is one square of the map, as large as one training patch "
        f"({high} × {wide} pixels of this picture, y × x); its score takes in its neighbours."
    )
    words = [
        cell,
        _what_is_kept(drawn, kept, "" if origin is None else f" ({origin})"),
    ]
    if not kept.all() and any(part.threshold is not None for part in drawn):
        words.append(
            "The others, under blue, are background. Orange-red is the threshold: if blue covers structure "
            "you care about, lower it; if empty background is left clear, raise it."
        )
    if any(part.linear_width is not None for part in drawn):
        words.append("High scores are drawn on a logarithmic scale: a few cells are far above the others.")
    if any(not np.isfinite(part.scores).all() for part in drawn):
        words.append("Grey cells have no score.")
    return " ".join(words)


def _what_is_kept(drawn: list[_Map], kept: np.ndarray, source: str) -> str:
    held = [(part.label, canvas.short_number(part.threshold)) for part in drawn if part.threshold is not None]
    count = f"{int(kept.sum()):,} of {kept.size:,} ({100 * float(kept.mean()):.0f} %) in this plane"
    if not held and kept.all():
        return f"No threshold is set{source}: every cell is trained on equally."
    if not held:
        return f"Kept are {count}; no threshold on these scores is set{source}."
    reached = f"the threshold of {held[0][1]}"
    if len(drawn) > 1:
        reached = " and ".join(f"{value} in {_lower(label)}" for label, value in held)
    if kept.all():
        return f"Every cell here reaches {reached}{source} and is kept. If you see empty areas, raise it."
    return f"Cells that reach {reached}{source} count as signal and are kept: {count}."


def _sentence_case(label: str) -> str:
    return label[:1].upper() + label[1:]


def _lower(label: str) -> str:
    """Begin a label in small letters inside a sentence, names apart."""
    return label if label[:7] == "Shannon" else label[:1].lower() + label[1:]
