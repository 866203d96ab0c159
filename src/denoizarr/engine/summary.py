"""What a finished job says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .runner import Record


@dataclass(frozen=True, slots=True)
class RunSummary:
    """Counts and cost of a job.

    Attributes
    ----------
    destination : str
        Where the output lies.
    blocks_total, blocks_done, blocks_skipped, blocks_failed : int
        ``blocks_skipped`` were done by an earlier run of the same job.
    missing_chunks : int
        Input chunks that were absent and read as the fill value; 0 unless the job said ``missing: fill``.
    changes : tuple of str
        What of the input did not survive to the output.
    seconds : float
        Wall time of this run.
    peak_bytes : int
        Largest resident memory of a process that did blocks.
    """

    destination: str
    blocks_total: int
    blocks_done: int
    blocks_skipped: int
    blocks_failed: int = 0
    missing_chunks: int = 0
    changes: tuple[str, ...] = ()
    seconds: float = 0.0
    peak_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON-able data."""
        return asdict(self)


def summarise(
    destination: str,
    records: Sequence[Record],
    *,
    seconds: float,
    changes: tuple[str, ...] = (),
    missing_chunks: int = 0,
) -> RunSummary:
    """Return the summary of a job's batch records."""
    counts = [(record["blocks"][1] - record["blocks"][0], record.get("skipped", False)) for record in records]
    return RunSummary(
        destination=destination,
        blocks_total=sum(n for n, _ in counts),
        blocks_done=sum(n for n, skipped in counts if not skipped),
        blocks_skipped=sum(n for n, skipped in counts if skipped),
        missing_chunks=missing_chunks,
        changes=changes,
        seconds=round(seconds, 3),
        peak_bytes=max((int(record.get("peak_bytes", 0)) for record in records), default=0),
    )


def added(destination: str, summaries: Sequence[RunSummary]) -> RunSummary:
    """Return the sum of several jobs' summaries: counts and seconds added, the largest peak."""
    return RunSummary(
        destination=destination,
        blocks_total=sum(s.blocks_total for s in summaries),
        blocks_done=sum(s.blocks_done for s in summaries),
        blocks_skipped=sum(s.blocks_skipped for s in summaries),
        missing_chunks=sum(s.missing_chunks for s in summaries),
        changes=tuple(dict.fromkeys(change for s in summaries for change in s.changes)),
        seconds=round(sum(s.seconds for s in summaries), 3),
        peak_bytes=max((s.peak_bytes for s in summaries), default=0),
    )
