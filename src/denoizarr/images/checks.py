"""Whether a stored image is whole: every write unit read once, hashed, decoded, counted and compared.

::

    unit -> checksum = the ledger's? -> decodes? -> NaN, infinity? -> the finer level, downsampled, is it?
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr

from denoizarr.engine.ledger_audit import LedgerClaim, checksums_of
from denoizarr.engine.runner import Record
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import Grid, batch_of, ceil_div
from denoizarr.kernels.downsampling import Agreement, agreement
from denoizarr.kernels.pooling import mean_pool
from denoizarr.stores.objects import REFUSALS, Flaw, UnitReading, read_unit
from denoizarr.stores.ome_zarr import DIMS
from denoizarr.stores.sources import Array, ImageReader, ImageSource, open_array, reader_of_array
from denoizarr.stores.strict import Missing

MOST_NAMED = 100  # flaws of one level that are named; all are counted


@dataclass(frozen=True, slots=True)
class LevelToCheck:
    """What a task needs to know of one level.

    Attributes
    ----------
    path : str
    n_units, units_per_task : int
    factors : tuple of int or None
        Voxels of the next finer level in one of this; None for a level that is compared with nothing.
    step : str
        Of its records in the ledger; empty where they cannot be used.
    blocks_per_batch : int
    above : int
        How many levels it lies above the one whose blocks wrote it along; 0 where it has records of its own.
    """

    path: str
    n_units: int
    units_per_task: int
    factors: tuple[int, ...] | None = None
    step: str = ""
    blocks_per_batch: int = 0
    above: int = 0


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """What a task needs to check units of an image.

    Attributes
    ----------
    url : str
    levels : tuple of LevelToCheck
        Finest first.
    claim : LedgerClaim or None
        Of the ledger, where there is one.
    finished : bool
        False: a unit without a record is still to be written, and not looked at.
    ours : bool
        The coarser levels are this package's means, to the last bit.
    missing : {"error", "fill"}
        What an absent chunk of the finer level means where it is compared.
    sample : int or None
        Units that are read of each level; None for all.
    compared : int
        Units of each level that are compared with the finer level, at most.
    seed : int
        Of both draws.
    """

    url: str
    levels: tuple[LevelToCheck, ...]
    claim: LedgerClaim | None
    finished: bool
    ours: bool
    missing: Missing
    sample: int | None
    compared: int
    seed: int

    def n_chosen(self, level: int) -> int:
        """Return how many units of a level are read."""
        n = self.levels[level].n_units
        return n if self.sample is None else min(self.sample, n)

    def n_tasks(self, level: int) -> int:
        """Return how many tasks read them."""
        return ceil_div(self.n_chosen(level), self.levels[level].units_per_task)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One unit beside the finer level.

    Attributes
    ----------
    key : str
    box : Box
    differing : int
        Voxels that are not exactly this package's mean; only where ``ours``.
    agreement : Agreement or None
        Only where not ``ours``.
    """

    key: str
    box: Box
    differing: int
    agreement: Agreement | None


@dataclass(slots=True)
class Tally:
    """Counts over units of one level, added up as they arrive.

    Attributes
    ----------
    read, not_done, absent, damaged : int
        Units: looked at, without a record in an unfinished output, not stored, stored and not sound.
    agreeing : int
        Units whose checksum is the ledger's.
    absent_chunks : int
        Inner chunks that a shard lacks.
    n_bytes, nan, infinite : int
        Stored bytes read; voxels.
    first_non_finite : tuple of int or None
        Index of a voxel.
    uncompared : int
        Units drawn for the comparison below which the finer level cannot be read.
    flaws : list of Flaw
        At most ``MOST_NAMED``.
    comparisons : list of Comparison
    """

    read: int = 0
    not_done: int = 0
    absent: int = 0
    damaged: int = 0
    agreeing: int = 0
    absent_chunks: int = 0
    n_bytes: int = 0
    nan: int = 0
    infinite: int = 0
    first_non_finite: tuple[int, ...] | None = None
    uncompared: int = 0
    flaws: list[Flaw] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add the counts of later units."""
        for name in ("read", "not_done", "absent", "damaged", "agreeing", "absent_chunks", "n_bytes", "nan"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.infinite += other.infinite
        self.uncompared += other.uncompared
        self.first_non_finite = self.first_non_finite or other.first_non_finite
        self.flaws += other.flaws[: max(MOST_NAMED - len(self.flaws), 0)]
        self.comparisons += other.comparisons


def level_of_task(spec: CheckSpec, task: int) -> tuple[int, int]:
    """Return the level of a task, and the task's number among those of the level."""
    for level in range(len(spec.levels)):
        if task < spec.n_tasks(level):
            return level, task
        task -= spec.n_tasks(level)
    raise AssertionError(f"no task {task}")


