"""Images as xarray: opened lazily from a store, and traced back to it.

xarray keeps ``.attrs`` through arithmetic, so a URL in them proves nothing. An image is read from its URL
again only if its Dask name is the one given at opening, or the one that slicing the opened image gives;
anything else is computed from its own graph.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4
from weakref import WeakValueDictionary, finalize

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from obstore.store import LocalStore
from zarr.storage import LocalStore as ZarrLocalStore
from zarr.storage import ObjectStore

from denoizarr.errors import BadRequest, DegenerateData, ImageNotFound
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import round_up

from . import locations, store_options
from .ome_zarr import DIMS, OmeImage, read_ome
from .periodic import PeriodicSource, WaveTable, corrected_reader, open_periodic
from .records import digest
from .sources import Array, Carried, ImageReader, ImageSource, open_source, reader_of_array
from .strict import Missing, StrictStore, guard_frames
from .zarr_stores import BucketStore

ImageLike: TypeAlias = "str | Path | zarr.Array[Any] | xr.DataArray | da.Array | np.ndarray[Any, Any]"

_LOG = logging.getLogger(__name__)
_PREFIX = "denoizarr-image-"
# One Dask chunk is several decoding units, so that a plain ``image.mean().compute()`` is not a million tasks.
_DASK_CHUNK_BYTES = 32 * 2**20
_HASHED_BYTES = 2**20


class _Voxels:
    """What Dask slices: an array-like over a reader, which travels to workers as its source alone."""

    def __init__(self, reader: ImageReader) -> None:
        self.reader = reader
        self.shape, self.dtype, self.ndim = reader.shape, reader.dtype, len(reader.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return _voxels_of, (Carried(self.reader),)

    def __getitem__(self, index: tuple[slice | int, ...]) -> Array:
        """Read what basic indexing asks for: Dask merges ints and strides into the read of a chunk."""
        start, stop, then = [], [], []
        for part, n in zip(index, self.shape, strict=True):
            picked = range(n)[part] if isinstance(part, slice) else range(n)[part : part + 1 or None]
            low, high = (min(picked), max(picked) + 1) if picked else (0, 0)
            start.append(low)
            stop.append(high)
            then.append(slice(None, None, picked.step) if isinstance(part, slice) else 0)
        return self.reader.read(Box(tuple(start), tuple(stop)))[tuple(then)]


@dataclass(frozen=True, slots=True)
class _Opened:
    """An image as it was opened in this process: what a slice of it is compared with.

    ``source`` is None for one that only this process has.
    """

    source: ImageSource | PeriodicSource | None
    reader: ImageReader
    array: da.Array
    coords: dict[str, np.ndarray[Any, np.dtype[np.float64]]]


_OPENED: dict[str, _Opened] = {}
# Images that only this process has, by Dask name: forgotten with the last graph that holds them.
_HELD: WeakValueDictionary[str, _Voxels] = WeakValueDictionary()
_STORE_NAMES: dict[int, str] = {}


def _voxels_of(carried: Carried) -> _Voxels:
    return _Voxels(carried.reader)


def open_image(
    url: str | Path,
    *,
    level: int = 0,
    missing: Missing = "error",
    axes: str | Sequence[str] | None = None,
    storage_options: dict[str, Any] | None = None,
) -> xr.DataArray:
    """Open one level of an OME-Zarr image, or a plain Zarr array, lazily.

    Parameters
    ----------
    url : str or Path
        The image's group (OME-Zarr 0.4 or 0.5), or with ``axes`` a plain Zarr array.
    level : int
        Position in the metadata's list of levels, 0 the finest; negative counts from the coarsest.
    missing : {"error", "fill"}
        A chunk that the store lacks raises ``MissingChunk`` when it is read, or reads as the fill value.
    axes : str or sequence of str, optional
        Axis names of a plain array in stored order, such as "zyx".
    storage_options : dict, optional
        How the bucket is reached, from now on in this process: the fields of ``StoreOptions``, such as
        ``endpoint``, ``region``, ``anonymous``. Never credentials.

    Returns
    -------
    xarray.DataArray
        Dask-backed, dims in the order t, c, z, y, x (those that exist). Coordinates are world coordinates
        from scale and translation, ``coords[d].attrs["units"]`` their unit. ``.attrs``: url, level, ome.

    Raises
    ------
    ImageNotFound, NotOmeZarr, MetadataError, IncompleteOutput, UnsupportedStore
    """
    if missing not in ("error", "fill"):
        raise BadRequest("unknown rule for missing chunks", got=repr(missing), expected='"error" or "fill"')
    if storage_options:
        store_options.use(str(url), store_options.options_from(storage_options))
    where = locations.join(url)
    if not locations.exists(where):
        raise ImageNotFound("no image here", where=locations.redact(str(url)), remedy="check the path")
    if axes is not None:
        return _open_plain(where, tuple(axes), missing)
    group = locations.open_group(where, "r")
    ome = read_ome(group, locations.redact(where))
    try:
        chosen = ome.levels[level]
    except IndexError as error:
        raise BadRequest(
            "no such level", where=where, got=level, expected=f"0 to {len(ome.levels) - 1}"
        ) from error
    source = ImageSource(locations.redact(where), chosen.path, ome.dims, missing)
    return _image_of(source, ome, ome.levels.index(chosen))


def _open_plain(where: str, axes: tuple[str, ...], missing: Missing) -> xr.DataArray:
    _check_axes(axes, where)
    return _image_of(ImageSource(locations.redact(where), "", axes, missing), None, 0)


def _check_axes(axes: tuple[str, ...], where: str) -> None:
    if not set(axes) <= set(DIMS) or len(set(axes)) != len(axes) or not {"y", "x"} <= set(axes):
        raise BadRequest(
            "axes not understood",
            where=where,
            got="".join(axes),
            expected="each of y, x and some of t, c, z, once",
        )


def _image_of(source: ImageSource, ome: OmeImage | None, level: int) -> xr.DataArray:
    open_source.cache_clear()  # the store may have been written again since it was last opened
    reader = open_source(source)
    source = replace(source, metadata=str(reader.identity["metadata"]))
    image = _lazy(_Voxels(reader), _PREFIX + digest([reader.identity, source.missing, source.stored_dims]))
    scale, translation, units = _transform(ome, level)
    named = _data_array(image, source.dims, scale, translation, units).rename(
        locations.name_of(source.url).split(".")[0]
    )
    coords = {d: named.coords[d].values for d in source.dims}
    _OPENED[image.name] = _Opened(source, reader, image, coords)
    return named.assign_attrs(
        url=source.url,
        level=level,
        ome={}
        if ome is None
        else {"name": ome.name, "omero": ome.omero, "extra": ome.extra, "version": ome.version},
    )


def _lazy(voxels: _Voxels, name: str) -> da.Array:
    reader = voxels.reader
    chunks = [min(c, n) for c, n in zip(reader.chunks, reader.shape, strict=True)]
    for axis in reversed(range(len(chunks))):  # grow the fastest axes first: long reads, few tasks
        while (
            chunks[axis] < reader.shape[axis]
            and 2 * np.prod(chunks) * reader.dtype.itemsize <= _DASK_CHUNK_BYTES
        ):
            chunks[axis] = min(round_up(2 * chunks[axis], reader.chunks[axis]), reader.shape[axis])
    meta = np.empty((0,) * len(chunks), reader.dtype)
    # fancy=False: index lists are applied to decoded chunks, never handed to the reader.
    array: da.Array = da.from_array(voxels, chunks=tuple(chunks), name=name, fancy=False, meta=meta)
    return array


def _held_image(reader: ImageReader) -> xr.DataArray:
    """Return an image that only this process has, so that it and slices of it are read without a graph."""
    name, voxels = f"{_PREFIX}{uuid4().hex}", _Voxels(reader)
    _HELD[name] = voxels
    return _data_array(_lazy(voxels, name), reader.dims, {}, {}, {})


def _opened_as(name: str) -> _Opened | None:
    """Return what has this Dask name: a stored image, or one that is held as long as some graph holds it."""
    voxels = _HELD.get(name)
    if voxels is None:
        return _OPENED.get(name)
    coords = {d: np.arange(n, dtype=float) for d, n in zip(voxels.reader.dims, voxels.shape, strict=True)}
    return _Opened(None, voxels.reader, _lazy(voxels, name), coords)


def _transform(
    ome: OmeImage | None, level: int
) -> tuple[dict[str, float], dict[str, float], dict[str, str | None]]:
    if ome is None:
        return {}, {}, {}
    chosen = ome.levels[level]
    return (
        dict(zip(ome.dims, chosen.scale, strict=True)),
        dict(zip(ome.dims, chosen.translation, strict=True)),
        dict(zip(ome.dims, ome.units, strict=True)),
    )


def _data_array(
    image: da.Array,
    dims: tuple[str, ...],
    scale: dict[str, float],
    translation: dict[str, float],
    units: dict[str, str | None],
) -> xr.DataArray:
    coords = {}
    for dim, n in zip(dims, image.shape, strict=True):
        values = np.arange(n) * scale.get(dim, 1.0) + translation.get(dim, 0.0)
        attrs: dict[str, Any] = {} if units.get(dim) is None else {"units": units[dim]}
        # The spacing of a one-plane image cannot be told from its single coordinate.
        coords[dim] = xr.Variable((dim,), values, attrs | {"spacing": scale.get(dim, 1.0)})
    return xr.DataArray(image, dims=dims, coords=coords).rename(
        None
    )  # xarray would take the Dask name for one


def as_image(
    data: ImageLike, axes: str | Sequence[str] | None = None, *, level: int = 0, missing: Missing = "error"
) -> xr.DataArray:
    """Return any kind of image that the public functions take as a ``DataArray``.

    Parameters
    ----------
    data : str, Path, zarr.Array, xarray.DataArray, dask.array.Array or numpy.ndarray
        2D arrays are (y, x), 3D (z, y, x); more axes need ``axes``.
    axes : str or sequence of str, optional
        Axis names of an array in its own order.
    level, missing
        Of an image given by its URL, as in :func:`open_image`.

    Raises
    ------
    BadRequest
        The axes are not known or not told; for a kind of input that is not an image.
    """
    if isinstance(data, str | Path):
        return open_image(data, level=level, axes=axes, missing=missing)
    if isinstance(data, xr.DataArray):
        _check_axes(tuple(str(d) for d in data.dims), "a DataArray")
        _check_voxels(data, "a DataArray")
        ordered = data.transpose(*(d for d in DIMS if d in data.dims)) if axes is None else data
        return ordered if isinstance(ordered.data, da.Array) else ordered.chunk()
    names = _axes_of(data, axes)
    if isinstance(data, zarr.Array):
        return _from_zarr(data, names)
    if isinstance(data, np.ndarray | da.Array):
        _check_axes(names, "an array")
        _check_voxels(data, "an array")
        order, dims = [names.index(d) for d in DIMS if d in names], tuple(d for d in DIMS if d in names)
        if isinstance(data, np.ndarray):
            return _held_image(_reader_of_numpy(data.transpose(order), dims))
        return _data_array(data.transpose(order), dims, {}, {}, {})
    raise BadRequest(
        "not an image", got=type(data).__name__, expected="a URL, zarr.Array, DataArray, Dask or numpy array"
    )


def _check_voxels(data: Any, where: str) -> None:
    if data.dtype.kind not in "uifb" or 0 in data.shape:
        raise DegenerateData(
            "not an array of real numbers with voxels", where=where, got=f"{data.dtype} {data.shape}"
        )


def _axes_of(data: Any, axes: str | Sequence[str] | None) -> tuple[str, ...]:
    ndim = getattr(data, "ndim", 0)
    if axes is None and ndim in (2, 3):
        return ("y", "x") if ndim == 2 else ("z", "y", "x")
    names = tuple(axes or ())
    if len(names) != ndim:
        raise BadRequest(
            "axes and array disagree",
            got=f"{len(names)} axes for {ndim} dimensions",
            remedy='pass a DataArray with named dims, or axes="tczyx" where there is such an argument',
        )
    return names


def _reader_of_numpy(data: np.ndarray[Any, Any], dims: tuple[str, ...]) -> ImageReader:
    lead = data.ndim - 2
    return ImageReader(
        lambda box: data[box.slices],
        dims=dims,
        shape=data.shape,
        dtype=data.dtype,
        chunks=(1,) * lead + tuple(min(n, 1024) for n in data.shape[lead:]),
        # By content, so that an index of an array is an index of it tomorrow; only where somebody asks.
        identity=lambda: {"array": _content(data), "shape": list(data.shape), "dtype": str(data.dtype)},
        name="an array in memory",
        rebuild=lambda: (_reader_of_numpy, (data, dims)),
    )


def _content(data: np.ndarray[Any, Any]) -> str:
    """Return a digest of the voxels in C order, however they lie in memory or in a mapped file."""
    found = hashlib.blake2b(digest_size=16)
    rows = data.reshape(-1, data.shape[-1]) if data.flags.c_contiguous else None
    whole = data if rows is None else rows
    step = max(_HASHED_BYTES // max(whole[0].nbytes, 1), 1)
    for first in range(0, whole.shape[0], step):
        found.update(np.ascontiguousarray(whole[first : first + step]).data)
    return found.hexdigest()


def _from_zarr(array: zarr.Array[Any], names: tuple[str, ...]) -> xr.DataArray:
    _check_axes(names, "a zarr.Array")
    root = array.store
    if isinstance(root, ZarrLocalStore):
        return _image_of(ImageSource(str(root.root), array.path, names), None, 0)
    if isinstance(root, BucketStore):
        return _image_of(ImageSource(root.url, array.path, names), None, 0)
    if isinstance(root, ObjectStore) and isinstance(root.store, LocalStore) and root.store.prefix:
        return _image_of(ImageSource(str(root.store.prefix), array.path, names), None, 0)
    # A store that only this process holds (memory, a wrapper): readable here, and not elsewhere.
    strict = zarr.open_array(StrictStore(root, str(root)), path=array.path, mode="r")
    guard_frames(strict)
    # A name of its own for every store, in this process: an address in memory may be another's tomorrow.
    source = ImageSource(_name_of(root), array.path, names)
    return _held_image(reader_of_array(strict, source, reopenable=False))


def _name_of(store: Any) -> str:
    known = _STORE_NAMES.get(id(store))
    if known is None:
        known = _STORE_NAMES[id(store)] = f"process:{uuid4().hex}"
        # Stores cannot be hashed, and their addresses are used again.
        finalize(store, _STORE_NAMES.pop, id(store), None)
    return known


def as_images(
    data: ImageLike | Sequence[ImageLike],
    axes: str | Sequence[str] | None = None,
    *,
    level: int = 0,
    missing: Missing = "error",
) -> list[xr.DataArray]:
    """Return one or several images; a string may be a glob, matched in sorted order.

    Raises
    ------
    ImageNotFound
        The glob matches nothing, or the list is empty.
    """
    if isinstance(data, str) and any(sign in data for sign in "*?[") and not locations.exists(data):
        found = locations.matching(data)
        if not found:
            raise ImageNotFound("no image matches", where=data, remedy="check the pattern")
        return [as_image(name, axes, level=level, missing=missing) for name in found]
    if isinstance(data, list | tuple):
        if not data:
            raise ImageNotFound("an empty list of images")
        return [image for item in data for image in as_images(item, axes, level=level, missing=missing)]
    return [as_image(data, axes, level=level, missing=missing)]  # type: ignore[arg-type]


def source_of(image: xr.DataArray) -> ImageSource | None:
    """Return where the stored voxels of ``image`` lie, or None if only its own graph gives them."""
    part = _part_of(image)
    source = None if part is None else part.source
    return source if isinstance(source, ImageSource) else None


@dataclass(frozen=True, slots=True)
class _Part:
    """A box of an opened image, and the dims of length one that it lost; the whole where the box is None."""

    of: _Opened
    box: Box | None = None
    dropped: tuple[str, ...] = ()

    @property
    def source(self) -> ImageSource | PeriodicSource | None:
        whole = self.of.source
        if whole is None or self.box is None:
            return whole
        return replace(whole, box=self.box, dropped=self.dropped)


def _part_of(image: xr.DataArray) -> _Part | None:
    """Return which part of which opened image this is, or None where that cannot be proven."""
    opened = _opened_as(str(getattr(image.data, "name", "")))
    if opened is not None:
        same = tuple(image.dims) == opened.reader.dims and image.shape == opened.array.shape
        return _Part(opened) if same else None
    bases = _bases_of(image)
    return _sliced(image, bases[0]) if len(bases) == 1 else None


def _bases_of(image: xr.DataArray) -> list[_Opened]:
    layers = getattr(getattr(image.data, "dask", None), "layers", {})
    return [opened for layer in layers if (opened := _opened_as(layer)) is not None]


def _sliced(image: xr.DataArray, opened: _Opened) -> _Part | None:
    """Return the box if ``image`` is a plain slice of what was opened, else None.

    Dask names a slice after its parent and index, so a guess from the coordinates is proven by slicing again.
    """
    dims = opened.reader.dims
    index: list[slice | int] = []
    start, stop, dropped = [], [], []
    for dim, n in zip(dims, opened.array.shape, strict=True):
        if dim not in image.coords or image.coords[dim].dtype.kind not in "uif":
            return None
        here = np.atleast_1d(image.coords[dim].values)
        first = int(np.argmin(np.abs(opened.coords[dim] - here[0]))) if here.size else 0
        start.append(first)
        stop.append(first + here.size)
        if dim not in image.dims:
            dropped.append(dim)
            index.append(first)
        else:
            index.append(slice(None) if here.size == n else slice(first, first + here.size))
    kept = tuple(d for d in dims if d not in dropped)
    box = Box(tuple(start), tuple(stop))
    if tuple(image.dims) != kept or not Box.whole(opened.array.shape).contains(box):
        return None
    proven = opened.array[tuple(index)].name == image.data.name
    return _Part(opened, box, tuple(dropped)) if proven else None


def corrected_image(image: xr.DataArray, table: WaveTable) -> xr.DataArray:
    """Return an image less its planes' waves, lazily, as float32; the image itself where it has none."""
    base = reader_of(image)
    reader = corrected_reader(base, table)
    if reader is base:
        return image
    voxels = _Voxels(reader)
    name = f"{_PREFIX}{digest([reader.identity]) if reader.source is not None else uuid4().hex}"
    array = _lazy(voxels, name)
    if reader.source is None:
        _HELD[name] = voxels
    else:
        coords = {
            d: np.asarray(image.coords[d].values if d in image.coords else np.arange(n), dtype=float)
            for d, n in zip(reader.dims, reader.shape, strict=True)
        }
        _OPENED[name] = _Opened(reader.source, reader, array, coords)
    return image.copy(data=array)


