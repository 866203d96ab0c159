"""One driver an output: a second one on the same machine is refused while the first lives."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from denoizarr.errors import ImageNotFound, MetadataError, OutputLocked
from denoizarr.stores import locations, records

_LOG = logging.getLogger(__name__)


@contextmanager
def only_driver(ledger_url: str) -> Iterator[None]:
    """Hold the output of a ledger for this process.

    A driver that was killed leaves its note behind; it is taken over when its process is gone. A note from
    another machine is taken over too, because whether that driver lives cannot be told from here: batches on
    record are never done twice either way.

    Raises
    ------
    OutputLocked
        A living process of this machine holds it.
    """
    key = locations.join(ledger_url, "driver.json")
    me = {"host": socket.gethostname(), "process": os.getpid()}
    if not records.create_json(key, me):
        _refuse_if_alive(key, me)
        records.write_json(key, me)
    try:
        yield
    finally:
        if _note(key) == me:
            locations.delete(key)


def driver_of(ledger_url: str) -> dict[str, Any]:
    """Return the note of a ledger's driver, host and process; empty where there is none."""
    return _note(locations.join(ledger_url, "driver.json"))


def _note(key: str) -> dict[str, Any]:
    try:
        return records.read_json(key)
    except (ImageNotFound, MetadataError):  # let go of meanwhile, or torn
        return {}


def _refuse_if_alive(key: str, me: dict[str, Any]) -> None:
    holder = _note(key)
    if holder.get("host") != me["host"]:
        if holder:
            _LOG.warning("taking over from a driver on %s, which may still run", holder.get("host"))
        return
    process = holder.get("process")
    if process == me["process"] or not isinstance(process, int) or not process_lives(process):
        return
    raise OutputLocked(
        "another driver is writing this output",
        where=key,
        got=f"process {process}",
        remedy="wait for it; if it is not denoizarr, delete this file and run again",
    )


def process_lives(process: int) -> bool:
    """Tell whether a process of this machine lives."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
