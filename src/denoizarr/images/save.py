"""Write a whole image as a finished OME-Zarr, through the engine: bounded in memory, resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from denoizarr.engine.freed_memory import freed_memory_kept
from denoizarr.engine.runner import Record
from denoizarr.engine.shares import Share
from denoizarr.engine.stages import Stages
from denoizarr.engine.summary import RunSummary
from denoizarr.stores import locations
from denoizarr.stores.images import ImageLike, as_image, reader_of
from denoizarr.stores.sources import Array, ImageReader

from .block_levels import write_with_levels
from .layout import OutputLayout, plan_layout
from .write import ImageJob, write_image

# A second or two of a core, a sixteenth of an image that takes less; but four blocks of the usual size,
# because a block is read while the one before is written in the same batch only.
BATCH_VOXELS, _FEWEST_BATCHES, _FEWEST_BLOCKS = 64 * 2**20, 16, 4


@dataclass(frozen=True, slots=True)
class CopySpec:
    """What a task needs to copy blocks: the reader travels as its source."""

    reader: ImageReader
    layout: OutputLayout


def read_block(spec: CopySpec, block: int) -> Array:
    """Read one write unit of the finest level."""
    return spec.reader.read(spec.layout.levels[0].write_units.box(block))


def cast_block(spec: CopySpec, _block: int, values: Array) -> Array:
    """Return what was read in the output's dtype."""
    return values.astype(spec.layout.dtype, copy=False)


def write_block(spec: CopySpec, block: int, values: Array) -> Record:
    """Write it, and what lies above it."""
    return write_with_levels(spec.layout, block, values)


# The disk is waited for while the block before is compressed.
copy_block = Stages(read_block, cast_block, write_block)


def save_image(
    image: ImageLike,
    url: str | Path,
    *,
    ome_version: str = "0.5",
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
    levels: int | None = None,
    overwrite: bool = False,
    client: Any = None,
) -> RunSummary:
    """Write an image as an OME-Zarr pyramid.

    Parameters
    ----------
    image : str, Path, zarr.Array, DataArray, dask or numpy array
        2D is (y, x), 3D (z, y, x). Scale and units come from the coordinates of a ``DataArray``.
    url : str or Path
        The destination; its ledger lies beside it.
    ome_version : {"0.5", "0.4"}
    chunks, shards : sequence of int, optional
        One int per dim of the image, in voxels. Default: planes of 512 x 512 in shards of up to 2048 x 2048.
    levels : int, optional
        Default: until max(y, x) <= 256.
    overwrite : bool
        Delete what lies at the destination first.
    client : distributed.Client, optional
        Only for an image that workers can read from its store.

    Returns
    -------
    RunSummary

    Raises
    ------
    OutputExists, LedgerMismatch, MisalignedGrid, BadRequest, MissingChunk, NoSpace
    """
    opened = as_image(image)
    reader = reader_of(opened)
    destination = locations.join(url)
    scale, translation, units = world_of(opened)
    layout = plan_layout(
        destination,
        dims=reader.dims,
        shape=reader.shape,
        dtype=reader.dtype,
        scale=scale,
        translation=translation,
        units=units,
        ome_version=ome_version,
        chunks=chunks,
        shards=shards,
        levels=levels,
        name=str(opened.name or ""),
        omero=omero_of(opened),
        extra=extra_of(opened),
    )
    return copy_image(reader, layout, overwrite=overwrite, client=client)


def copy_image(
    reader: ImageReader,
    layout: OutputLayout,
    *,
    overwrite: bool = False,
    client: Any = None,
    threads: int = 1,
    progress: bool = False,
    changes: tuple[str, ...] = (),
    share: Share | None = None,
    prepare: Callable[[], None] | None = None,
) -> RunSummary:
    """Copy what ``reader`` reads into the output of this layout, build its pyramid and mark it finished."""
    spec = CopySpec(reader, layout)
    block_voxels = layout.levels[0].write_units.box(0).size
    few = max(prod(reader.shape) // _FEWEST_BATCHES, _FEWEST_BLOCKS * block_voxels)
    batch_voxels = min(BATCH_VOXELS, few)
    job = ImageJob(reader, layout, {"kind": "copy"}, copy_block, spec, batch_voxels, "copy", changes)
    with freed_memory_kept() if client is None else nullcontext():
        return write_image(
            job,
            overwrite=overwrite,
            client=client,
            threads=threads,
            progress=progress,
            prepare=prepare,
            share=share,
        )


def omero_of(image: xr.DataArray) -> dict[str, Any]:
    """Return the rendering hints that came with an image; none where its channels are others."""
    ome = image.attrs.get("ome")
    omero = ome.get("omero") if isinstance(ome, dict) else None
    if not isinstance(omero, dict) or len(omero.get("channels", ())) != image.sizes.get("c", 1):
        return {}
    return omero


def extra_of(image: xr.DataArray) -> dict[str, Any]:
    """Return the attributes that an image hands on to what is computed of it; a part of it has none."""
    ome = image.attrs.get("ome")
    extra = ome.get("extra") if isinstance(ome, dict) else None
    if not isinstance(extra, dict) or not extra or image.attrs.get("level") not in (0, "0"):
        return {}
    source = reader_of(image).source
    is_whole = (
        source is not None and getattr(source, "box", None) is None and not getattr(source, "dropped", ())
    )
    return dict(extra) if is_whole else {}


def world_of(image: xr.DataArray) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str | None, ...]]:
    """Return scale, translation and unit of every dim, from the coordinates; voxels where there are none."""
    scale, translation, units = [], [], []
    for dim in image.dims:
        coordinate = image.coords.get(dim)
        values = (
            np.asarray(coordinate.values, float)
            if coordinate is not None and coordinate.dtype.kind in "uif"
            else None
        )
        attrs = {} if coordinate is None else coordinate.attrs
        if values is None or values.size == 0:
            scale.append(1.0)
            translation.append(0.0)
        else:
            # The spacing as opened is exact where the slice kept every voxel; differences of floats are not.
            step = float(attrs.get("spacing", 1.0))
            apart = float(values[-1] - values[0]) / (values.size - 1) if values.size > 1 else step
            scale.append(step if np.isclose(apart, step, rtol=1e-6) else apart)
            translation.append(float(values[0]))
        units.append(None if attrs.get("units") is None else str(attrs["units"]))
    return tuple(scale), tuple(translation), tuple(units)
