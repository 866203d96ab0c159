"""How much signal lies where: the scores of the regions of a volume.

The four scores are those of CAREamics' patch filtering. What a region is, :mod:`.regions` says. All results
depend on the voxels of a region only, and are the same to the last bit however an image is cut into blocks.

Every function takes a volume (z, y, x) and a patch (z, y, x) in voxels; a plane is a volume of one plane with
a patch of one along z. Results are float64, (regions z, y, x).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .entropy import entropy_labels, fill_entropies, scaled_logarithms
from .regions import Extents, cell_counts, parts_of_regions, region_counts, region_voxels
from .running_maximum import fill_maxima
from .statistics import from_ordered_key, ordered_key

Volume = NDArray[Any]
Regions = NDArray[np.float64]


def default_coverage(n_axes: int) -> float:
    """Return the fraction that must reach a threshold unless told: a quarter in 2D, an eighth in 3D."""
    return 0.25 if n_axes == 2 else 0.125


def mean_std_regions(volume: Volume, patch: Extents) -> Regions:
    """Return the mean and the population standard deviation of every region.

    Parameters
    ----------
    volume : array (z, y, x), any real dtype
    patch : (z, y, x) in voxels

    Returns
    -------
    float64 array (2, regions z, y, x): mean, then standard deviation, in intensity units
    """
    counts = cell_counts(volume.shape, patch)
    number, mean, scatter = (np.empty(counts) for _ in range(3))
    if _is_narrow_integer(volume):
        _integer_moments(_native(volume), *patch, number, mean, scatter)
    else:
        _float_moments(volume.astype(np.float64, copy=False), *patch, number, mean, scatter)
    parts = parts_of_regions(counts)
    # Means relative to one cell's, so that equal cells give exactly zero scatter (Chan et al. 1979, eq. 2.1).
    reference = mean[parts[0]]
    total = sum(number[p] for p in parts)
    offset = sum(number[p] * (mean[p] - reference) for p in parts) / total
    between = sum(number[p] * (mean[p] - reference - offset) ** 2 for p in parts)
    inside = sum(scatter[p] for p in parts)
    return np.stack([reference + offset, np.sqrt((inside + between) / total)])


def max_regions(volume: Volume, patch: Extents, coverage: float) -> Regions:
    """Return the largest t such that enough of a region's running maximum reaches t.

    The running maximum at voxel i looks at ``i - P//2 .. i - P//2 + P - 1`` on each axis, cropped at the
    region's border. "Enough" is at least ``coverage`` of the region's voxels.

    Parameters
    ----------
    volume : array (z, y, x), any real dtype
    patch : (z, y, x) in voxels
    coverage : float
        Between 0 and 1; at 0 it is the region's plain maximum.

    Returns
    -------
    float64 array (regions z, y, x), in intensity units; each value is one of the volume's own
    """
    keys = np.ascontiguousarray(ordered_key(volume))
    regions = np.empty(region_counts(cell_counts(volume.shape, patch)), keys.dtype)
    voxels = region_voxels(volume.shape, patch)
    # A coverage such as 0.1 is not a binary fraction: 0.1 of 10 voxels is 1, not the next integer above it.
    needed = np.maximum(np.ceil(voxels * coverage - 1e-9), 1).astype(np.int64)
    fill_maxima(keys, *patch, needed, regions)
    return from_ordered_key(regions, volume.dtype).astype(np.float64)


def shannon_regions(volume: Volume, patch: Extents, bounds: tuple[float, float] | None = None) -> Regions:
    """Return the base-2 Shannon entropy of every region.

    Parameters
    ----------
    volume : array (z, y, x)
        Integers: over the distinct values. Floats: over 256 equal bins between ``bounds``, what lies
        outside counts in the end bins; over distinct values a float region saturates at log2 of its size
        and tells nothing.
    patch : (z, y, x) in voxels
    bounds : (low, high), needed for floats
        The image's 0.1 and 99.9 percentiles.

    Returns
    -------
    float64 array (regions z, y, x), in bits
    """
    labels, bins = entropy_labels(volume, bounds)
    regions = np.empty(region_counts(cell_counts(volume.shape, patch)))
    logarithms, scale = scaled_logarithms(8 * patch[0] * patch[1] * patch[2])
    fill_entropies(labels, bins, *patch, logarithms, scale, regions)
    return regions


def coverage_regions(mask: Volume, patch: Extents) -> Regions:
    """Return the fraction of every region that is not zero: float64 (regions z, y, x)."""
    counts = cell_counts(mask.shape, patch)
    nonzero = np.empty(counts, np.int64)
    _count_nonzero((mask != 0).view(np.uint8), *patch, nonzero)
    held = sum(nonzero[p] for p in parts_of_regions(counts))
    return np.asarray(held / region_voxels(mask.shape, patch))


def _is_narrow_integer(volume: Volume) -> bool:
    return volume.dtype.kind in "biu" and volume.dtype.itemsize <= 2


def _native(volume: Volume) -> Volume:
    """Return integers, in this machine's byte order."""
    if volume.dtype.kind == "b":
        return volume.view(np.uint8)
    return volume.astype(volume.dtype.newbyteorder("="), copy=False)


