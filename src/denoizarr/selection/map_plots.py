"""One plane of a filter map beside its image, as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from denoizarr.errors import BadRequest
from denoizarr.stores.images import ImageLike, as_image

from .filter_maps import cells_of, one_channel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A plot shows no more; larger planes are thinned.
_PLOT_VOXELS = 2048


def plot_plane(
    panels: Mapping[str | None, str],
    image: ImageLike,
    filter_map: xr.DataArray,
    threshold: float | None,
    std_threshold: float | None,
    *,
    t_idx: int | None,
    z_idx: int | None,
    origin: str | None = None,
) -> Figure:
    """Draw one plane of an image, its scores, and what the thresholds keep of it.

    Parameters
    ----------
    panels : mapping
        Label of each of the map's values, by its name along "statistic"; None where there is no such dim.
    image, filter_map
    threshold, std_threshold : float or None
        Of the first and of the second value.
    t_idx, z_idx : int or None
        The first time point and the middle plane unless told.
    origin : str, optional
        Where the thresholds come from, for the caption.

    Raises
    ------
    BadRequest
        No such plane; a map of another image; a threshold of a value that the map has not.
    """
    from denoizarr.figures.filter_maps import filter_map_figure

    if std_threshold is not None and len(panels) == 1:
        raise BadRequest("this filter has a single threshold", where="std_threshold", got=std_threshold)
    opened = as_image(image)
    if "c" in opened.dims and "c" not in filter_map.dims:
        opened = one_channel(opened, int(filter_map.attrs.get("ref_channel", 0)))
    cells = cells_of(filter_map, opened)
    chosen = {"t": 0 if t_idx is None else t_idx, "c": 0}
    if "z" in opened.dims:
        chosen["z"] = opened.sizes["z"] // 2 if z_idx is None else z_idx
    index = {d: i for d, i in chosen.items() if d in opened.dims}
    for dim, number in index.items():
        if not -opened.sizes[dim] <= number < opened.sizes[dim]:
            raise BadRequest("no such plane", where=dim, got=number, expected=f"0 to {opened.sizes[dim] - 1}")
    plane = opened.isel(index)
    steps = dict(zip(cells.dims, cells.step, strict=True))
    scores = filter_map.isel({d: i % opened.sizes[d] // steps[d] for d, i in index.items()}).compute()
    maps = {
        label: np.asarray(scores if name is None else scores.sel(statistic=name))
        for name, label in panels.items()
    }
    limits = {
        label: value
        for label, value in zip(maps, (threshold, std_threshold), strict=False)
        if value is not None
    }
    keep = (
        np.logical_and.reduce([maps[label] >= value for label, value in limits.items()]) if limits else None
    )
    height, width = cells.patch[-2:]
    thin = max(1, min(-(-max(plane.shape) // _PLOT_VOXELS), height, width))
    # A cell must stay a whole number of drawn pixels.
    while height % thin or width % thin:
        thin -= 1
    shown = ", ".join(f"{d} = {i}" for d, i in index.items())
    return filter_map_figure(
        np.asarray(plane[::thin, ::thin]),
        maps,
        keep,
        thresholds=limits,
        cell_shape=(height // thin, width // thin),
        title=f"Where to look: {filter_map.attrs['filter']}, patches of {' x '.join(map(str, cells.patch))}",
        plane_label=shown or None,
        origin=origin,
    )
