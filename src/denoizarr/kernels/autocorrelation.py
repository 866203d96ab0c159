"""Signed autocorrelation of small windows, with its bias and its sampling error.

A legend for the symbols used here: ``l`` is a lag (dy, dx), ``R`` the reach (lags go from -R to R on both
axes), ``C(l)`` the autocovariance, ``r(l) = C(l) / C(0)`` the autocorrelation, ``N(l)`` the number of pairs
of pixels at that lag in one window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
import scipy.signal

from denoizarr.errors import BadRequest

Floats = np.ndarray[Any, np.dtype[np.float64]]

# Windows transformed at once: at 64x64 with a reach of 24 this is about 20 MB of work space.
_BATCH = 256


@dataclass(frozen=True, slots=True)
class LagProducts:
    """Sums of signed products of pixel pairs at every lag, one map a window.

    Attributes
    ----------
    products : (n, 2R+1, 2R+1) float64 array
        Sum over the pairs of a window at lag (dy, dx), lag zero in the middle, in squared intensities.
    pairs : (2R+1, 2R+1) int64 array
        Pairs of pixels at each lag in one window.
    """

    products: Floats
    pairs: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def reach(self) -> int:
        """Largest lag on either axis, in pixels."""
        return int(self.pairs.shape[0]) // 2

    @property
    def variances(self) -> Floats:
        """Mean square of every window, (n,), in squared intensities."""
        return self.autocovariance()[:, self.reach, self.reach]

    def autocovariance(self) -> Floats:
        """Mean product a pair, (n, 2R+1, 2R+1): each lag is divided by its own number of pairs."""
        covariance: Floats = self.products / self.pairs
        return covariance

    def autocorrelation(self) -> Floats:
        """Autocovariance over each window's own zero lag, (n, 2R+1, 2R+1).

        A window's variance cancels, so that bright windows (more photon noise) and dark ones can be
        compared and averaged. A window without variance gives zeros, and 1 at lag zero.
        """
        covariance = self.autocovariance()
        zero_lag = covariance[:, self.reach, self.reach]
        alive = zero_lag > 0
        correlation = covariance / np.where(alive, zero_lag, 1.0)[:, None, None]
        correlation[~alive] = 0.0
        correlation[:, self.reach, self.reach] = 1.0
        return correlation

    def take(self, windows: np.ndarray[Any, Any]) -> LagProducts:
        """Return the products of some windows, by number or by a boolean of all."""
        return LagProducts(self.products[windows], self.pairs)

    @staticmethod
    def merged(parts: Sequence[LagProducts]) -> LagProducts:
        """Return the products of all parts, in the order given: nothing is summed, so nothing is rounded."""
        return LagProducts(np.concatenate([part.products for part in parts]), parts[0].pairs)


def pair_counts(shape: tuple[int, int], reach: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return how many pairs of pixels a window of ``shape`` has at every lag up to ``reach``."""
    lags = np.abs(np.arange(-reach, reach + 1))
    return np.outer(shape[0] - lags, shape[1] - lags).astype(np.int64)


def polynomials(shape: tuple[int, int], degree: int) -> Floats:
    """Return orthonormal polynomials of total degree up to ``degree``, (terms, y, x).

    Degree 0 is the mean, 1 a plane (3 terms), 2 a quadric (6 terms).
    """
    y, x = (np.linspace(-1.0, 1.0, n) if n > 1 else np.zeros(1) for n in shape)
    terms = [np.outer(y**i, x**j).ravel() for i in range(degree + 1) for j in range(degree + 1 - i)]
    orthonormal, _ = np.linalg.qr(np.array(terms).T)
    return np.ascontiguousarray(orthonormal.T).reshape(len(terms), *shape)


