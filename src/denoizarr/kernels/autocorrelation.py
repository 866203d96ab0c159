"""Signed autocorrelation: of each of some windows, or summed over any number of them or over a whole image.

A legend for the symbols used here: ``l`` is a lag (dy, dx), ``R`` the reach (lags go from -R to R on both
axes), ``C(l)`` the autocovariance, ``r(l) = C(l) / C(0)`` the autocorrelation, ``N(l)`` the number of pairs
of pixels at that lag in one window.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import scipy.fft

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


@dataclass(frozen=True, slots=True)
class LagSums:
    """Signed products of voxel pairs summed over any number of windows, or over a whole image.

    Its size does not grow with what went in. Parts are merged by adding, so the order of merging is part of
    the result's last bits: merge in the order of the windows, or of the blocks of an image.

    Attributes
    ----------
    products : float64 array of odd sides
        Sum of the products at every lag (dy, dx) or (dz, dy, dx), lag zero in the middle.
    pairs : int64 array of the same shape
        Pairs that went in at each lag.
    windows : int
        Windows, or blocks.
    """

    products: Floats
    pairs: np.ndarray[Any, np.dtype[np.int64]]
    windows: int

    @staticmethod
    def merged(parts: Iterable[LagSums]) -> LagSums:
        """Return the sums of all parts, added in the order given.

        Raises
        ------
        BadRequest
            There are no parts.
        """
        total: LagSums | None = None
        for part in parts:
            total = (
                part
                if total is None
                else LagSums(
                    total.products + part.products, total.pairs + part.pairs, total.windows + part.windows
                )
            )
        if total is None:
            raise BadRequest("no windows to measure the autocorrelation in")
        return total

    def autocovariance(self) -> Floats:
        """Return the mean product of a pair at every lag; 0 where there are no pairs."""
        covariance: Floats = self.products / np.maximum(self.pairs, 1)
        return covariance

    def autocorrelation(self) -> Floats:
        """Return the autocovariance over that at lag zero, divided once, after all is summed."""
        covariance = self.autocovariance()
        zero_lag = float(covariance[tuple(n // 2 for n in covariance.shape)])
        correlation: Floats = covariance / zero_lag if zero_lag > 0 else np.zeros_like(covariance)
        return correlation


def window_sums(windows: np.ndarray[Any, Any], reach: tuple[int, ...]) -> LagSums:
    """Sum the signed products of all pairs within each window.

    Parameters
    ----------
    windows : (n, y, x) or (n, z, y, x) array
        Detrended windows; taken as they are.
    reach : tuple of int
        Largest lag along every axis; each less than the side.

    Returns
    -------
    LagSums
        Of a stream of windows: merge those of its batches.

    Raises
    ------
    BadRequest
        When the lags do not fit into the windows.
    """
    shape = windows.shape[1:]
    if len(reach) != len(shape) or not all(0 <= r < n for r, n in zip(reach, shape, strict=True)):
        raise BadRequest("lags do not fit into the windows", where="reach", got=reach, expected=shape)
    sums = np.zeros([2 * r + 1 for r in reach])
    step = max(_BATCH * 64 * 64 // max(prod(shape), 1), 1)
    for first in range(0, len(windows), step):
        batch = np.asarray(windows[first : first + step], dtype=np.float64)
        sums += _correlate_all(batch, batch, reach).sum(axis=0)
    steps = [n - np.abs(np.arange(-r, r + 1)) for n, r in zip(shape, reach, strict=True)]
    pairs = prod(np.ix_(*steps), start=np.int64(len(windows)))
    return LagSums(sums, np.asarray(pairs, dtype=np.int64), len(windows))


def block_sums(around: np.ndarray[Any, Any], inside: tuple[slice, ...], reach: tuple[int, ...]) -> LagSums:
    """Sum the signed products of the pairs whose first voxel lies in a block, from the block and its halo.

    ::

        +---------------+
        |  around       |    Blocks that tile an image, each read with ``reach`` more on all sides where the
        |   +-------+   |    image has it, give exactly the pairs of the whole image: each pair belongs to the
        |   | block |   |    block of its first voxel.
        |   +-------+   |
        +---------------+

    Parameters
    ----------
    around : (y, x) or (z, y, x) array
        The block with its halo, cut at the image's border. From all blocks the same mean is taken.
    inside : tuple of slice
        Where the block lies in it.
    reach : tuple of int
        Largest lag along every axis.

    Returns
    -------
    LagSums
        Of an image: merge those of its blocks in their order.
    """
    whole = np.asarray(around, dtype=np.float64)
    block = np.zeros_like(whole)
    block[inside] = whole[inside]
    ones = np.zeros_like(whole)
    ones[inside] = 1.0
    products = _correlate_all(block[None], whole[None], reach)[0]
    pairs = _correlate_all(ones[None], np.ones_like(whole)[None], reach)[0]
    return LagSums(products, np.rint(pairs).astype(np.int64), 1)


def _correlate_all(first: Floats, second: Floats, reach: tuple[int, ...]) -> Floats:
    """Return the sum over p of first(p) second(p + l) for arrays of images of any dimension."""
    axes = tuple(range(1, first.ndim))
    shape = [scipy.fft.next_fast_len(n + r, real=True) for n, r in zip(first.shape[1:], reach, strict=True)]
    left = scipy.fft.rfftn(first, shape, axes=axes)
    right = left if second is first else scipy.fft.rfftn(second, shape, axes=axes)
    sums = scipy.fft.irfftn(np.conj(left) * right, shape, axes=axes)
    lags = np.ix_(*(np.arange(-r, r + 1) for r in reach))
    return np.asarray(sums[(slice(None), *lags)], dtype=np.float64)


def pair_counts(shape: tuple[int, int], reach: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return how many pairs of pixels a window of ``shape`` has at every lag up to ``reach``."""
    lags = np.abs(np.arange(-reach, reach + 1))
    return np.outer(shape[0] - lags, shape[1] - lags).astype(np.int64)


