"""Line interference in a spectrum: what repeats over a whole image at one frequency.

A pattern that repeats, such as the hum of a scanner, is narrow in frequency and the same in every window of
an image; noise of any correlation is broad, and structure differs from window to window. Lines are found
where most windows have more power than the frequencies around, in the Hann-windowed mean spectrum.

``f = (fy, fx)`` is a frequency in cycles per pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import hypot, pi, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
import scipy.fft
import scipy.ndimage

from denoizarr.errors import BadRequest

from .waves import Floats, Frequency

# A period longer than a quarter of the window is not told from shading and structure.
FEWEST_PERIODS = 4.0
# Fewer windows than these cannot agree on anything.
FEWEST_WINDOWS = 8
_SMALLEST_SIDE = 16
# More lines than these are a texture.
MOST_LINES = 24
# What a line has to have over its surroundings, in mean nats: 1.1 is three times their power.
_LEAST_EXCESS = 1.1
# One window tells no more than this, so that the few with a texture of their own do not decide for all.
_MOST_EXCESS = 3.0
# Half the main lobe of a Hann window, and how far the surroundings of a frequency reach, in bins.
_LOBE, _AROUND = 2, 8
# A wave of a hundredth of a window's spread is not worth an extra pass; JPEG and rounding leave such.
_LEAST_AMPLITUDE = 0.01
# Lines are harmonics of each other where their frequencies agree to this share of a bin.
_SAME = 0.15
_MOST_HARMONIC = 8


@dataclass(frozen=True, slots=True)
class Line:
    """A wave that runs through a whole image.

    Attributes
    ----------
    frequency : (float, float)
        (fy, fx) in cycles per pixel, of the two signs the one with fx > 0, or fx = 0 and fy > 0.
    significance : float
        How far it stands above its surroundings, in standard deviations of what they show.
    fundamental : (float, float)
        Of the group of harmonics that it belongs to; its own where it stands alone.
    harmonic : int
        Which multiple of the fundamental it is (up to whole cycles per pixel, which pixels cannot tell).
    """

    frequency: Frequency
    significance: float
    fundamental: Frequency
    harmonic: int = 1

    @property
    def period(self) -> float:
        """Distance between two crests of the fundamental, in pixels across them."""
        return 1.0 / hypot(*self.fundamental)

    @property
    def direction(self) -> float:
        """Angle of the fundamental's direction across its crests, in degrees from x towards y, -90 to 90."""
        fy, fx = self.fundamental
        return float(np.degrees(np.arctan2(fy, fx)))


@dataclass(frozen=True, slots=True)
class MeanPower:
    """The mean power spectrum of many windows, and how it stands out; mergeable.

    Attributes
    ----------
    windows : int
    power : (y, x) float64 array
        Sum over the windows of their Hann-windowed power, in units of what white noise of the window's
        variance has; frequencies in the FFT's order.
    excess : (y, x) float64 array
        Sum over the windows of log power over that of the frequencies around, at most 3 either way each.
    """

    windows: int
    power: Floats
    excess: Floats

    @staticmethod
    def merged(parts: Sequence[MeanPower]) -> MeanPower:
        """Return the spectrum of all parts, added in the order given."""
        return MeanPower(
            sum(part.windows for part in parts),
            np.sum([part.power for part in parts], axis=0),
            np.sum([part.excess for part in parts], axis=0),
        )


def mean_power(windows: np.ndarray[Any, Any]) -> MeanPower:
    """Return the mean power spectrum of windows.

    Parameters
    ----------
    windows : (n, y, x) array
        Intensities. Windows without variance are left out.

    Raises
    ------
    BadRequest
        The array has other axes, or the windows are smaller than 16 pixels.
    """
    return _mean_power(_flattened(windows))


