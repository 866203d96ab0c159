"""What was found in a stored image: counts, and a sentence for each thing that is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from denoizarr.geometry.boxes import Box

State = Literal["complete", "incomplete", "foreign"]
_REDUCTIONS = {
    "mean": "means of",
    "picked": "voxels picked from",
    "smoothed": "within the range of",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with one stored object.

    Attributes
    ----------
    level : str
        Path of the level.
    key : str
        Of the object in the store; ``#i,j,k`` behind it is an inner chunk's position in its shard.
    start, stop : tuple of int
        Its voxels, along the axes as stored.
    reason : str
    """

    level: str
    key: str
    start: tuple[int, ...]
    stop: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class LevelReport:
    """What was found in one level.

    Attributes
    ----------
    path : str
    shape : tuple of int
        Empty where the array cannot be opened.
    units : int
        Write units (shards, else chunks) that it should have.
    read, absent, damaged, not_done : int
        Of them: looked at, not stored, stored and not sound, still to be written by the job (and not read).
    absent_chunks : int
        Inner chunks that shards lack.
    agreeing : int
        Units whose checksum is the ledger's.
    unrecorded : tuple of (int, int)
        Units without a good record in the ledger: first, and one past the last.
    nan, infinite : int
        Voxels among those read.
    compared, inconsistent : int
        Units compared with the next finer level, and those that cannot have been made from it.
    reduction : str
        How the level seems to have been made: "mean", "picked", "smoothed", or empty.
    bytes_read : int
        Stored.
    """

    path: str
    shape: tuple[int, ...] = ()
    units: int = 0
    read: int = 0
    absent: int = 0
    damaged: int = 0
    not_done: int = 0
    absent_chunks: int = 0
    agreeing: int = 0
    unrecorded: tuple[tuple[int, int], ...] = ()
    nan: int = 0
    infinite: int = 0
    compared: int = 0
    inconsistent: int = 0
    reduction: str = ""
    bytes_read: int = 0

    def in_words(self, finer: str | None) -> str:
        """Return the counts as one line; ``finer`` is the path of the next finer level."""
        if not self.shape:
            return f"level {self.path}: no array"
        parts = [f"{self.read:,} of {self.units:,} write units read", f"{self.absent:,} absent"]
        parts.append(f"{self.damaged:,} damaged")
        if self.not_done:
            parts.append(f"{self.not_done:,} still to be written")
        if self.absent_chunks:
            parts.append(f"{self.absent_chunks:,} chunks absent from their shards")
        if self.agreeing:
            parts.append(f"{self.agreeing:,} as the ledger's checksum says")
        if self.nan or self.infinite:
            parts.append(f"{self.nan:,} NaN, {self.infinite:,} infinite")
        if self.compared:
            how = f" ({_REDUCTIONS[self.reduction]} level {finer})" if self.reduction else ""
            parts.append(f"{self.compared:,} compared with level {finer}, {self.inconsistent:,} differ{how}")
        return f"level {self.path}: {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What ``verify`` found.

    Attributes
    ----------
    url : str
        Redacted.
    state : {"complete", "incomplete", "foreign"}
        The image's own mark; "foreign" where it has none.
    ledger : str or None
        Where the ledger lies that the image was held against; None where there is none.
    complete : bool
        Finished, as far as it says of itself, and everything that was looked for is there.
    levels : tuple of LevelReport
        Finest first.
    damaged, missing : tuple of Finding
        Objects, at most 100 of each level; ``levels`` counts all. What an unfinished job has still to write
        is not among the missing: see ``unrecorded`` of its levels.
    problems : tuple of str
        A sentence for each thing that is wrong: what and where. Empty where the image is sound.
    notes : tuple of str
        What was not checked, and why.
    seconds : float
        Wall time.
    """

    url: str
    state: State
    ledger: str | None
    complete: bool = False
    levels: tuple[LevelReport, ...] = ()
    damaged: tuple[Finding, ...] = ()
    missing: tuple[Finding, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong: an output that is not finished is not ok."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-able data."""
        return {"ok": self.ok, **asdict(self)}

    def in_words(self) -> str:
        """Return the report as lines: the verdict, the levels, the problems, the notes."""
        read = sum(level.bytes_read for level in self.levels) / 2**20
        verdict = "nothing wrong" if self.ok else counted(len(self.problems), "problem")
        mark = {
            "complete": "marked finished",
            "incomplete": "not finished",
            "foreign": "no mark of denoizarr",
        }
        lines = [f"{self.url}: {verdict}; {mark[self.state]}, {read:,.1f} MiB read in {self.seconds:.1f} s"]
        finer: str | None = None
        for level in self.levels:
            lines.append(level.in_words(finer))
            finer = level.path
        lines += [f"problem: {problem}" for problem in self.problems]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def counted(n: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is not one."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def place(dims: Sequence[str], box: Box) -> str:
    """Return a box as ``z 0:1, y 32:64, x 32:64``."""
    return ", ".join(f"{d} {a}:{b}" for d, a, b in zip(dims, box.start, box.stop, strict=True))


def ranges(pairs: Sequence[tuple[int, int]], most: int = 8) -> str:
    """Return ranges of numbers as ``0 to 3, 7, 9 to 12``, the last number included."""
    parts = [str(a) if b == a + 1 else f"{a} to {b - 1}" for a, b in pairs[:most]]
    more = sum(b - a for a, b in pairs[most:])
    return ", ".join(parts) + (f" and {more:,} more" if more else "")
