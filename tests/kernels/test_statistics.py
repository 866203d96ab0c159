from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from denoizarr.kernels.statistics import (
    Moments,
    from_ordered_key,
    locate_quantile,
    locate_rank,
    moments_of,
    ordered_key,
    refined_histogram,
    refined_value,
)

SMALL = ["uint8", "int8", "uint16", "int16", "bool"]
OTHER = ["uint32", "int32", "uint64", "int64", "float32", "float64"]
QUANTILES = [0.0, 0.001, 0.3, 0.5, 0.999, 1.0]


@st.composite
def values_of(draw, dtypes):
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    if dtype.kind == "f":
        elements = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
    elif dtype.kind == "b":
        elements = st.booleans()
    else:
        elements = st.integers(np.iinfo(dtype).min, np.iinfo(dtype).max)
    return draw(arrays(dtype, st.integers(1, 60), elements=elements))


def exact(values, q):
    return np.quantile(
        values.astype(values.dtype if values.dtype.kind != "b" else np.uint8), q, method="inverted_cdf"
    )


@settings(max_examples=60)
@given(values_of(SMALL), st.lists(st.integers(1, 59), max_size=3))
def test_small_integers_are_exact_in_any_order(values, cuts):
    parts = [moments_of(p) for p in np.split(values, sorted(c for c in cuts if c < values.size)) if p.size]
    whole = moments_of(values)
    for merged in (reduce(Moments.merge, parts), reduce(Moments.merge, parts[::-1])):
        assert (merged.count, merged.minimum, merged.maximum) == (values.size, values.min(), values.max())
        assert (merged.mean, merged.scatter) == (whole.mean, whole.scatter)
        np.testing.assert_array_equal(merged.histogram, whole.histogram)
    numbers = [int(v) for v in values]
    assert whole.mean == sum(numbers) / len(numbers)
    assert whole.std == pytest.approx(np.std(numbers), rel=1e-12, abs=1e-12)
    for q in QUANTILES:
        assert whole.quantile(q) == exact(values, q)


@settings(max_examples=60)
@given(values_of(OTHER), st.integers(1, 59))
def test_other_dtypes_merge_to_their_bounds(values, cut):
    parts = [moments_of(p) for p in np.split(values, [min(cut, values.size)]) if p.size]
    merged, wide = reduce(Moments.merge, parts), values.astype(np.float64)
    scale = np.abs(wide).max()
    assert (merged.count, merged.minimum, merged.maximum) == (values.size, wide.min(), wide.max())
    assert merged.mean == pytest.approx(wide.mean(), rel=1e-12, abs=1e-12 * scale)
    assert merged.std == pytest.approx(wide.std(), rel=1e-9, abs=1e-12 * scale)
    assert merged.histogram.sum() == values.size
    for q in QUANTILES:
        assert merged.quantile(q) == pytest.approx(float(exact(values, q)), rel=1 / 128, abs=1e-37)


@settings(max_examples=40)
@given(values_of(["float32"]), st.sampled_from(QUANTILES))
def test_a_second_pass_makes_float_quantiles_exact(values, q):
    halves = np.array_split(values, 2)
    bin_number, rank = locate_quantile(sum(moments_of(h).histogram for h in halves if h.size), q)
    fine = sum(refined_histogram(h, bin_number) for h in halves)
    assert refined_value(bin_number, locate_rank(fine, rank)[0]) == exact(values, q)


@settings(max_examples=60)
@given(values_of(SMALL + OTHER))
def test_keys_keep_the_order_and_come_back(values):
    keys = ordered_key(values)
    np.testing.assert_array_equal(np.sort(keys), ordered_key(np.sort(values)))
    np.testing.assert_array_equal(from_ordered_key(keys, values.dtype), values)


@settings(max_examples=40)
@given(values_of(SMALL + OTHER))
def test_json_brings_back_the_same_bits(values):
    found = moments_of(values)
    back = Moments.from_json(found.to_json())
    for name in ("dtype", "count", "non_finite", "minimum", "maximum", "mean", "scatter"):
        assert getattr(back, name) == getattr(found, name)
    np.testing.assert_array_equal(back.histogram, found.histogram)


def test_non_finite_values_are_counted_and_left_out():
    values = np.array([1.0, np.nan, 3.0, np.inf, -np.inf], np.float32)
    found = moments_of(values)
    assert (found.count, found.non_finite, found.minimum, found.maximum, found.mean) == (2, 3, 1, 3, 2)
    nothing = moments_of(np.full(3, np.nan))
    assert (nothing.count, nothing.non_finite) == (0, 3)
    assert Moments.from_json(nothing.to_json()).merge(moments_of(np.array([2.0, 4.0]))).mean == 3


def test_sums_beyond_64_bits_are_exact():
    """2**40 voxels of the largest value: their squares sum to 2**72."""
    one = moments_of(np.full(1 << 20, 65535, np.uint16)).merge(moments_of(np.zeros(1 << 20, np.uint16)))
    many = reduce(Moments.merge, [one] * 2)
    for _ in range(18):
        many = many.merge(many)
    assert many.count == 1 << 40
    assert many.mean == 65535 / 2
    assert many.std == 65535 / 2


def test_a_small_spread_far_from_zero_is_not_lost():
    rng = np.random.default_rng(0)
    values = rng.normal(1e9, 1.0, 10_000)
    found = reduce(Moments.merge, [moments_of(p) for p in np.array_split(values, 7)])
    assert found.std == pytest.approx(values.std(), rel=1e-7)


