from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from denoizarr.kernels.noise_left import lag_to_compare, noise_left
from denoizarr.kernels.residual import classify_windows, windows_of

ROW = np.ones((1, 5), bool)
Y, X = np.mgrid[:512, :512]
# Structure in the right half alone; the left is background.
TRUTH = 100.0 + 60 * ((np.sin(X / 9) + np.cos(Y / 7)) > 0.5) * (X >= 256)


def white(seed, sigma=10.0):
    return np.random.default_rng(seed).normal(0, sigma, TRUTH.shape)


def rows(seed, length=3, sigma=10.0):
    noise = ndimage.uniform_filter1d(white(seed), length, axis=1, mode="wrap")
    return noise * sigma / noise.std()


@pytest.mark.parametrize(
    ("mask", "lag", "turned"),
    [
        (np.ones((1, 1)), (0, 1), (1, 0)),
        (np.ones((1, 3)), (0, 1), (1, 0)),
        (np.ones((9, 1)), (1, 0), (0, 1)),
        (np.eye(5), (1, 1), (1, -1)),
        (np.eye(5)[::-1], (1, -1), (1, 1)),
        (np.ones((3, 9)), (0, 2), (2, 0)),
        (np.ones((3, 3)), (0, 1), None),
        (np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]), (0, 1), None),
    ],
)
def test_the_lag_compared_is_the_kernels_own_direction(mask, lag, turned):
    assert lag_to_compare(mask.astype(bool)) == (lag, turned)


def test_what_is_left_equals_its_definition():
    raw, denoised = TRUTH + rows(7), TRUTH + 0.4 * rows(7)
    classes = classify_windows(raw, denoised)
    found = noise_left(raw, denoised, ROW, classes)
    before, after = (windows_of(plane - TRUTH, 64)[classes.background] for plane in (raw, denoised))
    excess = (after[..., 1:] * after[..., :-1]).mean() - (after[:, 1:] * after[:, :-1]).mean()
    assert found.left == pytest.approx(excess / before.var(), rel=0.02)
    assert found.variance_left == pytest.approx(0.16, rel=0.01)


def test_a_perfect_result_leaves_nothing_and_removes_all():
    raw = TRUTH + rows(0)
    found = noise_left(raw, TRUTH, ROW, classify_windows(raw, TRUTH))
    assert found.raw == pytest.approx(2 / 3, abs=0.03)
    assert found.removed == found.raw
    assert found.left_anywhere == pytest.approx(0, abs=1e-9)
    assert (found.lag, found.turned) == ((0, 1), (1, 0))


def test_row_noise_that_is_left_is_seen_and_smooth_remains_are_not():
    noise = rows(1)
    raw = TRUTH + noise
    row_left = TRUTH + 0.5 * noise
    smooth_left = TRUTH + ndimage.gaussian_filter(white(9, 40.0), 2.0)
    classes = classify_windows(raw, TRUTH)
    seen = noise_left(raw, row_left, ROW, classes)
    smooth = noise_left(raw, smooth_left, ROW, classes)
    assert seen.left == pytest.approx(0.25 * seen.raw, rel=0.05)
    assert seen.left > 10 * seen.left_error
    # It varies by a third of the noise and agrees with its neighbours by .9, and is not the noise's.
    assert smooth.variance_left > 0.2
    assert abs(smooth.left) < 0.01


def test_the_difference_of_planes_takes_shared_structure_out():
    # Stripes along x over all of the plane: correlated along rows, as row noise is.
    stripes = 30 * np.sin(Y / 1.5)
    first, second = rows(1), rows(2)
    raw, denoised = TRUTH + stripes + first, TRUTH + stripes
    classes = classify_windows(raw, denoised)
    alone = noise_left(raw, denoised, ROW, classes)
    pair = noise_left(raw, denoised, ROW, classes, other=(TRUTH + stripes + second, TRUTH + stripes))
    assert alone.left > 0.1
    assert pair.left == pytest.approx(0, abs=1e-9)
    assert pair.raw == pytest.approx(2 / 3, abs=0.03)
    assert pair.from_difference


def test_a_kernel_without_direction_gives_the_plain_covariance():
    noise = ndimage.uniform_filter(white(3), 3, mode="wrap")
    raw = TRUTH + noise * 10 / noise.std()
    found = noise_left(raw, TRUTH, np.ones((3, 3), bool), classify_windows(raw, TRUTH))
    assert found.turned is None
    assert found.raw == pytest.approx(2 / 3, abs=0.04)


def test_a_kernel_wider_than_the_windows_is_left_alone():
    raw = TRUTH[:96, :96] + white(0)[:96, :96]
    classes = classify_windows(raw, TRUTH[:96, :96])
    mask = np.zeros((1, 61), bool)
    mask[0, [0, 30, 60]] = True
    assert noise_left(raw, TRUTH[:96, :96], mask, classes) is None
