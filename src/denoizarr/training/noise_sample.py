"""From windows of an image to the power spectrum of its noise alone.

Structure is correlated too, and usually much stronger. What tells the two apart:

* A microscope's optics leave structure little power at high frequencies; noise has its own at all of them.
* Noise has the same spectrum in every window, up to a factor; structure has another one in each. Where
  windows differ in their power by more than sampling gives, there is structure.

So frequencies are gone through from the highest to the lowest, in rings. In each ring windows are dropped,
those with most structure first, until those that are left agree; a window that shows structure at one
frequency shows more of it at all lower ones, so it does not come back. Below some radius nothing agrees any
more. What noise has there is not measured but follows from the rest, see ``lag_fit``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import log, sqrt
from typing import Any

import numpy as np
import scipy.fft

from denoizarr.errors import BadRequest
from denoizarr.kernels import autocorrelation as lags

Array = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]

# A quadric: shading and slopes go, and with them only frequencies that are not used.
DEGREE = 2
# Below this side a window has too few frequencies.
SMALLEST_SIDE = 24
# Pixels kept of a stream of windows, 1,024 windows of 64x64: the flattest. Their noise is known to 1 / 2048.
MOST_PIXELS = 2**22
# Windows looked at together, in pixels: 256 of 64x64.
_BATCH_PIXELS = 2**20
# Rings of frequencies, in cycles per pixel. Two and a half bins of 64 pixels.
RING = 0.04
# Shading, detrending and the order of windows are all below two rings.
_LOWEST = 2
_HIGHEST = 13
# Where some windows show structure, less of it is left in the others: what is found with the help of those
# rings is checked without them: up to the first radius where all windows agree, to the second at least where
# they do not, and up to the third at most, beyond which too few frequencies are left.
_ALWAYS_DOUBTED, _DOUBTED, _LAST_DOUBTED = 0.2, 0.28, 0.32
# Windows may differ by this share of the noise's mean power: what that adds to the correlation is below .01.
_SLACK = 0.07
# By how many standard deviations their power may follow that at lower frequencies.
_FOLLOWS = 3.0
# Rounding to whole numbers adds independent noise only to what varies by half a step (the rule for dither).
_RESOLVED_VARIANCE = 0.25
# The variance of a Hann-windowed mean of many frequencies over that of independent ones, per axis:
# 1 + 2 (2/3)^2 + 2 (1/6)^2, for neighbouring bins are correlated.
SHARED = 1.0 + 2.0 * (2.0 / 3.0) ** 2 + 2.0 * (1.0 / 6.0) ** 2


@dataclass(frozen=True, slots=True)
class NoiseSpectrum:
    """The power of noise at the frequencies where windows agree.

    Attributes
    ----------
    power : float64 array of a window's shape
        Mean of Hann-windowed power over the windows taken, in squared intensities of a window of median
        noise (white noise of variance v has v everywhere); NaN where it is not known. In the FFT's order.
    windows : int64 array of the same shape
        Windows taken at each frequency.
    radius : float
        Frequencies below it, in cycles per pixel, are not known.
    trusted : float
        From here on no window had to be left out, so what structure there is is small; 0.2 to 0.32.
    spread : float
        Variance of the windows' power over what sampling gives, summed over rings; about 1 for noise.
    share : float
        Share of noise in the mean variance of all windows, about 1 where there is no structure.
    uneven : float
        Relative standard deviation of the level of noise between windows. Photon noise makes it large, and so
        does structure that reaches the highest frequencies.
    """

    power: Floats
    windows: Integers
    radius: float
    trusted: float
    spread: float
    share: float
    uneven: float


def usable_windows(patches: Array, *, volumes: bool = False) -> Array:
    """Return the windows that are finite and not constant.

    Parameters
    ----------
    patches : (n, y, x) array
    volumes : bool
        Whether (n, z, y, x) is taken as well.

    Raises
    ------
    BadRequest
        When the array has other axes, or its windows are too small to hold a neighbourhood.
    """
    patches = np.asarray(patches)
    if patches.ndim not in ((3, 4) if volumes else (3,)):
        expected = "(n, y, x) or (n, z, y, x)" if volumes else "(n, y, x)"
        raise BadRequest("patches have the wrong shape", got=patches.shape, expected=expected)
    if min(patches.shape[-2:]) < SMALLEST_SIDE:
        expected = f"at least {SMALLEST_SIDE} pixels on a side"
        raise BadRequest(
            "windows are too small to measure noise in", got=patches.shape[-2:], expected=expected
        )
    if not len(patches):
        return patches
    flat = patches.reshape(len(patches), -1)
    usable = flat.max(axis=1) > flat.min(axis=1)
    if patches.dtype.kind == "f":
        usable &= np.isfinite(flat).all(axis=1)
    chosen: Array = patches[usable]
    return chosen


def quarters(windows: Array) -> Array:
    """Cut every window in four along y and x, where there are few. Empty if they are too small for that."""
    *lead, height, width = windows.shape
    y, x = height // 2, width // 2
    if min(y, x) < SMALLEST_SIDE:
        return windows[:0]
    cut = windows[..., : 2 * y, : 2 * x].reshape(*lead, 2, y, 2, x)
    cut = np.moveaxis(cut, (-4, -2), (1, 2)).reshape(-1, *lead[1:], y, x)
    return usable_windows(cut, volumes=True)


def flattest_windows(batches: Array | Iterable[Array]) -> tuple[Array, int]:
    """Return the windows of a stream that hold least structure, and how many windows there were.

    Memory does not grow with the stream, and the result does not depend on how it is cut into batches.

    Parameters
    ----------
    batches : (n, y, x) or (n, z, y, x) array, or an iterable of such arrays of equal windows
        Raw intensities.

    Returns
    -------
    windows : array
        Those usable, in the stream's order; of more than 2**22 pixels the flattest, by the share of their
        variance that is coarse.
    count : int
        Windows seen, usable or not.
    """
    count = 0
    kept: list[Array] = []
    shares: list[Floats] = []
    held = 0
    for whole in [batches] if isinstance(batches, np.ndarray) else batches:
        count += len(whole)
        usable = usable_windows(whole, volumes=True)
        step = max(_BATCH_PIXELS // max(int(np.prod(usable.shape[1:])), 1), 1)
        for first in range(0, len(usable), step):
            batch = usable[first : first + step]
            kept.append(batch)
            shares.append(_flatness(batch))
            held += batch.size
            if held > 2 * MOST_PIXELS:
                kept, shares = _keep_flattest(kept, shares)
                held = sum(part.size for part in kept)
    if not kept:
        return np.empty((0, SMALLEST_SIDE, SMALLEST_SIDE)), count
    kept, _ = _keep_flattest(kept, shares)
    return kept[0], count


def _keep_flattest(kept: list[Array], shares: list[Floats]) -> tuple[list[Array], list[Floats]]:
    windows, share = np.concatenate(kept), np.concatenate(shares)
    most = max(MOST_PIXELS // int(np.prod(windows.shape[1:])), 1)
    chosen = np.sort(np.argsort(share, kind="stable")[:most])
    return [windows[chosen]], [share[chosen]]


def _flatness(windows: Array) -> Floats:
    detrended = lags.detrend(windows, DEGREE)
    planes = detrended.reshape(-1, *detrended.shape[-2:])
    share: Floats = lags.coarse_share(planes).reshape(len(windows), -1).mean(axis=1)
    return share


def radii(shape: tuple[int, ...]) -> Floats:
    """Return the distance of every frequency from zero, in cycles per pixel, in the FFT's order."""
    axes = np.meshgrid(*(scipy.fft.fftfreq(n) for n in shape), indexing="ij", sparse=True)
    distance: Floats = np.sqrt(sum(axis**2 for axis in axes))
    return distance


