"""The survey of an image: every filter map asked for, and its statistics, in one resumable pass.

A block is a box of whole cells. Its task reads the block with a halo of one cell, counts the block itself,
scores its cells, writes the scores as one chunk of a Zarr array, and returns its histograms; a batch of
blocks merges them in block order. So a survey that is killed and run again gives the same bytes.

The entropy of floats needs the image's 0.1 and 99.9 percentiles first: there, two more passes precede it.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from denoizarr.engine.ledger import Ledger
from denoizarr.engine.runner import Record, Step, run_step
from denoizarr.errors import BadRequest, DegenerateData, IncompleteOutput, OutputExists
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import Grid
from denoizarr.kernels.patch_scores import DEFAULT_COVERAGE
from denoizarr.kernels.statistics import Moments, moments_of
from denoizarr.stores import locations
from denoizarr.stores.images import ImageLike, as_image, reader_of
from denoizarr.stores.records import digest
from denoizarr.stores.sources import ImageReader

from . import own_groups
from .cells import Cells, PatchSize, patch_pair
from .filter_maps import labelled
from .image_statistics import ChannelStatistics, ImageStatistics
from .percentiles import Counts, added, bounds_of, channel_parts, fine_counts, locate
from .scores import Bounds, Score, raise_non_finite

_KEY = "denoizarr.survey"
# A record holds the merged histograms of its blocks; a batch lasts a few seconds.
_BLOCKS_PER_BATCH = 4


@dataclass(frozen=True, slots=True)
class Survey:
    """What :func:`survey` found.

    Attributes
    ----------
    statistics : ImageStatistics
    maps : dict of DataArray
        By score name, lazy, as :func:`denoizarr.selection.filter_maps.lazy_map` gives them.
    """

    statistics: ImageStatistics
    maps: dict[str, xr.DataArray]


@dataclass(frozen=True, slots=True)
class _Work:
    """What a task of the survey gets; small, and picklable where the image and the destination have a URL."""

    reader: ImageReader
    cells: Cells
    grid: Grid
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
) -> Survey:
    """Score an image and count its voxels, block by block.

    Parameters
    ----------
    image : URL, path, zarr.Array, DataArray, Dask or numpy array
    patch_size : int or (y, x)
    names : sequence of {"max", "mean_std", "shannon"}
        The scores wanted; none for the statistics alone.
    destination : path or URL, optional
        Of the Zarr group for the scores, continued if it was begun by the same survey; memory without.
    ledger : Ledger, optional
        Makes the survey resumable.
    client : distributed.Client, optional
        Runs the tasks; needs a ``destination``, and an image with a URL.
    threads : int
        Of this process, without a client. The result does not depend on them.
    progress : bool
    coverage : float, optional
        Of the max score; 0.25 unless told.

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
    """
    destination = None if destination is None else str(destination)
    opened = as_image(image)
    reader = reader_of(opened)
    cells = Cells(
        tuple(str(d) for d in opened.dims), tuple(int(n) for n in opened.shape), patch_pair(patch_size)
    )
    scores = tuple(Score(name, DEFAULT_COVERAGE if coverage is None else float(coverage)) for name in names)
    grid = cells.blocks(reader.chunks, reader.dtype.itemsize)
    if destination is None and (client is not None or ledger is not None):
        raise BadRequest("a survey on a cluster, or a resumable one, needs a destination for its scores")
    key = digest([reader.identity, list(cells.shape), list(cells.patch), list(grid.step)])
    group = _begin(destination, key, cells, grid, scores, owned=ledger is not None)
    # Records are found by this name: those of another image, or of other scores, are never taken for these.
    tag = digest([key, [[s.name, s.coverage] for s in scores]])[:12]
    work = _Work(reader, cells, grid, scores, group if destination is None else destination)

    def run(
        name: str, task: Callable[[Any, int], Record], spec: _Work, merge: Callable[[list[Record]], Record]
    ) -> list[Record]:
        step = Step(f"{name}-{tag}", task, spec, len(grid), _BLOCKS_PER_BATCH, merge)
        records = run_step(
            step, ledger=ledger, client=client, threads=threads, progress=progress, label=_label(name, scores)
        )
        return [cast("Record", record["results"]) for record in records]

    if any(score.needs_bounds(reader.dtype) for score in scores):
        moments = _merged(run("survey-count", _survey_block, replace(work, scores=()), _merge_moments))
        _check_varied(moments, reader.name)
        located = locate({c: m.histogram for c, m in moments.items()})
        fine = run("survey-percentiles", _refine_block, replace(work, located=located), _merge_fine)
        bounds = bounds_of(located, added(_unpack_fine(f) for f in fine))
        run("survey-scores", _survey_block, replace(work, count=False, bounds=bounds), _merge_moments)
    else:
        moments = _merged(run("survey", _survey_block, work, _merge_moments))
        _check_varied(moments, reader.name)
    statistics = ImageStatistics(tuple(ChannelStatistics(moments[c]) for c in sorted(moments)))
    return Survey(
        statistics, {score.name: _finished_map(group, score, opened, cells, destination) for score in scores}
    )


def _label(name: str, scores: tuple[Score, ...]) -> str:
    if name in ("survey-count", "survey-percentiles") or not scores:
        return "Measuring intensities"
    return f"Filtering background patches with filtering function {', '.join(s.name for s in scores)}"


def _begin(
    destination: str | None, key: str, cells: Cells, grid: Grid, scores: tuple[Score, ...], *, owned: bool
) -> zarr.Group:
    """Open the group for the scores and make what is not there yet; scores of another survey are replaced.

    ``owned``: the destination is the job's own, so what a kill left there is replaced as well.
    """
    if destination is None:
        group = zarr.open_group(MemoryStore(), mode="w")
    else:
        begun = locations.exists(destination) and locations.list_names(destination)
        found = (own_groups.attributes_at(destination) or {}).get(_KEY) if begun else None
        if begun and found is None and not (owned and own_groups.is_remains(destination, _is_array_name)):
            raise OutputExists(
                "something else than a survey lies here", where=destination, remedy="choose another name"
            )
        if begun and found != key:
            own_groups.delete(destination)
        group = (
            locations.open_group(destination, "a")
            if found == key
            else own_groups.begin(destination, {_KEY: key})
        )
    for score in scores:
        name = _array_name(score)
        if name not in group:
            group.create_array(
                name,
                shape=score.leading + cells.counts,
                # One chunk a block: no two tasks write the same object.
                chunks=score.leading + grid.step,
                dtype="float32",
                fill_value=float("nan"),
                compressors=[ZstdCodec(level=3), Crc32cCodec()],
                dimension_names=(("statistic",) if score.leading else ()) + cells.dims,
                config={"write_empty_chunks": True},
                attributes={"patch_size": list(cells.patch)},
            )
    return group


def _array_name(score: Score) -> str:
    return (
        f"max-{score.coverage:g}"
        if score.name == "max" and score.coverage != DEFAULT_COVERAGE
        else score.name
    )


def _is_array_name(name: str) -> bool:
    return name in ("shannon", "mean_std", "max") or name.startswith("max-")


def _survey_block(work: _Work, block: int) -> Record:
    """Read one block with its halo; count it, score it, store the scores."""
    core = work.grid.box(block)
    voxels = work.cells.voxels_of(core)
    halo = work.cells.with_halo(voxels) if work.scores else voxels
    read = work.reader.read(halo)
    inner = read[voxels.relative_to(halo.start).slices]
    result: Record = {"moments": _count(work, voxels, inner) if work.count else {}}
    if work.scores:
        group = work.destination
        if isinstance(group, str):
            group = locations.open_group(group, "a")
        assert group is not None, "scores without a destination"
        for score in work.scores:
            array = cast("zarr.Array[Any]", group[_array_name(score)])
            values = score.of_box(work.cells, core, read, work.bounds)
            array[(*(slice(n) for n in score.leading), *core.slices)] = values
    return result


def _count(work: _Work, box: Box, voxels: NDArray[Any]) -> Record:
    found = {c: moments_of(part) for c, part in channel_parts(work.cells, box, voxels).items()}
    if any(m.non_finite for m in found.values()):
        raise_non_finite(work.cells, box, voxels)
    return {str(c): m.to_json() for c, m in found.items()}


def _merge_moments(results: list[Record]) -> Record:
    """Merge within a batch, in block order."""
    return {"moments": {str(c): m.to_json() for c, m in _merged(results).items()}}


def _merged(results: Iterable[Record]) -> dict[int, Moments]:
    # One record at a time: an image has many, and a decoded histogram takes half a megabyte.
    merged: dict[int, Moments] = {}
    for result in results:
        for channel, record in result["moments"].items():
            found, number = Moments.from_json(record), int(channel)
            merged[number] = merged[number].merge(found) if number in merged else found
    return merged


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
    voxels = work.cells.voxels_of(work.grid.box(block))
    assert work.located is not None, "the percentiles' bins are not known"
    return _pack_fine(fine_counts(work.cells, voxels, work.reader.read(voxels), work.located))


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


def _finished_map(
    group: zarr.Group, score: Score, image: xr.DataArray, cells: Cells, destination: str | None
) -> xr.DataArray:
    """Return one stored score, after making sure that every block has written its part."""
    stored = cast("zarr.Array[Any]", group[_array_name(score)])
    for box in Grid(tuple(stored.shape), tuple(stored.chunks)):
        if np.isnan(np.asarray(stored[box.slices])).any():
            raise IncompleteOutput(
                "scores are missing that the ledger calls done",
                where=f"{destination or 'memory'}/{_array_name(score)} {box.slices}",
                remedy="delete the ledger and run again",
            )
    array = da.from_array(stored, chunks=stored.chunks, name=False)
    attrs = {"coverage": score.coverage} if score.name == "max" else {}
    return labelled(array, image, cells, score, attrs)
