"""Filter maps as lazy arrays: one Dask task per large box of cells."""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from denoizarr.errors import BadRequest
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import Grid
from denoizarr.stores.images import ImageLike, as_image, reader_of
from denoizarr.stores.records import digest
from denoizarr.stores.sources import ImageReader

from .cells import Cells, PatchSize, patch_pair
from .percentiles import added, bounds_of, coarse_counts, fine_counts, locate
from .scores import Bounds, Score

UNITS = {"max": "intensity", "mean_std": "intensity", "shannon": "bit"}


def lazy_map(
    image: ImageLike, patch_size: PatchSize, score: Score, *, ref_channel: int | None = None
) -> xr.DataArray:
    """Return the map of one score over an image, computed when it is asked for.

    Parameters
    ----------
    image : URL, path, zarr.Array, DataArray, Dask or numpy array
    patch_size : int or (y, x)
    score : Score
    ref_channel : int, optional
        Score this channel only; the map then has no c.

    Returns
    -------
    float32 DataArray, one value per cell
        Dims t, c, z, y, x (those that the image has), after "statistic" for mean_std; coordinates at the cell
        centres, in the image's units.
    """
    opened = one_channel(as_image(image), ref_channel)
    reader = reader_of(opened)
    cells = Cells(
        tuple(str(d) for d in opened.dims), tuple(int(n) for n in opened.shape), patch_pair(patch_size)
    )
    grid = cells.blocks(reader.chunks, reader.dtype.itemsize)
    array = (
        _stored_map(reader, cells, grid, score)
        if reader.source is not None
        else _graph_map(opened.data, cells, grid, score)
    )
    attrs = {"coverage": score.coverage} if score.name == "max" else {}
    if ref_channel is not None:
        attrs["ref_channel"] = ref_channel
    return labelled(array, opened, cells, score, attrs)


def one_channel(image: xr.DataArray, ref_channel: int | None) -> xr.DataArray:
    """Return the image's channel ``ref_channel``, or the image where none is asked for or there are none."""
    if ref_channel is None or "c" not in image.dims:
        if ref_channel not in (None, 0):
            raise BadRequest(
                "no such channel", where="ref_channel", got=ref_channel, expected="0: the image has no c"
            )
        return image
    count = image.sizes["c"]
    if not 0 <= ref_channel < count:
        raise BadRequest(
            "no such channel", where="ref_channel", got=ref_channel, expected=f"0 to {count - 1}"
        )
    return image.isel(c=ref_channel)


def labelled(
    array: da.Array, image: xr.DataArray, cells: Cells, score: Score, attrs: dict[str, Any] | None = None
) -> xr.DataArray:
    """Return an array of scores as a DataArray with cell centres as coordinates."""
    coords: dict[str, Any] = cells.coordinates(image)
    dims = cells.dims
    if score.leading:
        dims = ("statistic", *dims)
        coords["statistic"] = ["mean", "std"]
    described = {
        "filter": score.name,
        "patch_size": list(cells.patch),
        "units": UNITS[score.name],
        **(attrs or {}),
    }
    return xr.DataArray(array, dims=dims, coords=coords, name=score.name, attrs=described)


def _core_chunks(cells: Cells, grid: Grid) -> tuple[tuple[int, ...], ...]:
    """Return the map's Dask chunks: the cells of every block along every dim."""
    return tuple(
        tuple(min(step, n - a) for a in range(0, n, step))
        for n, step in zip(cells.counts, grid.step, strict=True)
    )


def _stored_map(reader: ImageReader, cells: Cells, grid: Grid, score: Score) -> da.Array:
    """One task per block, which reads its voxels itself, on whatever machine it runs."""
    bounds = None
    if score.needs_bounds(reader.dtype):
        bounds = _lazy_bounds(
            [dask.delayed(_read)(reader, cells, grid.box(i)) for i in range(len(grid))], cells, grid
        )
    lead = tuple((n,) for n in score.leading)
    name = f"filter-map-{digest([reader.identity, list(cells.patch), score.name, score.coverage])}"
    array: da.Array = da.map_blocks(
        _score_stored,
        chunks=lead + _core_chunks(cells, grid),
        dtype=np.float32,
        meta=np.empty((0,) * (len(lead) + len(cells.dims)), np.float32),
        name=name,
        reader=reader,
        cells=cells,
        grid=grid,
        score=score,
        bounds=bounds,
    )
    return array