def reader_of(image: xr.DataArray) -> ImageReader:
    """Return a reader of ``image``: from its store where that is proven to be it, else from its own graph."""
    part = _part_of(image)
    source = None if part is None else part.source
    if source is not None:
        return open_periodic(source) if isinstance(source, PeriodicSource) else open_source(source)
    if part is not None:
        return part.of.reader if part.box is None else part.of.reader.part(part.box, part.dropped)
    array = image.data if isinstance(image.data, da.Array) else da.from_array(np.asarray(image.data))

    def fetch(box: Box) -> Array:
        # The synchronous scheduler: our own threads and workers are the parallelism. Not by a setting, which
        # is the process's, and which threads would put back in another order than they took it.
        return np.asarray(array[box.slices].compute(scheduler="synchronous"))

    return ImageReader(
        fetch,
        dims=tuple(str(d) for d in image.dims),
        shape=tuple(int(n) for n in array.shape),
        dtype=np.dtype(array.dtype),
        chunks=tuple(int(c[0]) for c in array.chunks),
        identity={"array": str(array.name), "shape": list(array.shape), "dtype": str(array.dtype)},
        name=str(image.name or "an array in memory"),
        of_graph=True,
        urls=tuple(sorted({url for opened in _bases_of(image) for url in opened.reader.urls})),
    )
