from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import battery


def test_the_true_kernels_are_those_of_the_correlated_part() -> None:
    sizes = {kind: int(battery.true_kernel(kind).sum()) for kind in battery.SHAPES}
    assert sizes == {
        "row 1x3": 5, "row 1x5": 9, "row 1x9": 17, "column 9x1": 17, "cross 1x5 + 5x1": 17, "box 3x3": 25,
        "diagonal": 9, "isotropic blur": 13,
    }  # fmt: skip
    assert battery.true_kernel("white noise").sum() == battery.true_kernel(battery.LINES).sum() == 1


def test_a_kernel_may_miss_the_ends_by_one_lag_and_nothing_else() -> None:
    row, wide = np.ones((1, 9), bool), np.ones((3, 9), bool)
    assert all(battery.is_right(np.ones((1, n), bool), "row 1x5") for n in (7, 9, 11))
    assert not any(battery.is_right(np.ones((1, n), bool), "row 1x5") for n in (1, 5, 13))
    assert not battery.is_right(wide, "row 1x5")
    assert not battery.is_right(row.T, "row 1x5")
    holed = row.copy()
    holed[0, [3, 5]] = False
    assert not battery.is_right(holed, "row 1x5")
    assert battery.is_right(np.eye(7, dtype=bool), "diagonal")
    assert not battery.is_right(np.eye(7, dtype=bool)[::-1], "diagonal")
    assert battery.is_right(np.ones((3, 3), bool), "box 3x3")
    assert battery.is_right(np.ones((7, 7), bool), "box 3x3")
    assert not battery.is_right(np.ones((9, 9), bool), "box 3x3")
    assert battery.is_right(np.ones((1, 1), bool), "white noise")
    assert not battery.is_right(np.ones((1, 3), bool), "white noise")


def test_sets_hold_what_they_say_and_share_no_seed() -> None:
    development, held_out = (list(battery.cases(name)) for name in ("development", "held-out"))
    for chosen in (development, held_out):
        structured = [case for case in chosen if case.kind not in battery.NULLS]
        assert len(structured) == 216
        assert len(chosen) - len(structured) == 112
        assert len({case.key for case in chosen}) == len(chosen)
    assert not {case.seed for case in development} & {case.seed for case in held_out}


@pytest.mark.parametrize("kind", ["row 1x9", battery.LINES, "white noise"])
def test_a_case_is_solved_and_kept(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = battery.Case(kind, "", 0.5, 1)
    monkeypatch.setattr(battery, "cases", lambda _: iter([case]))
    battery.run("nowhere", tmp_path, "development", "1/1", ["significance"])
    (found,) = battery.results(tmp_path, "development", "significance")
    assert found["right"]
    monkeypatch.setattr(battery, "solve", lambda *_: pytest.fail("solved again"))
    battery.run("nowhere", tmp_path, "development", "1/1", ["significance"])
    lines = battery.table(tmp_path, "development")
    assert any(line.startswith(f"| {kind} | 1 of 1 |") for line in lines)
