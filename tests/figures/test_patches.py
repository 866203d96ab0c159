from __future__ import annotations

import numpy as np
import pytest

from denoizarr.errors import BadRequest
from denoizarr.figures.canvas import png_of
from denoizarr.figures.patches import patch_origins_figure

IMAGE = np.random.default_rng(0).poisson(50, (120, 200)).astype(np.uint16)


def test_outlines_surround_whole_pixels():
    outlines = patch_origins_figure(IMAGE, [(10, 20)], (16, 32)).axes[0].collections[0].get_segments()
    assert outlines[0].min(axis=0).tolist() == [19.5, 9.5]
    assert outlines[0].max(axis=0).tolist() == [51.5, 25.5]


def test_examples_are_the_patches():
    origins = np.array([(0, 0), (50, 60)])
    panels = patch_origins_figure(IMAGE, origins, (16, 32)).axes[1:]
    shown = [np.asarray(panel.images[0].get_array()) for panel in panels if panel.images]
    assert len(shown) == 2
    np.testing.assert_array_equal(shown[1], IMAGE[50:66, 60:92])


def test_examples_have_the_contrast_of_the_plane():
    axes = patch_origins_figure(IMAGE, [(0, 0)], (16, 16)).axes
    assert axes[0].images[0].get_clim() == axes[1].images[0].get_clim()


def test_thousands_of_patches_stay_readable():
    origins = np.random.default_rng(0).integers(0, 100, (5000, 2))
    figure = patch_origins_figure(IMAGE, origins, (8, 8))
    assert len(figure.axes[0].collections[0].get_segments()) == 200
    assert "200 training patches" in " ".join(figure.get_supxlabel().split())


def test_large_patches_do_not_hide_the_plane():
    origins = np.random.default_rng(0).integers(0, 80, (500, 2))
    figure = patch_origins_figure(IMAGE, origins, (32, 32))
    assert len(figure.axes[0].collections[0].get_segments()) == round(IMAGE.size / 32**2)


def test_no_patch_is_said():
    figure = patch_origins_figure(IMAGE, np.zeros((0, 2), int), (16, 16))
    assert "No patch" in figure.axes[1].texts[0].get_text()
    assert png_of(figure)


def test_origins_of_another_shape_are_refused():
    with pytest.raises(BadRequest, match="table"):
        patch_origins_figure(IMAGE, np.zeros((4, 3)), (16, 16))
