"""Which neighbouring pixels share a pixel's noise: the blind-spot kernel, measured from the data alone.

``noise_sample`` measures the noise's autocorrelation; this module decides which lags become the kernel. Where
noise cannot be told from structure it answers with a single pixel and says why: a kernel made of structure
would hide from the network what it is to learn.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
import scipy.special

from denoizarr.errors import BadRequest, EmptyIndex

from .noise_sample import NoiseSample, measure, quarters, usable_windows

Floats = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

_LOG = logging.getLogger(__name__)

# No noise of a microscope is known to reach further, and pair counts stay above a quarter of the window.
_LARGEST_REACH = 24
# A box of ten pixels on both axes gives .9; what is smoother than that cannot be told from structure.
_SMOOTH = 0.9
# A solid kernel of 9x9: where so many pixels are hidden, what is left around them no longer tells the middle.
_MOST_PIXELS = 81
# What the documented ring algorithm takes, and this one does not.
_RINGS_ONLY = (
    "norm_autocorr", "log_autocorr", "crop_autocorr", "adapt_autocorr", "adapt_CB", "adapt_DF",
    "base_percentile", "percentile_decay", "center_ratio_threshold", "use_center_proximity",
    "center_proximity_threshold", "keep_center_component_only",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StructuralNoise:
    """What an extractor measured and decided.

    Attributes
    ----------
    mask : (odd, odd) bool array
        True is hidden; (y, x), centred, symmetric, cropped to the smallest box; ``[[True]]`` for none.
    autocorrelation, z_scores : (2R+1, 2R+1) float64 array
        Mean correlation of the windows at every lag (dy, dx) and its ratio to its standard error. Lag zero,
        in the middle, is 1 and 0.
    windows, window_size : int
        Windows used, and their side in pixels (the shorter one).
    spread : float
        Variance of the near lags between the windows over what sampling alone gives; about 1 for noise.
    z_threshold : float
        What a z-score had to exceed for the first lag, corrected for all lags tested.
    outside : float
        Largest correlation, by amount and with its sign, that the mask leaves out.
    note : str
        Why there is no kernel, where structure stood in the way; else empty.
    """

    mask: Mask
    autocorrelation: Floats
    z_scores: Floats
    windows: int
    window_size: int
    spread: float
    z_threshold: float
    outside: float
    note: str


class StructuralNoiseExtractor:
    """Find the lags at which noise is correlated.

    Parameters
    ----------
    method : {"significance"}
        The documented method "rings" is not in this version.
    center_size : int, optional
        Side of the square of lags that is analysed, odd; the largest kernel is two smaller. By default up to
        49, and not more than half a window to each side.
    max_true_pixels : int, optional
        Keep only so many pixels, those of the strongest correlation.
    floor : float
        Correlation that some lag must reach for there to be a kernel. From a pair of neighbours of
        correlation r a network can predict 2r^2 of the noise: at .07, one hundredth, or 0.04 dB. Hiding them
        for less costs more than it saves.
    relative_floor : float
        Lags that belong to the kernel reach this share of the strongest one.
    false_alarm : float
        Chance of taking any lag of white noise for significant, all lags together.
    minimum_windows : int
        Fewer windows than this are no sample.

    Raises
    ------
    BadRequest
        For an unknown method or setting, or a setting out of its range.
    """

    def __init__(
        self,
        method: str = "significance",
        *,
        center_size: int | None = None,
        max_true_pixels: int | None = None,
        floor: float = 0.07,
        relative_floor: float = 0.1,
        false_alarm: float = 0.01,
        minimum_windows: int = 20,
        **others: object,
    ) -> None:
        _check_method(method, others)
        if center_size is not None and (center_size < 3 or center_size % 2 == 0):
            raise BadRequest(
                "bad center_size", where="extractor", got=center_size, expected="an odd number from 3"
            )
        if max_true_pixels is not None and max_true_pixels < 1:
            raise BadRequest(
                "bad max_true_pixels", where="extractor", got=max_true_pixels, expected="1 or more"
            )
        for name, share in (
            ("floor", floor),
            ("relative_floor", relative_floor),
            ("false_alarm", false_alarm),
        ):
            if not 0 < share < 1:
                raise BadRequest(f"bad {name}", where="extractor", got=share, expected="between 0 and 1")
        if minimum_windows < 3:
            raise BadRequest(
                "bad minimum_windows", where="extractor", got=minimum_windows, expected="3 or more"
            )
        self.method = method
        self.center_size = center_size
        self.max_true_pixels = max_true_pixels
        self.floor, self.relative_floor, self.false_alarm = floor, relative_floor, false_alarm
        self.minimum_windows = minimum_windows

    def extract_mask(self, patches: np.ndarray[Any, Any], verbose: bool = False) -> tuple[Mask, Floats]:
        """Return the kernel and the autocorrelation inside it.

        Parameters
        ----------
        patches : (n, y, x) array
            Raw intensities of windows that show noise; those with structure are left aside.
        verbose : bool
            Log what was measured.

        Returns
        -------
        mask : (odd, odd) bool array
            True = hidden; the centre is True; a single pixel is ``[[True]]``.
        autocorrelation : float64 array of the same shape
            1 in the centre.

        Raises
        ------
        EmptyIndex
            When there are fewer than ``minimum_windows`` usable windows.
        """
        found = self.analyse(patches)
        if verbose:
            _LOG.info(
                "noise kernel %dx%d (%d pixels) from %d windows of %d; spread %.2f; outside it %.3f; %s",
                *found.mask.shape, int(found.mask.sum()), found.windows, found.window_size, found.spread,
                found.outside, found.note or "kept",
            )  # fmt: skip
        return found.mask, centred_crop(found.autocorrelation, found.mask.shape)

    def analyse(self, patches: np.ndarray[Any, Any]) -> StructuralNoise:
        """Return the kernel and all that was measured; takes and raises what ``extract_mask`` does."""
        windows = usable_windows(patches)
        smaller = quarters(windows)
        samples = []
        for cut in (windows, smaller):
            if len(cut) >= self.minimum_windows:
                reach = self._reach((cut.shape[1], cut.shape[2]))
                samples.append(measure(cut, reach, self.minimum_windows))
                if samples[-1].agrees:
                    return self._decide(samples[-1])
        if not samples:
            raise EmptyIndex(
                "too few windows to measure noise in",
                got=f"{max(len(windows), len(smaller))} that vary, of {max(len(patches), len(smaller))}",
                expected=f"{self.minimum_windows} or more",
                remedy="give a larger image, more images or a mask file, or lower minimum_windows",
            )
        return self._decide(samples[0])

    def _reach(self, shape: tuple[int, int]) -> int:
        half = min(shape) // 2
        if self.center_size is None:
            return min(_LARGEST_REACH, half)
        if self.center_size // 2 > half:
            raise BadRequest(
                "center_size is larger than the windows",
                got=self.center_size,
                expected=f"up to {2 * half + 1}",
            )
        return self.center_size // 2

    def _decide(self, sample: NoiseSample) -> StructuralNoise:
        reach = sample.mean.shape[0] // 2
        z_scores = np.divide(
            sample.mean,
            sample.standard_error,
            out=np.zeros_like(sample.mean),
            where=sample.standard_error > 0,
        )
        freedom = sample.windows - 1
        tested = (sample.mean.size - 1) // 2
        threshold = _critical(self.false_alarm / tested, freedom)
        # Taking the flattest windows pushes near lags down, by up to .06 in small windows of long streaks: of
        # what is negative, only what lies beyond the floor counts.
        strength = np.where(sample.mean >= 0, sample.mean, np.maximum(-sample.mean - self.floor, 0.0))
        strength[reach, reach] = 0.0
        seeds = (np.abs(z_scores) >= threshold) & (strength >= self.floor)
        mask = np.zeros(sample.mean.shape, dtype=np.bool_)
        note = _objection(sample)
        if seeds.any() and not note:
            # Once there is correlated noise, only the lags at its border are tested, one a step of the reach.
            weaker = np.abs(z_scores) >= _critical(self.false_alarm / reach, freedom)
            least = np.maximum(self.relative_floor * strength[seeds].max(), 2.0 * sample.leftover)
            mask = _connected(seeds | (weaker & (strength >= least)), seeds)
            note = _too_wide(mask, reach)
            if note:
                mask[:] = False
        mask[reach, reach] = True
        if self.max_true_pixels is not None:
            mask = _strongest(mask, strength, self.max_true_pixels)
        left = np.where(mask, 0.0, sample.mean)
        return StructuralNoise(
            mask=crop_to_content(mask),
            autocorrelation=sample.mean,
            z_scores=z_scores,
            windows=sample.windows,
            window_size=sample.window_size,
            spread=sample.spread,
            z_threshold=threshold,
            outside=float(left.flat[int(np.abs(left).argmax())]),
            note=note,
        )


def centred_crop(array: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return the middle of a centred array."""
    slices = tuple(
        slice(n // 2 - m // 2, n // 2 + m // 2 + 1) for n, m in zip(array.shape, shape, strict=True)
    )
    return array[slices]


def crop_to_content(mask: Mask) -> Mask:
    """Return the smallest centred box that holds every True pixel of a centred mask."""
    offsets = np.abs(np.argwhere(mask) - np.array(mask.shape) // 2)
    half_y, half_x = offsets.max(axis=0)
    return centred_crop(mask, (2 * int(half_y) + 1, 2 * int(half_x) + 1))


def _check_method(method: str, others: dict[str, object]) -> None:
    rings = [name for name in others if name in _RINGS_ONLY]
    if method == "rings" or rings:
        raise BadRequest(
            'the extractor method "rings" is not in this version',
            got=", ".join(rings) if rings else None,
            remedy='use method="significance" and leave the settings of "rings" out',
        )
    if method != "significance":
        raise BadRequest("unknown extractor method", got=repr(method), expected='"significance"')
    if others:
        raise BadRequest("unknown extractor setting", got=", ".join(others))


def _critical(chance: float, freedom: int) -> float:
    """Return what a t-distributed score exceeds, on either side, with this chance."""
    return float(scipy.special.stdtrit(freedom, 1.0 - chance / 2.0))


def _objection(sample: NoiseSample) -> str:
    """Return why the correlation cannot be taken for noise, or nothing."""
    if not sample.agrees:
        return (
            f"structure everywhere: even the flattest {sample.windows} windows differ more than noise would "
            f"({sample.spread:.1f} times in their correlations), so noise cannot be told from structure"
        )
    reach = sample.mean.shape[0] // 2
    if min(sample.mean[reach, reach + 1], sample.mean[reach + 1, reach]) >= _SMOOTH:
        return "smooth along both axes: structure, or noise that cannot be told from it"
    return ""


def _too_wide(mask: Mask, reach: int) -> str:
    """Return why a mask is no blind-spot kernel, or nothing."""
    if mask[0].any() or mask[:, 0].any():
        return f"correlated as far as was measured ({reach} pixels): structure, or stripes"
    if mask.sum() > _MOST_PIXELS:
        return f"correlated over {mask.sum()} pixels: structure, or too wide to be predicted from outside"
    return ""


def _connected(candidates: Mask, seeds: Mask) -> Mask:
    """Keep what touches the centre, also over corners, if a seed is in it."""
    middle = tuple(n // 2 for n in candidates.shape)
    candidates = candidates.copy()
    candidates[middle] = True
    labels, _ = scipy.ndimage.label(candidates, structure=np.ones((3, 3)))
    component: Mask = labels == labels[middle]
    if not (component & seeds).any():
        component = np.zeros_like(component)
    return component


def _strongest(mask: Mask, strength: Floats, pixels: int) -> Mask:
    """Keep the centre and the strongest symmetric pairs, at most ``pixels`` in all, connected."""
    middle = tuple(n // 2 for n in mask.shape)
    half = mask.copy().ravel()
    half[half.size // 2 :] = False  # the first half of the lags stands for both
    numbers = np.flatnonzero(half)
    kept = numbers[np.argsort(-strength.ravel()[numbers], kind="stable")][: (pixels - 1) // 2]
    chosen = np.zeros(mask.size, dtype=np.bool_)
    chosen[kept] = chosen[mask.size - 1 - kept] = True
    chosen = chosen.reshape(mask.shape)
    chosen[middle] = True
    return _connected(chosen, chosen)
