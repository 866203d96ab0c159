"""From counts to sentences: what is wrong with an image, where, and what could not be told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from denoizarr.engine.ledger_audit import LedgerClaim, StepAudit, object_name
from denoizarr.geometry.grids import Grid
from denoizarr.images.checks import Comparison, LevelToCheck, Tally
from denoizarr.stores.strict import Missing

from .verify_report import Finding, LevelReport, State, VerifyReport, counted, place, ranges

_MOST_SENTENCES = 20  # of one kind and level; the rest is counted
# Of a foreign level: borders are padded in many ways, and cubic interpolation oversteps at edges.
_TOLERATED = 0.02
_RUN_AGAIN = "run the job that began it again"


@dataclass(frozen=True, slots=True)
class LevelFacts:
    """A level before its units are read.

    Attributes
    ----------
    path : str
    shape, unit : tuple of int
        Of the array and of a write unit.
    check : LevelToCheck or None
        None where the array cannot be opened.
    audit : StepAudit or None
        Of its records; None without a ledger, or where the ledger is of an array of another layout.
    problem : str
        Why it cannot be opened, or in what it is not what the ledger says.
    note : str
        Why it is not compared with the finer level.
    """

    path: str
    shape: tuple[int, ...] = ()
    unit: tuple[int, ...] = ()
    check: LevelToCheck | None = None
    audit: StepAudit | None = None
    problem: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image before its units are read.

    Attributes
    ----------
    url : str
        Redacted.
    state : {"complete", "incomplete", "foreign"}
    dims : tuple of str
        As stored.
    ledger : str or None
        Where it lies.
    claim : LedgerClaim or None
        None also where it is torn.
    levels : tuple of LevelFacts
    problems : tuple of str
        Of the image as a whole.
    """

    url: str
    state: State
    dims: tuple[str, ...] = ()
    ledger: str | None = None
    claim: LedgerClaim | None = None
    levels: tuple[LevelFacts, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        """Whether this package wrote it."""
        return self.state != "foreign" or self.ledger is not None


def conclude(
    facts: ImageFacts,
    tallies: Mapping[str, Tally],
    *,
    missing: Missing,
    allow_non_finite: bool,
    sample: int | None,
) -> VerifyReport:
    """Return the report: every count, and a sentence for each thing that is wrong."""
    may_lack = missing == "fill"
    reports: list[LevelReport] = []
    problems = [*facts.problems, *_of_mark(facts)]
    notes = list(_general_notes(facts, sample))
    damaged: list[Finding] = []
    absent: list[Finding] = []
    finer = ""
    for level in facts.levels:
        tally = tallies.get(level.path, Tally())
        rule, contradicting = _reduction(tally.comparisons, facts.ours)
        reports.append(_report(level, tally, rule, len(contradicting)))
        for flaw in tally.flaws:
            found = Finding(level.path, flaw.key, flaw.box.start, flaw.box.stop, flaw.reason)
            (absent if flaw.absent else damaged).append(found)
        name = f"level {level.path}"
        sentences = [
            *_of_level(level, facts),
            *_of_units(tally, facts, level, may_lack),
            *_of_non_finite(tally, facts, allow_non_finite),
            *_of_reduction(contradicting, facts, finer),
        ]
        problems += [f"{name}: {sentence}" for sentence in sentences]
        notes += [f"{name}: {note}" for note in _notes(level, tally, finer, may_lack)]
        finer = level.path
    lacking = any(r.absent or r.absent_chunks for r in reports) and not may_lack
    opened = bool(reports) and all(r.shape and not r.not_done and not r.unrecorded for r in reports)
    complete = facts.state != "incomplete" and opened and not lacking
    return VerifyReport(
        facts.url,
        facts.state,
        facts.ledger,
        complete,
        tuple(reports),
        tuple(damaged),
        tuple(absent),
        tuple(problems),
        tuple(notes),
    )


def _report(level: LevelFacts, tally: Tally, rule: str, inconsistent: int) -> LevelReport:
    return LevelReport(
        level.path,
        level.shape,
        0 if level.check is None else level.check.n_units,
        tally.read,
        tally.absent,
        tally.damaged,
        tally.not_done,
        tally.absent_chunks,
        tally.agreeing,
        () if level.audit is None else level.audit.missing,
        tally.nan,
        tally.infinite,
        len(tally.comparisons),
        inconsistent,
        rule,
        tally.n_bytes,
    )


def _of_mark(facts: ImageFacts) -> Iterator[str]:
    """Yield what the finished mark and the records say of each other."""
    audits = [level.audit for level in facts.levels if level.audit is not None]
    total, lacking = sum(a.n_blocks for a in audits), sum(a.n_missing for a in audits)
    if facts.state == "complete" and lacking:
        of = f"{lacking:,} of {counted(total, 'block')}"
        yield f"marked finished, but the ledger has no good record of {of}"
    if facts.state != "incomplete":
        return
    if facts.ledger is None:
        yield "not finished, and no ledger beside it says what is done"
    elif lacking:
        yield f"not finished: {lacking:,} of {counted(total, 'block')} still to be done; {_RUN_AGAIN}"
    elif audits and len(audits) == len(facts.levels):
        yield f"every block is recorded, but the image is not marked finished; {_RUN_AGAIN}"
    else:
        yield f"not finished; {_RUN_AGAIN}"


def _of_level(level: LevelFacts, facts: ImageFacts) -> Iterator[str]:
    """Yield what is wrong with its array and its records."""
    if level.problem:
        yield level.problem
    if level.audit is None:
        return
    bad = [f"record {name} {why}, and vouches for nothing" for name, why in level.audit.bad]
    yield from _shortened(bad, len(bad), "records")
    if level.audit.missing:
        said = "still to be done" if facts.state == "incomplete" else "without a good record in the ledger"
        yield f"{said}: blocks {ranges(level.audit.missing)} of {level.audit.n_blocks:,}"


def _of_units(tally: Tally, facts: ImageFacts, level: LevelFacts, may_lack: bool) -> Iterator[str]:
    said = [
        (flaw.absent, f"{flaw.key} ({place(facts.dims, flaw.box)}) {flaw.reason}") for flaw in tally.flaws
    ]
    yield from _shortened([text for gone, text in said if not gone], tally.damaged, "damaged objects")
    n_absent = tally.absent + tally.absent_chunks
    if may_lack or not n_absent:
        return
    if facts.state == "incomplete" and level.audit is None:
        yield f"{tally.absent:,} of {counted(tally.read, 'write unit')} absent"
        return
    yield from _shortened([text for gone, text in said if gone], n_absent, "absent objects")


def _of_non_finite(tally: Tally, facts: ImageFacts, allowed: bool) -> Iterator[str]:
    if allowed or tally.first_non_finite is None:
        return
    first = ", ".join(f"{d} {i}" for d, i in zip(facts.dims, tally.first_non_finite, strict=True))
    yield f"{tally.nan:,} NaN and {tally.infinite:,} infinite voxels, one of them at {first}"


def _of_reduction(
    contradicting: Sequence[tuple[Comparison, int]], facts: ImageFacts, finer: str
) -> Iterator[str]:
    how = "are not the means" if facts.ours else "cannot come from those"
    yield from _shortened(
        [
            f"{c.key} ({place(facts.dims, c.box)}): {n:,} of {c.box.size:,} voxels {how} of level {finer}"
            for c, n in contradicting
        ],
        len(contradicting),
        "units that disagree with the finer level",
    )


def _reduction(comparisons: Sequence[Comparison], ours: bool) -> tuple[str, list[tuple[Comparison, int]]]:
    """Return how a level was made, and the units that cannot have been, with their voxels that contradict.

    Of a foreign level the rule is what most of its units keep to: a damaged one must not decide it.
    """
    if not comparisons:
        return "", []
    if ours:
        return "mean", [(c, c.differing) for c in comparisons if c.differing]
    found = [(c, c.agreement) for c in comparisons if c.agreement is not None]
    ways = {"mean": [a.not_mean for _, a in found], "picked": [a.not_picked for _, a in found]}
    for rule, broken in ways.items():
        if 2 * broken.count(0) >= len(found):
            pairs = zip(found, broken, strict=True)
            return rule, [
                (c, n) for (c, a), n in pairs if n > _TOLERATED * a.n_voxels or (n and a.out_of_range)
            ]
    return "smoothed", [(c, a.out_of_range) for c, a in found if a.out_of_range > _TOLERATED * a.n_voxels]


def _general_notes(facts: ImageFacts, sample: int | None) -> Iterator[str]:
    if facts.state == "foreign" and facts.ledger is None:
        yield "not written by denoizarr: there are no checksums to compare with"
    elif facts.ledger is None:
        yield "no ledger beside it: there are no checksums to compare with"
    if sample is not None:
        yield f"a sample: at most {counted(sample, 'write unit')} of each level read"


def _notes(level: LevelFacts, tally: Tally, finer: str, may_lack: bool) -> Iterator[str]:
    if level.note:
        yield level.note
    if tally.uncompared:
        n = counted(tally.uncompared, "write unit")
        yield f"{n} not compared: level {finer} cannot be read there"
    n_absent = tally.absent + tally.absent_chunks
    if records := _records_of(level, tally):
        yield f"to have what is damaged or absent written again, delete the records {records} and run the job"
    if may_lack and n_absent:
        yield f"{counted(n_absent, 'object')} absent, which read as the fill value"


def _records_of(level: LevelFacts, tally: Tally) -> str:
    """Return the names of the records that vouch for what is damaged or absent: without them it is redone."""
    if level.audit is None or level.audit.blocks_per_batch == 0:
        return ""
    grid = Grid(level.shape, level.unit)
    starts = [flaw.box.start for flaw in tally.flaws]
    blocks = [grid.number([a // u for a, u in zip(start, level.unit, strict=True)]) for start in starts]
    batches = {block // level.audit.blocks_per_batch for block in blocks}
    names = sorted({object_name(batch, level.audit.gathered) for batch in batches})
    return ", ".join(f"{level.audit.step}/{name}" for name in names)


def _shortened(sentences: Sequence[str], total: int, noun: str) -> Iterator[str]:
    yield from sentences[:_MOST_SENTENCES]
    if total > min(len(sentences), _MOST_SENTENCES):
        yield f"and {total - min(len(sentences), _MOST_SENTENCES):,} more {noun}"
