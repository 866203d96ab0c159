from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.errors import BadRequest
from denoizarr.kernels import autocorrelation as lags


def boxed(random: np.random.Generator, count: int, side: int, length: int) -> np.ndarray:
    white = random.standard_normal((count, side, side + length - 1))
    return np.asarray(sum(white[:, :, i : i + side] for i in range(length)) / np.sqrt(length))


def box_autocorrelation(reach: int, length: int) -> np.ndarray:
    correlation = np.zeros((2 * reach + 1, 2 * reach + 1))
    for lag in range(-length + 1, length):
        correlation[reach, reach + lag] = 1 - abs(lag) / length
    return correlation


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    shape=st.tuples(st.integers(1, 4), st.integers(3, 11), st.integers(3, 11)),
    reach=st.integers(0, 2),
)
def test_lag_products_are_the_sums_over_pairs(seed: int, shape: tuple[int, int, int], reach: int) -> None:
    windows = np.random.default_rng(seed).normal(size=shape)
    found = lags.lag_products(windows, reach)
    _, height, width = shape
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            a = windows[:, max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
            b = windows[:, max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]
            expected = (a * b).sum(axis=(1, 2))
            np.testing.assert_allclose(found.products[:, reach + dy, reach + dx], expected, atol=1e-11)
            assert found.pairs[reach + dy, reach + dx] == a[0].size


def test_products_keep_their_sign() -> None:
    stripes = np.where(np.arange(32) % 2, 1.0, -1.0)[None, None, :] * np.ones((1, 32, 1))
    correlation = lags.lag_products(stripes, 2).autocorrelation()[0]
    np.testing.assert_allclose(correlation[2], [1, -1, 1, -1, 1], atol=1e-12)


def test_merging_parts_equals_the_whole_bit_for_bit() -> None:
    windows = np.random.default_rng(0).normal(size=(300, 24, 24))
    whole = lags.lag_products(windows, 5)
    merged = lags.LagProducts.merged([lags.lag_products(windows[a:b], 5) for a, b in ((0, 256), (256, 300))])
    assert np.array_equal(merged.products, whole.products)
    assert np.array_equal(whole.take(np.arange(10)).products, whole.products[:10])


def test_detrending_removes_polynomials_whatever_the_offset() -> None:
    y, x = np.mgrid[0:32, 0:32]
    quadric = (30000 + 3 * y - 2 * x + 0.1 * x * y + 0.05 * y**2)[None]
    assert np.abs(lags.detrend(quadric)).max() < 1e-8
    noise = np.random.default_rng(1).normal(size=(1, 32, 32))
    np.testing.assert_allclose(lags.detrend(noise + quadric), lags.detrend(noise), atol=1e-8)


def test_the_bias_of_detrending_is_that_of_the_dense_covariance() -> None:
    side, reach = 9, 3
    correlation = box_autocorrelation(reach, 3)
    place = np.argwhere(np.ones((side, side)))
    step = place[None] - place[:, None]
    near = (np.abs(step) <= reach).all(axis=-1)
    covariance = np.where(near, correlation[tuple(np.clip(step + reach, 0, 2 * reach).T)].T, 0.0)
    basis = lags.polynomials((side, side), 2).reshape(-1, side * side)
    keep = np.eye(side * side) - basis.T @ basis
    residual = keep @ covariance @ keep
    expected = np.array(
        [
            [residual[(step == (dy, dx)).all(axis=-1)].mean() for dx in range(-reach, reach + 1)]
            for dy in range(-reach, reach + 1)
        ]
    )
    bias = lags.detrending_bias(correlation, (side, side))
    np.testing.assert_allclose(correlation + bias, expected, atol=1e-12)


def test_unbiased_gives_back_the_noise_that_detrending_bent() -> None:
    windows = boxed(np.random.default_rng(2), 3000, 32, 9)
    measured = lags.lag_products(lags.detrend(windows), 16).autocorrelation().mean(axis=0)
    truth = box_autocorrelation(16, 9)
    assert np.abs(measured - truth).max() > 0.03
    assert np.abs(lags.unbiased(measured, (32, 32)) - truth).max() < 0.01


@pytest.mark.parametrize("length", [1, 5])
def test_sampling_variance_is_the_spread_of_windows(length: int) -> None:
    windows = lags.detrend(boxed(np.random.default_rng(3), 2000, 64, length))
    spread = lags.lag_products(windows, 4).autocorrelation().var(axis=0)
    expected = lags.sampling_variance(box_autocorrelation(4, length), (64, 64))
    away = expected > 0
    assert np.abs(spread[away] / expected[away] - 1).max() < 0.25
    assert abs((spread[away] / expected[away]).mean() - 1) < 0.1


def test_coarse_share_tells_structure_from_noise_at_any_level() -> None:
    random = np.random.default_rng(4)
    white = random.normal(size=(200, 64, 64))
    y, x = np.mgrid[0:64, 0:64]
    blobs = np.exp(-(((y - 20) ** 2 + (x - 40) ** 2) / 60.0))
    quiet, loud, busy = (lags.coarse_share(lags.detrend(w)) for w in (white, 100 * white, white + 3 * blobs))
    np.testing.assert_allclose(quiet, loud, rtol=1e-9)
    assert abs(quiet.mean() - 1 / 64) < 0.002
    assert busy.min() > quiet.max()
    assert lags.coarse_share(np.zeros((1, 64, 64)))[0] == 0


def test_a_window_without_variance_gives_zeros() -> None:
    correlation = lags.lag_products(np.zeros((1, 24, 24)), 2).autocorrelation()[0]
    assert correlation[2, 2] == 1
    assert correlation.sum() == 1


def test_lags_beyond_the_window_are_refused() -> None:
    with pytest.raises(BadRequest, match="lags do not fit"):
        lags.lag_products(np.zeros((1, 8, 8)), 8)
