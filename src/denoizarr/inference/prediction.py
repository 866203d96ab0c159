"""A prediction that is planned: checked, laid out, tiled and costed from metadata alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from denoizarr.engine.ledger import Ledger
from denoizarr.engine.memory_limits import parse_bytes
from denoizarr.errors import BadRequest, MemoryLimitTooSmall, ModelError
from denoizarr.geometry.grids import ceil_div
from denoizarr.images.layout import OutputLayout, plan_layout
from denoizarr.images.output import ledger_url
from denoizarr.images.pyramid import blocks_per_batch
from denoizarr.images.save import extra_of, omero_of, world_of
from denoizarr.kernels.unet import NetworkShape
from denoizarr.stores import locations
from denoizarr.stores.images import reader_of
from denoizarr.stores.sources import ImageReader
from denoizarr.training.denoiser import Denoiser

from .amounts import Amounts, Cut, amounts_of
from .devices import batch_voxels
from .memory_model import MemoryModel
from .work_shape import Work, WorkShape, choose_work_shape, viewer_chunks

# A batch is some seconds of a CPU core: the standard network does about half a megapixel a second.
PREDICTION_BATCH_VOXELS = 2 * 2**20
# Of an output for which nobody asked. A volume's blocks are of many planes, so that no halo is as large as
# they are, and still small; without shards a chunk is a block.
_PLANE_CHUNK, _VOLUME_CHUNK, _VOLUME_BLOCK = (512, 512), (16, 128, 128), (64, 256, 256)
_STANDARD_BYTES = 1088  # of the standard network's bytes_per_voxel
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
    read_amplification : float
        Chunks of the input that are decoded, halos included, over those that it has.
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
    read_amplification: float
    changes: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def in_words(self) -> str:
        """Return the cut and its cost as a line."""
        unit = self.layout.levels[0].write_units.step
        return (
            f"{self.blocks} blocks of {_times(unit)}, tiles of {_times(self.tile_shape)}: "
            f"{self.recompute_factor:.2f} voxels computed per voxel kept, "
            f"{self.read_amplification:.2f} chunks decoded per chunk, "
            f"at most {self.bytes_per_worker / 2**20:.0f} MiB per worker"
        )


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
    anew: bool = False,
) -> Prediction:
    """Check a prediction and say what it will cost; reads metadata only.

    Where one was begun at the destination, the blocks and tiles that it was begun with are kept, whatever the
    memory limit is now: the output's bytes depend on them.

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
    anew : bool
        What lies at the destination will be deleted first.

    Raises
    ------
    ModelError, BadRequest, MisalignedGrid, MemoryLimitTooSmall
    """
    reader = reader_of(image)
    n = len(denoiser.halo)
    _check_model(denoiser, reader, n)
    kept = _dtype_of(reader.stored_dtype if dtype in (None, "same") else dtype)
    scale, translation, units = world_of(image)
    common: dict[str, Any] = {
        "dims": reader.dims, "shape": reader.shape, "dtype": kept, "scale": scale, "translation": translation,
        "units": units, "ome_version": ome_version, "name": str(image.name or ""), "omero": omero_of(image),
        "extra": extra_of(image),
    }  # fmt: skip
    url = locations.join(destination)
    begun = None
    if not anew and chunks is None and shards is None and tile_shape is None:
        begun = _cut_on_record(url, reader, denoiser, ome_version)
    if begun is not None:
        chunks, shards, tile_shape = begun
    if chunks is None:
        chunks = _default_chunks(reader, n, kept.itemsize, ome_version)
        if shards is not None and len(shards) == len(chunks):
            chunks = tuple(_divisor(int(s), c) for s, c in zip(shards, chunks, strict=True))
    # Checks what was asked for, too, before it is worked with.
    asked = plan_layout(url, **common, chunks=chunks, shards=shards, levels=levels)
    work = _work(denoiser, reader, asked, may_lose_lines or bool(denoiser.periodic))
    fixed = shards is not None or begun is not None or ome_version == "0.4"
    try:
        chosen = choose_work_shape(
            work,
            parse_bytes(memory_limit),
            block=asked.levels[0].write_units.step if fixed else None,
            tile=tile_shape,
        )
    except MemoryLimitTooSmall as error:
        if begun is None:
            raise
        raise MemoryLimitTooSmall(
            "the blocks and tiles that this output was begun with do not fit",
            where=error.where,
            got=error.got,
            expected=error.expected,
            remedy="raise it, or begin anew with overwrite",
        ) from error
    layout = (
        asked if fixed else plan_layout(url, **common, chunks=work.chunks, shards=chosen.block, levels=levels)
    )
    amounts = _amounts(work, chosen)
    grid = layout.levels[0].write_units
    written = sum(prod(level.shape) for level in layout.levels) * kept.itemsize
    changes = () if kept == reader.stored_dtype else (f"dtype {reader.stored_dtype} became {kept}",)
    return Prediction(
        reader,
        layout,
        chosen.tile,
        len(grid),
        ceil_div(
            len(grid),
            blocks_per_batch(grid.box(0).size, batch_voxels("cpu", grid, PREDICTION_BATCH_VOXELS)),
        ),
        amounts.read_voxels * reader.dtype.itemsize,
        written,
        chosen.peak_bytes,
        round(amounts.recompute_factor, 4),
        round(amounts.read_amplification, 4),
        changes,
        _other_pixel_size(denoiser, reader.dims, scale, units),
    )


def relative_cost(denoiser: Denoiser) -> float:
    """Return the cost of computing one voxel, in those of the standard network (depth 2, 32 features, 2D)."""
    shape = denoiser.network
    if not isinstance(shape, NetworkShape):
        return denoiser.bytes_per_voxel / _STANDARD_BYTES
    # 27 weights in place of 9, and halving leaves an eighth of the voxels in place of a quarter.
    wider = 2 if shape.ndim == 3 else 1
    return (shape.features / 32) ** 2 * (0.6 + 0.2 * shape.depth) * wider


def _cut_on_record(
    url: str, reader: ImageReader, denoiser: Denoiser, ome_version: str
) -> tuple[tuple[int, ...], tuple[int, ...] | None, tuple[int, ...]] | None:
    """Return chunks, shards and tile of a prediction like this that was begun at ``url``, if one was."""
    identity = Ledger.identity_on_record(ledger_url(url))
    try:
        output, tile = identity["output"], tuple(map(int, identity["tile_shape"]))
        version = output["ome_version"]
        shape, chunks, shards, _ = (tuple(map(int, of)) for of in output["levels"][0])
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    strides = denoiser.stride
    is_alike = (shape, version, len(tile)) == (reader.shape, ome_version, len(strides))
    if not is_alike or any(t % s for t, s in zip(tile, strides, strict=True)):
        return None
    return chunks, shards or None, tile


def _default_chunks(reader: ImageReader, n: int, itemsize: int, ome_version: str) -> tuple[int, ...]:
    """Return the chunks of an output for which nobody asked: the input's where they suit."""
    like = viewer_chunks(reader.dims, reader.chunks, reader.shape, itemsize)
    if n == 3 and ome_version == "0.4":
        like = None
    if n == 3 and like is not None and like[-3] < min(_VOLUME_CHUNK[0] // 2, reader.shape[-3]):
        like = None
    default = _PLANE_CHUNK if n == 2 else _VOLUME_BLOCK if ome_version == "0.4" else _VOLUME_CHUNK
    chunks = like or (1,) * (len(reader.shape) - len(default)) + default
    return tuple(min(c, size) for c, size in zip(chunks, reader.shape, strict=True))


def _divisor(shard: int, chunk: int) -> int:
    """Return the largest divisor of a shard's side that is no larger than a chunk's."""
    return next((c for c in range(min(chunk, shard), 1, -1) if shard % c == 0), 1)


def _work(denoiser: Denoiser, reader: ImageReader, layout: OutputLayout, may_lose_lines: bool) -> Work:
    n = len(denoiser.halo)
    lead = len(reader.shape) - n
    # Less its lines an image is float32, and while it is made so, it is there as it is stored, too.
    itemsize = max(reader.dtype.itemsize, reader.stored_dtype.itemsize, 4 if may_lose_lines else 0)
    memory = MemoryModel(
        denoiser.bytes_per_voxel,
        itemsize,
        np.dtype(layout.dtype).itemsize,
        prod(reader.chunks),
        reader.chunks_at_once,
        reader.is_remote,
    )
    factors, cumulative = [], (1,) * len(reader.shape)
    for level in layout.levels[1:]:
        cumulative = tuple(a * b for a, b in zip(cumulative, level.factors, strict=True))
        factors.append(cumulative)
    return Work(
        reader.shape,
        (0,) * lead + denoiser.halo,
        (1,) * lead + denoiser.stride,
        n,
        reader.chunks,
        reader.offset,
        layout.levels[0].chunks,
        memory,
        relative_cost(denoiser),
        tuple(factors),
    )


def _amounts(work: Work, chosen: WorkShape) -> Amounts:
    tile = (1,) * (len(work.shape) - work.n_model_axes) + chosen.tile
    return amounts_of(
        Cut(work.shape, chosen.block, tile, work.halo, work.stride, work.input_chunks, work.offset)
    )


def _times(extents: Sequence[int]) -> str:
    return " x ".join(map(str, extents))


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