def polynomials(shape: tuple[int, ...], degree: int) -> Floats:
    """Return orthonormal polynomials of total degree up to ``degree``, (terms, *shape).

    Degree 0 is the mean, 1 a plane (3 terms in two dimensions), 2 a quadric (6 terms).
    """
    axes = [np.linspace(-1.0, 1.0, n) if n > 1 else np.zeros(1) for n in shape]
    grids = np.meshgrid(*axes, indexing="ij")
    powers = [p for p in itertools.product(range(degree + 1), repeat=len(shape)) if sum(p) <= degree]
    terms = [np.prod([grid**p for grid, p in zip(grids, each, strict=True)], axis=0) for each in powers]
    orthonormal, _ = np.linalg.qr(np.array(terms).reshape(len(terms), -1).T)
    return np.ascontiguousarray(orthonormal.T).reshape(len(terms), *shape)


def detrend(windows: np.ndarray[Any, Any], degree: int = 2) -> Floats:
    """Remove from every window its best polynomial, so that slow changes of brightness do not correlate.

    Parameters
    ----------
    windows : (n, y, x) or (n, z, y, x) array
        Raw intensities of any real dtype.
    degree : int
        Total degree of the polynomial.

    Returns
    -------
    float64 array of the same shape
        Residuals. White noise keeps ``1 - terms / pixels`` of its variance (99.85 % for a quadric on
        64x64); what is lost is lost at the lowest frequencies.
    """
    flat = np.asarray(windows, dtype=np.float64).reshape(len(windows), -1)
    # Far from zero (an offset of 30000) products would lose digits: the mean goes first.
    flat = flat - flat.mean(axis=1, keepdims=True)
    basis = polynomials(windows.shape[1:], degree).reshape(-1, flat.shape[1])
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
        sums[first : first + _BATCH] = _correlate_all(batch, batch, (reach, reach))
    return LagProducts(sums, pair_counts((height, width), reach))


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