def check_units(spec: CheckSpec, task: int) -> Record:
    """Check some units of one level. Returns its ``level`` and a ``tally``."""
    level, number = level_of_task(spec, task)
    facts = spec.levels[level]
    units, drawn = _units_of(spec, level, number)
    known: dict[int, str] = {}
    if spec.claim is not None and facts.step:
        known = checksums_of(
            spec.claim, facts.step, units, facts.n_units, facts.blocks_per_batch, facts.above
        )
    array = open_array(spec.url, facts.path, "fill")
    finer = _finer(spec, level) if drawn else None
    tally = Tally()
    for unit in units:
        if not spec.finished and facts.step and unit not in known:
            tally.not_done += 1
            continue
        reading = read_unit(array, unit)
        _count(tally, reading, known.get(unit))
        if reading.values is None or finer is None or unit not in drawn:
            continue
        try:
            tally.comparisons.append(_compare(spec, level, array, finer, reading))
        except REFUSALS:
            tally.uncompared += 1  # what is wrong with the finer level is told where that is read
    return {"level": level, "tally": tally}


def _units_of(spec: CheckSpec, level: int, task: int) -> tuple[list[int], set[int]]:
    """Return the units of a task, and those of them that are compared with the finer level."""
    facts, n = spec.levels[level], spec.n_chosen(level)
    draw = np.random.default_rng([spec.seed, level])
    chosen = None if n == facts.n_units else np.sort(draw.choice(facts.n_units, n, replace=False))
    places = batch_of(task, n, facts.units_per_task)
    units = list(places) if chosen is None else [int(u) for u in chosen[places.start : places.stop]]
    if facts.factors is None:
        return units, set()
    compared = draw.choice(n, min(spec.compared, n), replace=False)
    return units, {units[int(p) - places.start] for p in compared if int(p) in places}


def _count(tally: Tally, reading: UnitReading, expected: str | None) -> None:
    tally.read += 1
    tally.n_bytes += reading.n_bytes
    flaws = reading.flaws
    if expected is not None and reading.checksum == expected:
        tally.agreeing += 1
    elif expected is not None and not flaws:
        why = f"is not what was written: checksum {reading.checksum}, expected {expected}"
        flaws = (Flaw(reading.key, reading.box, why),)
    if reading.checksum is None and all(flaw.absent for flaw in flaws):
        tally.absent += 1
    else:
        tally.damaged += any(not flaw.absent for flaw in flaws)
        tally.absent_chunks += sum(flaw.absent for flaw in flaws)
    tally.flaws += flaws[: max(MOST_NAMED - len(tally.flaws), 0)]
    values = reading.values
    if values is None or values.dtype.kind != "f" or (finite := np.isfinite(values)).all():
        return
    nan = int(np.count_nonzero(np.isnan(values)))
    tally.nan += nan
    tally.infinite += int(finite.size - np.count_nonzero(finite)) - nan
    if tally.first_non_finite is None:
        place = np.unravel_index(int(np.argmin(finite)), finite.shape)
        tally.first_non_finite = tuple(int(a + i) for a, i in zip(reading.box.start, place, strict=True))


def _finer(spec: CheckSpec, level: int) -> ImageReader:
    path = spec.levels[level - 1].path
    array = open_array(spec.url, path, spec.missing)
    # Names of axes in our own order, whatever they are: boxes are then along the axes as stored.
    return reader_of_array(array, ImageSource(spec.url, path, DIMS[-array.ndim :], spec.missing))


def _compare(
    spec: CheckSpec, level: int, array: zarr.Array[Any], finer: ImageReader, reading: UnitReading
) -> Comparison:
    """Compare a unit with the finer level, a chunk at a time: no more of it is in memory at once."""
    factors, values = spec.levels[level].factors, reading.values
    assert factors is not None, "the finest level is compared with nothing"
    assert values is not None, "what is compared has been decoded"
    differing, parts = 0, []
    for piece in Grid(reading.box.shape, tuple(array.chunks)):
        place = piece.shift(reading.box.start)
        here = values[piece.slices]
        if spec.ours:
            with np.errstate(invalid="ignore"):  # of infinities of both signs
                differing += _differing(mean_pool(_below(finer, place, factors), factors), here)
            continue
        grown = place.grow([int(f > 1) for f in factors]).clip(array.shape)
        margin = [
            (a - b, d - c)
            for a, b, c, d in zip(place.start, grown.start, place.stop, grown.stop, strict=True)
        ]
        parts.append(agreement(_below(finer, grown, factors), here, factors, margin))
    total = None
    if parts:
        total = Agreement(
            sum(p.n_voxels for p in parts),
            sum(p.not_mean for p in parts),
            sum(p.not_picked for p in parts),
            sum(p.out_of_range for p in parts),
        )
    return Comparison(reading.key, reading.box, differing, total)


def _below(finer: ImageReader, box: Box, factors: tuple[int, ...]) -> Array:
    start = tuple(a * f for a, f in zip(box.start, factors, strict=True))
    stop = tuple(min(b * f, n) for b, f, n in zip(box.stop, factors, finer.shape, strict=True))
    return finer.read(Box(start, stop))


def _differing(expected: Array, found: Array) -> int:
    same = expected == found
    if found.dtype.kind == "f":
        same |= np.isnan(expected) & np.isnan(found)
    return int(found.size - np.count_nonzero(same))
