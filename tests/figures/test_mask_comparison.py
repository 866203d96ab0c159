from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import denoizarr
from denoizarr.errors import BadRequest
from denoizarr.figures.mask_comparison import compare_masks

ROW, PIXEL = np.ones((1, 5), bool), np.ones((1, 1), bool)
CROSS = np.zeros((5, 5), bool)
CROSS[2] = CROSS[:, 2] = True


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_masks_are_drawn_on_one_extent_and_counted():
    figure = compare_masks(ROW, CROSS, labels=["lenient", "strict"])
    assert titles(figure) == [
        "lenient\n5 pixels", "strict\n9 pixels, 56% shared", "together\nhidden by 1 (light) to 2 (dark)"
    ]  # fmt: skip
    extents = {tuple(axes.images[0].get_extent()) for axes in figure.axes}
    assert extents == {(-3.5, 3.5, 3.5, -3.5)}
    together = np.asarray(figure.axes[2].images[0].get_array())
    assert together[3, 5] == 1
    assert together[5, 3] == 0.5
    assert {text.get_text() for text in figure.axes[2].texts} == {"1", "2"}


def test_one_mask_and_the_same_twice():
    assert titles(compare_masks(PIXEL)) == ["mask 1\n1 pixel"]
    assert "same as the first" in titles(compare_masks(ROW, ROW))[1]


def test_kernels_and_volumes_are_taken():
    volume = np.ones((3, 1, 5), bool)
    figure = denoizarr.compare_masks(SimpleNamespace(mask=ROW), volume)
    assert titles(figure)[1] == "mask 2\n15 pixels, 33% shared"
    assert "(z, y, x)" in " ".join(figure.get_supxlabel().split())


@pytest.mark.parametrize(
    ("masks", "labels", "message"),
    [
        ((), None, "nothing to compare"),
        ((ROW,) * 13, None, "1 to 12"),
        ((ROW, CROSS), ["one"], "one label for each"),
        ((np.ones((1, 4)),), None, "no centre"),
        ((np.zeros((1, 3)),), None, "hides its own centre"),
        ((np.full((1, 3), 7),), None, "0 and 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(masks, labels, message):
    with pytest.raises(BadRequest, match=message):
        compare_masks(*masks, labels=labels)
