"""Filter maps as lazy arrays: one Dask task per large block of regions, which reads its voxels itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from denoizarr.errors import BadRequest
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import Grid
from denoizarr.kernels.regions import cells_from_regions
from denoizarr.stores.images import ImageLike, as_image, reader_of
from denoizarr.stores.sources import Carried, ImageReader

from .cells import Cells, PatchSize, patch_extents
from .percentiles import Counts, Located, added, bounds_of, coarse_counts, fine_counts, locate
from .scores import Bounds, Score, check_finite
from .sweeps import Sweep, plan_sweep

UNITS = {"max": "intensity", "mean_std": "intensity", "shannon": "bit", "mask": "1"}


def lazy_map(
    image: ImageLike,
    patch_size: PatchSize,
    score: Score,
    *,
    ref_channel: int | None = None,
    reader: ImageReader | None = None,
) -> xr.DataArray:
    """Return the map of one score over an image, computed when it is asked for.

    Parameters
    ----------
    image : URL, path, zarr.Array, DataArray, Dask or numpy array
    patch_size : int, (y, x) or (z, y, x)
    score : Score
    ref_channel : int, optional
        Score this channel only; the map then has no c.
    reader : ImageReader, optional
        Reads the voxels in place of the image's own: those of a mask, aligned with the image.

    Returns
    -------
    float64 DataArray, one value per cell
        Dims t, c, z, y, x (those that the image has), after "statistic" for mean_std; coordinates at the cell
        centres, in the image's units.
    """
    opened = one_channel(as_image(image), ref_channel)
    voxels = reader_of(opened) if reader is None else reader
    cells = Cells.of_image(opened, patch_extents(patch_size))
    from_graph = reader is None and voxels.of_graph
    sweep = plan_sweep(cells, voxels.chunks, voxels.dtype.itemsize, swept=not from_graph)
    regions = (
        _graph_regions(opened.data, sweep, score) if from_graph else _stored_regions(voxels, sweep, score)
    )
    attrs = {} if ref_channel is None else {"ref_channel": ref_channel}
    return labelled(_cells_of_regions(regions, cells, len(score.leading)), opened, cells, score, attrs)


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
        **({"coverage": score.coverage_for(cells)} if score.name == "max" else {}),
        **(attrs or {}),
    }
    return xr.DataArray(array, dims=dims, coords=coords, name=score.name, attrs=described)


def _chunks_of(grid: Grid) -> tuple[tuple[int, ...], ...]:
    """Return a grid as Dask chunks."""
    return tuple(
        tuple(min(step, n - a) for a in range(0, n, step))
        for n, step in zip(grid.shape, grid.step, strict=True)
    )


def _stored_regions(reader: ImageReader, sweep: Sweep, score: Score) -> da.Array:
    """One task per block, which reads its voxels itself, on whatever machine it runs."""
    cells, grid, carried = sweep.cells, sweep.grid, Carried(reader)
    bounds = None
    if score.needs_bounds(reader.dtype):
        coarse = [dask.delayed(_coarse_block)(carried, sweep, i) for i in range(len(grid))]
        located = dask.delayed(locate)(_tree(coarse))
        fine = [dask.delayed(_fine_block)(carried, sweep, i, located) for i in range(len(grid))]
        bounds = dask.delayed(bounds_of)(located, _tree(fine))
    lead = tuple((n,) for n in score.leading)
    name = f"filter-map-{uuid4().hex}"  # what a map is of, and how, is more than a name can be trusted with
    array: da.Array = da.map_blocks(
        _score_stored,
        chunks=lead + _chunks_of(grid),
        dtype=np.float64,
        meta=np.empty((0,) * (len(lead) + len(cells.dims))),
        name=name,
        carried=carried,
        sweep=sweep,
        score=score,
        bounds=bounds,
    )
    return array


def _score_stored(
    *, carried: Carried, sweep: Sweep, score: Score, bounds: Bounds | None, block_info: Any = None
) -> NDArray[np.float64]:
    location = block_info[None]["chunk-location"][len(score.leading) :]
    block = sweep.grid.box(sweep.grid.number(location))
    result = np.empty(score.leading + block.shape)
    for slab in sweep.slabs(carried.reader, block):
        check_finite(sweep.cells, slab.box, slab.read)
        if slab.regions.size:
            place = (slice(None),) * len(score.leading) + slab.regions.relative_to(block.start).slices
            result[place] = score.of_regions(sweep.cells, slab.regions, slab.voxels, bounds)
    return result


def _coarse_block(carried: Carried, sweep: Sweep, block: int) -> dict[int, Counts]:
    parts = own_voxels(carried.reader, sweep, block)
    return added(coarse_counts(sweep.cells, box, voxels) for box, voxels in parts)


def _fine_block(carried: Carried, sweep: Sweep, block: int, located: Located) -> dict[int, Counts]:
    parts = own_voxels(carried.reader, sweep, block)
    return added(fine_counts(sweep.cells, box, voxels, located) for box, voxels in parts)


def own_voxels(reader: ImageReader, sweep: Sweep, block: int) -> Any:
    """Read the voxels that belong to a block and to no other, slab by slab: yield (box, voxels)."""
    own = sweep.cells.own_voxels_of_regions(sweep.grid.box(block))
    for box in sweep.pieces(reader, own):
        voxels = reader.read(box)
        check_finite(sweep.cells, box, voxels)
        yield box, voxels


def _graph_regions(image: da.Array, sweep: Sweep, score: Score) -> da.Array:
    """Do the same for an image that only its own graph gives: every task depends on a slice of it."""
    cells, grid = sweep.cells, sweep.grid
    bounds = None
    if score.needs_bounds(image.dtype):
        bounds = _graph_bounds(image, sweep)
    parts = np.empty(grid.counts, object)
    task = dask.delayed(_score_voxels)
    for number, block in enumerate(grid):
        part = task(image[cells.voxels_of_regions(block).slices], cells, block, score, bounds)
        parts[grid.index(number)] = da.from_delayed(part, score.leading + block.shape, np.float64)
    # da.block nests over the last axes; the leading axis of mean_std is in one piece.
    array: da.Array = da.block(parts.tolist())
    return array


def _score_voxels(
    voxels: Any, cells: Cells, regions: Box, score: Score, bounds: Bounds | None
) -> NDArray[np.float64]:
    array = np.asarray(voxels)
    check_finite(cells, cells.voxels_of_regions(regions), array)
    return score.of_regions(cells, regions, array, bounds)


def _graph_bounds(image: da.Array, sweep: Sweep) -> Any:
    """Return, delayed, the exact 0.1 and 99.9 percentiles of each channel: two passes over the blocks."""
    boxes = [sweep.cells.own_voxels_of_regions(block) for block in sweep.grid]
    parts = [dask.delayed(np.asarray)(image[box.slices]) for box in boxes]
    coarse = [dask.delayed(coarse_counts)(sweep.cells, b, part) for b, part in zip(boxes, parts, strict=True)]
    located = dask.delayed(locate)(_tree(coarse))
    fine = [
        dask.delayed(fine_counts)(sweep.cells, b, part, located) for b, part in zip(boxes, parts, strict=True)
    ]
    return dask.delayed(bounds_of)(located, _tree(fine))


def _tree(parts: list[Any], width: int = 16) -> Any:
    """Add many histograms a few at a time, so that no task holds all of them."""
    while len(parts) > 1:
        parts = [dask.delayed(added)(parts[i : i + width]) for i in range(0, len(parts), width)]
    return parts[0]


def _cells_of_regions(regions: da.Array, cells: Cells, n_leading: int) -> da.Array:
    """Return the cells of an array of regions: a block needs the last regions of the block before it."""
    first = n_leading + cells.n_lead
    counts = cells.counts[cells.n_lead :]
    depth = {
        axis: (1, 0) if axis >= first and regions.numblocks[axis] > 1 else (0, 0)
        for axis in range(regions.ndim)
    }
    chunks = tuple(
        (*c[:-1], c[-1] + 1) if axis >= first and counts[axis - first] > 1 else c
        for axis, c in enumerate(regions.chunks)
    )
    overlapping = da.overlap.overlap(regions, depth=depth, boundary="none")
    array: da.Array = overlapping.map_blocks(
        _cells_of_block,
        counts=counts,
        first=first,
        chunks=chunks,
        dtype=np.float64,
        meta=np.empty((0,) * regions.ndim),
    )
    return array


def _cells_of_block(
    regions: NDArray[np.float64], counts: tuple[int, ...], first: int, block_info: Any = None
) -> NDArray[np.float64]:
    location = block_info[None]["chunk-location"][first:]
    wanted = block_info[None]["chunk-shape"][first:]
    covered = cells_from_regions(
        regions, tuple(n + 1 if c > 1 else 1 for n, c in zip(regions.shape[first:], counts, strict=True))
    )
    # The cell before the block's first, which only its neighbour knows whole.
    start = tuple(1 if place > 0 else 0 for place in location)
    index = tuple(slice(a, a + n) for a, n in zip(start, wanted, strict=True))
    return covered[(slice(None),) * first + index]


def pieces_of(filter_map: xr.DataArray) -> Iterator[NDArray[np.float64]]:
    """Yield the values of a map a chunk at a time: a map may be a gigabyte, its copies need not be."""
    if not isinstance(filter_map.data, da.Array):
        yield np.asarray(filter_map.data, np.float64)
        return
    for index in np.ndindex(filter_map.data.numblocks):
        yield np.asarray(filter_map.data.blocks[index].compute(), np.float64)


def expanded(filter_map: xr.DataArray, image: ImageLike) -> xr.DataArray:
    """Return the map at the image's size: every voxel has its cell's value. Lazy."""
    opened = as_image(image)
    cells = cells_of(filter_map, opened)
    array = filter_map.data if isinstance(filter_map.data, da.Array) else da.from_array(filter_map.values)
    patched = cells.dims[-len(cells.patch) :]
    for dim, patch in zip(patched, cells.patch, strict=True):
        axis = filter_map.get_axis_num(dim)
        array = da.repeat(array, patch, axis=axis)
        index = [slice(None)] * array.ndim
        index[axis] = slice(0, opened.sizes[dim])
        array = array[tuple(index)]
    coords = {d: filter_map.coords[d] for d in filter_map.dims if d not in patched and d in filter_map.coords}
    coords |= {d: opened.coords[d] for d in patched if d in opened.coords}
    return xr.DataArray(
        array, dims=filter_map.dims, coords=coords, name=filter_map.name, attrs=dict(filter_map.attrs)
    )


def cells_of(filter_map: xr.DataArray, image: xr.DataArray) -> Cells:
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
    patch = patch_extents(filter_map.attrs["patch_size"])
    dims = tuple(str(d) for d in image.dims if d in filter_map.dims)
    cells = Cells(dims, tuple(image.sizes[d] for d in dims), patch)
    found = tuple(filter_map.sizes[d] for d in dims)
    if found != cells.counts:
        raise BadRequest(
            "the filter map is of another image", got=f"{found} cells", expected=f"{cells.counts}"
        )
    return cells
