"""One conversion: an image looked at, voxels apart, and what it is to become."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from denoizarr.errors import BadRequest
from denoizarr.stores import locations
from denoizarr.stores.foreign import describe_foreign, is_foreign, listed_reader, open_foreign, write_listing
from denoizarr.stores.images import as_image, reader_of
from denoizarr.stores.nifti import is_nifti_name
from denoizarr.stores.ome_zarr import NIFTI
from denoizarr.stores.sources import ImageReader

from .layout import OutputLayout, plan_layout
from .nifti_export import NiftiExport
from .output import ledger_url
from .save import extra_of, omero_of, world_of
from .series import block_of_series
from .tiff_export import SUFFIXES, TiffExport

_DEFAULT_UNIT = {"x": "micrometer", "y": "micrometer", "z": "micrometer", "t": "second"}
# A task takes the names of so many files along; of more, where they are listed.
_FEW_FILES = 64


@dataclass(frozen=True, slots=True)
class Found:
    """An image and what is known of it.

    Attributes
    ----------
    reader : ImageReader
    stored_axes : tuple of str
        In the order of the file.
    scale, translation, units : dict
        By dim.
    omero : dict
    changes : tuple of str
        What will not survive.
    extra : dict
        Attributes that are carried along untouched.
    prepare : callable or None
        Puts what workers need where they find it; called once the destination is claimed.
    """

    reader: ImageReader
    stored_axes: tuple[str, ...]
    scale: dict[str, float]
    translation: dict[str, float]
    units: dict[str, str | None]
    omero: dict[str, Any] = field(default_factory=dict)
    changes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Conversion:
    """What an image is to become.

    Attributes
    ----------
    found : Found
    output : OutputLayout, TiffExport or NiftiExport
    """

    found: Found
    output: OutputLayout | TiffExport | NiftiExport


def find_image(
    sources: Sequence[str | Path], axes: str | None, destination: str, *, distributed: bool
) -> Found:
    """Open what files, a folder, a glob or a Zarr store are, as one image.

    Raises
    ------
    ImageNotFound, UnsupportedStore, BadRequest, MetadataError, CorruptChunk
    """
    patterns = any(sign in str(sources[0]) for sign in "*?[")
    if (
        len(sources) == 1
        and not patterns
        and not locations.is_file(sources[0])
        and not is_foreign(sources[0])
    ):
        image = as_image(sources[0], axes)
        reader = reader_of(image)
        scale, translation, units = (dict(zip(reader.dims, found, strict=True)) for found in world_of(image))
        stored = tuple(axes) if axes is not None else reader.dims
        return Found(reader, stored, scale, translation, units, omero_of(image), extra=extra_of(image))  # type: ignore[arg-type]
    source, said = describe_foreign(sources, axes)
    reader, prepare = open_foreign(source), None
    if distributed and len(source.paths) > _FEW_FILES:
        listing = locations.join(ledger_url(destination), "files.json")
        reader = listed_reader(source, listing)

        def prepare() -> None:
            write_listing(source, listing)

    channels = dict(zip(reader.dims, reader.shape, strict=True)).get("c", 1)
    return Found(
        reader,
        source.axes,
        {d: said.scale.get(d, 1.0) for d in reader.dims},
        {d: said.translation.get(d, 0.0) for d in reader.dims},
        {d: said.units.get(d) for d in reader.dims},
        said.omero if len(said.omero.get("channels", ())) == channels else {},
        said.losses,
        said.extra,
        prepare,
    )


def plan_conversion(
    sources: Sequence[str | Path],
    destination: str | Path,
    *,
    axes: str | None = None,
    scale: Mapping[str, float] | Sequence[float] | None = None,
    units: Mapping[str, str] | Sequence[str] | None = None,
    levels: int | None = None,
    distributed: bool = False,
    shared: bool = False,
    **layout: Any,
) -> Conversion:
    """Look at one image and decide what is written of it; reads no voxels, and writes nothing.

    Parameters
    ----------
    sources, destination, axes, scale, units, levels, **layout
        As ``convert`` takes them.
    distributed, shared : bool
        Whether workers of a cluster, or other processes, have part in it.
    """
    where = locations.join(destination)
    found = find_image(sources, axes, where, distributed=distributed)
    world, named = dict(found.scale), dict(found.units)
    for dim, value in _by_axis(scale, found.stored_axes, "scale").items():
        if not np.isfinite(float(value)) or float(value) <= 0:
            raise BadRequest("a voxel has a positive size", where=f"scale along {dim}", got=value)
        world[dim] = float(value)
        named[dim] = named[dim] or _DEFAULT_UNIT.get(dim)
    named |= {dim: str(unit) for dim, unit in _by_axis(units, found.stored_axes, "units").items()}
    if found.extra and (scale is not None or units is not None or axes is not None):
        lost = "the file's own header: another scale, unit or order of axes was asked for"
        found = replace(found, extra={}, changes=(*found.changes, lost))
    reader, name = found.reader, locations.name_of(where).split(".")[0]
    if where.lower().endswith(SUFFIXES) or is_nifti_name(where):
        refused = [key for key in ("chunks", "shards") if layout.get(key) is not None]
        refused += ["client"] * distributed + ["share"] * shared
        if refused:
            raise BadRequest(
                "a file is written by one process, in its own order",
                where=locations.redact(where),
                got=", ".join(refused),
                remedy="leave it out, or name the destination NAME.ome.zarr",
            )
        if is_nifti_name(where):
            return Conversion(found, NiftiExport(reader, where, world, named, found.extra))
        scales, starts = (tuple(of[d] for d in reader.dims) for of in (world, found.translation))
        signs = tuple(named[d] for d in reader.dims)
        if levels is not None and levels < 1:
            raise BadRequest("an image needs a level", where="levels", got=levels, expected="1 or more")
        export = TiffExport(reader, where, scales, starts, signs, found.omero, name, levels or 1)
        return Conversion(found, export)
    if NIFTI in found.extra and len(reader.shape) == 4 and not any(map(layout.get, ("chunks", "shards"))):
        # Volumes of one object, which are computed with one another; a time series of planes is not.
        layout |= _of_series(reader, layout.get("ome_version"))
    planned = plan_layout(
        where,
        dims=reader.dims,
        shape=reader.shape,
        dtype=reader.dtype,
        scale=[world[d] for d in reader.dims],
        translation=[found.translation[d] for d in reader.dims],
        units=[named[d] for d in reader.dims],
        levels=levels,
        name=name,
        omero=found.omero,
        extra=found.extra,
        decoded=reader.chunks,
        **layout,
    )
    return Conversion(found, planned)


def _of_series(reader: ImageReader, ome_version: str | None) -> dict[str, Any]:
    n, *_ = reader.shape
    block = block_of_series(reader.shape, reader.chunks, reader.dtype.itemsize)
    if ome_version == "0.4":
        return {"chunks": (n, *block)}
    return {"chunks": (1, *block), "shards": (n, *block)}


def _by_axis(
    given: Mapping[str, Any] | Sequence[Any] | None, stored: tuple[str, ...], label: str
) -> dict[str, Any]:
    """Return a dict by axis from a dict or from one value per stored axis."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        if len(given) != len(stored):
            raise BadRequest(
                f"{label} needs one value per axis",
                got=list(given),
                expected=f"{len(stored)} for {''.join(stored)}",
            )
        return dict(zip(stored, given, strict=True))
    unknown = sorted(set(given) - set(stored))
    if unknown:
        raise BadRequest(
            f"{label} names axes that the image lacks",
            got=", ".join(unknown),
            expected=f"some of {', '.join(stored)}",
        )
    return dict(given)
