"""The scores of regions against their plain definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from denoizarr.kernels.patch_scores import (
    coverage_regions,
    default_coverage,
    max_regions,
    mean_std_regions,
    shannon_regions,
)
from denoizarr.kernels.regions import cell_counts, cells_from_regions
from tests.plain_scores import binned, by_cell, by_region, entropy, mean_of, reached, std_of

# A plane is a volume of one plane, and its patch is one along z.
PLANES = st.tuples(st.just(1), st.integers(1, 19), st.integers(1, 19))
VOLUMES = st.tuples(st.integers(1, 8), st.integers(1, 9), st.integers(1, 9))
FLAT = st.tuples(st.just(1), st.integers(2, 6), st.integers(2, 6))
DEEP = st.tuples(st.integers(1, 4), st.integers(2, 4), st.integers(2, 4))
CASES = st.one_of(st.tuples(PLANES, FLAT), st.tuples(VOLUMES, DEEP))
INTEGERS = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
FLOATS = ["float16", "float32", "float64"]
ORDERS = st.sampled_from(["<", ">"])


def integers_of(draw, dtype, shape):
    """Few or many distinct values, at both ends of the dtype."""
    if dtype.kind == "b":
        return draw(arrays(dtype, shape))
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    start = draw(st.sampled_from([low, 0, high - 40]))
    narrow = draw(st.booleans())
    return draw(
        arrays(dtype, shape, elements=st.integers(start, start + 40) if narrow else st.integers(low, high))
    )


@st.composite
def integer_volumes(draw):
    shape, patch = draw(CASES)
    volume = integers_of(draw, np.dtype(draw(st.sampled_from(INTEGERS))), shape)
    return volume.astype(volume.dtype.newbyteorder(draw(ORDERS))), patch


@st.composite
def float_volumes(draw):
    shape, patch = draw(CASES)
    dtype = np.dtype(draw(st.sampled_from(FLOATS)))
    largest = 1000.0 if dtype.itemsize == 2 else 1e6
    elements = st.floats(-largest, largest, width=16 if dtype.itemsize == 2 else 32)
    volume = draw(arrays(dtype, shape, elements=elements))
    return volume.astype(dtype.newbyteorder(draw(ORDERS))), patch


ANY_VOLUME = st.one_of(integer_volumes(), float_volumes())


def assert_moments(found, volume, patch):
    """Mean and standard deviation to 1e-12 of the largest value of each region."""
    scale = by_region(np.abs(volume.astype(np.float64)), patch, np.max)
    for got, score in zip(found, (mean_of, std_of), strict=True):
        expected = by_region(volume, patch, score)
        assert got.shape == expected.shape
        assert got.dtype == np.float64
        assert (np.abs(got - expected) <= 1e-12 * scale).all()


@settings(max_examples=100)
@given(integer_volumes())
def test_entropy_of_integers_is_its_definition(case):
    volume, patch = case
    expected = by_region(volume, patch, entropy)
    found = shannon_regions(volume, patch)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@settings(max_examples=60)
@given(float_volumes(), st.sampled_from([(-100.0, 900.0), (0.0, 1e-3), (-7.5, -7.25), (3.0, 3.0)]))
def test_entropy_of_floats_is_that_of_256_bins(case, bounds):
    volume, patch = case
    expected = by_region(binned(volume, bounds), patch, entropy)
    np.testing.assert_allclose(shannon_regions(volume, patch, bounds), expected, rtol=0, atol=1e-10)


@settings(max_examples=100)
@given(ANY_VOLUME, st.sampled_from([0.0, 0.1, 0.125, 0.25, 0.5, 1.0]))
def test_max_is_its_definition(case, coverage):
    volume, patch = case
    expected = by_region(volume, patch, lambda region: reached(region, patch, coverage))
    np.testing.assert_array_equal(max_regions(volume, patch, coverage), expected)


@settings(max_examples=100)
@given(ANY_VOLUME)
def test_mean_and_std_are_their_definition(case):
    volume, patch = case
    assert_moments(mean_std_regions(volume, patch), volume, patch)


@settings(max_examples=60)
@given(ANY_VOLUME)
def test_the_fraction_of_a_mask_is_its_definition(case):
    volume, patch = case
    expected = by_region(volume, patch, lambda region: np.count_nonzero(region) / region.size)
    np.testing.assert_array_equal(coverage_regions(volume, patch), expected)


@settings(max_examples=30)
@given(integer_volumes())
def test_the_value_of_a_cell_is_its_definition(case):
    volume, patch = case
    expected = by_cell(volume.shape, patch, by_region(volume, patch, entropy))
    found = cells_from_regions(shannon_regions(volume, patch), cell_counts(volume.shape, patch))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("coverage", [0.1, 0.3, 0.7, 1 / 3])
def test_a_coverage_that_is_no_binary_fraction_counts_whole_voxels(coverage):
    """0.1 of ten voxels is one, although 0.1 is a little more than a tenth."""
    volume = np.random.default_rng(0).integers(0, 1000, (1, 30, 40)).astype(np.uint16)
    for patch in [(1, 5, 5), (1, 10, 3), (1, 15, 7)]:
        expected = by_region(volume, patch, lambda region, p=patch: reached(region, p, coverage))
        np.testing.assert_array_equal(max_regions(volume, patch, coverage), expected)


@pytest.mark.parametrize("patch", [(1, 16, 16), (4, 8, 8)])
@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "int64", "float32", "float64"])
def test_a_small_spread_far_from_zero_is_not_lost(dtype, patch):
    offset = {"uint16": 60_000, "int16": -30_000}.get(dtype, 1e6)
    volume = np.random.default_rng(0).normal(offset, 3.0, (1 if patch[0] == 1 else 9, 40, 40)).astype(dtype)
    found = mean_std_regions(volume, patch)
    assert_moments(found, volume, patch)
    np.testing.assert_allclose(found[1], by_region(volume, patch, std_of), rtol=1e-10)


@pytest.mark.parametrize("outlier", [0, 65_535, 1e9, -1e15])
def test_an_outlier_in_the_first_voxel_of_a_cell_does_not_matter(outlier):
    rng = np.random.default_rng(1)
    dtype = np.uint16 if 0 <= outlier <= 65_535 else np.float64
    volume = rng.normal(1000, 5, (1, 40, 40)).astype(dtype)
    volume[:, ::16, ::16] = outlier
    assert_moments(mean_std_regions(volume, (1, 16, 16)), volume, (1, 16, 16))


def test_moments_of_the_widest_integers_do_not_overflow():
    """The squares of a cell of 2**20 voxels at both ends of 16 bits."""
    volume = np.zeros((1, 1024, 1024), np.uint16)
    volume[:, ::2] = 65_535
    mean, std = mean_std_regions(volume, (1, 1024, 1024))
    assert mean == 32_767.5
    assert std == 32_767.5


@settings(max_examples=40)
@given(CASES, st.sampled_from(INTEGERS + FLOATS), st.integers(0, 100))
def test_a_constant_volume_scores_the_same_everywhere(case, dtype, value):
    """Zero padding would turn 100 into 66 in a corner."""
    shape, patch = case
    volume = np.full(shape, value, dtype)
    value = float(volume.flat[0])
    bounds = (0.0, 200.0) if dtype in FLOATS else None
    assert (max_regions(volume, patch, 0.25) == value).all()
    mean, std = mean_std_regions(volume, patch)
    assert (mean == value).all()
    assert (std == 0).all()
    assert (shannon_regions(volume, patch, bounds) == 0).all()


@pytest.mark.parametrize("value", [0.1, 1e-300, 123456.789, -7.3e200])
def test_equal_floats_have_no_scatter_at_all(value):
    mean, std = mean_std_regions(np.full((3, 37, 41), value), (2, 8, 8))
    assert (mean == value).all()
    assert (std == 0).all()


@pytest.mark.parametrize("patch", [(1, 16, 16), (8, 16, 16)])
def test_wide_and_narrow_ranges_give_the_same_entropy(patch):
    """Full 16-bit noise takes another path than narrow data; relabelled values must not change it."""
    rng = np.random.default_rng(1)
    narrow = rng.integers(0, 300, (1 if patch[0] == 1 else 17, 96, 96)).astype(np.uint16)
    wide = rng.permutation(65536).astype(np.uint16)[narrow]
    expected = shannon_regions(narrow, patch)
    np.testing.assert_array_equal(shannon_regions(wide, patch), expected)
    # Wider integers: near one another, far from zero, and too far apart for 16 bits.
    np.testing.assert_array_equal(shannon_regions(narrow.astype(np.int64) - 2**40, patch), expected)
    apart = np.sort(rng.choice(2**31, 300, replace=False)).astype(np.uint32)[narrow]
    np.testing.assert_array_equal(shannon_regions(apart, patch), expected)


def test_entropy_of_all_distinct_values_is_log2_of_their_number():
    volume = np.random.default_rng(0).permutation(2**14).astype(np.uint16).reshape(1, 128, 128)
    np.testing.assert_allclose(shannon_regions(volume, (1, 64, 64)), 14, rtol=0, atol=1e-10)


def test_floats_without_bounds_are_a_mistake():
    with pytest.raises(TypeError, match="bounds"):
        shannon_regions(np.zeros((1, 8, 8), np.float32), (1, 4, 4))


def test_the_default_coverage_is_one_cell_of_a_region():
    assert default_coverage(2) == 0.25
    assert default_coverage(3) == 0.125


def all_scores(volume, patch):
    bounds = (0.0, 5000.0) if volume.dtype.kind == "f" else None
    return [
        max_regions(volume, patch, 0.25),
        mean_std_regions(volume, patch),
        shannon_regions(volume, patch, bounds),
        coverage_regions(volume, patch),
    ]


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_scores_do_not_depend_on_the_memory_layout(dtype):
    rng = np.random.default_rng(2)
    volume = rng.integers(0, 5000, (5, 26, 33)).astype(dtype)
    expected = all_scores(volume, (2, 8, 8))
    views = [
        np.asfortranarray(volume),
        np.repeat(volume, 2, axis=2)[:, :, ::2],
        volume[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
        volume.astype(volume.dtype.newbyteorder(">")),
        np.pad(volume, 3)[3:-3, 3:-3, 3:-3],
    ]
    for view in views:
        for found, wanted in zip(all_scores(view, (2, 8, 8)), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@settings(max_examples=40)
@given(ANY_VOLUME, st.integers(0, 2), st.integers(0, 5))
def test_a_region_depends_on_its_own_voxels_alone(case, axis, cut):
    """To the last bit: what lies before or behind a box of regions changes nothing in it."""
    volume, patch = case
    n = cell_counts(volume.shape, patch)[axis]
    assume(n >= 3)
    first = cut % (n - 2)
    start, stop = first * patch[axis], min((first + 3) * patch[axis], volume.shape[axis])
    part = volume[tuple(slice(start, stop) if a == axis else slice(None) for a in range(3))]
    for whole, found in zip(all_scores(volume, patch), all_scores(part, patch), strict=True):
        place = axis - 3
        np.testing.assert_array_equal(found, whole.take(range(first, first + found.shape[place]), place))
