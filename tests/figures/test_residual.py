from __future__ import annotations

import numpy as np
import pytest

from denoizarr.errors import BadRequest
from denoizarr.figures.residual import intensity_profile, residual_figure

CORRELATION = np.zeros((9, 9))
CORRELATION[4, 3:6] = 0.3, 1, 0.3


def test_the_profile_equals_its_definition():
    generator = np.random.default_rng(0)
    denoised = generator.uniform(0, 100, (200, 200))
    residual = generator.normal(0, 2, denoised.shape) + 0.1 * denoised
    profile = intensity_profile(denoised, residual, bins=5)
    low, high = np.percentile(denoised, [0.1, 99.9])
    number = np.clip(((denoised - low) / (high - low) * 5).astype(int), 0, 4)
    for bin_number in range(5):
        here = residual[number == bin_number]
        assert profile.mean[bin_number] == pytest.approx(here.mean())
        assert profile.std[bin_number] == pytest.approx(here.std())
        assert profile.count[bin_number] == here.size


def test_lost_signal_shows_as_a_mean_that_is_not_zero():
    denoised = np.repeat(np.arange(100.0), 400)
    noise = np.random.default_rng(0).normal(0, 1, denoised.size)
    good, bad = (intensity_profile(denoised, noise + loss * denoised) for loss in (0, 0.1))
    assert abs(good.mean).max() < 0.2
    assert bad.mean[-1] > 8


def test_pixels_that_are_no_numbers_are_left_out():
    denoised = np.array([1.0, 2.0, np.nan, 4.0] * 100)
    profile = intensity_profile(denoised, np.ones(400))
    assert profile.count.sum() == 300


@pytest.mark.parametrize("denoised", [np.full(500, 7.0), np.full(500, np.nan)])
def test_a_flat_or_empty_image_has_a_profile(denoised):
    assert intensity_profile(denoised, np.zeros(500)).intensity.size <= 1


def test_different_sizes_are_refused():
    with pytest.raises(BadRequest, match="differ in size"):
        intensity_profile(np.zeros(3), np.zeros(4))


def test_measured_and_expected_share_one_scale():
    figure = residual_figure(CORRELATION, np.ones((1, 3), bool), expected_autocorrelation=2 * CORRELATION)
    measured, expected = (axes.images[0] for axes in figure.axes[:2])
    assert measured.get_clim() == expected.get_clim() == (-0.6, 0.6)


def test_nothing_is_expected_outside_the_kernel():
    everywhere = np.full((9, 9), 0.4)
    figure = residual_figure(CORRELATION, np.ones((1, 3), bool), expected_autocorrelation=everywhere)
    expected = np.asarray(figure.axes[1].images[0].get_array())
    assert np.nansum(expected != 0) - np.isnan(expected).sum() == 2


def test_panels_by_intensity_are_there_only_with_a_profile():
    profile = intensity_profile(np.arange(1000.0), np.ones(1000))
    with_profile = residual_figure(CORRELATION, [[True]], profile, noise_sigma=3.0)
    titles = [axes.get_title(loc="left") for axes in with_profile.axes]
    assert titles[2:4] == ["Mean removed (should be zero)", "Spread of what was removed"]
    assert 3.0 in [float(line.get_ydata()[0]) for line in with_profile.axes[3].lines]
    assert len(residual_figure(CORRELATION, [[True]]).axes) == 3
