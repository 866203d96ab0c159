"""Logs for machines: one JSON object a line, safe to keep, from the driver and from its workers alike.

::

    {"time": "2026-01-31T12:00:00.123Z", "level": "INFO", "logger": "denoizarr.progress", "message": "...",
     "job": "...", "step": "inference", "progress": {"label": "inference", "done": 3, "total": 9}}
    {"time": ..., "level": "ERROR", ..., "error": {"class": "BadRequest", "what": ..., "where": ..., ...}}

URLs lose user, password and query wherever they stand in a text.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from denoizarr.errors import DenoizarrError

from .counters import current_counters

VARIABLE = "DENOIZARR_LOG_FORMAT"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+[^\s\"'<>|]+")


class JsonFormatter(logging.Formatter):
    """Makes one JSON object of a log record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as a line."""
        counters = current_counters()
        found: dict[str, Any] = {
            "time": _utc(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
        }
        if counters is not None and counters.job:
            found["job"] = counters.job
        if counters is not None and counters.step:
            found["step"] = counters.step
        for name in ("progress", "error"):
            if (value := getattr(record, name, None)) is not None:
                found[name] = _safe(value)
        if record.exc_info is not None and record.exc_info[1] is not None:
            found.setdefault("error", _safe(error_fields(record.exc_info[1])))
            found["traceback"] = without_secrets(self.formatException(record.exc_info))
        return json.dumps(found, ensure_ascii=False, default=str)


def begin(level: int = logging.WARNING) -> None:
    """Write the logs of this process to standard error as JSON, those of other packages from ``level`` on."""
    # Workers that this process starts find it in their environment.
    os.environ[VARIABLE] = "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("denoizarr").setLevel(logging.INFO)
    take_over_others()
    logging.captureWarnings(capture=True)
    # A mistake of ours has a traceback, which must be one line, too.
    sys.excepthook = _log_uncaught


def take_over_others() -> None:
    """Let handlers of other packages speak JSON as well, where that is wanted: distributed brings its own."""
    if not are_on():
        return
    for name in list(logging.root.manager.loggerDict):
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(JsonFormatter())


def are_on() -> bool:
    """Tell whether the logs of this process are JSON."""
    return os.environ.get(VARIABLE) == "json"


def error_fields(error: BaseException) -> dict[str, Any]:
    """Return an error by its parts: class, what, where, got, expected, remedy; those that it has."""
    if not isinstance(error, DenoizarrError):
        return {"class": type(error).__name__, "what": str(error)}
    parts = {
        "what": error.what,
        "where": error.where,
        "got": error.got,
        "expected": error.expected,
        "remedy": error.remedy,
    }
    given = {name: str(value) for name, value in parts.items() if value is not None}
    return {"class": type(error).__name__, **given, "exit_status": error.exit_status}


def log_error(error: BaseException, *, with_traceback: bool = False) -> None:
    """Say with what a run ended."""
    logging.getLogger("denoizarr").error(
        "%s", error, extra={"error": error_fields(error)}, exc_info=error if with_traceback else None
    )


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("denoizarr").critical(
        "%s: %s", kind.__name__, error, extra={"error": error_fields(error)}, exc_info=(kind, error, trace)
    )


def without_secrets(text: str) -> str:
    """Return a text whose URLs have lost user, password and query."""
    # Here, or the command line would take a second longer to say how it is used.
    from denoizarr.stores import locations

    return _URL.sub(lambda found: locations.redact(found[0]), text)


def _safe(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _safe(item) for key, item in value.items()}
    if isinstance(value, str):
        return without_secrets(value)
    return value


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
