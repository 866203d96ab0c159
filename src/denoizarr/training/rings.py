"""The documented ring algorithm of autoStructN2V: the kernel is made ring by ring around the centre.

Source: autoStructN2V, documentation page "Structural Mask Extraction". Its text and its code differ in a
dozen places. This follows the text where it is coherent; where it is not, or says too little, a choice is
made. The choices, step by step:

1. *Autocorrelation.* Linear, by zero-padding, as the text says (its formula alone would be circular). The
   sign is kept (the code takes amounts). Every patch's mean is subtracted, or the image's brightness would be
   what correlates; every lag is divided by its number of pixel pairs, or it would fall off by itself: that is
   the edge effect which zero-padding is to prevent. Lag zero is each patch's own. The logarithm is
   ``sign(r) log(1 + |r|)``, which is the text's for what is positive and defined for all.
2. *Mean.* Over all patches, of the logarithms, as written; lags d and -d, equal but for
   rounding, are averaged.
3. *Crop.* ``center_size // 2`` lags to each side: an even size is one larger, because a kernel has a centre.
   Without ``crop_autocorr`` all lags that a patch holds are analysed.
4. *Adaptive threshold.* ``adapt_CB / (1 + adapt_DF d)`` with ``adapt_CB`` in per cent of the centre's value:
   taken as it stands, 50 would erase everything, the centre too. The threshold falls with distance, as the
   formula and "faster decay with distance" have it, although a sentence says that it suppresses what is far.
5. *To 0..1.* Divided by the centre's value; what is negative becomes 0. Stretching from the smallest value
   would turn "uncorrelated" into "correlated" wherever something is negative.
6. *Distance* is the larger of abs(dy) and abs(dx), in steps 4 and 7: the page draws square rings.
7. *Percentile.* Of the ring's own values (the code goes so far from the smallest to the largest), by linear
   interpolation, ``base_percentile * percentile_decay ** ring``, at most 100. From there on (ring 5 with the
   defaults) the ring's strongest pixels are kept, so "above" includes "equal"; zeros are never kept.
8. *Centre ratio.* As written: a ring whose largest value is not above ``center_ratio_threshold`` times the
   centre's keeps nothing.
9. *Centre proximity* removes pixels, as the text says (the code adds them): those that do not come near the
   ring's largest value. Near the centre's own value, as the formula is written, the default of .95 would
   leave one pixel wherever noise decays, and none of the page's advice for a small mask would change that.
10. *Centre component.* Touching by a corner counts: the page shows a diagonal pattern.
11. *Largest mask.* The strongest by value, in pairs of opposite lags, so that the mask stays symmetric.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
import scipy.ndimage

from denoizarr.errors import BadRequest, EmptyIndex

from .noise_sample import usable_windows
from .significance import Floats, Mask, StructuralNoise, crop_to_content

Windows = np.ndarray[Any, Any] | Iterable[np.ndarray[Any, Any]]

# Patches transformed at once: 64x64 without a crop, 35 MB of work space.
_BATCH = 128


@dataclass(frozen=True, slots=True)
class RingsSettings:
    """The documented fourteen settings, with the documented defaults, and one for the sample's size.

    Attributes
    ----------
    norm_autocorr : bool
        Divide every patch's autocorrelation by its lag zero, so that all patches weigh the same.
    log_autocorr : bool
        Average logarithms.
    crop_autocorr : bool
        Analyse the centre only, ``center_size`` lags wide.
    adapt_autocorr : bool
        Set to zero what is below a threshold that falls with distance.
    adapt_CB, adapt_DF : float
        That threshold at distance d: ``adapt_CB / (1 + adapt_DF * d)`` per cent of the centre's value.
    center_size : int
        Side of the square of lags that is analysed; an even one is one larger.
    base_percentile, percentile_decay : float
        A pixel of ring k must reach the percentile ``base_percentile * percentile_decay ** k`` of its ring.
    center_ratio_threshold : float
        What the largest value of a ring must exceed, as a share of the centre's.
    use_center_proximity : bool
    center_proximity_threshold : float
        What every pixel must reach, as a share of its ring's largest value.
    keep_center_component_only : bool
        Leave out what does not touch the centre.
    max_true_pixels : int
        Keep the strongest so many.
    minimum_windows : int
        Fewer patches than this are no sample; not one of the fourteen.

    Raises
    ------
    BadRequest
        For a setting out of its range.
    """

    norm_autocorr: bool = True
    log_autocorr: bool = True
    crop_autocorr: bool = True
    adapt_autocorr: bool = True
    adapt_CB: float = 50.0  # noqa: N815  # the documented name
    adapt_DF: float = 0.95  # noqa: N815
    center_size: int = 10
    base_percentile: float = 50.0
    percentile_decay: float = 1.15
    center_ratio_threshold: float = 0.3
    use_center_proximity: bool = True
    center_proximity_threshold: float = 0.95
    keep_center_component_only: bool = True
    max_true_pixels: int = 25
    minimum_windows: int = 20

    def __post_init__(self) -> None:
        for name, lowest, highest in (
            ("adapt_CB", 0.0, 100.0),
            ("adapt_DF", 0.0, np.inf),
            ("center_size", 2, 999),
            ("base_percentile", 0.0, 100.0),
            ("percentile_decay", 0.0, np.inf),
            ("center_ratio_threshold", 0.0, 1.0),
            ("center_proximity_threshold", 0.0, 1.0),
            ("max_true_pixels", 1, np.inf),
            ("minimum_windows", 1, np.inf),
        ):
            value = getattr(self, name)
            whole = name in ("center_size", "max_true_pixels", "minimum_windows")
            if (
                isinstance(value, bool)
                or not isinstance(value, int if whole else int | float)
                or not lowest <= value <= highest
                or value == np.inf
            ):
                expected = f"{lowest:g} or more" if highest == np.inf else f"{lowest:g} to {highest:g}"
                expected = f"a whole number, {expected}" if whole else expected
                raise BadRequest(f"bad {name}", where="extractor", got=value, expected=expected)
        for name in (
            "norm_autocorr", "log_autocorr", "crop_autocorr", "adapt_autocorr", "use_center_proximity",
            "keep_center_component_only",
        ):  # fmt: skip
            if not isinstance(getattr(self, name), bool):
                raise BadRequest(
                    f"bad {name}", where="extractor", got=getattr(self, name), expected="true or false"
                )


@dataclass(frozen=True, slots=True)
class Ring:
    """What became of one ring.

    Attributes
    ----------
    number : int
        Its distance from the centre in pixels.
    percentile, threshold, largest : float
        The percentile asked, what it is, and the ring's largest value: these as shares of the centre's.
    kept, pixels : int
        Pixels kept, of how many.
    """

    number: int
    percentile: float
    threshold: float
    largest: float
    kept: int
    pixels: int

    def in_words(self) -> str:
        """Return one line for a log."""
        return (
            f"ring {self.number}: percentile {self.percentile:.1f}, threshold {self.threshold:.3f}, "
            f"largest {self.largest:.3f}, kept {self.kept} of {self.pixels} pixels"
        )


@dataclass(frozen=True, slots=True)
class RingsFound:
    """What the rings gave.

    Attributes
    ----------
    noise : StructuralNoise
        The kernel, and the plain mean autocorrelation at the lags analysed; nothing is tested, so z-scores,
        their threshold and the spread are 0.
    centre : (odd, odd) float64 array
        What the rings saw, in 0..1: step 5 above.
    rings : tuple of Ring
        From the innermost on.
    """

    noise: StructuralNoise
    centre: Floats
    rings: tuple[Ring, ...]


def find_rings(patches: Windows, settings: RingsSettings | None = None) -> tuple[Mask, Floats]:
    """Return the kernel, cropped to the smallest box, and what the rings saw, in 0..1, all of it.

    Takes and raises what :func:`measure_rings` does.
    """
    found = measure_rings(patches, settings)
    return found.noise.mask, found.centre


def measure_rings(patches: Windows, settings: RingsSettings | None = None) -> RingsFound:
    """Find the kernel of structured noise by the documented rings.

    Parameters
    ----------
    patches : (n, y, x) array, or an iterable of such arrays
        All count; those that are constant or not finite are left out. One pass, in bounded memory.
    settings : RingsSettings, optional

    Raises
    ------
    EmptyIndex
        There are fewer than ``minimum_windows`` patches that vary.
    BadRequest
        The patches have another shape, or are too small.
    """
    settings = settings or RingsSettings()
    average = _average(patches, settings)
    centre = _adapted(average.processed, settings)
    mask, rings = _ring_by_ring(centre, settings)
    if settings.keep_center_component_only:
        labels, _ = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
        mask = labels == labels[tuple(n // 2 for n in mask.shape)]
    mask = _strongest(mask, centre, settings.max_true_pixels)
    left = np.where(mask, 0.0, average.correlation)
    noise = StructuralNoise(
        mask=crop_to_content(mask),
        autocorrelation=average.correlation,
        z_scores=np.zeros_like(average.correlation),
        windows=average.patches,
        window_size=average.side,
        spread=0.0,
        z_threshold=0.0,
        outside=float(left.flat[int(np.abs(left).argmax())]),
        note="",
    )
    return RingsFound(noise, centre, rings)


@dataclass(frozen=True, slots=True)
class _Average:
    """Means over all patches: of what the rings see, and of the plain correlation; symmetric."""

    processed: Floats
    correlation: Floats
    patches: int
    side: int


def _average(patches: Windows, settings: RingsSettings) -> _Average:
    processed = correlation = np.zeros(())
    count = given = side = 0
    for batch in _batches(patches):
        given += len(batch)
        usable = usable_windows(batch)
        if not len(usable):
            continue
        if usable.ndim != 3:
            raise BadRequest("rings are of planes", got=f"patches {usable.shape}", expected="(n, y, x)")
        side = min(usable.shape[1:])
        covariance = _autocovariance(usable, _reach(settings, side))
        middle = covariance.shape[1] // 2
        plain = covariance / covariance[:, middle, middle][:, None, None]
        chosen = plain if settings.norm_autocorr else covariance
        if settings.log_autocorr:
            chosen = np.sign(chosen) * np.log1p(np.abs(chosen))
        processed, correlation = processed + chosen.sum(axis=0), correlation + plain.sum(axis=0)
        count += len(usable)
    if count < settings.minimum_windows:
        raise EmptyIndex(
            "too few windows to measure noise in",
            got=f"{count} that vary, of {given}",
            expected=f"{settings.minimum_windows} or more",
            remedy="give a larger image, more images or a mask file, or lower minimum_windows",
        )
    first, second = ((total + total[::-1, ::-1]) / (2 * count) for total in (processed, correlation))
    return _Average(first, second, count, side)


def _batches(
    patches: Windows,
) -> Iterator[np.ndarray[Any, Any]]:
    whole = [patches] if isinstance(patches, np.ndarray) else patches
    for batch in whole:
        array = np.asarray(batch)
        yield from (array[n : n + _BATCH] for n in range(0, max(len(array), 1), _BATCH))


def _reach(settings: RingsSettings, side: int) -> int:
    if not settings.crop_autocorr:
        return side - 1
    reach = settings.center_size // 2
    if reach >= side:
        raise BadRequest(
            "center_size is larger than the windows",
            where="extractor",
            got=settings.center_size,
            expected=f"up to {2 * side - 1}",
        )
    return reach


def _autocovariance(patches: np.ndarray[Any, Any], reach: int) -> Floats:
    """Return the mean product a pixel pair at every lag up to ``reach``, (n, 2R+1, 2R+1)."""
    values = patches.astype(np.float64)
    values -= values.mean(axis=(1, 2), keepdims=True)
    sides = patches.shape[1:]
    padded = tuple(scipy.fft.next_fast_len(n + reach, real=True) for n in sides)
    power = np.abs(scipy.fft.rfft2(values, padded)) ** 2
    lags = np.arange(-reach, reach + 1)
    sums = scipy.fft.irfft2(power, padded)[:, lags[:, None], lags[None, :]]
    pairs = np.outer(*(n - np.abs(lags) for n in sides))
    return np.asarray(sums / pairs, dtype=np.float64)


def _adapted(processed: Floats, settings: RingsSettings) -> Floats:
    """Return the map in 0..1: over the centre's value, with zero for what is weak for its distance."""
    reach = processed.shape[0] // 2
    share = np.maximum(processed / processed[reach, reach], 0.0)
    if settings.adapt_autocorr:
        threshold = settings.adapt_CB / 100.0 / (1.0 + settings.adapt_DF * _distance(reach))
        share = np.where(share > threshold, share, 0.0)
    share[reach, reach] = 1.0
    capped: Floats = np.minimum(share, 1.0)
    return capped


