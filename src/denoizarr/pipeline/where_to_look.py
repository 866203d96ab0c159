"""From a job's settings to what its indices are built from, and where a run keeps what it measured."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from denoizarr.selection.filters import MaskPatchFilter, filter_of
from denoizarr.selection.image_scores import ScorePlaces
from denoizarr.selection.index_settings import IndexSettings, checked_settings
from denoizarr.selection.regions_of_interest import RegionOfInterest
from denoizarr.stores import locations

from .config import JobConfig, PatchFilterSettings, StageSettings


def settings_of(job: JobConfig, images: Sequence[xr.DataArray], stage: StageSettings) -> IndexSettings:
    """Return what the index of one stage is built from; refuse what does not fit the images.

    Raises
    ------
    BadRequest, MisalignedGrid, PatchTooLarge
    """
    chosen = job.patch_filter
    score_filter = filter_of(
        "none" if chosen.name == "mask" else chosen.name,
        threshold=None if chosen.threshold == "auto" else float(chosen.threshold),
        std_threshold=chosen.std_threshold,
        ref_channel=chosen.ref_channel,
        coverage=chosen.coverage,
    )
    filters = [f for f in (score_filter, _mask_filter(chosen)) if f is not None]
    return checked_settings(
        images,
        stage.patch_shape,
        patch_filter=filters,
        mask=None if chosen.mask is None else list(chosen.masks),
        roi=_roi(stage, chosen.ref_channel),
        filtered_patch_prob=chosen.filtered_patch_prob,
        seed=0,
    )


def _mask_filter(settings: PatchFilterSettings) -> MaskPatchFilter | None:
    if settings.mask is None:
        return None
    return MaskPatchFilter(settings.mask_coverage, settings.ref_channel, settings.mask_missing)


def _roi(stage: StageSettings, ref_channel: int) -> RegionOfInterest | None:
    if not stage.use_roi:
        return None
    return RegionOfInterest(
        threshold=stage.roi_threshold,
        select_background=stage.select_background,
        background=stage.roi_background,
        scale_factor=stage.scale_factor,
        sigma=stage.roi_sigma,
        equalize=stage.roi_equalize,
        overlap=stage.roi_overlap,
        ref_channel=ref_channel,
    )


def places_of(
    job: JobConfig, names: Sequence[str], name: str, settings: IndexSettings, first: IndexSettings
) -> ScorePlaces:
    """Return where a run keeps the measurements of one image.

    Parameters
    ----------
    names : sequence of str
        Of all images of the job.
    name : str
        Of this one.
    settings : IndexSettings
        Of the stage.
    first : IndexSettings
        Of the job's first stage: what is measured alike is kept once, for both.
    """

    def place(kind: str, shared: bool) -> str:
        stem = kind if shared else f"{kind}_stage2"
        parts = (f"{stem}.zarr",) if len(names) == 1 else (stem, f"{name}.zarr")
        return locations.join(job.output.url, *parts)

    same = settings.patch == first.patch
    alike = settings.roi is None or first.roi is None
    if settings.roi is not None and first.roi is not None:
        alike = settings.roi.level_identity() == first.roi.level_identity()
    return ScorePlaces(
        filter_map=place("filter_map", same),
        mask=place("mask_coverage", same),
        roi=place("regions_of_interest", same and alike),
    )
