"""What a step frees is what the next step takes: kept by the process in between, not by the system."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 2**31 - 1
# Where glibc's own adjustment would end after a while; it does not adjust what was once set.
_USUAL = {_TRIM_THRESHOLD: 64 * 2**20, _MMAP_THRESHOLD: 32 * 2**20}
_LOCK = threading.Lock()
_holders = 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let malloc keep freed memory inside the block, up to 2 GiB; afterwards it is given back.

    The layers of a network, or the blocks of an image, take and free some hundred megabytes. Given back to
    the system, every page of them is faulted in and zeroed again in the next step, which costs up to a tenth
    of the time of a training or a conversion, and a third of an inference's. Where several threads are
    inside, the last to leave gives it back. Where the C library is another than glibc nothing happens; in
    threads other than the main one it keeps no piece above 64 MiB, unless all threads have :func:`one_arena`.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    _enter(libc)
    try:
        yield
    finally:
        _leave(libc)


def one_arena() -> None:
    """Let all threads take memory where the main one does, from now on, as ``MALLOC_ARENA_MAX=1`` would.

    It cannot be taken back: for programs of ours, before they begin threads. Tiles of inference are a tenth
    faster. A number in the environment is left as it is.
    """
    libc = _glibc()
    if libc is not None and "MALLOC_ARENA_MAX" not in os.environ:
        libc.mallopt(_ARENA_MAX, 1)


def _enter(libc: ctypes.CDLL) -> None:
    global _holders  # as what it counts: malloc's settings are the process'
    with _LOCK:
        _holders += 1
        if _holders == 1:
            for parameter in _USUAL:
                libc.mallopt(parameter, _KEPT_BYTES)


def _leave(libc: ctypes.CDLL) -> None:
    global _holders
    with _LOCK:
        _holders -= 1
        if _holders == 0:
            for parameter, usual in _USUAL.items():
                libc.mallopt(parameter, usual)
            libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - a look-up that fails elsewhere
    except (OSError, AttributeError, TypeError):
        return None
    return libc
