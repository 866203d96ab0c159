"""Filter maps and indices made on disk: resumable, with what was measured kept in the ledger beside them.

::

    INDEX.zarr                    the patch index
    INDEX.zarr.ledger/            what it was made from, by image: another threshold needs no second look
        0/filter_map-1f6c9a02.zarr    scores by region, and beside it its ledger
        0/mask-..., 0/roi-...         likewise; the digest is of image, patch and settings
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from zarr.codecs import Crc32cCodec, ZstdCodec

from denoizarr.engine.driver_lock import only_driver
from denoizarr.engine.shares import Share
from denoizarr.errors import BadRequest, IncompleteOutput, OutputExists
from denoizarr.images.output import check_apart
from denoizarr.stores import locations
from denoizarr.stores.images import ImageLike, as_images, reader_of
from denoizarr.stores.ome_zarr import STATE
from denoizarr.stores.records import digest
from denoizarr.stores.sources import ImageReader, ImageSource

from . import index_file, own_groups
from .cells import PatchSize, patch_extents
from .filters import MaskPatchFilter, PatchFilter
from .image_scores import ScorePlaces, score_image
from .index_builder import index_of
from .index_settings import IndexSettings, checked_settings
from .patch_index import PatchIndex
from .regions_of_interest import RegionOfInterest
from .survey import ShareDone

_KEY = "denoizarr.filter_map"
_STATISTICS = "denoizarr.statistics"


def write_index(
    image: ImageLike | Sequence[ImageLike],
    destination: str | Path,
    patch_size: PatchSize,
    *,
    patch_filter: PatchFilter | Sequence[PatchFilter] | None = None,
    mask: ImageLike | Sequence[ImageLike] | None = None,
    roi: RegionOfInterest | None = None,
    filtered_patch_prob: float = 0.1,
    seed: int = 0,
    client: Any = None,
    threads: int = 1,
    progress: bool = True,
    share: Share | None = None,
) -> PatchIndex | None:
    """Build an index as :func:`denoizarr.build_index` does, and save it; run again to go on after a kill.

    With a ``share``, that share of the images is measured, and nothing else is done nor returned: a call
    without one does the rest.

    Raises
    ------
    OutputExists
        Something else than an index lies at ``destination``.
    """
    url = str(destination)
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
    for reader in (*map(reader_of, images), *settings.masks):
        check_apart(url, reader.urls)
    index_file.check_replaceable(url)
    if share is not None:
        _measure_share(url, images, settings, share, True, threads, progress)
        return None
    with only_driver(f"{url}.ledger"):
        scores = [
            score_image(
                opened,
                settings,
                number,
                places=_places(url, number, opened, settings),
                statistics=True,
                client=client,
                threads=threads,
                progress=progress,
            )
            for number, opened in enumerate(images)
        ]
        index = index_of(scores, settings)
        index.save(url)
    return index


def _measure_share(
    url: str,
    images: Sequence[xr.DataArray],
    settings: IndexSettings,
    share: Share,
    statistics: bool,
    threads: int,
    progress: bool,
) -> None:
    """Measure a share of every image; what a pass needs of the other shares, a later call finds."""
    for number, opened in enumerate(images):
        with contextlib.suppress(ShareDone):
            score_image(
                opened,
                settings,
                number,
                places=_places(url, number, opened, settings),
                statistics=statistics,
                threads=threads,
                progress=progress,
                share=share,
            )


def _places(url: str, number: int, image: xr.DataArray, settings: IndexSettings) -> ScorePlaces:
    """Return where measurements lie; those of other images, patches, masks and regions lie beside them."""

    def place(kind: str, *what: Any) -> str:
        name = digest([list(settings.patch), *what])[:8]
        return locations.join(f"{url}.ledger", str(number), f"{kind}-{name}.zarr")

    source = _content_of(reader_of(image))
    return ScorePlaces(
        filter_map=place("filter_map", source),
        mask=place("mask", _content_of(settings.masks[number])) if settings.masks else None,
        roi=None if settings.roi is None else place("roi", source, settings.roi.level_identity()),
    )


def _content_of(reader: ImageReader) -> list[Any]:
    """Return what tells this image from any other, and from itself before it was written anew."""
    stored = reader.uncorrected or reader
    source = getattr(stored.source, "mask", stored.source)
    if not isinstance(source, ImageSource):
        return [reader.identity]
    stamp = locations.listing_stamp(locations.join(source.url, source.path))
    return [reader.identity, source.missing, stamp]


def write_filter_map(
    image: ImageLike,
    destination: str | Path,
    patch_size: PatchSize,
    patch_filter: PatchFilter,
    *,
    mask: ImageLike | None = None,
    client: Any = None,
    threads: int = 1,
    progress: bool = True,
    share: Share | None = None,
) -> xr.DataArray | None:
    """Compute a filter map and save it; run again to go on after a kill.

    Parameters
    ----------
    image : URL, path, zarr.Array, DataArray, Dask or numpy array
    destination : path or URL
        Of a Zarr group in xarray's layout: one array of one value per cell (two, "mean" and "std", for
        MeanStdPatchFilter), coordinates in physical units, the image's statistics in an attribute. Opens with
        :func:`open_filter_map` or ``xarray.open_zarr``.
    patch_size : int, (y, x) or (z, y, x)
    patch_filter : a patch filter
        Its score, coverage and ``ref_channel`` count; thresholds do not.
    mask : image, array or file, optional
        For MaskPatchFilter.
    client : distributed.Client, optional
    threads : int
        Without a client.
    progress : bool
    share : Share, optional
        Measure this share of the image and no more; a call without one does the rest.

    Returns
    -------
    DataArray or None
        The saved map, lazy; None of a share.
    """
    url = str(destination)
    images = as_images(image)
    if len(images) > 1:
        raise BadRequest("a filter map is of one image", got=f"{len(images)} images", remedy="name one")
    if mask is not None and not isinstance(patch_filter, MaskPatchFilter):
        raise BadRequest(
            "a mask has a map of its own",
            where="mask",
            got=type(patch_filter).__name__,
            expected="the filter mask",
        )
    opened = images[0]
    settings = checked_settings(
        [opened], patch_extents(patch_size), patch_filter=patch_filter, mask=mask, roi=None,
        filtered_patch_prob=0.1, seed=0,
    )  # fmt: skip
    for reader in (reader_of(opened), *settings.masks):
        check_apart(url, reader.urls)
    _check_replaceable(url)
    if share is not None:
        _measure_share(url, [opened], settings, share, settings.mask_filter is None, threads, progress)
        return None
    with only_driver(f"{url}.ledger"):
        found = score_image(
            opened,
            settings,
            places=_places(url, 0, opened, settings),
            statistics=settings.mask_filter is None,
            client=client,
            threads=threads,
            progress=progress,
        )
        filter_map = found.filter_map if found.mask_map is None else found.mask_map
        assert filter_map is not None, "a filter has a map"
        _write(url, filter_map)
        counted = {} if found.statistics is None else {_STATISTICS: found.statistics.to_json()}
        locations.open_group(url, "a").attrs.update({STATE: "complete", **counted})
    return open_filter_map(url)


def open_filter_map(url: str | Path) -> xr.DataArray:
    """Open a saved filter map, lazily.

    Raises
    ------
    ImageNotFound, NotOmeZarr
    BadRequest
        It is no filter map.
    IncompleteOutput
        Its writer has not finished.
    """
    where = locations.join(url)
    attributes = locations.open_group(where, "r").attrs
    header = attributes.get(_KEY)
    if not isinstance(header, dict):
        raise BadRequest("not a filter map", where=where, remedy="make one with denoizarr filter-map")
    if attributes.get(STATE) != "complete":
        raise IncompleteOutput("the filter map was not finished", where=where, remedy="make it again")
    with locations.translated(where):
        stored = xr.open_zarr(locations.zarr_store(where), consolidated=False)
    name = str(header["name"])
    one = stored[name] if name in stored else stored[["mean", "std"]].to_dataarray("statistic", name=name)
    return (
        xr.DataArray(one.variable, coords=one.coords, name=name)
        .drop_attrs(deep=False)
        .assign_attrs(header["attrs"])
    )


def _check_replaceable(url: str) -> None:
    begun = locations.exists(url) and locations.list_names(url)
    if begun and _KEY not in (own_groups.attributes_at(url) or {}):
        raise OutputExists(
            "something else than a filter map lies here", where=url, remedy="choose another name"
        )


def _write(url: str, filter_map: xr.DataArray) -> None:
    if locations.exists(url):
        own_groups.delete(url)
    name = str(filter_map.name)
    attributes = {STATE: "incomplete", _KEY: {"name": name, "attrs": dict(filter_map.attrs)}}
    own_groups.begin(url, attributes)
    # Zarr has no settled data type for text: mean and std become two arrays.
    parts = (
        filter_map.to_dataset(dim="statistic") if "statistic" in filter_map.dims else filter_map.to_dataset()
    )
    codecs = {"compressors": [ZstdCodec(level=3), Crc32cCodec()]}
    with locations.translated(url):
        # A few megabytes, and Dask's chunks are those of the arrays: xarray may write it.
        parts.assign_attrs(attributes).to_zarr(
            locations.zarr_store(url, create=True),
            mode="a",
            zarr_format=3,
            consolidated=False,
            encoding=dict.fromkeys(map(str, parts.data_vars), codecs),
        )
