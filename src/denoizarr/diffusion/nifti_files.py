"""Patch2Self from or to NIfTI files, by way of OME-Zarr: files are not written in many places at once.

::

    dwi.nii.gz --> <destination>.work/input.ome.zarr --> .../output.ome.zarr --> denoised.nii.gz
                   each step resumes; the folder is deleted once the last one is done
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import xarray as xr

from denoizarr.engine.summary import RunSummary
from denoizarr.errors import OutputExists
from denoizarr.images.convert import convert
from denoizarr.stores import locations
from denoizarr.stores.images import as_image
from denoizarr.stores.nifti import is_nifti_name


def by_way_of_zarr(
    source: Any,
    destination: str | Path,
    denoise: Callable[[xr.DataArray, str | Path], RunSummary],
    *,
    overwrite: bool,
    progress: bool,
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

    Raises
    ------
    OutputExists
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
    work = f"{where.rstrip('/')}.work"
    image = source
    if isinstance(source, str | Path) and is_nifti_name(source):
        image = locations.join(work, "input.ome.zarr")
        convert(source, image, levels=1, progress=progress)
    target = locations.join(work, "output.ome.zarr") if to_file else where
    summary = denoise(as_image(image), target)
    if to_file:
        convert(target, where, overwrite=overwrite, progress=progress)
    locations.delete_prefix(work)
    return replace(summary, destination=where)
