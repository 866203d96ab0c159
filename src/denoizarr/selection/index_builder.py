"""From images to a patch index: score the cells, choose a threshold, give every cell its class."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from denoizarr.engine.cluster import usable_cores
from denoizarr.errors import EmptyIndex
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import Grid
from denoizarr.stores.images import ImageLike, as_images

from .cell_classes import BACKGROUND, OUTSIDE, SIGNAL, CellClasses, Classes, piece_shape
from .cells import Cells, PatchSize, patch_extents
from .filters import MaskPatchFilter, MeanStdPatchFilter, PatchFilter
from .image_scores import ImageScores, score_image
from .index_settings import IndexSettings, checked_settings
from .patch_index import PatchIndex, identity_of
from .regions_of_interest import RegionOfInterest
from .roi_windows import nothing_selected
from .score_text import histogram_text

_LOG = logging.getLogger(__name__)


def build_index(
    image: ImageLike | Sequence[ImageLike],
    patch_size: PatchSize,
    *,
    patch_filter: PatchFilter | Sequence[PatchFilter] | None = None,
    mask: ImageLike | Sequence[ImageLike] | None = None,
    roi: RegionOfInterest | None = None,
    filtered_patch_prob: float = 0.1,
    seed: int = 0,
    client: Any = None,
) -> PatchIndex:
    """Score one image or several, and index where to draw patches.

    Parameters
    ----------
    image : an image, a glob, or a list of images
        Of any sizes, but with the same dims and dtype.
    patch_size : int, (y, x) or (z, y, x)
    patch_filter : a patch filter, or a sequence of one and a MaskPatchFilter, optional
        A filter without a threshold chooses it from the map. Not applied where ``roi`` selects background:
        together they would leave nothing.
    mask : an image, an array or a file, or a list with one for each image, optional
        The voxels that count; see :func:`denoizarr.selection.masks.aligned_mask`. How much of a region it
        must cover, a MaskPatchFilter says.
    roi : RegionOfInterest, optional
        Cells whose centres lie in no selected window have weight 0.
    filtered_patch_prob : float
        Weight of the cells that filter or mask do not keep; the others have 1.
    seed : int
        Kept in the settings; an index itself draws nothing.
    client : distributed.Client, optional
        Scores the image; the threads of this process do without one.

    Returns
    -------
    PatchIndex

    Raises
    ------
    PatchTooLarge
        A patch does not fit into an image.
    EmptyIndex
        Nothing is kept; the message shows the scores and names a threshold that would do.
    BadRequest
        Images of different dims or dtypes, a ``ref_channel`` that an image does not have, a probability
        outside [0, 1].
    MisalignedGrid
        A mask has another extent than its image.
    NonFiniteData, DegenerateData
        The image holds NaN or infinity, or nothing but one value.
    """
    images = as_images(image)
    settings = checked_settings(
        images,
        patch_extents(patch_size),
        patch_filter=patch_filter,
        mask=mask,
        roi=roi,
        filtered_patch_prob=filtered_patch_prob,
        seed=seed,
    )
    scores = [
        score_image(opened, settings, number, client=client, threads=usable_cores())
        for number, opened in enumerate(images)
    ]
    return index_of(scores, settings)


def index_of(scores: Sequence[ImageScores], settings: IndexSettings) -> PatchIndex:
    """Weigh the cells of images that are measured already; see :func:`build_index`."""
    images = [s.image for s in scores]
    dims = tuple(str(d) for d in images[0].dims if d != "c")
    shapes = [tuple(int(i.sizes[d]) for d in dims) for i in images]
    cells = [Cells(dims, shape, settings.patch) for shape in shapes]
    described, rules = settings.described(), _rules(scores, settings)
    for name, chosen, _ in rules:
        described |= chosen.settings() if name == "filter" else {name: described[name] | chosen.settings()}
    classes = [
        CellClasses.of_pieces(grid.counts, _classes_of(number, grid, rules, found, settings.roi))
        for number, (grid, found) in enumerate(zip(cells, scores, strict=True))
    ]
    counts = np.zeros(3, np.int64)
    for piece in (p for c in classes for p in c.pieces()):
        counts += np.bincount(piece, minlength=3)
    if counts[SIGNAL] == 0 and (rules or settings.roi is not None):
        raise _nothing_left(rules, scores, settings, counts)
    table = np.array([settings.filtered_patch_prob, 1, 0], np.float32)
    statistics = [s.statistics for s in scores]
    index = PatchIndex(
        patch_size=settings.patch,
        dims=dims,
        shapes=shapes,
        classes=classes,
        table=table,
        images=[identity_of(i) for i in images],
        axes=[{d: _axis_of(i, d) for d in dims} for i in images],
        settings=described,
        statistics=[s for s in statistics if s is not None] if None not in statistics else None,
    )
    _LOG.info("%s", index.summary())
    return index


_Rule = tuple[str, PatchFilter, list[xr.DataArray]]


def _rules(scores: Sequence[ImageScores], settings: IndexSettings) -> list[_Rule]:
    """Return the filters that apply, with their thresholds chosen, and the maps that they apply to."""
    rules: list[_Rule] = []
    if settings.applied_filter is not settings.score_filter:
        _LOG.info("The patch filter is off: background is looked for, and the two would leave nothing.")
    if settings.applied_filter is not None:
        maps = [s.filter_map for s in scores if s.filter_map is not None]
        rules.append(("filter", settings.applied_filter.resolved(*maps), maps))
    if settings.mask_filter is not None:
        maps = [s.mask_map for s in scores if s.mask_map is not None]
        rules.append(("mask", settings.mask_filter.resolved(*maps), maps))
    return rules


def _pieces(shape: tuple[int, ...]) -> Iterator[Box]:
    """Yield boxes of about a hundred thousand cells, in C order: the maps are never held whole."""
    return iter(Grid(shape, piece_shape(shape)))


def _values(filter_map: xr.DataArray, box: Box) -> NDArray[np.float64]:
    lead = (slice(None),) * (filter_map.ndim - len(box.shape))
    return np.asarray(filter_map.data[lead + box.slices], np.float64)


def _axis_of(image: xr.DataArray, dim: str) -> dict[str, Any]:
    coordinate = (
        image.coords[dim] if dim in image.coords else xr.DataArray(np.arange(image.sizes[dim]), dims=dim)
    )
    values = np.asarray(coordinate.values, float)
    attrs = {k: v for k, v in coordinate.attrs.items() if k == "units"}
    spacing = float(values[1] - values[0]) if values.size > 1 else float(coordinate.attrs.get("spacing", 1.0))
    return {"first": float(values[0]), "spacing": spacing, "attrs": attrs}


def _scores_of(maps: Sequence[xr.DataArray], value: int) -> Callable[[], Iterator[NDArray[np.float64]]]:
    """Return what yields one of the maps' values (mean, std) a piece at a time."""

    def pieces() -> Iterator[NDArray[np.float64]]:
        for filter_map in maps:
            one = filter_map.isel(statistic=value) if "statistic" in filter_map.dims else filter_map
            for box in _pieces(one.shape):
                yield _values(one, box)

    return pieces


