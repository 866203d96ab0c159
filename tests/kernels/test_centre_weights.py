"""The weight of a pixel's own value: pairs of independent noise, their fit, and what comes of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate, gaussian_filter

from denoizarr.kernels.centre_weights import (
    Centre,
    axis_lags,
    fit_centre_weights,
    fit_shift,
    footprint_of,
    keep_centres,
    mean_nearby,
    pair_kernel,
    pair_lags,
)


def symmetric_kernels(ndim):
    def made(parts):
        halves, seed = parts
        kernel = np.random.default_rng(seed).random([2 * h + 1 for h in halves]) < 0.4
        kernel |= kernel[(slice(None, None, -1),) * ndim]
        kernel[tuple(halves)] = True
        return kernel

    return st.tuples(st.tuples(*[st.integers(0, 3)] * ndim), st.integers(0, 2**16)).map(made)


KERNELS = st.one_of(symmetric_kernels(2), symmetric_kernels(3))


def offsets(kernel):
    return {tuple(int(i) for i in place - np.array(kernel.shape) // 2) for place in np.argwhere(kernel)}


@given(KERNELS)
@settings(max_examples=40)
def test_a_pairs_noise_is_independent_and_nearer_lags_are_not(kernel):
    lags, hidden = pair_lags(kernel), offsets(kernel)
    norms = {sum(step**2 for step in lag) for lag in lags}
    assert len(norms) == 1
    assert not hidden & set(lags)
    assert not {tuple(-step for step in lag) for lag in lags} & set(lags)
    wide = np.argwhere(np.ones([9] * kernel.ndim)) - 4
    nearer = {tuple(int(i) for i in lag) for lag in wide if 0 < (lag**2).sum() < next(iter(norms))}
    assert nearer <= hidden


@given(KERNELS)
@settings(max_examples=40)
def test_both_kernels_of_a_pair_are_hidden_and_nothing_else(kernel):
    for lag in pair_lags(kernel):
        pair = pair_kernel(kernel, lag)
        assert all(n % 2 for n in pair.shape)
        shifted = {tuple(a + b for a, b in zip(place, lag, strict=True)) for place in offsets(kernel)}
        assert offsets(pair) == offsets(kernel) | shifted


def test_the_neighbour_across_the_row_pairs_with_noise_along_it():
    assert pair_lags(np.ones((1, 17), bool)) == [(1, 0)]
    assert sorted(pair_lags(np.ones((1, 1), bool))) == [(0, 1), (1, 0)]


def test_a_kernel_to_one_side_hides_to_the_other_as_well():
    to_the_right, to_the_left = np.array([[0, 1, 1]], bool), np.array([[1, 1, 0]], bool)
    assert pair_lags(to_the_right) == pair_lags(to_the_left) == [(1, 0)]


@given(KERNELS)
@settings(max_examples=40)
def test_the_footprint_is_what_lies_nearer_than_the_nearest_independent_pixel(kernel):
    footprint, nearest = footprint_of(kernel), sum(step**2 for step in pair_lags(kernel)[0])
    assert footprint.ndim == kernel.ndim
    assert all(n % 2 for n in footprint.shape)
    everywhere = np.argwhere(np.ones([9] * kernel.ndim)) - 4
    assert offsets(footprint) == {
        tuple(lag) for lag in everywhere.tolist() if sum(s**2 for s in lag) < nearest
    }
    assert offsets(footprint) <= offsets(kernel)


@given(KERNELS)
@settings(max_examples=40)
def test_lags_along_the_axes_are_outside_and_no_nearer_than_the_nearest(kernel):
    along, nearest = axis_lags(kernel), pair_lags(kernel)[0]
    assert all(np.count_nonzero(lag) == 1 for lag in along)
    assert not offsets(kernel) & set(along)
    assert sum(s**2 for s in along[0]) >= sum(s**2 for s in nearest)


def disc():
    y, x = np.mgrid[-2:3, -2:3]
    return y**2 + x**2 <= 5


def test_noise_along_a_row_leaves_the_pixel_alone_and_noise_all_round_a_disc():
    assert footprint_of(np.ones((1, 17), bool)).tolist() == [[True]]
    np.testing.assert_array_equal(footprint_of(disc()), disc())
    assert sorted(axis_lags(disc())) == [(0, 3), (3, 0)]


@given(KERNELS, st.integers(0, 2**16))
@settings(max_examples=40)
def test_the_mean_over_a_footprint_is_of_the_voxels_that_there_are(kernel, seed):
    footprint = footprint_of(kernel)
    values = np.random.default_rng(seed).standard_normal((2, *(4, 9, 7)[-kernel.ndim :]))
    over = [
        correlate(v, footprint.astype(float), mode="constant") for v in (*values, np.ones_like(values[0]))
    ]
    expected = np.stack(over[:-1]) / over[-1]
    np.testing.assert_allclose(mean_nearby(torch.from_numpy(values), footprint).numpy(), expected, atol=1e-12)


def test_the_mean_has_the_same_bits_in_every_cut():
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((61, 53)).astype(np.float32))
    whole, part = mean_nearby(values, disc()), mean_nearby(values[7:40, 11:50], disc())
    assert torch.equal(whole[9:38, 13:48], part[2:-2, 2:-2])


def residuals(n, prior, noise, seed=0):
    """Pairs whose predictions err alike, as neighbours do, and whose noise is independent."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(0, 100, n)
    common = rng.standard_normal(n) * np.sqrt(prior(level))
    first, second = (common + rng.standard_normal(n) * np.sqrt(noise(level)) for _ in range(2))
    return first, second, level


