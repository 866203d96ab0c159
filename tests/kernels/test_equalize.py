from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import exposure

from denoizarr.kernels import equalize as kernel


def parts(shape, cut):
    for start in product(*[range(0, n, c) for n, c in zip(shape, cut, strict=True)]):
        yield start, tuple(slice(a, a + c) for a, c in zip(start, cut, strict=True))


def adaptive(values, cut):
    shape = values.shape
    low, high = float(values.min()), float(values.max())
    counts = np.zeros((*kernel.tile_counts_shape(shape), kernel.TILE_BINS), np.int64)
    for start, part in parts(shape, cut):
        first, found = kernel.tile_counts(kernel.grey_levels(values[part], low, high), start, shape)
        counts[tuple(slice(a, a + n) for a, n in zip(first, found.shape, strict=False))] += found
    maps = kernel.tile_maps(counts, shape)
    levels = np.empty(shape)
    for start, part in parts(shape, cut):
        levels[part] = kernel.apply_tile_maps(kernel.grey_levels(values[part], low, high), maps, start, shape)
    low, high = levels.min(), levels.max()
    return (levels - low) / (high - low) if high > low else np.clip(levels, 0, 1)


@st.composite
def planes(draw):
    ndim = draw(st.integers(2, 3))
    shape = tuple(draw(st.integers(2, 130 if ndim == 2 else 24)) for _ in range(ndim))
    if ndim == 3 and shape[-1] in (3, 4):
        shape = (*shape[:-1], 5)  # scikit-image would take these for colours
    values = np.random.default_rng(draw(st.integers(0, 99))).random(shape) ** draw(
        st.sampled_from([0.3, 1, 4])
    )
    if draw(st.booleans()):
        values = np.sort(values, axis=0)
    if draw(st.booleans()):  # flat parts: bins far above the clip limit
        values = np.round(values * draw(st.integers(2, 30))) / 30
        values[(0,) * ndim], values[(-1,) * ndim] = 0.0, 1.0
    cut = tuple(draw(st.integers(1, n)) for n in shape)
    return values * draw(st.sampled_from([1.0, 0.5, 0.01])), cut


@given(planes())
@settings(max_examples=60)
def test_adaptive_equalisation_equals_scikit_images_however_it_is_cut(case):
    values, cut = case
    np.testing.assert_allclose(adaptive(values, cut), exposure.equalize_adapthist(values), atol=1e-12)


def test_a_smooth_plane_with_clipped_bins():
    y, x = np.mgrid[:150, :210]
    values = np.exp(-((y - 70) ** 2 + (x - 30) ** 2) / 3000)
    values[100:, 100:] = 0.5  # a flat part: bins far above the limit
    np.testing.assert_allclose(adaptive(values, (64, 50)), exposure.equalize_adapthist(values), atol=1e-12)


@given(
    st.integers(0, 99),
    st.integers(1, 9),
    st.sampled_from([1e-3, 1.0, 3e4]),
    st.sampled_from([-5.0, 0.0, 1e5]),
)
@settings(max_examples=40)
def test_global_equalisation_equals_scikit_images_in_any_parts(seed, n_parts, scale, offset):
    values = np.random.default_rng(seed).normal(size=(31, 40)) * scale + offset
    low, high = float(values.min()), float(values.max())
    pieces = np.array_split(values, n_parts)
    counts = sum(kernel.counts_between(p, low, high) for p in pieces)
    np.testing.assert_array_equal(counts, np.histogram(values, kernel.N_BINS)[0])
    table = kernel.Equalisation.of_counts(counts, low, high)
    expected = exposure.equalize_hist(values, kernel.N_BINS)
    np.testing.assert_allclose(np.concatenate([table.apply(p) for p in pieces]), expected, atol=1e-12)


def test_values_on_the_edges_of_bins_are_counted_as_numpy_counts_them():
    edges = np.linspace(-0.1, 0.7, kernel.N_BINS + 1)
    values = np.concatenate([edges, np.nextafter(edges[1:], -1), np.nextafter(edges[:-1], 1)])
    np.testing.assert_array_equal(
        kernel.counts_between(values, -0.1, 0.7), np.histogram(values, kernel.N_BINS, (-0.1, 0.7))[0]
    )


def test_a_constant_plane_keeps_its_level():
    grey = kernel.grey_levels(np.full((4, 4), 0.5), 0.5, 0.5)
    assert np.unique(grey).size == 1


@pytest.mark.parametrize("shape", [(3, 7), (64, 64), (9, 100)])
def test_reflected_pixels_are_counted_once_per_voxel_of_their_tile(shape):
    counts = kernel.tile_counts(np.zeros(shape, np.uint16), (0, 0), shape)[1]
    assert (counts.sum(-1) == np.prod(kernel.tile_shape(shape))).all()
