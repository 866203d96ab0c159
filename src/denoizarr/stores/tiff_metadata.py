"""What TIFF files say of their voxels: OME-XML and ImageJ's tags, read and written.

What OME-XML has no place for (display windows, where the image lies, units that it does not know) goes into
an annotation of ours as JSON, so that an image comes back from a file as it went in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any
from xml.etree import ElementTree as ET

import tifffile

from .ome_zarr import DIMS

NAMESPACE = "denoizarr/1"
_OME_UNITS = {
    "µm": "micrometer",
    "um": "micrometer",
    "micron": "micrometer",
    "nm": "nanometer",
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
    "pm": "picometer",
    "Å": "angstrom",
    "s": "second",
    "ms": "millisecond",
    "µs": "microsecond",
    "min": "minute",
    "h": "hour",
}
_TO_OME = {name: sign for sign, name in reversed(_OME_UNITS.items())}
_NO_UNIT = "pixel"


@dataclass(frozen=True, slots=True)
class ForeignMetadata:
    """What a foreign file states of its image, and what of it is not carried over.

    Attributes
    ----------
    scale, units, translation : dict
        By axis; only what the file says.
    losses : tuple of str
    omero : dict
        Rendering hints: channel names, colours, windows.
    dims : tuple of str
        Axes that a file of ours had, those of length one included; empty for others.
    extra : dict
        Attributes that the image keeps as they are: what only files of that format have a use for.
    """

    scale: dict[str, float]
    units: dict[str, str]
    losses: tuple[str, ...] = ()
    omero: dict[str, Any] = field(default_factory=dict)
    translation: dict[str, float] = field(default_factory=dict)
    dims: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


def tiff_metadata(file: tifffile.TiffFile) -> ForeignMetadata:
    """Return what an open file says of its first series.

    Raises
    ------
    ParseError, ValueError
        Its XML is not valid.
    """
    losses = []
    if len(file.series) > 1:
        losses.append(f"only the first of the file's {len(file.series)} series was read")
    if file.is_ome and file.ome_metadata:
        root = ET.fromstring(file.ome_metadata)  # noqa: S314  (expat refuses entity bombs)
        ours = _annotation(root)
        if ours is not None:
            return ours
        losses.append("OME metadata other than axes, voxel sizes and channels (acquisition) were dropped")
        return _of_ome(root, tuple(losses))
    if file.is_imagej and file.imagej_metadata:
        return _of_imagej(file, tuple(losses))
    return ForeignMetadata({}, {}, tuple(losses))


def _of_ome(root: ET.Element, losses: tuple[str, ...]) -> ForeignMetadata:
    scale: dict[str, float] = {}
    units: dict[str, str] = {}
    pixels = root.find(".//{*}Pixels")
    if pixels is None:
        return ForeignMetadata({}, {}, losses)
    names = {"x": "PhysicalSizeX", "y": "PhysicalSizeY", "z": "PhysicalSizeZ", "t": "TimeIncrement"}
    for dim, name in names.items():
        size = pixels.get(name)
        if size:
            scale[dim] = float(size)
            unit = pixels.get(f"{name}Unit", "s" if dim == "t" else "µm")
            if unit != _NO_UNIT:
                units[dim] = _OME_UNITS.get(unit, unit)
    found = pixels.findall("{*}Channel")
    labels = [channel.get("Name") for channel in found]
    colors = [_color(channel.get("Color")) for channel in found]
    return ForeignMetadata(scale, units, losses, _omero(labels, colors, [None] * len(found)))


def _of_imagej(file: tifffile.TiffFile, losses: tuple[str, ...]) -> ForeignMetadata:
    scale: dict[str, float] = {}
    units: dict[str, str] = {}
    said = file.imagej_metadata or {}
    # ImageJ writes the sign for micro as an escape.
    unit = _OME_UNITS.get(str(said.get("unit", "")).replace("\\u00B5", "µ"))
    tags = file.pages.first.tags
    if unit is not None and "XResolution" in tags and "YResolution" in tags:
        for dim, tag in (("x", "XResolution"), ("y", "YResolution")):
            pixels_per_unit, one = tags[tag].value
            if pixels_per_unit:
                scale[dim], units[dim] = one / pixels_per_unit, unit
        if "spacing" in said:
            scale["z"], units["z"] = float(said["spacing"]), unit
    interval = said.get("finterval")
    if isinstance(interval, int | float) and interval > 0:
        scale["t"], units["t"] = float(interval), "second"
    n = said.get("channels", 1)
    ranges = said.get("Ranges") or ()
    n = n if isinstance(n, int) and 0 < n < 1000 else 1
    windows = [tuple(ranges[2 * i : 2 * i + 2]) if len(ranges) >= 2 * n else None for i in range(n)]
    return ForeignMetadata(scale, units, losses, _omero([None] * n, [None] * n, windows))


def _omero(
    labels: Sequence[str | None], colors: Sequence[str | None], windows: Sequence[tuple[Any, ...] | None]
) -> dict[str, Any]:
    """Return rendering hints where there are any."""
    if not any(labels) and not any(colors) and not any(windows):
        return {}
    channels: list[dict[str, Any]] = []
    for label, color, window in zip(labels, colors, windows, strict=True):
        channel: dict[str, Any] = {"active": True, "color": color or "FFFFFF"}
        if label:
            channel["label"] = label
        if window is not None:
            low, high = (float(v) for v in window)
            channel["window"] = {"start": low, "end": high, "min": low, "max": high}
        channels.append(channel)
    return {"channels": channels}


def _color(text: str | None) -> str | None:
    """Return RRGGBB of OME's signed 32-bit RGBA."""
    try:
        return None if text is None else f"{(int(text) % 2**32) >> 8:06X}"
    except ValueError:
        return None