def hann(size: int) -> Floats:
    """Return a Hann window without zeros, of unit power."""
    window: Floats = np.hanning(size + 2)[1:-1]
    return window / sqrt(float((window**2).sum()))


def measure_spectrum(windows: Array, minimum: int) -> NoiseSpectrum:
    """Measure the power of noise at all frequencies where so many windows agree on it.

    Parameters
    ----------
    windows : (n, y, x) or (n, z, y, x) array
        Raw intensities; none constant.
    minimum : int
        Windows to agree at least; n is not less.

    Returns
    -------
    NoiseSpectrum
        With a radius beyond all frequencies where even the highest do not agree.
    """
    shape = windows.shape[1:]
    detrended = lags.detrend(windows, DEGREE)
    if windows.dtype.kind in "iu":
        resolved = detrended.reshape(len(windows), -1).var(axis=1) >= _RESOLVED_VARIANCE
        detrended = detrended[resolved] if resolved.sum() >= minimum else detrended
    distance = radii(shape).ravel()
    power, levels = _levelled(_power(detrended), distance >= _LOWEST * RING)
    order = np.argsort(power[:, (distance < _LOWEST * RING) & (distance > 0)].mean(axis=1), kind="stable")
    power = power[order]
    typical = np.median(power, axis=0) / log(2.0)  # the median of an exponential quantity
    slack = _SLACK * float(typical[distance >= 0.2].mean())
    found, taken = np.full(power.shape[1], np.nan), np.zeros(power.shape[1], dtype=np.int64)
    radius, trusted = _LOWEST * RING, _ALWAYS_DOUBTED
    count, varied, expected = len(power), 0.0, 0.0
    for ring in range(_HIGHEST, _LOWEST - 1, -1):
        cells = _cells(ring, shape)
        together = np.concatenate(cells)
        sets = [_Cell.of(power, typical, together, len(shape), slack)]
        sets += [_Cell.of(power, typical, cell, len(shape), 2.0 * slack) for cell in cells]
        below = power[:, np.concatenate(_cells(ring - 2, shape))].mean(axis=1)
        while count >= minimum and not (
            all(each.agrees(count) for each in sets) and sets[0].follows(below, count) <= _FOLLOWS
        ):
            count = int(0.85 * count)
        if count < len(power):
            trusted = max(trusted, _DOUBTED, (ring + 1) * RING)
        if count < minimum:
            radius = (ring + 1) * RING
            break
        varied += float(sets[0].power[:count].var(ddof=1))
        expected += sets[0].sampling(count)
        found[together], taken[together] = power[:count, together].mean(axis=0), count
    found[distance < radius - 1e-9] = np.nan
    noise = float(np.nanmean(found)) * float(levels.mean()) if np.isfinite(found).any() else 0.0
    return NoiseSpectrum(
        power=found.reshape(shape),
        windows=taken.reshape(shape),
        radius=radius,
        trusted=max(radius, min(trusted, _LAST_DOUBTED)),
        spread=varied / expected if expected > 0 else np.inf,
        share=noise / float(detrended.var()),
        uneven=float(levels.std() / levels.mean()),
    )


