"""The scores against their plain definition: explicit regions, explicit windows, numpy only."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from denoizarr.kernels.patch_scores import max_scores, mean_std_scores, shannon_scores


def spans(size, patch):
    """The regions along one axis: two neighbouring cells each, one region where there is one cell."""
    n = -(-size // patch)
    return [(0, size)] if n == 1 else [(k * patch, min((k + 2) * patch, size)) for k in range(n - 1)]


def by_definition(plane, patch, score):
    """Score every region, then give every cell the largest over the regions that cover it."""
    counts = [-(-s // p) for s, p in zip(plane.shape, patch, strict=True)]
    result = np.full(counts, -np.inf)
    for (y0, y1), (x0, x1) in product(spans(plane.shape[0], patch[0]), spans(plane.shape[1], patch[1])):
        value = score(plane[y0:y1, x0:x1])
        covered = result[y0 // patch[0] : -(-y1 // patch[0]), x0 // patch[1] : -(-x1 // patch[1])]
        np.maximum(covered, value, out=covered)
    return result


def entropy(values):
    _, counts = np.unique(values, return_counts=True)
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum())


def reached(region, patch, coverage):
    """The largest t such that at least ``coverage`` of the region's running maximum is >= t."""
    running = np.empty_like(region)
    for y, x in np.ndindex(region.shape):
        window = [slice(max(i - p // 2, 0), i - p // 2 + p) for i, p in zip((y, x), patch, strict=True)]
        running[y, x] = region[tuple(window)].max()
    candidates = [t for t in np.unique(running) if np.mean(running >= t) >= coverage - 1e-12]
    return max(candidates) if candidates else running.max()


SIZES = st.tuples(st.integers(1, 19), st.integers(1, 19))
PATCHES = st.tuples(st.integers(2, 6), st.integers(2, 6))
INTEGERS = st.sampled_from(["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64"])


@st.composite
def integer_planes(draw):
    """Planes of few and of many distinct values, at both ends of their dtype."""
    dtype = np.dtype(draw(INTEGERS))
    low = draw(st.sampled_from([np.iinfo(dtype).min, 0, np.iinfo(dtype).max - 40]))
    elements = (
        st.integers(low, low + 40)
        if draw(st.booleans())
        else st.integers(np.iinfo(dtype).min, np.iinfo(dtype).max)
    )
    return draw(arrays(dtype, draw(SIZES), elements=elements))


@settings(max_examples=60, deadline=None)
@given(integer_planes(), PATCHES)
def test_shannon_of_integers_is_its_definition(plane, patch):
    expected = by_definition(plane, patch, entropy)
    np.testing.assert_allclose(shannon_scores(plane, patch), expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(integer_planes(), PATCHES, st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_max_is_its_definition(plane, patch, coverage):
    expected = by_definition(plane, patch, lambda region: reached(region, patch, coverage))
    np.testing.assert_array_equal(max_scores(plane, patch, coverage), expected.astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(integer_planes(), PATCHES)
def test_mean_and_std_are_their_definition(plane, patch):
    values = plane.astype(np.float64)
    mean, std = mean_std_scores(plane, patch)
    scale = np.abs(values).max() + 1
    np.testing.assert_allclose(mean, by_definition(values, patch, np.mean), rtol=1e-6, atol=1e-7 * scale)
    np.testing.assert_allclose(std, by_definition(values, patch, np.std), rtol=1e-5, atol=1e-7 * scale)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["float32", "float64"]).flatmap(
        lambda d: arrays(
            d, SIZES, elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False).map(lambda v: v + 0.0)
        )
    ),
    PATCHES,
)
def test_floats_follow_the_same_definitions(plane, patch):
    low, high = -100.0, 900.0
    bins = np.clip(np.floor((plane.astype(np.float64) - low) * (256 / (high - low))), 0, 255)
    expected = by_definition(bins, patch, entropy)
    np.testing.assert_allclose(shannon_scores(plane, patch, (low, high)), expected, rtol=1e-6, atol=1e-6)
    running = by_definition(plane, patch, lambda region: reached(region, patch, 0.25))
    np.testing.assert_array_equal(max_scores(plane, patch), running.astype(np.float32))
    mean, std = mean_std_scores(plane, patch)
    scale = np.abs(plane).max() + 1
    np.testing.assert_allclose(
        mean, by_definition(plane.astype(float), patch, np.mean), rtol=1e-6, atol=1e-6 * scale
    )
    np.testing.assert_allclose(
        std, by_definition(plane.astype(float), patch, np.std), rtol=1e-5, atol=1e-6 * scale
    )


def test_a_small_spread_far_from_zero_is_not_lost():
    rng = np.random.default_rng(0)
    plane = rng.normal(1e6, 1.0, (40, 40))
    std = mean_std_scores(plane, (16, 16))[1]
    np.testing.assert_allclose(std, by_definition(plane, (16, 16), np.std), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_constant_plane_scores_the_same_everywhere(dtype):
    """Zero padding would turn 100 into 66 in a corner."""
    plane = np.full((70, 45), 100, dtype)
    bounds = (0.0, 200.0) if dtype == "float32" else None
    assert np.all(max_scores(plane, (16, 16)) == 100)
    mean, std = mean_std_scores(plane, (16, 16))
    assert np.all(mean == 100)
    assert np.all(std == 0)
    assert np.all(shannon_scores(plane, (16, 16), bounds) == 0)


def test_wide_and_narrow_ranges_give_the_same_entropy():
    """Full 16-bit noise takes another path than narrow data; relabelled values must not change it."""
    rng = np.random.default_rng(1)
    narrow = rng.integers(0, 300, (96, 96)).astype(np.uint16)
    wide = rng.permutation(65536).astype(np.uint16)[narrow]
    np.testing.assert_array_equal(shannon_scores(narrow, (16, 16)), shannon_scores(wide, (16, 16)))


def test_floats_without_bounds_are_a_mistake():
    with pytest.raises(TypeError, match="bounds"):
        shannon_scores(np.zeros((8, 8), np.float32), (4, 4))


def test_scores_do_not_depend_on_the_memory_layout():
    rng = np.random.default_rng(2)
    plane = rng.integers(0, 5000, (50, 33)).astype(np.uint16)
    for view in (np.asfortranarray(plane), np.repeat(plane, 2, axis=1)[:, ::2], plane.astype(">u2")):
        np.testing.assert_array_equal(max_scores(view, (8, 8)), max_scores(plane, (8, 8)))
        np.testing.assert_array_equal(shannon_scores(view, (8, 8)), shannon_scores(plane, (8, 8)))
        np.testing.assert_array_equal(mean_std_scores(view, (8, 8)), mean_std_scores(plane, (8, 8)))
