from __future__ import annotations

import numpy as np
import pytest

from denoizarr.figures.signal_loss import signal_loss_figure

BANDS = {
    "scales": (0, 1, 2, 4, 8),
    "by_scale": [np.nan, 0.2, 0.1, 0.05],
    "by_scale_error": [np.nan, 0.01, 0.01, 0.01],
    "floor_by_scale": [0.9, 0.8, 0.4, 0.2],
}
LEFT = (("raw", "removed", "output"), (0.4, 0.45, 0.001), (0.01, 0.01, 0.0005), "share")


def figure_of(share=0.03, error=0.002, reading="good", **more):
    return signal_loss_figure(share, error, (0.05, 0.08), reading, **{**BANDS, **more})


def test_the_pointer_stands_at_the_share():
    axes = figure_of(0.12).axes[0]
    assert 0.12 in [float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 1]
    low, high = axes.get_xlim()
    assert low < 0 < 0.12 < high


@pytest.mark.parametrize("share", [-0.4, 0.0, 0.9])
def test_any_share_is_on_the_gauge(share):
    low, high = figure_of(share, 0.02).axes[0].get_xlim()
    assert low < share - 0.04 < share + 0.04 < high


def test_what_cannot_be_told_has_no_pointer():
    gauge = figure_of(np.nan, np.inf, "cannot tell").axes[0]
    assert not [line for line in gauge.lines if len(line.get_xdata()) == 1]
    assert "cannot tell" in gauge.get_title(loc="left")


def test_a_band_that_cannot_be_told_says_so():
    by_size = figure_of().axes[1]
    assert [text.get_text() for text in by_size.texts] == ["cannot\nbe told"]
    assert [label.get_text() for label in by_size.get_xticklabels()] == [
        "below 1", "1 to 2", "2 to 4", "4 to 8",
    ]  # fmt: skip


def test_nothing_known_by_scale_still_draws():
    nothing = np.full(4, np.nan)
    figure = figure_of(by_scale=nothing, by_scale_error=nothing, floor_by_scale=nothing)
    figure.draw_without_rendering()
    assert len(figure.axes[1].texts) == 4


def test_bars_are_there_when_given():
    assert len(figure_of().axes) == 2
    figure = figure_of(left=LEFT)
    bars = figure.axes[2]
    assert [bar.get_height() for bar in bars.patches] == [0.4, 0.45, 0.001]
    assert [text.get_text() for text in bars.texts] == ["0.4", "0.45", "0.001"]