def detrend(windows: np.ndarray[Any, Any], degree: int = 2) -> Floats:
    """Remove from every window its best polynomial, so that slow changes of brightness do not correlate.

    Parameters
    ----------
    windows : (n, y, x) array
        Raw intensities of any real dtype.
    degree : int
        Total degree of the polynomial.

    Returns
    -------
    (n, y, x) float64 array
        Residuals. White noise keeps ``1 - terms / pixels`` of its variance (99.85 % for a quadric on
        64x64); what is lost at each lag is given exactly by :func:`detrending_bias`.
    """
    flat = np.asarray(windows, dtype=np.float64).reshape(len(windows), -1)
    # Far from zero (an offset of 30000) products would lose digits: the mean goes first.
    flat = flat - flat.mean(axis=1, keepdims=True)
    basis = polynomials((windows.shape[1], windows.shape[2]), degree).reshape(-1, flat.shape[1])
    residual: Floats = (flat - (flat @ basis.T) @ basis).reshape(windows.shape)
    return residual


def lag_products(windows: np.ndarray[Any, Any], reach: int) -> LagProducts:
    """Sum the signed products of all pairs of pixels at every lag, window by window.

    Parameters
    ----------
    windows : (n, y, x) array
        Detrended windows; taken as they are.
    reach : int
        Largest lag on either axis, in pixels; less than the window's sides.

    Returns
    -------
    LagProducts
        Linear, not circular: the transform is padded by ``reach``, so no pair wraps around.

    Raises
    ------
    BadRequest
        When the reach is negative or not less than a side.
    """
    height, width = windows.shape[1:]
    if not 0 <= reach < min(height, width):
        expected = f"0 to {min(height, width) - 1}"
        raise BadRequest("lags do not fit into the windows", where="reach", got=reach, expected=expected)
    sums = np.empty((len(windows), 2 * reach + 1, 2 * reach + 1))
    for first in range(0, len(windows), _BATCH):
        batch = np.asarray(windows[first : first + _BATCH], dtype=np.float64)
        sums[first : first + _BATCH] = _correlate(batch, batch, reach)
    return LagProducts(sums, pair_counts((height, width), reach))


def _correlate(first: Floats, second: Floats, reach: int) -> Floats:
    """Return the sum over p of first(p) second(p + l), for arrays of images, at lags -reach to reach."""
    shape = tuple(scipy.fft.next_fast_len(n + reach, real=True) for n in first.shape[-2:])
    left = scipy.fft.rfft2(first, shape)
    right = left if second is first else scipy.fft.rfft2(second, shape)
    sums = scipy.fft.irfft2(np.conj(left) * right, shape)
    lags = np.arange(-reach, reach + 1)
    return np.asarray(sums[..., lags[:, None], lags[None, :]], dtype=np.float64)


def detrending_bias(autocorrelation: Floats, shape: tuple[int, int], degree: int = 2) -> Floats:
    """Return what detrending adds to the autocovariance of stationary noise at every lag.

    With Q the orthonormal polynomials, S the covariance matrix of the noise and d = (1 - QQ')n the residual,
    cov(d) = S - QQ'S - SQQ' + QQ'SQQ'. The three last terms, averaged over the pairs at a lag, are the bias.

    Parameters
    ----------
    autocorrelation : (2R+1, 2R+1) float64 array
        Of the noise; zero beyond R.
    shape : (int, int)
        Of the windows, (y, x).
    degree : int
        As given to :func:`detrend`.

    Returns
    -------
    (2R+1, 2R+1) float64 array
        In units of the noise's variance; mostly negative, about ``-terms * autocorrelation.sum() / pixels``.
    """
    reach = autocorrelation.shape[0] // 2
    basis = polynomials(shape, degree)
    # S q for every polynomial q: S is a convolution with the autocorrelation.
    spread = scipy.signal.fftconvolve(basis, autocorrelation[None], mode="full", axes=(1, 2))
    spread = spread[:, reach : reach + shape[0], reach : reach + shape[1]]
    inner = np.einsum("iyx,jyx->ij", basis, spread)
    cross = _correlate(basis, spread, reach).sum(axis=0)
    twice = _correlate(basis, np.einsum("ij,jyx->iyx", inner, basis), reach).sum(axis=0)
    bias: Floats = (twice - cross - cross[::-1, ::-1]) / pair_counts(shape, reach)
    return bias


