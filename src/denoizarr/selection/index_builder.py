"""From images to a patch index: score the cells, choose a threshold, give every cell its class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from denoizarr.errors import BadRequest, EmptyIndex, PatchTooLarge
from denoizarr.stores.images import ImageLike, as_images, reader_of

from .cells import Cells, PatchSize, patch_pair
from .filter_maps import lazy_map, one_channel
from .filters import MeanStdPatchFilter, PatchFilter
from .patch_index import PatchIndex, identity_of

_LOG = logging.getLogger(__name__)


def build_index(
    image: ImageLike | Sequence[ImageLike],
    patch_size: PatchSize,
    *,
    patch_filter: PatchFilter | None = None,
    filtered_patch_prob: float = 0.1,
    seed: int = 0,
    client: Any = None,
) -> PatchIndex:
    """Score one image or several, and index where to draw patches.

    Parameters
    ----------
    image : an image, a glob, or a list of images
        Of any sizes, but with the same dims and dtype.
    patch_size : int or (y, x)
    patch_filter : MaxPatchFilter, MeanStdPatchFilter or ShannonPatchFilter, optional
        Without one every cell has weight 1. A filter without a threshold chooses it from the map.
    filtered_patch_prob : float
        Weight of the cells that the filter does not keep.
    seed : int
        Kept in the settings; an index itself draws nothing.
    client : distributed.Client, optional
        Computes the filter map; the scheduler of this process does without one.

    Raises
    ------
    PatchTooLarge
        A patch does not fit into an image's plane.
    EmptyIndex
        The threshold keeps nothing; the message names one that would do.
    BadRequest
        For a triple ``patch_size``, images of different dims or dtypes, a filter's ``ref_channel`` that an
        image does not have, or a probability outside [0, 1].
    """
    images = as_images(image)
    pair = patch_pair(patch_size)
    _check_request(images, pair, patch_filter, filtered_patch_prob)
    if patch_filter is None:
        return index_from_maps(images, None, pair, filtered_patch_prob=filtered_patch_prob, seed=seed)
    maps = []
    for opened in images:
        channel = patch_filter.ref_channel if "c" in opened.dims else None
        lazy = lazy_map(opened, pair, patch_filter.score, ref_channel=channel)
        maps.append(
            lazy.copy(data=client.compute(lazy.data).result()) if client is not None else lazy.compute()
        )
    return index_from_maps(
        images, maps, pair, patch_filter=patch_filter, filtered_patch_prob=filtered_patch_prob, seed=seed
    )


def index_from_maps(
    images: Sequence[xr.DataArray],
    maps: Sequence[xr.DataArray] | None,
    patch_size: PatchSize,
    *,
    patch_filter: PatchFilter | None = None,
    filtered_patch_prob: float = 0.1,
    seed: int = 0,
) -> PatchIndex:
    """Index images whose filter maps are made already; see :func:`build_index`.

    Parameters
    ----------
    maps : sequence of DataArray, optional
        One per image, of the filter's own score; a map with c gives the filter's ``ref_channel``.
    """
    pair = patch_pair(patch_size)
    _check_request(images, pair, patch_filter, filtered_patch_prob)
    dims = tuple(str(d) for d in images[0].dims if d != "c")
    shapes = [tuple(int(i.sizes[d]) for d in dims) for i in images]
    settings: dict[str, Any] = {"filtered_patch_prob": float(filtered_patch_prob), "seed": int(seed)}
    if patch_filter is None or maps is None:
        classes = [np.zeros(Cells(dims, shape, pair).counts, np.uint8) for shape in shapes]
        table = np.ones(1, np.float32)
    else:
        one = [one_channel(m, patch_filter.ref_channel if "c" in m.dims else None) for m in maps]
        chosen = patch_filter.resolved(*one)
        classes = [np.asarray(chosen.keep(m), np.uint8) for m in one]
        if not any(c.any() for c in classes):
            raise _nothing_kept(chosen, one)
        table = np.array([filtered_patch_prob, 1], np.float32)
        settings |= chosen.settings()
    index = PatchIndex(
        patch_size=pair,
        dims=dims,
        shapes=shapes,
        classes=classes,
        table=table,
        images=[identity_of(i) for i in images],
        axes=[{d: _axis_of(i, d) for d in dims} for i in images],
        settings=settings,
    )
    _LOG.info("%s", index.summary())
    return index


def _check_request(
    images: Sequence[xr.DataArray],
    patch: tuple[int, int],
    patch_filter: PatchFilter | None,
    filtered_patch_prob: float,
) -> None:
    """Refuse, before any map is computed, what cannot become an index."""
    if not 0 <= filtered_patch_prob <= 1:
        raise BadRequest(
            "not a probability", where="filtered_patch_prob", got=filtered_patch_prob, expected="0 to 1"
        )
    dims, dtype = images[0].dims, np.dtype(images[0].dtype).newbyteorder("=")
    for number, image in enumerate(images):
        where = f"image {number}, {reader_of(image).name}"
        if image.dims != dims:
            raise BadRequest("images of different dims", where=where, got=image.dims, expected=dims)
        if np.dtype(image.dtype).newbyteorder("=") != dtype:
            raise BadRequest("images of different dtypes", where=where, got=image.dtype, expected=dtype)
        if patch_filter is not None:
            one_channel(image, patch_filter.ref_channel)
        plane = (image.sizes["y"], image.sizes["x"])
        if plane[0] < patch[0] or plane[1] < patch[1]:
            raise PatchTooLarge(
                "the patch is larger than the image",
                where=str(image.name or "image"),
                got=f"patch {patch[0]} x {patch[1]}",
                expected=f"at most {plane[0]} x {plane[1]} (y x x)",
                remedy="choose a smaller patch_size",
            )


def _axis_of(image: xr.DataArray, dim: str) -> dict[str, Any]:
    coordinate = (
        image.coords[dim] if dim in image.coords else xr.DataArray(np.arange(image.sizes[dim]), dims=dim)
    )
    values = np.asarray(coordinate.values, float)
    attrs = {k: v for k, v in coordinate.attrs.items() if k == "units"}
    spacing = float(values[1] - values[0]) if values.size > 1 else float(coordinate.attrs.get("spacing", 1.0))
    return {"first": float(values[0]), "spacing": spacing, "attrs": attrs}


def _nothing_kept(patch_filter: PatchFilter, maps: Sequence[xr.DataArray]) -> EmptyIndex:
    if isinstance(patch_filter, MeanStdPatchFilter):
        mean = max(float(m.sel(statistic="mean").max()) for m in maps)
        std = max(float(m.sel(statistic="std").max()) for m in maps)
        got = f"mean_threshold={patch_filter.mean_threshold}, std_threshold={patch_filter.std_threshold}"
        expected = f"at most {mean:g} and {std:g}, reached by the same cell"
    else:
        largest = max(float(m.max()) for m in maps)
        got, expected = (
            f"threshold={patch_filter.main_threshold()}",
            f"at most {largest:g}, the map's largest value",
        )
    typical = patch_filter.suggest_threshold(xr.concat([_flat(m) for m in maps], dim="cell"))
    return EmptyIndex(
        "the patch filter keeps no cell",
        where=type(patch_filter).__name__,
        got=got,
        expected=expected,
        remedy=f"{typical:g} separates this image's own scores best",
    )


def _flat(filter_map: xr.DataArray) -> xr.DataArray:
    leading = [d for d in filter_map.dims if d == "statistic"]
    values = np.asarray(filter_map).reshape([filter_map.sizes[d] for d in leading] + [-1])
    coords = {"statistic": ["mean", "std"]} if leading else {}
    return xr.DataArray(values, dims=(*leading, "cell"), coords=coords)
