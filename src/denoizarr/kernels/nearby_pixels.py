"""Visible pixels near hidden ones, looked up one hidden pixel at a time: the host's way, in plain loops.

Flat arrays throughout: ``hidden`` is the map of what is hidden, ``place`` and ``source`` say where each
hidden pixel lies in it and in the row of pixels, and windows are offsets from there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled

Flags = NDArray[np.bool_]
Places = NDArray[np.int64]
Pixels = NDArray[Any]

_LOW_32 = 0xFFFFFFFF


@compiled
def _mix(x: int) -> int:
    # The same bits as hashed_draws.mix; the product of 32 by 31 bits stays within int64 in both.
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _LOW_32
    x = x ^ (x >> 15)
    x = (x * (0x846CA68B - 0x100000000)) & _LOW_32
    return x ^ (x >> 16)


@compiled
def choose_nearby(
    hidden: Flags, place: Places, hashes: Places, window: Places, tries: int, chosen: Places
) -> None:
    """Fill in, for every hidden pixel, a visible offset of its window, uniform among those; -1 for none.

    Parameters
    ----------
    hashes : ndarray of int64
        A 32-bit hash of every hidden pixel, which decides.
    tries : int
        Draws that may hit a hidden pixel before the visible ones are counted.
    """
    for i in range(place.size):
        here = place[i]
        chosen[i] = -1
        for attempt in range(tries):
            drawn = _mix(hashes[i] ^ attempt) % window.size
            if not hidden[here + window[drawn]]:
                chosen[i] = drawn
                break
        if chosen[i] < 0:
            visible = 0
            for k in range(window.size):
                visible += not hidden[here + window[k]]
            if visible:
                rank = _mix(hashes[i] ^ tries) % visible
                for k in range(window.size):
                    if not hidden[here + window[k]]:
                        if rank == 0:
                            chosen[i] = k
                            break
                        rank -= 1


@compiled
def gather_nearby(
    hidden: Flags,
    place: Places,
    source: Places,
    window: tuple[Places, Places],
    row: Pixels,
    near: Pixels,
    count: Places,
) -> None:
    """Fill in the visible pixels of every window, 0 where one is hidden, and how many there are.

    Parameters
    ----------
    window : pair of ndarray of int64
        The same offsets in the map and in the row.
    row : ndarray of shape (pixels,)
    near : ndarray of shape (m, window)
    """
    in_map, in_row = window
    for i in range(place.size):
        visible = 0
        for k in range(in_map.size):
            if hidden[place[i] + in_map[k]]:
                near[i, k] = 0
            else:
                near[i, k] = row[source[i] + in_row[k]]
                visible += 1
        count[i] = visible


@compiled
def medians_nearby(
    hidden: Flags, place: Places, source: Places, window: tuple[Places, Places], row: Pixels, median: Pixels
) -> None:
    """Fill in the (lower) median of the visible pixels of every window; NaN where there is none."""
    in_map, in_row = window
    values = np.empty(in_map.size, row.dtype)
    for i in range(place.size):
        visible = 0
        for k in range(in_map.size):
            if not hidden[place[i] + in_map[k]]:
                values[visible] = row[source[i] + in_row[k]]
                visible += 1
        if visible:
            median[i] = _ranked(values, visible, (visible - 1) // 2)
        else:
            median[i] = np.nan


@compiled
def _ranked(values: Pixels, n: int, rank: int) -> Any:
    """Return the value of this rank among the first ``n``, which are reordered (quickselect, Hoare 1961)."""
    first, last = 0, n - 1
    while first < last:
        pivot = values[(first + last) // 2]
        low, high = first, last
        while low <= high:
            while values[low] < pivot:
                low += 1
            while pivot < values[high]:
                high -= 1
            if low <= high:
                values[low], values[high] = values[high], values[low]
                low += 1
                high -= 1
        if rank <= high:
            last = high
        elif rank >= low:
            first = low
        else:
            break
    return values[rank]
