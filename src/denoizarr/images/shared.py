"""The beginning of an output that several processes write at once, none of which knows of the others."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

from denoizarr.engine.ledger import Ledger
from denoizarr.errors import BlockFailed, ImageNotFound, NotOmeZarr
from denoizarr.stores import locations, records
from denoizarr.stores.ome_zarr import STATE

from .layout import OutputLayout
from .output import begin_output, check_free, ledger_url

# How long the process that was first may take before another takes it for dead. Longer than the minute for
# which a network disk may go on saying that something is not there.
_PATIENCE_SECONDS, _LOOK_SECONDS, _ATTEMPTS = 90.0, 0.2, 3


def begin_shared(
    layout: OutputLayout,
    identity: dict[str, Any],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Ledger:
    """Do as ``begin_output`` does, once among all the processes that call this at about the same time.

    The first to put its name into the ledger creates the metadata; the others wait until they are there.
    Nobody puts a record before that.

    Raises
    ------
    OutputExists, LedgerMismatch
    BlockFailed
        Whoever was to create the metadata did not.
    """
    check_free(layout.url)
    ledger = Ledger.claim(ledger_url(layout.url), {"output": layout.identity(), **identity})
    once_among_processes(
        ledger.url,
        lambda: is_laid_out(layout),
        lambda: begin_output(layout, identity),
        where=layout.url,
        clock=clock,
        sleep=sleep,
    )
    return ledger


def once_among_processes(
    ledger: str,
    is_there: Callable[[], bool],
    make: Callable[[], object],
    *,
    where: str,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Have one of the processes that call this make something, and return when it is there.

    Parameters
    ----------
    ledger : str
        Folder in which they put their names.
    is_there, make : callable
    where : str
        What is made, for the message.

    Raises
    ------
    BlockFailed
        Whoever was to make it did not.
    """
    me = {"host": socket.gethostname(), "process": os.getpid()}
    for attempt in range(_ATTEMPTS):
        if is_there():
            return
        if records.create_json(locations.join(ledger, f"begin-{attempt}.json"), me):
            make()
            return
        patience = clock() + _PATIENCE_SECONDS
        while clock() < patience:
            if is_there():
                return
            sleep(_LOOK_SECONDS)
    raise BlockFailed(
        "nobody created the output's metadata",
        where=where,
        got=f"{_ATTEMPTS} attempts",
        remedy="run once without blocks, or delete the ledger and begin again",
    )


def is_laid_out(layout: OutputLayout) -> bool:
    """Tell whether all metadata of an output are there: its arrays are the last that is written of them."""
    try:
        group = locations.open_group(layout.url, "r")
    except (ImageNotFound, NotOmeZarr):
        return False
    with locations.translated(layout.url):
        try:
            return group.attrs.get(STATE) is not None and all(level.path in group for level in layout.levels)
        except ValueError:  # of an array, what a power cut left
            return False
