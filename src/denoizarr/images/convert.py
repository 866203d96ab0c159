"""Other formats to OME-Zarr, through the engine: bounded in memory, resumable. And back to OME-TIFF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from denoizarr.engine.cluster import usable_cores
from denoizarr.engine.shares import Share
from denoizarr.engine.summary import RunSummary
from denoizarr.errors import BadRequest
from denoizarr.stores import locations
from denoizarr.stores.foreign import describe_foreign, is_foreign, open_foreign
from denoizarr.stores.images import as_image, reader_of

from .layout import plan_layout
from .save import copy_image, omero_of, world_of
from .tiff_export import SUFFIXES, TiffExport, export_tiff

_DEFAULT_UNIT = {"x": "micrometer", "y": "micrometer", "z": "micrometer", "t": "second"}


def convert(
    source: str | Path | Sequence[str | Path],
    destination: str | Path,
    *,
    axes: str | None = None,
    scale: Mapping[str, float] | Sequence[float] | None = None,
    units: Mapping[str, str] | Sequence[str] | None = None,
    ome_version: str = "0.5",
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
    levels: int | None = None,
    overwrite: bool = False,
    client: Any = None,
    threads: int | None = None,
    progress: bool = False,
    share: tuple[int, int] | None = None,
) -> RunSummary:
    """Write TIFF, OME-TIFF, PNG or npy files, or a plain Zarr array, as an OME-Zarr pyramid; or as OME-TIFF.

    Parameters
    ----------
    source : str, Path or sequence of them
        A file, a folder or glob of equal planes (stacked along a new first axis in natural order, so that
        plane2 comes before plane10), or a Zarr array (with ``axes``).
    destination : str or Path
        An OME-Zarr image; or a name that ends in .tif, .tiff or .btf, for an OME-TIFF (a BigTIFF where it is
        large): uncompressed, in pages, or in tiles where pages are large, written whole or not at all, so a
        conversion that was killed begins again.
    axes : str, optional
        Axis names in stored order, all of them, such as "zyx"; by default what the files say, else z.
    scale, units : one per axis in stored order, or a dict by axis, optional
        Voxel size and UDUNITS name; by default what the files say. A scale without a unit is in
        micrometres (seconds along t).
    ome_version, chunks, shards, levels, overwrite
        As in ``save_image``; chunks and shards per dim in the order t, c, z, y, x. A TIFF has neither, and of
        levels, halved along y and x and kept as SubIFDs, one by default.
    client : distributed.Client, optional
    threads : int, optional
        Of this process, where there is no client; by default one per core.
    progress : bool
    share : (int, int), optional
        (i, n), i from 1 to n: every n-th batch of blocks only, beside other processes, without Dask. A call
        without it, when all are done, finishes the image.

    Returns
    -------
    RunSummary
        ``changes`` names what of the source did not survive.

    Raises
    ------
    ImageNotFound, UnsupportedStore, BadRequest, MetadataError, OutputExists, LedgerMismatch, NoSpace
    """
    sources: list[str | Path] = [source] if isinstance(source, str | Path) else list(source)
    if not sources:
        raise BadRequest("nothing to convert", expected="a file, a folder or a glob")
    files = (
        len(sources) > 1 or any(sign in str(sources[0]) for sign in "*?[") or locations.is_file(sources[0])
    )
    if files or is_foreign(sources[0]):
        foreign, metadata = describe_foreign(sources, axes)
        reader = open_foreign(foreign)
        stored = foreign.axes
        world = {d: metadata.scale.get(d, 1.0) for d in reader.dims}
        named: dict[str, str | None] = {d: metadata.units.get(d) for d in reader.dims}
        translation = tuple(metadata.translation.get(d, 0.0) for d in reader.dims)
        changes = metadata.losses
        channels = dict(zip(reader.dims, reader.shape, strict=True)).get("c", 1)
        omero = metadata.omero if len(metadata.omero.get("channels", ())) == channels else {}
    else:
        changes = ()
        image = as_image(sources[0], axes)
        reader = reader_of(image)
        stored = tuple(axes) if axes is not None else reader.dims
        found_scale, translation, found_units = world_of(image)
        omero = omero_of(image)
        world, named = (
            dict(zip(reader.dims, found_scale, strict=True)),
            dict(zip(reader.dims, found_units, strict=True)),
        )
    asked_scale = _by_axis(scale, stored, "scale")
    asked_units = _by_axis(units, stored, "units")
    for dim, value in asked_scale.items():
        if not np.isfinite(float(value)) or float(value) <= 0:
            raise BadRequest("a voxel has a positive size", where=f"scale along {dim}", got=value)
        world[dim] = float(value)
        named[dim] = named[dim] or _DEFAULT_UNIT.get(dim)
    named |= {dim: str(unit) for dim, unit in asked_units.items()}
    name = Path(str(destination)).name.split(".")[0]
    ordered = [world[d] for d in reader.dims], [named[d] for d in reader.dims]
    if str(destination).lower().endswith(SUFFIXES):
        refused = {"chunks": chunks, "shards": shards, "client": client, "share": share}
        _refuse_for_tiff([key for key, value in refused.items() if value is not None], destination)
        job = TiffExport(
            reader,
            locations.join(destination),
            tuple(ordered[0]),
            tuple(translation),
            tuple(ordered[1]),
            dict(omero),
            name,
            levels=1 if levels is None else levels,
        )
        summary = export_tiff(job, overwrite=overwrite, threads=threads or usable_cores(), progress=progress)
        return replace(summary, changes=(*changes, *summary.changes))
    layout = plan_layout(
        locations.join(destination),
        dims=reader.dims,
        shape=reader.shape,
        dtype=reader.dtype,
        scale=ordered[0],
        translation=translation,
        units=ordered[1],
        ome_version=ome_version,
        chunks=chunks,
        shards=shards,
        levels=levels,
        name=name,
        omero=omero,
        decoded=reader.chunks,
    )
    return copy_image(
        reader,
        layout,
        overwrite=overwrite,
        client=client,
        threads=threads or usable_cores(),
        progress=progress,
        changes=changes,
        share=None if share is None else Share(*share),
    )


def _refuse_for_tiff(names: Sequence[str], destination: str | Path) -> None:
    if names:
        raise BadRequest(
            "a TIFF file is written by one process, in pages",
            where=locations.redact(str(destination)),
            got=", ".join(names),
            remedy="leave it out, or name the destination NAME.ome.zarr",
        )


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
