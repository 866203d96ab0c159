"""A prediction that is planned: checked, laid out, tiled and costed from metadata alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from denoizarr.errors import BadRequest, MemoryLimitTooSmall, ModelError
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import ceil_div
from denoizarr.geometry.tiling import tile_for, tiles_of
from denoizarr.images.layout import OutputLayout, chunks_like, plan_layout
from denoizarr.images.pyramid import blocks_per_batch
from denoizarr.images.save import omero_of, world_of
from denoizarr.stores import locations
from denoizarr.stores.images import reader_of
from denoizarr.stores.sources import ImageReader
from denoizarr.training.denoiser import Denoiser

# Resident memory of a worker that has done one small block: torch, zarr, distributed and what they keep;
# measured 560 to 650 MiB, rounded up.
BASE_BYTES = 768 * 2**20
# A batch is some seconds of a CPU core: the standard network does about half a megapixel a second.
PREDICTION_BATCH_VOXELS = 2 * 2**20
_TILE_SIDES = (2048, 1536, 1024, 768, 512, 384, 256, 192, 128, 96, 64, 32, 16, 8)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A prediction that has passed every check that can fail early.

    Attributes
    ----------
    reader : ImageReader
    layout : OutputLayout
    tile_shape : tuple of int
        Valid voxels of a tile along the model's axes.
    blocks, batches : int
        Of the finest level.
    bytes_read, bytes_written : int
        Decoded, halos included; the pyramid included.
    bytes_per_worker : int
        Projected peak memory.
    recompute_factor : float
        Voxels that the network computes over voxels kept.
    changes : tuple of str
        What of the input does not survive.
    """

    reader: ImageReader
    layout: OutputLayout
    tile_shape: tuple[int, ...]
    blocks: int
    batches: int
    bytes_read: int
    bytes_written: int
    bytes_per_worker: int
    recompute_factor: float
    changes: tuple[str, ...]