def find_lines(windows: np.ndarray[Any, Any], *, false_alarm: float = 0.001) -> tuple[Line, ...]:
    """Find the lines that run through windows of an image.

    The strongest is found, fitted and taken out of the windows, and so on until nothing stands out: side
    lobes of a strong line are never taken for others.

    Parameters
    ----------
    windows : (n, y, x) array
        Intensities of windows from all over an image or several; 8 or more, 16 pixels or more on a side. The
        positions do not matter.
    false_alarm : float
        Chance of a line in white noise, all frequencies together.

    Returns
    -------
    tuple of Line
        Strongest first; empty where there are none, or too few windows to say. Frequencies are refined
        between bins, and harmonics share their fundamental's.

    Raises
    ------
    BadRequest
        The array has other axes, or the windows are smaller than 16 pixels.
    """
    whole = _flattened(windows)
    if len(whole) < FEWEST_WINDOWS:
        return ()
    left = whole
    found: list[tuple[Frequency, float]] = []
    while len(found) < MOST_LINES:
        peak = _strongest(_mean_power(left), [frequency for frequency, _ in found], false_alarm)
        if peak is None:
            break
        found.append((_refined(left, peak[0]), peak[1]))
        left = without_waves(whole, [frequency for frequency, _ in found])
    frequencies = _refined_together(whole, [frequency for frequency, _ in found])
    lines = [Line(f, significance, f) for f, (_, significance) in zip(frequencies, found, strict=True)]
    return grouped(lines, (whole.shape[1], whole.shape[2]))


def without_waves(windows: np.ndarray[Any, Any], frequencies: Sequence[Frequency]) -> Floats:
    """Return windows less the waves of these frequencies, fitted to each by least squares with its mean.

    Parameters
    ----------
    windows : (n, y, x) array
    frequencies : sequence of (fy, fx)
        In cycles per pixel.

    Returns
    -------
    (n, y, x) float64 array
        The mean stays.
    """
    flat = np.asarray(windows, dtype=np.float64)
    n, height, width = flat.shape
    if not frequencies or not n:
        return flat.copy()
    weights = np.outer(hann(height), hann(width)).ravel()
    waves = np.stack([_phases(f, (height, width)).ravel() for f in frequencies])
    basis = np.concatenate([np.cos(waves), np.sin(waves), np.ones((1, waves.shape[1]))])
    gram = (basis * weights) @ basis.T
    found = flat.reshape(n, -1) @ (basis * weights).T @ np.linalg.pinv(gram, rcond=1e-10, hermitian=True)
    found[:, -1] = 0.0
    less: Floats = flat - (found @ basis).reshape(flat.shape)
    return less


def grouped(lines: Sequence[Line], shape: tuple[int, int]) -> tuple[Line, ...]:
    """Return the lines with those that are harmonics of one fundamental named so, its frequency shared.

    Parameters
    ----------
    lines : sequence of Line
    shape : (int, int)
        Extents over which the frequencies were measured, in pixels: they are known to a part of a bin.
    """
    result = list(lines)
    rest = sorted(range(len(lines)), key=lambda number: hypot(*lines[number].frequency))
    while rest:
        base = lines[rest[0]].frequency
        members: dict[int, int] = {}
        # Every harmonic of order k tells the fundamental k times as precisely: (weight, weighted frequency).
        total, weighted = 0.0, np.zeros(2)
        for harmonic in range(1, _MOST_HARMONIC + 1):
            for number in rest:
                folded = _as_harmonic(lines[number].frequency, base, harmonic, shape)
                if folded is None or number in members:
                    continue
                members[number] = harmonic
                weight = harmonic**2 * lines[number].significance
                total, weighted = total + weight, weighted + weight * np.array(folded)
                base = (float(weighted[0] / total), float(weighted[1] / total))
        for number, harmonic in members.items() if len(members) > 1 else ():
            result[number] = replace(lines[number], fundamental=_upper(base), harmonic=harmonic)
        rest = [number for number in rest if number not in members]
    return tuple(result)


def hann(size: int) -> Floats:
    """Return a Hann window whose zeros lie half a pixel outside."""
    window: Floats = np.sin(pi * (np.arange(size) + 0.5) / size) ** 2
    return window


def _flattened(windows: np.ndarray[Any, Any]) -> Floats:
    """Return windows less their mean, scaled to variance 1; those without any are left out."""
    windows = np.asarray(windows)
    if windows.ndim != 3:
        raise BadRequest("windows have the wrong shape", got=windows.shape, expected="(n, y, x)")
    height, width = windows.shape[1:]
    if min(height, width) < _SMALLEST_SIDE:
        expected = f"at least {_SMALLEST_SIDE} pixels on a side"
        raise BadRequest("windows are too small for a spectrum", got=(height, width), expected=expected)
    flat = windows.astype(np.float64)
    flat = flat[np.isfinite(flat).all(axis=(1, 2))]
    # Shading is far below the lowest frequency that is looked at; fitting it would bend the waves.
    mean = flat.mean(axis=(1, 2), keepdims=True)
    flat -= mean
    spread = flat.std(axis=(1, 2))
    varied = spread > 1e-9 * np.abs(mean[:, 0, 0])
    # Windows of little power count as much as bright ones.
    scaled: Floats = flat[varied] / spread[varied, None, None]
    return scaled


