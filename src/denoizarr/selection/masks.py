"""Precomputed masks: the voxels that count, from any file or array, read at the image's own voxels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr

from denoizarr.errors import BadRequest, MisalignedGrid, NonFiniteData, NotOmeZarr
from denoizarr.geometry.boxes import Box
from denoizarr.stores import locations
from denoizarr.stores.foreign import ForeignSource, describe_foreign, is_foreign, open_foreign
from denoizarr.stores.images import ImageLike, as_image, open_image, reader_of, source_of
from denoizarr.stores.ome_zarr import DIMS
from denoizarr.stores.sources import Array, ImageReader, ImageSource, open_array, open_source
from denoizarr.stores.strict import Missing

from .mask_alignment import AxisGrid, AxisRule, axis_grids, axis_rules

# A mask finer than its image is read in parts of at most this size: it may be many times the box asked for.
_READ_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class MaskSource:
    """A mask and how it lies under its image: all that a worker needs to read it.

    Attributes
    ----------
    mask : ImageSource, ForeignSource or None
        None for a mask that exists only in this process.
    dims, shape, chunks, offset
        Of the image's reader, without c.
    rules : tuple of AxisRule or None
        For every one of ``dims``; None where the mask is the same all along it.
    channel : int
        Of a mask with c.
    content : str
        Digest of a foreign file's bytes: an edited mask may be as long as the one before.
    """

    mask: ImageSource | ForeignSource | None
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    offset: tuple[int, ...]
    rules: tuple[AxisRule | None, ...]
    channel: int = 0
    content: str = ""


def aligned_mask(
    mask: ImageLike, image: xr.DataArray, *, ref_channel: int = 0, missing: Missing = "error"
) -> ImageReader:
    """Open a precomputed mask for reading at the voxels of ``image``.

    Parameters
    ----------
    mask : URL, path, zarr.Array, DataArray, Dask or numpy array
        True, or any number but 0, where the image counts. An OME-Zarr (read at its finest level) or a
        plain Zarr array; a TIFF, PNG or npy file, also a folder or glob of planes. Axes without names are
        those of the image if there are as many (with or without its c), else (y, x) or (z, y, x).
    image : DataArray
        From ``open_image`` or ``as_image``.
    ref_channel : int
        The channel read of a mask that has several.
    missing : {"error", "fill"}
        A chunk that the mask's Zarr store lacks raises ``MissingChunk`` when it is read, or reads as the
        fill value. Many writers leave chunks of zeros out.

    Returns
    -------
    ImageReader
        Boxes in voxels of the image, dims t, z, y, x (those of the image), uint8, 0 or 1; its ``chunks``
        and ``offset`` are the image's. It travels to a worker where the mask has a path.

    Raises
    ------
    MisalignedGrid
        The mask covers another extent, or its shape is neither the image's nor a reduction of it.
    BadRequest
        Units that cannot be converted; dims that the image lacks; an unknown channel.
    NonFiniteData
        When read, where a voxel of a mask of floats is NaN.

    Notes
    -----
    Where both have world coordinates, an image voxel takes the mask voxel that its centre lies in, at any
    level and in any SI unit. The extents must agree within half a voxel of the coarser grid; the far end,
    where pyramids round, within less than one. Without coordinates a mask is taken voxel by voxel, or
    block by block where its shape is ceil(size / factor). What it lacks of t and z, it is the same for.
    """
    opened = as_image(image)
    if missing not in ("error", "fill"):
        raise BadRequest("unknown rule for missing chunks", got=repr(missing), expected='"error" or "fill"')
    if isinstance(mask, str | Path) and is_foreign(mask):
        return _from_files(mask, opened, ref_channel)
    found = _from_store(mask, opened, missing) if isinstance(mask, str | Path) else None
    if found is None:
        names = None if isinstance(mask, xr.DataArray) else _axis_names(mask, opened)
        found = as_image(mask, names)
    source = source_of(found)
    if source is not None:
        # A DataArray opened with "fill" keeps that.
        source = replace(source, missing="fill" if missing == "fill" else source.missing)
        return open_mask(_described(source, axis_grids(found), opened, ref_channel, source.url))
    reader = reader_of(found)
    return _reader_over(reader, _described(None, axis_grids(found), opened, ref_channel, reader.name))


def open_mask(source: MaskSource) -> ImageReader:
    """Open an aligned mask again, in any process."""
    if isinstance(source.mask, ForeignSource):
        return _reader_over(open_foreign(source.mask), source)
    if source.mask is None:
        raise BadRequest("a mask that exists only in another process", remedy="save it first")
    return _reader_over(open_source(source.mask), source)


def _from_store(url: str | Path, image: xr.DataArray, missing: Missing) -> xr.DataArray:
    try:
        return open_image(url, missing=missing)
    except NotOmeZarr as not_an_image:
        try:
            array = open_array(locations.join(url))
        except NotOmeZarr:
            raise not_an_image from None
        return open_image(url, axes=_axis_names(array, image), missing=missing)


def _from_files(path: str | Path, image: xr.DataArray, ref_channel: int) -> ImageReader:
    """Read files, with the axis names that they state or, where those do not fit, those of the image.

    Many TIFFs and all npy files name no axes, and what is found then is a guess.
    """
    described, _ = describe_foreign([path])
    named = () if described.kind == "npy" else (described.axes,)
    guess = _names_like(image, len(described.shape))
    content = _content(described.paths)
    found: list[ImageReader] = []
    refused: list[BadRequest] = []
    for axes in dict.fromkeys((*named, *(() if guess is None else (guess,)))):
        source = replace(described, axes=axes)
        grids = {d: AxisGrid(source.shape[axes.index(d)]) for d in DIMS if d in axes}
        try:
            aligned = _described(source, grids, image, ref_channel, described.paths[0])
        except BadRequest as error:
            refused.append(error)
        else:
            found.append(open_mask(replace(aligned, content=content)))
    if len(found) == 1:
        return found[0]
    if found or not refused:
        raise BadRequest(
            "the order of the mask's axes is not clear",
            where=described.paths[0],
            got=f"shape {described.shape}",
            remedy="read it and pass a DataArray with named dims",
        )
    raise refused[-1]


def _content(paths: tuple[str, ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with locations.translated(path), Path(path).open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _axis_names(mask: Any, image: xr.DataArray) -> tuple[str, ...] | None:
    """Return the axes of an array: its own names where it is a Zarr array that has them, else a guess."""
    if not isinstance(mask, np.ndarray | da.Array | zarr.Array):
        return None
    stated = tuple(getattr(getattr(mask, "metadata", None), "dimension_names", None) or ())
    if stated and set(stated) <= set(DIMS) and {"y", "x"} <= set(stated) and len(set(stated)) == len(stated):
        return tuple(str(name) for name in stated)
    names = _names_like(image, mask.ndim)
    if names is None:
        raise MisalignedGrid(
            "the mask has another number of axes than the image",
            got=mask.ndim,
            expected=f"some of {', '.join(str(d) for d in image.dims)}",
            remedy="pass a DataArray with named dims",
        )
    return names


def _names_like(image: xr.DataArray, ndim: int) -> tuple[str, ...] | None:
    dims = tuple(str(d) for d in image.dims)
    choices = (dims, tuple(d for d in dims if d != "c"), ("y", "x"), ("z", "y", "x"))
    return next((names for names in choices if len(names) == ndim), None)


def _described(
    mask: ImageSource | ForeignSource | None,
    grids: dict[str, AxisGrid],
    image: xr.DataArray,
    ref_channel: int,
    where: str,
) -> MaskSource:
    """Check that the mask fits the image, and say how it lies under it."""
    channels = grids["c"].size if "c" in grids else 1
    channel = 0 if channels == 1 else ref_channel
    if not 0 <= channel < channels:
        raise BadRequest(
            "no such channel in the mask", where=where, got=ref_channel, expected=f"0 to {channels - 1}"
        )
    of_image = axis_grids(image)
    reader = reader_of(image)
    kept = [i for i, d in enumerate(of_image) if d != "c"]
    dims = tuple(d for d in of_image if d != "c")
    extra = {d: grid.size for d, grid in grids.items() if d not in of_image and d != "c" and grid.size > 1}
    if extra:
        raise MisalignedGrid(
            "the mask has axes that the image lacks",
            where=where,
            got=", ".join(f"{d}: {n}" for d, n in extra.items()),
            expected=f"some of {', '.join(of_image)}",
            remedy="select the part of the mask that belongs to the image",
        )
    rules = axis_rules({d: g for d, g in grids.items() if d in dims}, of_image, where)
    return MaskSource(
        mask,
        dims=dims,
        shape=tuple(of_image[d].size for d in dims),
        chunks=tuple(reader.chunks[i] for i in kept),
        offset=tuple(reader.offset[i] for i in kept),
        rules=tuple(rules.get(d) for d in dims),
        channel=channel,
    )


def _reader_over(mask: ImageReader, source: MaskSource) -> ImageReader:
    """Return the reader in the image's voxels over one in the mask's."""
    aligned = _Aligned(mask, source)
    return ImageReader(
        aligned.read,
        dims=source.dims,
        shape=source.shape,
        dtype=np.dtype(np.uint8),
        chunks=source.chunks,
        identity={
            "mask": mask.identity,
            "content": source.content,
            "channel": source.channel,
            "shape": list(source.shape),
            "rules": [None if rule is None else asdict(rule) for rule in source.rules],
        },
        name=f"the mask {mask.name}",
        source=source if source.mask is not None else None,
        reopen=open_mask,
        absent=lambda box: mask.absent_in(aligned.under(box)[0]),
        urls=mask.urls,
        offset=source.offset,
    )


@dataclass(frozen=True, slots=True)
class _Aligned:
    """Reads the mask voxels under a box of the image and spreads them over it."""

    mask: ImageReader
    source: MaskSource

    def under(self, box: Box) -> tuple[Box, list[Array | None]]:
        """Return the smallest box of the mask, and for every axis of the image the places in it."""
        start = dict.fromkeys(self.mask.dims, 0)
        stop = dict.fromkeys(self.mask.dims, 1)
        if "c" in start:
            start["c"], stop["c"] = self.source.channel, self.source.channel + 1
        places: list[Array | None] = []
        for dim, rule, a, b in zip(self.source.dims, self.source.rules, box.start, box.stop, strict=True):
            if rule is None:
                places.append(None)
                continue
            taken = rule.indices(a, b)
            start[dim], stop[dim] = int(taken.min()), int(taken.max()) + 1
            places.append(taken - start[dim])
        return Box(tuple(start.values()), tuple(stop.values())), places

    def read(self, box: Box) -> Array:
        parts = list(self._parts(box)) if box.size else []
        if len(parts) == 1:
            return np.ascontiguousarray(self._spread(box))
        out = np.empty(box.shape, np.uint8)
        for part in parts:
            out[part.relative_to(box.start).slices] = self._spread(part)
        return out

    def _parts(self, box: Box) -> Iterator[Box]:
        """Cut the box along its longest axis until the mask voxels under each part fit in memory."""
        under, _ = self.under(box)
        reach = [
            1 if rule is None else n * abs(rule.rate)
            for rule, n in zip(self.source.rules, box.shape, strict=True)
        ]
        axis = max((i for i, n in enumerate(box.shape) if n > 1), key=lambda i: reach[i], default=None)
        if axis is None or prod(under.shape) * self.mask.dtype.itemsize <= max(_READ_BYTES, box.size):
            yield box
            return
        middle = (box.start[axis] + box.stop[axis]) // 2
        for a, b in ((box.start[axis], middle), (middle, box.stop[axis])):
            start, stop = list(box.start), list(box.stop)
            start[axis], stop[axis] = a, b
            yield from self._parts(Box(tuple(start), tuple(stop)))

    def _spread(self, box: Box) -> Array:
        under, places = self.under(box)
        values = self.mask.read(under)
        sizes = dict(zip(self.mask.dims, values.shape, strict=True))
        values = values.reshape([sizes.get(d, 1) for d in self.source.dims])
        # Thin out first and spread last, the fastest axis before the others: each copy is as small as can be.
        later = []
        for axis, taken in enumerate(places):
            if taken is None or np.array_equal(taken, np.arange(values.shape[axis])):
                continue
            if len(taken) < values.shape[axis]:
                values = values.take(taken, axis)
            else:
                later.append((axis, taken))
        kept = self._nonzero(values, under)
        for axis, taken in reversed(later):
            kept = kept.take(taken, axis)
        return np.broadcast_to(kept, box.shape)

    def _nonzero(self, values: Array, under: Box) -> Array:
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise NonFiniteData(
                "the mask holds NaN",
                where=f"{self.mask.name} {under.slices}",
                got=f"{int(np.isnan(values).sum())} voxels",
                remedy="write 0 there, or 1",
            )
        kept: Array = (values != 0).view(np.uint8)
        return kept