def parse_bytes(text: str | int, where: str = "memory_limit") -> int:
    """Return a number of bytes from 2147483648, "2GiB" or "500 MB"."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise BadRequest("not an amount of memory", where=where, got=repr(text), expected='such as "2GiB"')
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))


def plan_prediction(
    denoiser: Denoiser,
    image: xr.DataArray,
    destination: str | Path,
    *,
    memory_limit: str | int = "2GiB",
    tile_shape: Sequence[int] | None = None,
    dtype: str | np.dtype[Any] | None = None,
    ome_version: str = "0.5",
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
    levels: int | None = None,
) -> Prediction:
    """Check a prediction and say what it will cost; reads metadata only.

    Parameters
    ----------
    denoiser : Denoiser
    image : DataArray
    destination : str or Path
    memory_limit : str or int
        Per worker process (per thread where there is no cluster).
    tile_shape, dtype, ome_version, chunks, shards, levels
        As in ``predict``.

    Raises
    ------
    ModelError, BadRequest, MisalignedGrid, MemoryLimitTooSmall
    """
    reader = reader_of(image)
    n = len(denoiser.halo)
    _check_model(denoiser, reader, n)
    kept = _dtype_of(reader.dtype if dtype in (None, "same") else dtype)
    scale, translation, units = world_of(image)
    layout = plan_layout(
        locations.join(destination),
        dims=reader.dims,
        shape=reader.shape,
        dtype=kept,
        scale=scale,
        translation=translation,
        units=units,
        ome_version=ome_version,
        chunks=chunks if chunks is not None else chunks_like(reader.dims, reader.chunks, reader.shape),
        shards=shards,
        levels=levels,
        name=str(image.name or ""),
        omero=omero_of(image),
    )
    grid = layout.levels[0].write_units
    first = grid.box(0)
    tile, peak = _tile_that_fits(denoiser, reader, first, kept, parse_bytes(memory_limit), tile_shape)
    planes = prod(reader.shape[:-n])
    spatial = reader.shape[-n:]
    inner = tuple(min(a, b) for a, b in zip(tile, first.shape[-n:], strict=True))
    tiles = tiles_of(Box.whole(spatial), inner, spatial, denoiser.halo, denoiser.stride)
    computed = sum(t.read.size for t in tiles)
    read = sum(_read_size(denoiser, grid.box(i), spatial, n) for i in range(min(len(grid), 64)))
    read = int(
        read * len(grid) / min(len(grid), 64)
    )  # 64 blocks stand for all: metadata must suffice for a petabyte
    written = sum(prod(level.shape) for level in layout.levels) * kept.itemsize
    changes = () if kept == reader.dtype else (f"dtype {reader.dtype} became {kept}",)
    return Prediction(
        reader,
        layout,
        tile,
        len(grid),
        ceil_div(len(grid), blocks_per_batch(first.size, PREDICTION_BATCH_VOXELS)),
        read * reader.dtype.itemsize,
        written,
        peak,
        round(computed * planes / prod(reader.shape), 4),
        changes,
    )


def _dtype_of(given: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(given)
    except TypeError as error:
        raise BadRequest(
            "not a dtype", where="dtype", got=repr(given), expected="such as uint16 or float32"
        ) from error
    if dtype.kind not in "uif":
        raise BadRequest("an output dtype is an integer or a float", where="dtype", got=dtype)
    return dtype


def _check_model(denoiser: Denoiser, reader: ImageReader, n: int) -> None:
    if len(reader.shape) < n:
        raise ModelError(
            "a model of more axes than the image",
            got=f"{n} axes for {reader.dims}",
            remedy="train on this image",
        )
    channels = reader.shape[reader.dims.index("c")] if "c" in reader.dims else 1
    if denoiser.channels not in (1, channels):
        raise ModelError(
            "model and image differ in channels", where=reader.name, got=channels, expected=denoiser.channels
        )


def _read_size(denoiser: Denoiser, box: Box, spatial: tuple[int, ...], n: int) -> int:
    valid = Box(box.start[-n:], box.stop[-n:])
    planes = prod(box.shape[:-n])
    return planes * tile_for(valid, spatial, denoiser.halo, denoiser.stride).inside(spatial).size


def _tile_that_fits(
    denoiser: Denoiser,
    reader: ImageReader,
    block: Box,
    dtype: np.dtype[Any],
    limit_bytes: int,
    asked: Sequence[int] | None,
) -> tuple[tuple[int, ...], int]:
    """Return the tile and the projected peak: the largest tile under the limit recomputes least."""
    n = len(denoiser.halo)
    spatial = reader.shape[-n:]
    block_read = _read_size(denoiser, block, spatial, n) * reader.dtype.itemsize
    # Raw voxels, result, what is read back to check it, and the encoded shard; while reading, a chunk of the
    # input is there encoded, decoded and copied.
    chunk_bytes = prod(reader.chunks) * reader.dtype.itemsize
    around = BASE_BYTES + 2 * block_read + 4 * block.size * dtype.itemsize + 3 * chunk_bytes

    def peak(tile: tuple[int, ...]) -> int:
        inner = tuple(min(t, b) for t, b in zip(tile, block.shape[-n:], strict=True))
        grown = prod(t + 2 * h + s for t, h, s in zip(inner, denoiser.halo, denoiser.stride, strict=True))
        return int(around + grown * denoiser.bytes_per_voxel)

    if asked is not None:
        tile = tuple(int(t) for t in asked)
        if len(tile) != n or any(t < 1 or t % s for t, s in zip(tile, denoiser.stride, strict=True)):
            raise BadRequest(
                "a tile is a multiple of the network's stride",
                got=tile,
                expected=f"multiples of {denoiser.stride}",
            )
        candidates = [tile]
    else:
        candidates = [(side,) * n for side in _TILE_SIDES if side % max(denoiser.stride) == 0]
    for tile in candidates:
        if peak(tile) <= limit_bytes:
            return tile, peak(tile)
    smallest = peak(candidates[-1])
    raise MemoryLimitTooSmall(
        "not even one tile fits",
        where="memory_limit",
        got=f"{limit_bytes / 2**20:.0f} MiB",
        expected=f"at least {ceil_div(smallest, 2**20)} MiB",
        remedy="raise it or ask for smaller shards",
    )
