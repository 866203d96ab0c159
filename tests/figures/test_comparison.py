from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.errors import BadRequest
from denoizarr.figures.comparison import choose_crops, comparison_figure, spread

GENERATOR = np.random.default_rng(0)
TRUTH = np.full((300, 400), 100.0)
TRUTH[50:130, 60:150] += 80 * GENERATOR.random((80, 90)).round()
RAW = (TRUTH + GENERATOR.normal(0, 10, TRUTH.shape)).astype(np.float32)


def grid(figure, columns):
    # The colour bar comes after all panels.
    return np.array(figure.axes[:-1]).reshape(-1, columns)


@pytest.mark.parametrize("stage1", [None, TRUTH])
def test_before_and_after_have_one_contrast_in_every_row(stage1):
    panels = grid(comparison_figure(RAW, stage1, TRUTH), 3 if stage1 is None else 4)
    for row in panels:
        assert len({panel.images[0].get_clim() for panel in row[:-1]}) == 1


def test_the_residual_is_in_units_of_the_noise_on_a_symmetric_scale():
    figure = comparison_figure(RAW, None, TRUTH, noise_sigma=10.0, crops=[])
    picture = figure.axes[2].images[0]
    np.testing.assert_allclose(picture.get_array(), (RAW - TRUTH) / 10)
    low, high = picture.get_clim()
    assert low == -high < 0
    assert "10 grey levels" in figure.axes[-1].get_ylabel()


def test_noise_may_differ_from_pixel_to_pixel():
    sigma = np.linspace(5, 20, TRUTH.size).reshape(TRUTH.shape)
    figure = comparison_figure(RAW, None, TRUTH, noise_sigma=sigma, crops=[])
    np.testing.assert_allclose(figure.axes[2].images[0].get_array(), (RAW - TRUTH) / sigma)
    assert "5 grey levels where dark, 20 where bright" in figure.axes[-1].get_ylabel()


def test_columns_are_named():
    titles = [panel.get_title(loc="left") for panel in grid(comparison_figure(RAW, TRUTH, TRUTH), 4)[0]]
    assert titles == ["Raw", "After stage 1", "Denoised", "Removed (raw − denoised)"]


def test_crops_show_the_same_place_in_every_column():
    crops = choose_crops(TRUTH, RAW - TRUTH)
    panels = grid(comparison_figure(RAW, None, TRUTH, crops=crops), 3)
    for crop, row in zip(crops, panels[1:], strict=True):
        np.testing.assert_array_equal(row[0].images[0].get_array(), RAW[crop.slices])
        np.testing.assert_array_equal(row[1].images[0].get_array(), TRUTH[crop.slices])


def test_the_first_crop_has_structure_and_the_second_has_none():
    structured, flat = choose_crops(TRUTH, RAW - TRUTH)[:2]
    assert TRUTH[structured.slices].std() > 20
    assert TRUTH[flat.slices].std() == 0


def test_a_masked_border_is_not_taken_for_the_flat_part():
    raw, denoised = RAW.copy(), TRUTH.copy()
    raw[:, 200:], denoised[:, 200:] = 0, 0
    flat = choose_crops(denoised, raw - denoised)[1]
    assert np.ptp(raw[flat.slices]) > 0


def test_lost_structure_is_found():
    lossy = TRUTH.copy()
    lossy[220:240, 300:320] += 60
    hit = np.zeros(TRUTH.shape, bool)
    for crop in choose_crops(lossy, RAW - lossy):
        hit[crop.slices] = True
    assert hit[220:240, 300:320].any()


@settings(max_examples=25)
@given(st.integers(1, 400), st.integers(1, 400))
def test_crops_lie_in_the_plane_and_apart(height, width):
    plane = np.random.default_rng(1).normal(size=(height, width))
    crops = choose_crops(plane, plane)
    assert 1 <= len(crops) <= 3
    seen = np.zeros(plane.shape, int)
    for crop in crops:
        assert plane[crop.slices].shape == (crop.side, crop.side)
        seen[crop.slices] += 1
    assert seen.max() == 1


@pytest.mark.parametrize(("size", "label"), [(0.1, "10 µm"), (0.004, "200 nm"), (3.0, "200 µm")])
def test_the_scale_bar_has_a_round_length(size, label):
    axes = comparison_figure(RAW, None, TRUTH, pixel_size_um=(size, size), crops=[]).axes[0]
    assert label in [text.get_text() for text in axes.texts]
    bar = next(patch for patch in axes.patches if patch.get_facecolor()[:3] == (1, 1, 1))
    number, unit = label.split()
    assert bar.get_width() * size == pytest.approx(float(number) * (1 if unit == "µm" else 1e-3))


def test_no_scale_bar_without_a_pixel_size():
    axes = comparison_figure(RAW, None, TRUTH, crops=[]).axes[0]
    assert not axes.patches


def test_pixels_that_are_not_square_are_not_drawn_square():
    axes = comparison_figure(RAW, None, TRUTH, pixel_size_um=(0.2, 0.1), crops=[]).axes[0]
    assert axes.get_aspect() == 2.0


def test_planes_of_different_shapes_are_refused():
    with pytest.raises(BadRequest, match="differ in shape"):
        comparison_figure(RAW, None, TRUTH[:-1], RAW)


def test_nothing_removed_is_drawn_all_the_same():
    comparison_figure(TRUTH, None, TRUTH)


def test_spread_is_that_of_gaussian_noise_and_never_zero():
    assert spread(GENERATOR.normal(0, 3, 100_000)) == pytest.approx(3, rel=0.02)
    assert spread(np.zeros(10)) == 1


def test_with_other_grey_levels_every_picture_has_its_own_contrast_and_nothing_is_subtracted():
    target = TRUTH / 1000
    figure = comparison_figure(RAW, None, target, other_grey_levels=True)
    panels = np.array(figure.axes).reshape(-1, 2)
    assert [panel.get_title(loc="left") for panel in panels[0]] == ["Raw", "Denoised"]
    assert len(panels) == 3
    for raw, denoised in panels:
        assert raw.images[0].get_clim()[0] > 10
        assert denoised.images[0].get_clim()[1] < 1
        assert "black" in raw.get_ylabel()
        assert "black" in denoised.get_ylabel()
    caption = figure.get_supxlabel()
    assert "target" in caption
    for wrong in ("removed", "one contrast", "least like noise"):
        assert wrong not in caption
