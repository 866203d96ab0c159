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

from denoizarr.engine.stages import BLOCKS_AHEAD, BLOCKS_BEHIND
from denoizarr.errors import BadRequest, MemoryLimitTooSmall, ModelError
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import ceil_div, round_up
from denoizarr.geometry.tiling import tile_for, tiles_of
from denoizarr.images.layout import OutputLayout, chunks_like, plan_layout
from denoizarr.images.pyramid import blocks_per_batch
from denoizarr.images.save import omero_of, world_of
from denoizarr.stores import locations
from denoizarr.stores.images import reader_of
from denoizarr.stores.sources import ImageReader
from denoizarr.training.denoiser import Denoiser

from .devices import batch_voxels

# Resident memory of a worker that has done one small block: torch, zarr, distributed and what they keep;
# measured 560 to 650 MiB, rounded up.
BASE_BYTES = 768 * 2**20
# A batch is some seconds of a CPU core: the standard network does about half a megapixel a second.
PREDICTION_BATCH_VOXELS = 2 * 2**20
_TILE_SIDES = {
    # Of larger ones the layers no longer fit where a thread keeps freed memory: in 2D 1024 is a fifth slower.
    2: (512, 384, 256, 192, 128, 96, 64, 32, 16, 8),
    # Every voxel of a tile's side saves far more of the halo in 3D.
    3: (256, 192, 128, 112, 96, 80, 64, 56, 48, 40, 32, 24, 16, 8),
}
# A block of one plane would be read, and computed, with dozens of planes around it.
_DEPTH, _UNIT_VOXELS = 64, 16 * 2**20
_METRES = {
    "angstrom": 1e-10,
    "nanometer": 1e-9,
    "micrometer": 1e-6,
    "millimeter": 1e-3,
    "centimeter": 1e-2,
    "meter": 1.0,
}
# Noise and structure look alike to a network up to about here.
_SAME_PIXEL_SIZE = 0.05


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
    warnings : tuple of str
        Why the result may be worse than the model can do.
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
    warnings: tuple[str, ...] = ()


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
    may_lose_lines: bool = False,
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
    may_lose_lines : bool
        Whether periodic lines may be taken out of the image, which is read as float32 then; it is known of a
        model that knows of some.

    Raises
    ------
    ModelError, BadRequest, MisalignedGrid, MemoryLimitTooSmall
    """
    reader = reader_of(image)
    n = len(denoiser.halo)
    _check_model(denoiser, reader, n)
    kept = _dtype_of(reader.stored_dtype if dtype in (None, "same") else dtype)
    scale, translation, units = world_of(image)
    if n == 3 and shards is None:
        chunks, shards = _deep_units(reader, chunks, ome_version)
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
    limit = parse_bytes(memory_limit)
    tile, peak = _tile_that_fits(
        denoiser, reader, first, kept, limit, tile_shape, may_lose_lines or bool(denoiser.periodic)
    )
    planes = prod(reader.shape[:-n])
    spatial = reader.shape[-n:]
    inner = tuple(min(a, b) for a, b in zip(tile, first.shape[-n:], strict=True))
    computed = _computed(denoiser, spatial, inner)
    read = sum(_read_size(denoiser, grid.box(i), spatial, n) for i in range(min(len(grid), 64)))
    read = int(
        read * len(grid) / min(len(grid), 64)
    )  # 64 blocks stand for all: metadata must suffice for a petabyte
    written = sum(prod(level.shape) for level in layout.levels) * kept.itemsize
    changes = () if kept == reader.stored_dtype else (f"dtype {reader.stored_dtype} became {kept}",)
    return Prediction(
        reader,
        layout,
        tile,
        len(grid),
        ceil_div(len(grid), blocks_per_batch(first.size, batch_voxels("cpu", grid, PREDICTION_BATCH_VOXELS))),
        read * reader.dtype.itemsize,
        written,
        peak,
        round(computed * planes / prod(reader.shape), 4),
        changes,
        _other_pixel_size(denoiser, reader.dims, scale, units),
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
    if reader.dims[-n:] != tuple(denoiser.axes):
        raise ModelError(
            "the model needs axes that the image does not have",
            where=reader.name,
            got=f"an image of axes {''.join(reader.dims)}",
            expected=f"one that ends in {denoiser.axes}, for a {n}D model",
            remedy=f"train a {n - 1}D model on this image" if n == 3 else "choose another image",
        )
    channels = reader.shape[reader.dims.index("c")] if "c" in reader.dims else 1
    if denoiser.channels not in (1, channels):
        raise ModelError(
            "model and image differ in channels", where=reader.name, got=channels, expected=denoiser.channels
        )


def _deep_units(
    reader: ImageReader, chunks: Sequence[int] | None, ome_version: str
) -> tuple[Sequence[int] | None, Sequence[int] | None]:
    """Return chunks and shards for a 3D model: write units of 64 planes, where the image has as many."""
    dims, shape = reader.dims, reader.shape
    if ome_version == "0.4":  # chunks are what a task writes
        deep = (1,) * (len(shape) - 3) + (_DEPTH, 256, 256)
        return chunks or tuple(map(min, deep, shape)), None
    chunks = chunks or chunks_like(dims, reader.chunks, shape) or (1,) * (len(shape) - 2) + (512, 512)
    if len(chunks) != len(shape):
        return chunks, None  # refused where the layout is planned
    units = [round_up(_DEPTH if d == "z" else 1, int(c)) for d, c in zip(dims, chunks, strict=True)]
    for axis in (-1, -2):
        while units[axis] < min(shape[axis], 512) and 2 * prod(units) <= _UNIT_VOXELS:
            units[axis] *= 2
    return chunks, tuple(units)


def _other_pixel_size(
    denoiser: Denoiser, dims: Sequence[str], scale: Sequence[float], units: Sequence[str | None]
) -> tuple[str, ...]:
    """Return a sentence for each axis along which model and image differ in pixel size by more than 5 %."""
    found = []
    for axis, trained in (denoiser.pixel_size or {}).items():
        if axis not in dims:
            continue
        value, unit = abs(scale[dims.index(axis)]), units[dims.index(axis)]
        if trained["unit"] == unit:
            ratio = value / trained["value"]
        elif unit in _METRES and trained["unit"] in _METRES:
            ratio = value * _METRES[str(unit)] / (trained["value"] * _METRES[str(trained["unit"])])
        else:
            continue
        if abs(ratio - 1) > _SAME_PIXEL_SIZE:
            trained_on = f"{trained['value']:g} {trained['unit'] or ''}".strip()
            found.append(
                f"the pixel size along {axis} is {f'{value:g} {unit or str()}'.strip()}, and the model was "
                f"trained at {trained_on}: it may blur or miss what looks larger or smaller to it"
            )
    return tuple(found)


def _computed(denoiser: Denoiser, spatial: tuple[int, ...], tile: tuple[int, ...]) -> int:
    """Return the voxels that the network computes for a whole plane or volume cut into tiles."""
    total = 1
    for n, t, h, s in zip(spatial, tile, denoiser.halo, denoiser.stride, strict=True):
        # What is read is a product of intervals, so that its sum over all tiles is a product of sums.
        total *= sum(part.read.size for part in tiles_of(Box.whole((n,)), (t,), (n,), (h,), (s,)))
    return total


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
    may_lose_lines: bool,
) -> tuple[tuple[int, ...], int]:
    """Return the tile and the projected peak: the largest tile under the limit recomputes least."""
    n = len(denoiser.halo)
    spatial = reader.shape[-n:]
    # Less its lines an image is float32, and while it is made so, it is there as it is stored, too.
    itemsize = max(reader.dtype.itemsize, reader.stored_dtype.itemsize, 4 if may_lose_lines else 0)
    block_read = _read_size(denoiser, block, spatial, n) * itemsize
    # Raw voxels, result, what is read back to check it, and the encoded shard; while reading, a chunk of the
    # input is there encoded, decoded and copied.
    chunk_bytes = prod(reader.chunks) * itemsize
    # Of the next block the input is there as well, of the last one the result, while one is computed.
    inputs, results = 2 + BLOCKS_AHEAD, 4 + BLOCKS_BEHIND
    around = (
        BASE_BYTES + inputs * block_read + results * block.size * dtype.itemsize + (1 + inputs) * chunk_bytes
    )

    def peak(tile: tuple[int, ...]) -> int:
        inner = tuple(min(t, b) for t, b in zip(tile, block.shape[-n:], strict=True))
        grown = prod(
            min(t + 2 * h + s, round_up(whole, s))
            for t, h, s, whole in zip(inner, denoiser.halo, denoiser.stride, spatial, strict=True)
        )
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
        sides = [side for side in _TILE_SIDES[n] if side >= max(denoiser.stride)] or [max(denoiser.stride)]
        candidates = [tuple(side // s * s for s in denoiser.stride) for side in sides]
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
