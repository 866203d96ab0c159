"""What the patch index and the filter map say about one plane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from denoizarr.errors import BadRequest
from denoizarr.selection.patch_index import PatchIndex
from denoizarr.selection.region_arrays import open_cells
from denoizarr.stores import locations

from .planes import Planes
from .run_folder import RunFolder, number_in

_DRAWN = 40_000
_ENOUGH = 40

_LABELS = {
    "shannon": ("Shannon entropy (bit)",),
    "max": ("maximum (grey levels)",),
    "mean_std": ("mean (grey levels)", "standard deviation (grey levels)"),
}
_THRESHOLDS = {
    "shannon": ("threshold",),
    "max": ("threshold",),
    "mean_std": ("mean_threshold", "std_threshold"),
}


@dataclass(frozen=True, slots=True)
class FilterPlane:
    """The filter map over what is shown.

    Attributes
    ----------
    maps : dict of (cells y, cells x) float arrays
        By label: one, or mean and standard deviation.
    thresholds : dict of float
        By label, where there is one.
    keep : (cells y, cells x) array of bool
        What the filter keeps, whatever mask and regions of interest leave of it.
    cell_shape : (int, int)
        Pixels, (y, x).
    """

    maps: dict[str, np.ndarray[Any, Any]]
    thresholds: dict[str, float]
    keep: np.ndarray[Any, Any]
    cell_shape: tuple[int, int]


def origins_near(index: PatchIndex, planes: Planes) -> tuple[np.ndarray[Any, Any], str]:
    """Draw patches as training does and keep those that lie on or near what is shown.

    Parameters
    ----------
    index : PatchIndex
    planes : Planes

    Returns
    -------
    origins : (n, 2) int array
        (y, x) in the pixels of ``planes.raw``; patches wholly inside it.
    sentence : str
        Which ones these are.
    """
    drawn = np.asarray(index.sample(_DRAWN, 0))
    leading = [dim for dim in planes.dims if dim not in ("c", "y", "x")]
    if drawn.shape[1] == len(leading) + 3:
        # Of several images, the first is shown.
        drawn = drawn[drawn[:, 0] == 0, 1:]
    distance = np.zeros(len(drawn))
    depth = index.patch_size[0] if len(index.patch_size) == 3 else 1
    for column, dim in enumerate(leading):
        first, position = drawn[:, column], planes.position[dim]
        last = first + (depth - 1 if dim == "z" else 0)
        distance = np.maximum(distance, np.maximum(np.maximum(first - position, position - last), 0))
    size = np.array(index.patch_size[-2:])
    corners = drawn[:, -2:] - np.array(planes.corner)
    inside = ((corners >= 0) & (corners + size <= np.array(planes.raw.shape))).all(axis=1)
    corners, distance = corners[inside], distance[inside]
    here = distance == 0
    if here.sum() >= _ENOUGH or not leading:
        return corners[here], f"Patches on {planes.where()}."
    # A stack of thousands of planes has few patches on any one of them.
    nearest = np.argsort(distance, kind="stable")[:_ENOUGH]
    reach = int(distance[nearest].max(initial=0))
    return corners[nearest], f"Patches on {planes.where()} and up to {reach} planes around it."


def filter_plane(run: RunFolder, index: PatchIndex, planes: Planes) -> FilterPlane | None:
    """Return the filter map that an index was made from, over what is shown, or None without a filter.

    Raises
    ------
    DenoizarrError
        When the map cannot be read.
    """
    name = _filter_name(index.settings)
    if name is None:
        return None
    patch = (int(index.patch_size[-2]), int(index.patch_size[-1]))
    depth = int(index.patch_size[0]) if len(index.patch_size) == 3 else 1
    scores = _scores(_map_url(run), name, planes, patch, depth)
    if scores is None:
        return None
    maps = dict(zip(_LABELS[name], scores, strict=True))
    chosen = [number_in(index.settings, key) for key in _THRESHOLDS[name]]
    thresholds = {label: value for label, value in zip(maps, chosen, strict=True) if value is not None}
    reached = [maps[label] >= value for label, value in thresholds.items()]
    keep = np.logical_and.reduce(reached) if reached else np.ones(scores.shape[1:], bool)
    return FilterPlane(maps, thresholds, keep, patch)


def how_chosen(settings: Mapping[str, Any]) -> list[str]:
    """Return a sentence each for the mask and the regions of interest that an index was made with."""
    sentences = []
    mask, roi = settings.get("mask"), settings.get("roi")
    if isinstance(mask, Mapping):
        sentences.append(
            f"A precomputed mask decided too: a cell counts as background where less than "
            f"{100 * float(mask.get('coverage') or 0):.3g} % of its regions lie in the mask."
        )
    if isinstance(roi, Mapping):
        what = "background" if roi.get("select_background") else "structure"
        off = " The patch filter was off, since background was wanted." if what == "background" else ""
        sentences.append(
            f"Patches were drawn in regions of interest alone: windows of {what}, by a threshold of "
            f"{roi.get('threshold')} on their equalised mean.{off}"
        )
    return sentences


def _map_url(run: RunFolder) -> str:
    """Return where the first image's scores lie."""
    images = run.summary.get("images")
    first = images[0] if isinstance(images, list) and images else None
    if isinstance(images, list) and len(images) > 1 and isinstance(first, Mapping):
        return locations.join(run.url, "filter_map", f"{first.get('name')}.zarr")
    return locations.join(run.url, "filter_map.zarr")


def _filter_name(settings: Mapping[str, Any]) -> str | None:
    value = settings.get("name")
    return value if isinstance(value, str) and value in _LABELS else None


def _scores(
    url: str, name: str, planes: Planes, patch: tuple[int, int], depth: int
) -> np.ndarray[Any, Any] | None:
    """Read the cells' scores over what is shown: one plane for each value of the score."""
    if not locations.exists(url):
        return None
    cells = open_cells(url, name)
    if cells is None:
        raise BadRequest("no such score in the filter map", where=url, got=name)
    place = {dim: at // depth if dim == "z" else at for dim, at in planes.position.items()}
    index = [
        slice(None) if dim == "statistic" else _only(place.get(dim, 0) if size > 1 else 0)
        for dim, size in zip(cells.dims[:-2], cells.shape[:-2], strict=True)
    ]
    with locations.translated(url):
        found = cells[(*index, *_shown(planes, patch))]
    return found.reshape(-1, *found.shape[-2:])


def _only(number: int) -> slice:
    return slice(number, number + 1)


def _shown(planes: Planes, patch: tuple[int, int]) -> tuple[slice, slice]:
    """Return which cells lie over what is shown; its corner is that of a cell."""
    rows, columns = (
        slice(corner // size, -(-(corner + length) // size))
        for corner, length, size in zip(planes.corner, planes.raw.shape, patch, strict=True)
    )
    return rows, columns
