"""Predict in one process after another, each killed at its moment, and print what became of them.

For each line of JSON, a list of runs, one is printed. Each process is forked from this one, so that torch
is imported once; this one starts no thread and opens no store. What the processes do is known from the
failpoints that they come by.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401 - the network would import it in every process

from denoizarr.engine import failpoints, ledger, runner
from denoizarr.inference import predict as inference

# No run of these small ones takes as long on the busiest machine.
_LIMIT_SECONDS = 100.0


def child(writer: int, settings: dict[str, Any], run: dict[str, Any]) -> None:
    """Predict, and tell of every failpoint; never returns."""
    os.setpgid(0, 0)
    number = {point: bytes([k]) for k, point in enumerate(failpoints.POINTS)}
    passed = failpoints.reach

    def tell(point: str) -> None:
        os.write(writer, number[point])
        passed(point)

    failpoints.reach = tell
    failpoints.arm(run.get("fail_at"))
    inference.usable_cores = lambda: run.get("threads", settings["threads"])
    inference.PREDICTION_BATCH_VOXELS = settings["batch_voxels"]
    ledger.GROUP = runner.GROUP = settings["group"]
    inference.predict(settings["model"], settings["source"], run["to"], progress=False, **settings["options"])
    os._exit(0)


def listen(reader: int, heard: Counter[str], until: int | None) -> bool:
    """Count failpoints until so many are heard or the process ended; tell whether that came in time."""
    names, deadline = list(failpoints.POINTS), time.monotonic() + _LIMIT_SECONDS
    while until is None or heard.total() < until:
        if not select.select([reader], [], [], max(deadline - time.monotonic(), 0))[0]:
            return False
        told = os.read(reader, 1)
        if not told:
            return True
        heard[names[told[0]]] += 1
    return True


def once(settings: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Run one process to its end and say what it did.

    A run says ``to``, the output, and may say ``threads``; ``fail_at``, a failpoint; ``after`` and
    ``seconds``, how many failpoints it comes by, and how long after that it is killed; ``torn``, that
    all stored blocks of the finest level are cut in half before it begins.
    """
    if run.get("torn"):
        for path in Path(run["to"], "0", "c").rglob("*"):
            if path.is_file():
                os.truncate(path, path.stat().st_size // 2)
    reader, writer = os.pipe()
    assert threading.active_count() == 1, "what is forked has no other thread"
    process = os.fork()
    if process == 0:
        try:
            child(writer, settings, run)
        except BaseException as error:  # noqa: BLE001 - told, and never this program's loop over again
            print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        os._exit(1)
    os.close(writer)
    heard: Counter[str] = Counter()
    if "after" in run:
        listen(reader, heard, run["after"])
        # Not a wait for something: the moment between two failpoints at which it is killed.
        select.select([], [], [], run["seconds"])
        os.kill(process, signal.SIGKILL)
    in_time = listen(reader, heard, None)
    if not in_time:
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    os.close(reader)
    return {
        "in_time": in_time,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "status": os.waitstatus_to_exitcode(status),
        "heard": heard,
        "recorded": blocks_on_record(Path(run["to"] + ".ledger")),
    }


def blocks_on_record(ledger_folder: Path) -> int:
    """Count the blocks of all records, by plain means."""
    found: set[tuple[str, int]] = set()
    for path in ledger_folder.glob("level-*/*.json"):
        if path.name == "step.json":
            continue
        body = json.loads(path.read_text())
        for record in body.get("records", [body]):
            found |= {(path.parent.name, block) for block in range(*record["blocks"])}
    return len(found)


def main() -> None:
    settings = json.loads(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps([once(settings, run) for run in json.loads(line)]), flush=True)  # noqa: T201


main()
