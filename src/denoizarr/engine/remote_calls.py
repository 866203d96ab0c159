"""Calls on the workers of a cluster whose results come back to this process, a few at a time."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, TypeVar

from denoizarr.errors import ClusterLost, DenoizarrError

from .dask_settings import patience_seconds

Result = TypeVar("Result")

# How soon a thread that waits for a call sees that the program ends; it keeps the program that long.
_LOOK_SECONDS = 1.0
# How often a call that takes long is asked whether anybody is left to answer it.
_ASK_SECONDS = 10.0


class RemoteCalls:
    """Runs functions on a Dask cluster and fetches their results straight from the workers.

    For results that are large: they do not pass through the scheduler where this process reaches the workers
    themselves. What a lost worker held or was doing is computed again by another.

    Parameters
    ----------
    client : distributed.Client
    at_once : int
        Results that are fetched at a time.
    """

    def __init__(self, client: Any, at_once: int) -> None:
        self._client = client
        self._fetchers = ThreadPoolExecutor(at_once, thread_name_prefix="remote-call")
        self._running: set[Any] = set()
        self._name = f"denoizarr-{uuid.uuid4().hex[:12]}"
        self._count = 0

    def submit(
        self, function: Callable[..., Result], *arguments: Any, finish: Callable[[Result], Result]
    ) -> Future[Result]:
        """Send a call and return what will hold its result, or raise what it raised.

        Parameters
        ----------
        function : callable
            Called on a worker.
        *arguments
            Picklable.
        finish : callable
            Called here with what came back, in a thread of its own.

        Raises
        ------
        ClusterLost
            At once where the cluster is known to be gone, else from the result.
        """
        self._count += 1
        with _losses_named():
            # Earlier calls first: the results are wanted in this order.
            remote = self._client.submit(
                function, *arguments, key=f"{self._name}-{self._count}", priority=-self._count, pure=False
            )
        self._running.add(remote)
        return self._fetchers.submit(self._fetch, remote, finish)

    def close(self) -> None:
        """Give up what has not been fetched."""
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        running, self._running = list(self._running), set()
        with contextlib.suppress(Exception):  # a cluster that is gone has nothing left to cancel
            self._client.cancel(running, force=True)

    def _fetch(self, remote: Any, finish: Callable[[Any], Any]) -> Any:
        try:
            with _losses_named(remote):
                self._wait_for(remote)
                if not threading.main_thread().is_alive():
                    raise CancelledError
                result = self._client.gather(remote, direct=True)
            return finish(result)
        finally:
            self._running.discard(remote)

    def _wait_for(self, remote: Any) -> None:
        """Wait for a call to end; not for ever where there are no workers, or where this program ends."""
        ended = threading.Event()
        remote.add_done_callback(lambda _: ended.set())
        asked = time.monotonic()
        deserted_since: float | None = None
        while not ended.wait(_LOOK_SECONDS):
            # While the interpreter ends distributed tells nobody any more, and this thread would keep it.
            if remote.done() or not threading.main_thread().is_alive():
                return
            now = time.monotonic()
            if now - asked < _ASK_SECONDS:
                continue
            asked = now
            deserted_since = None if self._client.nthreads() else deserted_since or now
            if deserted_since is not None and now - deserted_since > patience_seconds():
                raise ClusterLost(
                    "the cluster has had no workers for a while",
                    got=f"{now - deserted_since:.0f} s",
                    remedy="start workers, then run again",
                )


@contextlib.contextmanager
def _losses_named(remote: Any = None) -> Iterator[None]:
    """Turn what distributed raises when a cluster is gone into our own error; a call's own error passes."""
    from distributed.client import ClosedClientError, FutureCancelledError
    from distributed.scheduler import KilledWorker, NoValidWorkerError

    gone = (CancelledError, FutureCancelledError, ClosedClientError, KilledWorker, NoValidWorkerError)
    try:
        yield
    except (*gone, OSError) as error:
        if isinstance(error, DenoizarrError) or (isinstance(error, OSError) and _failed_itself(remote)):
            raise
        raise ClusterLost(
            "the Dask cluster went away", got=f"{type(error).__name__}: {error}", remedy="start it again"
        ) from error


def _failed_itself(remote: Any) -> bool:
    return remote is not None and remote.status == "error"


def threads_of(client: Any) -> int:
    """Return the number of threads of all workers that a cluster has now; at least 1."""
    return max(int(sum(client.nthreads().values())), 1)
