"""Waves that run through a whole plane, and a plane less its waves, over any box of it.

A wave is ``A cos(2 pi (fy y + fx x) + phase)``, with y and x counted from the plane's first pixel and ``f``
in cycles per pixel. ``wave_fit`` finds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import pi
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Frequency = tuple[float, float]

_ROWS = 64


@dataclass(frozen=True, slots=True)
class Wave:
    """A wave as fitted to one plane; amplitude 0 where it is not there."""

    frequency: Frequency
    amplitude: float
    phase: float


def wave_values(wave: Wave, shape: tuple[int, int], start: Sequence[int], stop: Sequence[int]) -> Floats:
    """Return a wave over a box of a plane of this shape, to the last bit as over the whole plane."""
    cos_y, sin_y, cos_x, sin_x = _tables(wave.frequency, wave.phase, shape)
    rows, columns = slice(start[0], stop[0]), slice(start[1], stop[1])
    values: Floats = wave.amplitude * (
        cos_y[rows, None] * cos_x[None, columns] - sin_y[rows, None] * sin_x[None, columns]
    )
    return values


def less_waves(
    values: np.ndarray[Any, Any],
    waves: Sequence[Wave],
    shape: tuple[int, ...],
    start: Sequence[int],
    result: np.ndarray[Any, np.dtype[np.float32]],
) -> None:
    """Write ``values`` less the waves into ``result``; any box comes out as that part of the whole plane.

    Parameters
    ----------
    values : (y, x) array of any real type
        A box of a plane.
    waves : sequence of Wave
    shape : (int, int)
        Of the whole plane.
    start : (int, int)
        Of the box.
    result : (y, x) float32 array
    """
    height, width = values.shape
    for first in range(0, height, _ROWS):  # in strips: what is computed with has 8 bytes a pixel
        rows = slice(first, min(first + _ROWS, height))
        strip = values[rows].astype(np.float64)
        begin, end = (start[0] + rows.start, start[1]), (start[0] + rows.stop, start[1] + width)
        for wave in waves:
            strip -= wave_values(wave, (shape[0], shape[1]), begin, end)
        result[rows] = strip


@lru_cache(maxsize=64)
def _tables(frequency: Frequency, phase: float, shape: tuple[int, int]) -> tuple[Floats, ...]:
    # Over whole axes: how an element is computed could depend on where in an array it stands.
    along_y = 2.0 * pi * cycles(frequency[0], shape[0]) + phase
    along_x = 2.0 * pi * cycles(frequency[1], shape[1])
    return np.cos(along_y), np.sin(along_y), np.cos(along_x), np.sin(along_x)


def cycles(frequency: float, size: int) -> Floats:
    """Return the cycles of a frequency at every pixel of an axis, whole ones left out."""
    turns = frequency * np.arange(size)
    part: Floats = turns - np.rint(turns)
    return part
