"""What lies at a URL, told without reading a voxel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zarr

from denoizarr.geometry.boxes import Box

from . import locations
from .ome_zarr import STATE, read_ome
from .sources import open_array
from .strict import absent_chunks
from .urls import is_read_only

# Counting absent chunks asks the store about every write unit; beyond this many it is left out.
_MOST_UNITS_TO_COUNT = 100_000


def info(url: str | Path) -> dict[str, Any]:
    """Describe an OME-Zarr image.

    Returns
    -------
    dict
        JSON-able: url, version, state, axes, units, name, and per level path, shape, chunks, shards, dtype,
        scale, translation, codecs, size_bytes (decoded), stored_bytes and missing_chunks (both None where the
        level has more than 100,000 write units or lies on a web server, which lists nothing).

    Raises
    ------
    ImageNotFound, NotOmeZarr, MetadataError
    """
    where = locations.join(url)
    group = locations.open_group(where, "r")
    ome = read_ome(group, locations.redact(where), allow_incomplete=True)
    return {
        "url": locations.redact(where),
        "version": ome.version,
        "state": group.attrs.get(STATE, "foreign"),
        "name": ome.name,
        "axes": list(ome.dims),
        "units": list(ome.units),
        "levels": [
            _describe_level(open_array(where, level.path), locations.join(where, level.path))
            | {"path": level.path, "scale": list(level.scale), "translation": list(level.translation)}
            for level in ome.levels
        ],
    }


def _describe_level(array: zarr.Array[Any], where: str) -> dict[str, Any]:
    units = 1
    for n, unit in zip(array.shape, array.shards or array.chunks, strict=True):
        units *= -(-n // unit)
    countable = units <= _MOST_UNITS_TO_COUNT and not is_read_only(where)
    return {
        "shape": list(array.shape),
        "chunks": list(array.chunks),
        "shards": None if array.shards is None else list(array.shards),
        "dtype": str(array.dtype),
        "codecs": [_codec_name(codec) for codec in array.compressors],
        "size_bytes": int(array.nbytes),
        "stored_bytes": locations.stored_bytes(where) if countable else None,
        "missing_chunks": sum(1 for _ in absent_chunks(array, Box.whole(array.shape))) if countable else None,
    }


def _codec_name(codec: Any) -> str:
    return str(getattr(codec, "codec_id", None) or type(codec).__name__.removesuffix("Codec").lower())
