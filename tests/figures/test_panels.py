from __future__ import annotations

import numpy as np

from denoizarr.figures.panels import panels_figure


def test_all_panels_have_the_references_contrast():
    generator = np.random.default_rng(0)
    truth = generator.uniform(0, 1, (40, 50))
    figure = panels_figure(
        {"noisy": truth * 7 - 3, "truth": truth}, reference="truth", title="t", caption="c"
    )
    pictures = [axes.images[0] for axes in figure.axes]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["noisy", "truth"]
    assert pictures[0].get_clim() == pictures[1].get_clim()
    assert 0 <= pictures[0].get_clim()[0] < pictures[0].get_clim()[1] <= 1
