"""Block means against their plain definition."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.kernels.pooling import mean_pool


def plain_mean_pool(values: np.ndarray[Any, Any], factors: tuple[int, ...]) -> np.ndarray[Any, Any]:
    shape = tuple(-(-n // f) for n, f in zip(values.shape, factors, strict=True))
    out = np.empty(shape, values.dtype)
    for index in product(*map(range, shape)):
        box = values[tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factors, strict=True))]
        exact = sum((Fraction(v) for v in box.ravel().tolist()), Fraction(0)) / box.size
        out[index] = round(exact) if values.dtype.kind in "ui" else float(exact)  # round() is half to even
    return out


@settings(max_examples=40)
@given(
    st.sampled_from(["u1", "i2", "u2", "i4", "f4", "f8"]),
    st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 2)),
    st.integers(0, 2**31),
)
def test_equals_the_definition(
    dtype: str, shape: tuple[int, ...], factors: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        values = rng.normal(size=shape).astype(kind)
        assert np.allclose(mean_pool(values, factors), plain_mean_pool(values, factors), rtol=1e-6, atol=1e-9)
    else:
        limits = np.iinfo(kind)
        values = rng.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)
        assert np.array_equal(mean_pool(values, factors), plain_mean_pool(values, factors))


def test_half_goes_to_even() -> None:
    assert mean_pool(np.array([[0, 1], [2, 3], [1, 2]], "u1"), (1, 2)).ravel().tolist() == [0, 2, 2]


def test_a_cut_box_is_the_mean_of_what_is_there() -> None:
    assert mean_pool(np.array([2.0, 4.0, 10.0], "f4"), (2,)).tolist() == [3.0, 10.0]


@pytest.mark.parametrize("dtype", ["i8", "u8"])
def test_the_largest_integers_do_not_wrap(dtype: str) -> None:
    top = np.iinfo(dtype).max
    assert int(mean_pool(np.full((2, 2), top, dtype), (2, 2))[0, 0]) >= top - 2048


def test_masks_stay_masks() -> None:
    pooled = mean_pool(np.array([[True, False, False, False]]), (1, 2))
    assert pooled.dtype == bool
    assert pooled.tolist() == [[True, False]]
