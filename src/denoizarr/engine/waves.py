"""Hand batches out in bounded waves, and never wait for ever: late ones are handed out once more.

A batch that passes its hard deadline gets a twin on another worker. That is harmless: a block's bytes do not
depend on who writes them, objects are replaced whole, and a batch's first record stays. A batch that fails is
tried once by another worker, and a worker that fails what others do gets no more: one node without its disk
fails a batch in no time, and would have the whole queue.

Which of the batches that a dead worker had killed it is not known, and together they would all end as the one
does. They are set aside, and tried again apart from each other, one on each worker, once nothing else is out:
when the queue has ended, or when they are so many that something is wrong with more than one of them.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from denoizarr.errors import BlockFailed, ClusterLost

from .batches import Record
from .crews import FailedOn, Threads, Work, Workers
from .deadlines import Deadlines

_LOG = logging.getLogger(__name__)
# How often deadlines are looked at, and how soon a thread that ended without a word is found.
_LOOK_SECONDS = 1.0
# How long a drain waits for workers that are all gone; those that a nanny restarts are back before.
_DRAIN_SECONDS = 30.0
# So many batches that failed on a worker and not on another are no accident.
_SICK_AFTER = 3
_GONE = frozenset({"NoValidWorkerError", "FutureCancelledError"})


@dataclass(slots=True)
class _Turn:
    """A batch that is out: since when, how often, and everything that may bring its answer."""

    since: float
    handles: list[Any] = field(default_factory=list)
    tries: int = 1
    warned: bool = False
    seen_on: set[str] = field(default_factory=set)
    failed_on: str | None = None

    def begin(self, now: float) -> None:
        """Give it its time anew."""
        self.since, self.warned = now, False


class Waves:
    """The batches of one step on their way through a crew.

    Parameters
    ----------
    crew : Threads or Workers
    work : callable
        ``work(batch) -> Record``, where the crew is.
    label : str
        What the log calls the step.
    deadlines : Deadlines
    fetch : bool
        Whether the records come back. Without, an answer says that a batch is done, and the worker that has
        it is asked for nothing more: it may have frozen since.
    clock : callable
        In seconds.
    look_seconds : float
        Longest time between two looks at the deadlines.
    """

    def __init__(
        self,
        crew: Threads | Workers,
        work: Work,
        label: str,
        deadlines: Deadlines,
        *,
        fetch: bool = True,
        clock: Callable[[], float] = time.monotonic,
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        self._crew, self._work, self._label, self._deadlines = crew, work, label, deadlines
        self._fetch = fetch
        self._clock, self._look_seconds = clock, look_seconds
        self._ended: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        self._running: dict[int, _Turn] = {}
        # Of late batches whose twins were faster. Held, so that their workers count as busy and get no more.
        self._late: list[Any] = []
        # Whose workers died: set aside, and those of them that have another try.
        self._suspects: deque[int] = deque()
        self._on_trial: set[int] = set()
        self._blame: Counter[str] = Counter()
        self._sick: frozenset[str] = frozenset()
        self._looked = clock()

    @property
    def in_flight(self) -> int:
        """Number of batches that are out; those that are set aside are not."""
        return len(self._running) - len(self._suspects)

    def run(
        self, todo: Iterable[int], may_go_on: Callable[[], bool]
    ) -> Generator[tuple[int, Record | BaseException], None, None]:
        """Yield (batch, record or error) as batches end, never more of them out than the crew has room for.

        Parameters
        ----------
        todo : iterable of int
        may_go_on : callable
            Asked before each batch. Once it says no, those that are out are waited for and no more follow;
            where nobody is left to do them, they are left, and so are those that were set aside.
        """
        queue = iter(todo)
        try:
            while True:
                self._fill(queue, may_go_on)
                if not self.in_flight:
                    return
                # Also while no more are handed out: it is here that a lost cluster shows.
                self._crew.room()
                if not may_go_on() and self._crew.deserted_seconds() > _DRAIN_SECONDS:
                    text = "%s: nobody is left to do the %d batches in flight"
                    _LOG.warning(text, self._label, self.in_flight)
                    return
                # One at a time: whoever takes it may be slow, and workers would wait for those behind it.
                if (answer := self._answer()) is not None:
                    yield from self._settle(*answer)
                yield from self._look_at_deadlines()
        finally:
            self._crew.close([*self._late, *(h for turn in self._running.values() for h in turn.handles)])

    def _fill(self, queue: Iterator[int], may_go_on: Callable[[], bool]) -> None:
        """Hand out as many batches as the crew has room for."""
        while may_go_on():
            room = self._crew.room()
            # Nothing else is out, because the queue has ended or there are too many of them to go on.
            if self._suspects and self.in_flight == len(self._on_trial):
                if self.in_flight >= self._crew.workers():
                    return
                batch = self._suspects.popleft()
                self._on_trial.add(batch)
                self._running[batch].begin(self._clock())
            else:
                is_enough = self._on_trial or 2 * len(self._suspects) >= room
                fresh = None if is_enough or len(self._running) >= room else next(queue, None)
                if fresh is None:
                    return
                batch = fresh
                self._running[batch] = _Turn(self._clock())
            self._hand_out(batch, frozenset(self._running[batch].seen_on))

    def _hand_out(self, batch: int, avoid: frozenset[str] = frozenset()) -> bool:
        handle = self._crew.submit(self._work, batch, avoid | self._sick)
        if handle is None:
            return False
        self._running[batch].handles.append(handle)
        # Not a wait for the first of many futures: that costs more the more of them there are.
        handle.add_done_callback(lambda ended: self._ended.put((batch, ended)))
        return True

    def _answer(self) -> tuple[int, Any] | None:
        """Return one of those that have ended, waiting a while for it."""
        try:
            return self._ended.get(timeout=self._look_seconds)
        except Empty:
            return None

    def _settle(self, batch: int, handle: Any) -> Iterator[tuple[int, Record | BaseException]]:
        """Yield the outcome of a batch, unless its twin was faster or has yet to answer."""
        turn = self._running.get(batch)
        if turn is None or handle not in turn.handles:
            return
        error, worker = _error_of(handle)
        turn.handles.remove(handle)
        record: Record = {"batch": batch}
        if error is None and self._fetch:
            try:
                record = handle.result(timeout=self._deadlines.policy.least_seconds)
            except TimeoutError:
                if self._again(batch, turn, "its record does not come"):
                    return
                error = self._given_up(batch, turn, "its record does not come")
        if type(error).__name__ == "KilledWorker":
            if turn.handles or self._set_aside(batch, turn, f"{error}"):
                return
            error = BlockFailed(
                "a batch whose workers died",
                where=f"{self._label}, batch {batch}",
                got=f"{turn.tries} tries, the last: {error}",
                remedy="give workers more memory, or look at what the batch reads",
            )
        if error is not None and turn.handles and not isinstance(error, ClusterLost):
            return  # its twin may yet succeed
        if worker is not None and self._elsewhere(batch, turn, worker, error):
            return
        self._running.pop(batch, None)
        self._on_trial.discard(batch)
        self._late += turn.handles
        if error is None:
            self._deadlines.add(self._clock() - turn.since)
            self._blame_worker(turn.failed_on)
        yield batch, record if error is None else error

    def _again(self, batch: int, turn: _Turn, why: str) -> bool:
        """Hand a batch out once more, if it may be."""
        if turn.tries >= self._deadlines.policy.tries:
            return False
        turn.tries += 1
        turn.begin(self._clock())
        is_out = self._hand_out(batch, frozenset(turn.seen_on))
        now = "is handed out again" if is_out else "gets more time"
        _LOG.warning("%s: batch %d %s: %s", self._label, batch, now, why)
        return True

    def _set_aside(self, batch: int, turn: _Turn, why: str) -> bool:
        """Keep a batch whose worker died until it can be tried apart from others, if it may be."""
        if turn.tries >= self._deadlines.policy.tries:
            return False
        turn.tries += 1
        if batch in self._on_trial:
            # At the head, so that a step that kills all its workers has its first failures soon.
            self._on_trial.remove(batch)
            self._suspects.appendleft(batch)
        else:
            self._suspects.append(batch)
        _LOG.warning("%s: batch %d is tried again, apart from others: %s", self._label, batch, why)
        return True

    def _elsewhere(self, batch: int, turn: _Turn, worker: str, error: BaseException | None) -> bool:
        """Hand a batch that failed on a worker to another, once: it may be the worker's fault."""
        avoid = frozenset({worker, *turn.seen_on}) | self._sick
        if turn.failed_on is not None or not self._crew.has_others(avoid):
            return False
        turn.failed_on = worker
        turn.begin(self._clock())
        _LOG.info("%s: batch %d failed on %s, another worker tries: %s", self._label, batch, worker, error)
        return self._hand_out(batch, avoid)

    def _blame_worker(self, worker: str | None) -> None:
        """Count a batch that another worker did after this one had failed it."""
        if worker is None or worker in self._sick:
            return
        self._blame[worker] += 1
        if self._blame[worker] >= _SICK_AFTER:
            self._sick |= {worker}
            text = "%s: worker %s failed %d batches that others did: it gets no more while there are others"
            _LOG.warning(text, self._label, worker, self._blame[worker])

    def _look_at_deadlines(self) -> Iterator[tuple[int, BaseException]]:
        """Warn of late batches, hand the very late to someone else, give up those that are too often late."""
        now = self._clock()
        if now - self._looked < self._look_seconds:
            return
        self._looked = now
        soft = self._deadlines.soft_seconds()
        out = {b: t for b, t in self._running.items() if t.handles}
        late = {b: t for b, t in out.items() if now - t.since > self._first_limit(t, soft)}
        if not late:
            return
        places = self._crew.places()
        for batch, turn in late.items():
            where, share = "this process", 1.0
            if places is not None:
                # The last handle is the one that counts: those before it are late already.
                found = places.get(turn.handles[-1].key)
                if found is None:
                    turn.since = now  # in the scheduler, and nobody's yet
                    continue
                where, share = found
            turn.seen_on.add(where)
            seconds = now - turn.since
            if seconds > share * self._deadlines.hard_seconds(turn.tries):
                why = f"no answer from {where} in {seconds:.0f} s"
                if not self._again(batch, turn, why):
                    yield batch, self._given_up(batch, turn, why)
            elif soft is not None and seconds > share * soft and not turn.warned:
                turn.warned = True
                text = "%s: batch %d takes long: %.0f s on %s"
                _LOG.warning(text, self._label, batch, seconds, where)

    def _first_limit(self, turn: _Turn, soft: float | None) -> float:
        hard = self._deadlines.hard_seconds(turn.tries)
        return hard if soft is None or turn.warned else min(soft, hard)

    def _given_up(self, batch: int, turn: _Turn, why: str) -> BaseException:
        del self._running[batch]
        self._on_trial.discard(batch)
        self._late += turn.handles
        self._crew.replace_one()
        return BlockFailed(
            "a batch was given up that never ends",
            where=f"{self._label}, batch {batch}",
            got=f"{turn.tries} tries, the last: {why}",
            remedy="look at that worker and its store, then run the same job again to resume",
        )


def _error_of(handle: Any) -> tuple[BaseException | None, str | None]:
    """Return what a batch failed with, if it did, and the worker that raised it, if one did."""
    try:
        error: BaseException | None = handle.exception()
    except CancelledError as cancelled:
        error = cancelled
    if isinstance(error, FailedOn):
        return error.error, error.worker
    return _named(error), None


def _named(error: BaseException | None) -> BaseException | None:
    """Return an error by our own name where it says that the cluster is gone."""
    if isinstance(error, CancelledError) or type(error).__name__ in _GONE:
        return ClusterLost(
            "the Dask cluster went away",
            got=str(error) or type(error).__name__,
            remedy="run the same job again to resume",
        )
    return error
