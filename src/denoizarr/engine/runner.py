"""Run many idempotent blocks: in batches, in bounded waves, on a Dask cluster or in this process.

A task is a batch of consecutive blocks. It gets block numbers and a spec, does its own reading and writing,
puts its record into the ledger and returns a few bytes. The partition into batches is part of the step, so
it does not depend on who works.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

from denoizarr.errors import BlockFailed, Outage, Stopped
from denoizarr.geometry.grids import batch_of
from denoizarr.stores import attempts, store_options

from . import failpoints, json_logs
from .batches import Record as Record
from .batches import Step as Step
from .batches import Task as Task
from .batches import peak_bytes as peak_bytes
from .batches import run_batch
from .counters import Counters, current_counters
from .crews import Threads, Workers
from .deadlines import DeadlinePolicy, Deadlines
from .failures import Failures
from .ledger import GROUP, Ledger
from .progress import Progress
from .retries import RetryPolicy
from .shares import Share
from .stop_signals import StopSignals
from .waves import Waves

_LOG = logging.getLogger(__name__)
# A network disk may go on saying for a minute that what was asked for once, and was not there, still is not.
_UNSEEN_SECONDS, _LOOK_SECONDS = 90.0, 0.5
_DRAINS = "no more batches begin, and those in flight are waited for"


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
    deadlines: DeadlinePolicy = DeadlinePolicy(),  # noqa: B008  # frozen
    share: Share | None = None,
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
    deadlines : DeadlinePolicy
        After how long a batch is taken for lost with its worker.
    share : Share, optional
        Run these batches only, and return or fold their records only. Needs a ledger.

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
    Stopped, KeyboardInterrupt, ...
        What the handler of SIGTERM or Ctrl-C raises, once the batches in flight are on record.
    """
    if client is not None:
        # Here, because distributed would hide our own error ("save it first") in a TypeError of its own.
        pickle.dumps(step.spec)
        json_logs.take_over_others()  # distributed is there by now, and speaks in plain lines
    if ledger is not None:
        size = ledger.begin_step(step.name, step.n_blocks, step.blocks_per_batch)
        step = replace(step, blocks_per_batch=size)
        failpoints.reach("begun")
    name, n_batches = label or step.name, step.n_batches
    done = bytearray(n_batches) if ledger is None else ledger.done(step.name, n_batches)
    mine = range(n_batches) if share is None else share.batches(n_batches)
    # Who has a share does not know when a group is full.
    gathering = _Gathering(ledger if share is None else None, step, done)
    arrived: dict[int, Record] = {}
    folded = 0
    failures = Failures(step.name, name, n_batches)
    crew = Threads(threads) if client is None else Workers(client, step.name, step.resources)
    attempts.take_counts()  # what was asked before is none of these blocks'
    work = partial(run_batch, step, ledger, retries=retries, stores=store_options.in_use())
    waves = Waves(crew, work, name, Deadlines(deadlines), fetch=ledger is None)
    todo = (batch for batch in mine if not done[batch])
    tally = _Tally(current_counters(), step, name, mine, done)
    # Without a ledger there is nothing to save by waiting.
    with (
        StopSignals(ledger is not None, _DRAINS) as stop,
        Progress(name, len(mine), progress) as bar,
        closing(waves.run(todo, lambda: not (stop.are_pending or failures.are_hopeless))) as outcomes,
    ):
        if n_done := sum(done[batch] for batch in mine):
            bar.advance(n_done, "done before")
        for batch, outcome in outcomes:
            tally.ended(batch, waves.in_flight, outcome)
            if isinstance(outcome, BaseException):
                failures.add(batch, outcome)
            else:
                failures.succeeded()
                if sink is not None:
                    sink(outcome)
                gathering.ended(batch)
                if ledger is None:
                    arrived[batch] = outcome
                while fold is not None and folded in arrived:
                    fold(arrived.pop(folded))
                    folded += 1
            bar.advance()
        is_stopped = stop.are_pending
    tally.over()
    if is_stopped:  # and the handler that was there before let it pass
        raise Stopped("stopped by a signal", where=name, remedy="run the same job again to resume")
    if failures:
        raise failures.error()
    if ledger is None:
        return [arrived[batch] for batch in range(n_batches)] if fold is None else []
    gathering.finish()
    stored = tally.reading(_stored(ledger, step, done, mine, _UNSEEN_SECONDS if client is not None else 0.0))
    if fold is None:
        return list(stored)
    for record in stored:
        fold(record)
    return []


