"""Windows of an image to measure noise in: drawn over all of it, read in order, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import ceil_div
from denoizarr.kernels.spectrum import find_lines
from denoizarr.stores.sources import ImageReader

if TYPE_CHECKING:
    from denoizarr.selection.patch_index import PatchIndex

Array = np.ndarray[Any, Any]

# The largest window, in pixels.
WINDOW = 64
# A site is read at once and cut into 2x2 windows. 256 sites are 1,024 windows, a few megabytes, and enough to
# find the twenty flat ones where one window in fifty is flat.
_SITE, _SITES = 128, 256
# With an index, the lowest of so many sites by weight is taken: background, by the patch filter's word.
_CHOICES = 4
_READERS = 8


@dataclass(frozen=True, slots=True)
class Site:
    """A box of one plane of one image: ``box`` has one voxel along every dim but y and x."""

    image: int
    box: Box


def draw_sites(readers: Sequence[ImageReader], side: int, index: PatchIndex | None, seed: int) -> list[Site]:
    """Draw one site from each of up to 256 equal parts of all images, in the order of their voxels.

    Parameters
    ----------
    readers : sequence of ImageReader
    side : int
        Of the windows to be cut; a site holds at least one.
    index : PatchIndex, optional
        Of these images.
    seed : int
    """
    counts = [
        (*reader.shape[:-2], *(ceil_div(n - side + 1, _SITE) for n in reader.shape[-2:]))
        for reader in readers
    ]
    ends = np.cumsum([prod(count) for count in counts])
    total = int(ends[-1])
    parts = min(total, _SITES)
    random = np.random.default_rng(seed)
    sites = []
    for part in range(parts):
        first, stop = part * total // parts, (part + 1) * total // parts
        numbers = random.integers(first, stop, size=1 if index is None else _CHOICES)
        drawn = [_site_at(int(number), readers, counts, ends) for number in numbers]
        sites.append(
            drawn[0] if index is None else min(drawn, key=lambda site: _weight(site, readers, index))
        )
    return sites


def _site_at(
    number: int, readers: Sequence[ImageReader], counts: Sequence[tuple[int, ...]], ends: Array
) -> Site:
    image = int(np.searchsorted(ends, number, side="right"))
    place = np.unravel_index(number - (int(ends[image - 1]) if image else 0), counts[image])
    size = (1,) * (len(place) - 2) + (_SITE, _SITE)
    start = tuple(int(p) * n for p, n in zip(place, size, strict=True))
    box = Box(start, tuple(a + n for a, n in zip(start, size, strict=True)))
    return Site(image, box.clip(readers[image].shape))


def _weight(site: Site, readers: Sequence[ImageReader], index: PatchIndex) -> float:
    """Return the weight of the cell that holds a site's centre."""
    bounds = zip(readers[site.image].dims, site.box.start, site.box.stop, strict=True)
    middle = {dim: (start + stop) // 2 for dim, start, stop in bounds}
    step = dict(zip(("z", "y", "x")[-len(index.patch_size) :], index.patch_size, strict=True))
    cell = tuple(middle[dim] // step.get(dim, 1) for dim in index.dims)
    return float(index.table[index.classes[site.image][cell]])


def read_windows(readers: Sequence[ImageReader], sites: Sequence[Site], side: int) -> Array:
    """Read the sites' raw intensities and cut them into windows, (n, side, side)."""

    def read(site: Site) -> Array:
        plane = readers[site.image].read(site.box)
        return _cut(plane.reshape(plane.shape[-2:]), side)

    return _gather(read, sites, _READERS)


def refine_periods(
    readers: Sequence[ImageReader], sites: Sequence[Site], periods: Sequence[float]
) -> tuple[float, ...]:
    """Measure periods found in windows again over whole sites, where they are known four times as well.

    Returns
    -------
    tuple of float
        In pixels; a period that the sites do not show within a hundredth stays what it was.
    """
    if not periods or min(min(reader.shape[-2:]) for reader in readers) < _SITE:
        return tuple(periods)
    measured = {line.period for line in find_lines(read_windows(readers, sites, _SITE))}
    nearest = [min(measured, key=lambda other: abs(other - period), default=period) for period in periods]
    return tuple(
        new if abs(new / old - 1.0) <= 0.01 else old for new, old in zip(nearest, periods, strict=True)
    )


def read_differences(readers: Sequence[ImageReader], sites: Sequence[Site], side: int) -> Array:
    """Read pairs of neighbouring planes (along z, or else t) at the sites and cut their differences.

    Returns
    -------
    (n, side, side) float64 array
        Empty where the images have single planes.
    """

    def read(pair: Site) -> Array:
        planes = readers[pair.image].read(pair.box).astype(np.float64)
        first, second = planes.reshape(
            2, *planes.shape[-2:]
        )  # all dims but the pair's, y and x have one voxel
        return _cut(second - first, side)

    pairs = [_pair_at(site, readers[site.image]) for site in sites]
    # Two sites may share a pair; the same window twice would not be independent.
    distinct = list(dict.fromkeys(pair for pair in pairs if pair is not None))
    return _gather(read, distinct, _READERS) if distinct else np.empty((0, side, side))


def _pair_at(site: Site, reader: ImageReader) -> Site | None:
    """Return a site with its neighbour: an even plane and the odd one after it, so that no two overlap."""
    axes = [axis for axis, dim in enumerate(reader.dims) if dim in "tz" and reader.shape[axis] > 1]
    if not axes:
        return None
    axis = axes[-1]  # z, where there is one: it comes after t
    start, stop = list(site.box.start), list(site.box.stop)
    start[axis] = min(start[axis] // 2, reader.shape[axis] // 2 - 1) * 2
    stop[axis] = start[axis] + 2
    return Site(site.image, Box(tuple(start), tuple(stop)))


def _gather(read: Callable[[Site], Array], sites: Sequence[Site], threads: int) -> Array:
    # Reading is mostly waiting and decoding; ``map`` keeps the order, so threads change nothing.
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(read, sites)))


def _cut(plane: Array, side: int) -> Array:
    rows, columns = plane.shape[0] // side, plane.shape[1] // side
    whole = plane[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return whole.swapaxes(1, 2).reshape(-1, side, side)
