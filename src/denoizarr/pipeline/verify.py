"""An image read again from end to end: is it whole, is it what was written, does its pyramid agree?

::

    ledger's records -> the finished mark -> every write unit: there? its checksum? decodes? finite?
                                          -> a sample of every coarser level beside the finer one
"""

from __future__ import annotations

import time
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import zarr

from denoizarr.engine.cluster import usable_cores
from denoizarr.engine.ledger_audit import LedgerClaim, audit_step, read_claim
from denoizarr.engine.runner import Record, Step, run_step
from denoizarr.errors import BadRequest, MetadataError, NotOmeZarr
from denoizarr.geometry.grids import Grid, ceil_div
from denoizarr.images.checks import CheckSpec, LevelToCheck, Tally, check_units
from denoizarr.images.output import ledger_url
from denoizarr.stores import locations
from denoizarr.stores.ome_zarr import STATE, Level, OmeImage, read_ome
from denoizarr.stores.sources import open_array
from denoizarr.stores.strict import Missing, write_unit

from .verify_findings import ImageFacts, LevelFacts, conclude
from .verify_report import State, VerifyReport, counted

# A task of a second or so, of units whose flaws and counts stay small; and enough tasks to share out.
_TASK_VOXELS, _TASK_UNITS, _FEWEST_TASKS = 32 * 2**20, 512, 16
# Of a level: a damaged unit is found by its checksum, and a wrong way of making a level in any of these.
_COMPARED = 64
_WHOLE = 0.02  # a ratio of scales or shapes this near to a whole number is one
NonFinite = Literal["error", "allow"]


def verify(
    url: str | Path,
    *,
    sample: int | None = None,
    seed: int = 0,
    missing: Missing = "error",
    nonfinite: NonFinite = "error",
    client: Any = None,
    progress: bool = True,
) -> VerifyReport:
    """Read a stored image again and tell what is wrong with it; nothing is changed.

    An output of this package is held against the ledger beside it: every write unit has a record, and its
    bytes are those that were written. Any OME-Zarr image is checked for absent chunks, for chunks that do not
    decode, for NaN and infinity, and for levels that cannot have been made from the next finer one: of this
    package's images to the last bit, of others as means, picked or smoothed voxels, whichever fits.

    Parameters
    ----------
    url : str or Path
        An OME-Zarr image, finished or not.
    sample : int, optional
        Read so many write units of each level, drawn by ``seed``; by default all.
    seed : int
        Of that draw, and of the units (64 of a level, at most) that are compared with the finer level.
    missing : {"error", "fill"}
        Whether chunks that a foreign image lacks are a problem, or are counted only: some writers leave out
        chunks of the fill value. This package's writer never does.
    nonfinite : {"error", "allow"}
        Whether NaN and infinity are a problem, or are counted only.
    client : distributed.Client, optional
        Without one, as many threads of this process as there are cores.
    progress : bool

    Returns
    -------
    VerifyReport
        An unfinished output is reported as such, and is not ``ok``.

    Raises
    ------
    ImageNotFound, NotOmeZarr, MetadataError
        No image and no ledger of one lie here.
    BadRequest
        An option is not valid.
    """
    if sample is not None and sample < 1:
        raise BadRequest("a sample needs a unit", where="sample", got=sample, expected="1 or more")
    for name, given, known in (
        ("missing", missing, ("error", "fill")),
        ("nonfinite", nonfinite, ("error", "allow")),
    ):
        if given not in known:
            raise BadRequest("not a choice", where=name, got=given, expected=" or ".join(known))
    started = time.monotonic()
    where = locations.join(url)
    facts = _look(where, sample)
    levels = tuple(level.check for level in facts.levels if level.check is not None)
    claim = None if facts.claim is None else replace(facts.claim, identity={})  # a task stays small
    finished = facts.state != "incomplete"
    lacking: Missing = "error" if facts.ours else missing  # our own writer leaves nothing out
    spec = CheckSpec(where, levels, claim, finished, facts.ours, lacking, sample, _COMPARED, seed)
    tallies = _read(spec, client, progress)
    allowed = nonfinite == "allow"
    report = conclude(facts, tallies, missing=lacking, allow_non_finite=allowed, sample=sample)
    return replace(report, seconds=round(time.monotonic() - started, 3))


def _look(where: str, sample: int | None) -> ImageFacts:
    """Return what metadata and ledger say; no voxel is read."""
    url, beside = locations.redact(where), ledger_url(where)
    problems: list[str] = []
    claim: LedgerClaim | None = None
    ledger: str | None = beside
    try:
        claim = read_claim(beside)
        ledger = beside if locations.exists(beside) else None
        if claim is None and locations.exists(beside):
            problems.append("the ledger beside it does not say whose it is: its job.json is gone")
    except MetadataError as error:
        problems.append(f"the ledger beside it is torn: {error}")
    try:
        group = locations.open_group(where, "r")
        ome = read_ome(group, url, allow_incomplete=True)
    except BadRequest as error:
        if ledger is None:
            raise _told_what_lies_there(error, where) from error
        problems.append(f"a ledger lies beside it, but the image cannot be opened: {error}")
        return ImageFacts(url, "incomplete", ledger=ledger, claim=claim, problems=tuple(problems))
    mark = group.attrs.get(STATE)
    state: State = "foreign" if mark is None else "complete" if mark == "complete" else "incomplete"
    if mark is None and ledger is not None:
        problems.append("a ledger lies beside it, but the image does not say that denoizarr wrote it")
    levels = _levels(where, ome, claim, sample)
    known = _recorded_levels(claim)
    if claim is not None and len(known) != len(levels):
        problems.append(f"{counted(len(levels), 'level')}, and the ledger is of {len(known)}")
    return ImageFacts(url, state, ome.dims, ledger, claim, tuple(levels), tuple(problems))