def unbiased(autocorrelation: Floats, shape: tuple[int, int], degree: int = 2, iterations: int = 8) -> Floats:
    """Take out of a mean autocorrelation of detrended windows what detrending did to it.

    The fixed point of measured = (r + bias(r)) / (1 + bias(r)(0)). A constant at all lags looks like a
    change of the window's mean and is lost with it; it is set so that the median over the outer quarter of
    the lags is zero, for noise is not correlated that far. Each step shrinks the error by about
    ``terms * r.sum() / pixels``, 0.013 for noise boxed over nine pixels in a 64x64 window.
    """
    reach = autocorrelation.shape[0] // 2
    lags = np.abs(np.arange(-reach, reach + 1))
    outer = np.maximum(lags[:, None], lags[None, :]) > 0.75 * reach
    estimate = autocorrelation
    for _ in range(iterations):
        bias = detrending_bias(estimate, shape, degree)
        estimate = autocorrelation * (1.0 + bias[reach, reach]) - bias
        estimate = estimate - np.median(estimate[outer])
        estimate = estimate / estimate[reach, reach]
    return estimate


def sampling_variance(autocorrelation: Floats, shape: tuple[int, int]) -> Floats:
    """Return the variance of one window's r(l) if its noise is stationary with this autocorrelation.

    Bartlett's formula in two dimensions (Bartlett, J. R. Stat. Soc. Suppl. 8, 1946; Box and Jenkins eq.
    2.1.13): var r(l) = sum over h of [r(h)^2 + r(h+l) r(h-l) - 4 r(l) r(h) r(h-l) + 2 r(h)^2 r(l)^2] / N(l).
    It holds for linear processes of any distribution, photon noise included. White noise gives 1 / N(l).

    Parameters
    ----------
    autocorrelation : (2R+1, 2R+1) float64 array
        Of the noise; zero beyond R. Its own estimation errors add up: set insignificant lags to zero.
    shape : (int, int)
        Of the windows, (y, x).

    Returns
    -------
    (2R+1, 2R+1) float64 array
        Zero at lag zero.
    """
    reach = autocorrelation.shape[0] // 2
    # products[k] = sum over h of r(h) r(h + k), for |k| up to 2R; one zero border for lags up to 2l.
    products = scipy.signal.fftconvolve(autocorrelation, autocorrelation[::-1, ::-1])
    near = products[reach : 3 * reach + 1, reach : 3 * reach + 1]
    double = products[::2, ::2]
    power = products[2 * reach, 2 * reach]
    variance = power + double - 4.0 * autocorrelation * near + 2.0 * autocorrelation**2 * power
    result: Floats = np.maximum(variance, 0.0) / pair_counts(shape, reach)
    return result


def coarse_share(windows: Floats, block: int = 8) -> Floats:
    """Return which share of a window's variance is left after averaging over blocks of ``block`` pixels.

    Noise, correlated or not, leaves the same share in every window; white noise 1 / block**2. Structure is
    larger than a few pixels and leaves most of its variance, so the share tells how much structure a window
    holds, whatever the noise level.

    Parameters
    ----------
    windows : (n, y, x) float64 array
        Detrended. Rows and columns beyond whole blocks are left out.
    block : int
        Side of a block in pixels.

    Returns
    -------
    (n,) float64 array
        Between 0 and 1; 0 for a window without variance.
    """
    rows, columns = windows.shape[1] // block, windows.shape[2] // block
    cut = windows[:, : rows * block, : columns * block]
    means = cut.reshape(len(windows), rows, block, columns, block).mean(axis=(2, 4))
    variance = windows.var(axis=(1, 2))
    share: Floats = means.var(axis=(1, 2)) / np.where(variance > 0, variance, 1.0)
    return share
