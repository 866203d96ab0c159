"""P2 of the design: a driver killed at any moment leaves what a resume turns into the same bytes."""

from __future__ import annotations

import itertools
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from denoizarr.engine import failpoints

from .jobs import tree_hash
from .predictions import BLOCKS, GROUP, IN_FLIGHT, Case, Killer, begun

# At which of its passages a process is killed: the first, and one in the middle of the image.
FIRST, LATER = 1, 5
OFTEN = {"read", "computed", "written", "read-back", "recorded"}
OF_TRAINING = {"saved"}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def killer(case: Case) -> Iterator[Killer]:
    killer = Killer(case)
    yield killer
    killer.close()


def check(case: Case, runs: list[dict[str, Any]], outcomes: list[dict[str, Any]]) -> None:
    """Hold one output's runs, of which the last is not killed, against what was promised."""
    on_record = 0
    for run, outcome in zip(runs, outcomes, strict=True):
        done = outcome["recorded"] - on_record
        assert done >= 0, f"{run}: a record was lost"
        assert done <= begun(outcome) <= done + IN_FLIGHT, f"{run}: what is on record was done again"
        on_record = outcome["recorded"]
    assert outcomes[-1]["signal"] is None
    assert begun(outcomes[-1]) == done
    assert on_record == BLOCKS
    assert tree_hash(Path(runs[0]["to"])) == case.expected, runs


def killed_and_resumed(
    case: Case, killer: Killer, kills: list[list[dict[str, Any]]], folder: Path
) -> list[dict[str, Any]]:
    """Run each list of kills on an output of its own, resume, check; returns the outcomes of the kills."""
    plans = [
        [{"to": str(folder / f"{k}.ome.zarr"), **run} for run in (*some, {})] for k, some in enumerate(kills)
    ]
    outcomes = iter(killer.run(*itertools.chain(*plans)))
    killed = []
    for runs in plans:
        found = list(itertools.islice(outcomes, len(runs)))
        check(case, runs, found)
        killed += found[:-1]
    return killed


def test_killed_at_every_failpoint(case: Case, killer: Killer, tmp_path: Path) -> None:
    points = [point for point in failpoints.POINTS if point not in OF_TRAINING]
    kills = [[{"fail_at": f"{point}:{FIRST}"}] for point in points]
    kills += [[{"fail_at": f"{point}:{LATER}"}] for point in sorted(OFTEN)]
    torn = [{"fail_at": "read-back", "threads": 1}, {"fail_at": "written", "torn": True}]
    killed = killed_and_resumed(case, killer, [*kills, torn], tmp_path)
    assert [outcome["signal"] for outcome in killed] == [signal.SIGKILL] * len(killed), "all are reached"


def test_killed_three_times_and_resumed(case: Case, killer: Killer, tmp_path: Path) -> None:
    kills = [{"fail_at": "written:2"}, {"fail_at": "recorded:2"}, {"fail_at": "pooled:2"}]
    first, second, third = killed_and_resumed(case, killer, [kills], tmp_path)
    assert first["recorded"] < second["recorded"] < third["recorded"] < BLOCKS


def random_kills(seed: int, count: int) -> list[list[dict[str, Any]]]:
    random = np.random.default_rng(seed)
    # Of a run's failpoints, all but the last few: so many of them are come by whatever the threads do.
    passed = 6 + 4 * 18 + 3 * 5 + 9 // GROUP
    return [
        [{"after": int(random.integers(0, passed)), "seconds": float(random.exponential(0.003))}]
        for _ in range(count)
    ]


def test_killed_at_five_random_moments(case: Case, killer: Killer, tmp_path: Path) -> None:
    killed = killed_and_resumed(case, killer, random_kills(5, 5), tmp_path)
    assert sum(outcome["signal"] == signal.SIGKILL for outcome in killed) >= 4


@pytest.mark.slow
def test_killed_at_forty_random_moments(case: Case, killer: Killer, tmp_path: Path) -> None:
    killed = killed_and_resumed(case, killer, random_kills(40, 40), tmp_path)
    assert sum(outcome["signal"] == signal.SIGKILL for outcome in killed) >= 36
    assert len({outcome["recorded"] for outcome in killed}) > 8, "the moments lie all over the run"


def test_an_output_that_lost_a_voxel_has_another_hash(case: Case, tmp_path: Path) -> None:
    """Negative control: the hash sees a changed byte and an object too many, and no leftover of a put."""
    output = tmp_path / "output"
    shutil.copytree(case.undisturbed, output)
    assert tree_hash(output) == case.expected
    some = max((path for path in output.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    whole = some.read_bytes()
    some.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    assert tree_hash(output) != case.expected
    some.write_bytes(whole)
    assert tree_hash(output) == case.expected
    (output / "c#1").write_bytes(b"staged")
    assert tree_hash(output) == case.expected
    (output / "c").write_bytes(b"")
    assert tree_hash(output) != case.expected
