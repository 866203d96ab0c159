"""Boxes that one pass read and the next need not: a series that is small is read once, not three times."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .voxel_boxes import VoxelBox


class KeptBoxes:
    """As many boxes of one image as there is room for: the first that come, for each pass begins with these.

    Parameters
    ----------
    room : int
        In bytes.
    """

    def __init__(self, room: int) -> None:
        self._room, self._lock = room, threading.Lock()
        self._boxes: dict[int, VoxelBox] = {}

    def get(self, block: int, read: Callable[[], VoxelBox], *, last: bool) -> VoxelBox:
        """Return the box of a block, read now if it is not here; ``last`` lets go of it."""
        with self._lock:
            found = self._boxes.get(block)
            if found is not None and last:
                del self._boxes[block]
                self._room += found.nbytes
        if found is not None:
            return found
        box = read()
        if not last:
            with self._lock:
                if block not in self._boxes and box.nbytes <= self._room:
                    self._boxes[block] = box
                    self._room -= box.nbytes
        return box


_OF_JOBS: dict[str, KeptBoxes] = {}


@contextmanager
def boxes_kept(job: str, room: int) -> Iterator[None]:
    """Let this process keep boxes of a job inside the block, unless it does so already.

    Parameters
    ----------
    job : str
        Names its input and its output: the same for the same boxes only.
    room : int
        In bytes.
    """
    mine = KeptBoxes(room)
    kept = _OF_JOBS.setdefault(job, mine)
    try:
        yield
    finally:
        if kept is mine:
            del _OF_JOBS[job]


def box_of(job: Callable[[], str], block: int, read: Callable[[], VoxelBox], *, last: bool) -> VoxelBox:
    """Return the box of a block: one that was kept, or read now, as everywhere on a cluster."""
    kept = _OF_JOBS.get(job()) if _OF_JOBS else None
    return read() if kept is None else kept.get(block, read, last=last)
