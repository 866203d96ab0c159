from __future__ import annotations

import ast
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import denoizarr.figures
from denoizarr.figures import canvas
from denoizarr.figures.training_curves import training_curves_figure


def test_no_figure_touches_global_state():
    before = dict(mpl.rcParams)
    canvas.png_of(training_curves_figure({}))
    assert dict(mpl.rcParams) == before
    for module in Path(denoizarr.figures.__file__).parent.glob("*.py"):
        imports = [
            node
            for node in ast.walk(ast.parse(module.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        assert "pyplot" not in " ".join(ast.unparse(node) for node in imports), module


def test_the_same_figure_gives_the_same_bytes():
    first, second = (canvas.png_of(training_curves_figure({})) for _ in range(2))
    assert first == second


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20))
def test_reducing_keeps_the_mean_of_every_block(height, width, largest):
    image = np.arange(height * width, dtype=float).reshape(height, width)
    small = canvas.reduced(image, largest)
    assert max(small.shape) <= largest
    factor = -(-max(image.shape) // largest)
    assert small[-1, -1] == pytest.approx(
        image[(small.shape[0] - 1) * factor :, (small.shape[1] - 1) * factor :].mean()
    )


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.array([[1, 1, 1, 9]])])
def test_contrast_limits_differ(image):
    low, high = canvas.contrast_limits(image)
    assert low < high


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234.5, "1,234"),
        (0.12345, "0.123"),
        (12.345, "12.3"),
        (1e-9, "1.00e-09"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_are_short(value, text):
    assert canvas.short_number(value) == text