def _told_what_lies_there(error: BadRequest, where: str) -> BadRequest:
    """Name the images in a folder that is none: a run folder, or what several images were written to."""
    inside = [name for name in locations.list_names(where) if name.endswith(".zarr")]
    if not isinstance(error, NotOmeZarr) or not inside:
        return error
    remedy = f"name an image in it: {', '.join(inside[:4])}"
    return NotOmeZarr("a folder, not an image", where=locations.redact(where), remedy=remedy)


def _levels(where: str, ome: OmeImage, claim: LedgerClaim | None, sample: int | None) -> list[LevelFacts]:
    found: list[LevelFacts] = []
    finer: tuple[zarr.Array[Any], Level] | None = None
    for number, level in enumerate(ome.levels):
        try:
            array = _opened(where, level.path, len(ome.dims))
        except BadRequest as error:
            found.append(LevelFacts(level.path, problem=str(error)))
            finer = None
            continue
        grid = Grid(tuple(array.shape), write_unit(array))
        problem = "" if claim is None else _other_layout(array, _recorded_levels(claim), number, claim)
        above = number if number <= _written_along(claim) else 0
        step = "" if claim is None or problem else "level-0" if above else f"level-{number}"
        audit = audit_step(claim, step, len(grid), above) if claim is not None and step else None
        factors = None if finer is None else _factors(finer, (array, level))
        n_read = len(grid) if sample is None else min(sample, len(grid))
        per_task = max(min(_TASK_VOXELS // prod(grid.step), _TASK_UNITS, ceil_div(n_read, _FEWEST_TASKS)), 1)
        per_batch = 0 if audit is None else audit.blocks_per_batch
        check = LevelToCheck(level.path, len(grid), per_task, factors, step, per_batch, above)
        uneven = number > 0 and factors is None
        note = "not a whole-number reduction of the finer level: not compared with it" if uneven else ""
        found.append(LevelFacts(level.path, grid.shape, grid.step, check, audit, problem, note))
        finer = array, level
    return found


def _opened(where: str, path: str, n_dims: int) -> zarr.Array[Any]:
    array = open_array(where, path, "fill")
    if array.ndim != n_dims:
        raise MetadataError(
            "axes and array disagree",
            where=f"{locations.redact(where)}/{path}",
            got=f"{array.ndim} array axes",
            expected=str(n_dims),
        )
    return array


def _recorded_levels(claim: LedgerClaim | None) -> list[Any]:
    """Return what the ledger's job says of its output's levels; nothing where it says it in another way."""
    output = {} if claim is None else claim.identity.get("output")
    levels = output.get("levels") if isinstance(output, dict) else None
    return levels if isinstance(levels, list) else []


def _written_along(claim: LedgerClaim | None) -> int:
    """Return how many coarser levels were written with the finest, their checksums in its records."""
    output = {} if claim is None else claim.identity.get("output")
    along = output.get("along") if isinstance(output, dict) else None
    return along if isinstance(along, int) else 0


def _other_layout(array: zarr.Array[Any], known: list[Any], number: int, claim: LedgerClaim) -> str:
    """Return in what an array is not the one that the ledger's job writes."""
    here = [list(array.shape), list(array.chunks), list(array.shards or ())]
    recorded = known[number][:3] if number < len(known) and isinstance(known[number], list) else None
    if recorded != here:
        return f"shape, chunks and shards are {here}, and the ledger says {recorded}"
    dtype = claim.identity["output"].get("dtype")
    return (
        "" if dtype == array.dtype.name else f"the dtype is {array.dtype.name}, and the ledger says {dtype}"
    )


def _factors(
    finer: tuple[zarr.Array[Any], Level], coarser: tuple[zarr.Array[Any], Level]
) -> tuple[int, ...] | None:
    """Return voxels of the finer level in one of the coarser, per axis; None where they are no whole number.

    Scales tell it exactly; shapes are rounded up by some writers and down by others.
    """
    factors = []
    for n, m, a, b in zip(finer[0].shape, coarser[0].shape, finer[1].scale, coarser[1].scale, strict=True):
        guesses = [abs(b / a) if a else 0.0, n / m, n // m, ceil_div(n, m)]
        whole = (round(guess) for guess in guesses if abs(guess - round(guess)) <= _WHOLE * guess)
        fitting = next((f for f in whole if f >= 1 and n // f <= m <= ceil_div(n, f)), None)
        if fitting is None:
            return None
        factors.append(fitting)
    return tuple(factors) if max(factors) > 1 else None


def _read(spec: CheckSpec, client: Any, progress: bool) -> dict[str, Tally]:
    """Check the units of all levels; returns a tally by the level's path."""
    tallies = [Tally() for _ in spec.levels]

    def fold(record: Record) -> None:
        for result in record["results"]:
            tallies[result["level"]].add(result["tally"])

    n_tasks = sum(spec.n_tasks(level) for level in range(len(spec.levels)))
    step = Step("verify", check_units, spec, n_tasks, 1)
    run_step(step, client=client, threads=usable_cores(), progress=progress, fold=fold)
    return {level.path: tally for level, tally in zip(spec.levels, tallies, strict=True)}
