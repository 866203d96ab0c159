"""Windows cut out of a block, in one call that holds no lock."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled


def copy_windows(
    block: NDArray[Any], starts: NDArray[np.int64], rows: NDArray[np.int64], into: NDArray[Any]
) -> None:
    """Copy windows of a block to rows of another array.

    One numpy assignment a window would cost as much, but hold the interpreter's lock most of the time:
    threads that cut would keep the one that trains from its next batch.

    Parameters
    ----------
    block : ndarray of shape (t, c, z, y, x)
        Of any real dtype.
    starts : int64 array (m, 4)
        First voxel of each window along t, z, y, x, so that the window lies in the block.
    rows : int64 array (m,)
        Where each goes in ``into``.
    into : ndarray of shape (n, c, z, y, x)
        Windows, each one t thick; values are cast to its dtype, which is native and not a 16-bit float.
    """
    fits = starts + np.array([1, *into.shape[2:]]) <= np.array(block.shape)[[0, 2, 3, 4]]
    assert into.shape[1] == block.shape[1], f"{into.shape[1]} channels of {block.shape[1]}"
    assert bool(fits.all()) & bool((starts >= 0).all()), "a window reaches out of its block"
    # No machine code is made for foreign byte orders and 16-bit floats.
    if block.dtype == np.float16:
        block = block.astype(np.float32)
    elif not block.dtype.isnative:
        block = block.astype(block.dtype.newbyteorder("="))
    _copy(block, starts, rows, into)


@compiled
def _copy(
    block: NDArray[Any], starts: NDArray[np.int64], rows: NDArray[np.int64], into: NDArray[Any]
) -> None:
    channels, depth, height, width = into.shape[1:]
    for i in range(rows.size):
        t, z, y, x = starts[i]
        row = rows[i]
        for c in range(channels):
            for dz in range(depth):
                for dy in range(height):
                    for dx in range(width):
                        into[row, c, dz, dy, dx] = block[t, c, z + dz, y + dy, x + dx]
