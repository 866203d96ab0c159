"""The patch index on disk: one uint8 array per image in a Zarr group, everything else in its attributes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from denoizarr.errors import ImageNotFound, IncompleteOutput, ModelError, OutputExists
from denoizarr.geometry.grids import Grid
from denoizarr.stores import locations
from denoizarr.stores.ome_zarr import STATE

from . import own_groups
from .cell_classes import N_CLASSES, CellClasses, Classes, piece_shape
from .image_statistics import ImageStatistics

VERSION = 1
_KEY = "denoizarr.index"
_STATISTICS = "denoizarr.statistics"


def write(url: str, fields: dict[str, Any]) -> None:
    """Write the fields of a ``PatchIndex``; the state is "complete" only when all bytes are there.

    Raises
    ------
    OutputExists
        Something else lies at ``url``.
    """
    check_replaceable(url)
    if locations.exists(url):
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
            chunks=piece_shape(classes.shape),
            dtype="uint8",
            compressors=[ZstdCodec(level=3), Crc32cCodec()],
            config={"write_empty_chunks": True},
            attributes={_KEY: "classes"},
        )
        for box in Grid(classes.shape, tuple(array.chunks)):
            array[box.slices] = classes[box.slices]
    known = fields["statistics"]
    counted = {} if known is None else {_STATISTICS: [s.to_json() for s in known]}
    group.attrs.update({STATE: "complete", **counted})


def check_replaceable(url: str) -> None:
    """Refuse to write where something else than an index lies.

    Raises
    ------
    OutputExists
    """
    if locations.exists(url) and locations.list_names(url) and not _is_replaceable(url):
        raise OutputExists(
            "something else than a patch index lies here", where=url, remedy="choose another name"
        )


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
            "patch_size": tuple(int(n) for n in header["patch_size"]),
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
    fields["statistics"] = _statistics(group, url, len(fields["shapes"]))
    fields["classes"] = [_classes(group, url, number, fields) for number in range(len(fields["shapes"]))]
    return fields


def _statistics(group: zarr.Group, url: str, n_images: int) -> list[ImageStatistics] | None:
    found: Any = group.attrs.get(_STATISTICS)
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != n_images:
        raise ModelError(
            "statistics of other images", where=url, expected=f"those of {n_images}", remedy="build it again"
        )
    try:
        return [ImageStatistics.from_json(image) for image in found]
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise ModelError(
            "damaged statistics of a patch index", where=url, got=repr(error), remedy="build it again"
        ) from error


def _check(url: str, fields: dict[str, Any]) -> None:
    table, dims, n = fields["table"], fields["dims"], len(fields["shapes"])
    checks = {
        "patch_size": len(fields["patch_size"]) in (2, 3) and min(fields["patch_size"]) >= 1,
        "dims": dims == tuple(d for d in "tzyx" if d in dims)
        and ("z", "y", "x")[-len(fields["patch_size"]) :] == dims[-len(fields["patch_size"]) :],
        "shapes": n > 0 and all(len(s) == len(dims) and min(s) > 0 for s in fields["shapes"]),
        "table": 0 < table.size <= N_CLASSES and bool(((table >= 0) & (table <= 1)).all()),
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


def _classes(group: zarr.Group, url: str, number: int, fields: dict[str, Any]) -> CellClasses:
    step = (1,) * (len(fields["dims"]) - len(fields["patch_size"])) + fields["patch_size"]
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
            classes = CellClasses.of_pieces(expected, _pieces(array, len(fields["table"]), f"{url}/{number}"))
        except (ValueError, RuntimeError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                "a damaged patch index", where=f"{url}/{number}", got=str(error), remedy="build it again"
            ) from error
    return classes


def _pieces(array: zarr.Array[Any], n_classes: int, where: str) -> Iterator[Classes]:
    """Yield the stored classes in C order; not by the file's own chunks, which may be anything."""
    for box in Grid(tuple(array.shape), piece_shape(tuple(array.shape))):
        piece = np.asarray(array[box.slices], np.uint8)
        if piece.size and int(piece.max()) >= n_classes:
            raise ModelError("a class without a weight", where=where, got=int(piece.max()))
        yield piece
