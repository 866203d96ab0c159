"""One side of a benchmark, in the process that the harness started for it; see ``harness.py``."""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

Work = Callable[[], dict[str, Any]]


def peak_bytes() -> int:
    """Return the largest resident memory that this process has had."""
    # Not getrusage, which on Linux starts from the parent's peak.
    return _from_status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident_bytes() -> int:
    """Return the resident memory of this process, after what is not in use is handed back."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return _from_status("VmRSS") or peak_bytes()


def _from_status(name: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(li for li in status.read_text().splitlines() if li.startswith(name))
    return int(line.split()[1]) * 1024


def measure(work: Work, *, warm_up: bool, min_seconds: float) -> dict[str, Any]:
    """Return the seconds of one run of the work, and what its last run reported."""
    if warm_up:
        work()
    loops = 0
    cpu, wall = time.process_time(), time.perf_counter()
    while loops == 0 or time.process_time() - cpu < min_seconds:
        numbers = work()
        loops += 1
    spent = {
        "cpu_seconds": (time.process_time() - cpu) / loops,
        "wall_seconds": (time.perf_counter() - wall) / loops,
    }
    return {"loops": loops, "peak_bytes": peak_bytes(), **spent, **numbers}


def main() -> None:
    task = json.loads(sys.argv[1])
    sys.path.insert(1, str(Path(__file__).parents[1]))  # for the fixtures in tests/
    module = import_module(f"areas.{task['area']}")
    work = getattr(module, task["function"])(task["settings"])
    print(json.dumps(measure(work, warm_up=task["warm_up"], min_seconds=task["min_seconds"])))


if __name__ == "__main__":
    main()
