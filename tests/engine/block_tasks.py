"""Tasks that tests of the runner run in this process and on workers: importable by name in both."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from denoizarr.errors import (
    BadRequest,
    CorruptChunk,
    MissingChunk,
    NoSpace,
    PermissionDenied,
    StoreUnavailable,
)
from denoizarr.stores import locations

ERRORS = {
    "missing": MissingChunk,
    "corrupt": CorruptChunk,
    "outage": StoreUnavailable,
    "foreign": RuntimeError,
    "value": ValueError,
    "request": BadRequest,
    "full": NoSpace,
    "forbidden": PermissionDenied,
    "timeout": TimeoutError,
    "stale": partial(OSError, errno.ESTALE),
}


def square(spec: Any, block: int) -> dict[str, Any]:
    """Say the block's number squared, and leave a mark for every time it is done."""
    if spec:
        n = 0
        while not locations.create(locations.join(spec, f"{block}-{n}"), b""):
            n += 1
    return {"block": block, "square": block * block}


def fail(spec: dict[str, str], block: int) -> dict[str, Any]:
    """Fail in the way that the spec says for this block."""
    kind = spec.get(str(block))
    if kind is not None:
        raise (
            ERRORS[kind](f"block {block} is bad")
            if kind in ("foreign", "value")
            else ERRORS[kind]("block is bad", where=f"block {block}")
        )
    return {"block": block}


def fail_at_first(spec: dict[str, Any], block: int) -> dict[str, Any]:
    """Fail so often before block ``spec["block"]`` is done (None: every block); leave a mark each time."""
    tried = 0
    while not locations.create(locations.join(spec["marks"], f"{block}-{tried}"), b""):
        tried += 1
    if spec["block"] in (None, block) and tried < spec["times"]:
        raise ERRORS[spec["kind"]](f"try {tried} of block {block}")
    return {"block": block}


def die_once(spec: str, block: int) -> dict[str, Any]:
    """Kill this worker in the middle of block 3, the first time."""
    if block == 3 and locations.create(locations.join(spec, "killed"), b"1"):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"block": block, "pid": os.getpid()}


def freeze_once(spec: str, block: int) -> dict[str, Any]:
    """Stop this worker in the middle of block 3, the first time, as a machine that hangs does."""
    if block == 3 and locations.create(locations.join(spec, "frozen"), str(os.getpid()).encode()):
        os.kill(os.getpid(), signal.SIGSTOP)
        # On a busy machine the signal takes another thread first, and this one would go on.
        threading.Event().wait(0.3)
    return {"block": block, "pid": os.getpid()}


def wait_a_little(spec: Any, block: int) -> dict[str, Any]:
    """Take some milliseconds."""
    threading.Event().wait(0.01)
    return {"block": block}


def sleep_for(spec: list[float], block: int) -> dict[str, Any]:
    """Do nothing for as long as the spec says for this block, in seconds."""
    threading.Event().wait(spec[block])
    return {"block": block}


def kill_always(spec: Any, block: int) -> dict[str, Any]:
    """Kill every worker that begins block 3."""
    if block == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"block": block}


def count_beside(spec: str, block: int) -> dict[str, Any]:
    """Say how many blocks were under way on this machine while this one was, itself included."""
    names = [f"{i}" for i in range(8)]
    mine = next(name for name in names if locations.create(locations.join(spec, name), b""))
    most = 1
    for _ in range(10):
        threading.Event().wait(0.005)
        most = max(most, sum(locations.exists(locations.join(spec, name)) for name in names))
    Path(spec, mine).unlink()
    return {"block": block, "most": most}


def add_up(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge a batch."""
    return {"total": sum(r["square"] for r in results), "blocks": [r["block"] for r in results]}


class Unpicklable(Exception):  # noqa: N818
    """Holds what no process can send to another."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class Misread(Exception):  # noqa: N818
    """Can be sent, and not be read."""

    def __init__(self, a: str, b: str) -> None:
        super().__init__(a + b)


def fail_oddly(spec: Any, block: int) -> dict[str, Any]:
    """Raise what a task should not: errors that cannot travel, and what ends a thread or a process."""
    odd: dict[int, Any] = {
        1: Unpicklable,
        2: partial(Misread, "a", "b"),
        3: partial(ValueError, "long " * 100_000),
        4: KeyboardInterrupt,
        5: partial(SystemExit, 3),
        6: partial(MemoryError, "no room"),
    }
    if block in odd:
        raise odd[block]()  # noqa: RSE102  # some are partials
    return {"block": block}


def fail_on_one_worker(spec: Any, block: int) -> dict[str, Any]:
    """Fail at once on the worker named in the spec, as without its disk; elsewhere take a while."""
    from distributed import get_worker

    if str(get_worker().name) == spec["name"]:
        locations.create(locations.join(spec["marks"], f"{block}"), b"")
        raise MissingChunk("no such file", where=f"block {block}")
    time.sleep(0.02)
    return {"block": block}


def wait_for_others(workers: int, block: int) -> dict[str, Any]:
    """End when so many workers are there, or after a minute; say how many are."""
    from distributed import get_client

    client, deadline = get_client(), time.monotonic() + 60
    while (found := len(client.scheduler_info(n_workers=-1)["workers"])) < workers:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return {"block": block, "workers": found}
