"""The picture of how many workers help, and the benchmark behind it: small ones of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from denoizarr.engine.simulation import Projection

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def scaling_figure(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scaling_figure

    monkeypatch.setattr(scaling_figure, "WORKERS", (1, 30))
    monkeypatch.setattr(scaling_figure, "TABLED", (30,))
    return scaling_figure


def test_the_picture_and_its_tables_are_made(scaling_figure: Any, tmp_path: Path) -> None:
    found = scaling_figure.play_all()
    assert len(found) == 2 * 2 * len(scaling_figure.KINDS) * 2
    alone = [one for (*_, workers), one in found.items() if workers == 1]
    assert all(one.efficiency == pytest.approx(1, abs=0.02) for one in alone)
    scaling_figure.draw(found, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    tables = scaling_figure.table(found)
    assert tables.count("| 1 PB, ") == 2
    assert tables.count("\n| CPU core, batches of 10 s") == 4


@pytest.mark.parametrize(
    ("projection", "reason"),
    [
        (Projection(60, 0.9, 0.99, 0.0), "nothing"),
        (Projection(60, 0.5, 0.99, 0.0), "the scheduler"),
        (Projection(60, 0.5, 0.2, 0.99), "the store"),
        (Projection(60, 0.5, 0.2, 0.2), "the last batches"),
    ],
)
def test_what_holds_up_is_named(scaling_figure: Any, projection: Projection, reason: str) -> None:
    assert scaling_figure.what_holds_up(projection) == reason


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(78, "78 s"), (3600, "60 min"), (1e4, "2.78 h"), (3e6, "34.7 d"), (1e8, "3.17 years")],
)
def test_durations_are_in_the_largest_unit_of_which_there_are_two(
    scaling_figure: Any, seconds: float, text: str
) -> None:
    assert scaling_figure.duration(seconds) == text


def test_real_runs_are_measured_beside_simulated_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import harness
    from areas import scaling

    changes = {"workers": [2], "seconds": 0.05, "batches_per_worker": 6, "calibration_batches": 20, "runs": 1}
    groups = scaling.groups({**scaling.OPTIONS, **changes}, tmp_path)
    assert [group.title for group in groups] == [*scaling.KINDS, "real network"]
    (side,) = groups[0].sides
    result = harness.run_side("scaling", side, harness.Place(tmp_path, tmp_path))
    assert result["real_seconds"] > 6 * 0.05
    assert result["simulated_seconds"] >= 6 * 0.05
    assert result["off"] == pytest.approx(abs(result["simulated_over_real"] - 1))
