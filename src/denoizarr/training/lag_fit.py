"""From the power spectrum of noise, known at some frequencies, to its autocorrelation at a few lags.

Noise is correlated over a few pixels, so its spectrum is a sum of few cosines, and those are fixed by the
frequencies that are known; the rest follows. This is band-limited extrapolation (Papoulis, IEEE Trans.
Circuits Syst. 22, 1975; Gerchberg, Opt. Acta 21, 1974) with the roles of space and frequency exchanged,
solved by least squares on the lags that the noise is found to have: those that are significant and connected
to the centre, looked for again after each extrapolation.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
import scipy.ndimage

from .noise_sample import SHARED, NoiseSpectrum, hann, radii

Floats = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Integers = np.ndarray[Any, np.dtype[np.int64]]

_ROUNDS = 12
# What is correlated less than this neither changes the extrapolation nor belongs to any kernel.
_LEAST = 0.01
# More lags than these are no kernel, and are not worth solving for.
_MOST_LAGS = 400
# A lag that was significant has to be so again at the frequencies that are trusted, where errors are larger.
_STANDS = 2.5
_AT_ONCE = 0.25


@dataclass(frozen=True, slots=True)
class LagFit:
    """The autocorrelation of noise.

    Attributes
    ----------
    correlation, z_scores : float64 array of odd sides
        At every lag, centred: 1 and 0 at lag zero.
    support : bool array of the same shape
        The lags taken for correlated, without the centre.
    checked : float64 array of the same shape
        The correlation at the frequencies that are trusted alone: less structure, larger errors.
    """

    correlation: Floats
    z_scores: Floats
    support: Mask
    checked: Floats


def fit_lags(
    spectrum: NoiseSpectrum, reach: tuple[int, ...], seed: float, growth: float, least: float
) -> LagFit:
    """Find the lags at which noise is correlated, and how much.

    Lags are collected from all frequencies that are known, and then have to stand at those that are trusted:
    noise has its kernel whatever frequencies it is measured at, and structure fades with them.

    Parameters
    ----------
    spectrum : NoiseSpectrum
    reach : tuple of int
        Largest lag along every axis.
    seed, growth : float
        What a lag's z-score must exceed for there to be any correlation, and for lags that touch others.
    least : float
        Share of the correlated part that a lag must have to be of interest.
    """
    first = _Frequencies.of(spectrum, spectrum.radius, reach)
    support = np.zeros(first.lags.shape[:-1], dtype=np.bool_)
    for _ in range(_ROUNDS):
        correlation, z_scores = first.extrapolated(support)
        size = np.abs(z_scores)
        candidates = (size > growth) & (np.abs(correlation) > _LEAST) & (size.max() > seed)
        new = _connected(candidates | support) & ~support
        if not new.any() or support.sum() > _MOST_LAGS:
            break
        support |= new
    second = _Frequencies.of(spectrum, spectrum.trusted, reach)
    support, scores = _standing(
        second, support & (np.abs(correlation) >= least * correlated_share(correlation))
    )
    if not (np.abs(scores) > seed).any():
        support = np.zeros_like(support)
    checked, z_scores = second.extrapolated(support)
    return LagFit(correlation, np.where(support, scores, z_scores), support, checked)


def _standing(frequencies: _Frequencies, support: Mask) -> tuple[Mask, Floats]:
    """Return the lags that stay significant when all are fitted together, and their z-scores."""
    while True:
        found, errors = frequencies.fitted(support)
        scores = np.divide(found, errors, out=np.zeros_like(found), where=errors > 0)
        falling = support & (np.abs(scores) <= _STANDS)
        if not falling.any():
            return support, scores
        # Errors are large as long as many lags explain the same: the weakest go first, some at a time.
        weakest = np.quantile(np.abs(found[support]), _AT_ONCE)
        leaving = falling & (np.abs(found) <= weakest)
        support = _connected(support & ~(leaving if leaving.any() else falling))


def correlated_share(correlation: Floats) -> float:
    """Return the share of noise that is correlated at all: lag zero without the white noise on top.

    A straight line through lags one and two, in the direction that gives most; exact for boxes.
    """
    middle = np.array(correlation.shape) // 2
    directions = [np.array(step) for step in itertools.product((-1, 0, 1), repeat=len(middle)) if any(step)]
    ends = [
        2.0 * float(correlation[tuple(middle + step)]) - float(correlation[tuple(middle + 2 * step)])
        for step in directions
        if (2 * np.abs(step) <= middle).all()
    ]
    others = np.abs(correlation)
    others[tuple(middle)] = 0.0
    return float(np.clip(max([float(others.max()), *ends]), 0.0, 1.0))


def _connected(candidates: Mask) -> Mask:
    """Return the candidates that touch the centre or each other up to it, also over corners."""
    centre = tuple(n // 2 for n in candidates.shape)
    whole = candidates.copy()
    whole[centre] = True
    labels, _ = scipy.ndimage.label(whole, np.ones((3,) * whole.ndim))
    component: Mask = labels == labels[centre]
    component[centre] = False
    return component


@dataclass(frozen=True, slots=True)
class _Frequencies:
    """The part of a spectrum that a fit uses: ``used`` as a mask, ``places`` one of each opposite pair."""

    spectrum: NoiseSpectrum
    used: Mask
    places: Integers
    lags: Integers
    blur: Floats

    @staticmethod
    def of(spectrum: NoiseSpectrum, radius: float, reach: tuple[int, ...]) -> _Frequencies:
        shape = spectrum.power.shape
        used = np.isfinite(spectrum.power) & (radii(shape) >= radius - 1e-9)
        used &= _mirrored(used)
        places = np.flatnonzero(used.ravel())
        places = places[places <= _mirrored(np.arange(used.size).reshape(shape)).ravel()[places]]
        lags = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1)
        return _Frequencies(spectrum, used, places, lags, _taper_at(lags, shape))

    def _solved(self, support: Mask) -> tuple[list[int], Floats, Floats]:
        """Return the lags fitted (the first is lag zero), their covariances and their standard errors."""
        numbers = [int(n) for n in np.flatnonzero(support.ravel()) if n > support.size // 2]
        data = self.spectrum.power.ravel()[self.places]
        waves = _cosines(numbers, self.lags, self.blur, self.places, self.used.shape)
        basis = np.concatenate([np.full((len(data), 1), self.blur.flat[support.size // 2]), waves], axis=1)
        # Lags that the missing frequencies leave open get the smallest covariances that fit.
        inverse = np.linalg.pinv(basis.T @ basis, rcond=1e-8, hermitian=True)
        # The mean power of n windows varies by its square over n.
        variance = data**2 / self.spectrum.windows.ravel()[self.places] * SHARED**support.ndim
        errors = inverse @ ((basis * variance[:, None]).T @ basis) @ inverse
        return [support.size // 2, *numbers], inverse @ (basis.T @ data), np.sqrt(np.diag(errors))

    def fitted(self, support: Mask) -> tuple[Floats, Floats]:
        """Return the correlation at the lags of the support and its standard errors; 0 elsewhere."""
        numbers, covariances, errors = self._solved(support)
        found, error = np.zeros(support.shape), np.zeros(support.shape)
        for number, value, spread in zip(numbers[1:], covariances[1:], errors[1:], strict=True):
            for place in (number, support.size - 1 - number):
                found.flat[place] = value / covariances[0]
                error.flat[place] = spread / covariances[0]
        return found, error

    def extrapolated(self, support: Mask) -> tuple[Floats, Floats]:
        """Return correlation and z-scores at all lags, with the power not used as the support predicts it."""
        shape = self.used.shape
        numbers, covariances, _ = self._solved(support)
        covariance = np.zeros(shape)
        for number, value in zip(numbers, covariances, strict=True):
            lag = self.lags.reshape(-1, len(shape))[number]
            covariance[tuple(lag)] = covariance[tuple(-lag)] = value * self.blur.flat[number]
        power = np.where(self.used, self.spectrum.power, scipy.fft.fftn(covariance).real)
        measured = scipy.fft.ifftn(power).real[tuple(np.moveaxis(self.lags, -1, 0))] / self.blur
        error = np.sqrt(_sampling_variance(power, self.used, self.spectrum.windows)) / self.blur
        centre = tuple(n // 2 for n in support.shape)
        correlation = measured / max(measured[centre], 1e-300)
        z_scores = measured / np.maximum(error, 1e-300)
        correlation[centre], z_scores[centre] = 1.0, 0.0
        return correlation, z_scores


def _mirrored(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return what an array over frequencies has at the opposite of each."""
    axes = tuple(range(array.ndim))
    flipped: np.ndarray[Any, Any] = np.roll(np.flip(array, axes), 1, axes)
    return flipped