def test_the_weight_is_the_posteriors():
    def prior(level):
        return 4.0 + 0.5 * level

    def noise(level):
        return 100.0 + 2.0 * level

    levels, weights = fit_centre_weights(*residuals(200_000, prior, noise))
    assert (np.diff(levels) > 0).all()
    assert len(levels) >= 8
    np.testing.assert_allclose(weights, prior(levels) / (prior(levels) + noise(levels)), atol=0.03)


def test_the_weight_of_a_footprint_is_what_residuals_share_of_its_own_square():
    first, second, level = residuals(200_000, lambda level: 5.0 + 0 * level, lambda level: 20.0 + 0 * level)
    kept = np.random.default_rng(1).uniform(8, 12, level.size)
    _, weights = fit_centre_weights(first, second, level, kept)
    np.testing.assert_allclose(weights, 0.5, atol=0.08)


def test_weights_come_at_fewer_levels_where_little_is_shared():
    level_counts = [
        len(
            fit_centre_weights(
                *residuals(
                    60_000, lambda level, share=share: share + 0 * level, lambda level: 20.0 + 0 * level
                )
            )[0]
        )
        for share in (0.3, 20.0)
    ]
    assert level_counts[0] < level_counts[1]


def test_noise_alone_leaves_the_prediction_as_it_is():
    _, weights = fit_centre_weights(*residuals(200_000, np.zeros_like, lambda level: 9.0 + level))
    assert weights.max() < 0.03


def test_levels_stay_apart_by_a_part_of_the_noise():
    rng = np.random.default_rng(0)
    level = np.concatenate([rng.normal(10, 0.01, 100_000), rng.uniform(10, 60, 100_000)])
    first, second = rng.standard_normal((2, level.size)) * 8
    levels, _ = fit_centre_weights(first, second, level)
    assert np.diff(levels).min() > 1.9


@pytest.mark.parametrize("n", [0, 1, 100, 4999])
def test_too_few_pairs_give_nothing(n):
    assert fit_centre_weights(*np.zeros((3, n))) is None


