"""Which plane, which cells and which thresholds a plot of a map shows."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from denoizarr.errors import BadRequest
from denoizarr.figures import filter_maps as figures
from denoizarr.selection.filters import (
    MaskPatchFilter,
    MaxPatchFilter,
    MeanStdPatchFilter,
    ShannonPatchFilter,
)

KINDS = [MaxPatchFilter, MeanStdPatchFilter, ShannonPatchFilter, MaskPatchFilter]


@pytest.fixture
def drawn(monkeypatch):
    """What the figure is asked to show; it is drawn all the same."""
    calls, draw = [], figures.filter_map_figure

    def recorded(plane, maps, keep=None, **options):
        calls.append({"plane": np.asarray(plane), "maps": maps, "keep": keep, **options})
        return draw(plane, maps, keep, **options)

    monkeypatch.setattr(figures, "filter_map_figure", recorded)
    return calls


def image_5d():
    rng = np.random.default_rng(0)
    return xr.DataArray(rng.normal(200, 40, (2, 2, 5, 40, 70)), dims=("t", "c", "z", "y", "x"))


@pytest.mark.parametrize("patch", [(10, 8), (2, 10, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_plot_shows_the_chosen_plane_and_its_cells(drawn, kind, patch):
    image = image_5d()
    found = kind.filter_map(image, patch, ref_channel=1)
    kind.plot_filter_map(image, found, threshold=0.5, t_idx=1, z_idx=3)
    (shown,) = drawn
    thin = image.shape[-2] // shown["plane"].shape[0]
    np.testing.assert_array_equal(shown["plane"], image.values[1, 1, 3, ::thin, ::thin])
    assert shown["cell_shape"] == (10 // thin, 8 // thin)
    row = 3 if len(patch) == 2 else 1
    scores = found.isel(t=1, z=row).values
    maps = list(shown["maps"].values())
    np.testing.assert_array_equal(np.stack(maps) if len(maps) == 2 else maps[0], scores)
    np.testing.assert_array_equal(shown["keep"], maps[0] >= 0.5)
    assert list(shown["thresholds"].values()) == [0.5]
    assert "z = 3" in shown["plane_label"]


def test_the_middle_plane_of_the_first_time_is_shown_unless_told(drawn):
    image = image_5d()
    MaxPatchFilter.plot_filter_map(image, MaxPatchFilter.filter_map(image, 8, ref_channel=0))
    np.testing.assert_array_equal(drawn[0]["plane"], image.values[0, 0, 2])
    assert drawn[0]["keep"] is None


def test_a_plane_alone_is_shown_as_it_is(drawn):
    image = image_5d().values[0, 0, 0]
    MaxPatchFilter.plot_filter_map(image, MaxPatchFilter.filter_map(image, 8), threshold=250)
    np.testing.assert_array_equal(drawn[0]["plane"], image)


def test_two_thresholds_keep_what_reaches_both(drawn):
    image = image_5d().values[0, 0]
    found = MeanStdPatchFilter.filter_map(image, 8)
    MeanStdPatchFilter.plot_filter_map(image, found, threshold=200, std_threshold=40, z_idx=-1)
    mean, std = found.values[:, -1]
    np.testing.assert_array_equal(drawn[0]["keep"], (mean >= 200) & (std >= 40))
    MeanStdPatchFilter.plot_filter_map(image, found, std_threshold=40, z_idx=0)
    np.testing.assert_array_equal(drawn[1]["keep"], found.values[1, 0] >= 40)
    assert list(drawn[1]["thresholds"].values()) == [40]


def test_a_large_plane_is_thinned_by_a_part_of_a_patch(drawn):
    image = np.zeros((40, 5000), np.uint8)
    image[:, ::7] = 9
    MaxPatchFilter.plot_filter_map(image, MaxPatchFilter.filter_map(image, (20, 30)))
    height, width = drawn[0]["cell_shape"]
    thin = 20 // height
    assert thin > 1
    assert (height * thin, width * thin) == (20, 30)
    np.testing.assert_array_equal(drawn[0]["plane"], image[::thin, ::thin])


def test_plots_that_cannot_be_are_refused_by_name():
    image = image_5d()
    found = MaxPatchFilter.filter_map(image, 8, ref_channel=0)
    for index in ({"z_idx": 5}, {"z_idx": -6}, {"t_idx": 2}):
        with pytest.raises(BadRequest, match="no such plane"):
            MaxPatchFilter.plot_filter_map(image, found, **index)
    with pytest.raises(BadRequest, match="single threshold"):
        MaxPatchFilter.plot_filter_map(image, found, std_threshold=3.0)
    with pytest.raises(BadRequest, match="another image"):
        MaxPatchFilter.plot_filter_map(image.isel(y=slice(0, 20)), found)
