"""Stored regions, read as cells."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.errors import ImageNotFound, OutputExists
from denoizarr.kernels.regions import cells_from_regions
from denoizarr.selection import region_arrays
from denoizarr.selection.cells import Cells
from denoizarr.selection.region_arrays import CellValues, begin, finished, open_cells, packed, unpacked
from denoizarr.selection.scores import Score
from denoizarr.selection.sweeps import plan_sweep

CELLS = Cells(("t", "z", "y", "x"), (2, 5, 30, 41), (8, 8))
DEEP = Cells(("z", "y", "x"), (5, 30, 41), (2, 8, 8))
SCORES = (Score("mean_std"), Score("max"), Score("shannon"))


def filled(cells, destination=None, scores=SCORES):
    """Stored scores, and the values of their regions."""
    sweep = plan_sweep(cells, cells.shape, 2)
    stored = begin(destination, "key", sweep, scores, owned=False)
    rng = np.random.default_rng(0)
    values = {s.name: rng.normal(size=s.leading + cells.region_counts) for s in scores}
    for box in sweep.grid:
        parts = {s.name: values[s.name][(slice(None),) * len(s.leading) + box.slices] for s in scores}
        region_arrays.write(stored.group, cells, scores, box, parts)
    return stored, values


@settings(max_examples=60)
@given(st.data(), st.sampled_from([CELLS, DEEP]), st.sampled_from(SCORES))
def test_any_slice_of_the_cells_is_that_of_all_of_them(data, cells, score):
    stored, values = filled(cells)
    view = CellValues(stored.group[region_arrays._array_name(score, cells)])
    whole = cells_from_regions(values[score.name], cells.counts[cells.n_lead :])
    assert view.shape == whole.shape
    assert view.dims == (("statistic",) if score.leading else ()) + cells.dims
    index = tuple(data.draw(st.slices(n)) for n in whole.shape)
    index = tuple(
        slice(*part.indices(n)) if part.indices(n)[2] > 0 else slice(None)
        for part, n in zip(index, whole.shape, strict=True)
    )
    np.testing.assert_array_equal(view[index], whole[index])


@pytest.mark.parametrize("cells", [CELLS, DEEP], ids=["planes", "volumes"])
def test_a_lazy_map_of_stored_regions_is_in_pieces_of_bounded_size(monkeypatch, cells):
    monkeypatch.setattr(region_arrays, "_PIECE_CELLS", 7, raising=False)
    stored, values = filled(cells)
    for score in SCORES:
        lazy = finished(stored, score, cells)
        whole = cells_from_regions(values[score.name], cells.counts[cells.n_lead :])
        np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), whole)


def test_scores_cross_a_cluster_bit_for_bit():
    arrays = {
        "mean_std": np.random.default_rng(0).normal(size=(2, 3, 1, 4)),
        "max": np.array([[[-0.0, 5e-324, 1e308]]]),
    }
    back = unpacked(packed(arrays))
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name].view(np.int64), array.view(np.int64))


def test_stored_scores_are_found_by_name_and_kept_by_key(tmp_path):
    where = str(tmp_path / "scores")
    stored, values = filled(CELLS, where, (Score("max", 0.5), Score("mask")))
    assert stored.fresh
    sweep = plan_sweep(CELLS, CELLS.shape, 2)
    again = begin(where, "key", sweep, (Score("max", 0.5),), owned=False)
    assert not again.fresh
    whole = cells_from_regions(values["max"], CELLS.counts[CELLS.n_lead :])
    np.testing.assert_array_equal(open_cells(where, "max")[(slice(None),) * 4], whole)
    assert open_cells(where, "shannon") is None
    assert begin(where, "key", sweep, (Score("max", 0.1),), owned=False).fresh, (
        "another coverage is another score"
    )
    assert begin(where, "another key", sweep, (Score("max", 0.5),), owned=False).fresh
    assert np.isnan(open_cells(where, "max").regions[...]).all()
    with pytest.raises(ImageNotFound):
        open_cells(str(tmp_path / "nothing"), "max")


def test_an_array_of_somebody_else_is_not_written_over(tmp_path):
    where = str(tmp_path / "mine")
    zarr.create_array(where, shape=(3,), dtype="u1", chunks=(3,))
    with pytest.raises(OutputExists):
        begin(where, "key", plan_sweep(CELLS, CELLS.shape, 2), SCORES, owned=True)
