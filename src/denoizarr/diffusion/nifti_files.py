"""Patch2Self from or to NIfTI files, by way of OME-Zarr: files are not written in many places at once.

::

    dwi.nii.gz --> <destination>.work/input-ab12.ome.zarr --> .../output-ab12.ome.zarr --> denoised.nii.gz
                   each step resumes; the folder is deleted once the last one is done

The names have a digest of the file as it is: another file under the same name is another job.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import xarray as xr

from denoizarr.engine.summary import RunSummary
from denoizarr.errors import OutputExists
from denoizarr.images.convert import convert
from denoizarr.images.output import check_apart, check_free, ledger_url
from denoizarr.stores import locations
from denoizarr.stores.foreign import describe_foreign
from denoizarr.stores.images import as_image
from denoizarr.stores.nifti import is_nifti_name
from denoizarr.stores.records import digest


def by_way_of_zarr(
    source: Any,
    destination: str | Path,
    denoise: Callable[[xr.DataArray, str | Path], RunSummary],
    *,
    overwrite: bool,
    progress: bool,
    then: Callable[[xr.DataArray, str], None] | None = None,
) -> RunSummary:
    """Convert where it is needed, denoise, convert back.

    Parameters
    ----------
    source : str, Path or any image
        Or a NIfTI file.
    destination : str or Path
        A NIfTI file or an OME-Zarr image.
    denoise : callable
        ``denoise(image, url)``.
    overwrite, progress : bool
    then : callable, optional
        ``then(image, url)``: of what was denoised and what came of it, both in OME-Zarr, once the output
        is where it belongs.

    Raises
    ------
    OutputExists, BadRequest
        Before any work.
    """
    where = locations.join(destination)
    to_file = is_nifti_name(where)
    if to_file and locations.exists(where) and not overwrite:
        raise OutputExists(
            "something lies at the destination already",
            where=locations.redact(where),
            remedy="choose another destination or pass overwrite",
        )
    if not to_file:
        check_free(where, overwrite=overwrite)
    named = isinstance(source, str | Path)
    if named:
        check_apart(where, [locations.join(source)])
    from_file = named and is_nifti_name(source)
    state = _state_of(source) if from_file else "stored"
    work = f"{where.rstrip('/')}.work"
    taken, made = (locations.join(work, f"{name}-{state}.ome.zarr") for name in ("input", "output"))
    ours = [url for one in (taken, made) for url in (one, ledger_url(one))]
    if overwrite:
        _delete(ours)
    changes: tuple[str, ...] = ()
    if from_file:
        changes = convert(source, taken, levels=1, progress=progress).changes
    target = made if to_file else where
    image = as_image(taken if from_file else source)
    summary = denoise(image, target)
    if to_file:
        convert(target, where, overwrite=overwrite, progress=progress)
    if then is not None:
        then(image, target)
    _delete(ours)
    if locations.exists(work) and not locations.list_names(work):
        locations.delete_prefix(work)
    return replace(summary, destination=where, changes=(*changes, *summary.changes))


def _state_of(source: str | Path) -> str:
    """Return what tells a file, and what lies beside it, from what it was before."""
    found, said = describe_foreign([source])
    written = locations.local_path(source).stat().st_mtime_ns
    return digest([asdict(found), said.extra, written])[:12]


def _delete(urls: list[str]) -> None:
    for url in urls:
        if locations.exists(url):
            locations.delete_prefix(url)
