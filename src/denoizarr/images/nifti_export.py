"""An image as one NIfTI file, streamed volume by volume in the file's own order: x fastest.

::

    header | extensions | volume 0: plane after plane of z | volume 1 | ...        into NAME.part -> NAME
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import IO, Any

import numpy as np

from denoizarr.engine.batches import peak_bytes
from denoizarr.engine.progress import Progress
from denoizarr.engine.summary import RunSummary
from denoizarr.errors import BadRequest, OutputExists
from denoizarr.geometry.boxes import Box
from denoizarr.stores import locations, nifti
from denoizarr.stores.ome_zarr import NIFTI
from denoizarr.stores.sources import ImageReader

from .output import check_apart
from .whole_file import check_free_file, put_in_place

_PIECE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class NiftiExport:
    """An image that is to become a NIfTI file.

    Attributes
    ----------
    reader : ImageReader
    destination : str
    scale : dict
        By dim.
    units : dict
    extra : dict
        With the header, affine, b-values and directions of the file that it came from, if it came from one.
    """

    reader: ImageReader
    destination: str
    scale: dict[str, float]
    units: dict[str, str | None]
    extra: dict[str, Any]

    @property
    def carried(self) -> dict[str, Any]:
        """What a NIfTI file said that this image came from."""
        found = self.extra.get(NIFTI)
        return found if isinstance(found, dict) else {}


def export_nifti(job: NiftiExport, *, overwrite: bool = False, progress: bool = False) -> RunSummary:
    """Write the file: whole or not at all; b-values and directions beside it.

    Raises
    ------
    BadRequest
        Axes or a dtype that NIfTI does not have; a destination that is read.
    OutputExists, NoSpace, MissingChunk, CorruptChunk, MetadataError, UnsupportedStore
    """
    started = time.monotonic()
    header = check_nifti(job, overwrite=overwrite)
    reader, path = job.reader, locations.local_path(job.destination)
    part = path.with_name(f"{path.name}.part")
    boxes = list(_pieces(reader))
    try:
        with locations.translated(job.destination):
            path.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack, Progress("NIfTI", len(boxes), progress) as bar:
                plain = stack.enter_context(part.open("wb"))
                file: IO[bytes] | gzip.GzipFile = plain
                if path.name.lower().endswith(".gz"):
                    # Without name and time: the same image is the same bytes.
                    file = stack.enter_context(gzip.GzipFile("", "wb", 6, plain, mtime=0))
                header.write_to(file)
                file.write(b"\0" * (header.get_data_offset() - file.tell()))
                for box in boxes:
                    values = reader.read(box).astype(reader.dtype.newbyteorder("<"), copy=False)
                    file.write(np.ascontiguousarray(values).data)
                    bar.advance()
            locations.make_durable(part)
            # Before the file itself: where that is, nothing is missing.
            for name, text in _gradients(job).items():
                locations.put(name, text.encode())
            put_in_place(part, path, overwrite)
    finally:
        part.unlink(missing_ok=True)
    return RunSummary(
        destination=job.destination,
        blocks_total=len(boxes),
        blocks_done=len(boxes),
        blocks_skipped=0,
        seconds=round(time.monotonic() - started, 3),
        peak_bytes=peak_bytes(),
    )


def check_nifti(job: NiftiExport, *, overwrite: bool) -> Any:
    """Refuse what can be refused before any work; return the header of the file."""
    reader, where = job.reader, locations.redact(job.destination)
    check_apart(job.destination, reader.urls)
    nifti.check_voxels(reader.dtype, where)
    check_free_file(job.destination, prod(reader.shape) * reader.dtype.itemsize, overwrite=overwrite)
    shape = nifti_shape(reader)
    for name, text in _gradients(job).items():
        if locations.exists(name) and not overwrite and locations.get(name) != text.encode():
            raise OutputExists(
                "another file lies where b-values or directions go",
                where=locations.redact(name),
                remedy="choose another destination or pass overwrite",
            )
    if job.carried:
        header = nifti.header_of(job.carried, where)
        # What the voxels are now; the rest is as it was.
        header.set_data_dtype(reader.dtype)
        header.set_data_shape(shape)
        header.set_slope_inter(1, 0)
        header["cal_min"], header["cal_max"] = 0, 0
        return header
    header = nifti.new_header(shape, job.scale, job.units)
    header.set_data_dtype(reader.dtype)
    header.set_slope_inter(1, 0)
    return header


def nifti_shape(reader: ImageReader) -> tuple[int, ...]:
    """Return the extents along x, y, z and volumes.

    Raises
    ------
    BadRequest
        An image of both time and channels: the format has one axis of volumes.
    """
    dims = reader.dims
    if "t" in dims and "c" in dims:
        raise BadRequest(
            "a NIfTI file has one axis of volumes",
            where=reader.name,
            got="".join(dims),
            remedy="choose a channel",
        )
    by_dim = dict(zip(dims, reader.shape, strict=True))
    volumes = [by_dim[d] for d in ("t", "c") if d in by_dim]
    space = [by_dim["x"], by_dim["y"], by_dim.get("z", 1)]
    return tuple(space + volumes) if volumes or "z" in by_dim else tuple(space[:2])


def _gradients(job: NiftiExport) -> dict[str, str]:
    shape = nifti_shape(job.reader)
    n_volumes = shape[3] if len(shape) > 3 else 1
    return nifti.gradient_texts(job.carried, n_volumes, str(locations.local_path(job.destination)))


def _pieces(reader: ImageReader) -> Iterator[Box]:
    """Yield slabs of planes, in the file's order, of whole chunks along z where they fit."""
    *lead, height, width = reader.shape
    plane = height * width * reader.dtype.itemsize
    depth = lead[-1] if lead and "z" in reader.dims else 1
    chunk = reader.chunks[-3] if "z" in reader.dims else 1
    step = max(_PIECE_BYTES // max(plane, 1), 1)
    step = max(step // chunk * chunk, min(step, chunk))
    volumes = lead[0] if "t" in reader.dims or "c" in reader.dims else 1
    for volume in range(volumes):
        for first in range(0, depth, step):
            start, stop = [0, 0], [height, width]
            if "z" in reader.dims:
                start, stop = [first, *start], [min(first + step, depth), *stop]
            if len(start) < len(reader.shape):
                start, stop = [volume, *start], [volume + 1, *stop]
            yield Box(tuple(start), tuple(stop))