def _taper_at(lags: Integers, shape: tuple[int, ...]) -> Floats:
    """Return by how much the Hann window shrinks the covariance at every lag."""
    product = np.ones(lags.shape[:-1])
    for axis, size in enumerate(shape):
        own = np.correlate(hann(size), hann(size), "full")[size - 1 :]
        product *= own[np.abs(lags[..., axis])]
    return product


def _cosines(
    numbers: list[int], lags: Integers, blur: Floats, places: Integers, shape: tuple[int, ...]
) -> Floats:
    """Return what covariance 1 at some lags, each with its opposite, adds to the power at every place."""
    frequencies = np.stack(np.unravel_index(places, shape), axis=1) / np.array(shape)
    chosen = lags.reshape(-1, len(shape))[numbers]
    waves: Floats = 2.0 * np.cos(2.0 * np.pi * frequencies @ chosen.T) * blur.ravel()[numbers]
    return waves


def _sampling_variance(power: Floats, used: Mask, windows: Integers) -> float:
    """Return the variance of a covariance near lag zero, before the taper is taken out.

    The mean power of n windows varies by its square over n; a frequency and its opposite are one.
    """
    terms = np.where(used, power**2 / np.maximum(windows, 1), 0.0)
    return 2.0 * float(SHARED**power.ndim) * float(terms.sum()) / power.size**2
