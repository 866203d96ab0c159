"""Where the voxels of an image can be read again, on any machine, and the reader that does it.

A task never gets an array: it gets an ``ImageSource``, a few strings and integers, and opens it itself.
"""

from __future__ import annotations

import gzip
import json
import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from denoizarr.errors import (
    BadRequest,
    CorruptChunk,
    DenoizarrError,
    ImageNotFound,
    MetadataError,
    NotOmeZarr,
)
from denoizarr.geometry.boxes import Box

from . import locations, store_options
from .ome_zarr import DIMS
from .records import digest
from .shard_reads import ShardReads
from .strict import Missing, StrictStore, absent_chunks, guard_frames, missing_chunk, write_unit
from .zarr_stores import BucketStore

Array = NDArray[Any]
# What the codecs raise on bytes that are not theirs.
UNDECODABLE = (
    ValueError,
    RuntimeError,
    TypeError,
    EOFError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
)


# That zarr reads and decodes of an array on a disk: its setting async.concurrency.
CHUNKS_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One array in one store, or a box of it.

    Attributes
    ----------
    url : str
        The Zarr store, redacted: never with credentials.
    path : str
        The array's path below it; empty where the store is the array.
    stored_dims : tuple of str
        Axis names as stored.
    missing : {"error", "fill"}
        What an absent chunk means.
    box : Box or None
        The part that this image is, along ``dims`` of the whole array; None for all of it.
    dropped : tuple of str
        Dims of length one that the image no longer has (``isel(z=3)``).
    metadata : str
        Digest of the array's metadata when it was opened; a store written anew since is refused.
    """

    url: str
    path: str
    stored_dims: tuple[str, ...]
    missing: Missing = "error"
    box: Box | None = None
    dropped: tuple[str, ...] = ()
    metadata: str = ""

    @property
    def stored_order(self) -> tuple[str, ...]:
        """Dims of the whole array in the order t, c, z, y, x."""
        return tuple(d for d in DIMS if d in self.stored_dims)

    @property
    def dims(self) -> tuple[str, ...]:
        """Dims of the image, in the order t, c, z, y, x."""
        return tuple(d for d in self.stored_order if d not in self.dropped)


class ImageReader:
    """Reads boxes of an image as numpy arrays, in the order t, c, z, y, x of the dims that exist.

    Thread-safe. Intensities are raw.

    Attributes
    ----------
    dims, shape, dtype
        Of the image.
    chunks : tuple of int
        The unit of decoding along every dim, in voxels.
    offset : tuple of int
        Position of the image's first voxel inside its chunk; not zero for a part of a stored image.
    identity : dict
        JSON-able; equal for the same bytes-to-be-read, different for another image.
    name : str
        Short, for messages.
    source : ImageSource, ForeignSource or None
        None where the image exists only in this process.
    of_graph : bool
        A box is computed from a Dask graph, which knows better which chunks its tasks share.
    urls : tuple of str
        The stores and files that reading it opens, as far as they are known.
    rebuild : callable or None
        Returns a function and its arguments that make the reader of an array in memory; see ``Carried``.
    uncorrected : ImageReader or None
        Of the image as it is stored, where this one takes waves away from it (``stores.periodic``).
    periodic : tuple of (float, float)
        Frequencies (fy, fx) of those waves, in cycles per pixel.
    """

    def __init__(
        self,
        fetch: Callable[[Box], Array],
        *,
        dims: tuple[str, ...],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        chunks: tuple[int, ...],
        identity: dict[str, Any] | Callable[[], dict[str, Any]],
        name: str,
        source: Any = None,
        reopen: Callable[[Any], ImageReader] | None = None,
        absent: Callable[[Box], list[str]] | None = None,
        urls: tuple[str, ...] = (),
        offset: tuple[int, ...] | None = None,
        of_graph: bool = False,
        rebuild: Callable[[], tuple[Any, ...]] | None = None,
    ) -> None:
        self._fetch = fetch
        self._reopen = reopen or open_source
        self._absent = absent
        self.dims, self.shape, self.dtype, self.chunks = dims, shape, dtype, chunks
        self._identity, self.name, self.source, self.urls = identity, name, source, urls
        self.of_graph = of_graph
        self.rebuild = rebuild
        self.offset = (0,) * len(shape) if offset is None else offset
        self.uncorrected: ImageReader | None = None
        self.periodic: tuple[tuple[float, float], ...] = ()

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Of the voxels as they are stored: what an output of the same type has."""
        return self.dtype if self.uncorrected is None else self.uncorrected.dtype

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this image from another; computed when it is first asked for."""
        if callable(self._identity):
            self._identity = self._identity()
        return self._identity

    @property
    def chunks_at_once(self) -> int:
        """How many chunks are read and decoded at a time: of a bucket as many as its options say."""
        roots = (locations.split_remote(url)[0] for url in self.urls if locations.is_remote(url))
        return max((store_options.options_of(root).concurrency for root in roots), default=CHUNKS_AT_ONCE)

    @property
    def is_remote(self) -> bool:
        """Whether some of it lies in a bucket or on a web server."""
        return any(map(locations.is_remote, self.urls))

    def part(self, box: Box, dropped: tuple[str, ...] = (), source: Any = None) -> ImageReader:
        """Return a reader of one box, without its ``dropped`` dims of length one.

        For this process alone, unless it is told the ``source`` that opens as just this part.
        """
        kept = [axis for axis, d in enumerate(self.dims) if d not in dropped]

        def of_whole(inner: Box) -> Box:
            start, stop = list(box.start), list(box.stop)
            for axis, a, b in zip(kept, inner.start, inner.stop, strict=True):
                start[axis], stop[axis] = box.start[axis] + a, box.start[axis] + b
            return Box(tuple(start), tuple(stop))

        place = [list(box.start), list(box.stop)]
        part = ImageReader(
            lambda inner: self.read(of_whole(inner)).reshape(inner.shape),
            dims=tuple(self.dims[axis] for axis in kept),
            shape=tuple(box.shape[axis] for axis in kept),
            dtype=self.dtype,
            chunks=tuple(self.chunks[axis] for axis in kept),
            identity=lambda: {"whole": self.identity, "box": place, "dropped": list(dropped)},
            name=self.name,
            source=source,
            reopen=self._reopen,
            absent=lambda inner: self.absent_in(of_whole(inner)),
            urls=self.urls,
            offset=tuple((self.offset[axis] + box.start[axis]) % self.chunks[axis] for axis in kept),
            rebuild=None if self.rebuild is None else lambda: (_part_of, (Carried(self), box, dropped)),
        )
        if self.uncorrected is not None:
            part.uncorrected, part.periodic = self.uncorrected.part(box, dropped), self.periodic
        return part

    def __repr__(self) -> str:
        sizes = ", ".join(f"{d}: {n}" for d, n in zip(self.dims, self.shape, strict=True))
        return f"ImageReader({self.name!r}, {sizes}, {self.dtype})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as the source: opened again where it arrives, without array, handle or credentials."""
        if self.source is None:
            raise BadRequest(
                "an image that exists only in this process cannot be read by a worker",
                where=self.name,
                remedy="save it first with save_image, then pass its URL",
            )
        return _reopened, (self._reopen, self.source, store_options.in_use())

    def read(self, box: Box) -> Array:
        """Return the voxels of ``box``.

        Raises
        ------
        MissingChunk, CorruptChunk, StoreUnavailable, PermissionDenied
        """
        if len(box.start) != len(self.shape) or not Box.whole(self.shape).contains(box):
            raise BadRequest(
                "a box outside the image", where=self.name, got=box, expected=f"within {self.shape}"
            )
        return self._fetch(box)

    def absent_in(self, box: Box) -> list[str]:
        """Return the names of the chunks in ``box`` that the store lacks; empty for images in memory."""
        return self._absent(box) if self._absent is not None else []


