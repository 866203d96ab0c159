import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d

from denoizarr.kernels.box_means import box_means
from denoizarr.kernels.coarse_blur import ERROR_LIMIT, AxisBlur, choose_blurs


def true_matrix(n, sigma):
    distance = np.abs(np.arange(n)[:, None] - np.arange(n))
    weights = np.where(distance <= int(4 * sigma + 0.5), np.exp(-0.5 * (distance / sigma) ** 2), 0)
    return weights / weights.sum(1, keepdims=True)


def matrix_of(blur):
    """The blur of every unit vector, knots and pixels in two parts each."""
    columns = []
    for unit in np.eye(blur.size):
        boxes = box_means(unit[None], (1, blur.box))[0]
        knots = blur.at_knots(boxes, 0, 0, blur.n_knots, 0)
        columns.append(blur.at_pixels(knots, 0, 0, blur.size, 0))
    return np.stack(columns, axis=1)


@given(st.integers(1, 90), st.floats(0.3, 40), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=40)
def test_the_bound_is_the_largest_difference_of_rows(n, sigma, box, times):
    blur = AxisBlur(n, sigma, box, box * times)
    matrix = matrix_of(blur)
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-12)
    expected = 0.5 * np.abs(matrix - true_matrix(n, sigma)).sum(1).max()
    assert blur.error == pytest.approx(expected, abs=1e-12)


def test_the_bound_of_a_long_axis_needs_few_rows():
    blur = AxisBlur(700, 20.0, 2, 6)
    expected = 0.5 * np.abs(matrix_of(blur) - true_matrix(700, 20.0)).sum(1).max()
    assert blur.error == pytest.approx(expected, abs=1e-12)
    assert AxisBlur(100_000, 75.0, 3, 9).error == pytest.approx(AxisBlur(5000, 75.0, 3, 9).error, abs=1e-12)


@pytest.mark.parametrize("sigma", [0.7, 3.0, 12.0])
def test_a_small_sigma_is_the_true_blur(sigma):
    (blur,) = choose_blurs([60], [sigma])
    assert (blur.box, blur.spacing, blur.error) == (1, 1, 0)
    np.testing.assert_allclose(matrix_of(blur), true_matrix(60, sigma), atol=1e-15)


def test_far_from_the_border_it_is_scipys_gaussian():
    line = np.random.default_rng(0).random(200)
    (blur,) = choose_blurs([200], [5.0])
    found = blur.at_pixels(blur.at_knots(line, 0, 0, 200, 0), 0, 0, 200, 0)
    np.testing.assert_allclose(found[20:-20], gaussian_filter1d(line, 5.0, truncate=4)[20:-20], rtol=1e-12)


@pytest.mark.parametrize(
    ("sizes", "sigmas"), [((5000, 5000), (75, 75)), ((279, 157), (75, 75)), ((60, 300, 9), (20, 75, 400))]
)
def test_the_cheapest_blur_within_the_limit(sizes, sigmas):
    blurs = choose_blurs(sizes, sigmas)
    assert sum(b.error for b in blurs) <= ERROR_LIMIT
    assert all(b.spacing > 1 for b, s in zip(blurs, sigmas, strict=True) if s >= 40)
    assert all(b.error == 0 for b in choose_blurs(sizes, sigmas, limit=0.0))


def test_the_difference_on_an_image_stays_within_the_bound_of_its_range():
    n = 400
    (blur,) = choose_blurs([n], [60.0])
    assert blur.box > 1
    rng = np.random.default_rng(0)
    for line in (rng.random(n), np.arange(n) % 2, (np.arange(n) > 200) * 9.0, np.arange(n) / 7):
        boxes = box_means(line[None], (1, blur.box))[0]
        found = blur.at_pixels(blur.at_knots(boxes, 0, 0, blur.n_knots, 0), 0, 0, n, 0)
        difference = np.abs(found - true_matrix(n, 60.0) @ line).max()
        assert 0 < difference <= blur.error * np.ptp(line) * (1 + 1e-9)


@given(st.integers(2, 200), st.integers(0, 199), st.integers(1, 200))
@settings(max_examples=40)
def test_a_part_has_the_bits_of_the_whole(n, first, extent):
    blur = AxisBlur(n, 11.0, 2, 4)
    first = min(first, n - 1)
    stop = min(first + extent, n)
    rng = np.random.default_rng(n)
    boxes = rng.random((blur.n_boxes, 3))
    knots = blur.at_knots(boxes, 0, 0, blur.n_knots, 0)
    whole = blur.at_pixels(knots, 0, 0, n, 0)
    assert knots.min() == whole.min()
    assert knots.max() == whole.max(), "the extremes of a level are at its knots"
    a, b = blur.knots_for(first, stop)
    c, d = blur.boxes_for(a, b)
    part = blur.at_knots(boxes[c:d], 0, a, b, c)
    np.testing.assert_array_equal(part, knots[a:b])
    np.testing.assert_array_equal(blur.at_pixels(part, 0, first, stop, a), whole[first:stop])


def test_a_constant_stays_what_it_is():
    blur = AxisBlur(100, 30.0, 3, 6)
    knots = np.full(blur.n_knots, 0.1)
    np.testing.assert_array_equal(blur.at_pixels(knots, 0, 0, 100, 0), 0.1)
