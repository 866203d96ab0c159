"""Windows of several planes: columns along z at the sites where noise is measured.

::

    plane 0   window      one column: as many planes as asked, of one window each,
    plane 1   window      on a grid along z, so that no voxel is in two columns
    ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from denoizarr.geometry.boxes import Box
from denoizarr.stores.sources import ImageReader

from .noise_windows import Site

Array = np.ndarray[Any, Any]

# 512 columns of 8 planes are as many voxels as four times the windows of a plane; a batch is some megabytes.
MOST_COLUMNS, _BATCH, _READERS = 512, 32, 8


def columns_of(sites: Sequence[Site], readers: Sequence[ImageReader], side: int, planes: int) -> list[Site]:
    """Return a column for every window of every site, each once, in the order of the sites.

    Parameters
    ----------
    sites : sequence of Site
    readers : sequence of ImageReader
        With an axis z.
    side : int
        Of a window, in pixels.
    planes : int
        Of a column; an image of fewer has columns of all its planes.
    """
    columns = (column for site in sites for column in _columns_at(site, readers[site.image], side, planes))
    return list(dict.fromkeys(columns))


def spread_evenly(sites: Sequence[Site], count: int) -> list[Site]:
    """Return ``count`` of the sites, or all where there are no more, evenly among them."""
    count = min(count, len(sites))
    return [sites[k * len(sites) // count] for k in range(count)]


def read_volumes(
    readers: Sequence[ImageReader], sites: Sequence[Site], side: int, planes: int
) -> Iterator[Array]:
    """Yield the raw intensities of columns at the sites, in batches of (n, planes, side, side).

    All images have so many planes at least, and a site is a plane of at least one window.
    """

    def read(site: Site) -> Array:
        return readers[site.image].read(site.box).reshape(planes, side, side)

    chosen = spread_evenly(columns_of(sites, readers, side, planes), MOST_COLUMNS)
    with ThreadPoolExecutor(_READERS) as pool:
        for first in range(0, len(chosen), _BATCH):
            yield np.stack(list(pool.map(read, chosen[first : first + _BATCH])))


def _columns_at(site: Site, reader: ImageReader, side: int, planes: int) -> Iterator[Site]:
    z = reader.dims.index("z")
    depth = min(planes, reader.shape[z])
    first = min(site.box.start[z] // depth * depth, reader.shape[z] - depth)
    rows, columns = (range(site.box.start[axis], site.box.stop[axis] - side + 1, side) for axis in (-2, -1))
    for y in rows:
        for x in columns:
            start, stop = list(site.box.start), list(site.box.stop)
            start[z], start[-2], start[-1] = first, y, x
            stop[z], stop[-2], stop[-1] = first + depth, y + side, x + side
            yield replace(site, box=Box(tuple(start), tuple(stop)))
