"""The benchmarks' harness: what a row says, and that a side runs in a process of its own."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
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
    (tmp_path / "cells-raw.npy").touch()  # what the area of quality finds its images by
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
            yield {}

    class Stream:
        __iter__ = staticmethod(stream)

    feeding.time = SimpleNamespace(
        perf_counter=lambda: clock.now, sleep=lambda seconds: setattr(clock, "now", clock.now + seconds)
    )
    found = feeding.train(Stream(), step, sum(costs[1:]) + step * (len(costs) - 1))
    assert found == {
        "waited": sum(costs[1:]),
        "wall": sum(costs[1:]) + step * (len(costs) - 1),
        "batches": len(costs) - 1,
        "first": costs[0],
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


@given(gain=st.floats(0.01, 100), offset=st.floats(-100, 100), seed=st.integers(0, 99))
def test_the_scale_invariant_psnr_is_that_of_the_best_gain_and_offset(gain, offset, seed):
    quality = _area("quality")
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 256, (12, 13)).astype(np.uint8)
    predicted = truth + generator.normal(0, 20, truth.shape)
    found = quality.scale_invariant_psnr(truth, predicted)
    assert quality.scale_invariant_psnr(truth, gain * predicted + offset) == pytest.approx(found)
    assert found >= quality.psnr(truth, predicted)
    for nearby in (0.99, 1.01):
        fitted = np.polyval(np.polyfit(predicted.ravel(), truth.ravel().astype(float), 1), predicted)
        assert found >= quality.psnr(truth, nearby * fitted)
        assert found == pytest.approx(quality.psnr(truth, fitted))


def test_psnr_is_over_the_range_of_the_truth(harness):
    from areas import quality

    truth = np.array([[10, 60]], np.uint8)
    assert quality.psnr(truth, truth + 5.0) == pytest.approx(20)


def test_a_result_is_kept_for_its_settings_and_measured_once(harness, tmp_path):
    from areas import quality

    settings = {"folder": str(tmp_path), "image": "cells", "budget_seconds": 5, "patch": 64, "seeds": [0, 1]}
    asked = []

    def measure(_, seed):
        asked.append(seed)
        return {"psnr": 20.0 + 2 * seed}

    for _ in range(2):
        assert quality._mean_over_seeds(settings, "ours", measure) == {"units": 1, "psnr": 21.0}
    assert asked == [0, 1]
    quality._mean_over_seeds({**settings, "budget_seconds": 6}, "ours", measure)
    quality._mean_over_seeds({**settings, "batch": 8}, "careamics", measure)
    assert asked == [0, 1] * 3
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".json"]


def test_the_peer_has_at_least_the_time_that_ours_took_and_is_compared_seed_by_seed(harness, tmp_path):
    from areas import quality

    settings = {"folder": str(tmp_path), "image": "cells", "budget_seconds": 5, "patch": 64, "seeds": [0]}
    peer = settings | {"batch": 8}
    assert quality._budget(peer, 0) == 5
    found = {"si_psnr": 30.0, "psnr": 29.0, "cpu_seconds": 5.5}
    quality._mean_over_seeds(settings, "ours", lambda *_: found)
    assert quality._budget(peer, 0) == 5.5
    quality._mean_over_seeds(settings, "ours_measured_kernel", lambda *_: found | {"psnr": 31.0})
    quality._mean_over_seeds(peer, "careamics", lambda *_: found | {"psnr": 29.5})
    truth = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for kind in ("raw", "gt"):
        np.save(tmp_path / f"cells-{kind}.npy", truth[:, :: 1 if kind == "gt" else -1])
    numbers = quality.compare(settings | {"peers": [8]})()
    assert numbers["ours: si_psnr above batch 8"] == 0
    assert numbers["ours: psnr above batch 8"] == -0.5
    assert numbers["ours, measured kernel: psnr above batch 8"] == 1.5


def test_a_peer_that_is_not_installed_is_named(harness, tmp_path):
    with pytest.raises(SystemExit, match=r"install_peers\.py careamics"):
        harness.Place(tmp_path, tmp_path).interpreter("careamics")


def test_peers_are_pinned():
    for listing in (BENCHMARKS / "peers").glob("*.txt"):
        lines = [line for line in listing.read_text().splitlines() if line and not line.startswith("#")]
        assert lines
        assert all("==" in line and "://" not in line for line in lines), listing.name
