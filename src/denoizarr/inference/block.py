"""One block: read with halo, run the network tile by tile, crop, cast, write, record.

::

    read box of the block      valid box = write box = whole write units
    +---------------------+
    |      halo           |    one read serves all tiles of a plane or volume; a tile's own read box
    |   +-------------+   |    lies inside it, on the global grid of the network's stride
    |   | tile | tile |   |
    |   |------+------|   |
    |   | tile | tile |   |
    |   +-------------+   |
    +---------------------+
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import torch

from denoizarr.engine.runner import Record
from denoizarr.errors import NonFiniteData
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.tiling import tile_for, tiles_of
from denoizarr.images.block_levels import write_with_levels
from denoizarr.images.layout import OutputLayout
from denoizarr.kernels.intensity import cast_intensities
from denoizarr.stores.sources import Array, ImageReader
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.own_network import OwnNetwork


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
        Of one block; part of the job's identity, because a convolution's last bits depend on it.
    device : str
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
    network: OwnNetwork | None = None


@lru_cache(maxsize=2)
def _model(url: str, digest: str, device: str, network: OwnNetwork | None) -> Denoiser:
    denoiser = Denoiser.load(url, network=network)
    assert denoiser.digest == digest, f"{url} changed since the job began"
    return denoiser.to(device=device)


def denoise_block(spec: PredictionSpec, block: int) -> Record:
    """Denoise one write unit of the finest level, and write what lies above it along."""
    torch.set_num_threads(spec.threads)
    denoiser = _model(spec.model_url, spec.model_digest, spec.device, spec.network)
    level = spec.layout.levels[0]
    box = level.write_units.box(block)
    values, absent = denoise_box(denoiser, spec.reader, box, spec.tile_shape, np.dtype(spec.layout.dtype))
    return write_with_levels(spec.layout, block, values) | ({"missing_chunks": absent} if absent else {})


def denoise_box(
    denoiser: Denoiser,
    reader: ImageReader,
    box: Box,
    tile_shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
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

    Raises
    ------
    NonFiniteData, MissingChunk, CorruptChunk
    """
    n = len(denoiser.halo)
    lead = len(reader.shape) - n
    shape = reader.shape[lead:]
    valid = Box(box.start[lead:], box.stop[lead:])
    whole = tile_for(valid, shape, denoiser.halo, denoiser.stride).inside(shape)
    read = Box(box.start[:lead] + whole.start, box.stop[:lead] + whole.stop)
    raw = reader.read(read)
    if raw.dtype.kind == "f" and not np.isfinite(raw).all():
        place = tuple(
            int(a) + int(i) for a, i in zip(read.start, np.argwhere(~np.isfinite(raw))[0], strict=True)
        )
        raise NonFiniteData(
            "the image holds NaN or infinity",
            where=f"{reader.name} {place}",
            remedy="replace it, then run again",
        )
    channel_axis = reader.dims.index("c") if "c" in reader.dims else None
    tiles = tiles_of(valid, tile_shape, shape, denoiser.halo, denoiser.stride)
    output = np.empty(box.shape, dtype)
    for leading in product(*(range(a, b) for a, b in zip(box.start[:lead], box.stop[:lead], strict=True))):
        at = tuple(i - a for i, a in zip(leading, box.start[:lead], strict=True))
        channel = leading[channel_axis] if channel_axis is not None and denoiser.channels > 1 else 0
        for tile in tiles:
            voxels = raw[at][tile.inside(shape).relative_to(whole.start).slices]
            padded = np.pad(voxels, tile.padding(shape), mode="edge")
            result = denoiser.run_tile(padded, channel=channel)
            kept = result[tile.valid.relative_to(tile.read.start).slices]
            output[at][tile.valid.relative_to(valid.start).slices] = cast_intensities(kept, dtype)
    # Absent chunks have been an error already unless the image was opened to fill them.
    absent = reader.absent_in(box) if getattr(reader.source, "missing", "error") == "fill" else []
    return output, absent
