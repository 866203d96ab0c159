"""The benchmarks' harness: what a row says, and that a side runs in a process of its own."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import harness

    return harness


def rounds():
    return [
        {"a": {"cpu_seconds": 2.0, "units": 10, "seen": 3}, "b": {"cpu_seconds": 8.0, "units": 10}},
        {"a": {"cpu_seconds": 1.0, "units": 10, "seen": 5}, "b": {"cpu_seconds": 6.0, "units": 20}},
    ]


def test_ratios_are_per_unit_of_work_and_of_sides_of_one_round(harness):
    assert harness.values_of(harness.Row("", "a", "b", faster=True), rounds()) == pytest.approx([4, 3])
    assert harness.values_of(harness.Row("", "b", "a"), rounds()) == pytest.approx([4, 3])
    assert harness.values_of(harness.Row("", "a", quantity="seen"), rounds()) == [3, 5]


def test_a_side_that_failed_meets_no_goal(harness):
    failed = [{"a": {}, "b": {"cpu_seconds": 1.0}}]
    (value,) = harness.values_of(harness.Row("", "a", "b", faster=True), failed)
    assert math.isnan(value)
    assert harness.meets(value, (">=", 1)) is False
    assert harness.meets(value, ("<=", 1)) is False
    assert harness.meets(value, None) is None
    assert harness.meets(1.0, ("<=", 1)) is True
    assert harness.without_nan({"a": [value, 1.0]}) == {"a": [None, 1.0]}


def test_the_table_says_what_was_met(harness):
    row = {"label": "speed", "median": 12.0, "min": 11.0, "max": 13.0, "goal": (">=", 15), "met": False}
    side = {"units_per_cpu_second": 2e6, "wall_seconds": 1.0, "peak_bytes": 2**20}
    table = harness.markdown("area", [{"title": "group", "rows": [row], "sides": {"ours": side}}], 2)
    assert "| group: speed | 12 | 11 to 13 |  | >= 15 | **no** |" in table
    assert "| group: ours | 2 | 1 | 1 |" in table


def test_the_sides_of_a_group_run_in_turn_in_processes_of_their_own(harness, tmp_path):
    from areas import zarr_pass

    options = zarr_pass.OPTIONS | {"shape": [3, 128, 128]}
    zarr_pass.prepare(options, tmp_path)
    whole = next(g for g in zarr_pass.groups(options, tmp_path) if g.title == "planes in shards")
    sides = [replace(side, min_seconds=0) for side in whole.sides[:2]]
    group = harness.Group("reading", sides, whole.rows[:2])
    measured = harness.run_group("zarr_pass", group, harness.Place(tmp_path, tmp_path), repeats=1)
    ratio, reads = measured["rows"]
    assert ratio["median"] > 0
    assert (reads["median"], reads["met"]) == (1, True)
    assert measured["sides"]["read"]["peak_bytes"] > 2**20
    assert list(measured["rounds"][0]) == ["plain zarr", "read"]


def test_a_peer_that_is_not_installed_is_named(harness, tmp_path):
    with pytest.raises(SystemExit, match=r"install_peers\.py careamics"):
        harness.Place(tmp_path, tmp_path).interpreter("careamics")


def test_peers_are_pinned():
    for listing in (BENCHMARKS / "peers").glob("*.txt"):
        lines = [line for line in listing.read_text().splitlines() if line and not line.startswith("#")]
        assert lines
        assert all("==" in line and "://" not in line for line in lines), listing.name
