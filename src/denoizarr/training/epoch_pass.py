"""One pass over an epoch: its portions, a few of them under way, and the batches that they are cut into."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .portion_sources import Begun, PortionSource
from .portions import Portion, PortionRequest, Read


@dataclass(slots=True)
class Counts:
    """What a stream has read, handed out and waited for."""

    read: Read = field(default_factory=lambda: Read(0, 0))
    patches: int = 0
    used_bytes: int = 0
    seconds_waited: float = 0.0


class EpochPass:
    """Portions in the order of their requests; the first of them are under way as soon as this is made.

    Requests are planned in a thread of their own, so that the one that trains need not.

    Parameters
    ----------
    source : PortionSource
        Closed with this.
    requests : iterator of PortionRequest
        Taken as the source has room: a slow trainer stops the reading.
    """

    def __init__(self, source: PortionSource, requests: Iterator[PortionRequest]) -> None:
        self._source, self._requests = source, requests
        self._planner = ThreadPoolExecutor(1, thread_name_prefix="patch-stream")
        self._under_way: deque[Future[Begun | None]] = deque()
        self.is_all_under_way = False
        """Whether nothing is left to begin."""
        self._fill()

    def _fill(self) -> None:
        while not self.is_all_under_way and len(self._under_way) < self._source.depth:
            self._under_way.append(self._planner.submit(self._begin_next))

    def _begin_next(self) -> Begun | None:
        request = next(self._requests, None)
        if request is None:
            self.is_all_under_way = True
            return None
        return self._source.begin(request)

    def portions(self, counts: Counts) -> Iterator[Portion]:
        """Yield the portions; another is begun only when one is used up."""
        while self._under_way:
            started = time.monotonic()
            begun = self._under_way[0].result()
            portion = None if begun is None else begun.result()
            counts.seconds_waited += time.monotonic() - started
            if portion is None:
                return
            counts.read += portion[1]
            yield portion[0]
            # Let go before the next one is waited for.
            del begun, portion
            self._under_way.popleft()
            self._fill()

    def close(self) -> None:
        """Give up what is under way."""
        self._planner.shutdown(wait=True, cancel_futures=True)
        self._source.close()


def batches_of(portions: Iterator[Portion], stop: int, size: int) -> Iterator[Portion]:
    """Cut portions into batches of ``size``, over their borders; what ends at ``stop`` may be less."""
    held: list[Portion] = []
    for portion in portions:
        at = 0
        while at < len(portion.origins):
            missing = size - sum(len(part.origins) for part in held)
            held.append(_part_of(portion, at, at + missing))
            at += len(held[-1].origins)
            if len(held[-1].origins) == missing or portion.first + at == stop:
                yield _joined(held)
                held = []


def _part_of(portion: Portion, first: int, stop: int) -> Portion:
    return Portion(
        portion.first + first,
        portion.patches[first:stop],
        None if portion.targets is None else portion.targets[first:stop],
        portion.origins[first:stop],
        portion.images[first:stop],
    )


def _joined(parts: Sequence[Portion]) -> Portion:
    if len(parts) == 1:
        return parts[0]
    targets: list[NDArray[Any]] = [part.targets for part in parts if part.targets is not None]
    return Portion(
        parts[0].first,
        np.concatenate([part.patches for part in parts]),
        np.concatenate(targets) if targets else None,
        np.concatenate([part.origins for part in parts]),
        np.concatenate([part.images for part in parts]),
    )
