"""Arithmetic on volumes that lie voxel after voxel: all volumes of the first voxel, all of the second, ...

numpy adds and compares what is contiguous at a time; that is one voxel with its few volumes, where starting
takes as long as the work. Here 32 voxels are one stretch::

    (v, n)  ->  (v / 32, 32 n), and what there is of every volume 32 times side by side

Volume after volume, a row is a volume and long enough.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled

_AT_ONCE = 32
AnyFloats = NDArray[np.float32] | NDArray[np.float64]


def smallest(values: NDArray[Any]) -> NDArray[Any]:
    """Return the smallest of each row of (n, v)."""
    lowest: NDArray[Any]
    if not _lies_by_voxel(values):
        lowest = values.min(axis=1)
        return lowest
    n, v = values.shape
    whole = v // _AT_ONCE * _AT_ONCE
    several = _stretches(values, whole).min(axis=0)
    lowest = several.reshape(_AT_ONCE, n).min(axis=0)
    lowest = np.minimum(lowest, values[:, whole - 1 :].min(axis=1))
    return lowest


def deviations(rows: NDArray[Any], centre: AnyFloats) -> AnyFloats:
    """Return (n, v) less a number for each row, in the numbers' dtype and the rows' memory order.

    Rows are converted to that dtype first.
    """
    if not (_lies_by_voxel(rows) and _is_compilable(rows.dtype)):
        wide: NDArray[Any] = rows.astype(centre.dtype, order="K")
        wide -= centre[:, None]
        return wide
    v = rows.shape[1]
    found = np.empty(rows.shape[::-1], centre.dtype).T
    whole = v // _AT_ONCE * _AT_ONCE
    _subtract(_stretches(rows, whole), np.tile(centre, _AT_ONCE), _stretches(found, whole))
    _subtract(rows[:, whole:].T, centre, found[:, whole:].T)
    return found


def add_to_rows(values: AnyFloats, by: AnyFloats, out: AnyFloats) -> None:
    """Put (n, v) and a number for each row together into ``out``, which may be ``values`` itself."""
    if not (_lies_by_voxel(values) and _lies_by_voxel(out)):
        np.add(values, by[:, None], out=out, casting="same_kind")
        return
    whole = values.shape[1] // _AT_ONCE * _AT_ONCE
    several = np.tile(by, _AT_ONCE)
    np.add(_stretches(values, whole), several, out=_stretches(out, whole), casting="same_kind")
    np.add(values[:, whole:], by[:, None], out=out[:, whole:], casting="same_kind")


def _lies_by_voxel(values: NDArray[Any]) -> bool:
    return values.flags.f_contiguous and values.shape[1] >= _AT_ONCE


def _is_compilable(dtype: np.dtype[Any]) -> bool:
    return dtype.isnative and dtype != np.float16


def _stretches(values: NDArray[Any], whole: int) -> NDArray[Any]:
    """Return a view of the first voxels of (n, v), which lies voxel after voxel: a multiple of 32 of them."""
    return values[:, :whole].T.reshape(-1, _AT_ONCE * len(values))


@compiled
def _subtract(values: Any, by: Any, found: Any) -> None:
    for i in range(values.shape[0]):
        for k in range(values.shape[1]):
            found[i, k] = values[i, k]
            found[i, k] -= by[k]
