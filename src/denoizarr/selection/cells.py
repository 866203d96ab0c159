"""The grid of cells over an image, and the boxes of it that one task scores."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, lcm, prod
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from denoizarr.errors import BadRequest
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import Grid

PatchSize: TypeAlias = "int | tuple[int, ...] | list[int]"

# A plane up to this size is scored whole: no halo is read twice.
_BLOCK_BYTES = 64 * 2**20
# Several small planes share a task up to this size, so that there still are tasks enough for every core.
_GROUP_BYTES = 16 * 2**20


def patch_pair(patch_size: PatchSize) -> tuple[int, int]:
    """Return ``patch_size`` as (y, x).

    Raises
    ------
    BadRequest
        For a triple (3D patches are not in this version), and for sizes below 2.
    """
    sizes = (patch_size, patch_size) if isinstance(patch_size, int | np.integer) else tuple(patch_size)
    if len(sizes) == 3:
        raise BadRequest(
            "3D patches are not supported in this version",
            where="patch_size",
            got=sizes,
            expected="one int or a pair (y, x), applied plane by plane",
        )
    if len(sizes) != 2 or any(int(s) != s or s < 2 for s in sizes):
        raise BadRequest(
            "not a patch size",
            where="patch_size",
            got=patch_size,
            expected="an int or a pair (y, x), at least 2",
        )
    return int(sizes[0]), int(sizes[1])


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of one image: one patch large in y and x, one voxel in the other dims.

    Attributes
    ----------
    dims : tuple of str
        Of the image, in the order t, c, z, y, x.
    shape : tuple of int
        Of the image, in voxels.
    patch : (y, x)
        In voxels.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    patch: tuple[int, int]

    @property
    def step(self) -> tuple[int, ...]:
        """Extent of a cell along every dim, in voxels."""
        return (1,) * (len(self.dims) - 2) + self.patch

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of cells along every dim."""
        return Grid(self.shape, self.step).counts

    def voxels_of(self, cells: Box) -> Box:
        """Return the voxels of a box of cells, cropped at the image's far end."""
        start = tuple(a * s for a, s in zip(cells.start, self.step, strict=True))
        stop = tuple(min(b * s, n) for b, s, n in zip(cells.stop, self.step, self.shape, strict=True))
        return Box(start, stop)

    def with_halo(self, voxels: Box) -> Box:
        """Return ``voxels`` with one more cell on every side in the plane: all that their regions reach."""
        return voxels.grow((0,) * (len(self.dims) - 2) + self.patch).clip(self.shape)

    def coordinates(self, image: xr.DataArray) -> dict[str, Any]:
        """Return the coordinates of the cell centres, in the image's physical units."""
        found: dict[str, Any] = {}
        for dim, size, step in zip(self.dims, self.shape, self.step, strict=True):
            known = dim in image.coords
            positions = np.asarray(image.coords[dim].values) if known else np.arange(size, dtype=float)
            if step > 1:
                start = np.arange(0, size, step)
                last = np.minimum(start + step, size) - 1
                positions = (positions[start] + positions[last]) / 2
            attrs = dict(image.coords[dim].attrs) if known else {}
            if "spacing" in attrs:
                attrs["spacing"] = attrs["spacing"] * step
            found[dim] = xr.Variable((dim,), positions, attrs)
        return found

    def blocks(self, chunks: tuple[int, ...], itemsize: int) -> Grid:
        """Return the grid, in cells, of the boxes that one task scores.

        Whole planes, several where they are small; a plane above 64 MiB is cut into boxes of about that
        size, along the chunks where a box can be a whole number of them. A box spans whole chunks along
        t, c and z, so that no chunk is decoded for one plane at a time.
        """
        lead = [min(c, n) for c, n in zip(chunks[:-2], self.shape[:-2], strict=True)]
        height, width = self.shape[-2:]
        plane_voxels = max(_BLOCK_BYTES // itemsize // prod(lead), self.patch[0] * self.patch[1])
        if height * width <= plane_voxels:
            for axis in reversed(range(len(lead))):
                fits = _GROUP_BYTES // itemsize // (prod(lead) * height * width)
                lead[axis] = min(lead[axis] * max(fits, 1), self.shape[axis])
            return Grid(self.counts, (*lead, *self.counts[-2:]))
        side = isqrt(plane_voxels)
        units = [_unit(c, p, side) for c, p in zip(chunks[-2:], self.patch, strict=True)]
        columns = min(max(side // units[1], 1) * units[1] // self.patch[1], self.counts[-1])
        rows = max(plane_voxels // (columns * self.patch[1]) // units[0], 1) * units[0] // self.patch[0]
        return Grid(self.counts, (*lead, min(rows, self.counts[-2]), columns))


def _unit(chunk: int, patch: int, side: int) -> int:
    """Return the smallest extent of whole chunks and whole cells, or of whole cells if that is too long."""
    both = lcm(chunk, patch)
    return both if both <= side else patch
