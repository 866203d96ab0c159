"""The exact percentiles of each channel in two mergeable passes: the bounds of the entropy's bins for floats.

The first pass counts the top 16 bits of every voxel's order-preserving key, the second the low 16 bits of
those voxels that share the percentile's top bits. Exact for float32 and narrower; float64 is rounded to
float32, within 6e-8 relative.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoizarr.geometry.boxes import Box
from denoizarr.kernels.statistics import (
    locate_quantile,
    locate_rank,
    moments_of,
    refined_histogram,
    refined_value,
)

from .cells import Cells
from .scores import Bounds

ENTROPY_QUANTILES = (0.001, 0.999)
Counts = NDArray[np.int64]
Located = dict[int, tuple[tuple[int, int], ...]]


def channel_parts(cells: Cells, box: Box, voxels: NDArray[Any]) -> dict[int, NDArray[Any]]:
    """Return the voxels of a box by channel number; channel 0 where the image has no c."""
    if "c" not in cells.dims:
        return {0: voxels}
    axis = cells.dims.index("c")
    return {box.start[axis] + k: voxels.take(k, axis) for k in range(voxels.shape[axis])}


def coarse_counts(cells: Cells, box: Box, voxels: NDArray[Any]) -> dict[int, Counts]:
    """Return the first pass over one box: a histogram of 65,536 bins by channel."""
    return {c: moments_of(part).histogram for c, part in channel_parts(cells, box, voxels).items()}


def locate(histograms: dict[int, Counts]) -> Located:
    """Return, by channel, the bin of each percentile and its rank inside the bin."""
    return {c: tuple(locate_quantile(h, q) for q in ENTROPY_QUANTILES) for c, h in histograms.items()}


def fine_counts(cells: Cells, box: Box, voxels: NDArray[Any], located: Located) -> dict[int, Counts]:
    """Return the second pass over one box: (percentile, 65,536) counts by channel."""
    return {
        c: np.stack([refined_histogram(part, bin_number) for bin_number, _ in located[c]])
        for c, part in channel_parts(cells, box, voxels).items()
    }


def bounds_of(located: Located, histograms: dict[int, Counts]) -> Bounds:
    """Return the percentiles by channel."""
    found = {
        c: [
            refined_value(bin_number, locate_rank(h, rank)[0])
            for (bin_number, rank), h in zip(located[c], pair, strict=True)
        ]
        for c, pair in histograms.items()
    }
    return {c: (low, high) for c, (low, high) in found.items()}


def added(parts: Iterable[dict[int, Counts]]) -> dict[int, Counts]:
    """Return the sums by channel; integers, so the order does not matter."""
    total: dict[int, Counts] = {}
    for part in parts:
        for c, counts in part.items():
            total[c] = total[c] + counts if c in total else counts
    return total
