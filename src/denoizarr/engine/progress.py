"""Progress of long work: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Self

from . import json_logs

_LOG = logging.getLogger("denoizarr.progress")
# A log grows by a line at each tenth of the work, but no faster than this and no slower than the other.
_SHORTEST_SECONDS, _LONGEST_SECONDS = 1.0, 60.0


class Progress:
    """A context manager around ``total`` steps of something.

    Parameters
    ----------
    label : str
        What is being done, as a reader of the log would call it.
    total : int
        Number of steps.
    enabled : bool
        False is silent.
    """

    def __init__(self, label: str, total: int, enabled: bool = True) -> None:
        self.label, self.total, self.enabled = label, total, enabled
        self.done = 0
        self._said = time.monotonic()
        self._said_at = 0
        self._bar = None
        if enabled and sys.stderr.isatty() and not json_logs.are_on():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            self._bar = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(label, total=total, note="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        elif self.enabled:
            _LOG.info("%s: 0 of %d", self.label, self.total, extra=self._fields())
        return self

    def advance(self, n: int = 1, note: str = "") -> None:
        """Say that ``n`` more steps are done; ``note`` is shown behind the count."""
        self.done += n
        if self._bar is not None:
            self._bar.update(self._task, advance=n, note=note)
        elif self.enabled and self._is_time():
            self._said, self._said_at = time.monotonic(), self.done
            text = f" ({note})" if note else ""
            _LOG.info("%s: %d of %d%s", self.label, self.done, self.total, text, extra=self._fields(note))

    def _fields(self, note: str = "") -> dict[str, dict[str, str | int]]:
        """Return what a log for machines keeps beside the words."""
        told: dict[str, str | int] = {"label": self.label, "done": self.done, "total": self.total}
        return {"progress": told | ({"note": note} if note else {})}

    def _is_time(self) -> bool:
        waited = time.monotonic() - self._said
        tenth = self.done - self._said_at >= max(self.total / 10, 1)
        return (
            self.done >= self.total or (tenth and waited >= _SHORTEST_SECONDS) or waited >= _LONGEST_SECONDS
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
