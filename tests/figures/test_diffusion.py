import numpy as np
import pytest

from denoizarr.errors import BadRequest
from denoizarr.figures.canvas import png_of
from denoizarr.figures.diffusion import mean_residual_figure, predicted_figure, volume_figure


def test_before_and_after_have_one_contrast():
    before = np.random.default_rng(0).normal(100, 10, (20, 30))
    figure = volume_figure(before, before * 0.5, -before * 0.5, title="t", caption="c")
    first, second, residual = (axes.images[0] for axes in figure.axes[:3])
    assert first.get_clim() == second.get_clim() != residual.get_clim()
    np.testing.assert_allclose(residual.get_array(), np.abs(before * 0.5))
    with pytest.raises(BadRequest, match="not a plane"):
        volume_figure(before[None], before, before, title="t", caption="c")


def test_outliers_are_named():
    figure = predicted_figure([0.9, 0.91, 0.3, np.nan], [2], [0, 1000, 1000, 0], title="t", caption="c")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["2"]
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {
        "b0",
        "diffusion-weighted",
        "outlier",
    }
    assert png_of(figure)[:4] == b"\x89PNG"


def test_nothing_looks_like_nothing_beside_the_noise():
    noise = np.full((10, 10), 5.0)
    figure = mean_residual_figure(np.zeros((10, 10)), noise, title="t", caption="c")
    assert figure.axes[0].images[0].get_clim() == (-5, 5)