def _score_stored(
    *,
    reader: ImageReader,
    cells: Cells,
    grid: Grid,
    score: Score,
    bounds: Bounds | None,
    block_info: Any = None,
) -> NDArray[np.float32]:
    location = block_info[None]["chunk-location"][len(score.leading) :]
    core = grid.box(grid.number(location))
    return score.of_box(cells, core, reader.read(cells.with_halo(cells.voxels_of(core))), bounds)


def _read(reader: ImageReader, cells: Cells, core: Box) -> NDArray[Any]:
    return reader.read(cells.voxels_of(core))


def _graph_map(image: da.Array, cells: Cells, grid: Grid, score: Score) -> da.Array:
    """Do the same for an image that only its own graph gives: every task depends on a slice of it."""
    whole = [cells.voxels_of(core) for core in grid]
    bounds = None
    if score.needs_bounds(image.dtype):
        bounds = _lazy_bounds([dask.delayed(_as_array)(image[box.slices]) for box in whole], cells, grid)
    boxes = np.empty(grid.counts, object)
    task = dask.delayed(_score_voxels)
    for number, box in enumerate(whole):
        core = grid.box(number)
        part = task(image[cells.with_halo(box).slices], cells, core, score, bounds)
        boxes[grid.index(number)] = da.from_delayed(part, score.leading + core.shape, np.float32)
    # da.block nests over the last axes; the leading axis of mean_std is in one piece.
    array: da.Array = da.block(boxes.tolist())
    return array


def _as_array(voxels: Any) -> NDArray[Any]:
    return np.asarray(voxels)


def _score_voxels(
    voxels: Any, cells: Cells, core: Box, score: Score, bounds: Bounds | None
) -> NDArray[np.float32]:
    return score.of_box(cells, core, np.asarray(voxels), bounds)


def _lazy_bounds(parts: list[Any], cells: Cells, grid: Grid) -> Any:
    """Return, delayed, the exact 0.1 and 99.9 percentiles of each channel: two passes over the blocks."""
    boxes = [cells.voxels_of(core) for core in grid]
    coarse = [dask.delayed(coarse_counts)(cells, box, part) for box, part in zip(boxes, parts, strict=True)]
    located = dask.delayed(locate)(_tree(coarse))
    fine = [
        dask.delayed(fine_counts)(cells, box, part, located) for box, part in zip(boxes, parts, strict=True)
    ]
    return dask.delayed(bounds_of)(located, _tree(fine))


def _tree(parts: list[Any], width: int = 16) -> Any:
    """Add many histograms a few at a time, so that no task holds all of them."""
    while len(parts) > 1:
        parts = [dask.delayed(added)(parts[i : i + width]) for i in range(0, len(parts), width)]
    return parts[0]


def expanded(filter_map: xr.DataArray, image: ImageLike) -> xr.DataArray:
    """Return the map at the image's size: every voxel has its cell's value. Lazy."""
    opened = as_image(image)
    cells = _cells_of(filter_map, opened)
    array = filter_map.data if isinstance(filter_map.data, da.Array) else da.from_array(filter_map.values)
    for dim, patch in zip(("y", "x"), cells.patch, strict=True):
        axis = filter_map.get_axis_num(dim)
        array = da.repeat(array, patch, axis=axis)
        index = [slice(None)] * array.ndim
        index[axis] = slice(0, opened.sizes[dim])
        array = array[tuple(index)]
    coords = {
        d: filter_map.coords[d] for d in filter_map.dims if d not in ("y", "x") and d in filter_map.coords
    }
    coords |= {d: opened.coords[d] for d in ("y", "x") if d in opened.coords}
    return xr.DataArray(
        array, dims=filter_map.dims, coords=coords, name=filter_map.name, attrs=dict(filter_map.attrs)
    )


def _cells_of(filter_map: xr.DataArray, image: xr.DataArray) -> Cells:
    """Return the cells of a map over an image.

    Raises
    ------
    BadRequest
        The map is of an image of another size, or does not say its patch size.
    """
    if "patch_size" not in filter_map.attrs:
        raise BadRequest(
            "not a filter map", got="no attribute patch_size", remedy="make it with X.filter_map"
        )
    patch = patch_pair(filter_map.attrs["patch_size"])
    dims = tuple(str(d) for d in image.dims if d in filter_map.dims)
    cells = Cells(dims, tuple(image.sizes[d] for d in dims), patch)
    found = tuple(filter_map.sizes[d] for d in dims)
    if found != cells.counts:
        raise BadRequest(
            "the filter map is of another image", got=f"{found} cells", expected=f"{cells.counts}"
        )
    return cells