def _reopened(reopen: Callable[[Any], ImageReader], source: Any, stores: store_options.InUse) -> ImageReader:
    # Before anything is asked: what opens a store has to know how.
    store_options.take(stores)
    return reopen(source)


class Carried:
    """A reader in a user's own lazy graph, where an array in memory travels as itself, as Dask would have it.

    Our own tasks never carry one: an image that only this process has is refused there.
    """

    def __init__(self, reader: ImageReader) -> None:
        self.reader = reader

    def __reduce__(self) -> tuple[Any, ...]:
        if self.reader.source is None and self.reader.rebuild is not None:
            return _carried, self.reader.rebuild()
        return Carried, (self.reader,)


def _carried(make: Callable[..., ImageReader], arguments: tuple[Any, ...]) -> Carried:
    return Carried(make(*arguments))


def _part_of(whole: Carried, box: Box, dropped: tuple[str, ...]) -> ImageReader:
    return whole.reader.part(box, dropped)


@lru_cache(maxsize=64)
def open_source(source: ImageSource) -> ImageReader:
    """Open a source for reading; once per process."""
    array = open_array(source.url, source.path, source.missing)
    if len(source.stored_dims) != array.ndim:
        raise MetadataError(
            "axes and array disagree",
            where=f"{source.url}/{source.path}",
            got=f"{array.ndim} array axes",
            expected=f"one for each of {', '.join(source.stored_dims)}",
        )
    reader = reader_of_array(array, source)
    if source.metadata and source.metadata != reader.identity["metadata"]:
        raise MetadataError(
            "the image was written anew since it was opened", where=reader.name, remedy="open it again"
        )
    return reader


