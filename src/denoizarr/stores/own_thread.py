"""Zarr's coroutines over what is in memory, run in the thread that asks.

Zarr runs those of all threads in one thread of its own, where every voxel of a shard is copied between its
inner chunks, and hands each inner chunk to a pool of further ones: two threads that write blocks keep little
more than one core busy. Where nothing is waited for, both are detours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from zarr.core.sync import sync

Result = TypeVar("Result")


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
    """Run a coroutine that waits for no store to its end, codecs and all, and return its result.

    In a thread with an event loop that runs already, as a notebook's main thread is, zarr's own runs it.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        return sync(coroutine)
    loop = asyncio.new_event_loop()
    try:
        loop.set_default_executor(_Here(1))
        return loop.run_until_complete(coroutine)
    except BaseException:
        # Where one chunk fails, its siblings are still to be begun.
        rest = asyncio.all_tasks(loop)
        for task in rest:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
        raise
    finally:
        loop.close()
