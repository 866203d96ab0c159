"""The benchmarks' harness: what a row says, and that a side runs in a process of its own."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_a_rate_is_units_per_cpu_second(harness):
    row = harness.Row("", "a", quantity="units_per_cpu_second")
    assert harness.values_of(row, rounds()) == pytest.approx([5, 10])
    assert math.isnan(harness.figure({}, "units_per_cpu_second"))


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
    assert "million units" in table


def test_few_units_a_second_are_not_shown_in_millions_and_large_numbers_without_exponents(harness):
    row = {"label": "rate", "median": 31638.2, "min": 0.12345, "max": 1e5, "goal": None, "met": None}
    side = {"units_per_cpu_second": 2.1, "wall_seconds": 1.0, "peak_bytes": 2**20}
    table = harness.markdown("area", [{"title": "group", "rows": [row], "sides": {"ours": side}}], 2)
    assert "| group: rate | 31,638 | 0.123 to 100,000 |" in table
    assert "| group: ours | 2.1 | 1 | 1 |" in table
    assert "million" not in table


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


AREAS = sorted(p.stem for p in (BENCHMARKS / "areas").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", AREAS)
def test_rows_are_of_sides_that_exist_and_sides_are_functions_of_the_area(harness, name, tmp_path):
    area = import_module(f"areas.{name}")
    found = area.groups(dict(area.OPTIONS), tmp_path)
    assert len({group.title for group in found}) == len(found) > 0
    for group in found:
        sides = {side.name for side in group.sides}
        assert len(sides) == len(group.sides)
        assert {row.side for row in group.rows} | {row.against for row in group.rows} <= sides | {None}
        assert all(callable(getattr(area, side.function)) for side in group.sides)
        json.dumps([side.settings for side in group.sides])


def test_a_stream_of_patches_is_measured_in_a_process_of_its_own(harness, tmp_path):
    from areas import patch_stream

    sizes = {"shape": [2, 64, 64], "plane": [256, 256], "chunk": 64, "patch": 16, "patches_per_chunk": 16}
    options = patch_stream.OPTIONS | sizes
    patch_stream.prepare(options, tmp_path)
    whole = next(g for g in patch_stream.groups(options, tmp_path) if g.title == "one plane")
    group = replace(whole, sides=[replace(whole.sides[0], warm_up=False, min_seconds=0)])
    measured = harness.run_group("patch_stream", group, harness.Place(tmp_path, tmp_path), repeats=1)
    (numbers,) = measured["rounds"]
    assert numbers["ours"]["units"] == 16 * 16
    assert all(row["median"] > 0 for row in measured["rows"])


@given(costs=st.lists(st.integers(1, 50), min_size=3, max_size=20), step=st.integers(0, 50))
def test_waiting_is_what_passes_between_asking_for_a_batch_and_having_it(costs, step):
    feeding = _area("feeding")
    clock = SimpleNamespace(now=0.0)

    def stream():
        for cost in costs:
            clock.now += cost
            # Half of what a batch takes is spent on waiting for patches, as the stream itself tells.
            Stream.statistics["seconds_waited"] += cost / 2
            yield {}

    class Stream:
        __iter__ = staticmethod(stream)
        statistics: ClassVar = {"seconds_waited": 0.0}

    feeding.time = SimpleNamespace(
        perf_counter=lambda: clock.now, sleep=lambda seconds: setattr(clock, "now", clock.now + seconds)
    )
    found = feeding.train(Stream(), step, sum(costs[1:]) + step * (len(costs) - 1))
    assert found == {
        "waited": sum(costs[1:]),
        "wall": sum(costs[1:]) + step * (len(costs) - 1),
        "batches": len(costs) - 1,
        "first": costs[0],
        "blocked": sum(costs[1:]) / 2,
    }


def _area(name):
    """Return an area's module of one's own, of which a test may replace parts."""
    import importlib.util
    import sys

    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location(f"private_{name}", BENCHMARKS / "areas" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


def test_steps_are_timed_from_the_last_that_does_not_count(harness):
    from areas import training

    clock = training._Clock()
    clock.times = [(float(k**2), 2.0 * k) for k in range(1, 9)]
    found = clock.figures({"first_steps": 2, "steps": 5})
    assert found == {"units": 5, "cpu_seconds": 7**2 - 2**2, "wall_seconds": 2.0 * 5}


def test_a_peer_that_is_not_installed_is_named(harness, tmp_path):
    with pytest.raises(SystemExit, match=r"install_peers\.py careamics"):
        harness.Place(tmp_path, tmp_path).interpreter("careamics")


def test_peers_are_pinned():
    for listing in (BENCHMARKS / "peers").glob("*.txt"):
        lines = [line for line in listing.read_text().splitlines() if line and not line.startswith("#")]
        assert lines
        assert all("==" in line and "://" not in line for line in lines), listing.name