def _classes_of(
    number: int, cells: Cells, rules: Sequence[_Rule], scores: ImageScores, roi: RegionOfInterest | None
) -> Iterator[Classes]:
    """Yield the classes of one image, a piece at a time in C order."""
    inside = None
    if roi is not None:
        assert scores.windows is not None, "regions of interest were asked for and not measured"
        inside = scores.windows.cells(cells, roi)
    for box in _pieces(cells.counts):
        piece = np.full(box.shape, SIGNAL, np.uint8)
        for _, chosen, maps in rules:
            # Ones, and every rule takes some away.
            piece &= chosen.keeps(_values(maps[number], box), chosen.thresholds)
        if inside is not None:
            piece[~inside[box.slices]] = OUTSIDE
        yield piece


def _nothing_left(
    rules: Sequence[_Rule], scores: Sequence[ImageScores], settings: IndexSettings, counts: NDArray[np.int64]
) -> EmptyIndex:
    """Return the error that says which of filter, mask and regions of interest left nothing."""
    windows = next((s.windows for s in scores if s.windows is not None), None)
    if windows is not None and settings.roi is not None and counts[BACKGROUND] == 0:
        return nothing_selected(windows, settings.roi)
    return _nothing_kept(rules)


def _nothing_kept(rules: Sequence[_Rule]) -> EmptyIndex:
    """Return the error, of the rule that leaves least, with its scores and a threshold that would do."""
    if len(rules) == 2:
        return EmptyIndex(
            "no cell is kept by both filter and mask",
            where=" and ".join(type(chosen).__name__ for _, chosen, _ in rules),
            got=", ".join(str(chosen.thresholds) for _, chosen, _ in rules),
            remedy="lower the filter's threshold or the mask's coverage",
        )
    _, chosen, maps = rules[0]
    shown, largest = [], []
    for value, threshold in enumerate(chosen.thresholds):
        text, high = histogram_text(_scores_of(maps, value))
        shown.append(
            f"threshold {threshold:g} on scores {text}" if threshold is not None else f"scores {text}"
        )
        largest.append(high)
    both = ", reached by the same cell" if len(largest) == 2 else ""
    if isinstance(chosen, MaskPatchFilter):
        if largest[0] == 0:
            return EmptyIndex(
                "the mask is zero everywhere under the image",
                where="mask",
                remedy="check the file, its channel, and how it reads chunks that its store lacks",
            )
        # A thin mask may cover less of every region than the usual coverage.
        better = {"coverage": min(chosen.suggest_threshold(maps[0]), largest[0])}
    else:
        better = {chosen.threshold_name: chosen.suggestion(*maps).threshold}
    if isinstance(chosen, MeanStdPatchFilter) and chosen.std_threshold is not None:
        # Of the cells that the better mean keeps: the two must be reached by the same one.
        reached = [v[1][v[0] >= better["mean_threshold"]] for v in _pairs(maps)]
        better["std_threshold"] = min(chosen.std_threshold, max(float(s.max()) for s in reached if s.size))
    return EmptyIndex(
        "the patch filter keeps no cell",
        where=type(chosen).__name__,
        got="; ".join(shown),
        expected=f"at most {' and '.join(map(_at_most, largest))}{both}",
        remedy=", ".join(f"{name}={_at_most(value)}" for name, value in better.items())
        + " is what this image's own scores suggest",
    )


def _pairs(maps: Sequence[xr.DataArray]) -> Iterator[NDArray[np.float64]]:
    return (_values(m, box) for m in maps for box in _pieces(m.shape[1:]))


def _at_most(value: float) -> str:
    """Write a number in six digits, or in all where six would be more than it: no cell would reach that."""
    text = f"{value:g}"
    return text if float(text) <= value else repr(float(value))
