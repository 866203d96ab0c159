import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoizarr.kernels.voxel_rows import add_to_rows, deviations, smallest

SHAPES = {
    "n": st.integers(1, 7),
    "v": st.integers(1, 100),
    "order": st.sampled_from("CF"),
    "seed": st.integers(0, 99),
}


def rows_of(n, v, order, seed, dtype=np.uint16):
    return np.asarray(np.random.default_rng(seed).integers(0, 4000, (n, v)), dtype, order=order)


@given(**SHAPES)
def test_the_smallest_of_every_row(n, v, order, seed):
    rows = rows_of(n, v, order, seed)
    assert np.array_equal(smallest(rows), rows.min(axis=1))


@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", ">i2", "uint16", "int32", "float16", "float32", ">f4", "float64"]
)
@pytest.mark.parametrize("of", [np.float32, np.float64])
@given(**SHAPES)
def test_deviations_are_those_of_converted_numbers(dtype, of, n, v, order, seed):
    rows = rows_of(n, v, order, seed, dtype)
    centre = np.random.default_rng(seed).normal(1000, 10, n).astype(of)
    found = deviations(rows, centre)
    assert found.dtype == of
    assert np.array_equal(found, rows.astype(of) - centre[:, None])
    assert found.flags.f_contiguous == rows.flags.f_contiguous


@pytest.mark.parametrize("out_dtype", [np.float32, np.float16])
@given(**SHAPES)
def test_numbers_are_added_to_rows(out_dtype, n, v, order, seed):
    values = rows_of(n, v, order, seed, np.float32)
    by = np.arange(n, dtype=np.float32) + 0.25
    expected = (values + by[:, None]).astype(out_dtype)
    for out_order in "CF":
        out = np.empty(values.shape, out_dtype, order=out_order)
        add_to_rows(values, by, out)
        assert np.array_equal(out, expected)
    if out_dtype == values.dtype:
        add_to_rows(values, by, values)
        assert np.array_equal(values, expected), "in place"


def test_a_part_of_a_larger_array_is_looked_at_alone():
    whole = rows_of(3, 200, "F", 0)
    part = whole[:, 40:120]
    assert np.array_equal(smallest(part), part.min(axis=1))
    every_second = whole[:, ::2]
    assert np.array_equal(smallest(every_second), every_second.min(axis=1))
    assert np.array_equal(deviations(every_second, np.zeros(3)), every_second.astype(float))
