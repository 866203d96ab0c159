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
    waits = _waits(options)
    number = 0
    while True:
        number += 1
        _count(number)
        try:
            return call()
        except Exception as error:
            wait = _wait_after(error, where, number, options, waits)
            ours = translation(error, where) if wait is None else None
            if wait is None and ours is None:
                raise
        if ours is not None:
            # Out here: with the error that it stands for it would carry the server's text along.
            raise _known(ours)
        time.sleep(wait or 0)


async def attempt_async(where: str, options: StoreOptions, call: Callable[[], Awaitable[Result]]) -> Result:
    """Do what :func:`attempt` does with a coroutine."""
    waits = _waits(options)
    number = 0
    while True:
        number += 1
        _count(number)
        try:
            return await call()
        except Exception as error:
            wait = _wait_after(error, where, number, options, waits)
            ours = translation(error, where) if wait is None else None
            if wait is None and ours is None:
                raise
        if ours is not None:
            # Out here: with the error that it stands for it would carry the server's text along.
            raise _known(ours)
        await asyncio.sleep(wait or 0)


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


def _known(error: DenoizarrError) -> DenoizarrError:
    """Return an error; refused credentials are looked up anew by whoever asks next."""
    if isinstance(error, PermissionDenied):
        open_store.cache_clear()
    return error


def _wait_after(
    error: Exception, where: str, number: int, options: StoreOptions, waits: Iterator[float | None]
) -> float | None:
    if not may_pass(error):
        return None
    wait = next(waits)
    if wait is not None:
        ours = translation(error, where)
        said = type(error).__name__ if ours is None else ours.got
        _LOG.debug("%s: try %d of %d failed: %s", where, number, options.tries, said)
    return wait
