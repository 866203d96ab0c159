import numpy as np
import pytest
from matplotlib.collections import LineCollection

from denoizarr.errors import BadRequest
from denoizarr.figures import regions
from denoizarr.figures.canvas import png_of
from denoizarr.figures.regions import roi_patches_figure


def words(figure):
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))).replace("\n", " ")


def outlines(figure):
    return next(c for c in figure.axes[1].collections if isinstance(c, LineCollection)).get_segments()


def test_every_patch_is_outlined_around_whole_pixels():
    image = np.random.default_rng(0).random((40, 60))
    origins = np.array([(0, 0), (8, 30), (24, 44)])
    figure = roi_patches_figure(image, origins, (16, 12), n_all=10, where="z = 3")
    found = outlines(figure)
    assert len(found) == 3
    for segment, (y, x) in zip(found, origins, strict=True):
        np.testing.assert_array_equal(segment.min(0), (x - 0.5, y - 0.5))
        np.testing.assert_array_equal(segment.max(0), (x + 11.5, y + 15.5))
    text = words(figure)
    assert "n = 10" in text
    assert "z = 3" in text
    assert "other 7 lie on other planes" in text
    assert f"{3 * 16 * 12 / 2400:.0%}" in text
    assert png_of(figure).startswith(b"\x89PNG")


def test_too_many_to_draw_are_thinned_and_said_to_be(monkeypatch):
    monkeypatch.setattr(regions, "SHOWN_OUTLINES", 20)
    origins = np.stack(np.unravel_index(np.arange(900), (30, 30)), 1)
    figure = roi_patches_figure(np.ones((40, 40)), origins, (8, 8))
    assert len(outlines(figure)) == 20
    assert "Only 20 of the 900 are drawn" in words(figure)


def test_no_patch_at_all():
    figure = roi_patches_figure(np.ones((40, 40)), np.zeros((0, 2), int), (8, 8))
    assert "n = 0" in words(figure)
    assert png_of(figure)


def test_origins_must_be_of_a_plane():
    with pytest.raises(BadRequest, match="y, x"):
        roi_patches_figure(np.ones((9, 9)), np.zeros((3, 3)), (4, 4))
