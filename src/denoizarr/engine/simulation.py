"""How long a step takes on many workers: the engine's own rules, played out without doing the work.

The engine is one driver (client and scheduler, each batch a slice of one core's time), workers that have two
batches each at a time, one running and one waiting, and a store that they share::

    driver  |s|s|s|s|s| |r|s| |r|s|          s: send a batch, r: take note of its end
    worker 1     [read|compute|write][read|compute|write]
    worker 2       [read|compute|write][read|compute|write]
    store         ..1..2...          reads and writes pass it one after another at its full rate

What ends it all is the last batch: batches differ in length, and towards the end workers stand idle.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from math import inf, log, sqrt

import numpy as np
from scipy.special import ndtri

# Played out in full up to here; beyond, the pattern repeats, and its rate is enough.
_MOST_BATCHES_PER_WORKER, _FEWEST_BATCHES, _MOST_BATCHES = 60, 2_000, 600_000
_PER_WORKER = 2  # as the crew of workers has it

# What happens to a batch on its worker.
_ARRIVES, _COMPUTED, _ENDS = range(3)


@dataclass(frozen=True, slots=True)
class BatchCosts:
    """What one batch of blocks costs.

    Attributes
    ----------
    compute_seconds : float
        On a worker, without reading and writing.
    read_bytes, write_bytes : float
        As they pass the store, encoded.
    worker_bytes_per_second : float
        Between one worker and the store, decoding and encoding included.
    store_bytes_per_second : float
        Of the store, for all workers together; infinite where it grows with them.
    driver_seconds : float
        Of client and scheduler, for sending a batch and for taking note of its end.
    spread : float
        Standard deviation of a batch's seconds over their mean.
    """

    compute_seconds: float
    read_bytes: float = 0.0
    write_bytes: float = 0.0
    worker_bytes_per_second: float = inf
    store_bytes_per_second: float = inf
    driver_seconds: float = 0.0
    spread: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of one batch on one worker that has store and driver to itself."""
        bytes_per_second = min(self.worker_bytes_per_second, self.store_bytes_per_second)
        return self.compute_seconds + (self.read_bytes + self.write_bytes) / bytes_per_second


@dataclass(frozen=True, slots=True)
class Projection:
    """What a step would take.

    Attributes
    ----------
    seconds : float
        From the first batch sent to the last one noted.
    efficiency : float
        Seconds of one worker, over the workers times ``seconds``: 1 where nobody ever waits.
    driver_share, store_share : float
        Of the time for which driver and store are busy: near 1, that is what holds the others up.
    """

    seconds: float
    efficiency: float
    driver_share: float
    store_share: float


def project(costs: BatchCosts, n_batches: int, workers: int, *, seed: int = 0) -> Projection:
    """Play a step out.

    Parameters
    ----------
    costs : BatchCosts
    n_batches, workers : int
        One batch runs at a time on a worker.
    seed : int
        Draws how long each batch takes.
    """
    if n_batches < 1 or workers < 1:
        return Projection(0.0, 1.0, 0.0, 0.0)
    most = min(max(_MOST_BATCHES_PER_WORKER * workers, _FEWEST_BATCHES), max(_MOST_BATCHES, 4 * workers))
    played = _Play(costs, min(n_batches, most), workers, seed)
    played.run()
    seconds, left = played.ended, n_batches - min(n_batches, most)
    if left:
        seconds += left * played.seconds_per_batch()
    return Projection(
        seconds,
        n_batches * costs.seconds / (workers * seconds) if seconds else 1.0,
        played.driver_busy / played.ended if played.ended else 0.0,
        played.store_busy / played.ended if played.ended else 0.0,
    )


def lengths_of(costs: BatchCosts, n_batches: int, seed: int) -> list[float]:
    """Draw how long each batch computes, in seconds.

    From a logarithmic normal distribution of the mean and spread asked for: durations are positive, and some
    are long. They lie evenly over it, in random order, so that even those of a few batches add up.
    """
    width = sqrt(log(1 + costs.spread**2))
    relative = np.exp(width * ndtri((np.arange(n_batches) + 0.5) / n_batches))
    order = np.random.default_rng(seed).permutation(n_batches)
    lengths: list[float] = (costs.compute_seconds * (relative / relative.mean())[order]).tolist()
    return lengths


class _Play:
    """One run of the events; times in seconds since the first batch was sent."""

    def __init__(self, costs: BatchCosts, n_batches: int, workers: int, seed: int) -> None:
        self.costs, self.n_batches, self.workers = costs, n_batches, workers
        self.lengths = lengths_of(costs, n_batches, seed)
        self.driver_free = self.store_free = self.driver_busy = self.store_busy = self.ended = 0.0
        self.ends: list[float] = []

    def run(self) -> None:
        """Send two batches to every worker, and one more whenever one ends, until none is left."""
        sent = 0
        waiting = [0] * self.workers
        events: list[tuple[float, int, int]] = []
        busy = [False] * self.workers
        for _ in range(_PER_WORKER):
            for worker in range(self.workers):
                if sent < self.n_batches:
                    heapq.heappush(events, (self._driver(0.0), _ARRIVES, worker))
                    sent += 1
        lengths = iter(self.lengths)
        while events:
            now, kind, worker = heapq.heappop(events)
            if kind == _ARRIVES:
                waiting[worker] += 1
            elif kind == _COMPUTED:
                written = self._transfer(now, self.costs.write_bytes)
                heapq.heappush(events, (written, _ENDS, worker))
            else:
                busy[worker] = False
                noted = self._driver(now)
                self.ends.append(noted)
                if sent < self.n_batches:
                    heapq.heappush(events, (self._driver(noted), _ARRIVES, worker))
                    sent += 1
            if not busy[worker] and waiting[worker]:
                waiting[worker] -= 1
                busy[worker] = True
                read = self._transfer(now, self.costs.read_bytes)
                heapq.heappush(events, (read + next(lengths), _COMPUTED, worker))
        self.ended = max(self.ends)

    def seconds_per_batch(self) -> float:
        """Return the time between two ends while all workers are busy: not the first and the last of each."""
        ends = sorted(self.ends)
        # As long as possible: what is drawn for its batches evens out, and the rest is as many times longer.
        margin = min(max(_PER_WORKER * self.workers, len(ends) // 20), len(ends) // 4)
        return (ends[-1 - margin] - ends[margin]) / (len(ends) - 1 - 2 * margin)

    def _driver(self, now: float) -> float:
        """Return when the driver, free again, has done one of a batch's two turns."""
        turn = self.costs.driver_seconds / 2
        self.driver_free = max(now, self.driver_free) + turn
        self.driver_busy += turn
        return self.driver_free

    def _transfer(self, now: float, n_bytes: float) -> float:
        """Return when bytes have passed the worker's own way and their turn at the store."""
        if not n_bytes:
            return now
        turn = n_bytes / self.costs.store_bytes_per_second
        self.store_free = max(now, self.store_free) + turn
        self.store_busy += turn
        return max(self.store_free, now + n_bytes / self.costs.worker_bytes_per_second)
