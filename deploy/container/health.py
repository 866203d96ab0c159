"""Tell whether the Dask scheduler or worker of this container is well: exit status 0, or 1 and why.

A scheduler is well when its event loop answers; a worker, when its own answers and it is connected to the
scheduler. What is neither of them, such as a verb of the command line, has nothing to ask and is well while
it runs.

    health.py [scheduler | worker] [--port PORT]

Without a role, it is read from the command that the container was started with.
"""

from __future__ import annotations

import argparse
import http.client
import os
import sys
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

# Where each listens for HTTP, on loopback or published to it: see compose.yaml and kubernetes/.
PORTS = {"scheduler": 8787, "worker": 8788}
# An event loop that says nothing for so long is not merely busy.
PATIENCE_SECONDS = 8.0
_ESTABLISHED = "01"


def role_of(command: list[str]) -> str | None:
    """Return "scheduler" or "worker" where a command starts one, through whichever init; else None."""
    for before, word in pairwise(command):
        if Path(before).name == "dask" and word in PORTS:
            return word
    return None


def started_with() -> list[str]:
    """Return the command line of the container's first process."""
    return Path("/proc/1/cmdline").read_bytes().decode(errors="replace").split("\0")


def silence(port: int) -> str | None:
    """Return why nothing good is heard from ``/health`` at a port of loopback, or None."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        text = answer.read(16)
    except (OSError, http.client.HTTPException) as error:
        return f"no answer at 127.0.0.1:{port}: {type(error).__name__}: {error}"
    finally:
        connection.close()
    if answer.status != http.client.OK or text.strip() != b"ok":
        return f"127.0.0.1:{port} answers {answer.status} {text!r}, expected 200 b'ok'"
    return None


def connected_to(port: int) -> bool:
    """Tell whether this network namespace, the container's own, holds a connection to a port elsewhere."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if not table.exists():
            continue  # a kernel without IPv6
        for line in table.read_text().splitlines()[1:]:
            _, _, remote, state = line.split(maxsplit=4)[:4]
            if state == _ESTABLISHED and int(remote.rpartition(":")[2], 16) == port:
                return True
    return False


def complaint(role: str | None, port: int | None, scheduler: str | None) -> str | None:
    """Return what is wrong, or None.

    Parameters
    ----------
    role : {"scheduler", "worker"} or None
    port : int or None
        Where it listens for HTTP; None for the role's own.
    scheduler : str or None
        ``tls://host:port`` of a worker's scheduler.
    """
    if role is None:
        return None
    wrong = silence(port or PORTS[role])
    if wrong is None and role == "worker":
        if not scheduler:
            return "DASK_SCHEDULER_ADDRESS is not set, so the worker's scheduler is not known"
        if not connected_to(urlsplit(scheduler).port or 8786):
            return f"no connection to the scheduler {scheduler}"
    return wrong


def main() -> int:
    """Ask once."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("role", nargs="?", choices=sorted(PORTS))
    parser.add_argument("--port", type=int)
    arguments = parser.parse_args()
    role = arguments.role or role_of(started_with())
    wrong = complaint(role, arguments.port, os.environ.get("DASK_SCHEDULER_ADDRESS"))
    if wrong:
        sys.stderr.write(f"unhealthy: {role}: {wrong}\n")
    return int(wrong is not None)


if __name__ == "__main__":
    sys.exit(main())
