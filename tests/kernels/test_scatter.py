from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoizarr.kernels import scatter
from denoizarr.kernels.scatter import merged, scatter_of, scatter_of_parts


@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 7), st.integers(0, 99))
def test_parts_merge_to_the_whole(m, v, n_parts, seed):
    rows = np.random.default_rng(seed).normal(50, 3, (m, v))
    total = merged(scatter_of(part) for part in np.array_split(rows, n_parts, axis=1))
    assert total.count == v
    np.testing.assert_allclose(total.mean, rows.mean(1), rtol=1e-13)
    centred = rows - rows.mean(1, keepdims=True)
    np.testing.assert_allclose(total.scatter, centred @ centred.T, rtol=1e-11, atol=1e-10)
    assert np.array_equal(total.scatter, total.scatter.T)


def test_a_large_mean_costs_no_digits():
    rng = np.random.default_rng(0)
    small = rng.integers(-8, 9, (5, 40_000)).astype(np.float64)
    rows = small + 1e4
    total = merged(scatter_of(part) for part in np.array_split(rows.astype(np.float32), 13, axis=1))
    exact = small @ small.T - np.outer(small.sum(1), small.sum(1)) / small.shape[1]
    np.testing.assert_allclose(total.scatter, exact, rtol=0, atol=2e-12 * exact.max())
    # The control: raw sums in float32 are wrong in the first digits.
    wide = rows.astype(np.float32)
    raw = wide @ wide.T - np.outer(wide.sum(1), wide.sum(1)) / np.float32(wide.shape[1])
    assert np.abs(raw - exact).max() > 1e-2 * exact.max()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_any_dtype_and_order_of_memory(order, dtype):
    rows = np.asarray(np.random.default_rng(1).integers(0, 200, (4, 30)), dtype, order=order)
    expected = scatter_of(rows.astype(np.float64))
    np.testing.assert_allclose(scatter_of(rows).scatter, expected.scatter, rtol=1e-13)
    assert rows.dtype == dtype


def test_nothing_merges_into_nothing():
    none = scatter_of(np.zeros((2, 0)))
    some = scatter_of(np.array([[1.0, 2.0], [3.0, 7.0]]))
    assert np.array_equal(merged([none, some, none]).scatter, some.scatter)
    with pytest.raises(ValueError, match="no parts"):
        merged([])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16"])
@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 99))
def test_short_integers_are_summed_exactly(order, dtype, v, n_parts, seed):
    limits, rng = np.iinfo(dtype), np.random.default_rng(seed)
    # The largest values that there are, and hardly any spread: what loses most digits.
    rows = np.asarray(limits.max - rng.integers(0, 3, (3, v)), dtype, order=order)
    found = scatter_of_parts(np.array_split(rows, n_parts, axis=1))
    values = [[Fraction(int(x)) for x in row] for row in rows]
    means = [sum(row) / v for row in values]
    exact = [
        [
            sum((a - ma) * (b - mb) for a, b in zip(x, y, strict=True))
            for y, mb in zip(values, means, strict=True)
        ]
        for x, ma in zip(values, means, strict=True)
    ]
    assert found.count == v
    np.testing.assert_allclose(found.mean, np.array(means, float), rtol=3e-16)
    np.testing.assert_allclose(found.scatter, np.array(exact, float), rtol=0, atol=1e-15 * v)


def test_more_integers_than_can_be_summed_exactly_are_merged(monkeypatch):
    rows = np.random.default_rng(0).integers(0, 2**16, (3, 1000)).astype(np.uint16)
    parts = [rows[:, :333], rows[:, 333:333], rows[:, 333:]]
    whole = scatter_of_parts(parts)
    monkeypatch.setattr(scatter, "_EXACT_COUNT", 100)
    piecewise = scatter_of_parts(parts)
    assert piecewise.count == 1000
    np.testing.assert_allclose(piecewise.scatter, whole.scatter, rtol=1e-13)
    assert np.array_equal(scatter_of_parts(iter([rows.astype(np.int32)])).scatter, scatter_of(rows).scatter)
    with pytest.raises(ValueError, match="no parts"):
        scatter_of_parts([])
