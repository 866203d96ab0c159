"""Other formats to OME-Zarr, through the engine: bounded in memory, resumable. And back to OME-TIFF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from denoizarr.engine.cluster import usable_cores
from denoizarr.engine.shares import Share
from denoizarr.engine.summary import RunSummary, added
from denoizarr.errors import BadRequest, ImageNotFound
from denoizarr.stores import locations
from denoizarr.stores.foreign import natural_order

from .conversion import Conversion, plan_conversion
from .layout import OutputLayout
from .nifti_export import NiftiExport, check_nifti, export_nifti
from .output import check_apart, check_free
from .save import copy_image
from .tiff_export import check_export, export_tiff

_SUFFIXES = (".ome.zarr", ".ome.tif", ".nii.gz", ".nii")


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
    each: str | None = None,
) -> RunSummary:
    """Write TIFF, PNG, npy or NIfTI files, or a Zarr image, as an OME-Zarr pyramid, an OME-TIFF or a NIfTI.

    Parameters
    ----------
    source : str, Path or sequence of them
        A file, a folder or glob of equal planes (stacked along a new first axis in natural order, so that
        plane2 comes before plane10), an OME-Zarr image, or a Zarr array (with ``axes``).
    destination : str or Path
        An OME-Zarr image; or a name that ends in .tif, .tiff or .btf, for an OME-TIFF (a BigTIFF where it is
        large): uncompressed, in pages, or in tiles where pages are large, written whole or not at all, so a
        conversion that was killed begins again. Or one that ends in .nii or .nii.gz: an image that came from
        NIfTI has its header, affine, b-values and directions again.
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
    each : {".ome.zarr", ".ome.tif", ".nii.gz", ".nii"}, optional
        Every source is an image of its own: a file, a folder of planes, a Zarr image, or each of those that a
        glob matches. They go into the folder ``destination`` under their names, with this ending, after all
        of them have been looked at.

    Returns
    -------
    RunSummary
        ``changes`` names what of the source did not survive.

    Raises
    ------
    ImageNotFound, UnsupportedStore, BadRequest, MetadataError, CorruptChunk, OutputExists, LedgerMismatch,
    NoSpace
    """
    sources: list[str | Path] = [source] if isinstance(source, str | Path) else list(source)
    if not sources:
        raise BadRequest("nothing to convert", expected="a file, a folder or a glob")
    plan = partial(
        plan_conversion,
        axes=axes,
        scale=scale,
        units=units,
        ome_version=ome_version,
        chunks=chunks,
        shards=shards,
        levels=levels,
        distributed=client is not None,
        shared=share is not None,
    )
    run = partial(
        _run,
        overwrite=overwrite,
        client=client,
        threads=threads or usable_cores(),
        progress=progress,
        share=None if share is None else Share(*share),
    )
    if each is None:
        return run(plan(sources, destination))
    if each not in _SUFFIXES:
        raise BadRequest("not what an image becomes", where="each", got=each, expected=" or ".join(_SUFFIXES))
    ones = _one_by_one(sources)
    names = _own_names(ones)
    planned = [
        plan([one], locations.join(destination, name + each)) for one, name in zip(ones, names, strict=True)
    ]
    for conversion in planned:
        _check(conversion, overwrite)
    return added(locations.join(destination), [run(conversion) for conversion in planned])


def _check(conversion: Conversion, overwrite: bool) -> None:
    """Refuse before any other image is begun what would be refused when it is this one's turn."""
    output = conversion.output
    if isinstance(output, NiftiExport):
        check_nifti(output, overwrite=overwrite)
        return
    if not isinstance(output, OutputLayout):
        check_export(output, overwrite=overwrite)
        return
    check_apart(output.url, conversion.found.reader.urls)
    if not overwrite:
        check_free(output.url)


def _run(
    conversion: Conversion,
    *,
    overwrite: bool,
    client: Any,
    threads: int,
    progress: bool,
    share: Share | None,
) -> RunSummary:
    found, output = conversion.found, conversion.output
    if isinstance(output, NiftiExport):
        summary = export_nifti(output, overwrite=overwrite, progress=progress)
        return replace(summary, changes=found.changes)
    if not isinstance(output, OutputLayout):
        summary = export_tiff(output, overwrite=overwrite, threads=threads, progress=progress)
        return replace(summary, changes=(*found.changes, *summary.changes))
    return copy_image(
        found.reader,
        output,
        overwrite=overwrite,
        client=client,
        threads=threads,
        progress=progress,
        changes=found.changes,
        share=share,
        prepare=found.prepare,
    )


def _one_by_one(sources: Sequence[str | Path]) -> list[str]:
    """Return the sources, each match of a glob one of them."""
    found: list[str] = []
    for source in sources:
        if not any(sign in str(source) for sign in "*?[") or locations.exists(source):
            found.append(str(source))
            continue
        matches = sorted(locations.matching(source), key=natural_order)
        if not matches:
            raise ImageNotFound("no image matches", where=str(source), remedy="check the pattern")
        found += matches
    return found


def _own_names(sources: Sequence[str]) -> tuple[str, ...]:
    """Return a name for every image: its own, numbered where several share one."""
    stems = (locations.name_of(source).split(".")[0] for source in sources)
    return locations.distinct(stem or "image" for stem in stems)
