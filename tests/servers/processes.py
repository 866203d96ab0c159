"""Server programs of others, started on a free port of loopback and stopped by their process id."""

from __future__ import annotations

import http.client
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.loopback_ports import free_ports

_READY_SECONDS, _STOP_SECONDS, _TRIES = 60.0, 20.0, 5
_POLL_SECONDS = 0.05


def answers(port: int) -> bool:
    """Tell whether a server answers any request at all; straight, whatever proxies the environment names."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


@contextmanager
def running(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Start a program, yield its endpoint once it answers, stop it at the end.

    ``{port}`` in the command, or in what is added to this process's environment, is the port that it shall
    take; ``folder`` is where it runs and where its output goes.
    """
    output = folder / "server-output.txt"
    for _ in range(_TRIES):
        (port,) = free_ports(1)
        with output.open("wb") as file:
            process = subprocess.Popen(
                [part.format(port=port) for part in command],
                cwd=folder,
                env={**os.environ, **{k: v.format(port=port) for k, v in (environment or {}).items()}},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            if _is_ready(process, port):
                yield f"http://127.0.0.1:{port}"
                return
        finally:
            _stop(process)
    raise RuntimeError(f"{command[0]} did not start: {output.read_text(errors='replace')[-2000:]}")


def _is_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server answers; False where it ended first, as one does whose port was taken."""
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        if answers(port):
            return process.poll() is None
        time.sleep(_POLL_SECONDS)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_STOP_SECONDS)
