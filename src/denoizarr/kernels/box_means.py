"""Means over boxes and windows, in an order of addition that no cutting into blocks can change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled


def box_means(values: NDArray[Any], factors: Sequence[int]) -> NDArray[np.float64]:
    """Return the mean over boxes of ``factors`` voxels; a box cut by the far end counts what is there.

    Parameters
    ----------
    values : (y, x) or (z, y, x) array of any real dtype
    factors : sequence of int
        One per axis, in voxels.

    Returns
    -------
    float64 array
        Shape ``ceil(shape / factors)``. The sums are exact for integers up to 32 bits, and taken voxel by
        voxel in C order within each box: a box has the same mean in whatever block it is computed.
    """
    native = _as_compilable(values)
    volume = native.reshape((1,) * (3 - native.ndim) + native.shape)
    z, y, x = (1,) * (3 - native.ndim) + tuple(int(f) for f in factors)
    means = _means(volume, z, y, x)
    return means.reshape(means.shape[3 - native.ndim :])


def _as_compilable(values: NDArray[Any]) -> NDArray[Any]:
    """Return the same values in a dtype that compiled code takes."""
    if values.dtype.kind == "b":
        return values.view(np.uint8)
    if values.dtype.kind == "f" and values.dtype.itemsize == 2:
        return values.astype(np.float32)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


@compiled
def _means(volume: NDArray[Any], z: int, y: int, x: int) -> NDArray[np.float64]:
    depth, height, width = volume.shape
    columns = -(-width // x)
    means = np.zeros((-(-depth // z), -(-height // y), columns))
    for k in range(depth):
        for i in range(height):
            row = means[k // z, i // y]
            line = volume[k, i]
            for c in range(columns):
                total = row[c]
                for j in range(c * x, min((c + 1) * x, width)):
                    total += np.float64(line[j])
                row[c] = total
    for k in range(means.shape[0]):
        deep = min((k + 1) * z, depth) - k * z
        for i in range(means.shape[1]):
            high = min((i + 1) * y, height) - i * y
            for c in range(columns):
                wide = min((c + 1) * x, width) - c * x
                means[k, i, c] /= deep * high * wide
    return means


def window_means(
    level: NDArray[np.float64], starts: tuple[NDArray[np.int64], ...], widths: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return the mean of the windows at all combinations of ``starts``.

    Parameters
    ----------
    level : (y, x) or (z, y, x) array
    starts : per axis, the windows' first pixels in ``level``
    widths : per axis, in pixels

    Notes
    -----
    Lines are added pixel by pixel from each window's own start, one axis after the other: a window has the
    same mean in whatever block it is computed, which differences of running sums would not give.
    """
    sums = level
    for axis in reversed(range(level.ndim)):
        lines = np.moveaxis(sums, axis, 0)
        flat = np.ascontiguousarray(lines).reshape(lines.shape[0], -1)
        added = _window_sums(flat, starts[axis], widths[axis])
        sums = np.moveaxis(added.reshape((starts[axis].size, *lines.shape[1:])), 0, axis)
    return np.ascontiguousarray(sums) / float(np.prod(widths))


@compiled
def _window_sums(lines: NDArray[np.float64], starts: NDArray[np.int64], width: int) -> NDArray[np.float64]:
    sums = np.zeros((starts.size, lines.shape[1]))
    for k in range(starts.size):
        row = sums[k]
        for i in range(starts[k], starts[k] + width):
            line = lines[i]
            for j in range(row.size):
                row[j] += line[j]
    return sums
