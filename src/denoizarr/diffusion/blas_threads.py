"""Matrix products by one thread each: their last bits depend on how many threads share one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

_LOCK = threading.Lock()
_holders: list[Any] = []


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold numpy's and scipy's BLAS to one thread inside the block; cores are filled with blocks instead.

    The setting is the process'. Where several threads are inside, the first sets it and the last undoes it.
    """
    with _LOCK:
        limit = None if _holders else _controller().limit(limits=1, user_api="blas")
        _holders.append(limit)
    try:
        yield
    finally:
        with _LOCK:
            first = next((held for held in _holders if held is not None), None)
            # Whoever leaves takes a place that sets nothing; the last one finds the one that does.
            _holders.remove(None if None in _holders else first)
            if not _holders and first is not None:
                first.restore_original_limits()


@cache
def _controller() -> ThreadpoolController:
    import scipy.linalg.lapack  # noqa: F401  # its BLAS is another than numpy's, and must be loaded to be found

    return ThreadpoolController()
