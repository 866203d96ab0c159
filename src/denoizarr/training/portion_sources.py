"""Where portions of patches are read and cut: in threads of this process, or on the workers of a cluster.

Both give the same portions for the same requests; :class:`~denoizarr.training.patch_stream.PatchStream`
decides what is asked for, in which order and how far ahead.
"""

from __future__ import annotations

import os
import pickle
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from denoizarr.engine.remote_calls import RemoteCalls, threads_of

from .portions import Cutter, Portion, PortionRequest, Read

READING_THREADS = 4
# Eight workers cut more than a trainer takes; a portion is at most 128 MiB as stored, mostly a tenth of that.
_MOST_ON_CLUSTER = 9


class Begun(Protocol):
    """A portion that is being made."""

    def result(self) -> tuple[Portion, Read]:
        """Wait for it; raises what reading raised."""
        ...


class PortionSource(Protocol):
    """Makes portions."""

    @property
    def depth(self) -> int:
        """How many portions may be begun and not used up."""
        ...

    def begin(self, request: PortionRequest) -> Begun:
        """Begin one, without waiting."""
        ...

    def close(self) -> None:
        """Give up what was begun."""
        ...


class _Assembled:
    """A portion whose pieces are filled in by threads."""

    def __init__(self, portion: Portion, pieces: list[Future[Read]]) -> None:
        self._portion, self._pieces = portion, pieces

    def result(self) -> tuple[Portion, Read]:
        return self._portion, sum((piece.result() for piece in self._pieces), Read(0, 0))


class ThreadSource:
    """Reads and cuts in threads: one portion is used up while the next is made."""

    def __init__(self, cutter: Cutter) -> None:
        self._cutter = cutter
        threads = min(READING_THREADS, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="patch-stream")

    @property
    def depth(self) -> int:
        """2: one in use, one being made."""
        return 2

    def begin(self, request: PortionRequest) -> Begun:
        """Hand the pieces to the threads."""
        portion = self._cutter.empty(request, np.dtype(np.float32))
        pieces = [self._threads.submit(self._cutter.fill, portion, piece) for piece in request.pieces]
        return _Assembled(portion, pieces)

    def close(self) -> None:
        """Finish the pieces that are being read and leave out the others."""
        self._threads.shutdown(wait=True, cancel_futures=True)


class ClusterSource:
    """Reads and cuts on Dask workers; a portion travels once, as it is stored, and no block ever does.

    Attributes
    ----------
    depth : int
        How many portions may be begun and not used up.
    """

    def __init__(self, cutter: Cutter, client: Any) -> None:
        # Here, because distributed would hide our own error ("save it first") in one of its own.
        pickle.dumps(cutter)
        self._cutter = cutter
        # One for every thread of the cluster as it is now, and one that is in use here.
        self.depth = min(threads_of(client) + 1, _MOST_ON_CLUSTER)
        self._calls = RemoteCalls(client, self.depth)

    def begin(self, request: PortionRequest) -> Begun:
        """Send the request to a worker; 16-bit integers come back as half of what the trainer gets."""
        return self._calls.submit(
            _cut, self._cutter.part_for(request), request, self._cutter.stored_dtype, finish=_received
        )

    def close(self) -> None:
        """Cancel what was sent."""
        self._calls.close()


def _cut(cutter: Cutter, request: PortionRequest, dtype: np.dtype[Any]) -> tuple[Portion, Read]:
    return cutter.cut(request, dtype)


def _received(result: tuple[Portion, Read]) -> tuple[Portion, Read]:
    portion, read = result
    return portion.as_float32(), read
