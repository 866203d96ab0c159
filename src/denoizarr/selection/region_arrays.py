"""Where a survey keeps its scores: one Zarr array per score, one value per region, one chunk per block."""

from __future__ import annotations

import base64
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from denoizarr.errors import CorruptChunk, IncompleteOutput, OutputExists
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import Grid
from denoizarr.kernels.regions import cells_from_regions
from denoizarr.stores import locations
from denoizarr.stores.sources import UNDECODABLE

from . import own_groups
from .cell_classes import piece_shape
from .cells import Cells
from .scores import Score
from .sweeps import Sweep

_KEY = "denoizarr.survey"
# Scores that nobody asked to keep lie in memory up to here, then in a temporary folder.
_LARGEST_IN_MEMORY = 32 * 2**20
_NAMES = ("shannon", "mean_std", "max", "mask")


@dataclass(frozen=True, slots=True)
class RegionArrays:
    """The open group of a survey's scores.

    Attributes
    ----------
    group : zarr.Group
    url : str or None
        None where only this process has it.
    scores : tuple of Score
    fresh : bool
        Begun now: what a ledger says is done of it is not.
    folder : TemporaryDirectory or None
        Kept as long as somebody may read from it.
    """

    group: zarr.Group
    url: str | None
    scores: tuple[Score, ...]
    fresh: bool = True
    folder: Any = None


class _Folder:
    """A temporary folder that goes with its last holder; ``TemporaryDirectory`` would warn of that."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="denoizarr-scores-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def begin(
    destination: str | None, key: str, sweep: Sweep, scores: tuple[Score, ...], *, owned: bool
) -> RegionArrays:
    """Open the group for the scores and make what is not there yet; scores of another survey are replaced.

    ``owned``: the destination is the job's own, so what a kill left there is replaced as well.

    Raises
    ------
    OutputExists
    """
    folder, fresh = None, True
    if destination is not None:
        group, fresh = _begin_at(destination, key, owned=owned)
    elif 8 * prod(sweep.grid.shape) * sum(prod(s.leading) for s in scores) <= _LARGEST_IN_MEMORY:
        group = zarr.open_group(MemoryStore(), mode="w")
    else:
        folder = _Folder()
        group = own_groups.begin(str(folder.path / "scores.zarr"), {_KEY: key})
    for score in scores:
        name = _array_name(score, sweep.cells)
        if name not in group:
            fresh = True
            group.create_array(
                name,
                shape=score.leading + sweep.grid.shape,
                # One chunk a block: no two tasks write the same object.
                chunks=score.leading + sweep.grid.step,
                dtype="float64",
                fill_value=float("nan"),
                compressors=[ZstdCodec(level=3), Crc32cCodec()],
                dimension_names=(("statistic",) if score.leading else ()) + sweep.cells.dims,
                config={"write_empty_chunks": True},
                attributes={
                    "patch_size": list(sweep.cells.patch),
                    "values": "one per region",
                    "cells": list(sweep.cells.counts),
                },
            )
    return RegionArrays(group, destination, scores, fresh, folder)


def is_begun(destination: str, key: str, sweep: Sweep, scores: tuple[Score, ...]) -> bool:
    """Tell whether the group of just this survey is there, with all its arrays."""
    found = (own_groups.attributes_at(destination) or {}).get(_KEY) if locations.exists(destination) else None
    if found != key:
        return False
    group = locations.open_group(destination, "r")
    return all(_array_name(score, sweep.cells) in group for score in scores)


def _begin_at(destination: str, key: str, *, owned: bool) -> tuple[zarr.Group, bool]:
    begun = locations.exists(destination) and locations.list_names(destination)
    found = (own_groups.attributes_at(destination) or {}).get(_KEY) if begun else None
    if begun and found is None and not (owned and own_groups.is_remains(destination, _is_array_name)):
        raise OutputExists(
            "something else than a survey lies here", where=destination, remedy="choose another name"
        )
    if found == key:
        return locations.open_group(destination, "a"), False
    if begun:
        own_groups.delete(destination)
    return own_groups.begin(destination, {_KEY: key}), True


def _array_name(score: Score, cells: Cells) -> str:
    return f"max-{score.coverage_for(cells)!r}" if score.name == "max" else score.name


def _is_array_name(name: str) -> bool:
    return name in _NAMES or name.startswith("max-")


def write(
    target: str | zarr.Group, cells: Cells, scores: Sequence[Score], block: Box, arrays: dict[str, Any]
) -> None:
    """Write the scores of one block."""
    group = locations.open_group(target, "a") if isinstance(target, str) else target
    for score in scores:
        array = cast("zarr.Array[Any]", group[_array_name(score, cells)])
        array[(*(slice(n) for n in score.leading), *block.slices)] = arrays[score.name]


def packed(arrays: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Return the scores of one block as JSON-able fields."""
    return {
        name: [list(a.shape), base64.b64encode(zlib.compress(a.astype("<f8").tobytes(), 1)).decode()]
        for name, a in arrays.items()
    }


