"""Casting back to the image's dtype: rounded, clipped, never wrapped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoizarr.kernels.intensity import cast_intensities

INTEGERS = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]


@given(st.lists(st.floats(-1e30, 1e30, width=64), min_size=1, max_size=20), st.sampled_from(INTEGERS))
def test_float64_is_rounded_half_to_even_and_clipped(values: list[float], dtype: str) -> None:
    limits = np.iinfo(dtype)
    got = cast_intensities(np.array(values), np.dtype(dtype)).tolist()
    for value, cast in zip(values, got, strict=True):
        expected = min(max(round(value), limits.min), limits.max)
        # Above 2**53 the largest float64 below the limit stands for it.
        assert cast == expected or (limits.bits == 64 and abs(cast - expected) <= 2048)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("of", ["f2", "f4", "f8"])
def test_the_ends_of_the_range_do_not_wrap(dtype: str, of: str) -> None:
    limits = np.iinfo(dtype)
    largest = np.finfo(of).max
    low, high = cast_intensities(np.array([-largest, largest], of), np.dtype(dtype)).tolist()
    assert low >= limits.min
    assert low < 0 or limits.min == 0
    assert high > limits.max * 0.99 or high == int(largest)
    assert low == max(limits.min, -int(largest))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_floats_are_left_as_they_are(dtype: str) -> None:
    values = np.array([-1.5, 0.25, 1e20])
    assert np.array_equal(cast_intensities(values, np.dtype(dtype)), values.astype(dtype))
