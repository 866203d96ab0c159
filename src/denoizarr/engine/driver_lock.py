"""One driver an output: a second one on the same machine is refused while the first lives."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from denoizarr.errors import ImageNotFound, MetadataError, Outage, OutputLocked
from denoizarr.stores import locations, records

_LOG = logging.getLogger(__name__)
NOTE = "driver.json"
# What this process holds: by which thread, and how often.
_HELD: dict[str, tuple[int, int]] = {}
_LOCK = threading.Lock()


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
    key = locations.join(ledger_url, NOTE)
    with _in_one_thread(key) as is_held_already:
        if is_held_already:
            yield
            return
        me = {"host": socket.gethostname(), "process": os.getpid(), "life": _life_of(os.getpid())}
        was_there = locations.exists(ledger_url)
        if not records.create_json(key, me):
            _refuse_if_alive(key, me)
            records.write_json(key, me)
        try:
            yield
        finally:
            # What happened inside is what the caller must hear of, not that the store is away now as well.
            with contextlib.suppress(Outage, OSError):
                if _note(key) == me:
                    locations.delete(key)
                if not was_there:  # and nothing was begun after all
                    locations.delete_if_empty(ledger_url)


@contextmanager
def _in_one_thread(key: str) -> Iterator[bool]:
    """Refuse what another thread of this process holds, and tell whether this one does: the note cannot."""
    me = threading.get_ident()
    with _LOCK:
        thread, depth = _HELD.get(key, (me, 0))
        if thread != me:
            raise _locked(key, "another thread of this process")
        _HELD[key] = me, depth + 1
    try:
        yield depth > 0
    finally:
        with _LOCK:
            del _HELD[key]
            if depth:
                _HELD[key] = me, depth


def _locked(key: str, by: str) -> OutputLocked:
    return OutputLocked(
        "another driver is writing this output",
        where=key,
        got=by,
        remedy="wait for it; if it is not denoizarr, delete this file and run again",
    )


def driver_of(ledger_url: str) -> dict[str, Any]:
    """Return the note of a ledger's driver, host and process; empty where there is none."""
    return _note(locations.join(ledger_url, NOTE))


def holder_lives(holder: dict[str, Any]) -> bool:
    """Tell whether the process of a note of this machine lives: that one, and none with its number since."""
    process, life = holder.get("process"), holder.get("life")
    if not isinstance(process, int) or isinstance(process, bool) or process < 1:
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    now = _life_of(process)
    return now is None or (now != _ENDED and life in (None, now))


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
    if holder == me or not holder_lives(holder):
        return
    raise _locked(key, f"process {holder['process']}")


_ENDED = "ended"


def _life_of(process: int) -> str | None:
    """Return what tells a process from those that had, or will have, its number; None where nothing does.

    Numbers come again: after a reboot, and in a container, where the first process is always 1.
    """
    try:
        # Behind the name, which may hold anything: the state, and as twentieth the start in ticks of boot.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, UnicodeDecodeError):  # not Linux, or just gone
        return None
    # A zombie's parent has yet to hear of its end, and may never.
    return _ENDED if fields[0] in "ZX" else f"{boot}-{fields[19]}"
