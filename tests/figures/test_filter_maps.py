from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from denoizarr.errors import BadRequest
from denoizarr.figures.canvas import png_of
from denoizarr.figures.filter_maps import filter_map_figure

IMAGE = np.random.default_rng(0).poisson(50, (70, 100)).astype(np.uint16)
SCORES = np.arange(12, dtype=float).reshape(3, 4)
TWO = {"mean (intensity)": SCORES, "std (intensity)": SCORES[::-1] * 10}


def draw(threshold: float | None = None, keep=None, **options) -> Figure:
    thresholds = {} if threshold is None else {"score (bit)": threshold}
    return filter_map_figure(
        IMAGE, {"score (bit)": SCORES}, keep, thresholds=thresholds, cell_shape=(32, 32), **options
    )


def draw_two(**thresholds: float) -> Figure:
    named = {f"{name} (intensity)": value for name, value in thresholds.items()}
    return filter_map_figure(IMAGE, TWO, thresholds=named, cell_shape=(32, 32))


def caption_of(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def tint_of(panel) -> np.ndarray:
    return np.asarray(panel.images[-1].get_array())[..., 3] > 0


def test_the_map_lies_on_the_image_cell_by_cell():
    picture = draw(5.0).axes[1].images[-1]
    np.testing.assert_array_equal(picture.get_array(), SCORES)
    # Three rows and four columns of 32 pixels, from the outer edge of the first pixel.
    assert tuple(picture.get_extent()) == (-0.5, 127.5, 95.5, -0.5)


def test_cells_beyond_the_image_are_not_shown():
    for axes in draw(5.0).axes[:3]:
        assert axes.get_xlim() == (-0.5, 99.5)
        assert axes.get_ylim() == (69.5, -0.5)


def test_cells_below_the_threshold_are_tinted_and_counted():
    panel = draw(5.0).axes[2]
    np.testing.assert_array_equal(tint_of(panel), SCORES < 5)
    assert panel.get_title(loc="left") == "Kept: 7 of 12 cells"


def test_the_threshold_is_marked_in_the_histogram_and_on_the_colour_bar():
    figure = draw(5.0)
    histogram, bar = figure.axes[3], figure.axes[1].child_axes[0]
    assert 5.0 in [line.get_xdata()[0] for line in histogram.lines]
    assert 5.0 in [line.get_ydata()[0] for line in bar.lines]


def test_no_bar_of_the_histogram_is_half_kept():
    edges = {bar.get_x() for bar in draw(5.0).axes[3].patches}
    assert min(abs(edge - 5.0) for edge in edges) < 1e-9


def test_the_histogram_counts_every_cell():
    assert sum(bar.get_height() for bar in draw().axes[3].patches) == SCORES.size


def test_given_cells_win_over_the_threshold():
    keep = np.zeros(SCORES.shape, bool)
    keep[0, 0] = True
    assert draw(5.0, keep).axes[2].get_title(loc="left") == "Kept: 1 of 12 cells"


def test_without_a_threshold_all_is_kept():
    figure = draw()
    assert figure.axes[2].get_title(loc="left") == "All cells kept"
    assert "No threshold is set" in caption_of(figure)


def test_the_border_between_kept_and_other_cells_is_drawn():
    # From 6 on are kept: the border runs along row 1 up to column 2, up one cell, and on along row 0.
    panel = draw(6.0).axes[2]
    (lines,) = [part for part in panel.collections if isinstance(part, LineCollection)]
    drawn = {tuple(np.asarray(segment).ravel()) for segment in lines.get_segments()}
    assert drawn == {
        (-0.5, 63.5, 31.5, 63.5),
        (31.5, 63.5, 63.5, 63.5),
        (63.5, 31.5, 63.5, 63.5),
        (63.5, 31.5, 95.5, 31.5),
        (95.5, 31.5, 127.5, 31.5),
    }


def test_two_maps_keep_what_reaches_both_thresholds():
    figure = draw_two(mean=3.0, std=40.0)
    both = (TWO["mean (intensity)"] >= 3) & (TWO["std (intensity)"] >= 40)
    np.testing.assert_array_equal(tint_of(figure.axes[3]), ~both)
    # Image, two maps, kept cells, two histograms; each histogram and bar has its own threshold.
    assert len(figure.axes) == 6
    for panel, histogram, threshold in zip(figure.axes[1:3], figure.axes[4:], (3.0, 40.0), strict=True):
        assert threshold in [line.get_xdata()[0] for line in histogram.lines]
        assert threshold in [line.get_ydata()[0] for line in panel.child_axes[0].lines]
    assert "3 in mean (intensity) and 40 in std (intensity)" in caption_of(figure)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_either_threshold_of_two_maps_may_be_absent(name):
    figure = draw_two(**{name: 5.0})
    np.testing.assert_array_equal(tint_of(figure.axes[3]), TWO[f"{name} (intensity)"] < 5)
    other = 5 if name == "mean" else 4
    assert not figure.axes[other].lines


def test_the_caption_says_what_is_kept_and_where_the_threshold_comes_from():
    said = caption_of(draw(5.0, plane_label="z = 13", origin="suggested from the scores of 26 planes"))
    assert "32 × 32 pixels" in said
    assert "threshold of 5 (suggested from the scores of 26 planes)" in said
    assert "7 of 12 (58 %)" in said
    assert draw(plane_label="z = 13").axes[0].get_title(loc="left") == "Image, z = 13"


def test_where_no_background_was_found_the_caption_says_so():
    said = caption_of(draw(0.0, origin="no background was found"))
    assert "Every cell here reaches the threshold of 0 (no background was found)" in said
    assert "blue" not in said


def test_a_threshold_far_above_all_scores_leaves_them_readable():
    figure = draw(4000.0)
    assert figure.axes[3].get_xlim()[1] < 20
    assert "above all scores" in figure.axes[3].get_legend().get_texts()[-1].get_text()
    assert figure.axes[2].get_title(loc="left") == "Kept: 0 of 12 cells"


def test_a_few_far_brighter_cells_do_not_hide_the_others():
    scores = np.array([[40, 50, 60, 55], [300, 320, 400, 350], [20000, 310, 330, 45.0]])
    figure = filter_map_figure(IMAGE, {"maximum": scores}, thresholds={"maximum": 120.0}, cell_shape=(32, 32))
    histogram = figure.axes[3]
    assert histogram.get_xscale() == "asinh"
    assert sum(bar.get_height() for bar in histogram.patches) == scores.size
    norm = figure.axes[1].images[-1].norm
    assert norm(350) - norm(50) > 0.15  # linear colours would leave 0.015
    # The negative control: evenly spread scores keep a linear axis.
    assert draw(5.0).axes[3].get_xscale() == "linear"


@pytest.mark.parametrize("scores", [np.full((3, 4), 2.0), np.full((3, 4), np.nan), np.zeros((3, 4))])
@pytest.mark.parametrize("threshold", [1.0, 2.0, -1e9, np.nan])
def test_a_map_without_contrast_is_drawn_all_the_same(scores, threshold):
    figure = filter_map_figure(IMAGE, {"x": scores}, thresholds={"x": threshold}, cell_shape=(32, 32))
    assert png_of(figure, dots_per_inch=30).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("shape", "cell"), [((20, 400), 20), ((400, 20), 20), ((3, 5), 2), ((30, 40), 64), ((1, 1), 1)]
)
@pytest.mark.parametrize("number", [1, 2])
def test_any_shape_of_image_is_drawn(shape, cell, number):
    image = np.random.default_rng(0).random(shape)
    cells = tuple(-(-size // cell) for size in shape)
    maps = {f"map {k}": np.random.default_rng(k).random(cells) for k in range(number)}
    figure = filter_map_figure(image, maps, thresholds={"map 0": 0.5}, cell_shape=(cell, cell))
    height = figure.get_size_inches()[1]
    assert 4 < height < 32
    assert png_of(figure, dots_per_inch=30).startswith(b"\x89PNG")


def test_cells_without_a_score_are_not_kept_and_named():
    scores = SCORES.copy()
    scores[0, 0] = np.nan
    figure = filter_map_figure(IMAGE, {"x": scores}, thresholds={"x": 0.0}, cell_shape=(32, 32))
    assert figure.axes[2].get_title(loc="left") == "Kept: 11 of 12 cells"
    assert "no score" in caption_of(figure)


def test_a_map_of_another_patch_size_is_refused():
    with pytest.raises(BadRequest, match=r"\(3, 4\) cells, expected \(5, 7\)"):
        filter_map_figure(IMAGE, {"x": SCORES}, cell_shape=(16, 16))


def test_a_stack_is_refused():
    with pytest.raises(BadRequest, match="not a plane"):
        filter_map_figure(np.zeros((2, 70, 100)), {"x": SCORES}, cell_shape=(32, 32))


def test_kept_cells_of_another_shape_are_refused():
    with pytest.raises(BadRequest, match="do not match"):
        draw(keep=np.ones((2, 2), bool))


def test_no_map_and_a_threshold_of_no_map_are_refused():
    with pytest.raises(BadRequest, match="no filter map"):
        filter_map_figure(IMAGE, {}, cell_shape=(32, 32))
    with pytest.raises(BadRequest, match="threshold of no map"):
        filter_map_figure(IMAGE, {"x": SCORES}, thresholds={"y": 1.0}, cell_shape=(32, 32))
