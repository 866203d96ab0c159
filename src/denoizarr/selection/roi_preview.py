"""The level that windows are compared on, for the eye, and a threshold for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from denoizarr.geometry.boxes import Box
from denoizarr.kernels.equalize import N_BINS, Equalisation, counts_between

from .filter_maps import one_channel
from .roi_level import spacing_of
from .roi_passes import Prepared
from .roi_settings import RoiSettings
from .roi_work import RoiWork

# Of the values' variance, between two groups: an even spread of values gives 0.75, two separate groups more.
_CLEARLY_TWO_GROUPS = 0.8
_MIDDLE = 0.5


def lazy_level(image: xr.DataArray, roi: RoiSettings, n_axes: int) -> xr.DataArray:
    """Return the level that windows are compared on; see ``RegionOfInterest.preprocess``."""
    opened = one_channel(image, roi.ref_channel)
    work = RoiWork.begin(opened, roi, (0,) * n_axes, progress=False)
    prepared, bound = work.prepare(roi)
    level = prepared.level
    array = da.from_array(
        _LevelView(prepared),
        chunks=level.blocks().step,
        name=False,
        fancy=False,
        meta=np.empty((0,) * opened.ndim),
    )
    coords = _coarse_coordinates(opened, level.n_axes, level.factor)
    attrs = {"bound": bound, "equalize": roi.equalize if roi.score is None else "none"}
    return xr.DataArray(array, dims=opened.dims, coords=coords, name="roi_level", attrs=attrs)


def suggested_threshold(image: xr.DataArray, roi: RoiSettings, n_axes: int) -> float:
    """Return a threshold for this image; see ``RegionOfInterest.suggest_threshold``."""
    opened = one_channel(image, roi.ref_channel)
    work = RoiWork.begin(opened, roi, (0,) * n_axes, progress=False)
    prepared, _ = work.prepare(roi)
    ranked = roi.score is None and roi.equalize == "global"
    if ranked:
        low, high = prepared.low, prepared.high
        counts = np.asarray(prepared.level.array("counts")[:])
    else:
        low, high = _extremes(prepared)
        counts = np.zeros(N_BINS, np.int64)
        for part in _parts(prepared):
            counts += counts_between(part, low, high)
    position, explained = _otsu(counts)
    if explained <= _CLEARLY_TWO_GROUPS:
        if ranked:
            return _MIDDLE
        position = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2)) + 0.5
    value = low + position * (high - low) / N_BINS
    if ranked:
        return float(Equalisation.of_counts(counts, low, high).apply(np.array([value]))[0])
    return float(value)


class _LevelView:
    """What Dask slices: the level, computed block by block."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.shape = prepared.level.coarse_shape
        self.dtype, self.ndim = np.dtype(np.float64), len(self.shape)

    def __getitem__(self, index: tuple[slice | int, ...]) -> NDArray[np.float64]:
        picked = [
            range(n)[part] if isinstance(part, slice) else range(n)[part : part + 1 or None]
            for part, n in zip(index, self.shape, strict=True)
        ]
        start = tuple(min(p) if p else 0 for p in picked)
        stop = tuple(max(p) + 1 if p else 0 for p in picked)
        then = tuple(slice(None, None, part.step) if isinstance(part, slice) else 0 for part in index)
        return self.prepared.read(Box(start, stop))[then]


def _parts(prepared: Prepared) -> Iterator[NDArray[np.float64]]:
    return (prepared.read(box) for box in prepared.level.blocks())


def _extremes(prepared: Prepared) -> tuple[float, float]:
    found = [(float(part.min()), float(part.max())) for part in _parts(prepared)]
    low, high = min(a for a, _ in found), max(b for _, b in found)
    return low, high if high > low else low + 1.0


def _otsu(counts: NDArray[np.int64]) -> tuple[float, float]:
    """Return the best split of a histogram, in bins from its start, and the share of variance it explains."""
    centres = np.arange(counts.size) + 0.5
    total, moment = float(counts.sum()), float(counts @ centres)
    below, sums = np.cumsum(counts)[:-1].astype(float), np.cumsum(counts * centres)[:-1]
    inside = (below > 0) & (below < total)
    if not inside.any():
        return counts.size / 2, 0.0
    between = np.zeros(below.size)
    b, s = below[inside], sums[inside]
    between[inside] = b * (total - b) * (s / b - (moment - s) / (total - b)) ** 2
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    scatter = float(counts @ (centres - moment / total) ** 2)
    # The middle of a gap that no value lies in.
    return float((best[0] + best[-1]) / 2 + 1), float(between.max() / total / scatter)


def _coarse_coordinates(image: xr.DataArray, n_axes: int, factor: int) -> dict[str, Any]:
    coords: dict[str, Any] = {}
    for number, dim in enumerate(str(d) for d in image.dims):
        size = image.sizes[dim]
        values = (
            np.asarray(image.coords[dim].values, float)
            if dim in image.coords
            else np.arange(size, dtype=float)
        )
        attrs = dict(image.coords[dim].attrs) if dim in image.coords else {}
        if number >= image.ndim - n_axes:
            first = np.arange(0, size, factor)
            values = (values[first] + values[np.minimum(first + factor, size) - 1]) / 2
            attrs["spacing"] = spacing_of(image, dim) * factor
        coords[dim] = xr.Variable((dim,), values, attrs)
    return coords
