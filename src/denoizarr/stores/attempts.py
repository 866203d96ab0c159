"""Requests to object stores: tried again where that may help, counted, and each ended in time.

Ours, and not obstore's: its tries cannot be counted, and a put-if-absent whose answer was lost would come
back as "exists already".
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from denoizarr.errors import DenoizarrError, PermissionDenied

from .backends import open_store
from .store_errors import may_pass, translation
from .store_options import StoreOptions

_LOG = logging.getLogger(__name__)
Result = TypeVar("Result")

_LONGEST_SECONDS = 10.0
_LOCK = threading.Lock()


@dataclass(slots=True)
class _Counts:
    requests: int = 0
    retries: int = 0


_counts = _Counts()


def take_counts() -> tuple[int, int]:
    """Return how many requests were made since this was last asked for, and how many of them once more."""
    with _LOCK:
        found = _counts.requests, _counts.retries
        _counts.requests = _counts.retries = 0
    return found


def _count(number: int) -> None:
    with _LOCK:
        _counts.requests += 1
        _counts.retries += number > 1


def attempt(where: str, options: StoreOptions, call: Callable[[], Result]) -> Result:
    """Make a request, again after errors that may pass, and return its result.

    Parameters
    ----------
    where : str
        The object, for the message.
    options : StoreOptions
    call : callable
        Idempotent.

    Raises
    ------
    StoreUnavailable, PermissionDenied, CredentialsExpired, ImageNotFound
    Exception
        What is no store's error, as it is.
    """
    tries = _Tries(where, options)
    while True:
        try:
            tries.begin()
            return call()
        except Exception as error:
            if not tries.is_of_store(error):
                raise
        time.sleep(tries.wait())


async def attempt_async(where: str, options: StoreOptions, call: Callable[[], Awaitable[Result]]) -> Result:
    """Do what :func:`attempt` does with a coroutine."""
    tries = _Tries(where, options)
    while True:
        try:
            tries.begin()
            return await call()
        except Exception as error:
            if not tries.is_of_store(error):
                raise
        await asyncio.sleep(tries.wait())


class _Tries:
    """The tries of one request: what became of the last, and how long to wait for the next."""

    def __init__(self, where: str, options: StoreOptions) -> None:
        self._where, self._options, self._number = where, options, 0
        self._waits = _waits(options)
        self._wait: float | None = None
        self._ours: DenoizarrError | None = None

    def begin(self) -> None:
        self._number += 1
        _count(self._number)

    def is_of_store(self, error: Exception) -> bool:
        """Take note of an error, and tell whether it is a store's."""
        self._wait = next(self._waits) if may_pass(error) else None
        self._ours = translation(error, self._where)
        if self._ours is not None and self._wait is not None:
            text = "%s: try %d of %d failed: %s"
            _LOG.debug(text, self._where, self._number, self._options.tries, self._ours.got)
        return self._ours is not None

    def wait(self) -> float:
        """Return the seconds until the next try; raise what the last one came to where there is none.

        Asked outside the handler of the store's error, which would come along with the server's text.
        """
        if self._wait is not None:
            return self._wait
        assert self._ours is not None, "a try failed"
        if isinstance(self._ours, PermissionDenied):
            open_store.cache_clear()  # credentials are looked up anew by whoever asks next
        raise self._ours


def _waits(options: StoreOptions) -> Iterator[float | None]:
    """Yield the wait after each try, exponential with full jitter; None once no more is to be tried."""
    first = time.monotonic()
    for number in range(1, options.tries):
        wait = random.uniform(0, min(options.first_wait_seconds * 2**number, _LONGEST_SECONDS))  # noqa: S311  # no secret
        if time.monotonic() + wait - first > options.total_seconds:
            break
        yield wait
    while True:
        yield None
