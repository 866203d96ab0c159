"""Ways of making a coarser level, told apart voxel by voxel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.kernels.downsampling import agreement
from denoizarr.kernels.pooling import mean_pool

Values = np.ndarray[Any, Any]


def _image(shape: tuple[int, ...], dtype: str, seed: int) -> Values:
    values = np.random.default_rng(seed).integers(0, 250, shape)
    return values.astype(dtype)


@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 11), st.integers(1, 11)),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from(["u1", "i2", "f4", "f8"]),
    st.integers(0, 99),
)
def test_means_and_strides_contradict_nothing(
    shape: tuple[int, ...], factors: tuple[int, ...], dtype: str, seed: int
) -> None:
    fine = _image(shape, dtype, seed)
    none = [(0, 0)] * 3
    mean = agreement(fine, mean_pool(fine, factors), factors, none)
    assert (mean.not_mean, mean.out_of_range) == (0, 0)
    picked = agreement(fine, fine[tuple(slice(None, None, f) for f in factors)], factors, none)
    assert (picked.not_picked, picked.out_of_range) == (0, 0)
    assert mean.n_voxels == picked.n_voxels == mean_pool(fine, factors).size


def test_a_voxel_that_is_none_is_counted_once_in_each_way() -> None:
    fine = _image((20, 20), "u2", 0)
    coarse = mean_pool(fine, (2, 2))
    coarse[3, 4] = 60000
    found = agreement(fine, coarse, (2, 2), [(0, 0)] * 2)
    assert (found.not_mean, found.out_of_range) == (1, 1)
    assert found.not_picked > 50, "a mean is seldom one of its voxels"


def test_neighbours_count_where_they_are_given() -> None:
    fine = np.zeros((4, 12), "u1")
    fine[:, 6:] = 90
    coarse = np.array([[0, 0, 40], [0, 0, 40]], "u1")  # smoothed across the cut at column 3
    assert agreement(fine[:, :6], coarse, (2, 2), [(0, 0), (0, 0)]).out_of_range == 2
    assert agreement(fine[:, :8], coarse, (2, 2), [(0, 0), (0, 1)]).out_of_range == 0
    beyond = np.array([[0, 90], [0, 90]], "u1")
    assert agreement(fine[:, 2:8], beyond[:, :1], (2, 2), [(0, 0), (1, 1)]).out_of_range == 0


def test_cut_integers_are_means_too_and_one_off_is_not() -> None:
    fine = np.array([[0, 1], [1, 1]], "u1")
    counts = [agreement(fine, np.array([[v]], "u1"), (2, 2), [(0, 0)] * 2).not_mean for v in (0, 1, 2)]
    assert counts == [0, 0, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_contradicts_nothing_and_spreads_nowhere(value: float) -> None:
    fine = _image((12, 12), "f4", 0)
    coarse = mean_pool(fine, (2, 2))
    fine[5, 5] = value
    fine[4, 4] = -value
    expected = agreement(fine, coarse, (2, 2), [(0, 0)] * 2)
    assert expected.not_mean == 0
    coarse[0, 0] += 100
    assert agreement(fine, coarse, (2, 2), [(0, 0)] * 2).not_mean == 1
    coarse[1, 1] = np.nan
    assert agreement(fine, coarse, (2, 2), [(0, 0)] * 2).not_mean == 1
