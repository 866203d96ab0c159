"""The log of a training: a CSV file with a row per epoch and, where it is installed, TensorBoard's events."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from denoizarr.stores import locations

_LOG = logging.getLogger(__name__)
COLUMNS = ("epoch", "step", "train_loss", "validation_loss", "learning_rate")
# In the log alone: two runs of the same training leave the same checkpoints.
_SECONDS = "seconds"
_CURVES = COLUMNS[2:]

Row = dict[str, Any]


class TrainingLog:
    """Keeps the files of a log equal to the epochs done, however often a training was killed and resumed.

    Parameters
    ----------
    where : str or Path, optional
        The CSV file; TensorBoard's events go to a folder beside it, ``train.tensorboard/`` for ``train.csv``.
        None: nothing is written.
    history : sequence of dict
        The epochs done before. Their seconds are taken from the file where it has these epochs.
    """

    def __init__(self, where: str | Path | None, history: Sequence[Row]) -> None:
        self._where = where
        self._seconds = _logged_seconds(where, history)
        self._events = None if where is None else _event_writer(where, history)
        self._write(history)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is not None:
            self._events.close()

    def add(self, history: Sequence[Row], seconds: float | None) -> None:
        """Write the log of these epochs, of which the last is new; seconds are unknown if it was resumed."""
        row = history[-1]
        self._seconds.append("" if seconds is None else str(round(seconds, 3)))
        _LOG.debug("%s", row)
        self._write(history)
        if self._events is not None:
            for name in _CURVES:
                if row[name] is not None:
                    self._events.add_scalar(name, row[name], row["step"])
            self._events.flush()

    def _write(self, history: Sequence[Row]) -> None:
        """Write the whole file anew: an epoch that a killed run logged in vain is never there twice."""
        if self._where is None:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, (*COLUMNS, _SECONDS), lineterminator="\n")
        writer.writeheader()
        for row, seconds in zip(history, self._seconds, strict=True):
            writer.writerow(_as_logged(row) | {_SECONDS: seconds})
        locations.put(self._where, text.getvalue().encode())


def _as_logged(row: Row) -> dict[str, str]:
    return {column: "" if row[column] is None else str(row[column]) for column in COLUMNS}


def _logged_seconds(where: str | Path | None, history: Sequence[Row]) -> list[str]:
    """Return the seconds of epochs done before from the log that lies there; "" where it is not of these."""
    found: dict[str, dict[str, Any]] = {}
    if where is not None and history and locations.is_file(where):
        text = locations.get(where).decode(errors="replace")
        found = {str(row.get("epoch")): row for row in csv.DictReader(io.StringIO(text))}
    rows = [(found.get(str(row["epoch"]), {}), _as_logged(row)) for row in history]
    return [str(old.get(_SECONDS) or "") if old.items() >= new.items() else "" for old, new in rows]


def _event_writer(where: str | Path, history: Sequence[Row]) -> Any:
    """Return TensorBoard's writer, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    if locations.is_remote(where):
        return None  # events are appended to, which no bucket does
    path = locations.local_path(where)
    # Epochs that a killed run logged and did not keep are drawn no more.
    purged = int(history[-1]["step"]) + 1 if history else 0
    return SummaryWriter(str(path.with_name(f"{path.stem}.tensorboard")), purge_step=purged)