@compiled
def _integer_moments(
    volume: Volume,
    patch_z: int,
    patch_y: int,
    patch_x: int,
    number: NDArray[np.float64],
    mean: NDArray[np.float64],
    scatter: NDArray[np.float64],
) -> None:
    """Fill in count, mean and sum of squared deviations of every cell, from exact integer sums."""
    for k in range(number.shape[0]):
        for i in range(number.shape[1]):
            for j in range(number.shape[2]):
                z1 = min((k + 1) * patch_z, volume.shape[0])
                y1 = min((i + 1) * patch_y, volume.shape[1])
                x0, x1 = j * patch_x, min((j + 1) * patch_x, volume.shape[2])
                # Differences from the cell's first voxel: small numbers, whose squares stay far below 2**63.
                first = np.int64(volume[k * patch_z, i * patch_y, x0])
                total = np.int64(0)
                squares = np.int64(0)
                for z in range(k * patch_z, z1):
                    for y in range(i * patch_y, y1):
                        row = volume[z, y, x0:x1]
                        for x in range(row.size):
                            difference = np.int64(row[x]) - first
                            total += difference
                            squares += difference * difference
                voxels = np.int64((z1 - k * patch_z) * (y1 - i * patch_y) * (x1 - x0))
                # Taken from the whole number nearest to the mean, in integers: nothing cancels.
                nearest = (2 * total + voxels) // (2 * voxels)
                squares += nearest * (nearest * voxels - 2 * total)
                rest = float(total - nearest * voxels)
                number[k, i, j] = voxels
                mean[k, i, j] = (first + nearest) + rest / voxels
                scatter[k, i, j] = squares - rest * (rest / voxels)


@compiled
def _float_moments(
    volume: Volume,
    patch_z: int,
    patch_y: int,
    patch_x: int,
    number: NDArray[np.float64],
    mean: NDArray[np.float64],
    scatter: NDArray[np.float64],
) -> None:
    """Do the same for floats: deviations from the mean, in a second look at a cell that is still cached."""
    for k in range(number.shape[0]):
        for i in range(number.shape[1]):
            for j in range(number.shape[2]):
                z1 = min((k + 1) * patch_z, volume.shape[0])
                y1 = min((i + 1) * patch_y, volume.shape[1])
                cell = volume[k * patch_z : z1, i * patch_y : y1, j * patch_x : (j + 1) * patch_x]
                first = cell[0, 0, 0]
                total = 0.0
                for z in range(cell.shape[0]):
                    for y in range(cell.shape[1]):
                        row = cell[z, y]
                        for x in range(row.size):
                            total += row[x] - first
                middle = first + total / cell.size
                remainder = 0.0
                squares = 0.0
                for z in range(cell.shape[0]):
                    for y in range(cell.shape[1]):
                        row = cell[z, y]
                        for x in range(row.size):
                            difference = row[x] - middle
                            remainder += difference
                            squares += difference * difference
                number[k, i, j] = cell.size
                # The mean is rounded; what is left of it would enter the scatter squared.
                mean[k, i, j] = middle + remainder / cell.size
                scatter[k, i, j] = max(squares - remainder * (remainder / cell.size), 0.0)


@compiled
def _count_nonzero(
    mask: Volume, patch_z: int, patch_y: int, patch_x: int, nonzero: NDArray[np.int64]
) -> None:
    for k in range(nonzero.shape[0]):
        for i in range(nonzero.shape[1]):
            for j in range(nonzero.shape[2]):
                z1 = min((k + 1) * patch_z, mask.shape[0])
                y1 = min((i + 1) * patch_y, mask.shape[1])
                found = 0
                for z in range(k * patch_z, z1):
                    for y in range(i * patch_y, y1):
                        row = mask[z, y, j * patch_x : (j + 1) * patch_x]
                        for x in range(row.size):
                            found += row[x] != 0
                nonzero[k, i, j] = found
