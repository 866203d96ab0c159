"""An image as one OME-TIFF, streamed: pieces are read ahead in threads and written in the file's own order.

::

    pieces of the image    slab of planes | band of rows      read ahead, a few at a time
                             |
    pages, or tiles of 512   v                                one after the other, into NAME.part
                           NAME.part -> NAME                  once every byte is there
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import tifffile

from denoizarr.engine.batches import peak_bytes
from denoizarr.engine.progress import Progress
from denoizarr.engine.summary import RunSummary
from denoizarr.errors import BadRequest
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import ceil_div, round_up
from denoizarr.kernels.pooling import mean_pool
from denoizarr.stores import locations
from denoizarr.stores.sources import Array, ImageReader
from denoizarr.stores.tiff_metadata import ome_metadata

from .output import check_apart
from .whole_file import check_free_file, put_in_place

SUFFIXES = (".tif", ".tiff", ".btf")
_TILE, _LARGEST_PAGE = 512, 2048
_PIECE_BYTES = 64 * 2**20
_CLASSIC_BYTES = 2**32 - 2**25  # as tifffile decides
_DTYPES = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "float32", "float64")


@dataclass(frozen=True, slots=True)
class TiffExport:
    """An image that is to become a TIFF file.

    Attributes
    ----------
    reader : ImageReader
    destination : str
    scale, translation, units
        Per dim.
    omero : dict
    name : str
    levels : int
        With the coarser ones, of halved y and x, as SubIFDs.
    """

    reader: ImageReader
    destination: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    units: tuple[str | None, ...]
    omero: dict[str, Any]
    name: str
    levels: int = 1

    @property
    def is_tiled(self) -> bool:
        """Whether pages are of tiles: large ones are looked at in parts."""
        return max(self.reader.shape[-2:]) > _LARGEST_PAGE

    def level_shape(self, level: int) -> tuple[int, ...]:
        """Return the shape of a level: y and x halved so many times, rounded up."""
        return (*self.reader.shape[:-2], *(ceil_div(n, 2**level) for n in self.reader.shape[-2:]))


def export_tiff(
    job: TiffExport, *, overwrite: bool = False, threads: int = 1, progress: bool = False
) -> RunSummary:
    """Write the file: whole or not at all.

    Raises
    ------
    BadRequest
        A dtype that OME-TIFF does not have; a destination that is read.
    OutputExists, NoSpace, MissingChunk, CorruptChunk, StoreUnavailable
    """
    started = time.monotonic()
    path = locations.local_path(job.destination)
    n_bytes = check_export(job, overwrite=overwrite)
    metadata, ours = ome_metadata(job.reader.dims, job.scale, job.translation, job.units, job.omero, job.name)
    part = path.with_name(f"{path.name}.part")
    n_pages = prod(job.reader.shape[:-2])
    try:
        with locations.translated(job.destination):
            path.parent.mkdir(parents=True, exist_ok=True)
            big = path.suffix.lower() == ".btf" or n_bytes > _CLASSIC_BYTES
            with (
                tifffile.TiffWriter(part, bigtiff=big, ome=True) as file,
                Progress("TIFF", n_pages * job.levels, progress) as bar,
            ):
                for level in range(job.levels):
                    _write_level(job, file, level, metadata, threads, bar)
            locations.make_durable(part)
            put_in_place(part, path, overwrite)
    finally:
        part.unlink(missing_ok=True)
    changes = (f"only denoizarr reads back from the file: {', '.join(ours)}",) if ours else ()
    return RunSummary(
        destination=job.destination,
        blocks_total=n_pages,
        blocks_done=n_pages,
        blocks_skipped=0,
        changes=changes,
        seconds=round(time.monotonic() - started, 3),
        peak_bytes=peak_bytes(),
    )


def check_export(job: TiffExport, *, overwrite: bool) -> int:
    """Refuse what can be refused before any work; return how large the file will be, about."""
    check_apart(job.destination, job.reader.urls)
    dtype = job.reader.dtype
    if dtype.name not in _DTYPES:
        raise BadRequest(
            "OME-TIFF has no such voxels",
            where=locations.redact(job.destination),
            got=dtype,
            expected=f"one of {', '.join(_DTYPES)}",
            remedy="save it as another dtype first",
        )
    n_bytes = sum(prod(job.level_shape(level)) for level in range(job.levels)) * dtype.itemsize
    check_free_file(job.destination, n_bytes, overwrite=overwrite)
    return n_bytes


def _write_level(
    job: TiffExport,
    file: tifffile.TiffWriter,
    level: int,
    metadata: dict[str, Any],
    threads: int,
    bar: Progress,
) -> None:
    shape = job.level_shape(level)
    options: dict[str, Any] = {"tile": (_TILE, _TILE)} if job.is_tiled else {}
    options |= {"subifds": job.levels - 1, "metadata": metadata} if level == 0 else {"subfiletype": 1}
    pages = _pages(job, level, threads, bar)
    file.write(pages, shape=shape, dtype=job.reader.dtype, photometric="minisblack", **options)


def _pages(job: TiffExport, level: int, threads: int, bar: Progress) -> Iterator[Array]:
    """Yield pages, or their tiles, in the order of the file."""
    pieces = list(_pieces(job, level))
    waiting: deque[Future[Array]] = deque()
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        try:
            for number, piece in enumerate(pieces):
                while len(waiting) <= threads and number + len(waiting) < len(pieces):
                    waiting.append(pool.submit(_read, job, pieces[number + len(waiting)], level))
                values = waiting.popleft().result()
                for plane in values.reshape(-1, *values.shape[-2:]):
                    yield from _tiles(plane) if job.is_tiled else [plane]
                    bar.advance(int(piece.stop[-2] == job.reader.shape[-2]))
        finally:
            for future in waiting:
                future.cancel()


def _pieces(job: TiffExport, level: int) -> Iterator[Box]:
    """Yield boxes of the image in the order in which the file has them: slabs of planes, or bands of rows.

    Planes that share chunks are read together where that is not too much; else each chunk is decoded again
    for every plane.
    """
    reader = job.reader
    *lead, height, width = reader.shape
    row_bytes = width * reader.dtype.itemsize
    depth = 1
    if lead and (deep := min(reader.chunks[-3], lead[-1])) * height * row_bytes <= _PIECE_BYTES:
        fitting = _PIECE_BYTES // max(height * row_bytes * deep, 1)
        depth = min(deep * max(fitting, 1), lead[-1])
    step = _TILE * 2**level
    rows = height
    if depth == 1 and job.is_tiled:
        rows = min(round_up(max(_PIECE_BYTES // row_bytes, 1), step), height)
        rows = max(rows // step, 1) * step
    starts: Sequence[range] = [range(n) for n in lead[:-1]] + [range(0, n, depth) for n in lead[-1:]]
    for at in product(*starts):
        for top in range(0, height, rows):
            stop = tuple(a + 1 for a in at[:-1]) + tuple(min(a + depth, lead[-1]) for a in at[-1:])
            yield Box((*at, top, 0), (*stop, min(top + rows, height), width))


def _read(job: TiffExport, box: Box, level: int) -> Array:
    values = job.reader.read(box)
    for _ in range(level):
        values = mean_pool(values, (1,) * (values.ndim - 2) + (2, 2))
    return values


def _tiles(plane: Array) -> Iterator[Array]:
    """Yield the tiles of some rows of a page, those at the far end filled up with zeros."""
    for y, x in product(range(0, plane.shape[0], _TILE), range(0, plane.shape[1], _TILE)):
        tile = plane[y : y + _TILE, x : x + _TILE]
        yield np.pad(tile, [(0, _TILE - n) for n in tile.shape])
