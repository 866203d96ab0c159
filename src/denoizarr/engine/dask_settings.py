"""The settings of Dask that long unattended jobs need, each with its reason."""

from __future__ import annotations

from typing import Any

_NO_WORKERS = "distributed.scheduler.no-workers-timeout"
_SPAWN = "distributed.nanny.pre-spawn-environ."

# Distributed's own defaults suit short interactive graphs.
SETTINGS: dict[str, Any] = {
    _NO_WORKERS: "300s",  # default: without workers a job waits for ever
    "distributed.scheduler.allowed-failures": 10,  # default 3: too few for preemptible nodes
    "distributed.worker.memory.target": False,  # tasks return records, not arrays: nothing to spill
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,  # our own plan bounds memory; a paused worker would only hang
    "distributed.worker.memory.terminate": 0.98,
    "distributed.comm.timeouts.connect": "60s",
    # One arena of malloc for all threads: only there does a process keep what a layer of a network frees.
    f"{_SPAWN}MALLOC_ARENA_MAX": "1",
    # A terminal sends Ctrl-C to workers too, and they would die of it in the middle of what is waited for.
    "distributed.worker.preload": ["denoizarr.engine.worker_signals"],
}


def patience_seconds() -> float:
    """Return how long a cluster may have no workers before a job is given up, as this process has it set."""
    import dask
    from dask.utils import parse_timedelta

    return float(parse_timedelta(dask.config.get(_NO_WORKERS, None) or SETTINGS[_NO_WORKERS]))


def patience(seconds: float) -> dict[str, Any]:
    """Return the setting that makes scheduler and driver wait so long for workers."""
    return {_NO_WORKERS: f"{seconds:.0f}s"}


def worker_environment() -> dict[str, str]:
    """Return the settings as environment variables, for workers that another program starts.

    A variable of the environment that workers are to begin with is its own name: Dask would read the name of
    such a setting in small letters.
    """
    found = {}
    for key, value in SETTINGS.items():
        if key.startswith(_SPAWN):
            found[key.removeprefix(_SPAWN)] = str(value)
        else:
            found["DASK_" + key.upper().replace(".", "__").replace("-", "_")] = str(value)
    return found
