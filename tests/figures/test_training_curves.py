from __future__ import annotations

import numpy as np
import pytest

from denoizarr.figures.canvas import png_of
from denoizarr.figures.training_curves import column_of, training_curves_figure


def rows(count, *, validation=True):
    return [
        {
            "epoch": str(n),
            "train_loss": str(1 / n),
            "validation_loss": str((n - 3) ** 2 + 0.5) if validation else "",
            "learning_rate": "0.001",
        }
        for n in range(1, count + 1)
    ]


def test_every_stage_has_its_column():
    figure = training_curves_figure({"Stage 1": rows(5), "Stage 2": rows(4)})
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Stage 1", "Stage 2", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "loss", "learning rate", "learning rate"]


def test_the_lines_are_the_log():
    axes = training_curves_figure({"Stage 1": rows(5)}).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(lines["training"].get_ydata(), 1 / np.arange(1, 6))
    np.testing.assert_allclose(lines["validation"].get_xdata(), np.arange(1, 6))
    assert lines["kept: epoch 3, loss 0.5"].get_xdata() == [3]


def test_without_validation_there_is_one_line():
    axes = training_curves_figure({"Stage 1": rows(5, validation=False)}).axes[0]
    assert [line.get_label() for line in axes.lines] == ["training"]


@pytest.mark.parametrize("stages", [{}, {"Stage 1": []}, {"Stage 1": rows(1)}, {"Stage 1": [{"epoch": "x"}]}])
def test_short_and_broken_logs_are_drawn(stages):
    assert png_of(training_curves_figure(stages)).startswith(b"\x89PNG")


def test_what_is_no_number_is_a_gap():
    np.testing.assert_array_equal(
        column_of([{"a": "1"}, {"a": ""}, {}, {"a": "nan"}], "a"), [1, np.nan, np.nan, np.nan]
    )
