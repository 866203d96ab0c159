import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoizarr.kernels.symmetric_products import add_products, mirrored


@given(st.integers(0, 9), st.integers(0, 50), st.sampled_from("CF"), st.integers(0, 99))
def test_the_lower_triangle_grows_by_the_products(m, v, order, seed):
    rng = np.random.default_rng(seed)
    rows = np.asarray(rng.integers(-9, 9, (m, v)), np.float64, order=order)
    before = rng.integers(-9, 9, (m, m)).astype(np.float64)
    total = before.copy()
    add_products(rows, total)
    expected = before + rows @ rows.T
    assert np.array_equal(np.tril(total), np.tril(expected))
    assert np.array_equal(np.triu(total, 1), np.triu(before, 1)), "above the diagonal nothing is touched"


def test_mirrored():
    lower = np.array([[1.0, 99.0], [2.0, 3.0]])
    assert np.array_equal(mirrored(lower), [[1, 2], [2, 3]])


def test_other_threads_go_on_meanwhile():
    rows, total = np.random.default_rng(0).normal(size=(400, 40_000)), np.zeros((400, 400))
    ticks = []
    done = threading.Event()

    def work():
        add_products(rows, total)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.is_set():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
    thread.join()
    assert len(ticks) > 10, "a product that held the lock would let no other thread count"


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_same_bits_every_time(order):
    rows = np.asarray(np.random.default_rng(0).normal(size=(7, 1000)), order=order)
    found = [np.zeros((7, 7)) for _ in range(3)]
    for total in found:
        add_products(rows.copy(order="K"), total)
    assert all(np.array_equal(total, found[0]) for total in found)
