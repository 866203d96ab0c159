"""Patch2Self of an image, planned: checked, laid out and costed from metadata alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from denoizarr.engine.memory_limits import parse_bytes
from denoizarr.engine.stages import BLOCKS_AHEAD, BLOCKS_BEHIND
from denoizarr.errors import BadRequest, MemoryLimitTooSmall, MisalignedGrid
from denoizarr.images.layout import OutputLayout, plan_layout
from denoizarr.images.output import check_apart, ledger_url
from denoizarr.images.save import extra_of, omero_of, world_of
from denoizarr.images.series import block_of_series
from denoizarr.kernels.neighbourhoods import n_offsets
from denoizarr.stores import locations
from denoizarr.stores.foreign import describe_foreign, open_foreign
from denoizarr.stores.images import ImageLike, as_image, reader_of
from denoizarr.stores.nifti import is_nifti_name
from denoizarr.stores.sources import ImageReader

from .options import Patch2SelfOptions
from .streaming import DiffusionSpec
from .volume_groups import VolumeGroups

# Of a worker before its first block: zarr, numba, distributed, and what they leave.
_BASE_BYTES = 512 * 2**20
_MOST_SPANS = 256
# Matrices of all variables at a time: the sum and a group's part of it, scaled, factored, inverted, and what
# they are copied to; in the first pass the sum, a part, its products.
_MATRICES = 8
# Of a slab: its rows, widened, and their predictions.
_SLABS_BYTES = 48 * 2**20
_SPACE = ("z", "y", "x")


@dataclass(frozen=True, slots=True)
class DiffusionPlan:
    """What will be done.

    Attributes
    ----------
    spec : DiffusionSpec
    bytes_per_worker : int
        Projected peak memory.
    spare_bytes : int
        What the limit leaves beside it.
    changes : tuple of str
        What of the input does not survive.
    """

    spec: DiffusionSpec
    bytes_per_worker: int
    spare_bytes: int
    changes: tuple[str, ...]

    def in_words(self) -> str:
        """Return the work as a line."""
        n, *space = self.spec.reader.shape
        p = n_offsets(self.spec.options.radius)
        return (
            f"{n} volumes of {' x '.join(map(str, space))}, {n * p} variables, {self.spec.n_blocks} blocks, "
            f"at most {self.bytes_per_worker / 2**20:.0f} MiB per worker"
        )


def matrix_bytes(n_volumes: int, p: int) -> int:
    """Return the memory of the matrices of all variables."""
    return _MATRICES * 8 * (n_volumes * p) ** 2


def check_matrices(n_volumes: int, p: int, limit: int) -> None:
    """Refuse what cannot be solved in memory.

    Raises
    ------
    MemoryLimitTooSmall
    """
    needed = matrix_bytes(n_volumes, p)
    if needed > limit:
        raise MemoryLimitTooSmall(
            f"the matrix of {n_volumes} volumes with {p} voxels each does not fit",
            where="memory_limit",
            got=f"{limit / 2**20:.0f} MiB",
            expected=f"{needed / 2**20:.0f} MiB for {_MATRICES} matrices, {n_volumes * p} x {n_volumes * p}",
            remedy="raise it, or choose a smaller patch_radius",
        )


def volume_axis(dims: Sequence[str]) -> str:
    """Return which axis counts the volumes.

    Raises
    ------
    BadRequest
        The image is not 4D, or has time and channels.
    """
    leading = [d for d in dims if d not in _SPACE]
    if len(dims) != 4 or len(leading) != 1 or leading[0] not in ("t", "c"):
        raise BadRequest(
            "Patch2Self needs volumes of z, y, x along one more axis",
            where="the image's axes",
            got="".join(dims),
            expected="tzyx or czyx",
        )
    return leading[0]


def plan_patch2self(
    image: xr.DataArray,
    destination: str | Path,
    groups: VolumeGroups,
    options: Patch2SelfOptions,
    *,
    mask: ImageLike | None = None,
    out_dtype: Any = None,
    memory_limit: str | int = "2GiB",
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
    ome_version: str = "0.5",
) -> DiffusionPlan:
    """Check the request against the image, and lay the output out; reads metadata only.

    Parameters
    ----------
    image : DataArray
        Of volumes (t or c) and z, y, x.
    destination, groups, options, mask, out_dtype, memory_limit, chunks, shards, ome_version
        As :func:`~denoizarr.diffusion.patch2self.patch2self` takes them.

    Raises
    ------
    BadRequest, MisalignedGrid, MemoryLimitTooSmall
    """
    reader = reader_of(image)
    volume_axis(reader.dims)
    n, *space = reader.shape
    check_radius(options.radius, space)
    dtype = output_dtype(reader.dtype if out_dtype is None else out_dtype)
    url = locations.join(destination)
    inside = None if mask is None else _mask_reader(mask, tuple(space), url)
    if chunks is None:
        widest = max(dtype.itemsize, reader.dtype.itemsize)
        block = block_of_series(reader.shape, reader.chunks, widest) if shards is None else tuple(shards[1:])
        chunks = (1, *block) if ome_version == "0.5" else (n, *block)
    if shards is None and ome_version == "0.5" and len(chunks) == 4:
        shards = (-(-n // chunks[0]) * chunks[0], *chunks[1:])
    scale, translation, units = world_of(image)
    layout = plan_layout(
        url,
        dims=reader.dims,
        shape=reader.shape,
        dtype=dtype,
        scale=scale,
        translation=translation,
        units=units,
        ome_version=ome_version,
        chunks=chunks,
        shards=shards,
        name=str(image.name or ""),
        omero=omero_of(image),
        extra=extra_of(image),
    )
    unit = layout.levels[0].write_units.step
    if unit[0] < n:
        raise MisalignedGrid(
            "a block of Patch2Self has all volumes",
            where="shards" if shards is not None else "chunks",
            got=unit,
            expected=f"{n} or more along {reader.dims[0]}",
            remedy="leave them out",
        )
    p = n_offsets(options.radius)
    limit = parse_bytes(memory_limit)
    check_matrices(n, p, limit)
    needed = _peak_bytes(reader, layout, options, p)
    if needed > limit:
        raise MemoryLimitTooSmall(
            "one block of all volumes does not fit",
            where="memory_limit",
            got=f"{limit / 2**20:.0f} MiB",
            expected=f"at least {needed / 2**20:.0f} MiB",
            remedy="raise it, or ask for smaller shards",
        )
    spec = DiffusionSpec(
        reader, inside, layout, options, groups, ledger_url(url), _blocks_per_span(layout, n * p)
    )
    changes = () if dtype == reader.dtype else (f"dtype {reader.dtype} became {dtype}",)
    return DiffusionPlan(spec, needed, limit - needed, changes)


def check_radius(radius: tuple[int, ...], space: Sequence[int]) -> None:
    """Refuse a neighbourhood that reaches beyond the image from everywhere in it.

    Raises
    ------
    BadRequest
    """
    if any(r >= size for r, size in zip(radius, space, strict=True)):
        raise BadRequest(
            "the patch reaches farther than the volumes do",
            where="patch_radius",
            got=radius,
            expected=f"less than {' x '.join(map(str, space))} voxels",
        )


def output_dtype(given: Any) -> np.dtype[Any]:
    """Return the dtype of an output.

    Raises
    ------
    BadRequest
    """
    try:
        dtype: np.dtype[Any] = np.dtype(given)
    except TypeError as error:
        raise BadRequest("not a dtype", where="out_dtype", got=repr(given)) from error
    if dtype.kind not in "uif":
        raise BadRequest("volumes are integers or floats", where="dtype", got=dtype)
    return dtype


def _mask_reader(mask: ImageLike, space: tuple[int, ...], url: str) -> ImageReader:
    if isinstance(mask, str | Path) and is_nifti_name(mask):
        reader = open_foreign(describe_foreign([mask])[0])
    else:
        reader = reader_of(as_image(mask))
    check_apart(url, reader.urls)
    if reader.shape != space:
        raise BadRequest("mask and volumes differ in shape", where="mask", got=reader.shape, expected=space)
    return reader


def _blocks_per_span(layout: OutputLayout, variables: int) -> int:
    """Return how many blocks one file of the first pass sums up: it is small beside what it sums up."""
    units = layout.levels[0].write_units
    n, *space = units.step
    smallest = -(-2 * variables * variables // (n * prod(space)))
    return max(smallest, -(-len(units) // _MOST_SPANS), 1)


def _peak_bytes(reader: ImageReader, layout: OutputLayout, options: Patch2SelfOptions, p: int) -> int:
    n, *space = layout.levels[0].write_units.step
    n = min(n, reader.shape[0])
    padded = n * prod(s + 2 * r for s, r in zip(space, options.radius, strict=True)) * reader.dtype.itemsize
    written = n * prod(space) * np.dtype(layout.dtype).itemsize
    # As read and as padded; the next block meanwhile; the last as it is encoded and read back.
    blocks = 2 * (1 + BLOCKS_AHEAD) * padded + (1 + 3 * BLOCKS_BEHIND) * written
    decoded = min(reader.chunks_at_once * prod(reader.chunks), prod(reader.shape)) * reader.dtype.itemsize
    blocks += decoded
    return _BASE_BYTES + blocks + _SLABS_BYTES + matrix_bytes(reader.shape[0], p)
