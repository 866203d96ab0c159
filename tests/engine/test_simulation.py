"""The play of a step on many workers: against what can be said without playing, and against real workers."""

import math
import time
from dataclasses import replace

import block_tasks
import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.engine import crews, simulation
from denoizarr.engine.cluster import SETTINGS
from denoizarr.engine.ledger import Ledger
from denoizarr.engine.runner import Step, run_step
from denoizarr.engine.simulation import BatchCosts, lengths_of, project

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


def test_it_has_as_many_batches_out_as_the_engine():
    assert simulation._PER_WORKER == crews._IN_FLIGHT_PER_WORKER


def test_no_batches_take_no_time():
    assert project(BatchCosts(1.0), 0, 5).seconds == 0


def test_the_mean_length_is_the_one_asked_for():
    projection = project(BatchCosts(1.0, spread=0.5), 2000, 1)
    assert projection.seconds == pytest.approx(2000, rel=0.05)
    assert np.isfinite(projection.seconds)


@given(st.floats(0.01, 1), st.integers(1, 400), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_lengths_add_up_and_only_their_order_is_drawn(seconds, n_batches, spread, seed):
    costs = BatchCosts(seconds, spread=spread)
    lengths = lengths_of(costs, n_batches, seed)
    assert sum(lengths) == pytest.approx(seconds * n_batches)
    assert min(lengths) > 0
    assert sorted(lengths) == pytest.approx(sorted(lengths_of(costs, n_batches, seed + 1)))


def real_seconds(client, folder, costs, n_batches):
    """Let real workers sleep through a step."""
    ledger = Ledger.claim(str(folder), {})
    step = Step("s", block_tasks.sleep_for, lengths_of(costs, n_batches, 0), n_batches, 1)
    began = time.perf_counter()
    run_step(step, ledger=ledger, client=client, progress=False, fold=lambda _: None)
    return time.perf_counter() - began


@pytest.mark.parametrize(("workers", "n_batches", "spread"), [(1, 4, 0.0), (4, 16, 0.0), (8, 24, 0.3)])
def test_real_workers_take_as_long_as_it_says(workers, n_batches, spread, tmp_path):
    """Within 15 %; benchmarks/run.py scaling has more of them, and in processes of their own."""
    costs = BatchCosts(0.4, driver_seconds=0.003, spread=spread)
    size = {"n_workers": workers, "threads_per_worker": 1, "processes": False, "protocol": "tcp://"}
    with (
        dask.config.set(SETTINGS),
        LocalCluster(host="127.0.0.1", dashboard_address="127.0.0.1:0", memory_limit=0, **size) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(workers, timeout=60)
        real_seconds(client, tmp_path / "warm", replace(costs, compute_seconds=0.001), workers)
        # A busy machine takes longer, never shorter: the quickest of a few counts.
        quickest = math.inf
        for number in range(5):
            quickest = min(quickest, real_seconds(client, tmp_path / f"{number}", costs, n_batches))
            if quickest < 1.1 * project(costs, n_batches, workers).seconds:
                break
    simulated = project(costs, n_batches, workers).seconds
    assert simulated == pytest.approx(quickest, rel=0.15)
    # The controls: neither a worker more or less nor batches of other lengths would have passed.
    for others in (
        project(costs, n_batches, 2 * workers),
        project(replace(costs, compute_seconds=0.3), n_batches, workers),
    ):
        assert others.seconds != pytest.approx(quickest, rel=0.15)
