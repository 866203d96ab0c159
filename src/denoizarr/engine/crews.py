"""Who does the batches: threads of this process, or the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import pickle
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from importlib.metadata import version
from queue import SimpleQueue
from typing import Any

from denoizarr.errors import ClusterLost

from .batches import Record
from .dask_settings import patience_seconds

Work = Callable[[int], Record]

# Enough that a worker never waits for the client, few enough that a kill redoes little.
_IN_FLIGHT_PER_WORKER = 2
# How often a scheduler is asked who works, and how long it may take to say so.
_ASK_SECONDS, _ANSWER_SECONDS = 1.0, 60.0
_ERROR_BYTES, _ERROR_LETTERS = 100_000, 1000


class FailedOn(Exception):  # noqa: N818
    """The error of a batch and the address of the worker that had it.

    Parameters
    ----------
    worker : str
    error : Exception
    """

    def __init__(self, worker: str, error: Exception) -> None:
        super().__init__(worker, error)
        self.worker, self.error = worker, error


class Threads:
    """Threads of this process.

    Not a ``ThreadPoolExecutor``: a thread that a store keeps for ever would keep the whole program.

    Parameters
    ----------
    count : int
    """

    def __init__(self, count: int) -> None:
        self._count = max(count, 1)
        self._queue: SimpleQueue[tuple[Future[Record], Work, int] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        for _ in range(self._count):
            self.replace_one()

    def replace_one(self) -> None:
        """Begin a thread, in place of one that a batch keeps."""
        name = f"block-{len(self._threads)}"
        self._threads.append(threading.Thread(target=self._serve, name=name, daemon=True))
        self._threads[-1].start()

    def room(self) -> int:
        """Return how many batches to hand out at a time."""
        return self._count

    def workers(self) -> int:
        """Return 1: they live and die together."""
        return 1

    def deserted_seconds(self) -> float:
        """Return 0: they are here."""
        return 0.0

    def submit(self, work: Work, batch: int, avoid: Collection[str] = ()) -> Future[Record] | None:
        """Hand a batch out; None where there is nobody but those to avoid."""
        if avoid:
            return None
        future: Future[Record] = Future()
        self._queue.put((future, work, batch))
        return future

    def has_others(self, avoid: Collection[str]) -> bool:  # noqa: ARG002
        """Return False: there is one process."""
        return False

    def places(self) -> dict[Any, tuple[str, float]] | None:
        """Return None: all batches are where they were put, in this process."""
        return None

    def close(self, unfinished: Collection[Future[Record]]) -> None:
        """Let the threads end, without waiting for what they do where something is unfinished."""
        for future in unfinished:
            future.cancel()
        for _ in self._threads:
            self._queue.put(None)
        for thread in () if unfinished else self._threads:
            thread.join()

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            future, work, batch = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work(batch)
            except BaseException as error:  # noqa: BLE001  # the driver's to judge, whatever it is
                future.set_exception(error)
            else:
                future.set_result(result)
            # Or it would live, with all that its error refers to, until the next batch comes.
            del item, future


def on_worker(expected: str, work: Work, batch: int) -> Record:
    """Do a batch on a worker, and raise only what its scheduler and the driver can make something of.

    Raises
    ------
    FailedOn
        Of what the batch raised.
    ClusterLost
        The package is of another version than ``expected`` here, and its bytes might be others: such a
        cluster is no good for the job, and would fail the batches one by one.
    """
    if (found := version("denoizarr")) != expected:
        raise ClusterLost(
            "a worker has another version of denoizarr",
            where=socket.gethostname(),
            got=found,
            expected=expected,
            remedy="start all workers in the environment of this process",
        )
    try:
        return work(batch)
    except BaseException as error:  # noqa: BLE001  # the driver's to judge, whatever it is
        named = f"{type(error).__name__}: {_text_of(error)}"
        told = error if isinstance(error, Exception) and _travels(error) else RuntimeError(named)
    raise FailedOn(_address(), told)  # out here, or the error would travel along as its context


def _address() -> str:
    from distributed import get_worker

    try:
        return str(get_worker().address)
    except ValueError:  # not called by a worker's task
        return "nowhere"


def _travels(error: Exception) -> bool:
    """Tell whether an error survives the way to the driver, which an exit or an odd class does not.

    A worker that gets an exit or an interrupt from a task says nothing of that task any more.
    """
    try:
        data = pickle.dumps(error)
        return len(data) <= _ERROR_BYTES and str(pickle.loads(data)) is not None  # noqa: S301  # our own bytes
    except Exception:  # noqa: BLE001  # whatever its class does wrong
        return False


def _text_of(error: BaseException) -> str:
    try:
        return str(error)[:_ERROR_LETTERS]
    except Exception:  # noqa: BLE001
        return "without words"


class Workers:
    """The workers of a Dask cluster, as many as there are at the moment.

    Parameters
    ----------
    client : distributed.Client
    name : str
        Begins the keys of the tasks.
    resources : mapping, optional
        What each batch needs of its worker while it runs, such as ``{"GPU": 1}``. A worker that declares one
        GPU does one batch at a time then, and one that declares none does none.
    """

    def __init__(self, client: Any, name: str, resources: Mapping[str, float] | None = None) -> None:
        self._client = client
        self._resources = dict(resources or {})
        self._name = f"{name}-{uuid.uuid4().hex[:12]}"
        self._count = 0
        self._asked, self._room = float("-inf"), 0
        self._deserted_since: float | None = None
        self._addresses: list[str] = []

    def room(self) -> int:
        """Return how many batches to hand out at a time: workers join and leave while a step runs.

        Raises
        ------
        ClusterLost
            The scheduler does not answer, or has had no workers for too long.
        """
        now = time.monotonic()
        if now - self._asked < _ASK_SECONDS:
            return self._room
        self._asked = now
        threads = self._slots()
        self._addresses = list(threads)
        self._deserted_since = None if threads else self._deserted_since or now
        if self._deserted_since is not None and now - self._deserted_since > patience_seconds():
            raise ClusterLost(
                "the cluster has had no workers for a while",
                got=f"{now - self._deserted_since:.0f} s",
                remedy="start workers, then run the same job again to resume",
            )
        self._room = _IN_FLIGHT_PER_WORKER * max(sum(threads.values()), 1)
        return self._room

    def workers(self) -> int:
        """Return how many workers there are now, 1 where there are none: those that died may be back, or not.

        Raises
        ------
        ClusterLost
            The scheduler does not answer.
        """
        return max(len(self._slots()), 1)

    def submit(self, work: Work, batch: int, avoid: Collection[str] = ()) -> Any:
        """Hand a batch out, to none of the workers to avoid unless they are all there are."""
        self._count += 1
        elsewhere = [address for address in self._addresses if address not in avoid] if avoid else []
        where: dict[str, Any] = {"workers": elsewhere, "allow_other_workers": True} if elsewhere else {}
        if self._resources:
            where["resources"] = self._resources
        with _losses_named():
            key = f"{self._name}-{self._count}"
            return self._client.submit(
                on_worker, version("denoizarr"), work, batch, key=key, pure=False, **where
            )

    def has_others(self, avoid: Collection[str]) -> bool:
        """Tell whether there are workers beside those to avoid."""
        return any(address not in avoid for address in self._addresses)

    def places(self) -> dict[Any, tuple[str, float]] | None:
        """Return the worker that has each batch, and how many times its share it has.

        Batches that wait in the scheduler are left out: nobody is slow with them.

        Raises
        ------
        ClusterLost
            The scheduler does not answer.
        """
        threads, processing = self._slots(), self._ask("processing")
        return {
            key: (address, max(len(keys) / (_IN_FLIGHT_PER_WORKER * max(threads.get(address, 1), 1)), 1.0))
            for address, keys in processing.items()
            for key in keys
        }

    def deserted_seconds(self) -> float:
        """Return for how long there have been no workers, as far as ``room`` has seen."""
        return 0.0 if self._deserted_since is None else time.monotonic() - self._deserted_since

    def replace_one(self) -> None:
        """Nothing: the scheduler takes a worker that says nothing for one that is gone, after a while."""

    def close(self, unfinished: Collection[Any]) -> None:
        """Take back what is unfinished; workers are not waited for."""
        if unfinished:
            with contextlib.suppress(Exception):  # a cluster that is gone has nothing left to cancel
                self._client.cancel(list(unfinished), force=True)

    def _slots(self) -> dict[str, int]:
        """Return, for each worker that may do batches, how many it does at a time."""
        if not self._resources:
            return self._ask("ncores")
        slots = {}
        for address, worker in self._ask("identity", n_workers=-1)["workers"].items():
            has = worker.get("resources", {})
            each = [int(has.get(name, 0) // amount) for name, amount in self._resources.items()]
            if slot := min(*each, int(worker["nthreads"])):
                slots[address] = slot
        return slots

    def _ask(self, what: str, **about: Any) -> dict[str, Any]:
        """Ask the scheduler something, about all its workers unless it is said otherwise."""
        with _losses_named():
            scheduler = self._client.scheduler
            if scheduler is None:
                raise CancelledError
            question = getattr(scheduler, what)
            about = about or {"workers": None}
            return dict(self._client.sync(question, **about, callback_timeout=_ANSWER_SECONDS))


@contextlib.contextmanager
def _losses_named() -> Iterator[None]:
    """Turn what distributed raises when a cluster is gone into our own error."""
    from distributed.client import ClosedClientError

    try:
        yield
    except (CancelledError, ClosedClientError, OSError, RuntimeError) as error:
        raise ClusterLost(
            "the Dask cluster went away",
            got=f"{type(error).__name__}: {error}".strip(": "),
            remedy="run the same job again to resume",
        ) from error
