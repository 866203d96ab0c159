from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from denoizarr.kernels.residual import (
    centred,
    classify_windows,
    residual_correlation,
    shared_noise,
    window_side,
    windows_of,
)

SINGLE = np.ones((1, 1), bool)
ROW = np.ones((1, 5), bool)
Y, X = np.mgrid[:512, :512]
# Structure in the right half alone; the left is background.
TRUTH = 100.0 + 60 * ((np.sin(X / 9) + np.cos(Y / 7)) > 0.5) * (X >= 256)


def white(seed, sigma=10.0):
    return np.random.default_rng(seed).normal(0, sigma, TRUTH.shape)


def rows(seed, length=3, sigma=10.0):
    noise = ndimage.uniform_filter1d(white(seed), length, axis=1, mode="wrap")
    return noise * sigma / noise.std()


def test_background_and_signal_are_told_apart():
    classes = classify_windows(TRUTH + white(0), TRUTH)
    left = (np.arange(64) % 8) < 4
    assert classes.side == 64
    assert left[classes.background].all()
    assert not left[classes.signal].any()
    assert not set(classes.background) & set(classes.signal)


@pytest.mark.parametrize(
    ("shape", "side"), [((512, 512), 64), ((300, 200), 32), ((90, 120), 16), ((15, 99), None)]
)
def test_windows_get_smaller_with_the_plane(shape, side):
    assert window_side(shape) == side


@pytest.mark.parametrize(
    "plane",
    [np.zeros((256, 256)), np.full((256, 256), np.nan), np.ones((9, 9)), np.ones((300, 300), np.uint8)],
)
def test_what_does_not_vary_has_no_classes(plane):
    assert classify_windows(plane, plane) is None


def test_windows_that_are_no_numbers_are_left_out():
    raw = TRUTH + white(0)
    raw[:64, :64] = np.nan
    classes = classify_windows(raw, TRUTH)
    assert 0 not in {*classes.background, *classes.signal}


def test_the_correlation_equals_its_definition():
    residual = rows(1)[:256, :256]
    classes = classify_windows(residual + TRUTH[:256, 256:], TRUTH[:256, 256:])
    found = residual_correlation(residual, SINGLE, classes, on="background")
    reach = found.autocorrelation.shape[0] // 2
    side = classes.side
    y, x = (axis.ravel() / side for axis in np.mgrid[:side, :side])
    basis = np.stack([np.ones_like(y), y, x, y * y, y * x, x * x], axis=1)
    expected = np.zeros((2, len(classes.background)))
    for number, window in enumerate(windows_of(residual, side)[classes.background]):
        flat = window.ravel() - basis @ np.linalg.lstsq(basis, window.ravel())[0]
        flat = flat.reshape(side, side)
        for row, (dy, dx) in enumerate(((0, 2), (3, 1))):
            product = (flat[: side - dy, : side - dx] * flat[dy:, dx:]).mean()
            expected[row, number] = product / (flat**2).mean()
    measured = found.autocorrelation[reach, reach + 2], found.autocorrelation[reach + 3, reach + 1]
    assert measured == pytest.approx(expected.mean(axis=1))
    error = expected.std(axis=1, ddof=1) / np.sqrt(expected.shape[1])
    assert found.standard_error[reach, reach + 2] == pytest.approx(error[0])
    np.testing.assert_array_equal(found.autocorrelation, found.autocorrelation[::-1, ::-1])


@pytest.mark.parametrize("seed", range(12))
def test_white_residuals_are_not_marked(seed):
    raw = TRUTH + white(seed)
    classes = classify_windows(raw, TRUTH)
    for on in ("background", "signal"):
        assert not residual_correlation(raw - TRUTH, SINGLE, classes, on=on).marked.any()


def test_noise_inside_the_kernel_is_not_marked_and_outside_it_is():
    raw = TRUTH + rows(0)
    classes = classify_windows(raw, TRUTH)
    inside = residual_correlation(raw - TRUTH, ROW, classes, on="background")
    outside = residual_correlation(raw - TRUTH, SINGLE, classes, on="background")
    assert not inside.marked.any()
    assert outside.marked.sum() == 4
    assert outside.lag == (0, 1)
    assert outside.strongest == pytest.approx(2 / 3, abs=0.03)
    reach = outside.marked.shape[0] // 2
    assert outside.marked[reach, [reach - 2, reach - 1, reach + 1, reach + 2]].all()


def test_structure_that_was_removed_is_marked_on_signal_alone():
    raw = TRUTH + white(3)
    denoised = TRUTH - 0.3 * (TRUTH - 100)
    classes = classify_windows(raw, denoised)
    background = residual_correlation(raw - denoised, SINGLE, classes, on="background")
    signal = residual_correlation(
        raw - denoised, SINGLE, classes, on="signal", allowed=background.autocorrelation
    )
    assert not background.marked.any()
    assert signal.marked.sum() > 20


def test_what_the_background_shows_too_is_not_called_structure():
    raw = TRUTH + rows(4)
    classes = classify_windows(raw, TRUTH)
    background = residual_correlation(raw - TRUTH, SINGLE, classes, on="background")
    signal = residual_correlation(
        raw - TRUTH, SINGLE, classes, on="signal", allowed=background.autocorrelation
    )
    assert not signal.marked.any()
    assert signal.strongest > 0.6


def test_noise_left_in_the_neighbours_is_not_marked():
    noise = white(5)
    left = ndimage.uniform_filter(noise, 3)
    classes = classify_windows(TRUTH + noise, TRUTH + left)
    found, blind = (
        residual_correlation(noise - left, SINGLE, classes, on="background", kept=kept)
        for kept in (TRUTH + left, None)
    )
    assert found.autocorrelation.min() < -0.05
    assert not found.marked.any()
    assert blind.marked.any()


def test_nothing_removed_has_no_correlation():
    classes = classify_windows(TRUTH + white(0), TRUTH)
    assert residual_correlation(np.zeros_like(TRUTH), SINGLE, classes, on="signal") is None


def test_noise_that_planes_share_is_noticed():
    classes = classify_windows(TRUTH + white(0), TRUTH)
    assert abs(shared_noise(white(0), white(1), classes)) < 0.01
    assert shared_noise(white(0), white(0) + white(1), classes) == pytest.approx(np.sqrt(0.5), abs=0.02)
    assert shared_noise(np.zeros_like(TRUTH), white(1), classes) == 1.0


@settings(max_examples=30)
@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4), st.integers(0, 4))
def test_centring_keeps_what_fits(reach_y, reach_x, to_y, to_x):
    mask = np.random.default_rng(reach_y + 9 * reach_x).random((2 * reach_y + 1, 2 * reach_x + 1)) < 0.5
    moved = centred(mask, (2 * to_y + 1, 2 * to_x + 1))
    for dy in range(-to_y, to_y + 1):
        for dx in range(-to_x, to_x + 1):
            inside = abs(dy) <= reach_y and abs(dx) <= reach_x
            assert moved[to_y + dy, to_x + dx] == (inside and mask[reach_y + dy, reach_x + dx])
