"""The voxels around every voxel, as rows of a matrix.

::

    volume with its halo, radius 1           rows, one for each offset
    . . . . . .                              offset (-1, -1):  every voxel's upper left neighbour
    . a b c d .          a b c d             offset ( 0,  0):  every voxel itself, the row in the middle
    . e f g h .   --->   e f g h   --->      offset ( 1,  1):  every voxel's lower right neighbour
    . . . . . .
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray


def n_offsets(radius: tuple[int, ...]) -> int:
    """Return how many voxels a neighbourhood has."""
    return prod(2 * r + 1 for r in radius)


def neighbour_rows(padded: NDArray[Any], radius: tuple[int, ...]) -> NDArray[Any]:
    """Return every voxel's neighbours, volume by volume.

    Parameters
    ----------
    padded : array (n, z + 2 rz, y + 2 ry, x + 2 rx)
        Volumes with a halo of ``radius``.
    radius : (int, int, int)
        In voxels, along z, y, x.

    Returns
    -------
    array (n * p, z * y * x)
        Row ``volume * p + offset``, offsets in C order; the voxel itself is offset ``p // 2``. Without a
        radius a view where the voxels' order in memory allows one.
    """
    n, *extents = padded.shape
    inner = tuple(extent - 2 * r for extent, r in zip(extents, radius, strict=True))
    if not any(radius):
        return padded.reshape(n, -1)
    rows = np.empty((n, n_offsets(radius), *inner), padded.dtype)
    for k, offset in enumerate(product(*(range(2 * r + 1) for r in radius))):
        window = tuple(slice(o, o + size) for o, size in zip(offset, inner, strict=True))
        rows[:, k] = padded[(slice(None), *window)]
    return rows.reshape(n * rows.shape[1], -1)
