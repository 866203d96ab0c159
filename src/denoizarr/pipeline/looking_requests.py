"""What looking at the images takes before anything is learnt: periodic lines, scores, index, noise kernel."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

import numpy as np

from denoizarr.engine.cluster import usable_cores
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import Grid, ceil_div
from denoizarr.images.periodic import sampled_sites, spread_planes
from denoizarr.images.plane_waves import spans_read
from denoizarr.kernels.spectrum import MOST_LINES
from denoizarr.selection.cell_classes import piece_shape
from denoizarr.selection.cells import Cells
from denoizarr.selection.index_settings import IndexSettings
from denoizarr.selection.masks import MaskSource
from denoizarr.selection.roi_level import BLOCK_SIDE
from denoizarr.selection.survey import blocks_per_batch
from denoizarr.selection.sweeps import Sweep, plan_sweep
from denoizarr.stores.sources import ImageReader, ImageSource, open_source
from denoizarr.training.noise_sample import SMALLEST_SIDE
from denoizarr.training.noise_windows import WINDOW, Site, draw_sites
from denoizarr.training.stage1_windows import DEPTH
from denoizarr.training.volume_windows import MOST_COLUMNS, columns_of, spread_evenly

from .array_reads import Integers, StoredArray, StoredImage, even_cuts
from .requests import ASK, GET, LIST, MISS, NONE, OPEN_GROUP, PUT, Requests
from .training_requests import TrainingImage
from .writing_requests import recorded_step

# A record of a batch of a survey: histograms of up to 65,536 bins, compressed, for every channel.
_HISTOGRAM_BYTES = 2**18
# The maps of scores are looked through for a threshold, and for every cell's class.
_MAP_PASSES = 3
# Steps over the coarse level that regions of interest are sought on.
_ROI_STEPS = 8
# Threads that read windows of noise.
_READERS = 8


def lines_sought(images: Sequence[TrainingImage]) -> Requests:
    """Return what the sample takes that periodic lines are sought in."""
    stored = {id(image.reader): image.stored for image in images}
    total = NONE
    for _, sites in sampled_sites([image.reader for image in images]):
        total += _of_boxes(stored, sites)
    return total


def lines_measured(images: Sequence[TrainingImage]) -> Requests:
    """Return what it takes to measure lines that were found: some planes, then all, in bands of chunks."""
    stored = {id(image.reader): image.stored for image in images}
    planes = [
        (reader, Box((*box.start, 0, 0), (*box.stop, *reader.shape[-2:])))
        for reader, box in spread_planes([image.reader for image in images])
    ]
    total = _of_boxes(stored, planes)
    for image in images:
        ends = [np.array(spans, np.int64).T for spans in spans_read(image.reader, MOST_LINES)]
        if ends:
            total += image.stored.reading([a for a, _ in ends], [b for _, b in ends], usable_cores())
    return total


def scores_of_floats(image: TrainingImage, settings: IndexSettings) -> Requests:
    """Return what scoring an image takes beyond one pass, once it is less its lines, and of floats."""
    found = settings.score_filter
    if found is None or image.reader.dtype.kind == "f" or not found.score.needs_bounds(np.dtype(np.float32)):
        return NONE
    cells, sweep = _sweep_of(image.reader, settings, np.dtype(np.float32).itemsize)
    return 2 * _swept(
        image, sweep, [_voxels(cells, sweep, axis, own=True) for axis in range(len(cells.dims))]
    )


def scores_read(image: TrainingImage, settings: IndexSettings, number: int) -> Requests:
    """Return what measuring one image for the index of a stage reads of it, and of its mask."""
    cells, sweep = _sweep_of(image.reader, settings)
    whole = [_voxels(cells, sweep, axis, own=False) for axis in range(len(cells.dims))]
    total = _swept(image, sweep, whole)
    if _needs_bounds(image.reader, settings):
        own = [_voxels(cells, sweep, axis, own=True) for axis in range(len(cells.dims))]
        total += 2 * _swept(image, sweep, own)
    if settings.mask_filter is not None:
        mask = settings.masks[number]
        source = mask.source.mask if isinstance(mask.source, MaskSource) else mask.source
        total += _whole_of(source, 2)
    if settings.roi is not None:
        total += _by_chunk(image, 2)
    return total


def scores_kept(reader: ImageReader, settings: IndexSettings) -> Requests:
    """Return what the measurements of one image ask of the run folder."""
    _, sweep = _sweep_of(reader, settings)
    found = settings.score_filter
    leading = () if found is None or found.score_name != "mean_std" else (2,)
    n_arrays = int(found is not None) + int(settings.mask_filter is not None)
    n_steps = (3 if _needs_bounds(reader, settings) else 1) + int(settings.mask_filter is not None)
    batch = blocks_per_batch(sweep, reader)
    channels = dict(zip(reader.dims, reader.shape, strict=True)).get("c", 1)
    step = recorded_step(len(sweep.grid), batch, record_bytes=channels * _HISTOGRAM_BYTES)
    scores = _regions(sweep, leading)
    # A put for each block; the group and the array are opened anew for it, and one at the far end is read.
    written = scores.n_objects * (3 * GET + Requests(puts=1))
    written += Requests(bytes_written=scores.stored_bytes)
    # All are looked at once more at the end.
    written += scores.n_objects * Requests(gets=1) + Requests(bytes_read=scores.stored_bytes)
    begun = 4 * PUT + 2 * ASK + 3 * LIST + OPEN_GROUP + 3 * GET
    total = n_steps * step + n_arrays * written + max(n_arrays, 1) * begun
    if settings.roi is not None:
        total += _coarse_level(reader, settings)
    return total


def scores_found_again(reader: ImageReader, settings: IndexSettings) -> Requests:
    """Return what a second stage asks of measurements that serve both: nothing but whether all are there."""
    _, sweep = _sweep_of(reader, settings)
    n_steps = (3 if _needs_bounds(reader, settings) else 1) + int(settings.mask_filter is not None)
    channels = dict(zip(reader.dims, reader.shape, strict=True)).get("c", 1)
    n_batches = ceil_div(len(sweep.grid), blocks_per_batch(sweep, reader))
    record = Requests(heads=1, gets=1, bytes_read=channels * _HISTOGRAM_BYTES)
    looked = 2 * _regions(sweep, (2,)).n_objects * Requests(gets=1)
    found = PUT + 2 * ASK + 3 * LIST + OPEN_GROUP + 3 * GET
    return n_steps * (PUT + GET + ASK + n_batches * record + found) + looked


def index_made(reader: ImageReader, settings: IndexSettings) -> Requests:
    """Return what it takes to weigh the cells of one image and to save them."""
    _, sweep = _sweep_of(reader, settings)
    found = settings.score_filter
    n_values = (2 if found is not None and found.score_name == "mean_std" else 1) + int(
        settings.mask_filter is not None
    )
    cells = [c for c, dim in zip(sweep.cells.counts, reader.dims, strict=True) if dim != "c"]
    pieces = Grid(tuple(cells), piece_shape(tuple(cells)))
    regions = _regions(sweep, ())
    cuts = [even_cuts(n, s) for n, s in zip(pieces.shape, pieces.step, strict=True)]
    kept = [axis for axis, dim in enumerate(reader.dims) if dim != "c"]
    starts, stops = [], []
    for axis, stored in enumerate(regions.axes):
        if axis not in kept:
            starts.append(np.array([0], np.int64))
            stops.append(np.array([1], np.int64))
            continue
        cut = cuts[kept.index(axis)]
        # A cell is covered by its own region and by the one before it.
        starts.append(np.minimum(np.maximum(cut[:-1] - 1, 0), stored.size - 1))
        stops.append(np.clip(cut[1:], 1, stored.size))
    read = _MAP_PASSES * n_values * regions.reading(starts, stops)
    classes = StoredArray.of(pieces.shape, pieces.step, None, 1)
    saved = classes.n_objects * Requests(puts=1, gets=1)
    saved += Requests(bytes_read=classes.stored_bytes, bytes_written=classes.stored_bytes)
    return read + saved + 2 * PUT + 2 * GET


# Of the group, beside its arrays.
INDEX_BEGUN = 2 * ASK + 2 * LIST + 4 * PUT + 2 * GET


def noise_read(
    images: Sequence[TrainingImage], planes: int, seed: int, halo: Sequence[int] | None = None
) -> tuple[Requests, Requests]:
    """Return what measuring the noise takes: what is read in any case, and what may be read as well.

    Parameters
    ----------
    images : sequence of TrainingImage
    planes : int
        Of a window along z.
    seed : int
        Draws the sites.
    halo : sequence of int, optional
        Of stage 1's network, along its axes, where what that makes of the sites may be measured.
    """
    readers = [image.reader for image in images]
    side = min(WINDOW, *(min(reader.shape[-2:]) for reader in readers))
    if side < SMALLEST_SIDE:  # such an image has no window to measure noise in
        return NONE, NONE
    sites = draw_sites(readers, side, None, seed)
    at_sites = _of_sites(images, sites)
    # Lines are measured again over whole sites; where structure is all over, neighbouring planes are taken.
    perhaps = at_sites + 2 * at_sites
    volumes = NONE
    deep = [reader for reader in readers if "z" in reader.dims]
    if planes > 1 and len(deep) == len(readers):
        volumes = _of_sites(images, spread_evenly(columns_of(sites, readers, side, planes), MOST_COLUMNS))
    if halo is not None:
        seen = columns_of(sites, readers, side, DEPTH) if len(halo) == 3 else sites
        grown = (0,) * (len(readers[0].shape) - len(halo)) + tuple(halo)
        around = [Site(site.image, site.box.grow(grown).clip(readers[site.image].shape)) for site in seen]
        perhaps += _of_sites(images, around)
    return (at_sites, perhaps) if volumes == NONE else (volumes, at_sites + perhaps)


def _of_sites(images: Sequence[TrainingImage], sites: Sequence[Site]) -> Requests:
    total = NONE
    for number, image in enumerate(images):
        boxes = [site.box for site in sites if site.image == number]
        total += image.stored.reading_boxes(boxes, _READERS)
    return total


def _of_boxes(stored: dict[int, StoredImage], boxes: Sequence[tuple[ImageReader, Box]]) -> Requests:
    total = NONE
    for key, image in stored.items():
        total += image.reading_boxes([box for reader, box in boxes if id(reader) == key], 1)
    return total


def _chunk_cuts(reader: ImageReader) -> list[Integers]:
    """Return where the chunks of an image end, along every dim."""
    return [
        np.unique(np.array([0, *range(chunk - offset, size, chunk), size], np.int64))
        for size, chunk, offset in zip(reader.shape, reader.chunks, reader.offset, strict=True)
    ]


def _by_chunk(image: TrainingImage, passes: int) -> Requests:
    """Return what so many passes over all voxels take at most, where each chunk is read by itself."""
    return passes * image.stored.reading_grid(_chunk_cuts(image.reader), usable_cores())


def _sweep_of(
    reader: ImageReader, settings: IndexSettings, itemsize: int | None = None
) -> tuple[Cells, Sweep]:
    cells = Cells(tuple(reader.dims), tuple(reader.shape), settings.patch)
    return cells, plan_sweep(cells, reader.chunks, itemsize or reader.dtype.itemsize)


def _needs_bounds(reader: ImageReader, settings: IndexSettings) -> bool:
    found = settings.score_filter
    return found is not None and found.score.needs_bounds(reader.dtype)


def _regions(sweep: Sweep, leading: tuple[int, ...]) -> StoredArray:
    """Return the array of a survey's scores: a chunk for each block."""
    return StoredArray.of((*leading, *sweep.grid.shape), (*leading, *sweep.grid.step), None, 8)


