"""What a finished job says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .batches import Record


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
    blocks_in_smaller_tiles : int
        Blocks for which memory was too short, and that were computed once more in tiles of half the sides.
    requests, retries : int
        Of the blocks done: requests to object stores, 0 where all is on disks; how often one of them, or a
        whole block, was tried once more.
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
    blocks_in_smaller_tiles: int = 0
    requests: int = 0
    retries: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON-able data."""
        return asdict(self)


class Tally:
    """Counts a job's batch records as they go by, and keeps none of them."""

    def __init__(self) -> None:
        self._total = self._skipped = self._peak_bytes = self._in_smaller_tiles = 0
        self._requests = self._retries = 0
        self._missing_chunks: set[str] = set()

    def add(self, record: Record) -> None:
        """Count the record of a batch."""
        blocks = record["blocks"][1] - record["blocks"][0]
        self._total += blocks
        self._skipped += blocks if record.get("skipped", False) else 0
        self._peak_bytes = max(self._peak_bytes, int(record.get("peak_bytes", 0)))
        if not record.get("skipped", False):
            self._requests += int(record.get("requests", 0))
            self._retries += int(record.get("retries", 0))
        if isinstance(record["results"], list):
            for result in record["results"]:
                # Neighbours read the same chunks.
                self._missing_chunks.update(result.get("missing_chunks", ()))
                self._in_smaller_tiles += "tile_shape" in result

    def summary(self, destination: str, *, seconds: float, changes: tuple[str, ...] = ()) -> RunSummary:
        """Return the summary of all records so far."""
        return RunSummary(
            destination=destination,
            blocks_total=self._total,
            blocks_done=self._total - self._skipped,
            blocks_skipped=self._skipped,
            missing_chunks=len(self._missing_chunks),
            changes=changes,
            seconds=round(seconds, 3),
            peak_bytes=self._peak_bytes,
            blocks_in_smaller_tiles=self._in_smaller_tiles,
            requests=self._requests,
            retries=self._retries,
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
        blocks_in_smaller_tiles=sum(s.blocks_in_smaller_tiles for s in summaries),
        requests=sum(s.requests for s in summaries),
        retries=sum(s.retries for s in summaries),
    )


def smaller_tiles_in_words(summary: RunSummary) -> str:
    """Return a sentence about the blocks for which memory was too short."""
    return (
        f"Memory was too short for {summary.blocks_in_smaller_tiles} of {summary.blocks_total} blocks: they "
        "were computed in smaller tiles, which differ by the rounding of floats; the ledger says which."
    )
