"""TIFF files read box by box: what lies in one piece with plain reads, what is compressed strip by strip.

::

    series      leading axes of pages, in C order, then a page's own axes
    page        one run of bytes              -> read the rows of the box, or of a row its columns
                strips or tiles, compressed   -> decode those that the box touches
    else        (planar colours, volumes of tiles, several files)  -> tifffile's own store

A file is opened and its pages are found once per process: of a long OME-TIFF that takes a second.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any

import numpy as np
import tifffile
import zarr

from denoizarr.errors import CorruptChunk, UnsupportedStore

from .ome_zarr import DIMS
from .sources import Array
from .tiff_metadata import tiff_metadata

_KEPT_OPEN = 16
# Of a row, so much is read to get at some of its columns before they are read one by one.
_WHOLE_ROWS = 2


class TiffImage:
    """The first series of an open TIFF file. Thread-safe.

    Attributes
    ----------
    dims, shape, dtype
        Of the series; of a file of ours with the axes of length one that TIFF forgets.
    metadata : ForeignMetadata
    chunks : tuple of int
        What one read decodes at least, a strip or a tile; where nothing is compressed, what is read well.

    Raises
    ------
    CorruptChunk
        The file ends before its last voxel.
    UnsupportedStore
        A compression that cannot be undone here.
    """

    def __init__(self, path: str) -> None:
        self._file = tifffile.TiffFile(path)
        try:
            self._series = self._file.series[0]
            self._page = self._series.keyframe
            _check_codec(self._page, path)
            self._shape = tuple(int(n) for n in self._series.shape)
            self.dtype = np.dtype(self._series.dtype)
            self._stored = self.dtype.newbyteorder(self._file.byteorder)
            self.metadata = tiff_metadata(self._file)
            self._path = path
            self._lead = len(self._shape) - len(self._page.shape)
            self._offset = self._series.dataoffset
            self._pages = [] if self._offset is not None else list(self._series.pages)
            self._is_plain = self._offset is None and self._has_plain_pages()
            self._check_length()
            self.dims, self._kept = _with_lost_axes(self._series.axes, self._shape, self.metadata.dims)
            self.shape, self.chunks = self._restored(self._shape), self._restored(self._chunks())
            self._handle = os.open(path, os.O_RDONLY)
        except BaseException:
            self._file.close()
            raise

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)
            self._file.close()

    def read(self, wanted: tuple[slice, ...]) -> Array:
        """Return a box of the series, slices without steps, in the machine's byte order."""
        shape = tuple(part.stop - part.start for part in wanted)
        return self._read(tuple(wanted[axis] for axis in self._kept)).reshape(shape)

    def _restored(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        by_axis = dict(zip(self._kept, sizes, strict=True))
        return tuple(by_axis.get(axis, 1) for axis in range(len(self.dims)))

    def _read(self, wanted: tuple[slice, ...]) -> Array:
        shape = tuple(part.stop - part.start for part in wanted)
        if self._offset is None and not self._is_plain:
            with self._file.series[0].aszarr(level=0) as store:
                return np.asarray(zarr.open_array(store, mode="r")[wanted])
        found = np.empty(shape, self._stored)
        if self._offset is not None:
            self._read_rows(found, wanted, self._shape, self._offset)
            return _native(found)
        lead = wanted[: self._lead]
        for at in product(*(range(part.start, part.stop) for part in lead)):
            number = int(np.ravel_multi_index(at, self._shape[: self._lead])) if at else 0
            inside = tuple(i - part.start for i, part in zip(at, lead, strict=True))
            page = self._pages[number]
            if page is None:
                raise CorruptChunk("the file lacks a page", where=self._path, got=f"page {number}")
            if page.is_final and page.is_contiguous:
                self._read_rows(found[inside], wanted[self._lead :], self._page.shape, page.dataoffsets[0])
            else:
                self._decode(found[inside], wanted[self._lead :], page)
        return _native(found)

    def _has_plain_pages(self) -> bool:
        """Tell whether every page lies in this file, in rows and columns, a pixel's samples together."""
        separate, deep = self._page.shaped[:2]
        here = all(page is None or page.parent is self._file for page in self._pages)
        whole = len(self._pages) == prod(self._shape[: self._lead])
        return here and whole and separate == 1 and deep == 1

    def _check_length(self) -> None:
        if self._offset is not None:
            needed = self._offset + prod(self._shape) * self.dtype.itemsize
        else:
            ends = (
                offset + count
                for page in self._pages
                if page is not None and page.parent is self._file
                for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)
            )
            needed = max(ends, default=0)
        size = self._file.filehandle.size
        if size < needed:
            raise CorruptChunk(
                "the file is cut short",
                where=self._path,
                got=f"{size:,} bytes",
                expected=f"{needed:,} at least",
                remedy="copy it again",
            )

    def _chunks(self) -> tuple[int, ...]:
        if self._offset is not None or (self._is_plain and self._page.is_contiguous):
            return (*(1,) * (len(self._shape) - 2), *(min(n, 512) for n in self._shape[-2:]))
        if self._is_plain:
            return (*(1,) * self._lead, *(int(n) for n in self._page.chunks))
        with self._series.aszarr(level=0) as store:
            return tuple(int(n) for n in zarr.open_array(store, mode="r").chunks)

    def _read_rows(self, into: Array, wanted: tuple[slice, ...], shape: tuple[int, ...], offset: int) -> None:
        """Read a box of an array that lies in one piece, each row into its place."""
        size = self.dtype.itemsize
        strides = [size * prod(shape[axis + 1 :]) for axis in range(len(shape))]
        # The axes at the end that are wanted whole make one run with the one before them.
        run = len(shape) - 1
        while run > 0 and wanted[run] == slice(0, shape[run]):
            run -= 1
        inside = into.reshape(*into.shape[:run], -1) if into.ndim else into.reshape(1, 1)
        last = len(shape) - 1
        columns = wanted[last]
        if run == last and last > 0 and shape[last] <= _WHOLE_ROWS * (columns.stop - columns.start):
            rows = np.empty((*into.shape[:last], shape[last]), self._stored)
            self._read_rows(rows, (*wanted[:last], slice(0, shape[last])), shape, offset)
            into[...] = rows[..., columns]
            return
        first = sum(part.start * step for part, step in zip(wanted, strides, strict=True))
        for at in np.ndindex(*into.shape[:run]):
            start = offset + first + sum(i * step for i, step in zip(at, strides, strict=False))
            self._fill(inside[at], start)

    def _fill(self, into: Array, offset: int) -> None:
        """Read bytes into an array that lies in one piece."""
        view = memoryview(into.reshape(-1).view(np.uint8).data)
        done = 0
        while done < len(view):
            n = os.preadv(self._handle, [view[done:]], offset + done)
            if n == 0:
                raise CorruptChunk("the file is cut short", where=self._path, remedy="copy it again")
            done += n

    def _decode(self, into: Array, wanted: tuple[slice, ...], page: Any) -> None:
        """Decode the strips or tiles that a box of a page touches."""
        rows, columns = wanted[0], wanted[1]
        flat = into.reshape(*into.shape[:2], -1)
        samples = wanted[2] if len(wanted) > 2 else slice(None)
        for index in self._segments(rows, columns):
            data: bytes | None = None
            if page.databytecounts[index]:
                data = os.pread(self._handle, page.databytecounts[index], page.dataoffsets[index])
            segment, place, _ = page.decode(data, index, jpegtables=page.jpegtables)
            y, x = place[2], place[3]
            if segment is None:  # of no bytes: nothing there but the value that means nothing
                length, width = self._segment_shape()
                part = np.full((length, width, 1), self._page.nodata, self.dtype)
            else:
                part = segment[0]
            top, left = max(rows.start, y), max(columns.start, x)
            bottom, right = min(rows.stop, y + part.shape[0]), min(columns.stop, x + part.shape[1])
            flat[top - rows.start : bottom - rows.start, left - columns.start : right - columns.start] = part[
                top - y : bottom - y, left - x : right - x, samples
            ]

    def _segment_shape(self) -> tuple[int, int]:
        """Return rows and columns of a tile, or of a strip."""
        if self._page.is_tiled:
            return int(self._page.tilelength), int(self._page.tilewidth)
        length = int(self._page.imagelength)
        return min(int(self._page.rowsperstrip), length), int(self._page.imagewidth)

    def _segments(self, rows: slice, columns: slice) -> Iterator[int]:
        length, width = self._segment_shape()
        across = -(-int(self._page.imagewidth) // width)
        for y in range(rows.start // length, -(-rows.stop // length)):
            for x in range(columns.start // width, -(-columns.stop // width)):
                yield y * across + x


def _with_lost_axes(
    letters: str, shape: tuple[int, ...], dims: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the names of all axes, and which of them the series has.

    tifffile's letters are our names, but S (samples) is c; Q, I, R (unknown) the first free of z, t, c.
    """
    names = [{"S": "c"}.get(a, a.lower()) for a in letters]
    for i, name in enumerate(names):
        if name not in DIMS:
            names[i] = next((d for d in ("z", "t", "c") if d not in names), name)
    kept = tuple(dims.index(name) for name in names if name in dims)
    if len(kept) == len(names) == len(shape) and list(kept) == sorted(kept):
        return dims, kept
    return tuple(names), tuple(range(len(names)))


def _native(values: Array) -> Array:
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _check_codec(page: Any, path: str) -> None:
    """Refuse a compression that tifffile cannot undo, before a job finds out midway."""
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
        tifffile.TIFF.UNPREDICTORS[page.predictor]
    except KeyError as error:
        raise UnsupportedStore(
            "a TIFF whose compression cannot be undone here",
            where=path,
            got=getattr(page.compression, "name", page.compression),
            remedy="pip install imagecodecs, or save it uncompressed",
        ) from error


_OPEN: OrderedDict[tuple[str, int, int], TiffImage] = OrderedDict()
_LOCK = threading.Lock()


def open_tiff(path: str) -> TiffImage:
    """Return the file, open; the one that is open already where it has not been written since."""
    facts = os.stat(path)  # noqa: PTH116
    key = (path, facts.st_size, facts.st_mtime_ns)
    with _LOCK:
        if key in _OPEN:
            _OPEN.move_to_end(key)
            return _OPEN[key]
    image = TiffImage(path)
    with _LOCK:
        _OPEN[key] = image
        while len(_OPEN) > _KEPT_OPEN:
            _OPEN.popitem(last=False)
    return image
