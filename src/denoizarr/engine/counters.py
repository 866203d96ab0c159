"""What the driver of a run counts of it while it goes on: blocks, batches, bytes, retries, seconds.

One run at a time is counted in a process. Blocks and batches are counted as they end. What workers know of a
batch (bytes, retries, memory) comes with its record, and records are read when a step ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

RUNNING, DONE, FAILED, STOPPED = STATES = ("running", "done", "failed", "stopped")


@dataclass(slots=True)
class PartCounts:
    """Of one pass over blocks, such as a level of a pyramid.

    Attributes
    ----------
    planned, done, failed, skipped : int
        Blocks; ``skipped`` were done by an earlier run, ``planned`` are all of them.
    read_bytes, written_bytes : int
        Read: of voxels, decoded. Written: as stored.
    retries : int
        Tries of blocks beyond the first.
    peak_bytes : int
        Largest resident memory of a process that did them.
    """

    planned: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    retries: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Counted:
    """The counters of a run at one moment.

    Attributes
    ----------
    job : str
        Digest of the job's identity.
    state : {"running", "done", "failed", "stopped"}
    step : str
        That is at work; empty before the first.
    parts : mapping of (step, part) to PartCounts
    step_seconds : mapping of str to float
    batches_in_flight : int
    requests_planned : mapping of str to int
        By kind, where they are known.
    cost_planned : (float, str), optional
        Money and currency, where they are known.
    """

    job: str = ""
    state: str = RUNNING
    step: str = ""
    parts: Mapping[tuple[str, str], PartCounts] = field(default_factory=dict)
    step_seconds: Mapping[str, float] = field(default_factory=dict)
    batches_in_flight: int = 0
    requests_planned: Mapping[str, int] = field(default_factory=dict)
    cost_planned: tuple[float, str] | None = None


class Counters:
    """Counts one run; thread-safe.

    Parameters
    ----------
    job : str
        Digest of the job's identity.
    requests_planned, cost_planned
        As in :class:`Counted`.
    """

    def __init__(
        self,
        job: str = "",
        *,
        requests_planned: Mapping[str, int] | None = None,
        cost_planned: tuple[float, str] | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._fixed = Counted(job, requests_planned=dict(requests_planned or {}), cost_planned=cost_planned)
        self._state, self._step, self._since = RUNNING, "", time.monotonic()
        self._parts: dict[tuple[str, str], PartCounts] = {}
        self._seconds: dict[str, float] = {}
        self._in_flight = 0

    @property
    def job(self) -> str:
        """Digest of the job's identity."""
        return self._fixed.job

    @property
    def step(self) -> str:
        """The step that is at work."""
        return self._step

    def begin_step(self, name: str) -> None:
        """Say that a step of the run begins, and that the one before it, if any, has ended."""
        with self._lock:
            self._close_step()
            self._step, self._since = name, time.monotonic()

    def end(self, state: str) -> None:
        """Say how the run ended."""
        assert state in STATES, state
        with self._lock:
            self._close_step()
            self._step, self._state, self._in_flight = "", state, 0

    def begin_part(self, part: str, planned: int, skipped: int) -> None:
        """Begin to count blocks, some of which an earlier run did."""
        with self._lock:
            counts = self._part(part)
            counts.planned += planned
            counts.skipped += skipped

    def batch_ended(self, part: str, blocks: int, in_flight: int, *, failed: bool = False) -> None:
        """Count the blocks of a batch."""
        with self._lock:
            counts = self._part(part)
            if failed:
                counts.failed += blocks
            else:
                counts.done += blocks
            self._in_flight = in_flight

    def nothing_in_flight(self) -> None:
        """Say that no batch is out any more."""
        with self._lock:
            self._in_flight = 0

    def add_record(self, part: str, record: Mapping[str, Any]) -> None:
        """Take over what the record of a batch of this run says."""
        if record.get("skipped", False):
            return
        with self._lock:
            counts = self._part(part)
            counts.read_bytes += int(record.get("read_bytes", 0))
            counts.written_bytes += int(record.get("written_bytes", 0))
            counts.retries += int(record.get("retries", 0))
            counts.peak_bytes = max(counts.peak_bytes, int(record.get("peak_bytes", 0)))

    def counted(self) -> Counted:
        """Return everything as it is now."""
        with self._lock:
            seconds = dict(self._seconds)
            if self._step:
                seconds[self._step] = seconds.get(self._step, 0.0) + time.monotonic() - self._since
            return replace(
                self._fixed,
                state=self._state,
                step=self._step,
                parts={key: replace(counts) for key, counts in self._parts.items()},
                step_seconds=seconds,
                batches_in_flight=self._in_flight,
            )

    def _close_step(self) -> None:
        if self._step:
            spent = time.monotonic() - self._since
            self._seconds[self._step] = self._seconds.get(self._step, 0.0) + spent

    def _part(self, part: str) -> PartCounts:
        return self._parts.setdefault((self._step, part), PartCounts())


_current: list[Counters] = []


@contextmanager
def counting(counters: Counters) -> Iterator[None]:
    """Count what this process does into these counters, until the block ends."""
    _current.append(counters)
    try:
        yield
    finally:
        _current.remove(counters)


def current_counters() -> Counters | None:
    """Return the counters of the run that this process drives, if it drives one."""
    return _current[-1] if _current else None
