"""The tiles of a process side by side: as many at a time as it has cores, whatever blocks they are of.

A block's bits depend on how many threads compute one tile, not on how many tiles are computed at a time. So
each tile keeps its fixed number (one), and cores that blocks leave idle get tiles: a plane that is one block
is still computed by all cores. All blocks of a process share one crew of threads, so that the tiles in
memory are never more than cores; while one block is written, the tiles of the next are computed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from functools import lru_cache
from typing import Any

from denoizarr.engine.cluster import usable_cores
from denoizarr.engine.crews import Threads


def cores_of_process() -> int:
    """Return the threads that a Dask worker was given; elsewhere all cores that this process may use."""
    if "distributed" in sys.modules:
        from distributed import get_worker

        try:
            return max(int(get_worker().state.nthreads), 1)
        except ValueError:
            pass  # not called by a worker's task
    return usable_cores()


def run_side_by_side(work: Callable[[int], Any], count: int, at_once: int) -> None:
    """Call ``work(0) .. work(count - 1)`` and wait for all.

    Parameters
    ----------
    work : callable
        Whatever it returns is dropped.
    count : int
    at_once : int
        Calls at a time, those of other blocks of this process included.

    Raises
    ------
    Exception
        What the first call that failed raised, by number; those that had not begun are left out.
    """
    crew = _crew(at_once)
    futures = [crew.submit(work, number) for number in range(count)]
    done = [future for future in futures if future is not None]
    _, unfinished = wait(done, return_when=FIRST_EXCEPTION)
    if unfinished:
        for future in unfinished:
            future.cancel()
        # Those that have begun still write into the block's array.
        wait(done)
    for future in _failed(done):
        future.result()


def _failed(futures: Sequence[Any]) -> Sequence[Any]:
    return [future for future in futures if not future.cancelled() and future.exception() is not None]


@lru_cache(maxsize=4)
def _crew(count: int) -> Threads:
    """Return the threads that all blocks of this process share; they stay as long as it does."""
    return Threads(count)
