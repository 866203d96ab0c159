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
OTHER = ["uint32", "int32", "int64", "float32", "float64"]
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


@settings(max_examples=60, deadline=None)
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


@settings(max_examples=60, deadline=None)
@given(values_of(OTHER), st.integers(1, 59))
def test_other_dtypes_merge_to_their_bounds(values, cut):
    parts = [moments_of(p) for p in np.split(values, [min(cut, values.size)]) if p.size]
    merged, wide = reduce(Moments.merge, parts), values.astype(np.float64)
    scale = np.abs(wide).max()
    assert (merged.count, merged.minimum, merged.maximum) == (values.size, wide.min(), wide.max())
    assert merged.mean == pytest.approx(wide.mean(), rel=1e-12, abs=1e-12 * scale)
    assert merged.std == pytest.approx(wide.std(), rel=1e-9, abs=1e-9 * scale)
    assert merged.histogram.sum() == values.size
    for q in QUANTILES:
        assert merged.quantile(q) == pytest.approx(float(exact(values, q)), rel=1 / 128, abs=1e-37)


@settings(max_examples=40, deadline=None)
@given(values_of(["float32"]), st.sampled_from(QUANTILES))
def test_a_second_pass_makes_float_quantiles_exact(values, q):
    halves = np.array_split(values, 2)
    bin_number, rank = locate_quantile(sum(moments_of(h).histogram for h in halves if h.size), q)
    fine = sum(refined_histogram(h, bin_number) for h in halves)
    assert refined_value(bin_number, locate_rank(fine, rank)[0]) == exact(values, q)


@settings(max_examples=60, deadline=None)
@given(values_of(SMALL + OTHER))
def test_keys_keep_the_order_and_come_back(values):
    keys = ordered_key(values)
    np.testing.assert_array_equal(np.sort(keys), ordered_key(np.sort(values)))
    np.testing.assert_array_equal(from_ordered_key(keys, values.dtype), values)


@settings(max_examples=40, deadline=None)
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