def test_a_prediction_of_one_level_gives_nothing():
    first, second = np.random.default_rng(0).standard_normal((2, 50_000))
    assert fit_centre_weights(first, second, np.full(50_000, 3.0)) is None


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_levels_differ_in_float32_where_there_is_no_noise(noise):
    dark = np.repeat(30000.0 + 1e-4 * np.arange(20), 5000)
    level = np.concatenate([dark, np.linspace(30010, 31000, 50_000)])
    first = np.full(level.size, noise)
    levels, weights = fit_centre_weights(first, first, level)
    assert (np.diff(levels.astype(np.float32)) > 0).all()
    assert np.isfinite(weights).all()


def test_levels_that_are_one_after_scaling_give_numbers():
    levels, weights = torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 1.0])
    predicted = torch.tensor([0.0, 1.0, 1.5, 3.0])
    assert torch.isfinite(keep_centres(torch.zeros(4), predicted, Centre(levels, weights))).all()


@given(st.integers(0, 2**16))
@settings(max_examples=20)
def test_values_are_kept_by_the_plain_definition(seed):
    rng = np.random.default_rng(seed)
    levels = np.sort(rng.choice(np.arange(-40, 40), 6, replace=False)) / 10.0
    weights = rng.random(6)
    noisy, predicted = rng.standard_normal((2, 3, 5, 7)) * 3
    predicted.flat[:6] = levels
    noisy_, predicted_, *curve = map(torch.from_numpy, (noisy, predicted, levels, weights))
    kept = keep_centres(noisy_, predicted_, Centre(*curve))
    weight = np.interp(predicted, levels, weights)
    np.testing.assert_allclose(kept.numpy(), predicted + weight * (noisy - predicted), rtol=1e-12, atol=1e-12)
    at, by = np.array([-1.0, 0.5, 2.0]), rng.standard_normal(3)
    shift = (torch.from_numpy(at), torch.from_numpy(by))
    shifted = predicted + np.interp(predicted, at, by)
    kept = keep_centres(noisy_, predicted_, Centre(*curve, shift))
    np.testing.assert_allclose(kept.numpy(), shifted + weight * (noisy - shifted), rtol=1e-12, atol=1e-12)


def test_a_shift_is_the_mean_difference_by_level():
    rng = np.random.default_rng(0)
    shown = rng.uniform(0, 100, 60_000)
    hidden = 50 + 0.9 * (shown - 50) + rng.standard_normal(shown.size)
    levels, shifts = fit_shift(shown, hidden)
    assert len(levels) == 16
    np.testing.assert_allclose(shifts, -0.1 * (levels - 50), atol=0.1)
    # None of it where answers agree, too few are known, or they are all one.
    assert np.abs(fit_shift(shown, shown)[1]).max() == 0
    assert fit_shift(shown[:4999], hidden[:4999]) is None
    assert fit_shift(np.full(9999, 3.0), hidden[:9999]) is None


def test_the_kept_share_brings_a_blind_mean_closer_to_the_truth():
    """A mean of the neighbours without the pixel itself, as the simplest blind-spot prediction."""
    rng = np.random.default_rng(3)
    truth = 60 * gaussian_filter(rng.standard_normal((256, 256)), 1.5)
    noisy = truth + rng.standard_normal(truth.shape) * 4
    ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]]) / 8
    blind = sum(
        ring[dy + 1, dx + 1] * np.roll(noisy, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)
    )
    # Hidden together: q = p + (0, 1) is in no mean that p is answered with, and the other way round.
    first = noisy - (8 * blind - np.roll(noisy, -1, 1)) / 7
    second = np.roll(noisy - (8 * blind - np.roll(noisy, 1, 1)) / 7, -1, 1)
    levels, weights = fit_centre_weights(first.ravel(), second.ravel(), blind.ravel())
    kept = blind + np.interp(blind, levels, weights) * (noisy - blind)
    before, after = (np.mean((image - truth) ** 2) for image in (blind, kept))
    assert after < 0.85 * before