def _power(detrended: Floats) -> Floats:
    """Return the Hann-windowed power of every window, (n, frequencies)."""
    taper = hann(detrended.shape[1])
    for size in detrended.shape[2:]:
        taper = taper[..., None] * hann(size)
    power = np.empty((len(detrended), taper.size))
    step = max(_BATCH_PIXELS // taper.size, 1)
    for first in range(0, len(detrended), step):
        spectrum = scipy.fft.fftn(detrended[first : first + step] * taper, axes=range(1, detrended.ndim))
        power[first : first + step] = (spectrum.real**2 + spectrum.imag**2).reshape(len(spectrum), -1)
    return power


def _levelled(power: Floats, used: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[Floats, Floats]:
    """Return the power over each window's level of noise, and the levels, which have median 1.

    Bright windows have more photon noise. The level is a median over frequencies, so that structure, which
    has most of its power at few of them, hardly counts.
    """
    levels = np.ones(len(power))
    for _ in range(2):
        typical = np.median(power / levels[:, None], axis=0)
        alive = used & (typical > 0)
        levels = np.maximum(np.median(power[:, alive] / typical[alive], axis=1), 1e-12)
        levels /= np.median(levels)
    return power / levels[:, None], levels


def _cells(ring: int, shape: tuple[int, ...]) -> list[Integers]:
    """Return the frequencies of a ring, by direction: four in a plane, for structure is seldom round."""
    distance = radii(shape)
    number = np.minimum(np.floor(distance / RING + 1e-9), _HIGHEST)
    axes = np.meshgrid(*(scipy.fft.fftfreq(n) for n in shape), indexing="ij")
    largest = np.maximum(np.max(np.abs(axes), axis=0), 1e-12)
    towards = np.rint(np.stack(axes) / largest / 1.3)  # -1, 0 or 1 along every axis
    code = np.zeros(shape)
    for direction in towards:
        code = 3.0 * code + direction
    members = np.abs(code)[number == ring]  # a frequency and its opposite are one
    places = np.flatnonzero((number == ring).ravel())
    return [places[members == value] for value in np.unique(members)]


@dataclass(frozen=True, slots=True)
class _Cell:
    """Some frequencies: the mean power of every window in them, in the order of the windows."""

    power: Floats
    freedom: float
    slack: float

    @staticmethod
    def of(power: Floats, typical: Floats, places: Integers, dimensions: int, slack: float) -> _Cell:
        weights = typical[places]
        # Independent frequencies, weighted by their power; each is there twice.
        independent = weights.sum() ** 2 / max(float((weights**2).sum()), 1e-300)
        freedom = max(float(independent) / 2.0 / SHARED**dimensions, 1.0)
        return _Cell(power[:, places].mean(axis=1), freedom, slack)

    def sampling(self, count: int) -> float:
        """Return the variance of the first windows' power that sampling gives."""
        return float(self.power[:count].mean()) ** 2 / self.freedom

    def follows(self, other: Floats, count: int) -> float:
        """Return how significantly the first windows' power follows another, in standard deviations.

        Structure has power at neighbouring frequencies together; noise's are independent of each other.
        """
        pair = np.log(np.maximum([self.power[:count], other[:count]], 1e-300))
        pair -= pair.mean(axis=1, keepdims=True)
        spreads = np.sqrt((pair**2).mean(axis=1))
        if not spreads.all():
            return 0.0
        share = float((pair[0] * pair[1]).mean() / spreads.prod())
        if share * spreads[0] * float(self.power[:count].mean()) <= self.slack:
            return 0.0  # too little to matter
        return float(np.arctanh(min(share, 0.999))) * sqrt(count - 3)

    def agrees(self, count: int) -> bool:
        """Whether the first windows vary as noise does, and do not grow along their order."""
        taken = self.power[:count]
        sampling = self.sampling(count)
        chance = 3.0 * sqrt(2.0 / count * (1.0 + 3.0 / self.freedom))
        if float(taken.var(ddof=1)) > sampling * (1.0 + chance) + self.slack**2:
            return False
        third = max(count // 3, 6)
        growth = float(taken[third:].mean() - taken[:third].mean())
        return growth <= 3.0 * sqrt(sampling * (1.0 / third + 1.0 / (count - third))) + self.slack
