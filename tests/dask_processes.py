"""Schedulers and workers of Dask in processes of their own, as somebody else would start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

LIMIT_SECONDS = 120


def wait_until(true: Callable[[], bool], what: str, seconds: float = LIMIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not in {seconds:.0f} s: {what}"
        threading.Event().wait(0.02)


@contextmanager
def process(*command: str, log: Path, environment: Mapping[str, str] = {}) -> Iterator[subprocess.Popen[str]]:
    with (
        log.open("w") as out,
        subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        ) as running,
    ):
        try:
            yield running
        finally:
            running.kill()


def tls_options(certificates: Path, role: str) -> list[str]:
    files = {"ca-file": "ca.pem", "cert": f"{role}.pem", "key": f"{role}-key.pem"}
    return [part for name, file in files.items() for part in (f"--tls-{name}", str(certificates / file))]


@contextmanager
def scheduler(folder: Path, *options: str) -> Iterator[str]:
    """Yield the address of a scheduler on loopback."""
    file = folder / "scheduler.json"
    command = ("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
    with process(*command, "--scheduler-file", str(file), *options, log=folder / "scheduler.log") as running:

        def written() -> bool:
            assert running.poll() is None, (folder / "scheduler.log").read_text()
            return file.exists() and file.read_text().endswith("}")

        wait_until(written, "a scheduler")
        yield json.loads(file.read_text())["address"]


@contextmanager
def worker(
    folder: Path,
    address: str,
    *options: str,
    name: str = "worker",
    environment: Mapping[str, str] = {},
) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that is about to be a worker of a scheduler, without a nanny."""
    command = ("distributed.cli.dask_worker", address, "--host", "127.0.0.1", "--nthreads", "1")
    limits = ("--no-nanny", "--no-dashboard", "--memory-limit", "0", "--local-directory", str(folder / name))
    log = folder / f"{name}.log"
    with process(*command, *limits, *options, log=log, environment=environment) as running:
        yield running