def reader_of_array(array: zarr.Array[Any], source: ImageSource, *, reopenable: bool = True) -> ImageReader:
    """Return the reader of an open array; ``source`` says which axes and box of it."""
    order = tuple(source.stored_dims.index(d) for d in source.stored_order)
    kept = [i for i, d in enumerate(source.stored_order) if d not in source.dropped]
    whole_shape = tuple(int(array.shape[i]) for i in order)
    base = source.box or Box.whole(whole_shape)
    where = f"{source.url}/{source.path}".rstrip("/")

    def stored(box: Box) -> Box:
        """Turn a box of the image into the box of the stored array."""
        start, stop = list(base.start), list(base.stop)
        for axis, a, b in zip(kept, box.start, box.stop, strict=True):
            start[axis], stop[axis] = base.start[axis] + a, base.start[axis] + b
        back = tuple(order.index(i) for i in range(len(order)))
        return Box(tuple(start[i] for i in back), tuple(stop[i] for i in back))

    shards = _shard_reads(array)

    def fetch(box: Box) -> Array:
        with locations.translated(where):
            if shards is None and array.shards is not None and source.missing == "error":
                # A plain chunk that is absent raises in the store; one inside a shard would read as fill.
                for key in absent_chunks(array, stored(box)):
                    raise missing_chunk(where, key)
            try:
                part = stored(box)
                values = np.asarray(array[part.slices]) if shards is None else shards.read(part)
            except DenoizarrError:
                raise
            except UNDECODABLE as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # the disk's error; one without a number is a codec's
                raise CorruptChunk(
                    "a chunk cannot be decoded",
                    where=f"{where} {box.slices}",
                    got=str(error),
                    remedy="restore the chunk",
                ) from error
        values = values.transpose(order)
        return values.reshape(box.shape)

    def absent(box: Box) -> list[str]:
        with locations.translated(where):
            return list(absent_chunks(array, stored(box)))

    identity: dict[str, Any] = {
        "url": source.url,
        "path": source.path,
        "metadata": digest(_json_metadata(array)),
        "box": None if source.box is None else [list(source.box.start), list(source.box.stop)],
    }
    return ImageReader(
        fetch,
        dims=source.dims,
        shape=tuple(base.shape[i] for i in kept),
        dtype=np.dtype(array.dtype),
        chunks=tuple(int(array.chunks[order[i]]) for i in kept),
        identity=identity,
        name=where,
        source=source if reopenable else None,
        absent=absent,
        urls=(source.url,) if reopenable else (),
        offset=tuple(base.start[i] % int(array.chunks[order[i]]) for i in kept),
    )


def _shard_reads(array: zarr.Array[Any]) -> ShardReads | None:
    """Return what reads a sharded array's parts side by side, where asking for them takes long."""
    inner = getattr(array.store, "_store", None)
    if not isinstance(inner, BucketStore) or not ShardReads.suit(array):
        return None
    return ShardReads(array, inner.options.concurrency)


def open_array(url: str, path: str = "", missing: Missing = "error") -> zarr.Array[Any]:
    """Open an array for reading through the strict store.

    Raises
    ------
    ImageNotFound, NotOmeZarr, MetadataError
    """
    where = f"{url}/{path}".rstrip("/")
    store = StrictStore(locations.zarr_store(url), locations.redact(url), missing)
    with locations.translated(where):
        if locations.is_file(url):
            raise NotOmeZarr("no Zarr array here", where=where, got="a file")
        try:
            array = zarr.open_array(store, path=path, mode="r")
        except FileNotFoundError as error:
            if locations.exists(where):
                raise NotOmeZarr("no Zarr array here", where=where) from error
            raise ImageNotFound("nothing lies here", where=where, remedy="check the path") from error
        except (ValueError, KeyError, TypeError, ZeroDivisionError, RecursionError, AttributeError) as error:
            raise MetadataError("the array's metadata are not valid", where=where, got=repr(error)) from error
    if array.dtype.kind not in "uifb":
        raise MetadataError(
            "not an array of real numbers", where=where, got=array.dtype, expected="integers or floats"
        )
    if (
        min(array.shape, default=1) < 1
        or min(write_unit(array), default=1) < 1
        or min(array.chunks, default=1) < 1
    ):
        raise MetadataError(
            "an array without voxels", where=where, got=f"shape {array.shape}, chunks {array.chunks}"
        )
    guard_frames(array)
    return array


def _json_metadata(array: zarr.Array[Any]) -> dict[str, Any]:
    data = json.loads(json.dumps(array.metadata.to_dict(), default=str))
    # Attributes may change without a voxel changing.
    data.pop("attributes", None)
    return dict(data)
