"""How far the job of a ledger has come, read without changing anything."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from denoizarr.errors import ImageNotFound, MetadataError
from denoizarr.geometry.grids import ceil_div
from denoizarr.stores import locations, records

from .driver_lock import driver_of, holder_lives
from .ledger import Ledger

Driver = Literal["running", "elsewhere", "none"]


@dataclass(frozen=True, slots=True)
class StepStatus:
    """One step of a job.

    Attributes
    ----------
    name : str
    batches_done, batches : int
        By records that are there, each asked for by its key.
    blocks : int
    """

    name: str
    batches_done: int
    batches: int
    blocks: int


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """All that a ledger tells.

    Attributes
    ----------
    url : str
    steps : tuple of StepStatus
        Those that were begun, in the order of their names.
    last_record : str or None
        When the last record was written, in UTC as ISO 8601.
    driver : {"running", "elsewhere", "none"}
        A process of this machine; one of another, of which it cannot be told whether it lives; or none. The
        shares of a job array leave no note.
    driver_process : str
        Host and process of the driver's note; empty where there is none.
    """

    url: str
    steps: tuple[StepStatus, ...]
    last_record: str | None
    driver: Driver
    driver_process: str


def ledger_status(url: str) -> LedgerStatus:
    """Return how far the job of the ledger at ``url`` has come.

    Raises
    ------
    ImageNotFound
        No ledger lies there.
    """
    claim = records.read_json(locations.join(url, "job.json"))
    ledger = Ledger(url, records.digest(claim))
    steps, latest = [], 0.0
    # A listing says which steps were begun; what of them is done is asked for by name.
    for name in locations.list_names(url):
        folder = locations.join(url, name)
        if locations.is_file(folder):
            continue
        try:
            found = records.read_json(locations.join(folder, "step.json"))
            blocks, per_batch = int(found["blocks"]), int(found["blocks_per_batch"])
        except (ImageNotFound, MetadataError, KeyError, TypeError, ValueError):
            continue
        if blocks < 0 or per_batch < 1:
            continue
        n_batches = ceil_div(blocks, per_batch)
        steps.append(StepStatus(name, sum(ledger.done(name, n_batches)), n_batches, blocks))
        latest = max(latest, locations.last_write(folder, apart_from="step.json"))
    stamp = datetime.fromtimestamp(latest, UTC).isoformat(timespec="seconds") if latest else None
    return LedgerStatus(url, tuple(steps), stamp, *driver_state(url))


def driver_state(url: str) -> tuple[Driver, str]:
    """Return whether a driver holds the ledger at ``url``, and its host and process in words."""
    holder: dict[str, Any] = driver_of(url)
    process = holder.get("process")
    if not holder or not isinstance(process, int):
        return "none", ""
    named = f"process {process} on {holder.get('host')}"
    if holder.get("host") != socket.gethostname():
        return "elsewhere", named
    return ("running" if holder_lives(holder) else "none"), named