def is_done(step: Step, ledger: Ledger) -> bool:
    """Tell whether every batch of a step has its record, in the partition that it was begun with."""
    size = ledger.blocks_per_batch(step.name, step.n_blocks)
    return size is not None and ledger.holds(step.name, replace(step, blocks_per_batch=size).n_batches)


class _Tally:
    """What goes into the counters of the run that this step is part of, if anybody counts."""

    def __init__(
        self, counters: Counters | None, step: Step, name: str, mine: Sequence[int], done: bytearray
    ) -> None:
        self._counters, self._step, self._name = counters, step, name
        if counters is not None:
            whole = len(mine) == step.n_batches
            before = sum(self._blocks(batch) for batch in mine if done[batch])
            counters.begin_part(name, step.n_blocks if whole else sum(map(self._blocks, mine)), before)

    def _blocks(self, batch: int) -> int:
        return len(batch_of(batch, self._step.n_blocks, self._step.blocks_per_batch))

    def ended(self, batch: int, in_flight: int, outcome: Record | BaseException) -> None:
        if self._counters is None:
            return
        failed = isinstance(outcome, BaseException)
        self._counters.batch_ended(self._name, self._blocks(batch), in_flight, failed=failed)
        if not isinstance(outcome, BaseException):
            # Without a ledger it is the whole record; with one, no more than that it is there.
            self._counters.add_record(self._name, outcome)

    def over(self) -> None:
        if self._counters is not None:
            self._counters.nothing_in_flight()

    def reading(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the records, and count what they say."""
        for record in records:
            if self._counters is not None:
                self._counters.add_record(self._name, record)
            yield record


class _Gathering:
    """Gathers the records of each group of batches as its last one ends: few files, and a quick resume."""

    def __init__(self, ledger: Ledger | None, step: Step, done: bytearray) -> None:
        self._ledger, self._step = ledger, step.name
        n_groups = 0 if ledger is None else step.n_batches // GROUP
        self._left = [done.count(0, g * GROUP, (g + 1) * GROUP) for g in range(n_groups)]

    def ended(self, batch: int) -> None:
        group = batch // GROUP
        if group < len(self._left):
            self._left[group] -= 1
            if self._left[group] == 0:
                self._gather(group)

    def finish(self) -> None:
        """Gather what was done before, by others: shares of a job array, or a driver that was killed."""
        for group in range(len(self._left)):
            self._gather(group)

    def _gather(self, group: int) -> None:
        assert self._ledger is not None, "groups are a ledger's"
        try:
            self._ledger.gather(self._step, group)
        except (Outage, OSError) as error:
            _LOG.warning("%s: records are left as they are: %s", self._step, error)


def _stored(
    ledger: Ledger, step: Step, done_before: bytearray, batches: range, patience_seconds: float
) -> Iterator[Record]:
    """Yield the records of batches that are done, in order; those of this run are waited for."""
    whole = len(batches) == step.n_batches
    found = (
        ledger.records(step.name, step.n_batches) if whole else (ledger.get(step.name, b) for b in batches)
    )
    until: float | None = None
    for batch, record in zip(batches, found, strict=True):
        while record is None and not done_before[batch]:
            until = time.monotonic() + patience_seconds if until is None else until
            if time.monotonic() >= until:
                break
            time.sleep(_LOOK_SECONDS)
            record = ledger.get(step.name, batch)
        if record is None:
            ledger.discard_torn(step.name, batch)
            raise BlockFailed(
                "a record was lost or is damaged",
                where=f"{step.name}, batch {batch}",
                remedy="run the same job again: that batch is redone",
            )
        yield {**record, "skipped": True} if done_before[batch] else record
