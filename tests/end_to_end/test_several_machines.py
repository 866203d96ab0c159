"""Two machines, one of which is cut off: two network namespaces of this one, and a cable between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from .jobs import tree_hash
from .predictions import BATCH_VOXELS, OPTIONS, Case

HERE = Path(__file__).parent
# How soon a machine that says nothing is taken for gone; by default in five minutes.
SOON = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "8s"}
LIMIT_SECONDS = 120
# 60 batches: enough that the cable is pulled in the middle.
SHAPE, N_BATCHES = (20, 70, 100), 60


@dataclass(frozen=True)
class Machine:
    """A network namespace, its address, and its end of the cable."""

    name: str
    address: str
    cable: str

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a program of this interpreter there."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **SOON},
        )

    def cut_off(self) -> None:
        """Pull the cable out."""
        ip("-n", self.name, "link", "set", self.cable, "down")


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr.strip() or f"ip {' '.join(arguments)}: exit status {done.returncode}")


def lay_cable(a: Machine, b: Machine) -> None:
    ip("link", "add", a.cable, "netns", a.name, "type", "veth", "peer", "name", b.cable, "netns", b.name)
    for machine in (a, b):
        ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", machine.cable)
        for link in ("lo", machine.cable):
            ip("-n", machine.name, "link", "set", link, "up")


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    mine = os.getpid()
    a, b = (Machine(f"denoizarr-{mine}-{n}", f"10.203.7.{n}", f"dz{mine}-{n}") for n in (1, 2))
    with ExitStack() as made:
        try:
            for machine in (a, b):
                ip("netns", "add", machine.name)
                # A namespace takes its end of the cable with it.
                made.callback(ip, "netns", "delete", machine.name)
            lay_cable(a, b)
        except OSError as error:
            pytest.skip(f"network namespaces cannot be made here: {error}")
        yield a, b


def wait_for_records(driver: subprocess.Popen[str], ledger: Path, count: int) -> int:
    deadline = time.monotonic() + LIMIT_SECONDS
    while (found := len(list(ledger.glob("level-0/0*.json")))) < count:
        assert driver.poll() is None, "it ended before the cable was pulled"
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)
    return found


def lines_of(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    return program.stdout.readline().strip()


def keep_one_worker(machine: Machine, scheduler: str) -> subprocess.Popen[str]:
    program = machine.start(str(HERE / "forked_workers.py"), scheduler, machine.address)
    assert program.stdin is not None
    program.stdin.write("1\n")
    program.stdin.flush()
    return program


@pytest.mark.slow
@pytest.mark.parametrize("cut", [False, True], ids=["both to the end", "one cut off"])
def test_two_machines(machines: tuple[Machine, Machine], tmp_path: Path, cut: bool) -> None:
    case = Case(tmp_path, SHAPE)
    here, there = machines
    arguments = {
        "denoiser": case.model,
        "source": case.source,
        "destination": str(tmp_path / "out"),
        **OPTIONS,
    }
    with ExitStack() as running:

        def started(program: subprocess.Popen[str]) -> subprocess.Popen[str]:
            running.enter_context(program)
            running.callback(program.kill)
            return program

        driver_arguments = (here.address, "2", str(BATCH_VOXELS), json.dumps(arguments))
        driver = started(here.start(str(HERE / "driver_program.py"), *driver_arguments))
        scheduler = lines_of(driver)
        workers = [started(keep_one_worker(machine, scheduler)) for machine in machines]
        on_record = wait_for_records(driver, tmp_path / "out.ledger", 5)
        if cut:
            there.cut_off()
        said, _ = driver.communicate(timeout=LIMIT_SECONDS)
        for program in workers:
            program.communicate(timeout=LIMIT_SECONDS)
    assert on_record < N_BATCHES // 2, "it was in the middle"
    assert driver.returncode == 0
    assert json.loads(said)["workers"] == (1 if cut else 2)
    assert tree_hash(tmp_path / "out") == case.expected
