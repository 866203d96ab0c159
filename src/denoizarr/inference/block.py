"""One block in three stages: read with halo; run the network tile by tile, crop, cast; write, read back.

::

    read box of the block      valid box = write box = whole write units
    +---------------------+
    |      halo           |    one read serves all tiles of a plane or volume; a tile's own read box
    |   +-------------+   |    lies inside it, on the global grid of the network's stride
    |   | tile | tile |   |
    |   |------+------|   |    tiles are computed side by side where the process has cores to spare
    |   | tile | tile |   |
    |   +-------------+   |
    +---------------------+

While one block is computed the next is read and the last is written (``engine.stages``): in memory are at
most the inputs of ``1 + BLOCKS_AHEAD`` blocks and the results of ``1 + BLOCKS_BEHIND``.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from denoizarr.engine import failpoints
from denoizarr.engine.freed_memory import freed_memory_kept
from denoizarr.engine.runner import Record
from denoizarr.engine.stages import Stages
from denoizarr.errors import MemoryLimitTooSmall, NonFiniteData
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import round_up
from denoizarr.geometry.tiling import Tile, tile_for, tiles_of
from denoizarr.images.block_levels import write_with_levels
from denoizarr.images.layout import OutputLayout
from denoizarr.kernels.intensity import cast_intensities
from denoizarr.stores.sources import Array, ImageReader
from denoizarr.training.denoiser import Denoiser, Precision
from denoizarr.training.own_network import OwnNetwork

from .tile_threads import cores_of_process, run_side_by_side

_LOG = logging.getLogger(__name__)
# What torch's allocators, oneDNN and the system say where there is no memory left.
_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory")


@dataclass(frozen=True, slots=True)
class PredictionSpec:
    """What a task needs to denoise blocks: strings and integers; the reader travels as its source.

    Attributes
    ----------
    reader : ImageReader
    model_url, model_digest : str
        The digest keeps a worker from using a model that it cached under the same URL.
    layout : OutputLayout
    tile_shape : tuple of int
        Valid voxels of a tile along the model's axes.
    threads : int
        Of one tile; part of the job's identity, because a convolution's last bits depend on it.
    device : str
    precision : {"float32", "float64", "bfloat16"}
    network : OwnNetwork or None
        The structure of a network that is not ours; its weights are in the model's file like any other's.
    """

    reader: ImageReader
    model_url: str
    model_digest: str
    layout: OutputLayout
    tile_shape: tuple[int, ...]
    threads: int
    device: str
    precision: Precision = "float32"
    network: OwnNetwork | None = None


@dataclass(frozen=True, slots=True)
class RawBlock:
    """A block as read.

    Attributes
    ----------
    voxels : ndarray
        Raw intensities of the block with its halo, as far as the image goes.
    box : Box
        The block itself, along all dims of the image.
    start : tuple of int
        Where ``voxels`` begin along the model's axes.
    shape : tuple of int
        Of the whole image along the model's axes.
    channel_axis : int or None
        Which leading axis is the channel.
    absent : list of str
        Names of input chunks that were absent and filled.
    """

    voxels: Array
    box: Box
    start: tuple[int, ...]
    shape: tuple[int, ...]
    channel_axis: int | None
    absent: list[str]


@dataclass(frozen=True, slots=True)
class DenoisedBlock:
    """A block as it is to be written, and what its record says of it."""

    values: Array
    box: Box
    facts: Record


_ModelKey = tuple[str, str, str, Precision, OwnNetwork | None]
_MODELS: OrderedDict[_ModelKey, Denoiser] = OrderedDict()
_MODELS_LOCK, _MODELS_KEPT = threading.Lock(), 2
_LOADING: defaultdict[_ModelKey, threading.Lock] = defaultdict(threading.Lock)


def use_model(spec: PredictionSpec, denoiser: Denoiser) -> None:
    """Let the blocks that this process does use a model that it has, in place of the copy in the file."""
    assert denoiser.digest == spec.model_digest, f"{spec.model_url} is another model"
    with _MODELS_LOCK:
        _keep_model(_key_of(spec), denoiser)


def _model_of(spec: PredictionSpec) -> Denoiser:
    key = _key_of(spec)
    with _MODELS_LOCK:
        loading = _LOADING[key]
    with loading:  # or the first blocks would each load it; other models' do not wait
        with _MODELS_LOCK:
            if key in _MODELS:
                _MODELS.move_to_end(key)
                return _MODELS[key]
        found = Denoiser.load(
            spec.model_url, network=spec.network, device=spec.device, precision=spec.precision
        )
        assert found.digest == spec.model_digest, f"{spec.model_url} changed since the job began"
        with _MODELS_LOCK:
            _keep_model(key, found)
        return found


def _keep_model(key: _ModelKey, denoiser: Denoiser) -> None:
    _MODELS[key] = denoiser
    while len(_MODELS) > _MODELS_KEPT:
        forgotten, _ = _MODELS.popitem(last=False)
        _LOADING.pop(forgotten, None)


def _key_of(spec: PredictionSpec) -> _ModelKey:
    return spec.model_url, spec.model_digest, spec.device, spec.precision, spec.network


# ---- the stages of a block


def read_block(spec: PredictionSpec, block: int) -> RawBlock:
    """Read one write unit of the finest level with its halo."""
    return read_box(_model_of(spec), spec.reader, spec.layout.levels[0].write_units.box(block))


def compute_block(spec: PredictionSpec, block: int, raw: RawBlock) -> DenoisedBlock:
    """Denoise what was read."""
    denoiser, dtype = _model_of(spec), np.dtype(spec.layout.dtype)
    with freed_memory_kept():
        values, tile_shape = compute_box(
            denoiser, raw, spec.tile_shape, dtype, f"block {block}", spec.threads
        )
    failpoints.reach("computed")
    facts: Record = {"read_bytes": raw.voxels.nbytes}
    if raw.absent:
        facts["missing_chunks"] = raw.absent
    if tile_shape != spec.tile_shape:
        facts["tile_shape"] = list(tile_shape)
    return DenoisedBlock(values, raw.box, facts)


def write_block(spec: PredictionSpec, block: int, denoised: DenoisedBlock) -> Record:
    """Write it and what lies above it, read it back, and return what the ledger keeps of it.

    ``checksum``; ``missing_chunks`` where input chunks were filled; ``tile_shape`` where memory was too short
    for that of the job.
    """
    return write_with_levels(spec.layout, block, denoised.values) | denoised.facts


denoise_block = Stages(read_block, compute_block, write_block)


# ---- a box of any image


def denoise_box(
    denoiser: Denoiser,
    reader: ImageReader,
    box: Box,
    tile_shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
    *,
    at_once: int | None = None,
) -> tuple[Array, list[str]]:
    """Return the denoised voxels of ``box`` and the names of the chunks that were absent.

    Parameters
    ----------
    denoiser : Denoiser
        Of 2 or 3 axes; the image's other axes are looped.
    reader : ImageReader
    box : Box
        Along all dims of the image.
    tile_shape : tuple of int
        Largest valid part of a tile along the model's axes, in voxels.
    dtype : numpy.dtype
        Of the result; integers are rounded half to even and clipped.
    at_once : int, optional
        Tiles at a time; by default as many as this process has cores.

    Raises
    ------
    NonFiniteData, MissingChunk, CorruptChunk, MemoryLimitTooSmall
    """
    raw = read_box(denoiser, reader, box)
    values, _ = compute_box(denoiser, raw, tile_shape, dtype, str(box), at_once=at_once)
    return values, raw.absent


def read_box(denoiser: Denoiser, reader: ImageReader, box: Box) -> RawBlock:
    """Read a box with the halo that a model needs around it.

    Raises
    ------
    NonFiniteData, MissingChunk, CorruptChunk
    """
    lead = len(reader.shape) - len(denoiser.halo)
    shape = reader.shape[lead:]
    valid = Box(box.start[lead:], box.stop[lead:])
    whole = tile_for(valid, shape, denoiser.halo, denoiser.stride).inside(shape)
    read = Box(box.start[:lead] + whole.start, box.stop[:lead] + whole.stop)
    voxels = reader.read(read)
    failpoints.reach("read")
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        place = tuple(
            int(a) + int(i) for a, i in zip(read.start, np.argwhere(~np.isfinite(voxels))[0], strict=True)
        )
        raise NonFiniteData(
            "the image holds NaN or infinity",
            where=f"{reader.name} {place}",
            remedy="replace it, then run again",
        )
    channel_axis = reader.dims.index("c") if "c" in reader.dims and denoiser.channels > 1 else None
    # Absent chunks have been an error already unless the image was opened to fill them.
    absent = reader.absent_in(box) if getattr(reader.source, "missing", "error") == "fill" else []
    return RawBlock(voxels, box, whole.start, shape, channel_axis, absent)


def compute_box(
    denoiser: Denoiser,
    raw: RawBlock,
    tile_shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
    label: str,
    threads: int = 1,
    at_once: int | None = None,
) -> tuple[Array, tuple[int, ...]]:
    """Denoise what was read; where memory is too short for it, once more in tiles of half the sides.

    Parameters
    ----------
    denoiser : Denoiser
    raw : RawBlock
    tile_shape : tuple of int
        Largest valid part of a tile along the model's axes, in voxels.
    dtype : numpy.dtype
        Of the result.
    label : str
        What the log calls the block.
    threads : int
        Of torch, for each tile.
    at_once : int, optional
        Tiles at a time; by default as many as this process has cores, and one on a GPU.

    Returns
    -------
    (ndarray, tuple of int)
        The voxels, and the tile shape that was used in the end. Another tile shape gives the same voxels up
        to the rounding of floats.

    Raises
    ------
    MemoryLimitTooSmall
        Memory is too short for the smaller tiles, too.
    """
    if at_once is None:
        # A GPU computes one tile at a time with all that it has.
        at_once = 1 if denoiser.device.type == "cuda" else cores_of_process()
    how = _How(np.dtype(dtype), threads, at_once)
    found = _without_memory_errors(denoiser, raw, tile_shape, how)
    if found is not None:
        return found, tile_shape
    smaller = halved(tile_shape, raw.box.shape[-len(tile_shape) :], denoiser.stride)
    if denoiser.device.type == "cuda":
        torch.cuda.empty_cache()
    _LOG.warning("%s: out of memory in tiles of %s; once more in tiles of %s", label, tile_shape, smaller)
    found = _without_memory_errors(denoiser, raw, smaller, how)
    if found is None:
        raise MemoryLimitTooSmall(
            "out of memory, in smaller tiles too",
            where=label,
            got=f"tiles of {tile_shape}, then of {smaller}",
            remedy="run fewer workers on a machine, or give a smaller memory limit or tile_shape",
        )
    return found, smaller


@dataclass(frozen=True, slots=True)
class _How:
    """How tiles are computed: into which type, with how many threads each, how many at a time."""

    dtype: np.dtype[np.generic]
    threads: int
    at_once: int


def _without_memory_errors(
    denoiser: Denoiser, raw: RawBlock, tile_shape: tuple[int, ...], how: _How
) -> Array | None:
    """Return the voxels, or None for want of memory: an error would hold all that its frames hold."""
    try:
        return _in_tiles(denoiser, raw, tile_shape, how)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            return None
        raise


def _in_tiles(denoiser: Denoiser, raw: RawBlock, tile_shape: tuple[int, ...], how: _How) -> Array:
    lead = len(raw.box.shape) - len(tile_shape)
    valid = Box(raw.box.start[lead:], raw.box.stop[lead:])
    tiles = tiles_of(valid, tile_shape, raw.shape, denoiser.halo, denoiser.stride)
    planes = list(product(*(range(n) for n in raw.box.shape[:lead])))
    output = np.empty(raw.box.shape, how.dtype)

    def run(number: int) -> Record:
        torch.set_num_threads(how.threads)
        at, tile = planes[number // len(tiles)], tiles[number % len(tiles)]
        axis = raw.channel_axis
        channel = 0 if axis is None else raw.box.start[axis] + at[axis]
        result = denoiser.run_tile(_padded(raw, at, tile), channel=channel)
        kept = result[tile.valid.relative_to(tile.read.start).slices]
        output[at][tile.valid.relative_to(valid.start).slices] = cast_intensities(kept, how.dtype)
        return {}

    run_side_by_side(run, len(planes) * len(tiles), how.at_once)
    return output


def _padded(raw: RawBlock, at: tuple[int, ...], tile: Tile) -> Array:
    """Return what a tile reads of one plane or volume; copied only where the image's far end is padded."""
    voxels: Array = raw.voxels[at][tile.inside(raw.shape).relative_to(raw.start).slices]
    padding = tile.padding(raw.shape)
    return np.pad(voxels, padding, mode="edge") if any(after for _, after in padding) else voxels


# ---- memory


def halved(tile_shape: Sequence[int], block: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Return a tile of half the sides of the one that a block was computed in, on the network's grid.

    Parameters
    ----------
    tile_shape, block, stride : sequence of int
        Along the model's axes, in voxels.
    """
    return tuple(
        round_up(max(min(t, n) // 2, 1), s) for t, n, s in zip(tile_shape, block, stride, strict=True)
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that there is no memory left, on this machine or on its GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The allocator of torch for the CPU raises a plain RuntimeError.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)
