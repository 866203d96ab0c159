from __future__ import annotations

import numpy as np

from denoizarr.figures.canvas import png_of
from denoizarr.figures.sample_predictions import sample_predictions_figure


def planes(count, seed=0):
    return list(np.random.default_rng(seed).normal(100, 10, (count, 16, 24)))


def test_a_row_is_a_patch_its_prediction_and_their_difference():
    noisy, predicted = planes(3), planes(3, seed=1)
    figure = sample_predictions_figure(noisy, predicted, ["y 1", "y 2", "y 3"])
    panels = figure.axes[:9]
    assert [axes.get_title(loc="left") for axes in panels[:3]] == [
        "noisy",
        "prediction",
        "noisy − prediction",
    ]
    for row in range(3):
        shown = [axes.images[0].get_array() for axes in panels[3 * row : 3 * row + 3]]
        np.testing.assert_allclose(shown[0], noisy[row])
        np.testing.assert_allclose(shown[1], predicted[row])
        np.testing.assert_allclose(shown[2], noisy[row] - predicted[row])
        assert panels[3 * row].images[0].get_clim() == panels[3 * row + 1].images[0].get_clim()
        assert panels[3 * row].get_ylabel() == f"y {row + 1}"
    limits = {panels[3 * row + 2].images[0].get_clim() for row in range(3)}
    assert len(limits) == 1
    low, high = limits.pop()
    assert low == -high


def test_with_a_target_the_difference_is_to_the_target():
    noisy, predicted, targets = planes(2), planes(2, seed=1), planes(2, seed=2)
    figure = sample_predictions_figure(noisy, predicted, ["a", "b"], targets=targets)
    titles = [axes.get_title(loc="left") for axes in figure.axes[:4]]
    assert titles == ["noisy", "prediction", "target", "target − prediction"]
    np.testing.assert_allclose(figure.axes[3].images[0].get_array(), targets[0] - predicted[0])


def test_constant_patches_are_drawn():
    flat = [np.full((8, 8), 7.0)]
    assert png_of(sample_predictions_figure(flat, flat, ["y 0"])).startswith(b"\x89PNG")


def test_a_target_on_other_grey_levels_leaves_the_noisy_patch_its_own_contrast():
    noisy, predicted, targets = planes(2), planes(2, seed=1), planes(2, seed=2)
    predicted, targets = ([plane / 1000 for plane in group] for group in (predicted, targets))
    figure = sample_predictions_figure(noisy, predicted, ["a", "b"], targets=targets)
    for row in range(2):
        own, of_prediction, of_target, _ = (
            axes.images[0].get_clim() for axes in figure.axes[4 * row : 4 * row + 4]
        )
        assert of_prediction == of_target
        assert of_target[1] < 1 < own[0]
    caption = " ".join(figure.get_supxlabel().split())
    assert "Prediction and target of a row share one contrast" in caption
    assert "All pictures of a row" not in caption