def ome_metadata(
    dims: Sequence[str],
    scale: Sequence[float],
    translation: Sequence[float],
    units: Sequence[str | None],
    omero: Mapping[str, Any],
    name: str,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return metadata for tifffile's OME writer, and what only this package reads of them."""
    ours: list[str] = []
    found: dict[str, Any] = {"axes": "".join(dims).upper()}
    if name:
        found["Name"] = name
    for dim, size, unit in zip(dims, scale, units, strict=True):
        key = "TimeIncrement" if dim == "t" else f"PhysicalSize{dim.upper()}"
        if dim == "c":
            continue
        if size <= 0 or (unit is not None and unit not in _TO_OME):
            ours.append(f"{size:g} {unit or ''}".strip() + f" along {dim}")
            continue
        if dim == "t" and unit is None:
            continue  # frames have no length in OME-XML without a unit of time
        found[key], found[f"{key}Unit"] = float(size), _NO_UNIT if unit is None else _TO_OME[unit]
    if any(translation):
        ours.append("where the image lies")
    channels = omero.get("channels")
    if isinstance(channels, list) and all(isinstance(c, Mapping) for c in channels):
        names = [str(c.get("label", "")) for c in channels]
        if any(names):
            found["Channel"] = {"Name": names}
        if any("window" in c for c in channels):
            ours.append("display windows")
    body = {
        "dims": list(dims),
        "scale": list(map(float, scale)),
        "translation": list(map(float, translation)),
        "units": list(units),
        "omero": dict(omero),
    }
    found["CommentAnnotation"] = {"Namespace": NAMESPACE, "Value": json.dumps(body)}
    return found, tuple(ours)


def _annotation(root: ET.Element) -> ForeignMetadata | None:
    """Return what :func:`ome_metadata` wrote; None where it is not there, or not as it was written."""
    for annotation in root.iterfind(".//{*}CommentAnnotation"):
        if annotation.get("Namespace") != NAMESPACE:
            continue
        try:
            body = json.loads(annotation.findtext("{*}Value") or "")
            dims = tuple(str(d) for d in body["dims"])
            scale, translation = ([float(v) for v in body[key]] for key in ("scale", "translation"))
            units, omero = list(body["units"]), body["omero"]
        except (KeyError, TypeError, ValueError, RecursionError):
            return None
        lengths = {len(dims), len(scale), len(translation), len(units)}
        finite = all(map(isfinite, [*scale, *translation])) and all(scale)
        if len(lengths) > 1 or not set(dims) <= set(DIMS) or not finite or not isinstance(omero, dict):
            return None
        return ForeignMetadata(
            dict(zip(dims, scale, strict=True)),
            {d: str(u) for d, u in zip(dims, units, strict=True) if u is not None},
            omero=omero,
            translation=dict(zip(dims, translation, strict=True)),
            dims=dims,
        )
    return None
