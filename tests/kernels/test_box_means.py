import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.kernels.box_means import box_means, window_means


@st.composite
def arrays_and_factors(draw):
    ndim = draw(st.integers(2, 3))
    shape = tuple(draw(st.integers(1, 9)) for _ in range(ndim))
    factors = tuple(draw(st.integers(1, 5)) for _ in range(ndim))
    dtype = draw(st.sampled_from(["u1", "i2", "<u2", ">u2", "u4", "i8", "f2", "f4", "f8", "?"]))
    values = np.random.default_rng(draw(st.integers(0, 99))).normal(50, 30, shape)
    return np.clip(values, 0, 120).astype(dtype), factors


def plain_means(values, factors):
    counts = [-(-n // f) for n, f in zip(values.shape, factors, strict=True)]
    found = np.empty(counts)
    for index in np.ndindex(*counts):
        box = tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factors, strict=True))
        found[index] = values[box].astype(float).mean()
    return found


@given(arrays_and_factors())
@settings(max_examples=40)
def test_box_means_are_the_means_of_the_voxels_present(case):
    values, factors = case
    np.testing.assert_allclose(box_means(values, factors), plain_means(values, factors), rtol=1e-13)


def test_a_box_has_the_same_bits_in_whatever_part_it_is_computed():
    values = np.random.default_rng(0).normal(size=(24, 36)).astype("f4")
    whole = box_means(values, (3, 4))
    np.testing.assert_array_equal(box_means(values[6:18, 8:], (3, 4)), whole[2:6, 2:])


def test_sums_of_integers_are_exact():
    values = np.full((64, 64), 2**32 - 1, np.uint32)
    values[0, 0] -= 1
    assert box_means(values, (64, 64))[0, 0] == 2**32 - 1 - 1 / 4096


@pytest.mark.parametrize("ndim", [2, 3])
def test_window_means(ndim):
    level = np.random.default_rng(0).random((11, 12, 13)[:ndim])
    starts = (np.array([0, 3, 7]), np.array([0, 2, 8]), np.array([1, 9]))[:ndim]
    widths = (4, 3, 2)[:ndim]
    found = window_means(level, starts, widths)
    assert found.shape == tuple(s.size for s in starts)
    for index in np.ndindex(*found.shape):
        window = tuple(slice(s[i], s[i] + w) for s, i, w in zip(starts, index, widths, strict=True))
        assert found[index] == pytest.approx(level[window].mean(), rel=1e-13)
    # The same bits from a part of the level.
    part = window_means(level[3:], (starts[0][1:] - 3, *starts[1:]), widths)
    np.testing.assert_array_equal(part, found[1:])
