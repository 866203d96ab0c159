import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.kernels.windows import copy_windows

# From and to; each pair is compiled once.
PAIRS = [("u2", "u2"), ("u2", "f4"), (">u2", "f4"), ("f2", "f4"), ("f4", "f4"), ("?", "f4")]


@settings(max_examples=40)
@given(
    st.sampled_from(PAIRS),
    st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(2, 9)] * 3),
    st.booleans(),
    st.data(),
)
def test_windows_are_those_of_slicing(dtypes, shape, transposed, data):
    dtype, kept = dtypes
    rng = np.random.default_rng(0)
    block = rng.integers(0, 200, shape[::-1] if transposed else shape).astype(dtype)
    block = block.transpose() if transposed else block
    window = tuple(data.draw(st.integers(1, n)) for n in shape[2:])
    m = data.draw(st.integers(1, 6))
    room = (shape[0], *(a - b + 1 for a, b in zip(shape[2:], window, strict=True)))
    starts = np.stack([rng.integers(0, n, m) for n in room], 1)
    rows = rng.permutation(m + 2)[:m]
    into = np.full((m + 2, shape[1], *window), 7, kept)
    before = into.copy()
    copy_windows(block, starts, rows, into)
    for row, (t, z, y, x) in zip(rows, starts, strict=True):
        wanted = block[t, :, z : z + window[0], y : y + window[1], x : x + window[2]]
        np.testing.assert_array_equal(into[row], wanted.astype(into.dtype))
    others = np.setdiff1d(np.arange(m + 2), rows)
    np.testing.assert_array_equal(into[others], before[others])


@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_an_empty_list_of_windows_copies_nothing(dtype):
    into = np.full((1, 1, 1, 2, 2), 3, "f4")
    copy_windows(np.zeros((1, 1, 1, 4, 4), dtype), np.zeros((0, 4), np.int64), np.zeros(0, np.int64), into)
    assert (into == 3).all()
