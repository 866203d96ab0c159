"""How much signal lies where: one score per cell of a plane, from the regions that cover the cell.

Along one axis of ``size`` voxels and cells of ``patch`` voxels there are ``n = ceil(size / patch)`` cells,
the last perhaps short, and ``n - 1`` regions of two neighbouring cells each (one region where ``n`` is 1)::

    cells    |   0   |   1   |   2   |   3  |
    regions  [------ 0 ------]
                     [------ 1 ------]
                             [------ 2 -----]

A region is cropped at the image's border and never padded: padding with zeros would lower every score there.
The value of a cell is the largest over the regions that cover it, at most four in a plane.

The regions and the three scores are those of CAREamics' patch filtering (see ``docs/coming-from.md``). All
results depend on the voxels of a region only, and are the same to the last bit however an image is cut into
planes and blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .entropy import entropy_labels, scaled_logarithms, shannon_regions
from .running_maximum import max_regions
from .statistics import from_ordered_key, ordered_key

Plane = NDArray[Any]
DEFAULT_COVERAGE = 0.25  # of the max score in planes


def cell_counts(shape: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Return the number of cells along y and x of a plane of this shape."""
    return -(-shape[0] // patch_size[0]), -(-shape[1] // patch_size[1])


def cells_from_regions(regions: NDArray[Any], counts: tuple[int, int]) -> NDArray[Any]:
    """Give every cell the largest value over the regions that cover it.

    Parameters
    ----------
    regions : array (..., max(ny - 1, 1), max(nx - 1, 1))
    counts : (ny, nx)

    Returns
    -------
    array (..., ny, nx) of the same dtype
    """
    for axis, count in ((-2, counts[0]), (-1, counts[1])):
        if count > 1:
            first = np.take(regions, [0], axis)
            last = np.take(regions, [count - 2], axis)
            ahead = np.concatenate([regions, last], axis)
            behind = np.concatenate([first, regions], axis)
            regions = np.maximum(ahead, behind)
    return regions


def mean_std_scores(plane: Plane, patch_size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the largest mean and the largest standard deviation over the regions of every cell.

    Parameters
    ----------
    plane : array (y, x), any real dtype
    patch_size : (y, x) in voxels

    Returns
    -------
    float32 array (2, cells y, cells x): mean, then standard deviation (population), in intensity units
    """
    counts = cell_counts((plane.shape[0], plane.shape[1]), patch_size)
    number, mean, scatter = _cell_moments(
        _summable(plane), patch_size[0], patch_size[1], counts[0], counts[1]
    )
    parts = [(slice(0, max(counts[0] - 1, 1)), slice(0, max(counts[1] - 1, 1)))]
    if counts[0] > 1:
        parts += [(slice(1, None), x) for _, x in parts]
    if counts[1] > 1:
        parts += [(y, slice(1, None)) for y, _ in parts]
    # Means relative to the first cell's, so that equal cells give exactly zero scatter (Chan et al. 1979).
    reference = mean[parts[0]]
    total = sum(number[p] for p in parts)
    offset = sum(number[p] * (mean[p] - reference) for p in parts) / total
    between = sum(number[p] * (mean[p] - reference - offset) ** 2 for p in parts)
    inside = sum(scatter[p] for p in parts)
    regions = np.stack([reference + offset, np.sqrt((inside + between) / total)])
    return cells_from_regions(regions, counts).astype(np.float32)


def _summable(plane: Plane) -> Plane:
    """Return the plane in a dtype whose squared differences the moments kernel sums without overflow."""
    if plane.dtype.kind == "b":
        return plane.view(np.uint8)
    if plane.dtype.kind in "iu" and plane.dtype.itemsize <= 2:
        return plane.astype(plane.dtype.newbyteorder("="), copy=False)
    return plane.astype(np.float64, copy=False)


@compiled
def _cell_moments(
    plane: Plane, patch_y: int, patch_x: int, count_y: int, count_x: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Count, mean and sum of squared deviations of every cell."""
    number = np.empty((count_y, count_x))
    mean = np.empty((count_y, count_x))
    scatter = np.empty((count_y, count_x))
    for i in range(count_y):
        for j in range(count_x):
            y0, y1 = i * patch_y, min((i + 1) * patch_y, plane.shape[0])
            x0, x1 = j * patch_x, min((j + 1) * patch_x, plane.shape[1])
            # Differences from the cell's first voxel: small numbers, and integers of 16 bits stay exact.
            first = plane[y0, x0] * 1
            total = first - first
            squares = first - first
            for y in range(y0, y1):
                row = plane[y, x0:x1]
                for x in range(row.size):
                    difference = row[x] * 1 - first
                    total += difference
                    squares += difference * difference
            voxels = float((y1 - y0) * (x1 - x0))
            number[i, j] = voxels
            mean[i, j] = first + total / voxels
            scatter[i, j] = max(squares - float(total) * float(total) / voxels, 0.0)
    return number, mean, scatter


def max_scores(
    plane: Plane, patch_size: tuple[int, int], coverage: float = DEFAULT_COVERAGE
) -> NDArray[np.float32]:
    """Return the largest t such that enough of a region's running maximum reaches t.

    The running maximum at voxel i looks at ``i - P//2 .. i - P//2 + P - 1`` on each axis, cropped at the
    region's border. "Enough" is at least ``coverage`` of the region's voxels.

    Parameters
    ----------
    plane : array (y, x), any real dtype
    patch_size : (y, x) in voxels
    coverage : float
        Between 0 and 1; at 0 it is the region's plain maximum.

    Returns
    -------
    float32 array (cells y, cells x), in intensity units; each value is one of the plane's own
    """
    shape = (plane.shape[0], plane.shape[1])
    counts = cell_counts(shape, patch_size)
    keys = np.ascontiguousarray(ordered_key(plane))
    regions = np.empty((max(counts[0] - 1, 1), max(counts[1] - 1, 1)), keys.dtype)
    max_regions(keys, patch_size[0], patch_size[1], _needed_voxels(shape, patch_size, coverage), regions)
    return from_ordered_key(cells_from_regions(regions, counts), plane.dtype).astype(np.float32)


def _needed_voxels(shape: tuple[int, int], patch_size: tuple[int, int], coverage: float) -> NDArray[np.int64]:
    """Return how many voxels of each region must reach t: (regions y, regions x)."""
    counts = cell_counts(shape, patch_size)
    extents = []
    for size, patch, count in zip(shape, patch_size, counts, strict=True):
        start = np.arange(max(count - 1, 1)) * patch
        extents.append(np.minimum(start + 2 * patch, size) - start)
    voxels = np.outer(extents[0], extents[1])
    # A coverage such as 0.1 is not a binary fraction: 0.1 of 10 voxels is 1, not the next integer above it.
    return np.asarray(np.maximum(np.ceil(voxels * coverage - 1e-9), 1), np.int64)


def shannon_scores(
    plane: Plane, patch_size: tuple[int, int], bounds: tuple[float, float] | None = None
) -> NDArray[np.float32]:
    """Return the base-2 Shannon entropy of the regions of every cell.

    Parameters
    ----------
    plane : array (y, x)
        Integers: over the distinct values. Floats: over 256 equal bins between ``bounds``, what lies
        outside counts in the end bins; over distinct values a float region saturates at log2 of its size
        and tells nothing.
    patch_size : (y, x) in voxels
    bounds : (low, high), needed for floats
        The image's 0.1 and 99.9 percentiles.

    Returns
    -------
    float32 array (cells y, cells x), in bits
    """
    labels, bins = entropy_labels(plane, bounds)
    counts = cell_counts((plane.shape[0], plane.shape[1]), patch_size)
    logarithms = scaled_logarithms(min(4 * patch_size[0] * patch_size[1], plane.size))
    regions = np.empty((max(counts[0] - 1, 1), max(counts[1] - 1, 1)))
    shannon_regions(labels, bins, patch_size[0], patch_size[1], logarithms, regions)
    return cells_from_regions(regions, counts).astype(np.float32)