def _mean_power(flat: Floats) -> MeanPower:
    height, width = flat.shape[1:]
    power = np.zeros((height, width))
    excess = np.zeros((height, width))
    white = float((hann(height) ** 2).sum() * (hann(width) ** 2).sum())
    least = (0.5 * _LEAST_AMPLITUDE * hann(height).sum() * hann(width).sum()) ** 2 / white
    for first in range(0, len(flat), 128):
        batch = flat[first : first + 128] * hann(height)[:, None] * hann(width)
        single = np.abs(scipy.fft.fft2(batch)) ** 2 / white
        power += single.sum(axis=0)
        logs = np.log(single + least)
        excess += np.clip(logs - _surroundings(logs), -_MOST_EXCESS, _MOST_EXCESS).sum(axis=0)
    return MeanPower(len(flat), power, excess)


def _surroundings(logs: Floats) -> Floats:
    """Return the mean of every frequency's surroundings, its own lobe left out."""
    outer, inner = 2 * _AROUND + 1, 2 * _LOBE + 1
    sizes = [scipy.ndimage.uniform_filter(logs, (1, n, n), mode="wrap") * n**2 for n in (outer, inner)]
    around: Floats = (sizes[0] - sizes[1]) / (outer**2 - inner**2)
    return around


def _strongest(
    spectrum: MeanPower, taken: Sequence[Frequency], false_alarm: float
) -> tuple[Frequency, float] | None:
    """Return the frequency of the strongest peak that stands out and its significance, or nothing."""
    excess = spectrum.excess / spectrum.windows
    height, width = excess.shape
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    allowed = np.hypot(fy, fx) >= FEWEST_PERIODS / min(height, width)
    for frequency in taken:  # what is left of a line is no other
        for sign in (1, -1):
            apart = [(sign * f - g) % 1.0 for f, g in zip(frequency, (fy, fx), strict=True)]
            near = [np.minimum(a, 1.0 - a) * n < _LOBE for a, n in zip(apart, (height, width), strict=True)]
            allowed &= ~(near[0] & near[1])
    logs = np.log(spectrum.power / spectrum.windows + 1e-12)
    # A straight edge lifts all frequencies of its direction: what stands out does so along it, too.
    along = _above_neighbours(logs)
    ripple = 1.4826 * float(np.median(np.abs(along[allowed] - np.median(along[allowed]))))
    # The logarithm of noise's power in one window spreads by 1.28.
    sampling = 1.28 / sqrt(spectrum.windows)
    limit = NormalDist().inv_cdf(1.0 - false_alarm / (allowed.sum() / 2))
    stands_out = allowed & (excess >= max(_LEAST_EXCESS, limit * sampling))
    stands_out &= along >= max(_LEAST_EXCESS, limit * max(sampling, ripple))
    for start in np.argsort(-np.where(stands_out, logs, -np.inf), axis=None)[: int(stands_out.sum())]:
        # The slopes of a strong peak stand out as much as its crest.
        best = _summit(logs, int(start))
        if allowed[best]:
            frequency = _upper((float(fy[best[0], 0]), float(fx[0, best[1]])))
            return frequency, float(along[best] / max(sampling, ripple))
    return None


def _summit(values: Floats, start: int) -> tuple[int, int]:
    """Return where climbing from a place to the highest within one lobe ends."""
    height, width = values.shape
    y, x = divmod(start, width)
    steps = np.arange(-_LOBE, _LOBE + 1)
    while True:
        rows, columns = (y + steps) % height, (x + steps) % width
        near = values[np.ix_(rows, columns)]
        down, right = divmod(int(near.argmax()), len(steps))
        if near[down, right] <= values[y, x]:
            return y, x
        y, x = int(rows[down]), int(columns[right])


