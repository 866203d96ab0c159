from __future__ import annotations

import numpy as np
import pytest

from denoizarr.errors import BadRequest
from denoizarr.figures.z_scores import z_score_figure

SCORES = np.zeros((9, 9))
SCORES[4, [3, 5]] = 20.0
SCORES[3, 4] = SCORES[5, 4] = 2.0


def test_every_lag_is_drawn_once_and_the_hidden_ones_apart():
    figure = z_score_figure(SCORES, np.ones((1, 3), bool), 4.5)
    figure.draw_without_rendering()
    by_distance = figure.axes[1]
    drawn = {line.get_label(): line for line in by_distance.lines}
    assert drawn["hidden"].get_xdata().tolist() == [1.0]
    assert drawn["hidden"].get_ydata().tolist() == [3 * 4.5]
    assert len(drawn["not hidden"].get_xdata()) == 40 - 1
    assert 4.5 in [float(line.get_ydata()[0]) for line in by_distance.lines]


def test_scores_of_a_volume_are_refused():
    with pytest.raises(BadRequest, match="not a plane"):
        z_score_figure(np.zeros((3, 3, 3)), [[True]], 4.0)
