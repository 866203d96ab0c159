"""The coarse level of an image: box means made in one pass, blurred, kept small, and read back by parts.

::

    image  --box means over f-->  coarse level  --box means over b-->  boxes     (stored)
    boxes  --Gaussian-->  knots, q coarse pixels apart                           (stored)
    knots  --linear interpolation-->  blurred coarse level                       (never stored)

b and q are 1 unless sigma is large (:mod:`denoizarr.kernels.coarse_blur`), so what is stored of an image of n
voxels at the default settings is about n / 144 + n / 1300 numbers, and without a blur n / 16.

Every stored chunk and every block of work on the level follows from the image's shape alone, not from its
chunks, and box means are added in a fixed order: the same bytes come out however the image is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from denoizarr.engine.runner import Record
from denoizarr.errors import BadRequest, IncompleteOutput
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import Grid, ceil_div
from denoizarr.kernels.box_means import box_means
from denoizarr.kernels.coarse_blur import AxisBlur, choose_blurs
from denoizarr.stores import locations
from denoizarr.stores.sources import ImageReader

from . import region_arrays
from .cells import Cells
from .scores import raise_non_finite

# Side of a stored chunk in values, by the array and the number of axes of the patch: 2 to 8 MiB of float64.
_CHUNK_SIDE = {"boxes": {2: 1024, 3: 64}, "knots": {2: 512, 3: 64}}
# Lines of boxes blurred at a time along the other axes.
_SLAB = {2: 256, 3: 32}
# Voxels held at a time while box means are made.
_READ_BYTES = 32 * 2**20
# Side of a block of work on the coarse level, and values up to which small planes share one.
BLOCK_SIDE = {2: 1024, 3: 112}
_GROUP_VALUES, _GROUP_PLANES = 2**20, 64

Destination = str | zarr.Group


@dataclass(frozen=True, slots=True)
class Level:
    """The coarse level of one image without c; picklable where the image and the destination have a URL.

    Attributes
    ----------
    reader : ImageReader
    dims, shape : tuples
        Of the image, in voxels.
    n_axes : int
        2 for (y, x) patches, plane by plane; 3 for (z, y, x).
    factor : int
        Voxels per coarse pixel along the axes of the patch.
    blurs : tuple of AxisBlur
        One per axis of the patch, in coarse pixels.
    destination : path, URL or Group
        Holds the arrays "boxes" and, with a blur, "knots".
    """

    reader: ImageReader
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    n_axes: int
    factor: int
    blurs: tuple[AxisBlur, ...]
    destination: Destination

    @property
    def leading(self) -> tuple[int, ...]:
        """Extents of the dims that are no axis of the patch."""
        return self.shape[: len(self.shape) - self.n_axes]

    @property
    def coarse_shape(self) -> tuple[int, ...]:
        """Shape of the coarse level."""
        return self.leading + tuple(b.size for b in self.blurs)

    @property
    def is_blurred(self) -> bool:
        """Whether there are knots."""
        return any(b.sigma > 0 for b in self.blurs)

    @property
    def bound(self) -> float:
        """Largest error of the blur, as a fraction of the coarse level's range."""
        return sum(b.error for b in self.blurs)

    def group(self) -> zarr.Group:
        """Open the group of the arrays for reading and writing."""
        found = self.destination
        return locations.open_group(found, "a") if isinstance(found, str) else found

    def array(self, name: str) -> zarr.Array[Any]:
        """Return one of the arrays."""
        return cast("zarr.Array[Any]", self.group()[name])

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the array "boxes" or "knots"."""
        return self.leading + tuple(b.n_boxes if name == "boxes" else b.n_knots for b in self.blurs)

    def stored_grid(self, name: str) -> Grid:
        """Return the chunks of the array "boxes" or "knots"."""
        shape = self.stored_shape(name)
        side = _CHUNK_SIDE[name][self.n_axes]
        inner = tuple(min(side, n) for n in shape[len(self.leading) :])
        return Grid(shape, (1,) * len(self.leading) + inner)

    def blocks(self, counts: tuple[int, ...] | None = None, per_block: tuple[int, ...] | None = None) -> Grid:
        """Return the blocks of work on the level, in coarse pixels or in other units along the patch's axes.

        Parameters
        ----------
        counts, per_block : tuples of int, optional
            Along the axes of the patch: how many units there are, and how many make a block.
        """
        inner = self.coarse_shape[len(self.leading) :]
        counts = counts or inner
        per_block = per_block or (BLOCK_SIDE[self.n_axes],) * self.n_axes
        step = [min(a, b) for a, b in zip(per_block, counts, strict=True)]
        lead = [1] * len(self.leading)
        if lead and step == list(counts):
            lead[-1] = max(min(_GROUP_VALUES // prod(inner), _GROUP_PLANES, self.leading[-1]), 1)
        return Grid(self.leading + counts, (*lead, *step))

    def read(self, box: Box) -> NDArray[np.float64]:
        """Return the blurred coarse level in a box of its pixels, in intensity units."""
        if not self.is_blurred:
            return self.stored("boxes", box)
        lead = len(self.leading)
        spans = [
            blur.knots_for(a, b)
            for blur, a, b in zip(self.blurs, box.start[lead:], box.stop[lead:], strict=True)
        ]
        values = self.stored("knots", _joined(box, lead, spans))
        for axis, (blur, (first, _)) in enumerate(zip(self.blurs, spans, strict=True), lead):
            values = blur.at_pixels(values, axis, box.start[axis], box.stop[axis], first)
        return values

    def stored(self, name: str, box: Box) -> NDArray[np.float64]:
        """Return a part of "boxes" or "knots".

        Raises
        ------
        IncompleteOutput
            It is not there, although the ledger says so.
        """
        values = np.asarray(self.array(name)[box.slices], np.float64)
        check_present(values, name, self.destination)
        return values

    def leading_part(self, name: str, box: Box) -> NDArray[Any]:
        """Return what an array holds for the planes (volumes, for 3D patches) of a box."""
        return np.asarray(self.array(name)[box.slices[: len(self.leading)]])

    def planes_of(self, box: Box) -> Iterator[tuple[int, ...]]:
        """Yield the index, in a box, of each of its planes (volumes, for 3D patches)."""
        return iter(np.ndindex(box.shape[: len(self.leading)]))


def level_of(
    image: xr.DataArray, reader: ImageReader, n_axes: int, factor: int, sigma: float, destination: Destination
) -> Level:
    """Return the coarse level of an image without c, before anything of it is computed.

    Parameters
    ----------
    image : DataArray
    reader : ImageReader
        Of that image.
    n_axes : int
        2 or 3.
    factor : int
        Voxels per coarse pixel.
    sigma : float
        Of the blur, in voxels along y and x. Along z it is divided by the ratio of the spacings, so that it
        is round in physical space.
    destination : path, URL or Group
    """
    dims = tuple(str(d) for d in image.dims)
    check_axes(dims, n_axes)
    shape = tuple(int(n) for n in image.shape)
    sizes = [ceil_div(n, factor) for n in shape[len(shape) - n_axes :]]
    sigmas = [sigma / factor] * n_axes
    if n_axes == 3:
        sigmas[0] /= spacing_of(image, "z") / spacing_of(image, "y")
    return Level(reader, dims, shape, n_axes, factor, choose_blurs(sizes, sigmas), destination)


def check_axes(dims: tuple[str, ...], n_axes: int) -> None:
    """Refuse a 3D patch on an image without z, whose third dim from the end may be time."""
    if n_axes == 3 and "z" not in dims:
        raise BadRequest(
            "a 3D patch on an image without z",
            where="patch_size",
            got="".join(dims),
            expected="a pair (y, x)",
        )


def spacing_of(image: xr.DataArray, dim: str) -> float:
    """Return the physical distance between neighbouring voxels along a dim; 1 where nothing is known."""
    if dim not in image.coords:
        return 1.0
    values = image.coords[dim].values
    if values.size > 1:
        return abs(float(values[1]) - float(values[0]))
    return float(image.coords[dim].attrs.get("spacing", 1.0))


def box_blocks(level: Level) -> Grid:
    """Return the blocks of the image pass, in units of "boxes": whole stored chunks, several planes deep.

    A block spans whole chunks of the image along the leading dims, so that none is decoded plane by plane.
    """
    grid = level.stored_grid("boxes")
    lead = len(level.leading)
    deep = tuple(min(c, n) for c, n in zip(level.reader.chunks[:lead], level.leading, strict=True))
    return Grid(grid.shape, deep + grid.step[lead:])


def make_boxes(level: Level, block: int) -> Record:
    """Read one block of the image and store its box means.

    Returns the extremes of the coarse level in the block, and those of the box means plane by plane.
    """
    grid = box_blocks(level)
    core = grid.box(block)
    lead = len(level.leading)
    unit = tuple(level.factor * b.box for b in level.blurs)
    found = np.empty(core.shape)
    low, high = np.inf, -np.inf
    for part in Grid(core.shape, _read_step(level, core, unit)):
        boxes = part.shift(core.start)
        voxels = Box(
            boxes.start[:lead] + tuple(a * u for a, u in zip(boxes.start[lead:], unit, strict=True)),
            boxes.stop[:lead]
            + tuple(
                min(b * u, n) for b, u, n in zip(boxes.stop[lead:], unit, level.shape[lead:], strict=True)
            ),
        )
        values = level.reader.read(voxels)
        for index in np.ndindex(values.shape[:lead]):
            coarse = box_means(values[index], (level.factor,) * level.n_axes)
            if not np.isfinite(coarse).all():
                raise_non_finite(Cells(level.dims, level.shape, unit), voxels, values)
            low, high = min(low, float(coarse.min())), max(high, float(coarse.max()))
            found[part.slices][index] = box_means(coarse, [b.box for b in level.blurs])
    level.array("boxes")[core.slices] = found
    planes = found.reshape(prod(core.shape[:lead]), -1)
    return {
        "range": [low, high],
        "planes": [[float(a), float(b)] for a, b in zip(planes.min(1), planes.max(1), strict=True)],
    }


def _read_step(level: Level, core: Box, unit: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many boxes are made from one read: about whole chunks, within the memory allowed."""
    lead = len(level.leading)
    itemsize = level.reader.dtype.itemsize
    step = [
        min(max(round(c / u), 1), n)
        for c, u, n in zip(level.reader.chunks[lead:], unit, core.shape[lead:], strict=True)
    ]
    deep = list(core.shape[:lead])

    def cost() -> int:
        return prod(deep) * prod(s * u for s, u in zip(step, unit, strict=True)) * itemsize

    for axes, smallest in ((step, 1), (deep, 1)):
        for axis in range(len(axes)):
            while cost() > _READ_BYTES and axes[axis] > smallest:
                axes[axis] = ceil_div(axes[axis], 2)
    # Long rows first: they cross the fewest chunks twice.
    for axis in reversed(range(len(step))):
        while cost() * 2 <= _READ_BYTES and step[axis] < core.shape[lead + axis]:
            step[axis] = min(2 * step[axis], core.shape[lead + axis])
    return (*deep, *step)


