"""One plane of every image of a run: all that the report reads of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from denoizarr.errors import BadRequest, DenoizarrError, ImageNotFound
from denoizarr.geometry.boxes import Box
from denoizarr.stores import locations
from denoizarr.stores.images import open_image, reader_of

LARGEST_SIDE = 2048
"""Pixels per side; of a larger plane, the middle is read."""

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
class ImagePair:
    """Where an input and its results lie.

    Attributes
    ----------
    name : str
    source, denoised : str
        URLs; ``denoised`` may not exist yet.
    stage1 : str or None
        The first stage's result, where it was kept.
    level : int
        Of the source.
    axes : str or None
        Of a source that is a plain array.
    """

    name: str
    source: str
    denoised: str
    stage1: str | None
    level: int
    axes: str | None


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


def image_pairs(run_url: str, job: dict[str, Any], summary: dict[str, Any]) -> list[ImagePair]:
    """List the inputs of a run with their results.

    Parameters
    ----------
    run_url : str
    job : dict
        Resolved: ``input`` with ``url`` or ``urls`` (also a glob), ``level``, ``axes``.
    summary : dict
        Its ``images``, a list of records with ``name`` and ``url``, is believed first.
    """
    settings = job.get("input")
    settings = settings if isinstance(settings, dict) else {"url": settings}
    level, axes = int(settings.get("level") or 0), settings.get("axes")
    axes = "".join(axes) if axes else None
    listed = summary.get("images")
    if (
        isinstance(listed, list)
        and listed
        and all(isinstance(item, dict) and item.get("url") for item in listed)
    ):
        found = [(str(item.get("name") or short_name(str(item["url"]))), str(item["url"])) for item in listed]
    else:
        found = [(short_name(source), source) for source in _sources(settings)]
    pairs = []
    for name, source in found:
        # By name, not by a recorded path: the run folder may have been moved since.
        denoised, stage1 = (
            locations.join(run_url, f"{kind}.ome.zarr")
            if len(found) == 1
            else locations.join(run_url, kind, f"{name}.ome.zarr")
            for kind in ("denoised", "stage1")
        )
        pairs.append(
            ImagePair(name, source, denoised, stage1 if locations.exists(stage1) else None, level, axes)
        )
    return pairs


def short_name(url: str) -> str:
    """Return the last part of a URL without what says "OME-Zarr"."""
    name = url.rstrip("/").rsplit("/", 1)[-1]
    for ending in (".ome.zarr", ".zarr"):
        name = name.removesuffix(ending)
    return name or url


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
    # A job that fills missing chunks has counted them; one that does not has none by now.
    image = open_image(pair.source, level=pair.level, axes=pair.axes, missing="fill")
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
    )


def _sources(settings: dict[str, Any]) -> list[str]:
    urls = settings.get("urls") or settings.get("url")
    if not urls:
        raise BadRequest("the job names no input", where="job.yaml", expected="input.url or input.urls")
    found: list[str] = []
    for url in [urls] if isinstance(urls, str) else [str(url) for url in urls]:
        if any(sign in url for sign in "*?[") and not locations.exists(url):
            pattern = locations.local_path(url)
            matches = Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
            found += sorted(str(path) for path in matches) or [url]
        else:
            found.append(url)
    return found


def _middle(size: int, step: int) -> tuple[int, int]:
    length = min(size, LARGEST_SIDE)
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
