from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.kernels.regions import (
    cell_counts,
    cells_from_regions,
    parts_of_regions,
    region_counts,
    region_voxels,
)
from tests.plain_scores import by_cell, by_region, spans

AXIS = st.tuples(st.integers(1, 23), st.integers(1, 6))
AXES = st.lists(AXIS, min_size=1, max_size=3)


@settings(max_examples=80)
@given(AXES)
def test_counts_and_extents_are_those_of_explicit_regions(axes):
    shape, patch = zip(*axes, strict=True)
    cells = cell_counts(shape, patch)
    explicit = [spans(size, step) for size, step in axes]
    assert cells == tuple(-(-size // step) for size, step in axes)
    assert region_counts(cells) == tuple(len(found) for found in explicit)
    np.testing.assert_array_equal(
        region_voxels(shape, patch), by_region(np.empty(shape, np.uint8), patch, np.size)
    )


@settings(max_examples=80)
@given(AXES, st.integers(0, 99))
def test_a_cell_has_the_largest_value_over_the_regions_that_cover_it(axes, seed):
    shape, patch = zip(*axes, strict=True)
    counts = cell_counts(shape, patch)
    regions = np.random.default_rng(seed).normal(size=region_counts(counts))
    expected = by_cell(shape, patch, regions)
    np.testing.assert_array_equal(cells_from_regions(regions, counts), expected)
    several = np.stack([regions, -regions])
    found = cells_from_regions(several, counts)
    assert found.dtype == regions.dtype
    np.testing.assert_array_equal(found, [expected, by_cell(shape, patch, -regions)])


@settings(max_examples=80)
@given(AXES)
def test_the_parts_of_regions_add_up_to_the_sum_over_each_region(axes):
    shape, patch = zip(*axes, strict=True)
    values = np.arange(np.prod(shape), dtype=np.int64).reshape(shape) + 1
    sums = values
    for axis, step in enumerate(patch):
        sums = np.add.reduceat(sums, np.arange(0, shape[axis], step), axis)
    found = sum(sums[part] for part in parts_of_regions(cell_counts(shape, patch)))
    np.testing.assert_array_equal(found, by_region(values, patch, np.sum))


@pytest.mark.parametrize("n_axes", [1, 2, 3])
def test_an_interior_cell_lies_in_two_regions_along_every_axis(n_axes):
    counts = (5,) * n_axes
    covered = np.zeros(counts, int)
    for index in np.ndindex(region_counts(counts)):
        single = np.zeros(region_counts(counts))
        single[index] = 1
        covered += cells_from_regions(single, counts).astype(int)
    assert covered[(2,) * n_axes] == 2**n_axes
    assert covered[(0,) * n_axes] == 1
