"""Which mask voxel lies under each voxel of an image: one rule per axis, by world coordinates or by index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from denoizarr.errors import BadRequest, MisalignedGrid

_PREFIXES = {
    "": 0,
    "atto": -18,
    "femto": -15,
    "pico": -12,
    "nano": -9,
    "micro": -6,
    "milli": -3,
    "centi": -2,
    "deci": -1,
    "deca": 1,
    "hecto": 2,
    "kilo": 3,
    "mega": 6,
}
# Unit name -> what it measures and its power of ten.
_POWERS: dict[str, tuple[str, int]] = {
    f"{prefix}{name}": (kind, power)
    for prefix, power in _PREFIXES.items()
    for name, kind in (("meter", "length"), ("metre", "length"), ("second", "time"))
} | {
    "angstrom": ("length", -10),
    "Å": ("length", -10),
    "micron": ("length", -6),
    "µm": ("length", -6),  # the micro sign; below, the Greek letter
    "μm": ("length", -6),
    "um": ("length", -6),
    "m": ("length", 0),
    "cm": ("length", -2),
    "mm": ("length", -3),
    "nm": ("length", -9),
    "pm": ("length", -12),
    "s": ("time", 0),
    "ms": ("time", -3),
}
# Thousandths of the finer grid's voxel: far above the rounding of 0.1 * index, far below what shows.
_SNAP = 1e-3
# A mask of one voxel along an axis is a reduction by any factor from the size on.
_UNBOUNDED = 2**62


@dataclass(frozen=True, slots=True)
class AxisGrid:
    """The voxels of one axis in the world.

    Attributes
    ----------
    size : int
        Number of voxels.
    first, spacing : float
        Centre of the first voxel, and from one centre to the next; in ``unit``.
    unit : str or None
    physical : bool
        False where the coordinates say no more than an index.
    """

    size: int
    first: float = 0.0
    spacing: float = 1.0
    unit: str | None = None
    physical: bool = False

    @property
    def extent(self) -> tuple[float, float]:
        """The outer edges of the outer voxels, ascending."""
        ends = (self.first - self.spacing / 2, self.first + self.spacing * (self.size - 0.5))
        return min(ends), max(ends)


@dataclass(frozen=True, slots=True)
class AxisRule:
    """Image voxel ``i`` takes mask voxel floor(offset + rate * i), cropped to the mask.

    Attributes
    ----------
    offset, rate : float
        In mask voxels, and mask voxels per image voxel.
    size : int
        Number of mask voxels.
    """

    offset: float
    rate: float
    size: int

    def indices(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the mask voxel of the image voxels ``start`` to ``stop``; monotone."""
        places = np.floor(self.offset + self.rate * np.arange(start, stop))
        inside: NDArray[np.int64] = np.clip(places, 0, self.size - 1).astype(np.int64)
        return inside


def axis_grids(image: xr.DataArray) -> dict[str, AxisGrid]:
    """Return the grid of every axis of an image as :func:`open_image` or :func:`as_image` gives it.

    Raises
    ------
    BadRequest
        The voxels of an axis with world coordinates are not evenly spaced.
    """
    of_store = bool(image.attrs.get("ome"))
    return {str(dim): _axis_grid(image, str(dim), of_store=of_store) for dim in image.dims}


def _axis_grid(image: xr.DataArray, dim: str, *, of_store: bool) -> AxisGrid:
    size = int(image.sizes[dim])
    coordinate = image.coords.get(dim)
    if coordinate is None or "spacing" not in coordinate.attrs or coordinate.dtype.kind not in "uif":
        return AxisGrid(size)
    unit = coordinate.attrs.get("units")
    spacing = float(coordinate.attrs["spacing"])
    if unit is None and spacing == 1.0 and not of_store:
        return AxisGrid(size)  # the coordinates that every array gets: its indices
    centres = np.asarray(coordinate.values, np.float64)
    if size > 1:
        # From the coordinates: a slice with a step keeps the attribute of the whole.
        spacing = float(centres[-1] - centres[0]) / (size - 1)
    even = centres[0] + spacing * np.arange(size)
    if not spacing or not np.abs(centres - even).max() <= _SNAP * abs(spacing):
        raise BadRequest(
            "voxels that are not evenly spaced cannot be aligned with a mask",
            where=f"coordinate {dim}",
            remedy="pass the mask as a numpy array of the image's shape",
        )
    return AxisGrid(size, float(centres[0]), spacing, unit, physical=True)


def axis_rules(
    mask: Mapping[str, AxisGrid], image: Mapping[str, AxisGrid], where: str
) -> dict[str, AxisRule]:
    """Return the rule of every axis of the mask; ``mask`` has no axis that ``image`` lacks, and no c.

    Raises
    ------
    MisalignedGrid
        The mask covers another extent, or its shape is neither the image's nor a whole-number reduction.
    BadRequest
        The units differ and one of them is not known.
    """
    rules: dict[str, AxisRule] = {}
    by_index: dict[str, tuple[int, int]] = {}
    for dim, ours in mask.items():
        theirs = image[dim]
        if dim == "t" and not (ours.physical and theirs.physical and ours.unit and theirs.unit):
            rules[dim] = _time_rule(ours.size, theirs.size, where)
        elif dim == "t" and ours.size == 1:
            rules[dim] = AxisRule(0.0, 0.0, 1)
        elif ours.physical and theirs.physical:
            rules[dim] = _world_rule(dim, _in_unit(ours, theirs, dim, where), theirs, where)
        else:
            by_index[dim] = (theirs.size, ours.size)
    for dim, factor in _reductions(by_index, where).items():
        rules[dim] = AxisRule(0.5 / factor, 1.0 / factor, mask[dim].size)
    return rules


