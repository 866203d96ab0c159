"""A step's partition into batches, and what a worker does with one: its blocks in order, then the record."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denoizarr.geometry.grids import batch_of, ceil_div
from denoizarr.stores import attempts, store_options

from . import failpoints
from .ledger import Ledger
from .retries import RetryPolicy, retried
from .stages import Stages, overlapped

# How long a batch may go on without asking whether its output is still its job's.
_CLAIM_SECONDS = 1.0

# What a block's result may say of the bytes that it moved: they are added up in the record of its batch.
MOVED = ("read_bytes", "written_bytes")

Record = dict[str, Any]
Task = Callable[[Any, int], Record]


@dataclass(frozen=True, slots=True)
class Step:
    """Blocks ``0 .. n_blocks - 1`` of one kind of work.

    Attributes
    ----------
    name : str
        Names the step's records in the ledger, such as "level-0".
    task : callable
        ``task(spec, block) -> dict``: a module-level function, idempotent; its result is JSON-able and small.
        Or :class:`~denoizarr.engine.stages.Stages`, of which neighbouring blocks overlap.
    spec : object
        What the task needs; picklable, without arrays or credentials.
    n_blocks, blocks_per_batch : int
    merge : callable, optional
        ``merge([result, ...]) -> dict``, applied within a batch in block order.
    resources : mapping, optional
        What a batch needs of a worker of a Dask cluster while it runs, such as ``{"GPU": 1}``.
    """

    name: str
    task: Task
    spec: Any
    n_blocks: int
    blocks_per_batch: int
    merge: Callable[[list[Record]], Record] | None = None
    resources: Mapping[str, float] | None = None

    @property
    def n_batches(self) -> int:
        """Number of tasks."""
        return ceil_div(self.n_blocks, self.blocks_per_batch)


def peak_bytes() -> int:
    """Return the largest resident memory that this process has had."""
    try:
        # Linux: getrusage would count what the parent held when it started this process.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kibibytes elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run_batch(
    step: Step, ledger: Ledger | None, batch: int, retries: RetryPolicy, stores: store_options.InUse = ()
) -> Record:
    """Do one batch where it is called: the blocks in order, then the record. Returns the record.

    A block that fails for a passing reason is tried again here, and alone: those before it are done.
    """
    store_options.take(stores)
    checked = float("-inf")
    again: list[str] = []

    def persist(work: Callable[[], Any], what: str, *drawn_from: object) -> Any:
        is_first = True

        def claimed_work() -> Any:
            nonlocal checked, is_first
            if not is_first:
                again.append(what)  # from any thread
            is_first = False
            if ledger is not None and time.monotonic() - checked > _CLAIM_SECONDS:
                ledger.check_claim()
                checked = time.monotonic()
            return work()

        return retried(claimed_work, retries, step.name, batch, *drawn_from, what=f"{step.name}, {what}")

    if ledger is not None and persist(lambda: ledger.get(step.name, batch), f"record {batch}") is not None:
        # A twin, or another driver of the same job, was faster: nothing is written twice.
        return {"batch": batch}
    started = time.monotonic()
    blocks = batch_of(batch, step.n_blocks, step.blocks_per_batch)
    if isinstance(step.task, Stages):
        results = overlapped(step.task, step.spec, blocks, persist)
    else:
        results = [persist(lambda n=n: step.task(step.spec, n), f"block {n}", n) for n in blocks]  # type: ignore[misc]
    moved = {name: sum(result.pop(name, 0) for result in results) for name in MOVED}
    record: Record = {
        "batch": batch,
        "blocks": [blocks.start, blocks.stop],
        "results": step.merge(results) if step.merge is not None else results,
        "seconds": round(time.monotonic() - started, 3),
        "peak_bytes": peak_bytes(),
        **{name: n_bytes for name, n_bytes in moved.items() if n_bytes},
    }
    requests, repeated = attempts.take_counts()
    if requests:
        record["requests"] = requests
    if repeated or again:
        record["retries"] = repeated + len(again)
    if ledger is not None:
        persist(lambda: ledger.put(step.name, batch, record), f"record {batch}")
        failpoints.reach("recorded")
        # The driver reads the record where it is stored: what crosses the scheduler stays small.
        return {"batch": batch}
    return record
