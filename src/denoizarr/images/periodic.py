"""Periodic interference of whole images: found in a sample, measured plane by plane, taken away.

::

    sampled windows -> lines that stand out -> some whole planes: is it one wave? its exact frequency
                    -> every plane, once: amplitude and phase -> the image less its waves

The first step costs a few hundred windows; the others are for images in which it found something.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import hypot, prod
from typing import Any, Literal

import numpy as np
import xarray as xr

from denoizarr.errors import BadRequest, ImageNotFound, MetadataError
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import ceil_div
from denoizarr.kernels.spectrum import FEWEST_WINDOWS, Line, find_lines, grouped
from denoizarr.kernels.wave_fit import DRIFT
from denoizarr.kernels.waves import Frequency, Wave
from denoizarr.stores import records
from denoizarr.stores.images import corrected_image, reader_of
from denoizarr.stores.periodic import WaveTable
from denoizarr.stores.records import digest
from denoizarr.stores.sources import Array, ImageReader

from .plane_waves import measure_waves, waves_of_plane

Periodic = Literal["auto", "off"]

_LOG = logging.getLogger(__name__)
# Windows of 128 tell periods up to 32 pixels; those of 64 up to 16, for images that hold few of the others.
_SIDES = (128, 64)
_ENOUGH_WINDOWS = 16
# Read at once and cut; 64 sites are 256 windows of 128, and at worst as many chunks.
_SITE, _SITES = 256, 64
# Whole planes that a line is looked for in before all are read for it.
_PLANES = 4
# Of whole numbers, what is smaller than half a step cannot be seen for rounding.
_LEAST_STEP = 0.25


def without_lines(
    images: Sequence[xr.DataArray], periodic: Periodic = "auto", *, client: Any = None
) -> tuple[list[xr.DataArray], tuple[Frequency, ...]]:
    """Find the periodic lines of some images and take them away.

    Parameters
    ----------
    images : sequence of DataArray
        Where one of them is corrected already, all are taken as they are.
    periodic : {"auto", "off"}
        "off" looks for nothing.
    client : distributed.Client, optional
        Measure the planes on the workers of this cluster.

    Returns
    -------
    images : list of DataArray
        As given, the same objects where there are no lines; else float32, lazily.
    frequencies : tuple of (fy, fx)
        Of the lines, in cycles per pixel, strongest first; empty for none.

    Raises
    ------
    BadRequest
        Another setting.
    NonFiniteData, MissingChunk, CorruptChunk, StoreUnavailable
        The image cannot be measured.
    """
    if periodic not in ("auto", "off"):
        raise BadRequest("unknown setting", where="periodic", got=repr(periodic), expected="auto or off")
    known = {f: None for image in images for f in reader_of(image).periodic}
    if known or periodic == "off":
        return list(images), tuple(known)
    lines = find_periodic_lines(images)
    frequencies = tuple(line.frequency for line in lines)
    if not frequencies:
        return list(images), ()
    _LOG.info("periodic lines are taken away: %s", lines_in_words(lines))
    return without_known_lines(images, frequencies, client=client), frequencies


def without_known_lines(
    images: Sequence[xr.DataArray], frequencies: Sequence[Frequency], *, client: Any = None
) -> list[xr.DataArray]:
    """Return images less the waves near some frequencies; one that has none, or is corrected, as it is."""
    if not frequencies:
        return list(images)
    readers = [reader_of(image) for image in images]
    return [
        image
        if reader.uncorrected is not None
        else corrected_image(image, measure_waves(reader, frequencies, client=client))
        for image, reader in zip(images, readers, strict=True)
    ]


def find_periodic_lines(images: Sequence[xr.DataArray]) -> tuple[Line, ...]:
    """Return the lines that run through whole planes of some images; reads a sample of them.

    A line stands out in most of the sampled windows, and in a whole plane all windows agree on its phase: so
    a regular texture, whose phase wanders, is left alone. One that does not wander, as of a crystal or a
    printed grid, cannot be told from interference: for those, ``periodic`` is to be "off".
    """
    readers = [reader_of(image) for image in images]
    windows = _sampled_windows(readers)
    candidates = find_lines(windows) if len(windows) >= FEWEST_WINDOWS else ()
    if not candidates:
        return ()
    frequencies = [line.frequency for line in candidates]
    found: list[list[Wave]] = [[] for _ in candidates]
    for reader, plane in spread_planes(readers):
        for waves, wave in zip(found, waves_of_plane(reader, frequencies, plane), strict=True):
            least = _LEAST_STEP if reader.dtype.kind in "ui" else 0.0
            if wave.amplitude > least:
                waves.append(wave)
    lines: list[Line] = []
    for line, waves in zip(candidates, found, strict=True):
        if waves:
            fy, fx = (float(np.median([wave.frequency[axis] for wave in waves])) for axis in (0, 1))
            if not any(_apart((fy, fx), other.frequency) < DRIFT for other in lines):
                lines.append(Line((fy, fx), line.significance, (fy, fx)))
    extent = min(min(reader.shape[-2:]) for reader in readers)
    return grouped(lines, (extent, extent))


def lines_in_words(lines: Sequence[Line]) -> str:
    """Return the periods and directions of lines, harmonics together."""
    groups: dict[Frequency, int] = {}
    for line in lines:
        groups[line.fundamental] = groups.get(line.fundamental, 0) + 1
    words = []
    for (fy, fx), count in groups.items():
        harmonics = f" ({count} harmonics)" if count > 1 else ""
        angle = np.degrees(np.arctan2(fy, fx))
        along = "along x" if abs(angle) < 0.5 else f"at {angle:.1f} degrees"
        along = "along y" if abs(abs(angle) - 90) < 0.5 else along
        words.append(f"every {1 / hypot(fy, fx):.4g} pixels {along}{harmonics}")
    return ", ".join(words)


# ---- the record


def keep_waves(url: str, reader: ImageReader, table: WaveTable) -> None:
    """Write the waves of an image as JSON, so that they need not be measured again."""
    stored = reader.uncorrected or reader
    records.write_json(url, {"image": digest(stored.identity), **table.to_json()})


def kept_waves(url: str, reader: ImageReader, frequencies: Sequence[Frequency]) -> WaveTable | None:
    """Return what :func:`keep_waves` wrote of this image and these frequencies; None where there is none."""
    try:
        data = records.read_json(url)
        table = WaveTable.from_json(data)
    except (ImageNotFound, MetadataError, KeyError, TypeError, ValueError, OverflowError):
        return None
    same = data.get("image") == digest(reader.identity) and table.frequencies == tuple(frequencies)
    return table if same else None


# ---- the sample


def _sampled_windows(readers: Sequence[ImageReader]) -> Array:
    """Return windows spread evenly over all images, (n, side, side), of the larger side that gives enough."""
    windows = np.empty((0, _SIDES[-1], _SIDES[-1]))
    for side, sites in sampled_sites(readers):
        windows = np.concatenate([_cut(_read_plane(reader, box), side) for reader, box in sites])
    return windows


def sampled_sites(readers: Sequence[ImageReader]) -> list[tuple[int, list[tuple[ImageReader, Box]]]]:
    """Return the sides of windows that are tried, and what is read for each; the last one gives enough."""
    found = []
    for side in _SIDES:
        if sites := _spread_sites(readers, side):
            found.append((side, sites))
            if sum(prod(n // side for n in box.shape[-2:]) for _, box in sites) >= _ENOUGH_WINDOWS:
                break
    return found


def _spread_sites(readers: Sequence[ImageReader], side: int) -> list[tuple[ImageReader, Box]]:
    """Return up to 64 boxes of single planes, far from each other in the order of voxels."""
    large = [reader for reader in readers if min(reader.shape[-2:]) >= side]
    counts = [(*r.shape[:-2], *(ceil_div(n - side + 1, _SITE) for n in r.shape[-2:])) for r in large]
    ends = np.cumsum([prod(count) for count in counts])
    if not len(ends):
        return []
    total = int(ends[-1])
    number = min(total, _SITES)
    sites = []
    for part in range(number):
        # In the middle of its share, moved by a golden share of it: no lattice beats with the rows of sites.
        share = (part * 0.6180339887) % 1.0 if total > number else 0.0
        at = min(int((part + share) * total / number), total - 1)
        image = int(np.searchsorted(ends, at, side="right"))
        place = np.unravel_index(at - (int(ends[image - 1]) if image else 0), counts[image])
        size = (1,) * (len(place) - 2) + (_SITE, _SITE)
        start = tuple(int(p) * n for p, n in zip(place, size, strict=True))
        box = Box(start, tuple(a + n for a, n in zip(start, size, strict=True)))
        sites.append((large[image], box.clip(large[image].shape)))
    return sites


def _read_plane(reader: ImageReader, box: Box) -> Array:
    plane = reader.read(box)
    return plane.reshape(plane.shape[-2:])


def _cut(plane: Array, side: int) -> Array:
    rows, columns = plane.shape[0] // side, plane.shape[1] // side
    whole = plane[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return whole.swapaxes(1, 2).reshape(-1, side, side)


def spread_planes(readers: Sequence[ImageReader]) -> list[tuple[ImageReader, Box]]:
    """Return up to four planes spread over all images, and over their channels."""
    counts = [prod(reader.shape[:-2]) for reader in readers]
    ends = np.cumsum(counts)
    total = int(ends[-1])
    picked = sorted({(2 * i + 1) * total // (2 * min(_PLANES, total)) for i in range(min(_PLANES, total))})
    planes = []
    for at in picked:
        image = int(np.searchsorted(ends, at, side="right"))
        leading = readers[image].shape[:-2]
        place = np.unravel_index(at - (int(ends[image - 1]) if image else 0), leading) if leading else ()
        start = tuple(int(p) for p in place)
        planes.append((readers[image], Box(start, tuple(a + 1 for a in start))))
    return planes


def _apart(first: Frequency, second: Frequency) -> float:
    return max(abs(a - b) for a, b in zip(first, second, strict=True))
