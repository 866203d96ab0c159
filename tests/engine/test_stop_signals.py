"""SIGTERM and Ctrl-C: what is in flight is kept, nothing more begins, the exit status says resumable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from denoizarr.engine.ledger import Ledger
from denoizarr.engine.runner import Step, run_step
from denoizarr.engine.stop_signals import StopSignals
from denoizarr.errors import Stopped

PROGRAM = Path(__file__).with_name("draining_program.py")


def start(folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), str(folder), str(seconds)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], folder: Path, pattern: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def begun_and_recorded(folder: Path) -> tuple[set[int], set[int]]:
    begun = {int(p.name.removeprefix("began-")) for p in folder.glob("began-*")}
    recorded = {int(p.stem) for p in folder.glob("ledger/s/0*.json")}
    return begun, recorded


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, 0.1)
    try:
        wait_for(process, tmp_path, "ledger/s/0*.json", 4)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 75
    assert said.strip().splitlines()[-1] == (
        f"Stopped: stopped by {number.name}; run the same command again to resume"
    )
    assert "Traceback" not in said
    begun, recorded = begun_and_recorded(tmp_path)
    assert begun == recorded, "what had begun was waited for, and is on record"
    assert 4 <= len(recorded) < 300


def test_the_second_signal_ends_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, 1000)
    try:
        wait_for(process, tmp_path, "began-*", 2)
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)  # the control: one signal waits for what is in flight
        process.terminate()
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 75
    assert said.strip().splitlines()[-1].startswith("Stopped: stopped by SIGTERM")
    assert begun_and_recorded(tmp_path) == ({0, 1}, set())


def test_a_handler_that_lets_a_signal_pass_stops_the_step_all_the_same(tmp_path: Path) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    ledger = Ledger.claim(str(tmp_path / "l"), {})

    def task(spec: object, block: int) -> dict[str, int]:
        if block == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"block": block}

    try:
        with pytest.raises(Stopped):
            run_step(Step("s", task, None, 100, 1), ledger=ledger, progress=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]
    assert 6 <= sum(ledger.done("s", 100)) < 100
    assert len(run_step(Step("s", _count, None, 100, 1), ledger=ledger, progress=False)) == 100


def _count(spec: object, block: int) -> dict[str, int]:
    return {"block": block}


def test_handlers_are_left_as_they_were() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with StopSignals(wanted=True, says=""):
        assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] != before
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


LOST = """
import os, signal, sys, threading, weakref
from denoizarr.cli import app, main, stopping

stopping._LOOK_SECONDS = 0.02

class Thing:
    pass

def ask(*_):
    os.kill(os.getpid(), signal.SIGTERM)

@app.command()
def work(how: str) -> None:
    if how == "forgotten":
        thing = Thing()
        kept = weakref.ref(thing, ask)
        del thing
    elif how == "taken":
        try:
            ask()
        except Exception:
            print("taken", flush=True)
    else:
        try:
            ask()
        finally:
            for _ in range(20):
                threading.Event().wait(0.01)
            print("cleaned", flush=True)
    threading.Event().wait(100)
    print("went on", flush=True)

main(["work", sys.argv[1]])
"""


@pytest.mark.parametrize(("how", "said"), [("forgotten", ""), ("taken", "taken"), ("cleaning", "cleaned")])
def test_a_signal_that_got_lost_is_obeyed_and_what_cleans_up_is_left_to_it(how: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOST, how], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 75, done.stderr
    assert done.stdout.strip() == said
    assert done.stderr.strip().splitlines()[-1].startswith("Stopped: stopped by SIGTERM; run the same")
