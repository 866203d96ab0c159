"""What the engine itself costs: blocks that do nothing, in batches, on a cluster of this machine.

The scheduler runs in the process that is measured, beside the client: its CPU seconds are those of both. The
blocks run in a worker process and are not counted. A goal of 12 microseconds leaves room for a scheduler that
is busy with other things; a peer (daisy 2.0) took 112 at as many blocks.

``resume`` is the start of a job of which 99 % is done: how long until the first batch that is not is known.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Group, Row, Side

OPTIONS = {"blocks": 100_000, "per_batch": [500, 1000], "resumed_batches": 100_000}


def groups(options: dict[str, Any], folder: Path) -> list[Group]:
    found = []
    for per_batch in options["per_batch"]:
        settings = {"blocks": options["blocks"], "per_batch": per_batch, "folder": str(folder / "no-op")}
        rows = [
            Row("client and scheduler, µs of CPU per block", "engine", quantity="us", goal=("<=", 12)),
            Row("memory growth, kB per block", "engine", quantity="kilobytes", goal=("<=", 0.2)),
            Row("files of the ledger", "engine", quantity="files"),
        ]
        side = Side("engine", "no_op_blocks", settings, warm_up=False, min_seconds=0)
        found.append(Group(f"batches of {per_batch}", [side], rows))
    settings = {"batches": options["resumed_batches"], "folder": str(folder / "resumed")}
    rows = [
        Row("planning, seconds of wall time", "resume", quantity="planning", goal=("<=", 1)),
        Row("files of the ledger", "resume", quantity="files"),
    ]
    found.append(Group("resume", [Side("resume", "resume", settings, warm_up=False, min_seconds=0)], rows))
    return found


def nothing(spec: None, block: int) -> dict[str, str]:  # noqa: ARG001
    """Do nothing, and say as much of it as a block that was written."""
    return {"checksum": f"{block:016x}"}


def no_op_blocks(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import os
    import sys
    import time

    from side import resident_bytes

    from denoizarr.engine.cluster import ClusterSettings, open_client
    from denoizarr.engine.ledger import Ledger
    from denoizarr.engine.runner import Step, run_step

    paths = [str(Path(__file__).parents[1]), *sys.path]
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)  # for the worker process
    folder = Path(settings["folder"])

    def work() -> dict[str, Any]:
        shutil.rmtree(folder, ignore_errors=True)
        ledger = Ledger.claim(str(folder), {"kind": "no-op"})
        with open_client(ClusterSettings(workers=1)) as client:

            def run(name: str, blocks: int) -> None:
                step = Step(name, nothing, None, blocks, settings["per_batch"])
                run_step(step, ledger=ledger, client=client, progress=False, fold=lambda _: None)

            # What a first step loads, and what the scheduler keeps of any, is not for a block.
            run("warm", 20 * settings["per_batch"])
            memory, cpu = resident_bytes(), time.process_time()
            run("measured", settings["blocks"])
            cpu = time.process_time() - cpu
            memory = resident_bytes() - memory
        return {
            "units": settings["blocks"],
            "us": 1e6 * cpu / settings["blocks"],
            "kilobytes": max(memory, 0) / 1000 / settings["blocks"],
            "files": len(list((folder / "measured").iterdir())),
        }

    return work


def resume(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import time

    from denoizarr.engine.ledger import GROUP, Ledger

    folder, n = Path(settings["folder"]), settings["batches"]
    shutil.rmtree(folder, ignore_errors=True)
    ledger = Ledger.claim(str(folder), {"kind": "resumed"})
    n_done = n * 99 // 100
    for batch in range(n_done):
        blocks = [batch, batch + 1]
        results = [{"checksum": f"{batch:016x}"}]
        ledger.put("s", batch, {"batch": batch, "blocks": blocks, "results": results, "seconds": 1.0})
        if batch % GROUP == GROUP - 1:
            ledger.gather("s", batch // GROUP)

    def work() -> dict[str, Any]:
        began = time.perf_counter()
        done = ledger.done("s", n)
        planning = time.perf_counter() - began
        assert sum(done) == n_done
        return {"units": n, "planning": planning, "files": len(list((folder / "s").iterdir()))}

    return work
