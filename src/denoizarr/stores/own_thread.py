"""Zarr's coroutines over what is in memory, run in the thread that asks where several ask.

Zarr runs those of all threads in one thread of its own, where every voxel of a shard is copied between its
inner chunks, and hands each inner chunk to a pool of further ones. A thread that is alone has all cores that
way; two that write blocks keep little more than one busy.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from zarr.core.sync import sync

Result = TypeVar("Result")
_LOCK = threading.Lock()
_inside = 0


class _Here(ThreadPoolExecutor):
    """Does what is submitted at once, in the thread that submits it; asyncio takes no other base class."""

    def submit(self, work: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        done: Future[Result] = Future()
        try:
            done.set_result(work(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  # for whoever awaits it, whatever it is
            done.set_exception(error)
        return done


def in_own_thread(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine that waits for no store to its end and return its result, codecs and all.

    Where no other thread does so at the time, zarr runs it, with the codecs side by side in its pool. It
    also does in the main thread: there blosc would use threads of its own, whose order is in the bytes.
    """
    global _inside  # as what it counts: the threads of the process
    with _LOCK:
        alone = _inside == 0
        _inside += 1
    try:
        if alone or threading.current_thread() is threading.main_thread():
            return sync(coroutine)
        return _run_here(coroutine)
    finally:
        with _LOCK:
            _inside -= 1


def _run_here(coroutine: Coroutine[Any, Any, Result]) -> Result:
    loop = asyncio.new_event_loop()
    try:
        loop.set_default_executor(_Here(1))
        return loop.run_until_complete(coroutine)
    except BaseException:
        # Where one chunk fails, its siblings may still be to be begun.
        if rest := asyncio.all_tasks(loop):
            for task in rest:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
        raise
    finally:
        loop.close()
