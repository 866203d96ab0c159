from __future__ import annotations

import numpy as np
import pytest

from denoizarr.errors import BadRequest
from denoizarr.figures.residual import (
    CorrelationView,
    intensity_profile,
    intensity_profile_figure,
    residual_figure,
)

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


def view_of(correlation, *, marked=(), chance=0.02):
    marks = np.zeros(correlation.shape, bool)
    for lag in marked:
        marks[lag] = True
    return CorrelationView(correlation, chance, marks, 40)


def titles_of(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_background_and_signal_share_one_scale():
    figure = residual_figure(view_of(CORRELATION), view_of(2 * CORRELATION), np.ones((1, 3), bool))
    left, right = (axes.images[0] for axes in figure.axes[:2])
    assert left.get_clim() == right.get_clim() == (-0.6, 0.6)


def test_what_should_not_be_there_is_ringed_where_it_is():
    figure = residual_figure(
        view_of(CORRELATION), view_of(CORRELATION, marked=[(4, 7), (2, 4)]), np.ones((1, 3), bool)
    )
    assert not figure.axes[0].lines
    (rings,) = figure.axes[1].lines
    assert sorted(zip(rings.get_xdata(), rings.get_ydata(), strict=True)) == [(0, -2), (3, 0)]
    assert "Ringed" in figure.get_supxlabel()


def test_without_marks_the_caption_says_so():
    figure = residual_figure(view_of(CORRELATION), view_of(CORRELATION), [[True]])
    assert "Nothing is ringed" in figure.get_supxlabel()


def test_cuts_show_one_side_of_both_and_the_noise_itself():
    expected = 0.5 * CORRELATION
    figure = residual_figure(
        view_of(CORRELATION), view_of(2 * CORRELATION), [[True]], expected_autocorrelation=expected
    )
    for axes, first in zip(figure.axes[2:4], (0.3, 0.0), strict=True):
        labels = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        drawn = {name: np.asarray(labels[name].get_ydata()) for name in ("on background", "on signal")}
        assert drawn["on background"].tolist() == [first, 0, 0, 0]
        np.testing.assert_array_equal(drawn["on signal"], 2 * drawn["on background"])
        np.testing.assert_array_equal(labels["the noise itself"].get_ydata(), 0.5 * drawn["on background"])


def test_without_signal_its_map_is_empty():
    figure = residual_figure(view_of(CORRELATION), None, [[True]])
    assert not figure.axes[1].images
    assert "too little signal" in figure.axes[1].texts[0].get_text()


def test_the_profile_has_two_panels():
    profile = intensity_profile(np.arange(1000.0), np.ones(1000))
    figure = intensity_profile_figure(profile, noise_sigma=3.0)
    assert titles_of(figure) == ["Mean removed (should be zero)", "Spread of what was removed"]
    assert 3.0 in [float(line.get_ydata()[0]) for line in figure.axes[1].lines]
