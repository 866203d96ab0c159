"""Thresholds of filter maps: checked, and suggested from the histogram of a map's own scores.

Where an image has empty background, its cells are the lowest mode of the histogram, narrow because they hold
nothing but noise; signal is whatever lies above, over a range that may be a hundred times as wide. The
suggestion is the valley between the two, looked for on an axis that has the background's width as its unit
near the background and is logarithmic far from it. Where no valley is deep enough, no background was found
and everything is kept: a cell that is wrongly called background is hardly ever trained on, one that is
wrongly kept costs a little time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from denoizarr.errors import BadRequest, DegenerateData

Floats = NDArray[np.float64]
Pieces = Callable[[], Iterable[NDArray[Any]]]

# Fine enough for a narrow mode far from zero.
_BINS = 1 << 16
_PIECE = 1 << 20
# Neither side of a valley may be a handful of odd cells.
_SMALLEST_SHARE = 0.01
# The density between background and signal must fall to half of the lower of the two peaks: the flat and the
# rough grains of an image without any background reach 0.45, decision note 006.
_SMALLEST_DEPTH = 0.5
# In standard errors, so that the gaps in the histogram of a small map do not count as valleys.
_SMALLEST_SIGNIFICANCE = 3.0
# A Gaussian mode stays one mode on the compressed axis if this is at least 1.
_WIDTHS_BEFORE_LOGARITHM = 3.0
_COMPRESSED_BINS = 2048


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A threshold, and how much it is to be trusted.

    Attributes
    ----------
    threshold : float
        ``score >= threshold`` is kept. Where no background was found, the smallest score: all is kept.
    method : "valley" or "none"
        Whether background was found.
    separability : float
        Depth of the valley between background and signal, from 0 (none) to 1 (no cell lies in between), as
        a fraction of the lower of the two peaks; of the deepest significant valley that there
        was, where it was too shallow.
    cells : int
        Finite scores seen.
    kept : float
        Fraction of them at or above the threshold.
    lowest, highest : float
        The extremes of the scores.
    """

    threshold: float
    method: Literal["valley", "none"]
    separability: float
    cells: int
    kept: float
    lowest: float
    highest: float

    def sentence(self) -> str:
        """Say in one line what was chosen and why, for the log or a figure."""
        if self.method == "none":
            return (
                f"no background was found in {self.cells:,} cells (the histogram of their scores has no deep "
                f"valley, depth {self.separability:.2f}), so all of them are kept"
            )
        return (
            f"threshold {self.threshold:.4g} suggested from the scores of {self.cells:,} cells (a valley of "
            f"depth {self.separability:.2f} above the background): keeps {100 * self.kept:.1f} %"
        )


def check_threshold(value: float | None, name: str) -> None:
    """Refuse a threshold that no value can be compared with."""
    if value is not None and not isfinite(value):
        raise BadRequest("not a threshold", where=name, got=value, expected="a finite number")


def suggest_threshold(pieces: Pieces) -> Suggestion:
    """Suggest the threshold that parts background from signal, or keep all where there is no background.

    Parameters
    ----------
    pieces : callable
        Returns the scores, piece after piece: arrays of any shape and real dtype. Called twice, for the
        extremes and for the histogram. NaN and infinity are left out.

    Returns
    -------
    Suggestion
        The same for any order and any division into pieces, bit for bit.

    Raises
    ------
    DegenerateData
        There is no finite score.

    Notes
    -----
    With m the place and s the width of the lowest mode, the histogram is seen over arcsinh((x - m) / 3s) and
    smoothed with the bandwidth of Silverman (Density Estimation, 1986, eq. 3.31). Its depth at a point
    is 1 - f / min(highest peak below, highest peak above). The suggestion is the bottom of the lowest valley
    that is at least 0.5 deep, significantly, with at least one per cent of the cells on either side.
    """
    counts, edges = _histogram(pieces)
    low, high, cells = float(edges[0]), float(edges[-1]), int(counts.sum())
    valley, depth = (None, 0.0) if counts.size == 1 else _lowest_valley(counts.astype(np.float64), edges)
    if valley is None:
        return Suggestion(low, "none", depth, cells, 1.0, low, high)
    # On an edge of a bin, so that the histogram tells exactly how many are kept.
    number = int(np.searchsorted(edges, valley))
    kept = float(counts[number:].sum()) / cells
    return Suggestion(float(edges[number]), "valley", depth, cells, kept, low, high)


