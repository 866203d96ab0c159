from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from denoizarr.errors import BadRequest
from denoizarr.figures.canvas import png_of
from denoizarr.figures.filter_maps import filter_map_figure

IMAGE = np.random.default_rng(0).poisson(50, (70, 100)).astype(np.uint16)
SCORES = np.arange(12, dtype=float).reshape(3, 4)


def draw(**options) -> Figure:
    return filter_map_figure(IMAGE, SCORES, label="score (bit)", cell_shape=(32, 32), **options)


def test_the_map_lies_on_the_image_cell_by_cell():
    picture = draw(threshold=5.0).axes[1].images[1]
    np.testing.assert_array_equal(picture.get_array(), SCORES)
    # Three rows and four columns of 32 pixels, from the outer edge of the first pixel.
    assert tuple(picture.get_extent()) == (-0.5, 127.5, 95.5, -0.5)


def test_cells_beyond_the_image_are_not_shown():
    axes = draw(threshold=5.0).axes[1]
    assert axes.get_xlim() == (-0.5, 99.5)
    assert axes.get_ylim() == (69.5, -0.5)


def test_cells_below_the_threshold_are_tinted_and_counted():
    panel = draw(threshold=5.0).axes[2]
    tint = np.asarray(panel.images[1].get_array())
    np.testing.assert_array_equal(tint[..., 3] == 0, SCORES >= 5)
    assert panel.get_title(loc="left") == "Kept: 7 of 12 cells"


def test_the_threshold_is_marked_in_the_histogram_and_on_the_colour_bar():
    figure = draw(threshold=5.0)
    histogram, bar = figure.axes[3], figure.axes[1].child_axes[0]
    assert 5.0 in [line.get_xdata()[0] for line in histogram.lines]
    assert 5.0 in [line.get_ydata()[0] for line in bar.lines]


def test_no_bar_of_the_histogram_is_half_kept():
    edges = {bar.get_x() for bar in draw(threshold=5.0).axes[3].patches}
    assert min(abs(edge - 5.0) for edge in edges) < 1e-9


def test_the_histogram_counts_every_cell():
    assert sum(bar.get_height() for bar in draw().axes[3].patches) == SCORES.size


def test_given_cells_win_over_the_threshold():
    keep = np.zeros(SCORES.shape, bool)
    keep[0, 0] = True
    assert draw(keep_2d=keep, threshold=5.0).axes[2].get_title(loc="left") == "Kept: 1 of 12 cells"


def test_without_a_threshold_all_is_kept():
    assert draw().axes[2].get_title(loc="left") == "All cells kept"


@pytest.mark.parametrize("scores", [np.full((3, 4), 2.0), np.full((3, 4), np.nan)])
def test_a_map_without_contrast_is_drawn_all_the_same(scores):
    assert png_of(filter_map_figure(IMAGE, scores, label="x", cell_shape=(32, 32), threshold=1.0)).startswith(
        b"\x89PNG"
    )


def test_a_map_of_another_patch_size_is_refused():
    with pytest.raises(BadRequest, match=r"\(3, 4\) cells, expected \(5, 7\)"):
        filter_map_figure(IMAGE, SCORES, label="x", cell_shape=(16, 16))


def test_a_stack_is_refused():
    with pytest.raises(BadRequest, match="not a plane"):
        filter_map_figure(np.zeros((2, 70, 100)), SCORES, label="x", cell_shape=(32, 32))


def test_kept_cells_of_another_shape_are_refused():
    with pytest.raises(BadRequest, match="do not match"):
        draw(keep_2d=np.ones((2, 2), bool))
