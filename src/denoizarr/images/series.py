"""The layout of a series of volumes that are computed with one another: all volumes of a box lie together.

::

    shard    n volumes x 10 x 92 x 92     read and written by one task
    chunk    1 volume  x 10 x 92 x 92     decoded by a viewer that shows one volume
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

# A box of all volumes: enough for a disk, and so many that workers share the image evenly.
_BOX_BYTES, _SIDE = 16 * 2**20, 64


def block_of_series(shape: Sequence[int], chunks: Sequence[int], itemsize: int) -> tuple[int, int, int]:
    """Return the extents of a box: whole chunks along y and x where they are not too large.

    Parameters
    ----------
    shape, chunks : (volumes, z, y, x)
        Of the image, and of what one read of it decodes.
    itemsize : int
        Of the wider of what is read and what is written.
    """
    n, *space = shape
    voxels = max(_BOX_BYTES // (n * itemsize), 1)
    sides = [
        min(chunk, size) if chunk <= 4 * _SIDE else min(_SIDE, size)
        for chunk, size in zip(chunks[2:], space[1:], strict=True)
    ]
    while prod(sides) > voxels and max(sides) > 8:
        sides[sides.index(max(sides))] = (max(sides) + 1) // 2
    deep = max(voxels // prod(sides), 1)
    whole = min(chunks[1], space[0])
    deep = deep // whole * whole if deep >= whole else deep
    return (min(deep, space[0]), sides[0], sides[1])