def _time_rule(mask_size: int, image_size: int, where: str) -> AxisRule:
    """Time points go by number: stores often leave their spacing out."""
    if mask_size not in (1, image_size):
        raise MisalignedGrid(
            "the mask has another number of time points than the image",
            where=where,
            got=mask_size,
            expected=image_size if image_size == 1 else f"{image_size} or 1",
        )
    return AxisRule(0.0, 0.0, 1) if mask_size == 1 else AxisRule(0.5, 1.0, mask_size)


def _in_unit(mask: AxisGrid, image: AxisGrid, dim: str, where: str) -> AxisGrid:
    """Return the mask's grid in the image's unit; a side that names none is taken to mean the other's."""
    if mask.unit is None or image.unit is None or mask.unit == image.unit:
        return mask
    ours, theirs = _POWERS.get(mask.unit), _POWERS.get(image.unit)
    if ours is None or theirs is None or ours[0] != theirs[0]:
        raise BadRequest(
            "mask and image are in units that cannot be converted",
            where=f"{where}, axis {dim}",
            got=f"{mask.unit!r} for the mask and {image.unit!r} for the image",
            expected="one unit, or two of the SI",
            remedy="write the unit of one as that of the other",
        )
    factor = 10.0 ** (ours[1] - theirs[1])
    return replace(mask, first=mask.first * factor, spacing=mask.spacing * factor, unit=image.unit)


def _world_rule(dim: str, mask: AxisGrid, image: AxisGrid, where: str) -> AxisRule:
    """Return the rule by which a voxel takes the mask voxel that its centre lies in.

    A centre on the border of two mask voxels belongs to the one with the higher index.
    """
    rate = image.spacing / mask.spacing
    # In mask voxels, where mask voxel k spans k to k + 1.
    offset = (image.first - mask.first) / mask.spacing + 0.5
    coarse, fine = max(1.0, abs(rate)), min(1.0, abs(rate))
    ends = sorted((offset - rate / 2, offset + rate * (image.size - 0.5)))
    near, far = abs(ends[0]), abs(ends[1] - mask.size)
    snap = _SNAP * fine
    # The last voxel of a pyramid's level hangs over the image, or ends before it, by less than one voxel.
    if near > coarse / 2 + snap or far > coarse - fine / 2 + snap:
        unit = f" {image.unit or mask.unit}" if image.unit or mask.unit else ""
        raise MisalignedGrid(
            "the mask covers another extent than the image",
            where=f"{where}, axis {dim}",
            got=_interval(mask.extent) + unit,
            expected=_interval(image.extent) + unit,
            remedy="correct the scale or translation of one, or pass the mask as a plain array",
        )
    return AxisRule(offset + snap, rate, mask.size)


def _interval(extent: tuple[float, float]) -> str:
    return f"{extent[0]:.6g} to {extent[1]:.6g}"


def _reductions(sizes: Mapping[str, tuple[int, int]], where: str) -> dict[str, int]:
    """Return the whole number by which the mask is coarser than the image along every axis.

    Sizes are (image, mask) along z, y, x. ``ceil(n / factor) = m`` leaves several factors only where there
    are fewer mask voxels than the factor. Then y and x share theirs; of those left it is the power of two or
    the exact quotient, and where these are two the mask is refused.
    """
    ranges = {dim: _factors(n, m) for dim, (n, m) in sizes.items()}
    found: dict[str, int] = {}
    for dim, (low, high) in ranges.items():
        n, m = sizes[dim]
        plane = [r for d, r in ranges.items() if d != dim and d in "yx" and r != (1, 1)]
        if low <= high and low != high and not (dim == "z" and m == 1):
            shared = max([low, *(r[0] for r in plane)]), min([high, *(r[1] for r in plane)])
            if plane and shared[0] <= shared[1]:
                low, high = shared
            elif m == 1 and n > 1:
                high = 0  # one row for the whole image, at full width: not a reduction of both
            likely = {1 << (low - 1).bit_length()} | ({n // m} if n % m == 0 else set())
            likely = {factor for factor in likely if low <= factor <= high}
            low, high = (*likely, *likely) if len(likely) == 1 else (low, high)
        if low > high or (low != high and m > 1):
            raise MisalignedGrid(
                "the mask has another shape than the image"
                if low > high
                else "the mask's reduction is unclear",
                where=f"{where}, axis {dim}",
                got=f"{m} voxels for {n}",
                expected="as many voxels as the image, or ceil(size / factor) for one whole number",
                remedy="give mask and image world coordinates, or expand the mask to the image's shape",
            )
        found[dim] = low
    return found


def _factors(n: int, m: int) -> tuple[int, int]:
    """Return the smallest and largest whole number with ``ceil(n / factor) = m``; empty if reversed."""
    if n == m:
        return 1, 1
    if m > n:
        return 1, 0
    return -(-n // m), _UNBOUNDED if m == 1 else -(-n // (m - 1)) - 1
