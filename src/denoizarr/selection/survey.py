"""The survey of an image: every score asked for, and its statistics, in one resumable pass.

A block is a box of regions. Its task sweeps the block's voxels, counts those that are the block's own, scores
its regions, writes the scores as one chunk of a Zarr array, and returns its histograms; a batch of blocks
merges them in block order. So a survey that is killed and run again gives the same bytes.

The entropy of floats needs the image's 0.1 and 99.9 percentiles first: there, two more passes precede it.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from denoizarr.engine.ledger import Ledger
from denoizarr.engine.runner import Record, Step, run_step
from denoizarr.engine.shares import Share
from denoizarr.errors import BadRequest, DegenerateData, MetadataError
from denoizarr.geometry.boxes import Box
from denoizarr.images.shared import once_among_processes
from denoizarr.kernels.statistics import Moments, moments_of
from denoizarr.stores.images import ImageLike, as_image, reader_of
from denoizarr.stores.records import digest
from denoizarr.stores.sources import ImageReader

from . import region_arrays
from .cells import Cells, PatchSize, patch_extents
from .filter_maps import labelled, own_voxels
from .image_statistics import ChannelStatistics, ImageStatistics
from .percentiles import Counts, added, bounds_of, channel_parts, fine_counts, locate
from .scores import Bounds, Score, check_finite
from .sweeps import Sweep, plan_sweep

# A record holds the merged histograms of its blocks; a batch lasts a few seconds.
_BATCH_BYTES, _MOST_BLOCKS_PER_BATCH = 256 * 2**20, 64
# What the slabs of all threads of a process may take; a thread holds about three times its slab.
_THREADS_BYTES = 4 * 2**30


@dataclass(frozen=True, slots=True)
class Survey:
    """What :func:`survey` found.

    Attributes
    ----------
    statistics : ImageStatistics
        None of a mask.
    maps : dict of DataArray
        By score name, lazy, as :func:`denoizarr.selection.filter_maps.lazy_map` gives them.
    """

    statistics: ImageStatistics
    maps: dict[str, xr.DataArray]


class ShareDone(Exception):  # noqa: N818  # it went well
    """A share of a pass is done, and the next one needs what the other shares have still to do."""


@dataclass(frozen=True, slots=True)
class _Work:
    """What a task of the survey gets; small, and picklable where the image and the destination have a URL.

    Without a destination a task returns its scores.
    """

    reader: ImageReader
    sweep: Sweep
    scores: tuple[Score, ...]
    destination: str | zarr.Group | None
    count: bool = True
    bounds: Bounds | None = None
    located: dict[int, tuple[tuple[int, int], ...]] | None = None


def survey(
    image: ImageLike,
    *,
    patch_size: PatchSize,
    names: Sequence[str] = ("shannon",),
    destination: str | Path | None = None,
    ledger: Ledger | None = None,
    client: Any = None,
    threads: int = 1,
    progress: bool = True,
    coverage: float | None = None,
    reader: ImageReader | None = None,
    share: Share | None = None,
) -> Survey:
    """Score an image and count its voxels, block by block.

    Parameters
    ----------
    image : URL, path, zarr.Array, DataArray, Dask or numpy array
    patch_size : int, (y, x) or (z, y, x)
    names : sequence of {"max", "mean_std", "shannon", "mask"}
        The scores wanted; none for the statistics alone.
    destination : path or URL, optional
        Of the Zarr group for the scores, continued if it was begun by the same survey; without, they are kept
        in this process's memory or a temporary folder.
    ledger : Ledger, optional
        Makes the survey resumable; needs a ``destination``.
    client : distributed.Client, optional
        Runs the tasks; needs an image with a URL. With a ``destination`` the workers write there.
    threads : int
        Of this process, without a client; fewer work where their slabs would take more than 4 GiB together.
        The result does not depend on them.
    progress : bool
    coverage : float, optional
        Of the max score; a quarter in 2D and an eighth in 3D unless told.
    reader : ImageReader, optional
        Reads the voxels in place of the image's own: those of a mask, aligned with the image, with the
        image's dims. They may be all alike.

    Returns
    -------
    Survey

    Raises
    ------
    NonFiniteData
        The image holds NaN or infinity; the message names the first voxel of the first block that has one.
    DegenerateData
        A channel is constant.
    OutputExists
        Something else lies at ``destination``.
    ShareDone
        The share of a pass is done, and not all the others.
    """
    if destination is None and ledger is not None:
        raise BadRequest("a resumable survey needs a destination for its scores")
    opened = as_image(image)
    voxels = reader_of(opened) if reader is None else reader
    cells = Cells.of_image(opened, patch_extents(patch_size))
    scores = tuple(Score(name, None if coverage is None else float(coverage)) for name in names)
    sweep = plan_sweep(cells, voxels.chunks, voxels.dtype.itemsize)
    # Of an image that only this process has, the identity may be a digest of all its voxels.
    identity = {} if destination is None else voxels.identity
    key = digest([identity, list(cells.shape), list(cells.patch), list(sweep.grid.step)])
    # Records are found by this name: those of another image, or of other scores, are never taken for these.
    tag = digest([key, [[s.name, s.coverage_for(cells)] for s in scores]])[:12]
    where = None if destination is None else str(destination)
    if share is not None:
        assert where is not None, "a share is of a survey that is kept"
        assert ledger is not None, "a share is told by its records"
        _begin_shared(where, key, sweep, scores, ledger, tag)
    stored = region_arrays.begin(where, key, sweep, scores, owned=ledger is not None)
    if stored.fresh and ledger is not None:
        # The scores that its records vouch for are gone, or never were.
        ledger.forget(ending=f"-{tag}")
    target = stored.url or (stored.group if client is None else None)
    work = _Work(voxels, sweep, scores, target)
    most_threads = max(_THREADS_BYTES // (3 * sweep.slab_voxels * voxels.dtype.itemsize), 1)

    def run(
        name: str,
        task: Callable[[Any, int], Record],
        spec: _Work,
        merge: Callable[[list[Record]], Record],
        fold: Callable[[Record], Any],
    ) -> None:
        step = Step(f"{name}-{tag}", task, spec, len(sweep.grid), blocks_per_batch(sweep, voxels), merge)
        how: dict[str, Any] = {
            "ledger": ledger,
            "client": client,
            "threads": min(threads, most_threads),
            "progress": progress,
            "label": _label(name, scores),
        }
        if share is not None and ledger is not None:
            run_step(step, **how, share=share, fold=lambda _: None)
            if not ledger.holds(step.name, step.n_batches):
                raise ShareDone
        run_step(
            step,
            **how,
            sink=None if spec.destination is not None else lambda record: _receive(stored, sweep, record),
            # One at a time: an image has many, and a histogram takes half a megabyte.
            fold=lambda record: fold(record["results"]),
        )

    moments: dict[int, Moments] = {}
    if any(score.needs_bounds(voxels.dtype) for score in scores):
        counting = replace(work, scores=())
        run("survey-count", _survey_block, counting, _merge_results, lambda r: _add_result(moments, r))
        _check_varied(moments, voxels.name)
        located = locate({c: m.histogram for c, m in moments.items()})
        fine: dict[int, Counts] = {}
        refining = replace(work, located=located)
        run("survey-percentiles", _refine_block, refining, _merge_fine, lambda r: _add_fine(fine, r))
        scoring = replace(work, count=False, bounds=bounds_of(located, fine))
        run("survey-scores", _survey_block, scoring, _merge_results, lambda _: None)
    else:
        run("survey", _survey_block, work, _merge_results, lambda r: _add_result(moments, r))
        if reader is None:
            _check_varied(moments, voxels.name)
    statistics = ImageStatistics(tuple(ChannelStatistics(moments[c]) for c in sorted(moments)))
    maps = {s.name: labelled(region_arrays.finished(stored, s, cells), opened, cells, s) for s in scores}
    return Survey(statistics, maps)


def _begin_shared(
    destination: str, key: str, sweep: Sweep, scores: tuple[Score, ...], ledger: Ledger, tag: str
) -> None:
    def make() -> None:
        # Before anybody sees the new arrays, and puts records of his own.
        ledger.forget(ending=f"-{tag}")
        region_arrays.begin(destination, key, sweep, scores, owned=True)

    once_among_processes(
        ledger.url,
        lambda: region_arrays.is_begun(destination, key, sweep, scores),
        make,
        where=destination,
    )


def blocks_per_batch(sweep: Sweep, reader: ImageReader) -> int:
    """Return how many blocks of a survey make a batch."""
    block_bytes = prod(sweep.cells.voxels_of_regions(sweep.grid.box(0)).shape) * reader.dtype.itemsize
    return min(max(_BATCH_BYTES // block_bytes, 1), _MOST_BLOCKS_PER_BATCH)


def _label(name: str, scores: tuple[Score, ...]) -> str:
    if name in ("survey-count", "survey-percentiles") or not scores:
        return "Measuring intensities"
    return f"Filtering background patches with filtering function {', '.join(s.name for s in scores)}"


def _survey_block(work: _Work, block: int) -> Record:
    """Sweep one block: count its own voxels, score its regions, store or return the scores."""
    cells, box = work.sweep.cells, work.sweep.grid.box(block)
    moments: dict[int, Moments] = {}
    if not work.scores:
        read_bytes = 0
        for voxel_box, voxels in own_voxels(work.reader, work.sweep, block):
            read_bytes += voxels.nbytes
            _added(moments, _count(work, voxel_box, voxels).items())
        return _as_record(moments) | {"read_bytes": read_bytes}
    own = cells.own_voxels_of_regions(box)
    arrays = {score.name: np.empty(score.leading + box.shape) for score in work.scores}
    read_bytes = 0
    for slab in work.sweep.slabs(work.reader, box):
        check_finite(cells, slab.box, slab.read)
        read_bytes += slab.read.nbytes
        if work.count:
            counted = own.intersection(slab.box)
            inner = slab.read[counted.relative_to(slab.box.start).slices]
            _added(moments, _count(work, counted, inner).items())
        if slab.regions.size:
            for score in work.scores:
                place = (slice(None),) * len(score.leading) + slab.regions.relative_to(box.start).slices
                arrays[score.name][place] = score.of_regions(cells, slab.regions, slab.voxels, work.bounds)
    result = _as_record(moments) | {"read_bytes": read_bytes}
    if work.destination is None:
        result["scores"] = [[block, region_arrays.packed(arrays)]]
    else:
        region_arrays.write(work.destination, cells, work.scores, box, arrays)
    return result


def _receive(stored: region_arrays.RegionArrays, sweep: Sweep, record: Record) -> None:
    """Take the scores out of a record that has just arrived and keep them here."""
    for block, packed in record["results"].pop("scores", []):
        arrays = region_arrays.unpacked(packed)
        region_arrays.write(stored.group, sweep.cells, stored.scores, sweep.grid.box(int(block)), arrays)


def _count(work: _Work, box: Box, voxels: NDArray[Any]) -> dict[int, Moments]:
    return {c: moments_of(part) for c, part in channel_parts(work.sweep.cells, box, voxels).items()}


def _as_record(moments: dict[int, Moments]) -> Record:
    return {"moments": {str(c): m.to_json() for c, m in moments.items()}}


def _merge_results(results: list[Record]) -> Record:
    """Merge within a batch, in block order."""
    merged = _as_record(_merged(results))
    scores = [part for result in results for part in result.get("scores", [])]
    return {**merged, "scores": scores} if scores else merged


def _added(merged: dict[int, Moments], parts: Iterable[tuple[int, Moments]]) -> dict[int, Moments]:
    for channel, found in parts:
        merged[channel] = merged[channel].merge(found) if channel in merged else found
    return merged


def _merged(results: Iterable[Record]) -> dict[int, Moments]:
    merged: dict[int, Moments] = {}
    for result in results:
        _add_result(merged, result)
    return merged


def _add_result(merged: dict[int, Moments], result: Record) -> None:
    try:
        parts = [(int(c), Moments.from_json(record)) for c, record in result["moments"].items()]
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise MetadataError(
            "a damaged record of a survey", got=repr(error), remedy="delete its ledger and run again"
        ) from error
    _added(merged, parts)


def _add_fine(total: dict[int, Counts], result: Record) -> None:
    total.update(added([total, _unpack_fine(result)]))


def _check_varied(moments: dict[int, Moments], name: str) -> None:
    for channel, found in moments.items():
        if found.minimum == found.maximum:
            raise DegenerateData(
                "the image is constant",
                where=f"{name}, channel {channel}" if len(moments) > 1 else name,
                got=f"{found.minimum:g} everywhere",
                remedy="nothing can be learnt from it; check that this is the image you meant",
            )


def _refine_block(work: _Work, block: int) -> Record:
    located = work.located
    assert located is not None, "the percentiles' bins are not known"
    parts = own_voxels(work.reader, work.sweep, block)
    return _pack_fine(added(fine_counts(work.sweep.cells, box, voxels, located) for box, voxels in parts))


def _merge_fine(results: list[Record]) -> Record:
    return _pack_fine(added(_unpack_fine(r) for r in results))


def _pack_fine(counts: dict[int, Counts]) -> Record:
    return {
        str(c): base64.b64encode(zlib.compress(h.astype("<i8").tobytes(), 6)).decode()
        for c, h in counts.items()
    }


def _unpack_fine(record: Record) -> dict[int, Counts]:
    return {
        int(c): np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8").astype(np.int64).reshape(2, -1)
        for c, text in record.items()
    }
