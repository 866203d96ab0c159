"""The play of a step on many workers: against what can be said without playing, and against real workers."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.engine.simulation import BatchCosts, project

SECONDS = st.floats(0.01, 100)


@given(SECONDS, st.integers(1, 300), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_equal_batches_on_free_workers_take_their_rounds(seconds, n_batches, workers):
    projection = project(BatchCosts(seconds), n_batches, workers)
    rounds = math.ceil(n_batches / workers)
    assert projection.seconds == pytest.approx(rounds * seconds)
    assert projection.efficiency == pytest.approx(n_batches / (rounds * workers))


@given(SECONDS, SECONDS, st.integers(1, 200), st.integers(1, 20), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_nothing_is_faster_than_its_narrowest_part(compute, driver, n_batches, workers, spread):
    costs = BatchCosts(compute, 10, 5, 100.0, 40.0, driver / 100, spread)
    projection = project(costs, n_batches, workers)
    assert projection.seconds >= n_batches * 15 / 40.0 - 1e-9
    assert projection.seconds >= n_batches * costs.driver_seconds - 1e-9
    assert 0 <= projection.store_share <= 1 + 1e-9
    assert 0 <= projection.driver_share <= 1 + 1e-9


def test_a_slow_driver_holds_many_workers_up_and_few_not():
    costs = BatchCosts(10.0, driver_seconds=0.1)
    assert project(costs, 2000, 10).efficiency > 0.97
    held_up = project(costs, 20_000, 1000)
    assert held_up.driver_share > 0.95
    assert held_up.seconds == pytest.approx(20_000 * 0.1, rel=0.05)


def test_a_store_is_shared_and_one_that_grows_is_not():
    own = BatchCosts(1.0, 100, 100, worker_bytes_per_second=200.0)
    shared = BatchCosts(1.0, 100, 100, worker_bytes_per_second=200.0, store_bytes_per_second=1000.0)
    assert project(own, 4000, 100).efficiency > 0.95
    projection = project(shared, 4000, 100)
    assert projection.seconds == pytest.approx(4000 * 200 / 1000, rel=0.05)
    assert projection.store_share > 0.95


def test_the_longest_batch_shows_at_the_end():
    even, uneven = (project(BatchCosts(1.0, spread=spread), 300, 100) for spread in (0.0, 0.5))
    assert uneven.seconds > 1.1 * even.seconds
    assert project(BatchCosts(1.0, spread=0.5), 300, 100, seed=1) != uneven
    assert project(BatchCosts(1.0, spread=0.5), 300, 100) == uneven


@pytest.mark.parametrize("driver_seconds", [0.0, 0.004])
def test_what_is_left_out_goes_on_at_the_same_rate(driver_seconds, monkeypatch):
    costs = BatchCosts(1.0, 10, 10, 100.0, 1000.0, driver_seconds, 0.2)
    whole = project(costs, 20_000, 50)
    monkeypatch.setattr("denoizarr.engine.simulation._MOST_BATCHES_PER_WORKER", 100)
    part = project(costs, 20_000, 50)
    assert part.seconds == pytest.approx(whole.seconds, rel=0.02)


def test_ten_thousand_workers_are_played_in_seconds():
    started = time.process_time()
    projection = project(BatchCosts(60.0, 1e9, 1e9, 1e9, math.inf, 0.002, 0.1), 10**7, 10_000)
    assert time.process_time() - started < 60
    assert projection.efficiency > 0.5


def test_no_batches_take_no_time():
    assert project(BatchCosts(1.0), 0, 5).seconds == 0


def test_the_mean_length_is_the_one_asked_for():
    projection = project(BatchCosts(1.0, spread=0.5), 2000, 1)
    assert projection.seconds == pytest.approx(2000, rel=0.05)
    assert np.isfinite(projection.seconds)