def unpacked(record: dict[str, Any]) -> dict[str, NDArray[np.float64]]:
    """Return what :func:`packed` was given."""
    return {
        name: np.frombuffer(zlib.decompress(base64.b64decode(text)), "<f8").reshape(shape)
        for name, (shape, text) in record.items()
    }


class CellValues:
    """The cells of stored regions: an array-like that reads one region more than the cells asked for.

    Attributes
    ----------
    dims : tuple of str
        Those of the image, after "statistic" where there are several values.
    shape, dtype, ndim
        Of the cells.
    """

    def __init__(self, regions: zarr.Array[Any], folder: Any = None) -> None:
        self.regions = regions
        self.folder = folder
        cells = tuple(int(n) for n in cast("list[int]", regions.attrs["cells"]))
        n_patched = len(cast("list[int]", regions.attrs["patch_size"]))
        self.dims = tuple(str(d) for d in getattr(regions.metadata, "dimension_names", None) or ())
        self.shape = (*regions.shape[: regions.ndim - len(cells)], *cells)
        self.dtype, self.ndim = np.dtype(np.float64), len(self.shape)
        self.n_fixed = self.ndim - n_patched

    def __getitem__(self, index: tuple[slice, ...]) -> NDArray[np.float64]:
        """Return the cells that basic slicing asks for."""
        ranges = [range(n)[part] for part, n in zip(index, self.shape, strict=True)]
        read, inner, counts = [], [], []
        for axis, wanted in enumerate(ranges):
            low, high = (min(wanted), max(wanted) + 1) if wanted else (0, 0)
            if axis < self.n_fixed or self.regions.shape[axis] == self.shape[axis]:
                read.append(slice(low, high))
                inner.append(slice(None, None, wanted.step))
                if axis >= self.n_fixed:
                    counts.append(1)
                continue
            start, stop = max(low - 1, 0), min(high, self.regions.shape[axis])
            # Cells start .. stop are covered by regions start .. stop - 1.
            read.append(slice(start, stop))
            counts.append(stop - start + 1)
            inner.append(slice(low - start, high - start, wanted.step))
        regions = np.asarray(self.regions[tuple(read)])
        return np.asarray(cells_from_regions(regions, counts)[tuple(inner)])


def open_cells(url: str, name: str) -> CellValues | None:
    """Open the stored scores of this name, "max" at any coverage; None where the group has none.

    Raises
    ------
    ImageNotFound, NotOmeZarr
    """
    arrays = dict(locations.open_group(url, "r").arrays())
    found = next((a for key, a in arrays.items() if key == name or key.startswith(f"{name}-")), None)
    return None if found is None else CellValues(found)


def how_to_mend(url: str | None) -> str:
    """Return what to do about kept numbers that are lost or damaged: they can be computed again."""
    return "run again" if url is None else f"delete {url} and {url}.ledger, then run again"


def finished(stored: RegionArrays, score: Score, cells: Cells) -> da.Array:
    """Return the cells of one stored score, lazily, after making sure that every block has its part.

    Raises
    ------
    IncompleteOutput
    """
    regions = cast("zarr.Array[Any]", stored.group[_array_name(score, cells)])
    for box in Grid(tuple(regions.shape), tuple(regions.chunks)):
        try:
            lost = np.isnan(np.asarray(regions[box.slices])).any()
        except UNDECODABLE as error:
            raise CorruptChunk(
                "kept scores cannot be decoded",
                where=f"{stored.url or 'memory'}/{_array_name(score, cells)} {box.slices}",
                got=str(error),
                remedy=how_to_mend(stored.url),
            ) from error
        if lost:
            raise IncompleteOutput(
                "scores are missing that the ledger calls done",
                where=f"{stored.url or 'memory'}/{_array_name(score, cells)} {box.slices}",
                remedy=how_to_mend(stored.url),
            )
    values = CellValues(regions, stored.folder)
    array: da.Array = da.from_array(values, chunks=piece_shape(values.shape), name=False, fancy=False)
    return array