def _voxels(cells: Cells, sweep: Sweep, axis: int, *, own: bool) -> tuple[Integers, Integers]:
    """Return where the voxels of the blocks begin and end along an axis."""
    counts = sweep.grid.counts
    starts, stops = [], []
    for k in range(counts[axis]):
        box = sweep.grid.box(sweep.grid.number(tuple(k if a == axis else 0 for a in range(len(counts)))))
        voxels = cells.own_voxels_of_regions(box) if own else cells.voxels_of_regions(box)
        starts.append(voxels.start[axis])
        stops.append(voxels.stop[axis])
    return np.array(starts, np.int64), np.array(stops, np.int64)


def _swept(image: TrainingImage, sweep: Sweep, voxels: Sequence[tuple[Integers, Integers]]) -> Requests:
    """Return what it takes to read blocks slab by slab."""
    reader, axis = image.reader, sweep.axis
    starts, stops = [a for a, _ in voxels], [b for _, b in voxels]
    cut_starts: list[int] = []
    cut_stops: list[int] = []
    begin = [int(a[0]) for a in starts]
    end = [int(b[0]) for b in stops]
    for a, b in zip(starts[axis].tolist(), stops[axis].tolist(), strict=True):
        box = Box((*begin[:axis], a, *begin[axis + 1 :]), (*end[:axis], b, *end[axis + 1 :]))
        for piece in sweep.pieces(reader, box):
            cut_starts.append(piece.start[axis])
            cut_stops.append(piece.stop[axis])
    starts[axis], stops[axis] = np.array(cut_starts, np.int64), np.array(cut_stops, np.int64)
    return image.stored.reading(starts, stops, usable_cores())


def _whole_of(source: object, passes: int) -> Requests:
    if not isinstance(source, ImageSource):
        return NONE
    reader = open_source(source)
    return _by_chunk(TrainingImage(reader, StoredImage.of(reader)), passes)


def _coarse_level(reader: ImageReader, settings: IndexSettings) -> Requests:
    """Return the most that the passes over the coarse level of regions of interest ask of the run folder."""
    assert settings.roi is not None, "asked for regions of interest only"
    n, factor = len(settings.patch), settings.roi.scale_factor
    coarse = [*reader.shape[:-n], *(ceil(size * factor) for size in reader.shape[-n:])]
    blocks = prod(coarse[:-n]) * prod(ceil_div(size, BLOCK_SIDE[n]) for size in coarse[-n:])
    each = recorded_step(blocks, 1, record_bytes=_HISTOGRAM_BYTES) + blocks * (12 * GET + 4 * PUT + 4 * MISS)
    n_bytes = prod(coarse) * 8
    return _ROI_STEPS * (each + Requests(bytes_read=n_bytes)) + Requests(bytes_written=2 * n_bytes)
