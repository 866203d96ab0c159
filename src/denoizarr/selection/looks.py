"""What the command line shows of a filter map and of an index: lines, numbers, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from denoizarr.engine.shares import Share
from denoizarr.errors import BadRequest
from denoizarr.figures.canvas import png_of
from denoizarr.stores import locations
from denoizarr.stores.images import as_images

from .cells import PatchSize
from .filters import MaskPatchFilter, PatchFilter
from .map_plots import plot_plane
from .on_disk import write_filter_map, write_index
from .regions_of_interest import RegionOfInterest, plot_roi_patches

_DRAWN = 2000
_THRESHOLDS = ("threshold", "mean_threshold", "std_threshold")


def look_at_filter_map(
    url: str,
    destination: str,
    patch_size: PatchSize,
    patch_filter: PatchFilter,
    *,
    mask: str | None = None,
    plot: Path | None = None,
    t_idx: int | None = None,
    z_idx: int | None = None,
    threads: int = 1,
    share: Share | None = None,
) -> dict[str, Any]:
    """Write a filter map and say what it shows; of a share, what is left to do.

    Returns
    -------
    dict
        JSON-able, with ``lines`` for people.
    """
    _check_plot(plot)
    _check_plane(as_images(url)[0], t=t_idx, z=z_idx)
    found = write_filter_map(
        url, destination, patch_size, patch_filter, mask=mask, threads=threads, share=share
    )
    if found is None:
        return _of_share("map", destination, share)
    resolved = patch_filter.resolved(found)
    given = getattr(patch_filter, patch_filter.threshold_name) is not None
    origin = "as told" if given else "the default"
    reason = f"{patch_filter.threshold_name} {resolved.main_threshold():g}, {origin}"
    second = getattr(patch_filter, "std_threshold", None)
    if not given and not isinstance(patch_filter, MaskPatchFilter):
        suggestion = patch_filter.suggestion(found)
        reason = suggestion.sentence()
        origin = "suggested from the scores" if suggestion.method != "none" else "no background was found"
    kept = cells = 0
    for box_values in _blocks(found, len(resolved.thresholds)):
        keep = resolved.keeps(box_values, resolved.thresholds)
        kept, cells = kept + int(keep.sum()), cells + keep.size
    reason += "" if second is None else f"; std_threshold {second:g}, as told"
    lines = [f"map {destination}, {cells} cells", reason, f"{kept} cells kept, {cells - kept} background"]
    if plot is not None:
        figure = plot_plane(
            type(patch_filter).panels(),
            as_images(url)[0],
            found,
            resolved.main_threshold(),
            second,
            t_idx=t_idx,
            z_idx=z_idx,
            origin=origin,
        )
        locations.put(str(plot), png_of(figure))
        lines.append(f"picture {plot}")
    return {
        "lines": lines,
        "map": destination,
        "cells": cells,
        "kept": kept,
        "thresholds": list(resolved.thresholds),
        "origin": origin,
    }


def _blocks(filter_map: Any, n_values: int) -> Any:
    """Yield the map a part at a time, all its values together."""
    parts = [filter_map] if n_values == 1 else [filter_map.isel(statistic=k) for k in range(n_values)]
    for index in np.ndindex(parts[0].data.numblocks):
        arrays = [np.asarray(part.data.blocks[index].compute()) for part in parts]
        yield arrays[0] if n_values == 1 else np.stack(arrays)


def look_at_index(
    urls: Sequence[str],
    destination: str,
    patch_size: PatchSize,
    filters: Sequence[PatchFilter],
    *,
    masks: Sequence[str] | None = None,
    roi: RegionOfInterest | None = None,
    filtered_patch_prob: float = 0.1,
    seed: int = 0,
    plot: Path | None = None,
    threads: int = 1,
    share: Share | None = None,
) -> dict[str, Any]:
    """Write an index and say what it holds; of a share, what is left to do.

    Returns
    -------
    dict
        JSON-able, with ``lines`` for people.
    """
    _check_plot(plot)
    index = write_index(
        list(urls),
        destination,
        patch_size,
        patch_filter=list(filters),
        mask=None if masks is None else list(masks),
        roi=roi,
        filtered_patch_prob=filtered_patch_prob,
        seed=seed,
        threads=threads,
        share=share,
    )
    if index is None:
        return _of_share("index", destination, share)
    lines = [f"index {destination}", *_thresholds_in(index.settings), index.summary()]
    if plot is not None:
        origins = index.sample(_DRAWN, seed)
        if len(index.shapes) > 1:
            origins = origins[origins[:, 0] == 0, 1:]
        figure = plot_roi_patches(
            as_images(list(urls))[0], origins, index.patch_size, title="Patches drawn as training draws them"
        )
        locations.put(str(plot), png_of(figure))
        lines.append(f"picture {plot}")
    return {
        "lines": lines,
        "index": destination,
        "cells": index.n_cells,
        "patches": index.n_patches,
        "background": index.n_background,
        "settings": index.settings,
    }


def _of_share(kind: str, destination: str, share: Share | None) -> dict[str, Any]:
    assert share is not None, "all of it has been measured"
    shown = f"{share.number}/{share.count}"
    left = "when all are, run once more without --blocks to finish"
    return {"lines": [f"share {shown} of {destination} is done; {left}"], kind: destination, "blocks": shown}


def _thresholds_in(settings: Mapping[str, Any]) -> list[str]:
    """Return a line with the thresholds that an index was made with, where there are any."""
    found = [f"{name} {settings[name]:g}" for name in _THRESHOLDS if settings.get(name) is not None]
    if "mask" in settings:
        found.append(f"mask coverage {settings['mask']['coverage']:g}")
    name = settings.get("name", "mask" if "mask" in settings else "no filter")
    return [f"{name}: {', '.join(found)}"] if found else []


def _check_plane(image: xr.DataArray, **chosen: int | None) -> None:
    """Refuse a plane that the image has not, before an hour's work and not after."""
    for dim, number in chosen.items():
        size = int(image.sizes.get(dim, 1))
        if number is not None and not (dim in image.dims and -size <= number < size):
            raise BadRequest(
                "no such plane",
                where=f"--{dim}-idx",
                got=number,
                expected=f"0 to {size - 1}" if dim in image.dims else f"none: the image has no {dim}",
            )


def _check_plot(plot: Path | None) -> None:
    if plot is not None and plot.suffix.lower() != ".png":
        raise BadRequest(
            "not the name of a picture", where="--plot", got=str(plot), expected="a name in .png"
        )
