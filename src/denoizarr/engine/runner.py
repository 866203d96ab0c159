"""Run many idempotent blocks: in batches, in bounded waves, on a Dask cluster or in this process.

A task is a batch of consecutive blocks. It gets block numbers and a spec, does its own reading and writing,
puts its record into the ledger and returns a few bytes. The partition into batches is part of the step, so
it does not depend on who works.
"""

from __future__ import annotations

import logging
import pickle
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denoizarr.errors import BlockFailed, ClusterLost, DenoizarrError, NoSpace, PermissionDenied
from denoizarr.geometry.grids import batch_of, ceil_div

from .ledger import Ledger
from .progress import Progress

_LOG = logging.getLogger(__name__)
# Enough that a worker never waits for the client, few enough that a kill redoes little.
_IN_FLIGHT_PER_WORKER = 2

_OUTAGES = (NoSpace, PermissionDenied, ClusterLost)

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
    spec : object
        What the task needs; picklable, without arrays or credentials.
    n_blocks, blocks_per_batch : int
    merge : callable, optional
        ``merge([result, ...]) -> dict``, applied within a batch in block order.
    """

    name: str
    task: Task
    spec: Any
    n_blocks: int
    blocks_per_batch: int
    merge: Callable[[list[Record]], Record] | None = None

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


def run_batch(step: Step, ledger: Ledger | None, batch: int) -> Record:
    """Do one batch where it is called: the blocks in order, then the record. Returns the record."""
    if ledger is not None and ledger.get(step.name, batch) is not None:
        return {
            "batch": batch
        }  # a twin, or another driver of the same job, was faster: nothing is written twice
    started = time.monotonic()
    blocks = batch_of(batch, step.n_blocks, step.blocks_per_batch)
    results = [step.task(step.spec, block) for block in blocks]
    record: Record = {
        "batch": batch,
        "blocks": [blocks.start, blocks.stop],
        "results": step.merge(results) if step.merge is not None else results,
        "seconds": round(time.monotonic() - started, 3),
        "peak_bytes": peak_bytes(),
    }
    if ledger is not None:
        ledger.put(step.name, batch, record)
        # The driver reads the record where it is stored: what crosses the scheduler stays small.
        return {"batch": batch}
    return record


def run_step(
    step: Step,
    *,
    ledger: Ledger | None = None,
    client: Any = None,
    threads: int = 1,
    progress: bool = True,
    label: str | None = None,
    sink: Callable[[Record], None] | None = None,
    fold: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Run every batch that the ledger does not hold yet.

    Parameters
    ----------
    step : Step
    ledger : Ledger, optional
        Without one, nothing is resumable and the records come back directly.
    client : distributed.Client, optional
        Without one, ``threads`` threads of this process do the work.
    threads : int
    progress : bool
    label : str, optional
        Shown instead of the step's name.
    sink : callable, optional
        Gets every new record as it arrives, and may take out of it what must not be kept. Without a ledger.
    fold : callable, optional
        Gets every record in batch order, one at a time, and none is returned: for records that are many and
        large. Those that arrive before their turn wait.

    Returns
    -------
    list of dict
        Every batch's record, in batch order: batch, blocks, results, seconds, and ``skipped`` for those
        that an earlier run had done.

    Raises
    ------
    BadData, BadRequest, ...
        What the first failed block raised, where all of them raised the same class of our own errors, or
        all found the request or the data bad (exit status 2).
    BlockFailed
        Blocks failed for reasons of several kinds, or for one that is not ours; the others are done.
    ClusterLost
        The workers or the scheduler went away.
    """
    if client is not None:
        # Here, because distributed would hide our own error ("save it first") in a TypeError of its own.
        pickle.dumps(step.spec)
    done: dict[int, Record] = {}
    if ledger is not None:
        for batch in range(step.n_batches):
            if (found := ledger.get(step.name, batch)) is not None:
                # What is folded is read again in its turn, and not held till then.
                done[batch] = found if fold is None else {}
    todo = [batch for batch in range(step.n_batches) if batch not in done]
    records: dict[int, Record] = {batch: {**record, "skipped": True} for batch, record in done.items()}
    folded = 0
    failures: dict[int, BaseException] = {}
    with Progress(label or step.name, step.n_batches, progress) as bar:
        if done:
            bar.advance(len(done), "done before")
        with _executor(client, threads) as (executor, in_flight):
            for batch, outcome in _waves(executor, step, ledger, todo, in_flight):
                if isinstance(outcome, BaseException):
                    failures[batch] = outcome
                    _LOG.error("%s: batch %d failed: %s", label or step.name, batch, outcome)
                else:
                    if sink is not None:
                        sink(outcome)
                    records[batch] = outcome
                    while fold is not None and ledger is None and folded in records:
                        fold(records.pop(folded))
                        folded += 1
                bar.advance()
    if failures:
        raise _summary_of(step, failures)
    if ledger is not None and fold is not None:
        for batch in range(step.n_batches):
            fold(_stored(ledger, step, batch))
    elif ledger is not None:
        records |= {batch: _stored(ledger, step, batch) for batch in todo}
    if fold is not None:
        return []
    return [records[batch] for batch in range(step.n_batches)]


