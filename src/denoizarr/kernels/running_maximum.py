"""The running maximum of every region, and the largest value that enough of it reaches.

Van Herk's algorithm (Pattern Recognition Letters 13, 1992, 517) with the cells as its blocks: a window of one
patch covers the end of one cell and the start of the next, so two scans per cell serve every region on it::

    cells     |        |        |
    ahead      <-------- <-------     largest from here to the cell's end
    behind     --------> ------->     largest from the cell's start to here
    window         [=======)          max(ahead at its first voxel, behind at its last)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled

Plane = NDArray[Any]
Volume = NDArray[Any]


@compiled
def fill_maxima(
    keys: Volume, patch_z: int, patch_y: int, patch_x: int, needed: NDArray[np.int64], regions: Volume
) -> None:
    """Fill ``regions`` with keys: the running maximum axis after axis, then a selection in every region."""
    width = keys.shape[2]
    for k in range(regions.shape[0]):
        z0, z1 = k * patch_z, min((k + 2) * patch_z, keys.shape[0])
        for i in range(regions.shape[1]):
            y0, y1 = i * patch_y, min((i + 2) * patch_y, keys.shape[1])
            # All that the regions of one row along x share is done once for the row.
            depth, height = z1 - z0, y1 - y0
            strip = np.ascontiguousarray(keys[z0:z1, y0:y1])
            if depth > 1:
                strip = _running(strip.reshape(depth, height * width), patch_z).reshape(strip.shape)
            rows = np.empty((depth * height, width), keys.dtype)
            for z in range(depth):
                rows[z * height : (z + 1) * height] = _running(strip[z], patch_y)
            # Turned, so that the last axis is scanned along contiguous memory as well.
            turned = np.empty((width, depth * height), keys.dtype)
            _transpose(rows, turned)
            ahead, behind = _scan_cells(turned, patch_x)
            for j in range(regions.shape[2]):
                x0, x1 = j * patch_x, min((j + 2) * patch_x, width)
                window = np.empty((x1 - x0, depth * height), keys.dtype)
                for x in range(x1 - x0):
                    _window_maximum(ahead, behind, x, x0, patch_x, x1 - x0, window[x])
                regions[k, i, j] = _largest_reached(window.ravel(), needed[k, i, j])


@compiled
def _running(array: Plane, patch: int) -> Plane:
    """Return the running maximum along axis 0, cropped at the array's ends."""
    ahead, behind = _scan_cells(array, patch)
    result = np.empty_like(array)
    for i in range(array.shape[0]):
        _window_maximum(ahead, behind, i, 0, patch, array.shape[0], result[i])
    return result


@compiled
def _scan_cells(array: Plane, patch: int) -> tuple[Plane, Plane]:
    """Return running maxima along axis 0 that restart in every cell: from its end, and from its start."""
    length, width = array.shape
    ahead = np.empty_like(array)
    behind = np.empty_like(array)
    for i in range(length):
        if i % patch == 0:
            behind[i] = array[i]
        else:
            for k in range(width):
                behind[i, k] = max(behind[i - 1, k], array[i, k])
    for i in range(length - 1, -1, -1):
        if i == length - 1 or i % patch == patch - 1:
            ahead[i] = array[i]
        else:
            for k in range(width):
                ahead[i, k] = max(ahead[i + 1, k], array[i, k])
    return ahead, behind


@compiled
def _window_maximum(
    ahead: Plane, behind: Plane, position: int, origin: int, patch: int, length: int, out: Plane
) -> None:
    """Maximum over the window of one position of a region that starts at ``origin`` and has ``length``."""
    start = max(position - patch // 2, 0)
    last = min(position - patch // 2 + patch - 1, length - 1)
    if start // patch != last // patch:
        for k in range(out.size):
            out[k] = max(ahead[origin + start, k], behind[origin + last, k])
    elif start % patch == 0:
        out[:] = behind[origin + last]
    else:
        out[:] = ahead[origin + start]


@compiled
def _transpose(source: Plane, target: Plane) -> None:
    """Transpose in tiles that stay in the first-level cache."""
    tile = 32
    for y0 in range(0, source.shape[0], tile):
        for x0 in range(0, source.shape[1], tile):
            for x in range(x0, min(x0 + tile, source.shape[1])):
                for y in range(y0, min(y0 + tile, source.shape[0])):
                    target[x, y] = source[y, x]


@compiled
def _largest_reached(values: Plane, needed: int) -> Any:
    """Return the largest t such that at least ``needed`` values are >= t, by bisection over the keys."""
    low = high = values[0]
    for i in range(values.size):
        low = min(low, values[i])
        high = max(high, values[i])
    while low < high:
        # low always qualifies; the upper middle, written so that 64-bit keys do not overflow.
        middle = high - (high - low) // values.dtype.type(2)
        reached = 0
        for i in range(values.size):
            reached += values[i] >= middle
        if reached >= needed:
            low = middle
        else:
            high = middle - values.dtype.type(1)
    return low
