"""Cells and regions of a volume, and what combines the one into the other.

Along one axis of ``size`` voxels and cells of ``patch`` voxels there are ``n = ceil(size / patch)`` cells,
the last perhaps short, and ``n - 1`` regions of two neighbouring cells each (one region where ``n`` is 1)::

    cells    |   0   |   1   |   2   |   3  |
    regions  [------ 0 ------]
                     [------ 1 ------]
                             [------ 2 -----]

A region is cropped at the image's border and never padded: padding with zeros would lower every score there.
The value of a cell is the largest over the regions that cover it: at most four in a plane, eight in 3D.

The regions are those of CAREamics' patch filtering (see ``docs/coming-from.md``). A plane is a volume of one
cell along z.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Extents: TypeAlias = tuple[int, int, int]


def cell_counts(shape: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Return the number of cells along every axis of a volume of this shape."""
    return tuple(-(-size // step) for size, step in zip(shape, patch, strict=True))


def region_counts(cells: Sequence[int]) -> tuple[int, ...]:
    """Return the number of regions along every axis, from the number of cells."""
    return tuple(max(n - 1, 1) for n in cells)


def cells_from_regions(regions: NDArray[Any], counts: Sequence[int]) -> NDArray[Any]:
    """Give every cell the largest value over the regions that cover it.

    Parameters
    ----------
    regions : array (..., regions z, y, x)
        Its last axes are those of ``counts``.
    counts : sequence of int
        Number of cells along these axes.

    Returns
    -------
    array (..., cells z, y, x) of the same dtype
    """
    for axis, count in zip(range(-len(counts), 0), counts, strict=True):
        if count > 1:
            first = np.take(regions, [0], axis)
            last = np.take(regions, [count - 2], axis)
            ahead = np.concatenate([regions, last], axis)
            behind = np.concatenate([first, regions], axis)
            regions = np.maximum(ahead, behind)
    return regions


def parts_of_regions(counts: Sequence[int]) -> list[tuple[slice, ...]]:
    """Return the slices of an array of cells that, added up, give every region its cells' sum.

    Two slices per axis, the nearer and the farther cell of each region; one where there is a single cell.
    """
    return list(product(*([slice(0, n - 1), slice(1, n)] if n > 1 else [slice(0, 1)] for n in counts)))


def region_voxels(shape: Sequence[int], patch: Sequence[int]) -> NDArray[np.int64]:
    """Return how many voxels each region has: int64 (regions z, y, x)."""
    voxels = np.ones((1,) * len(shape), np.int64)
    for axis, (size, step) in enumerate(zip(shape, patch, strict=True)):
        start = np.arange(max(-(-size // step) - 1, 1)) * step
        extent = np.minimum(start + 2 * step, size) - start
        voxels = voxels * np.expand_dims(extent, tuple(a for a in range(len(shape)) if a != axis))
    return voxels
