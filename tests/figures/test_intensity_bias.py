from __future__ import annotations

import numpy as np
import pytest

from denoizarr.errors import BadRequest
from denoizarr.figures.intensity_bias import bias_by_intensity, intensity_bias

GENERATOR = np.random.default_rng(0)
TRUTH = GENERATOR.uniform(0, 200, (300, 300))


def test_the_numbers_equal_their_definition():
    output = 0.9 * TRUTH + 3 + GENERATOR.normal(0, 5, TRUTH.shape)
    found = bias_by_intensity(TRUTH, output, bins=7)
    edges = np.linspace(TRUTH.min(), TRUTH.max(), 8)
    for number in range(7):
        here = (edges[number] <= TRUTH) & ((edges[number + 1] > TRUTH) | (number == 6))
        error = (output - TRUTH)[here]
        assert found.count[number] == here.sum()
        assert found.intensity[number] == pytest.approx(TRUTH[here].mean())
        assert found.bias[number] == pytest.approx(error.mean())
        assert found.spread[number] == pytest.approx(error.std())
    assert found.value_range == np.ptp(TRUTH)
    assert found.largest == pytest.approx(found.bias.min() / found.value_range)


def test_noise_has_no_bias_in_bins_of_the_truth():
    found = bias_by_intensity(TRUTH, TRUTH + GENERATOR.normal(0, 20, TRUTH.shape), bins=10)
    assert np.abs(found.bias / (found.spread / np.sqrt(found.count))).max() < 4


def test_bins_without_a_pixel_are_left_out_and_few_pixels_do_not_decide():
    truth = np.concatenate([np.zeros(500), np.full(500, 10.0), [100.0]])
    output = truth + np.concatenate([np.full(500, 1.0), np.full(500, -2.0), [-50.0]])
    found = bias_by_intensity(truth, output, bins=20)
    assert found.count.tolist() == [500, 500, 1]
    assert found.largest == pytest.approx(-0.02)


def test_pixels_that_are_no_numbers_are_left_out():
    output = TRUTH.copy()
    output[:100] = np.nan
    assert bias_by_intensity(TRUTH, output).count.sum() == 200 * 300


@pytest.mark.parametrize(
    ("truth", "output", "bins", "says"),
    [
        (np.ones(5), np.ones(6), 4, "differ in size"),
        (np.ones((4, 5)), np.ones((5, 4)), 4, "differ in size"),
        (np.ones(5), np.ones(5), 4, "does not vary"),
        (np.full(5, np.nan), np.ones(5), 4, "does not vary"),
        (np.arange(5), np.arange(5), 0, "number of bins"),
    ],
)
def test_what_cannot_be_binned_is_refused(truth, output, bins, says):
    with pytest.raises(BadRequest, match=says):
        bias_by_intensity(truth, output, bins)


def test_the_figure_has_the_hundredth_lines_and_counts():
    figure = intensity_bias(TRUTH, TRUTH + 1, bins=8)
    upper, lower = figure.axes
    levels = {round(float(line.get_ydata()[0]), 6) for line in upper.lines if line.get_linestyle() == "--"}
    hundredth = round(0.01 * float(np.ptp(TRUTH)), 6)
    assert levels == {hundredth, -hundredth}
    assert sum(bar.get_height() for bar in lower.patches) == TRUTH.size
    assert "0.5 % of the range" in upper.get_title(loc="left")
