"""What became of the batches that failed: which error the whole step raises for them."""

from __future__ import annotations

import logging
from collections import Counter

from denoizarr.errors import (
    BlockFailed,
    ClusterLost,
    DenoizarrError,
    LedgerMismatch,
    NoSpace,
    PermissionDenied,
    StoreUnavailable,
)

_LOG = logging.getLogger(__name__)
_OUTAGES = (NoSpace, PermissionDenied, ClusterLost, LedgerMismatch)
# Each of these has taken minutes of tries: so many in a row are no accident.
_SLOW_FAILURES = (StoreUnavailable, BlockFailed, TimeoutError)
# A step whose first batches all fail fails for all: a hundred thousand such lines would help nobody.
_HOPELESS_AFTER = 20
_LINES, _NAMED = 20, 10


class Failures:
    """The failed batches of one step, and whether there is any sense in going on.

    Counts are kept of all, the error itself only of the first: a step may have a million batches.

    Parameters
    ----------
    step, label : str
        As the ledger and as the log name it.
    n_batches : int
    """

    def __init__(self, step: str, label: str, n_batches: int) -> None:
        self._step, self._label, self._n_batches = step, label, n_batches
        self._first: tuple[int, BaseException] | None = None
        self._kinds: Counter[type[BaseException]] = Counter()
        self._statuses: set[int] = set()
        self._successes = self._slow_in_a_row = 0
        self._outage = False
        self._named: list[int] = []

    def __bool__(self) -> bool:
        return self._first is not None

    @property
    def count(self) -> int:
        """Number of batches that failed."""
        return self._kinds.total()

    @property
    def are_hopeless(self) -> bool:
        """Whether the next batches would fail as well: an outage, or not one success so far, or lately."""
        none_so_far = self._successes == 0 and self.count >= _HOPELESS_AFTER
        return self._outage or none_so_far or self._slow_in_a_row >= _HOPELESS_AFTER

    def succeeded(self) -> None:
        """Count a batch that is done."""
        self._successes += 1
        self._slow_in_a_row = 0

    def add(self, batch: int, error: BaseException) -> None:
        """Take note of a batch that failed, and say so in the log."""
        self._outage = self._outage or isinstance(error, _OUTAGES)
        if len(self._named) < _NAMED:
            self._named.append(batch)
        self._slow_in_a_row = self._slow_in_a_row + 1 if isinstance(error, _SLOW_FAILURES) else 0
        self._statuses.add(getattr(error, "exit_status", 1))
        self._kinds[type(error)] += 1
        # By batch and not by time: which error is raised must not depend on who was faster.
        if self._first is None or batch < self._first[0]:
            self._first = batch, error
        if self.count <= _LINES:
            said = error if isinstance(error, DenoizarrError) else f"{type(error).__name__}: {error}"
            _LOG.error("%s: batch %d failed: %s", self._label, batch, said)
        elif self.count == _LINES + 1:
            _LOG.error("%s: more batches fail; they are counted", self._label)

    def error(self) -> BaseException:
        """Return the error that stands for all of them."""
        assert self._first is not None, "something failed"
        _, first = self._first
        if isinstance(first, DenoizarrError) and len(self._kinds) == 1:
            return first
        if self._statuses == {2}:
            return first
        error = BlockFailed(
            f"{self.count} of {self._n_batches} batches failed",
            where=f"{self._step}, {self._batches()}",
            got=f"{type(first).__name__}: {first}",
            remedy="mend the cause and run the same job again; what is done is kept",
        )
        error.__cause__ = first
        return error

    def _batches(self) -> str:
        """Return the failed batches by number, as many as a line has room for."""
        numbers = ", ".join(map(str, sorted(self._named)))
        more = f" and {self.count - len(self._named)} more" if self.count > len(self._named) else ""
        return f"batch{'es' if self.count > 1 else ''} {numbers}{more}"