@settings(max_examples=40)
@given(values_of(SMALL), st.sampled_from(["<", ">"]))
def test_the_histogram_of_small_integers_has_a_bin_for_every_value(values, order):
    offset = 0 if values.dtype.kind == "b" else int(np.iinfo(values.dtype).min)
    expected = np.bincount(values.astype(np.int64) - offset, minlength=65536)
    found = moments_of(values.astype(values.dtype.newbyteorder(order)))
    np.testing.assert_array_equal(found.histogram, expected)


def histogram_by_definition(values):
    """By the top 16 bits of the float32 value's key: set the sign bit, or invert all bits of a negative."""
    narrow = np.clip(values.astype(np.float64), -3.4028234663852886e38, 3.4028234663852886e38)
    bits = (narrow.astype(np.float32) + np.float32(0)).view(np.uint32).astype(np.int64)
    keys = np.where(bits >> 31, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    return np.bincount(keys >> 16, minlength=65536)


@st.composite
def floats_of_all_sorts(draw):
    dtype = np.dtype(draw(st.sampled_from(["float16", "float32", "float64"])))
    width = 8 * dtype.itemsize
    largest = {16: 6e4, 32: 2.0**100, 64: 1e100}[width]
    odd = st.sampled_from([np.nan, np.inf, -np.inf, -0.0, 0.0])
    usual = st.floats(-largest, largest, width=width).map(dtype.type)
    values = draw(st.lists(st.one_of(usual, usual, odd), min_size=1, max_size=60))
    return np.array(values, dtype.newbyteorder(draw(st.sampled_from(["<", ">"]))))


@settings(max_examples=80)
@given(floats_of_all_sorts())
def test_the_pass_over_floats_is_numpys(values):
    found = moments_of(values)
    finite = values[np.isfinite(values)].astype(np.float64)
    assert (found.count, found.non_finite) == (finite.size, values.size - finite.size)
    np.testing.assert_array_equal(found.histogram, histogram_by_definition(finite))
    if finite.size:
        scale = np.abs(finite).max()
        wide = finite.astype(np.longdouble)
        assert (found.minimum, found.maximum) == (finite.min(), finite.max())
        assert found.mean == pytest.approx(float(wide.mean()), rel=1e-12, abs=1e-12 * scale)
        assert found.std == pytest.approx(
            float(wide.std()), rel=1e-9, abs=max(1e-12 * scale, 1e-150)
        )  # squares below 1e-300 vanish


@pytest.mark.parametrize("size", [1, 2047, 2048, 2049, 4096, 10_001])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint32"])
def test_no_voxel_is_lost_between_the_pieces_of_a_pass(size, dtype):
    values = np.random.default_rng(size).normal(5000, 900, size).astype(dtype)
    if values.dtype.kind == "f":
        values[:: 7 if size > 7 else 2] = np.nan
    found, finite = moments_of(values), values[np.isfinite(values)].astype(np.float64)
    assert (found.count, found.non_finite) == (finite.size, size - finite.size)
    np.testing.assert_array_equal(found.histogram, histogram_by_definition(finite))
    if finite.size:
        assert found.mean == pytest.approx(finite.mean(), rel=1e-13)
        assert found.std == pytest.approx(finite.std(), rel=1e-12)
        assert (found.minimum, found.maximum) == (finite.min(), finite.max())


def test_negative_zero_is_zero():
    found, plain = moments_of(np.array([-0.0, 1.0])), moments_of(np.array([0.0, 1.0]))
    np.testing.assert_array_equal(found.histogram, plain.histogram)
    assert found.quantile(0.5) == plain.quantile(0.5)


def test_values_that_vanish_in_float32_are_found_again_by_the_second_pass():
    """They round to negative zero: both passes must count them as zero."""
    values = np.array([-1e-300] * 5 + [1.0])
    bin_number, rank = locate_quantile(moments_of(values).histogram, 0.5)
    assert refined_value(bin_number, locate_rank(refined_histogram(values, bin_number), rank)[0]) == 0


def test_values_beyond_float32_stay_in_the_end_bins():
    values = np.array([-1e300, -1e39, 1.0, 1e39, 1e300])
    found = moments_of(values)
    assert (found.count, found.non_finite, found.minimum, found.maximum) == (5, 0, -1e300, 1e300)
    assert found.histogram[: 1 << 15].sum() == 2
    assert found.histogram[1 << 15 :].sum() == 3
    assert found.quantile(0.5) == pytest.approx(1, rel=1 / 128)
    assert found.quantile(1.0) > 3e38


def test_a_pass_does_not_depend_on_shape_or_layout():
    values = np.random.default_rng(3).normal(0, 100, (7, 31, 40)).astype(np.float32)
    expected = moments_of(values)
    for same in (values.ravel(), values.astype(">f4"), np.repeat(values, 2, axis=0)[::2]):
        found = moments_of(same)
        assert (found.mean, found.scatter) == (expected.mean, expected.scatter)
        np.testing.assert_array_equal(found.histogram, expected.histogram)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_values_have_no_scatter_at_all(dtype):
    parts = [moments_of(np.full(size, 0.1, dtype)) for size in (3000, 17, 2048)]
    merged = reduce(Moments.merge, parts)
    assert merged.mean == float(np.dtype(dtype).type(0.1))
    assert merged.scatter == 0
