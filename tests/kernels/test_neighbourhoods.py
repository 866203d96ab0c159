import numpy as np
import pytest

from denoizarr.kernels.neighbourhoods import n_offsets, neighbour_rows


@pytest.mark.parametrize("radius", [(0, 0, 0), (1, 1, 1), (2, 0, 1)])
def test_every_row_is_one_offset_of_every_voxel(radius):
    values = np.arange(2 * 4 * 5 * 6).reshape(2, 4, 5, 6)
    padded = np.pad(values, [(0, 0), *((r, r) for r in radius)])
    rows = neighbour_rows(padded, radius)
    p = n_offsets(radius)
    assert rows.shape == (2 * p, 4 * 5 * 6)
    windows = np.lib.stride_tricks.sliding_window_view(padded, [2 * r + 1 for r in radius], axis=(1, 2, 3))
    expected = windows.reshape(2, 120, p).swapaxes(1, 2).reshape(2 * p, 120)
    assert np.array_equal(rows, expected)
    assert np.array_equal(rows[p // 2], values[0].reshape(-1))
