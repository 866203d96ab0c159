from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from denoizarr.errors import BadRequest
from denoizarr.figures.noise_kernel import fitted, mask_outline, noise_kernel_figure, signed_limit

CORRELATION = np.zeros((11, 13))
CORRELATION[5, 4:9] = 0.2, 0.5, 1, 0.5, 0.2
MASK = np.ones((1, 5), bool)


def test_the_centre_does_not_set_the_colour_scale():
    heat = noise_kernel_figure(MASK, CORRELATION).axes[0].images[0]
    assert heat.get_clim() == (-0.5, 0.5)
    assert np.ma.getmaskarray(np.ma.masked_invalid(heat.get_array()))[5, 6]


def test_lags_are_counted_from_the_centre():
    figure = noise_kernel_figure(MASK, CORRELATION)
    assert tuple(figure.axes[0].images[0].get_extent()) == (-6.5, 6.5, 5.5, -5.5)
    assert [axes.get_title(loc="left") for axes in figure.axes[:4]] == [
        "Correlation of the noise",
        "Hidden in training: 5 pixels",
        "Cut along x",
        "Cut along y",
    ]


def test_the_cuts_are_those_through_the_centre():
    along_x, along_y = noise_kernel_figure(MASK, CORRELATION).axes[2:4]
    drawn = {
        float(x): float(y)
        for line in along_x.lines
        for x, y in zip(*line.get_data(), strict=True)
        if line.get_marker() == "o"
    }
    assert drawn[1] == 0.5
    assert drawn[-2] == 0.2
    assert 0 not in drawn
    assert max(float(y) for line in along_y.lines for y in line.get_ydata()) == 0


def test_hidden_and_other_lags_are_told_apart():
    axes = noise_kernel_figure(MASK, CORRELATION).axes[2]
    hidden = next(line for line in axes.lines if line.get_label() == "hidden")
    assert set(hidden.get_xdata()) == {-2, -1, 1, 2}


def test_the_band_of_chance_is_the_standard_error_times_the_threshold():
    correlation = np.full((5, 5), 0.3)
    band = (
        noise_kernel_figure([[True]], correlation, np.full((5, 5), 10.0), z_threshold=4)
        .axes[2]
        .collections[0]
    )
    heights = np.concatenate([path.vertices[:, 1] for path in band.get_paths()])
    assert heights.max() == pytest.approx(0.12)
    assert heights.min() == pytest.approx(-0.12)


def test_the_band_of_chance_does_not_jump_where_two_small_numbers_are_divided():
    # Correlation and z-scores are measured at different frequencies: beside the kernel they are small numbers
    # of their own, and one quotient of them says nothing.
    rng = np.random.default_rng(0)
    correlation = 0.01 * rng.standard_normal((25, 25))
    scores = correlation / 0.01 + 0.3 * rng.standard_normal((25, 25))
    scores[12, 12] = 0
    scores[12, 5] = 1e-4
    correlation[12, 11:14] = 0.5, 1, 0.5
    scores[12, [11, 13]] = 50
    band = (
        noise_kernel_figure(np.ones((1, 3), bool), correlation, scores, z_threshold=4).axes[2].collections[0]
    )
    heights = np.concatenate([path.vertices[:, 1] for path in band.get_paths()])
    heights = np.abs(heights[heights != 0])
    assert heights.min() > 0.5 * 0.04
    assert heights.max() < 2 * 0.04


@pytest.mark.parametrize("size", [1, 3, 9])
def test_a_single_pixel_is_drawn_and_said(size):
    correlation = np.zeros((size, size))
    correlation[size // 2, size // 2] = 1
    figure = noise_kernel_figure([[True]], correlation, np.zeros((size, size)))
    assert figure.axes[1].get_title(loc="left") == "Hidden in training: 1 pixel"
    assert "no other pixel was found to share noise" in " ".join(figure.get_supxlabel().split())


def test_arrays_without_a_centre_are_refused():
    with pytest.raises(BadRequest, match="no centre"):
        noise_kernel_figure(np.ones((1, 4), bool), CORRELATION)


def test_what_is_estimation_noise_gets_no_full_colour():
    assert signed_limit(np.full((3, 3), 0.001)) == 0.05


@settings(max_examples=40)
@given(hnp.arrays(bool, st.tuples(st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 3, 5, 7]))))
def test_the_outline_is_as_long_as_the_border(mask):
    padded = np.pad(mask, 1)
    border = sum(int((np.diff(padded.astype(int), axis=axis) != 0).sum()) for axis in (0, 1))
    length = sum(abs(a[0] - b[0]) + abs(a[1] - b[1]) for a, b in mask_outline(mask))
    assert length == border


@settings(max_examples=40)
@given(*[st.sampled_from([1, 3, 5, 9])] * 4)
def test_fitting_keeps_the_centre_and_what_fits(h, w, wanted_h, wanted_w):
    array = np.arange(h * w, dtype=float).reshape(h, w)
    result = fitted(array, (wanted_h, wanted_w), fill=np.nan)
    assert result.shape == (wanted_h, wanted_w)
    assert result[wanted_h // 2, wanted_w // 2] == array[h // 2, w // 2]
    back = fitted(result, (h, w), fill=np.nan)
    known = np.isfinite(back)
    np.testing.assert_array_equal(back[known], array[known])
    assert known.sum() == min(h, wanted_h) * min(w, wanted_w)