def _lowest_valley(counts: Floats, edges: Floats) -> tuple[float | None, float]:
    """Return the score at the bottom of the valley above the background, or None, and its depth."""
    bin_width = (edges[-1] - edges[0]) / counts.size
    smooth = _without_grid(counts)
    mode, width = _lowest_mode(*smooth)
    place, unit = edges[0] + (mode + 0.5) * bin_width, _WIDTHS_BEFORE_LOGARITHM * width * bin_width
    compressed = np.arcsinh(((edges[:-1] + edges[1:]) / 2 - place) / unit)
    density, marks = np.histogram(compressed, _COMPRESSED_BINS, weights=smooth[0])
    centres = (marks[:-1] + marks[1:]) / 2
    bandwidth = _silverman(density, _spread(density))
    density = _blurred(density, bandwidth)

    below = np.maximum.accumulate(density)
    above = np.maximum.accumulate(density[::-1])[::-1]
    peak = np.minimum(below, above)
    depth = 1 - density / np.maximum(peak, np.finfo(np.float64).tiny)
    # The variance of a kernel estimate is its value times the kernel's roughness, 1 / (2 sqrt(pi) bandwidth).
    error = np.sqrt((peak + density) / (2 * np.sqrt(np.pi) * bandwidth))
    share = np.cumsum(density) / density.sum()
    allowed = (
        (centres > 0)
        & (share > _SMALLEST_SHARE)
        & (share < 1 - _SMALLEST_SHARE)
        & (peak - density > _SMALLEST_SIGNIFICANCE * error)
    )
    depth = np.where(allowed, depth, 0.0)
    deep = depth >= _SMALLEST_DEPTH
    if not deep.any():
        return None, float(depth.max())
    first = int(np.argmax(deep))
    stop = first + int(np.argmin(np.append(deep[first:], False)))
    bottom = float(depth[first:stop].max())
    # The middle of the bottom, which is flat where the modes are far apart.
    floor = np.flatnonzero(depth[first:stop] >= bottom - 1e-3) + first
    middle = (centres[floor[0]] + centres[floor[-1]]) / 2
    return float(place + unit * np.sinh(middle)), bottom


def _without_grid(counts: Floats) -> tuple[Floats, float]:
    """Spread scores that lie on a grid (a maximum of integers) over its spacing; return that in bins, too."""
    from scipy.ndimage import uniform_filter1d

    occupied = np.flatnonzero(counts)
    gaps, weights = np.diff(occupied), counts[occupied[1:]]
    order = np.argsort(gaps, kind="stable")
    passed = np.cumsum(weights[order])
    grid = int(gaps[order][np.searchsorted(passed, passed[-1] / 2)])
    return uniform_filter1d(counts, grid, mode="constant"), float(grid)


def _lowest_mode(counts: Floats, grid: float) -> tuple[int, float]:
    """Return the first peak that the density falls from by half, and its standard deviation, in bins.

    The deviation is that of a Gaussian with the mode's lower flank: the upper one may be signal already.
    """
    share = np.cumsum(counts) / counts.sum()
    quarter, three_quarters = np.searchsorted(share, [0.25, 0.75])
    middle_half = float(three_quarters - quarter)
    spread = _spread(counts)
    density = _blurred(counts, _silverman(counts, min(spread, middle_half / 1.34) or spread))
    fallen = (density < 0.5 * np.maximum.accumulate(density)) & (share > _SMALLEST_SHARE)
    end = int(np.argmax(fallen)) if fallen.any() else density.size
    mode = int(np.argmax(density[:end]))
    lower = np.flatnonzero(density[:mode] < 0.5 * density[mode])
    half_width = mode - (int(lower[-1]) if lower.size else 0)
    return mode, max(half_width / 1.177, grid, 1.0)


def _spread(counts: Floats) -> float:
    """Return the standard deviation of a histogram in bins."""
    places = np.arange(counts.size, dtype=np.float64)
    mean = float(counts @ places) / counts.sum()
    return float(np.sqrt(counts @ (places - mean) ** 2 / counts.sum()))


def _silverman(counts: Floats, spread: float) -> float:
    return float(max(0.9 * spread * counts.sum() ** -0.2, 0.5))


def _blurred(counts: Floats, bandwidth: float) -> Floats:
    """Smooth by a Gaussian; through Fourier space, because it may be thousands of bins wide."""
    from scipy.signal import fftconvolve

    reach = int(np.ceil(4 * bandwidth))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / bandwidth) ** 2)
    # Rounding leaves tiny negative numbers where nothing is.
    blurred: Floats = np.maximum(fftconvolve(counts, kernel / kernel.sum())[reach:-reach], 0.0)
    return blurred


def _histogram(pieces: Pieces) -> tuple[NDArray[np.int64], Floats]:
    """Count the finite scores in equal bins between their extremes: one bin where all are the same."""
    extremes = [(float(piece.min()), float(piece.max())) for piece in _finite_parts(pieces())]
    if not extremes:
        raise DegenerateData("no finite score to choose a threshold from")
    low, high = min(a for a, _ in extremes), max(b for _, b in extremes)
    # Narrower than the bins that floats can tell apart: one value, for all that a histogram can see.
    if high - low <= _BINS * np.spacing(max(abs(low), abs(high))):
        cells = sum(piece.size for piece in _finite_parts(pieces()))
        return np.array([cells], np.int64), np.array([low, high])
    edges = np.linspace(low, high, _BINS + 1)
    counts = np.zeros(_BINS, np.int64)
    for piece in _finite_parts(pieces()):
        counts += np.histogram(piece, _BINS, (low, high))[0]
    return counts, edges


def _finite_parts(pieces: Iterable[NDArray[Any]] | Sequence[NDArray[Any]]) -> Iterator[Floats]:
    """Yield the finite values a million at a time: a map may be half a gigabyte, its copies need not be."""
    for array in pieces:
        flat = np.asarray(array).reshape(-1)
        for first in range(0, flat.size, _PIECE):
            part = flat[first : first + _PIECE].astype(np.float64)
            finite = part[np.isfinite(part)]
            if finite.size:
                yield finite
