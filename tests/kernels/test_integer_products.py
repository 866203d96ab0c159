import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoizarr.kernels import integer_products
from denoizarr.kernels.integer_products import DeviationProducts
from denoizarr.kernels.scatter import scatter_of_parts

# The farthest that deviations may lie for sums of 128 products to fit into 32 bits.
FARTHEST = int(np.sqrt((2**31 - 1) / 128))


@pytest.mark.parametrize("order", ["C", "F", "strided"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", ">i2"])
@given(
    m=st.integers(1, 5), v=st.integers(1, 700), spread=st.integers(1, 2 * FARTHEST), seed=st.integers(0, 99)
)
def test_they_are_those_of_wide_integers(dtype, order, m, v, spread, seed):
    limits, rng = np.iinfo(dtype), np.random.default_rng(seed)
    lowest = int(rng.integers(limits.min, max(limits.max - spread, limits.min) + 1))
    rows = rng.integers(
        lowest, min(lowest + spread, limits.max), (m, v), np.dtype(dtype).newbyteorder("="), endpoint=True
    )
    rows = rows.astype(dtype)
    rows = np.repeat(rows, 2, axis=1)[:, ::2] if order == "strided" else np.asarray(rows, order=order)
    products = DeviationProducts(rows)
    parts = [part for part in np.array_split(rows, 3, axis=1) if part.shape[1]]
    added = [part for part in parts if products.add(part)]
    # The middle comes from one voxel of sixteen, so the farthest may lie up to twice as far from it.
    if spread < FARTHEST:
        assert len(added) == len(parts)
    together = np.concatenate([np.zeros((m, 0), dtype), *added], axis=1)
    sums, found = products.take_about_zero()
    wide = together.astype(np.int64)
    assert np.array_equal(sums, wide.sum(axis=1))
    assert np.array_equal(found, wide @ wide.T)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_farthest_that_fit_do_not_overflow_and_what_is_farther_is_refused(sign):
    near = np.zeros((2, 1024), np.int16)
    far = np.full((2, 1024), sign * FARTHEST, np.int16)
    products = DeviationProducts(near)
    assert products.add(far)
    assert not products.add(np.full((2, 8), sign * (FARTHEST + 1), np.int16))
    assert np.array_equal(products.take_about_zero()[1], np.full((2, 2), 1024 * FARTHEST**2))
    # The control: where it is not asked, they do overflow.
    deviations = np.full((3, 1024), sign * 32767, np.int16)
    total = np.zeros((3, 3), np.int64)
    integer_products._add_products(deviations, 1024, 1024, total)
    assert total[0, 0] != 1024 * 32767**2


def test_values_of_the_whole_range_of_two_bytes_are_refused_not_wrapped():
    rows = np.array([[0] * 40 + [65535] * 40], np.uint16)
    products = DeviationProducts(rows[:, :40])
    assert products.add(rows[:, :40])
    assert not products.add(rows[:, 40:]), "65535 less 0 is -1 in 16 bits"
    assert products.take_about_zero()[0] == 0


def test_bright_variables_beside_dark_ones_are_each_near_their_middle():
    rng = np.random.default_rng(0)
    rows = np.stack([rng.integers(59_000, 60_000, 100), rng.integers(0, 1000, 100)]).astype(np.uint16)
    products = DeviationProducts(rows)
    assert products.add(rows)
    assert np.array_equal(products.take_about_zero()[1], rows.astype(np.int64) @ rows.T.astype(np.int64))


@pytest.mark.parametrize("tops", [(4096, 65536, 300), (65536, 300, 4096), (65536,), (300,)])
@given(st.integers(0, 99))
def test_sums_in_integers_and_in_float64_go_together(tops, seed):
    rng = np.random.default_rng(seed)
    parts = [rng.integers(0, top, (3, 50)).astype(np.uint16) for top in tops]
    rows = np.concatenate(parts, axis=1).astype(object)
    sums, count = rows.sum(axis=1), rows.shape[1]
    exact = [
        [float(rows[i] @ rows[j] - Fraction(sums[i] * sums[j], count)) for j in range(3)] for i in range(3)
    ]
    found = scatter_of_parts(parts)
    np.testing.assert_allclose(found.mean, [float(Fraction(a, count)) for a in sums], rtol=3e-16)
    np.testing.assert_allclose(found.scatter, np.array(exact), rtol=0, atol=1e-15 * np.max(exact))


def test_matrices_are_few_at_a_time():
    """A plan has room for eight: these sums take six, and their merging one."""
    rows = np.asfortranarray(np.random.default_rng(0).integers(0, 4000, (500, 64)).astype(np.uint16))
    scatter_of_parts([rows])  # compiled
    tracemalloc.start()
    try:
        scatter_of_parts([rows])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * 8 * 500**2
