"""Which errors are worth another try, and how long to wait before it.

Ours, and not Dask's: its ``retries`` repeat a ``ValueError`` too, at once, and on all workers together.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from denoizarr.errors import ClusterLost, DenoizarrError, StoreUnavailable
from denoizarr.stores.store_errors import PASSING, http_status, is_busy, may_pass

_LOG = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long.

    Attributes
    ----------
    tries : int
        Of one block, the first included.
    total_seconds : float
        Between the first failure of a block and the last try of it.
    first_seconds, longest_seconds : float
        The wait before the second try is drawn from zero to the first; each further one from twice as much,
        up to the other.
    """

    tries: int = 5
    total_seconds: float = 120.0
    first_seconds: float = 2.0
    longest_seconds: float = 40.0

    def wait_seconds(self, number: int, *drawn_from: object) -> float:
        """Return the wait after try ``number``, the first being 1: exponential, with full jitter.

        The draw is a function of what it is drawn from: batches wait differently from one another, and a
        batch always as long as before.
        """
        text = repr((*drawn_from, number)).encode()
        draw = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") / 2**64
        return draw * min(self.first_seconds * float(2 ** (number - 1)), self.longest_seconds)


ONE_TRY = RetryPolicy(tries=1)


def is_transient(error: BaseException) -> bool:
    """Tell whether an error may be gone in a moment: the network's, a stale handle, a busy or failing server.

    Bad requests, bad data, a full disk, refused access and mistakes in a program are not.
    """
    if isinstance(error, ClusterLost):
        return False  # the driver's to say, and never a block's
    if isinstance(error, DenoizarrError) and error.passes is not None:
        return error.passes
    if isinstance(error, StoreUnavailable):
        return may_pass(error.__cause__ or error)
    if isinstance(error, DenoizarrError):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if (status := http_status(error)) is not None:
        return is_busy(status)
    if isinstance(error, OSError):
        return error.errno in PASSING
    return type(error).__module__.startswith("obstore") and may_pass(error)


def retried(
    work: Callable[[], Result],
    policy: RetryPolicy,
    *drawn_from: object,
    what: str,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """Do ``work``, again after transient errors, and return its result.

    Parameters
    ----------
    work : callable
        Idempotent.
    policy : RetryPolicy
    *drawn_from
        What the jitter is a function of, such as step and batch.
    what : str
        What the log calls it.
    clock, sleep : callable
        In seconds.

    Raises
    ------
    Exception
        What the last try raised, or the first that was not transient.
    """
    first_failure: float | None = None
    for number in range(1, policy.tries + 1):
        try:
            return work()
        except Exception as error:
            now = clock()
            first_failure = now if first_failure is None else first_failure
            wait = policy.wait_seconds(number, *drawn_from)
            spent = now - first_failure + wait
            if number == policy.tries or spent > policy.total_seconds or not is_transient(error):
                raise
            text = "%s: try %d of %d failed, the next in %.1f s: %s: %s"
            _LOG.warning(text, what, number, policy.tries, wait, type(error).__name__, error)
            sleep(wait)
    raise AssertionError("a policy has a try")
