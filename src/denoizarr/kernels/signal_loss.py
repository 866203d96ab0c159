"""How much structure a denoiser took away: a gauge with a null, made without knowing the truth.

A legend: ``y`` is the raw plane, ``D`` the denoised one, ``r = y - D`` the residual, ``s`` the true
structure, ``n`` the noise, ``W`` what the denoiser does to noise, ``B`` a band of scales, sums run over
signal windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.ndimage

from .residual import WindowClasses, windows_of

Plane = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]

SCALES = (0.0, 1.0, 2.0, 4.0, 8.0)
"""Sigmas in pixels of the Gaussians between which the bands lie; the last is also where "all scales" ends."""
GOOD, REMOVED = 0.05, 0.08
"""Below the first share of structure the reading is "good", from the second on "signal is being removed"."""
# Beyond this many standard errors a share is not chance; with a standard error above the limit nothing is
# said.
_CERTAIN, _TOO_WIDE = 3.0, 0.03
# Of a band whose share is less certain than this, nothing is drawn.
_TOO_WIDE_BAND = 0.1


@dataclass(frozen=True, slots=True)
class SignalLoss:
    """Which share of the structure's contrast is in the residual.

    Attributes
    ----------
    share, standard_error : float
        Over all scales up to about 16 pixels, weighted by how much structure each holds. 0 is what a denoiser
        gives that removes noise alone; 0.1 means that a tenth of the local contrast was taken away; below
        zero, structure was sharpened.
    null : float
        What noise alone contributes and was subtracted; exactly 0 with an independent plane.
    by_scale, by_scale_error : (4,) float64 array
        The same for structure between consecutive ``SCALES``; NaN where it is too uncertain to be said.
    floor : float
        What the best linear filter of these bands (Wiener's) would lose at this noise; NaN with one plane.
    floor_by_scale : (4,) float64 array
    independent : bool
        Whether another plane of independent noise served as the reference.
    windows : int
        Signal windows.
    """

    share: float
    standard_error: float
    null: float
    by_scale: Floats
    by_scale_error: Floats
    floor: float
    floor_by_scale: Floats
    independent: bool
    windows: int

    @property
    def reading(self) -> str:
        """The gauge in words: "good", "look closer", "signal is being removed" or "cannot tell"."""
        certain = abs(self.share) > _CERTAIN * self.standard_error
        if certain and self.share >= REMOVED:
            return "signal is being removed"
        if not np.isfinite(self.share) or not self.standard_error <= _TOO_WIDE:
            return "cannot tell"
        return "look closer" if certain and abs(self.share) >= GOOD else "good"


def signal_loss(
    raw: Plane, denoised: Plane, classes: WindowClasses, *, other: tuple[Plane, Plane] | None = None
) -> SignalLoss | None:
    """Measure which share of the structure's contrast is in raw minus denoised.

    With another plane of independent noise (the neighbour in a stack) it is an instrument, as in econometrics
    (Wright 1928): what two planes share is structure, so in each band

        share = sum(B r * B D') / sum(B y * B D'),

    with D' the other plane denoised. Noise of this plane has no part in either sum on average, whatever is
    left of it in D, so the expectation without loss is exactly zero; and planes that agree little make the
    share uncertain, not small. The true structure has share 1, and a Gaussian filter gets one minus its
    transfer.

    With one plane D itself is the reference. Noise left in D then agrees with the noise in r: that part,
    ``sum(B n-part of r * B W n) / sum((B r)^2)``, is measured on background windows, where there is little
    else, and subtracted. A network treats background and signal differently, so this is rougher: it sees a
    tenth of the signal and a blur, but the finest band is left out and small losses are underestimated.

    Parameters
    ----------
    raw, denoised : (y, x) array
        One plane.
    classes : WindowClasses
        Of this plane.
    other : (raw, denoised), optional
        Another plane at the same place, of independent noise.

    Returns
    -------
    SignalLoss or None
        None where there are fewer than two signal windows.
    """
    if len(classes.signal) < 2:
        return None
    planes = [_filled(plane) for plane in (raw, denoised, *(other or ()))]
    edges = [*pairwise(SCALES), (SCALES[0], SCALES[-1])]
    found = [_band_loss(planes, classes, fine, coarse) for fine, coarse in edges]
    shares, errors, nulls, floors, powers = (np.array(column) for column in zip(*found, strict=True))
    unclear = ~(errors <= _TOO_WIDE_BAND)
    if other is None:
        unclear[0] = True
    unclear[-1] = False
    shares[unclear] = errors[unclear] = np.nan
    return SignalLoss(
        share=float(shares[-1]),
        standard_error=float(errors[-1]),
        null=float(nulls[-1]),
        by_scale=shares[:-1],
        by_scale_error=errors[:-1],
        floor=_weighted(floors[:-1], powers[:-1]),
        floor_by_scale=floors[:-1],
        independent=other is not None,
        windows=len(classes.signal),
    )


def band(plane: Floats, fine: float, coarse: float) -> Floats:
    """Return what a plane holds between two scales: the difference of two Gaussians, (y, x) float64.

    Parameters
    ----------
    plane : (y, x) float64 array
    fine, coarse : float
        Sigmas in pixels; a ``fine`` of 0 keeps the smallest details.
    """
    smooth = [
        plane if sigma == 0 else scipy.ndimage.gaussian_filter(plane, sigma, mode="nearest", truncate=3.0)
        for sigma in (fine, coarse)
    ]
    difference: Floats = smooth[0] - smooth[1]
    return difference


def _band_loss(
    planes: list[Floats], classes: WindowClasses, fine: float, coarse: float
) -> tuple[float, float, float, float, float]:
    """Return share, standard error, null, the best linear filter's share and the structure of one band."""
    bands = [windows_of(band(plane, fine, coarse), classes.side) for plane in planes]
    before, after = bands[:2]
    removed = before - after
    if len(bands) == 4:
        part, whole = (_sums(w, bands[3])[classes.signal] for w in (removed, before))
        share, error = _ratio(part, whole)
        common = float(_sums(before, bands[2])[classes.signal].sum())
        power = 0.5 * (_sums(before, before) + _sums(bands[2], bands[2]))[classes.signal].sum()
        floor = float(np.clip(1.0 - common / power, 0.0, 1.0)) if power > 0 else np.nan
        return share, error, 0.0, floor, max(common, 0.0)
    return (*_own_plane(removed, after, classes), np.nan, np.nan)


def _weighted(floors: Floats, powers: Floats) -> float:
    """Return the mean of the bands' floors, weighted by the structure they hold; NaN where unknown."""
    known = np.isfinite(floors) & (powers > 0)
    return float(np.average(floors[known], weights=powers[known])) if known.any() else np.nan


def _own_plane(removed: Floats, after: Floats, classes: WindowClasses) -> tuple[float, float, float]:
    """Return share, standard error and null of a band with the plane itself as the reference."""
    product, own, noise = _sums(removed, after), _sums(after, after), _sums(removed, removed)
    flat, rich = classes.background, classes.signal
    leak, leak_error = _ratio(product[flat], noise[flat])
    kept, _ = _ratio(own[flat], noise[flat])
    part = product[rich] - leak * noise[rich]
    whole = part + own[rich] - kept * noise[rich]
    share, error = _ratio(part, whole)
    if not np.isfinite(share):
        return share, error, np.nan
    weight = float(noise[rich].sum() / whole.sum())
    return share, float(np.hypot(error, weight * leak_error)), leak * weight


def _sums(first: Floats, second: Floats) -> Floats:
    """Return the sum of products in every window, (n,)."""
    sums: Floats = np.einsum("nyx,nyx->n", first, second)
    return sums


def _ratio(part: Floats, whole: Floats) -> tuple[float, float]:
    """Return a ratio of sums over windows and its standard error; infinite where there is no structure."""
    total, count = float(whole.sum()), len(whole)
    # Less than three standard errors of structure: a share of it would be a share of nothing.
    if total <= 3.0 * float(whole.std()) * np.sqrt(count):
        return np.nan, np.inf
    ratio = float(part.sum()) / total
    spread = float(((part - ratio * whole) ** 2).sum()) * count / (count - 1)
    return ratio, float(np.sqrt(spread)) / total


def _filled(plane: Plane) -> Floats:
    """Return a plane as float64 with its median where there is no number: filters spread NaN."""
    values: Floats = plane.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        values[~finite] = np.median(values[finite]) if finite.any() else 0.0
    return values
