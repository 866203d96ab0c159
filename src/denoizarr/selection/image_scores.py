"""All that is measured of one image before its cells are weighed: once, resumable, kept where told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import xarray as xr

from denoizarr.engine.ledger import Ledger
from denoizarr.engine.shares import Share
from denoizarr.stores.images import reader_of
from denoizarr.stores.sources import ImageReader

from .filter_maps import one_channel
from .image_statistics import ImageStatistics
from .index_settings import IndexSettings
from .regions_of_interest import roi_windows
from .roi_windows import RoiWindows
from .survey import survey


@dataclass(frozen=True, slots=True)
class ScorePlaces:
    """Where the measurements of one image are kept, each beside its ledger; None is not to keep them.

    Attributes
    ----------
    filter_map, mask, roi : str or None
        Zarr groups.
    """

    filter_map: str | None = None
    mask: str | None = None
    roi: str | None = None


@dataclass(frozen=True, slots=True)
class ImageScores:
    """What was measured.

    Attributes
    ----------
    image : DataArray
    statistics : ImageStatistics or None
        Counted in the same pass as the filter's score.
    filter_map, mask_map : DataArray or None
        One value per cell, lazy, without c.
    windows : RoiWindows or None
    """

    image: xr.DataArray
    statistics: ImageStatistics | None = None
    filter_map: xr.DataArray | None = None
    mask_map: xr.DataArray | None = None
    windows: RoiWindows | None = None


def score_image(
    image: xr.DataArray,
    settings: IndexSettings,
    number: int = 0,
    *,
    places: ScorePlaces | None = None,
    statistics: bool = False,
    client: Any = None,
    threads: int = 1,
    progress: bool = True,
    share: Share | None = None,
) -> ImageScores:
    """Measure what the settings ask for.

    Parameters
    ----------
    image : DataArray
    settings : IndexSettings
    number : int
        Of the image, for its mask.
    places : ScorePlaces, optional
        Makes the work resumable, and what is done already is not done again.
    statistics : bool
        Count the voxels even where no filter needs a pass over them.
    client : distributed.Client, optional
    threads : int
        Without a client.
    progress : bool
    share : Share, optional
        Do only this share, of all but regions of interest, which come last and read a coarse level; needs
        places.

    Raises
    ------
    ShareDone
        The share of a pass is done, and not all the others.
    """
    where = places or ScorePlaces()
    how: dict[str, Any] = {"client": client, "threads": threads, "progress": progress}
    # A filter that is off is scored all the same where the voxels are read anyway: another index may want it.
    score_filter = settings.score_filter if statistics else settings.applied_filter
    counted, filter_map, mask_map, windows = None, None, None, None
    if score_filter is not None or statistics:
        names = () if score_filter is None else (score_filter.score_name,)
        coverage = None if score_filter is None else score_filter.score.coverage
        found = survey(
            image,
            patch_size=settings.patch,
            names=names,
            coverage=coverage,
            destination=where.filter_map,
            ledger=_ledger(where.filter_map, reader_of(image), settings),
            share=share,
            **how,
        )
        counted = found.statistics
        if score_filter is not None:
            whole = found.maps[score_filter.score_name]
            filter_map = one_channel(whole, score_filter.ref_channel if "c" in whole.dims else None)
    if settings.mask_filter is not None:
        reader = settings.masks[number]
        mask_map = survey(
            one_channel(image, 0),
            patch_size=settings.patch,
            names=("mask",),
            reader=reader,
            destination=where.mask,
            ledger=_ledger(where.mask, reader, settings),
            share=share,
            **how,
        ).maps["mask"]
    if settings.roi is not None and share is None:
        ledger = _ledger(where.roi, reader_of(image), settings, roi=settings.roi.level_identity())
        if where.roi is None:
            # A cluster has nowhere to put them.
            how["client"] = None
        windows = roi_windows(
            image, settings.patch, settings.roi, destination=where.roi, ledger=ledger, **how
        )
    return ImageScores(image, counted, filter_map, mask_map, windows)


def _ledger(url: str | None, reader: ImageReader, settings: IndexSettings, **more: Any) -> Ledger | None:
    if url is None:
        return None
    identity = {"kind": "scores", "input": reader.identity, "patch_size": list(settings.patch), **more}
    return Ledger.claim(f"{url}.ledger", identity)
