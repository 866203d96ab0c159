"""Windows of what a network makes of an image, unaugmented and unmasked, in bounded time and memory.

A network in the plane denoises each site with its halo. For a volume network a site is a column of planes::

    z   plane 0   window        one site: 16 planes of one window, read with the halo on all sides;
        ...                     every fourth plane becomes a window, for what such a network makes of
        plane 4   window        neighbouring planes is not independent
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from denoizarr.geometry.boxes import Box
from denoizarr.geometry.tiling import tile_for
from denoizarr.stores.sources import ImageReader

from .noise_windows import Site
from .volume_windows import columns_of, spread_evenly

if TYPE_CHECKING:
    from .denoiser import Denoiser

Array = np.ndarray[Any, Any]

# Voxels that the network computes for one kernel, halos included: half a minute of one core in the plane,
# some minutes in a volume. Sites are left out, evenly, until that holds, but for the fewest.
_MOST_VOXELS, _FEWEST_SITES = 2**24, 8
DEPTH, _STEP = 16, 4


def read_denoised(
    readers: Sequence[ImageReader], sites: Sequence[Site], side: int, denoiser: Denoiser
) -> Array:
    """Return what the network makes of the sites, each read with its halo, cut into windows.

    Parameters
    ----------
    readers : sequence of ImageReader
    sites : sequence of Site
        Spread over the images; those that the bound leaves no time for are passed over.
    side : int
        Of a window, in pixels.
    denoiser : Denoiser
        Of planes or of volumes. It is its network that is asked: what a model keeps of a voxel's own value is
        the raw noise, correlated or not.

    Returns
    -------
    (n, side, side) array
    """
    denoiser = denoiser.with_centre(None)
    if len(denoiser.halo) == 3:
        sites = columns_of(sites, readers, side, DEPTH)
    chosen = _affordable(sites, readers, denoiser)
    parts = [_windows(_denoised(readers[site.image], site.box, denoiser), side) for site in chosen]
    return np.concatenate(parts)


def _affordable(sites: Sequence[Site], readers: Sequence[ImageReader], denoiser: Denoiser) -> Sequence[Site]:
    """Return as many sites as the bound allows, evenly among those given."""
    cost = max(_cost(site, readers[site.image], denoiser) for site in sites)
    return spread_evenly(sites, max(_MOST_VOXELS // cost, _FEWEST_SITES))


def _cost(site: Site, reader: ImageReader, denoiser: Denoiser) -> int:
    axes = len(denoiser.halo)
    extents = zip(site.box.shape[-axes:], reader.shape[-axes:], denoiser.halo, strict=True)
    return prod(min(extent + 2 * halo, whole) for extent, whole, halo in extents)


def _windows(denoised: Array, side: int) -> Array:
    """Cut windows out of (y, x), or out of every fourth plane of (z, y, x)."""
    planes = denoised[None] if denoised.ndim == 2 else denoised[::_STEP]
    rows, columns = (n // side for n in planes.shape[1:])
    whole = planes[:, : rows * side, : columns * side].reshape(-1, rows, side, columns, side)
    return whole.swapaxes(2, 3).reshape(-1, side, side)


def _denoised(reader: ImageReader, box: Box, denoiser: Denoiser) -> Array:
    """Return what the network, of 2 or 3 axes, makes of a box, read with its halo."""
    lead = len(box.start) - len(denoiser.halo)
    shape = reader.shape[lead:]
    tile = tile_for(Box(box.start[lead:], box.stop[lead:]), shape, denoiser.halo, denoiser.stride)
    inside = tile.inside(shape)
    around = reader.read(Box(box.start[:lead] + inside.start, box.stop[:lead] + inside.stop))
    padded = np.pad(around.reshape(inside.shape), tile.padding(shape), mode="edge")
    channel = box.start[reader.dims.index("c")] if "c" in reader.dims and denoiser.channels > 1 else 0
    result = denoiser.run_tile(padded.astype(np.float32), channel)
    kept: Array = result[tile.valid.relative_to(tile.read.start).slices]
    return kept
