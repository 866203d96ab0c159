"""How long a batch may take: so many times the median of those before it, so that a frozen worker shows."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class DeadlinePolicy:
    """Limits on the time from handing a batch out to having its answer.

    Attributes
    ----------
    soft_factor, hard_factor : float
        Times the running median.
    least_seconds : float
        No limit is shorter: a store that stalls for a moment is no frozen worker.
    first_seconds : float
        The hard limit until ``few`` batches have ended. There is no soft one then.
    few : int
    tries : int
        Passed hard limits, each twice as long as the one before, or tries in which its workers died, after
        which a batch is given up.
    """

    soft_factor: float = 4.0
    hard_factor: float = 20.0
    least_seconds: float = 60.0
    first_seconds: float = 1800.0
    few: int = 3
    tries: int = 3


class Deadlines:
    """The limits as they are now.

    Parameters
    ----------
    policy : DeadlinePolicy
    """

    def __init__(self, policy: DeadlinePolicy) -> None:
        self.policy = policy
        self._seconds: deque[float] = deque(maxlen=101)

    def add(self, seconds: float) -> None:
        """Take note of how long a batch took."""
        self._seconds.append(seconds)

    def soft_seconds(self) -> float | None:
        """Return after how long to say that a batch takes long; None where nothing is known of them."""
        if len(self._seconds) < self.policy.few:
            return None
        return max(self.policy.soft_factor * median(self._seconds), self.policy.least_seconds)

    def hard_seconds(self, tries: int) -> float:
        """Return after how long a batch that was handed out ``tries`` times is handed to someone else."""
        first = self.policy.first_seconds
        if len(self._seconds) >= self.policy.few:
            first = max(self.policy.hard_factor * median(self._seconds), self.policy.least_seconds)
        return first * float(2 ** (tries - 1))
