"""Images for benchmarks: what a camera gives, and the worst case."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Stack = NDArray[np.uint16]


def light_sheet(shape: tuple[int, int, int], seed: int = 0) -> Stack:
    """Return a stack (z, y, x) of sparse bright cells over camera noise: about 90 to 4,000 grey levels.

    Each plane has an offset of 100, read noise of 6 levels, and cells of 4 to 16 pixels radius in one half of
    the field, whose light has the noise of photons.
    """
    generator = np.random.default_rng(seed)
    depth, height, width = shape
    stack = np.empty(shape, np.uint16)
    for z in range(depth):
        light = np.full((height, width), 8.0, np.float32)
        for _ in range(height * width // 4096):
            y, x = generator.integers(0, height), generator.integers(0, (width + 1) // 2)
            radius, peak = generator.uniform(4, 16), generator.uniform(100, 3500)
            _add_cell(light, int(y), int(x), radius, peak)
        photons = generator.poisson(np.minimum(light, 3700))
        stack[z] = np.clip(100 + photons + generator.normal(0, 6, light.shape), 0, 65535).round()
    return stack


def _add_cell(light: NDArray[np.float32], y: int, x: int, radius: float, peak: float) -> None:
    reach = int(3 * radius)
    rows = np.arange(max(y - reach, 0), min(y + reach + 1, light.shape[0]))
    columns = np.arange(max(x - reach, 0), min(x + reach + 1, light.shape[1]))
    profile = [np.exp(-(((at - centre) / radius) ** 2)) for at, centre in ((rows, y), (columns, x))]
    light[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += peak * np.outer(*profile)


def full_range(shape: tuple[int, int, int], seed: int = 0) -> Stack:
    """Return noise over all 65,536 levels (z, y, x): the most distinct values that a region can have."""
    return np.random.default_rng(seed).integers(0, 65536, shape, dtype=np.uint16)
