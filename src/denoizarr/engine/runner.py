"""Run many idempotent blocks: in batches, in bounded waves, on a Dask cluster or in this process.

A task is a batch of consecutive blocks. It gets block numbers and a spec, does its own reading and writing,
puts its record into the ledger and returns a few bytes. The partition into batches is part of the step, so
it does not depend on who works.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import Any

from denoizarr.errors import ClusterLost, DenoizarrError

from .batches import Record as Record
from .batches import Step as Step
from .batches import Task as Task
from .batches import peak_bytes as peak_bytes
from .batches import run_batch
from .failures import Failures
from .ledger import Ledger
from .progress import Progress
from .retries import RetryPolicy

# Enough that a worker never waits for the client, few enough that a kill redoes little.
_IN_FLIGHT_PER_WORKER = 2


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
    retries: RetryPolicy = RetryPolicy(),  # noqa: B008  # frozen
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
    retries : RetryPolicy
        Of a block that fails for a passing reason.

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
    failures = Failures(step.name, label or step.name, step.n_batches)
    with Progress(label or step.name, step.n_batches, progress) as bar:
        if done:
            bar.advance(len(done), "done before")
        with _executor(client, threads) as (executor, in_flight):
            for batch, outcome in _waves(
                executor, partial(run_batch, step, ledger, retries=retries), todo, in_flight, failures
            ):
                if isinstance(outcome, BaseException):
                    failures.add(batch, outcome)
                else:
                    failures.succeeded()
                    if sink is not None:
                        sink(outcome)
                    records[batch] = outcome
                    while fold is not None and ledger is None and folded in records:
                        fold(records.pop(folded))
                        folded += 1
                bar.advance()
    if failures:
        raise failures.error()
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
    executor: Executor,
    work: Callable[[int], Record],
    todo: list[int],
    in_flight: Callable[[], int],
    failures: Failures,
) -> Iterator[tuple[int, Record | BaseException]]:
    """Yield (batch, record or error) as batches end, never more than ``in_flight()`` at once."""
    queue = iter(todo)
    running: dict[Future[Record], int] = {}
    try:
        while True:
            free = in_flight() - len(running)
            while (
                not failures.are_hopeless
                and (free := free - 1) >= 0
                and (batch := next(queue, None)) is not None
            ):
                running[executor.submit(work, batch)] = batch
            if not running:
                return
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(ended, key=running.__getitem__):
                batch = running.pop(future)
                error = _error_of(future)
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
