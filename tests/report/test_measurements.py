from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from denoizarr.report.measurements import noise_level, residual_check, windows_of
from denoizarr.report.narrative import residual_sentence

GENERATOR = np.random.default_rng(0)
Y, X = np.mgrid[:512, :512]
TRUTH = 200 + 0.2 * X + 150 * ((Y // 100 + X // 120) % 2)
SINGLE = np.ones((1, 1), bool)


def test_noise_is_measured_in_spite_of_structure():
    raw = TRUTH + GENERATOR.normal(0, 12, TRUTH.shape)
    level = noise_level(raw, TRUTH + GENERATOR.normal(0, 3, TRUTH.shape))
    assert level.before == pytest.approx(12, rel=0.05)
    assert level.after == pytest.approx(3, rel=0.1)


def test_correlated_noise_is_measured_too():
    noise = ndimage.uniform_filter1d(GENERATOR.normal(0, 1, TRUTH.shape), 5, axis=1)
    noise *= 10 / noise.std()
    assert noise_level(TRUTH + noise, TRUTH).before == pytest.approx(10, rel=0.1)


def test_photon_noise_grows_with_brightness():
    steps = np.repeat(np.linspace(50, 1000, 16), 32)[:, None] * np.ones((1, 512))
    level = noise_level(GENERATOR.poisson(steps).astype(float), steps)
    assert level.gain == pytest.approx(1, rel=0.15)
    assert level.sigma_at(np.array([50.0, 1000.0])) == pytest.approx(np.sqrt([50, 1000]), rel=0.15)


def test_noise_of_one_strength_has_no_slope_to_speak_of():
    level = noise_level(TRUTH + GENERATOR.normal(0, 12, TRUTH.shape), TRUTH)
    dark, bright = level.sigma_at(np.array([200.0, 450.0]))
    assert dark == pytest.approx(bright, rel=0.1)


def test_masked_parts_do_not_count():
    raw = TRUTH + GENERATOR.normal(0, 12, TRUTH.shape)
    raw[:, 100:] = 0
    assert noise_level(raw, np.where(raw == 0, 0, TRUTH)).before == pytest.approx(12, rel=0.1)


@pytest.mark.parametrize("plane", [np.zeros((100, 100)), np.full((100, 100), np.nan), np.ones((4, 4))])
def test_what_cannot_be_measured_is_none(plane):
    assert noise_level(plane, plane) is None
    assert residual_check(plane, SINGLE) is None


def test_white_residuals_are_within_chance():
    check = residual_check(GENERATOR.normal(0, 5, (512, 512)), SINGLE)
    assert abs(check.outside) < check.chance


def test_structure_in_the_residual_is_found():
    check = residual_check(GENERATOR.normal(0, 5, TRUTH.shape) + 5 * ((X // 8) % 2), SINGLE)
    assert check.outside > 10 * check.chance
    assert "should share no noise, yet" in residual_sentence(check)


def test_correlation_inside_the_kernel_is_allowed():
    noise = ndimage.uniform_filter1d(GENERATOR.normal(0, 1, (512, 512)), 3, axis=1)
    inside, outside = residual_check(noise, np.ones((1, 5), bool)), residual_check(noise, SINGLE)
    assert abs(inside.outside) < 0.05
    assert outside.outside == pytest.approx(2 / 3, abs=0.03)
    assert outside.lag == (0, 1)


def test_noise_left_in_the_neighbours_is_not_taken_for_structure():
    noise = GENERATOR.normal(0, 5, (512, 512))
    check = residual_check(noise - ndimage.uniform_filter(noise, 3), SINGLE)
    assert check.outside < 0.05
    assert check.opposite < -0.05
    assert "usual" in residual_sentence(check)


def test_windows_tile_the_plane():
    plane = np.arange(7 * 9).reshape(7, 9)
    windows = windows_of(plane, 3)
    np.testing.assert_array_equal(windows[4], plane[3:6, 3:6])
    assert windows.shape == (6, 3, 3)
