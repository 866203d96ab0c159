"""One plane of every image of a run: all that the report reads of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from denoizarr.errors import BadRequest, DenoizarrError, ImageNotFound
from denoizarr.geometry.boxes import Box
from denoizarr.stores.images import open_image, reader_of

from .image_pairs import ImagePair, short_name

LARGEST_SIDE = 2048
"""Pixels per side; of a larger plane, the middle is read."""
LARGEST_NEIGHBOUR = 1024
"""Pixels per side of what is read of neighbouring planes, and of what is compared with them."""
NEIGHBOURS = 3
"""How many planes further on are looked at: noise of the nearest may not be independent."""

_MICROMETRES = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "nanometre": 1e-3,
    "nm": 1e-3,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "micron": 1.0,
    "um": 1.0,
    "µm": 1.0,
    "millimeter": 1e3,
    "millimetre": 1e3,
    "mm": 1e3,
}


@dataclass(frozen=True, slots=True)
class Planes:
    """One plane, before and after.

    Attributes
    ----------
    raw : (y, x) array
        Raw intensities.
    denoised, stage1 : (y, x) array or None
        At the same place; None where absent.
    dims, shape, dtype
        Of the whole input image.
    denoised_dtype : str
    position : dict of str to int
        Index along the dims other than y and x.
    corner : (int, int)
        First pixel of what was read, (y, x).
    pixel_size_um : (float, float) or None
        Height and width in micrometres.
    problems : tuple of str
        Why a result could not be read.
    corrected : (y, x) float32 array or None
        ``raw`` less its periodic lines; None where the run took none away.
    neighbours : tuple of (raw, denoised)
        The middle (``core``) of the planes one, two and three further on along z, or else t; empty for an
        image of one plane, and where the network itself looks at neighbouring planes.
    """

    raw: np.ndarray[Any, Any]
    denoised: np.ndarray[Any, Any] | None
    stage1: np.ndarray[Any, Any] | None
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    denoised_dtype: str
    position: dict[str, int]
    corner: tuple[int, int]
    pixel_size_um: tuple[float, float] | None
    problems: tuple[str, ...] = ()
    neighbours: tuple[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]], ...] = ()
    corrected: np.ndarray[Any, Any] | None = None

    @property
    def noisy(self) -> np.ndarray[Any, Any]:
        """The raw plane as the network saw it: less its periodic lines, where it had any."""
        return self.raw if self.corrected is None else self.corrected

    @property
    def core(self) -> tuple[slice, slice]:
        """The middle of what was read, at most ``LARGEST_NEIGHBOUR`` pixels a side."""
        rows, columns = (slice(*_middle(size, 1, LARGEST_NEIGHBOUR)) for size in self.raw.shape)
        return rows, columns

    @property
    def whole(self) -> bool:
        """Whether all of the plane was read."""
        return tuple(self.raw.shape) == self.shape[-2:]

    def where(self) -> str:
        """Return the place in words: "plane z = 12 of 26"."""
        sizes = dict(zip(self.dims, self.shape, strict=True))
        names = {"t": "time point t", "c": "channel c", "z": "plane z"}
        words = [
            f"{names[dim]} = {number} of {sizes[dim]}"
            for dim, number in self.position.items()
            if sizes[dim] > 1
        ]
        place = ", ".join(words) if words else "the image"
        if self.whole:
            return place if words else "the whole image"
        return f"the middle {self.raw.shape[0]} × {self.raw.shape[1]} pixels of {place}"


def read_planes(pair: ImagePair, *, align: tuple[int, int] = (1, 1), channel: int = 0) -> Planes:
    """Read the middle plane of an input and of its results.

    Parameters
    ----------
    pair : ImagePair
        Where they lie.
    align : (int, int)
        The corner is a multiple of this, so that the cells of a filter map match it.
    channel : int
        Which channel to show.

    Raises
    ------
    DenoizarrError
        When the input cannot be read. Results that cannot be read are None.
    """
    image = pair.open_input(less_waves=False)
    dims, shape = tuple(str(dim) for dim in image.dims), tuple(int(size) for size in image.shape)
    position = {}
    for dim, size in zip(dims[:-2], shape[:-2], strict=True):
        position[dim] = min(channel, size - 1) if dim == "c" else size // 2
    start, stop = zip(
        *(_middle(size, step) for size, step in zip(shape[-2:], align, strict=True)), strict=True
    )
    box = Box(
        (*position.values(), *start),
        (*(number + 1 for number in position.values()), *stop),
    )
    raw = reader_of(image).read(box).reshape(box.shape[-2:])
    corrected = None
    if pair.waves is not None:
        corrected = reader_of(pair.open_input(less_waves=True)).read(box).reshape(box.shape[-2:])
    problems: list[str] = []
    denoised, dtype = _result(pair.denoised, box, shape, problems)
    stage1, _ = _result(pair.stage1, box, shape, problems) if pair.stage1 else (None, "")
    return Planes(
        raw=raw,
        denoised=denoised,
        stage1=stage1,
        dims=dims,
        shape=shape,
        dtype=str(image.dtype),
        denoised_dtype=dtype,
        position=position,
        corner=(int(start[0]), int(start[1])),
        pixel_size_um=_pixel_size_um(image),
        problems=tuple(problems),
        corrected=corrected,
    )


def read_neighbours(pair: ImagePair, planes: Planes) -> Planes:
    """Return the planes with the middle of up to three neighbours along z, or else t, before and after.

    Parameters
    ----------
    pair : ImagePair
        Where they lie.
    planes : Planes
        As ``read_planes`` gave them.

    Raises
    ------
    DenoizarrError
        When a neighbour cannot be read.
    """
    sizes = dict(zip(planes.dims, planes.shape, strict=True))
    along = [dim for dim in planes.dims if dim in "tz" and sizes[dim] > 1]
    if planes.denoised is None or not along:
        return planes
    dim = along[-1]  # z, where there is one: it comes after t
    here = planes.position[dim]
    onward = [here + gap for gap in range(1, NEIGHBOURS + 1) if here + gap < sizes[dim]]
    back = [here - gap for gap in range(1, NEIGHBOURS + 1) if here - gap >= 0]
    readers = [
        reader_of(pair.open_input(less_waves=True)),
        reader_of(open_image(pair.denoised)),
    ]
    found = []
    for number in onward or back:
        position = {**planes.position, dim: number}.values()
        start = [first + part.start for first, part in zip(planes.corner, planes.core, strict=True)]
        stop = [first + part.stop for first, part in zip(planes.corner, planes.core, strict=True)]
        box = Box((*position, *start), (*(n + 1 for n in position), *stop))
        before, after = (reader.read(box).reshape(box.shape[-2:]) for reader in readers)
        found.append((before, after))
    return replace(planes, neighbours=tuple(found))


def read_truth(url: str, planes: Planes) -> np.ndarray[Any, Any]:
    """Read a known truth at the place of the planes, (y, x).

    Raises
    ------
    DenoizarrError
        When it cannot be read or has another shape than the input.
    """
    image = open_image(url)
    if tuple(image.shape) != planes.shape:
        raise BadRequest(
            "the truth has another shape than the input", where=url, got=image.shape, expected=planes.shape
        )
    position = planes.position.values()
    stop = (first + size for first, size in zip(planes.corner, planes.raw.shape, strict=True))
    box = Box((*position, *planes.corner), (*(n + 1 for n in position), *stop))
    return reader_of(image).read(box).reshape(box.shape[-2:])


def _middle(size: int, step: int, largest: int | None = None) -> tuple[int, int]:
    length = min(size, largest or LARGEST_SIDE)
    start = (size - length) // 2 // step * step
    return start, start + length


def _result(
    url: str, box: Box, shape: tuple[int, ...], problems: list[str]
) -> tuple[np.ndarray[Any, Any] | None, str]:
    try:
        image = open_image(url)
        if tuple(image.shape) != shape:
            raise BadRequest("the result has another shape than the input", got=image.shape, expected=shape)
        return reader_of(image).read(box).reshape(box.shape[-2:]), str(image.dtype)
    except ImageNotFound:
        problems.append(f"{short_name(url)} has not been written")
    except DenoizarrError as error:
        problems.append(f"{short_name(url)} could not be read ({error})")
    return None, ""


def _pixel_size_um(image: xr.DataArray) -> tuple[float, float] | None:
    sizes = []
    for dim in ("y", "x"):
        attrs = image.coords[dim].attrs if dim in image.coords else {}
        factor = _MICROMETRES.get(str(attrs.get("units", "")).lower())
        spacing = attrs.get("spacing")
        if factor is None or not spacing or not np.isfinite(float(spacing)) or float(spacing) <= 0:
            return None
        sizes.append(float(spacing) * factor)
    return sizes[0], sizes[1]