def make_knots(level: Level, block: int) -> Record:
    """Blur one chunk of knots and store it; return its extremes."""
    core = level.stored_grid("knots").box(block)
    lead = len(level.leading)
    spans = [
        blur.boxes_for(a, b)
        for blur, a, b in zip(level.blurs, core.start[lead:], core.stop[lead:], strict=True)
    ]
    first, stop = spans[0]
    slabs = []
    # A slab at a time along the first axis: only what the other axes' blur leaves of it is kept.
    for a in range(first, stop, _SLAB[level.n_axes]):
        slab = (a, min(a + _SLAB[level.n_axes], stop))
        values = level.stored("boxes", _joined(core, lead, [slab, *spans[1:]]))
        for axis in range(lead + 1, len(core.start)):
            blur, offset = level.blurs[axis - lead], spans[axis - lead][0]
            values = blur.at_knots(values, axis, core.start[axis], core.stop[axis], offset)
        slabs.append(values)
    lines = np.concatenate(slabs, axis=lead)
    knots = level.blurs[0].at_knots(lines, lead, core.start[lead], core.stop[lead], first)
    level.array("knots")[core.slices] = knots
    return {"planes": [[float(knots.min()), float(knots.max())]]}


def _joined(box: Box, lead: int, spans: list[tuple[int, int]]) -> Box:
    """Return the box with other spans along the axes of the patch."""
    return Box(
        box.start[:lead] + tuple(a for a, _ in spans),
        box.stop[:lead] + tuple(b for _, b in spans),
    )


def check_present(values: NDArray[np.float64], name: str, destination: Destination | None) -> None:
    """Refuse to go on with values that the ledger calls done and the store lacks."""
    if np.isnan(values).any():
        url = destination if isinstance(destination, str) else None
        raise IncompleteOutput(
            "values are missing that the ledger calls done",
            where=f"{url or 'memory'}/{name}",
            remedy=region_arrays.how_to_mend(url),
        )
