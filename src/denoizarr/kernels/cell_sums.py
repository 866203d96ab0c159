"""Sums of a plane over its cells, at some frequencies: in any order of reading the same to the last bit.

A plane is cut into cells on a grid from its first pixel. For every cell and frequency four sums are kept,
with rising and falling halves of a Hann window along y and x; cells side by side make overlapping windows::

    cells      |  0  |  1  |  2  |  3  |      a cell's sums need no other cell
    windows    [  0 ###  ]     |     |
               |     [  1 ###  ]     |
               |     |     [  2 ###  ]        windows 0 + 1 + 2: flat in the middle, tapered at the borders

``f = (fy, fx)`` is a frequency in cycles per pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import pi
from typing import Any

import numpy as np

from .waves import Floats, Frequency, cycles

Complex = np.ndarray[Any, np.dtype[np.complex128]]
Edges = np.ndarray[Any, np.dtype[np.int64]]

# Cells of 64 pixels make windows of 128; a small plane is cut in eight, down to cells of 16.
_SIDES, _FEWEST_CELLS = (64, 32, 16), 8


def cell_edges(size: int) -> Edges | None:
    """Return where the cells of an axis begin, and the last one's end; None for an axis that is too short.

    The last cell takes the rest, so that it is up to twice as long.
    """
    for side in _SIDES:
        if size >= _FEWEST_CELLS * side:
            return np.append(np.arange(size // side) * side, size)
    return None


def _edges_of(size: int) -> Edges:
    edges = cell_edges(size)
    assert edges is not None, "an axis that can be measured"
    return edges


class CellSums:
    """The sums of one plane over its cells, at some frequencies and at zero.

    Parameters
    ----------
    shape : (int, int)
        Of the plane, (y, x), in pixels.
    frequencies : sequence of (fy, fx)
        Near those of the waves, in cycles per pixel.
    """

    def __init__(self, shape: tuple[int, int], frequencies: Sequence[Frequency]) -> None:
        self.shape, self.frequencies = shape, tuple(frequencies)
        self.edges = (_edges_of(shape[0]), _edges_of(shape[1]))
        self._factors = _factors(shape, self.frequencies)
        self.sums: Complex = np.zeros(
            (len(self.edges[0]) - 1, len(self.edges[1]) - 1, len(self.frequencies) + 1, 2, 2), np.complex128
        )

    def add(self, first: tuple[int, int], values: np.ndarray[Any, Any]) -> None:
        """Take the pixels of whole cells.

        Parameters
        ----------
        first : (int, int)
            Number of the first cell along y and x.
        values : (y, x) array of any real type
            From that cell's first pixel to the end of some cell along both axes.
        """
        rows, columns = self.edges
        down, right = self._factors
        top, left = int(rows[first[0]]), int(columns[first[1]])
        stop = [
            int(np.searchsorted(e, a + n))
            for e, a, n in zip(self.edges, (top, left), values.shape, strict=True)
        ]
        for j in range(first[0], stop[0]):
            strip = values[rows[j] - top : rows[j + 1] - top].astype(np.float64)
            for k in range(first[1], stop[1]):
                cell = np.ascontiguousarray(strip[:, columns[k] - left : columns[k + 1] - left])
                # One cell at a time: the last bits of a product depend on its shape.
                across = (cell @ right[columns[k] : columns[k + 1]]).view(np.complex128)
                across = across.reshape(len(cell), -1, 2)
                self.sums[j, k] = np.einsum("yla,ylb->lab", down[rows[j] : rows[j + 1]], across)

    def windows(self) -> Complex:
        """Return the sums of overlapping windows, (windows along y, along x, frequencies + 1)."""
        s = self.sums
        rise, fall = 0, 1
        windows: Complex = (
            s[:-1, :-1, :, rise, rise]
            + s[:-1, 1:, :, rise, fall]
            + s[1:, :-1, :, fall, rise]
            + s[1:, 1:, :, fall, fall]
        )
        return windows


@lru_cache(maxsize=8)
def _factors(shape: tuple[int, int], frequencies: tuple[Frequency, ...]) -> tuple[Complex, Floats]:
    """Return the factors of every pixel along y, (y, l, 2) complex, and along x, (x, 4 l) as real pairs."""
    factors = []
    for axis in (0, 1):
        edges = _edges_of(shape[axis])
        halves = _halves(edges)
        turns = np.stack([cycles(f[axis], shape[axis]) for f in ((0.0, 0.0), *frequencies)], axis=1)
        factors.append(np.exp(-2j * pi * turns)[:, :, None] * halves[:, None, :])
    return factors[0], np.ascontiguousarray(factors[1]).reshape(shape[1], -1).view(np.float64)


def _halves(edges: Edges) -> Floats:
    """Return the rising and the falling half of a Hann window over every cell, (pixels, 2); they add to 1."""
    parts = [(np.arange(n) + 0.5) / n for n in np.diff(edges)]
    rise = np.sin(0.5 * pi * np.concatenate(parts)) ** 2
    return np.stack([rise, 1.0 - rise], axis=1)


def window_sums(edges: Edges, frequency: float) -> Complex:
    """Return the sum of every window's weights times exp(2 pi i f x), exactly."""
    turned = _halves(edges) * np.exp(2j * pi * cycles(frequency, int(edges[-1])))[:, None]
    cells = np.add.reduceat(turned, edges[:-1], axis=0)
    sums: Complex = cells[:-1, 0] + cells[1:, 1]
    return sums


def window_centres(edges: Edges) -> Floats:
    """Return where the middle of every window lies, by its weights, in pixels."""
    weights = _halves(edges)
    places = np.arange(int(edges[-1]))[:, None] * weights
    mass, moment = (np.add.reduceat(a, edges[:-1], axis=0) for a in (weights, places))
    centres: Floats = (moment[:-1, 0] + moment[1:, 1]) / (mass[:-1, 0] + mass[1:, 1])
    return centres