def _above_neighbours(values: Floats) -> Floats:
    """Return by how much every frequency exceeds its neighbours on a line, the least of all directions."""
    height, width = values.shape
    y = np.fft.fftfreq(height, 1 / height)[:, None]
    x = np.fft.fftfreq(width, 1 / width)[None, :]
    length = np.maximum(np.maximum(np.abs(y), np.abs(x)), 1.0)
    steps = [s for s in range(-_AROUND, _AROUND + 1) if abs(s) > _LOBE]
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    least = np.full(values.shape, np.inf)
    # Along x, along y, and away from zero frequency.
    ones = np.ones(values.shape)
    for down, right in ((0 * ones, ones), (ones, 0 * ones), (y / length * ones, x / length * ones)):
        near = [
            values[
                (rows + np.rint(s * down).astype(int)) % height,
                (columns + np.rint(s * right).astype(int)) % width,
            ]
            for s in steps
        ]
        least = np.minimum(least, values - np.median(near, axis=0))
    return least


def _refined(windows: Floats, start: Frequency) -> Frequency:
    """Return the frequency near ``start`` at which the windows have most power together."""
    height, width = windows.shape[1:]
    weighted = windows * hann(height)[:, None] * hann(width)
    fy, fx = start
    # The less other power a window has around, the more it tells; a noiseless one tells not all.
    around = np.median(_power_at(weighted, start, np.array((-8.0, -6.0, -4.0, 4.0, 6.0, 8.0))), axis=(1, 2))
    weights = 1.0 / (around + 1e-6 * height * width)
    for step in (0.5, 0.25, 0.1, 0.04):
        power = _power_at(weighted, (fy, fx), step * np.arange(-1.0, 2.0))
        logs = np.log((weights[:, None, None] * power).sum(axis=0) + 1e-300)
        fy += _crest(logs[:, 1]) * step / height
        fx += _crest(logs[1, :]) * step / width
    return _upper((fy, fx))


def _power_at(weighted: Floats, frequency: Frequency, offsets: Floats) -> Floats:
    """Return the power of windows at the frequency plus all pairs of k offsets, in bins: (n, k, k)."""
    height, width = weighted.shape[1:]
    rows = np.exp(-2j * pi * np.outer(frequency[0] + offsets / height, np.arange(height)))
    columns = np.exp(-2j * pi * np.outer(np.arange(width), frequency[1] + offsets / width))
    power: Floats = np.abs(rows @ (weighted @ columns)) ** 2
    return power


def _refined_together(windows: Floats, frequencies: Sequence[Frequency]) -> list[Frequency]:
    """Return the frequencies, each refined once more with the waves of all others taken away."""
    refined = list(frequencies)
    for _ in range(2 if len(refined) > 1 else 0):
        for number in range(len(refined)):
            others = refined[:number] + refined[number + 1 :]
            refined[number] = _refined(without_waves(windows, others), refined[number])
    return refined


def _crest(values: Floats) -> float:
    """Return where a parabola through three values at -1, 0, 1 is highest, at most one step away."""
    left, middle, right = map(float, values)
    bend = left - 2.0 * middle + right
    if bend >= 0.0:
        return float(np.sign(right - left))
    return float(np.clip(0.5 * (left - right) / bend, -1.0, 1.0))


def _upper(frequency: Frequency) -> Frequency:
    """Return the frequency or its opposite, whichever has fx > 0, or fx = 0 and fy > 0."""
    # Half a cycle per pixel is its own opposite.
    fy, fx = (f - np.floor(f + 0.5) for f in frequency)
    fy, fx = (0.5 if abs(abs(f) - 0.5) < 1e-9 else float(f) for f in (fy, fx))
    near_axis = abs(fx) < 1e-9
    return (-fy, -fx) if (fx < 0 and not near_axis) or (near_axis and fy < 0) else (fy, fx)


def _as_harmonic(
    frequency: Frequency, base: Frequency, harmonic: int, shape: tuple[int, int]
) -> Frequency | None:
    """Return the fundamental near ``base`` of which ``frequency`` is that harmonic, or nothing."""
    for sign in (1, -1):
        cycles = [round(harmonic * b - sign * f) for b, f in zip(base, frequency, strict=True)]
        own = [(sign * f + c) / harmonic for f, c in zip(frequency, cycles, strict=True)]
        if all(harmonic * abs(o - b) * n <= _SAME for o, b, n in zip(own, base, shape, strict=True)):
            return own[0], own[1]
    return None


def _phases(frequency: Frequency, shape: tuple[int, int]) -> Floats:
    fy, fx = frequency
    phases: Floats = 2.0 * pi * (fy * np.arange(shape[0])[:, None] + fx * np.arange(shape[1])[None, :])
    return phases