def _ring_by_ring(centre: Floats, settings: RingsSettings) -> tuple[Mask, tuple[Ring, ...]]:
    reach = centre.shape[0] // 2
    distance = _distance(reach)
    mask: Mask = distance == 0
    rings = []
    for number in range(1, reach + 1):
        here = distance == number
        values = centre[here]
        percentile = min(settings.base_percentile * settings.percentile_decay**number, 100.0)
        threshold, largest = float(np.percentile(values, percentile)), float(values.max())
        kept = here & (centre >= threshold) & (centre > 0)
        if largest <= settings.center_ratio_threshold:
            kept[:] = False
        if settings.use_center_proximity:
            kept &= centre >= settings.center_proximity_threshold * largest
        mask |= kept
        rings.append(Ring(number, percentile, threshold, largest, int(kept.sum()), values.size))
    return mask, tuple(rings)


def _strongest(mask: Mask, centre: Floats, pixels: int) -> Mask:
    """Keep the centre and the strongest pairs of opposite lags, ``pixels`` in all at most."""
    if mask.sum() <= pixels:
        return mask
    numbers = np.flatnonzero(mask.ravel()[: mask.size // 2])
    kept = numbers[np.argsort(-centre.ravel()[numbers], kind="stable")][: (pixels - 1) // 2]
    chosen = np.zeros(mask.size, dtype=np.bool_)
    chosen[kept] = chosen[mask.size - 1 - kept] = chosen[mask.size // 2] = True
    return chosen.reshape(mask.shape)


def _distance(reach: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the larger of |dy| and |dx| at every lag."""
    steps = np.abs(np.arange(-reach, reach + 1))
    return np.maximum(steps[:, None], steps[None, :])
