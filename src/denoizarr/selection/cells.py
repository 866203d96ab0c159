"""The grid of cells over an image, and the regions of it that scores are computed over."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from denoizarr.errors import BadRequest, PatchTooLarge
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import Grid
from denoizarr.kernels.regions import region_counts

PatchSize: TypeAlias = "int | tuple[int, ...] | list[int]"
Patch: TypeAlias = tuple[int, ...]

# The entropy's integer sums hold regions up to here; a cell of 2**23 voxels is 2896 x 2896 or 203 cubed.
_LARGEST_CELL = 1 << 23


def patch_extents(patch_size: PatchSize) -> Patch:
    """Return ``patch_size`` as (y, x), or (z, y, x) for a triple.

    Raises
    ------
    BadRequest
        For anything else, y or x below 2, z below 1.
    PatchTooLarge
        For over 2**23 voxels.
    """
    sizes: tuple[Any, ...] = (
        tuple(patch_size) if isinstance(patch_size, list | tuple) else (patch_size, patch_size)
    )
    whole = len(sizes) in (2, 3) and all(
        isinstance(s, int | np.integer) or (isinstance(s, float) and s.is_integer()) for s in sizes
    )
    if not whole or min(sizes[-2:]) < 2 or sizes[0] < 1:
        raise BadRequest(
            "not a patch size",
            where="patch_size",
            got=patch_size,
            expected="an int or a pair (y, x), at least 2, or a triple (z, y, x)",
        )
    if prod(int(s) for s in sizes) > _LARGEST_CELL:
        raise PatchTooLarge(
            "the patch is larger than any that is scored",
            where="patch_size",
            got=patch_size,
            expected="at most 2**23 voxels, such as 2896 x 2896 or 203 x 203 x 203",
        )
    return tuple(int(s) for s in sizes)


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of one image: one patch large along the patch's own dims, one voxel along the others.

    Attributes
    ----------
    dims : tuple of str
        Of the image, in the order t, c, z, y, x.
    shape : tuple of int
        Of the image, in voxels.
    patch : (y, x) or (z, y, x)
        In voxels; its dims are the last ones of the image.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    patch: Patch

    @classmethod
    def of_image(cls, image: xr.DataArray, patch: Patch) -> Cells:
        """Return the cells of an image.

        Raises
        ------
        BadRequest
            The patch has a z and the image has none.
        """
        dims = tuple(str(d) for d in image.dims)
        if len(patch) == 3 and "z" not in dims:
            raise BadRequest(
                "3D patches need an image with z",
                where=str(image.name or "image"),
                got=f"patch {patch}, dims {dims}",
                expected="a pair (y, x)",
            )
        return cls(dims, tuple(int(n) for n in image.shape), patch)

    @property
    def n_lead(self) -> int:
        """Number of dims that the patch does not have; they come first."""
        return len(self.dims) - len(self.patch)

    @property
    def step(self) -> tuple[int, ...]:
        """Extent of a cell along every dim, in voxels."""
        return (1,) * self.n_lead + self.patch

    @property
    def volume_patch(self) -> tuple[int, int, int]:
        """The patch as (z, y, x); one along z where it has none."""
        depth = self.patch[0] if len(self.patch) == 3 else 1
        return depth, self.patch[-2], self.patch[-1]

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of cells along every dim."""
        return Grid(self.shape, self.step).counts

    @property
    def region_counts(self) -> tuple[int, ...]:
        """Number of regions along every dim: as many as voxels along the leading ones."""
        return self.counts[: self.n_lead] + region_counts(self.counts[self.n_lead :])

    def voxels_of(self, cells: Box) -> Box:
        """Return the voxels of a box of cells, cropped at the image's far end."""
        start = tuple(a * s for a, s in zip(cells.start, self.step, strict=True))
        stop = tuple(min(b * s, n) for b, s, n in zip(cells.stop, self.step, self.shape, strict=True))
        return Box(start, stop)

    def voxels_of_regions(self, regions: Box) -> Box:
        """Return the voxels of a box of regions: one more cell than regions along the patch's dims."""
        more = (0,) * self.n_lead + (1,) * len(self.patch)
        return self.voxels_of(
            Box(regions.start, tuple(b + m for b, m in zip(regions.stop, more, strict=True)))
        )

    def own_voxels_of_regions(self, regions: Box) -> Box:
        """Return the voxels that belong to these regions and, of all boxes in a grid, to these alone.

        Those of the first cell of each region; of the last region of an axis, those of its second as well.
        """
        reached = self.voxels_of_regions(regions)
        stop = tuple(
            whole if b == n else b * s
            for b, n, s, whole in zip(regions.stop, self.region_counts, self.step, reached.stop, strict=True)
        )
        return Box(reached.start, stop)

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
