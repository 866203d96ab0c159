"""How much of a pixel's noise visible pixels tell: against regression on drawn noise; kernels that grow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate, gaussian_filter
from scipy.signal import correlate as correlate_fully

from denoizarr.kernels.predictable_noise import MOST, enclosing_kernel, predictable_share


def correlation_of(weights):
    """The correlation of white noise after a filter, by lag, centred."""
    full = correlate_fully(weights, weights)
    return full / full.max()


def symmetric(shape, seed):
    """Filters that leave a correlation which is the same to all sides."""
    weights = np.random.default_rng(seed).uniform(0.1, 1, shape)
    for axis in range(len(shape)):
        weights = weights + np.flip(weights, axis)
    return weights


def told_by_regression(weights, mask, n=600, seed=0):
    """R squared of a pixel of drawn noise, regressed on the pixels around that the mask leaves visible."""
    noise = correlate(np.random.default_rng(seed).standard_normal((n, n)), weights, mode="wrap")
    half = [side // 2 + 3 for side in mask.shape]
    hidden = np.pad(mask, [(h - side // 2,) * 2 for h, side in zip(half, mask.shape, strict=True)])
    columns = [np.roll(noise, (half[0] - y, half[1] - x), (0, 1)).ravel() for y, x in np.argwhere(~hidden)]
    visible, own = np.stack(columns, 1), noise.ravel()
    fitted = visible @ np.linalg.lstsq(visible, own, rcond=None)[0]
    return 1 - np.var(own - fitted) / np.var(own)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 3)])
def test_the_share_is_that_of_a_regression(shape):
    weights = np.array([[0.1, 0.3, 0.2], [0.3, 1.0, 0.3], [0.0, 0.3, 0.1]])
    mask = np.ones(shape, bool)
    told = predictable_share(mask, correlation_of(weights))
    assert told == pytest.approx(told_by_regression(weights, mask), abs=0.01)


def test_of_white_noise_nothing_is_told():
    white = np.zeros((9, 9))
    white[4, 4] = 1
    assert predictable_share(np.ones((1, 1), bool), white) == 0


@given(st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(0, 999))
@settings(max_examples=20)
def test_a_kernel_that_hides_all_that_is_correlated_stays_as_it_is(shape, seed):
    weights = symmetric(shape, seed)
    mask = np.ones([2 * n - 1 for n in shape], bool)
    assert predictable_share(mask, correlation_of(weights)) == pytest.approx(0, abs=1e-12)
    assert enclosing_kernel(mask, correlation_of(weights)) is mask


@given(st.integers(0, 999), st.floats(0.5, 1.2))
@settings(max_examples=10)
def test_a_grown_kernel_holds_the_first_tells_less_and_keeps_its_symmetries(seed, sigma):
    point = np.zeros((9, 9))
    point[4, 4] = 1
    correlation = correlation_of(gaussian_filter(point, (sigma, 1.3 * sigma)))
    mask = np.ones((1, 3), bool)
    grown = enclosing_kernel(mask, correlation)
    assert grown[
        tuple(slice((g - m) // 2, (g + m) // 2) for g, m in zip(grown.shape, mask.shape, strict=True))
    ].all()
    assert predictable_share(grown, correlation) <= predictable_share(mask, correlation)
    for axis in (0, 1):
        np.testing.assert_array_equal(grown, np.flip(grown, axis))


def test_noise_that_is_blurred_all_round_is_hidden_all_round():
    """The correlation of a wide-field image's noise, and the kernel of what exceeds a tenth in it."""
    quarter = np.array(
        [[1, 0.58, 0.09, -0.03], [0.57, 0.33, 0, -0.04], [0.08, 0, -0.085, -0.02], [-0.03, -0.045, -0.02, 0]]
    )
    half = np.concatenate([quarter[:, :0:-1], quarter], 1)
    correlation = np.concatenate([half[:0:-1], half])
    y, x = np.mgrid[-2:3, -2:3]
    diamond = abs(y) + abs(x) <= 2
    assert predictable_share(diamond, correlation) > 0.15
    grown = enclosing_kernel(diamond, correlation)
    assert predictable_share(grown, correlation) <= MOST
    assert grown.shape == (5, 5)
    assert (grown & diamond).sum() == diamond.sum() < grown.sum()


def test_structure_that_no_kernel_hides_makes_none_grow_without_end():
    plateau = np.full((21, 21), 0.3)
    plateau[10, 10] = 1
    mask = np.ones((1, 3), bool)
    assert enclosing_kernel(mask, plateau).sum() < 30


def test_kernels_of_volumes_grow_too():
    correlation = correlation_of(np.ones((2, 2, 2)))
    grown = enclosing_kernel(np.ones((1, 3, 3), bool), correlation)
    assert all(n >= 3 for n in grown.shape)
    assert predictable_share(grown, correlation) <= MOST
