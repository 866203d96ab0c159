"""Blocks in three stages: while one is computed, the next is read and the last is written.

::

    thread that reads       1-------  2-------  3-------
    thread of the batch   0 0=========1=========2=========3=========3     (reads 0, writes the last one)
    thread that writes                0----     1----     2----

Never more than one block is ahead and one behind: what the planner counts (``BLOCKS_AHEAD``,
``BLOCKS_BEHIND``). A batch of one block does the three in turn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")

# Blocks whose input is held while another is computed, and whose result is held while it is written.
BLOCKS_AHEAD, BLOCKS_BEHIND = 1, 1


@dataclass(frozen=True, slots=True)
class Stages:
    """The work of one block in three idempotent parts; called as a whole it does them in turn.

    Attributes
    ----------
    read : callable
        ``read(spec, block) -> what was read``.
    compute : callable
        ``compute(spec, block, what was read) -> what is to be written``: in the thread of the batch.
    write : callable
        ``write(spec, block, what is to be written) -> dict``: JSON-able and small.
    """

    read: Callable[[Any, int], Any]
    compute: Callable[[Any, int, Any], Any]
    write: Callable[[Any, int, Any], dict[str, Any]]

    def __call__(self, spec: Any, block: int) -> dict[str, Any]:
        """Do one block, its stages in turn."""
        return self.write(spec, block, self.compute(spec, block, self.read(spec, block)))


class Persist(Protocol):
    """Does some work of a block, again where it failed for a passing reason."""

    def __call__(self, work: Callable[[], Any], what: str, *drawn_from: object) -> Any:
        """Do it and return its result."""


def overlapped(stages: Stages, spec: Any, blocks: Sequence[int], persist: Persist) -> list[dict[str, Any]]:
    """Do some blocks and return their results, in order.

    Each stage of a block is tried again by itself: what was computed is not lost to a store that was away.

    Parameters
    ----------
    stages : Stages
    spec : object
    blocks : sequence of int
    persist : callable
        ``persist(work, what, *drawn_from)`` does the work of one stage.

    Raises
    ------
    Exception
        What the first block failed with, by block and not by time. Those before it are written; none after
        it is, and no thread is left behind.
    """

    def read(block: int) -> Any:
        return persist(lambda: stages.read(spec, block), f"block {block}, reading", block)

    def write(block: int, result: Any) -> dict[str, Any]:
        return dict(persist(lambda: stages.write(spec, block, result), f"block {block}, writing", block))

    results: list[dict[str, Any]] = []
    ahead: Future[Any] | None = None
    behind: Future[dict[str, Any]] | None = None
    try:
        for number, block in enumerate(blocks):
            found = read(block) if ahead is None else ahead.result()
            following = blocks[number + 1] if number + 1 < len(blocks) else None
            ahead = None if following is None else _beside(partial(read, following), f"read-{following}")
            compute = partial(stages.compute, spec, block, found)
            result = persist(compute, f"block {block}, computing", block)
            del found, compute  # or a third block's input would be held
            if behind is not None:
                results.append(behind.result())
            if following is None:
                behind = None
                results.append(write(block, result))
            else:
                behind = _beside(partial(write, block, result), f"write-{block}")
            del result
    except BaseException:
        unfinished = [future for future in (behind, ahead) if future is not None]
        wait(unfinished)
        if behind is not None and (earlier := behind.exception()) is not None:
            raise earlier  # noqa: B904  # of the block before: the other failed only by the way
        raise
    return results


def _beside(work: Callable[[], Result], name: str) -> Future[Result]:
    """Do some work in a thread of its own; one that a store keeps for ever does not keep the program."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  # for whoever waits for it, whatever it is
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
