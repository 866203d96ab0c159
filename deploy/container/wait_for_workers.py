"""Wait until a cluster has so many workers, before a job that would begin without those meant for it.

denoizarr asks the workers that are there which device they have when it begins a step, and gives up where
none comes in five minutes. Nodes that a cloud only starts now take longer.

    wait_for_workers.py COUNT [--resource NAME] [--timeout SECONDS]

The scheduler and the certificate are those of Dask's settings: DASK_SCHEDULER_ADDRESS and
DASK_DISTRIBUTED__COMM__TLS__*.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

import dask
from distributed import Client

# How often the scheduler is asked, and how long it may take to answer.
PAUSE_SECONDS, ANSWER_SECONDS = 2.0, 10.0


def present(resource: str | None) -> int:
    """Return how many workers there are, of those that declare a resource where one is asked for.

    Raises
    ------
    OSError
        The scheduler does not answer: not there yet, or it refuses this certificate.
    """
    with Client(timeout=ANSWER_SECONDS, set_as_default=False) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return sum(1 for worker in workers if resource is None or worker["resources"].get(resource, 0) >= 1)


def wait(count: int, resource: str | None, patience_seconds: float) -> str | None:
    """Return None once the workers are there, else how far it got when the patience ended."""
    deadline = time.monotonic() + patience_seconds
    kind = f"workers with {resource}" if resource else "workers"
    while True:
        try:
            found = present(resource)
            state = f"{found} of {count} {kind}"
            if found >= count:
                return None
        except OSError as error:
            state = f"no scheduler answers: {str(error).splitlines()[0]}"
        if time.monotonic() >= deadline:
            return state
        sys.stdout.write(f"waiting: {state}\n")
        sys.stdout.flush()
        time.sleep(PAUSE_SECONDS)


def main() -> int:
    """Wait once."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--resource")
    parser.add_argument("--timeout", type=float, default=1800.0, metavar="SECONDS")
    arguments = parser.parse_args()
    if not dask.config.get("scheduler-address", None):
        sys.stderr.write(
            "DASK_SCHEDULER_ADDRESS is not set: no cluster to wait for\n"
        )  # Dask would start one
        return 1
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # our own lines say it once
    missing = wait(arguments.count, arguments.resource, arguments.timeout)
    if missing:
        sys.stderr.write(f"gave up after {arguments.timeout:g} s: {missing}\n")
    return int(missing is not None)


if __name__ == "__main__":
    sys.exit(main())
