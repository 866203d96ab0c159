"""The patch index on disk: one uint8 array per image in a Zarr group, everything else in its attributes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from denoizarr.errors import ImageNotFound, IncompleteOutput, ModelError, OutputExists
from denoizarr.geometry.grids import Grid
from denoizarr.stores import locations
from denoizarr.stores.ome_zarr import STATE

from . import own_groups

VERSION = 1
_KEY = "denoizarr.index"
_CHUNK_CELLS = 1 << 20


def write(url: str, fields: dict[str, Any]) -> None:
    """Write the fields of a ``PatchIndex``; the state is "complete" only when all bytes are there.

    Raises
    ------
    OutputExists
        Something else lies at ``url``.
    """
    if locations.exists(url) and locations.list_names(url):
        if not _is_replaceable(url):
            raise OutputExists(
                "something else than a patch index lies here", where=url, remedy="choose another name"
            )
        own_groups.delete(url)
    header = {
        "version": VERSION,
        "patch_size": list(fields["patch_size"]),
        "dims": list(fields["dims"]),
        "shapes": [list(s) for s in fields["shapes"]],
        "table": [float(w) for w in fields["table"]],
        "images": fields["images"],
        "axes": fields["axes"],
        "settings": fields["settings"],
        "jitter": fields["jitter"],
    }
    group = own_groups.begin(url, {STATE: "incomplete", _KEY: header})
    for number, classes in enumerate(fields["classes"]):
        array = group.create_array(
            str(number),
            shape=classes.shape,
            chunks=_chunks(classes.shape),
            dtype="uint8",
            compressors=[ZstdCodec(level=3), Crc32cCodec()],
            config={"write_empty_chunks": True},
            attributes={_KEY: "classes"},
        )
        array[...] = classes
    group.attrs.update({STATE: "complete"})


def _is_replaceable(url: str) -> bool:
    """Tell whether an index lies here, in whatever state, or what a kill left of one, or an empty group."""
    if _KEY in (own_groups.attributes_at(url) or {}):
        return True
    names = locations.list_names(url)
    if own_groups.ROOT in names:
        return len(names) == 1 and own_groups.attributes_at(url) == {}
    # The levels of an image have such names too.
    return own_groups.is_remains(url, str.isdecimal) and not any(_is_foreign(url, name) for name in names)


def _is_foreign(url: str, name: str) -> bool:
    """Tell whether an array is not marked as an index's; one without metadata is half deleted."""
    try:
        metadata = json.loads(locations.get(locations.join(url, name, own_groups.ROOT)))
    except ImageNotFound:
        # An array of Zarr's older format is not ours.
        return any(n.startswith(".z") for n in locations.list_names(locations.join(url, name)))
    except ValueError:
        return True
    return not isinstance(metadata, dict) or _KEY not in (metadata.get("attributes") or {})


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return chunks of about a million cells: whole planes first."""
    chunks, room = [], _CHUNK_CELLS
    for size in reversed(shape):
        chunks.append(max(min(size, room), 1))
        room //= chunks[-1]
    return tuple(reversed(chunks))


def read(url: str) -> dict[str, Any]:
    """Return the fields that :func:`write` stored.

    Raises
    ------
    ImageNotFound, NotOmeZarr
    IncompleteOutput
        Its writer has not finished.
    ModelError
        It is no patch index, or one of its fields is damaged; the message names it.
    """
    group = locations.open_group(url, "r")
    header = group.attrs.get(_KEY)
    if not isinstance(header, dict):
        raise ModelError("not a patch index", where=url, got="no header", remedy="make one with build_index")
    if group.attrs.get(STATE) != "complete":
        raise IncompleteOutput("the patch index was not finished", where=url, remedy="build it again")
    if header.get("version") != VERSION:
        raise ModelError(
            "a patch index of another version", where=url, got=header.get("version"), expected=VERSION
        )
    try:
        fields: dict[str, Any] = {
            "patch_size": (int(header["patch_size"][0]), int(header["patch_size"][1])),
            "dims": tuple(str(d) for d in header["dims"]),
            "shapes": [tuple(int(n) for n in shape) for shape in header["shapes"]],
            "table": np.array(header["table"], np.float32),
            "images": [dict(i) for i in header["images"]],
            "axes": [dict(a) for a in header["axes"]],
            "settings": dict(header["settings"]),
            "jitter": bool(header["jitter"]),
        }
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelError("a patch index with a damaged header", where=url, got=repr(error)) from error
    _check(url, fields)
    fields["classes"] = [_classes(group, url, number, fields) for number in range(len(fields["shapes"]))]
    return fields


def _check(url: str, fields: dict[str, Any]) -> None:
    table, dims, n = fields["table"], fields["dims"], len(fields["shapes"])
    checks = {
        "patch_size": min(fields["patch_size"]) >= 2,
        "dims": dims[-2:] == ("y", "x") and set(dims) <= {"t", "z", "y", "x"},
        "shapes": n > 0 and all(len(s) == len(dims) and min(s) > 0 for s in fields["shapes"]),
        "table": 0 < table.size <= 256 and bool(((table >= 0) & (table <= 1)).all()),
        "images": len(fields["images"]) == n,
        "axes": len(fields["axes"]) == n,
    }
    for name, good in checks.items():
        if not good:
            raise ModelError(
                "a damaged patch index",
                where=f"{url}, field {name}",
                got=fields[name],
                remedy="build it again",
            )


def _classes(
    group: zarr.Group, url: str, number: int, fields: dict[str, Any]
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    step = (1,) * (len(fields["dims"]) - 2) + fields["patch_size"]
    expected = Grid(fields["shapes"][number], step).counts
    with locations.translated(url):
        array = group.get(str(number))
        if not isinstance(array, zarr.Array) or array.shape != expected or array.dtype != np.uint8:
            raise ModelError(
                "a damaged patch index",
                where=f"{url}/{number}",
                expected=f"uint8 {expected}",
                remedy="build it again",
            )
        try:
            classes = np.asarray(array[...], np.uint8)
        except (ValueError, RuntimeError) as error:
            raise ModelError(
                "a damaged patch index", where=f"{url}/{number}", got=str(error), remedy="build it again"
            ) from error
    if classes.size and int(classes.max()) >= fields["table"].size:
        raise ModelError("a class without a weight", where=f"{url}/{number}", got=int(classes.max()))
    return classes