def _stored(ledger: Ledger, step: Step, batch: int) -> Record:
    stored = ledger.get(step.name, batch)
    assert stored is not None, f"batch {batch} of {step.name} ended without a record"
    return stored


@contextmanager
def _executor(client: Any, threads: int) -> Iterator[tuple[Executor, Callable[[], int]]]:
    """Yield something that runs batches, and what tells how many to hand it at a time."""
    if client is None:
        with ThreadPoolExecutor(max(threads, 1), thread_name_prefix="block") as pool:
            yield pool, lambda: max(threads, 1)
        return
    executor = client.get_executor(pure=False)
    try:
        # Asked anew at every turn: workers of a cluster join and leave while a step runs.
        yield executor, lambda: _IN_FLIGHT_PER_WORKER * max(sum(client.nthreads().values()), 1)
    finally:
        # Distributed keeps no result that nobody holds; waiting here would wait for a lost cluster too.
        executor.shutdown(wait=False)


def _waves(
    executor: Executor, step: Step, ledger: Ledger | None, todo: list[int], in_flight: Callable[[], int]
) -> Iterator[tuple[int, Record | BaseException]]:
    """Yield (batch, record or error) as batches end, never more than ``in_flight()`` at once."""
    queue = iter(todo)
    running: dict[Future[Record], int] = {}
    stop = False
    try:
        while True:
            free = in_flight() - len(running)
            while not stop and (free := free - 1) >= 0 and (batch := next(queue, None)) is not None:
                running[executor.submit(run_batch, step, ledger, batch)] = batch
            if not running:
                return
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(ended, key=running.__getitem__):
                batch = running.pop(future)
                error = _error_of(future)
                # A bad request, bad data or a full disk will not get better by the next thousand blocks.
                hopeless = getattr(error, "exit_status", 0) == 2 or isinstance(error, _OUTAGES)
                stop = stop or hopeless
                yield batch, error if error is not None else future.result()
    finally:
        for future in running:
            future.cancel()


def _error_of(future: Future[Record]) -> BaseException | None:
    try:
        error = future.exception()
    except CancelledError as cancelled:
        error = cancelled
    if error is None or isinstance(error, DenoizarrError):
        return error
    if isinstance(error, CancelledError) or type(error).__name__ in {
        "KilledWorker",
        "NoValidWorkerError",
        "FutureCancelledError",
    }:
        return ClusterLost(
            "the Dask cluster went away",
            got=str(error) or type(error).__name__,
            remedy="run the same job again to resume",
        )
    return error


def _summary_of(step: Step, failures: dict[int, BaseException]) -> BaseException:
    first = failures[min(failures)]
    if isinstance(first, DenoizarrError) and len({type(f) for f in failures.values()}) == 1:
        return first
    if all(getattr(f, "exit_status", 1) == 2 for f in failures.values()):
        return first
    error = BlockFailed(
        f"{len(failures)} of {step.n_batches} batches failed",
        where=f"{step.name}, batch {min(failures)}",
        got=f"{type(first).__name__}: {first}",
        remedy="mend the cause and run the same job again; what is done is kept",
    )
    error.__cause__ = first
    return error
