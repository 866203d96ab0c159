"""Failpoints end the process that reaches them, where they are asked for, and do nothing else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import timeit
from pathlib import Path

import pytest

import denoizarr.errors
from denoizarr.engine import failpoints
from denoizarr.errors import BadRequest

SOURCES = Path(denoizarr.errors.__file__).parent
PROGRAM = """
from denoizarr.engine import failpoints
for n in range(3):
    print(n, flush=True)
    failpoints.reach("read")
    failpoints.reach("written")
"""


def test_the_code_has_every_point_once_and_no_other() -> None:
    texts = [path.read_text() for path in SOURCES.rglob("*.py")]
    reached = [name for text in texts for name in re.findall(r'failpoints\.reach\("([a-z-]+)"\)', text)]
    assert sorted(reached) == sorted(failpoints.POINTS)


@pytest.mark.parametrize(
    ("variable", "said", "status"),
    [
        ("", "0 1 2", 0),
        ("written", "0", -signal.SIGKILL),
        ("read:1", "0", -signal.SIGKILL),
        ("read:3", "0 1 2", -signal.SIGKILL),
        ("read:4", "0 1 2", 0),
        ("recorded", "0 1 2", 0),
        ("written:2:KILL", "0 1", -signal.SIGKILL),
        ("written:2:TERM", "0 1", -signal.SIGTERM),
    ],
)
def test_a_process_ends_at_the_passage_asked_for(variable: str, said: str, status: int) -> None:
    environment = {**os.environ, failpoints.VARIABLE: variable}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (" ".join(done.stdout.split()), done.returncode) == (said, status), done.stderr


@pytest.mark.parametrize(
    "text", ["nowhere", "read:0", "read:-1", "read:", "read:1:1", "read written", ":1", "read:1:HUP"]
)
def test_a_point_that_is_not_there_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadRequest, match=r"no such failpoint at DENOIZARR_FAIL_AT.*read-back"):
        failpoints.parse(text)


def test_without_the_variable_a_point_costs_next_to_nothing() -> None:
    calls = 10_000
    seconds = min(timeit.repeat(lambda: failpoints.reach("read"), number=calls, repeat=5)) / calls
    assert seconds < 5e-6
