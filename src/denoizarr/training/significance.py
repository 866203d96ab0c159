"""Which lags of noise are significant: the decision from the measured autocorrelation to a kernel.

``noise_sample`` measures the noise's autocorrelation; this module decides which lags become the kernel. Where
noise cannot be told from structure it answers with a single pixel and says why: a kernel made of structure
would hide from the network what it is to learn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.ndimage
import scipy.special

from denoizarr.errors import BadRequest, EmptyIndex
from denoizarr.kernels.spectrum import find_lines, without_waves

from .lag_fit import LagFit, correlated_share, fit_lags
from .noise_sample import NoiseSpectrum, flattest_windows, measure_spectrum, quarters

Floats = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

# No noise of a microscope is known to reach further, and pair counts stay above a quarter of the window.
_LARGEST_REACH = 24
# A box of ten pixels on both axes gives .9; what is smoother than that cannot be told from structure.
_SMOOTH = 0.9
# A solid kernel of 9x9: where so many pixels are hidden, what is left around them no longer tells the middle.
_MOST_PIXELS = 81
# Noise known beyond this only (a third of all frequencies) does not tell its kernel.
_HIGHEST_RADIUS = 0.36
# Noise of less than a hundredth of the variance (20 dB) is faint: only a clear correlation is not finest
# structure, and there is little to gain. Below a thousandth it may be rounding.
_FAINT, _CLEAR, _NONE = 0.01, 0.25, 0.001
# Where the level of noise differs by more than this between windows, structure may reach the highest
# frequencies, and then leaves a weak round correlation: a round kernel has to be clear. Beyond the second it
# is not believed at all.
_UNEVEN, _TOO_UNEVEN = 0.1, 1.0
# Something of a limit for chance: a lag exactly on it is in.
_ROOM = 0.85
# Noise whose power varies so much more between windows than sampling gives is no single noise.
_MOST_SPREAD = 3.0


@dataclass(frozen=True, slots=True)
class SignificanceSettings:
    """How noise is told from chance.

    Attributes
    ----------
    center_size : int or None
        Side of the square of lags that is analysed, odd; the largest kernel is two smaller. None: up to 49,
        and not more than half a window to each side.
    max_true_pixels : int or None
        Keep only so many pixels, those of the strongest correlation.
    floor : float
        Correlation that some lag must reach for there to be a kernel. From a pair of neighbours of
        correlation r a network can predict 2r^2 of the noise: at .07, one hundredth, or 0.04 dB. Hiding them
        for less costs more than it saves.
    relative_floor : float
        Lags that belong to the kernel reach this share of the correlated part at lag zero.
    false_alarm : float
        Chance of taking any lag of white noise for significant, all lags together.
    minimum_windows : int
        Fewer windows than this are no sample.

    Raises
    ------
    BadRequest
        For a setting out of its range.
    """

    center_size: int | None = None
    max_true_pixels: int | None = None
    floor: float = 0.07
    relative_floor: float = 0.1
    false_alarm: float = 0.01
    minimum_windows: int = 20

    def __post_init__(self) -> None:
        size, pixels = self.center_size, self.max_true_pixels
        for name, whole in (
            ("center_size", size),
            ("max_true_pixels", pixels),
            ("minimum_windows", self.minimum_windows),
        ):
            if whole is not None and (not isinstance(whole, int | np.integer) or isinstance(whole, bool)):
                raise BadRequest(f"bad {name}", where="extractor", got=repr(whole), expected="a whole number")
        if size is not None and (size < 3 or size % 2 == 0):
            raise BadRequest("bad center_size", where="extractor", got=size, expected="an odd number from 3")
        if pixels is not None and pixels < 1:
            raise BadRequest("bad max_true_pixels", where="extractor", got=pixels, expected="1 or more")
        for name in ("floor", "relative_floor", "false_alarm"):
            share = getattr(self, name)
            if not isinstance(share, int | float | np.number) or not 0 < share < 1:
                raise BadRequest(f"bad {name}", where="extractor", got=share, expected="between 0 and 1")
        if self.minimum_windows < 3:
            got = self.minimum_windows
            raise BadRequest("bad minimum_windows", where="extractor", got=got, expected="3 or more")


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
    periods : tuple of float
        Distances, in pixels, at which lines repeat over the whole image; they are taken out before the rest
        is measured, for no blind spot hides them.
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
    periods: tuple[float, ...] = ()


def find_significant(
    patches: np.ndarray[Any, Any] | Iterable[np.ndarray[Any, Any]],
    settings: SignificanceSettings | None = None,
) -> StructuralNoise:
    """Find the lags at which the noise of windows is correlated.

    Parameters
    ----------
    patches : (n, y, x) or (n, z, y, x) array, or an iterable of such arrays
        Raw intensities of windows from all over an image; where they show structure, it is told from noise.
        Memory does not grow with an iterable.
    settings : SignificanceSettings, optional

    Returns
    -------
    StructuralNoise

    Raises
    ------
    EmptyIndex
        When there are fewer than ``minimum_windows`` usable windows.
    BadRequest
        When the windows have another shape, or are too small for a neighbourhood or ``center_size``.
    """
    settings = settings or SignificanceSettings()
    windows, given = flattest_windows(patches)
    if len(windows) < settings.minimum_windows:
        smaller = quarters(windows)
        if len(smaller) < settings.minimum_windows:
            raise EmptyIndex(
                "too few windows to measure noise in",
                got=f"{max(len(windows), len(smaller))} that vary, of {max(given, len(smaller))}",
                expected=f"{settings.minimum_windows} or more",
                remedy="give a larger image, more images or a mask file, or lower minimum_windows",
            )
        windows = smaller
    reach = _reach(settings, windows.shape[1:])
    windows, periods = _without_lines(windows)
    spectrum = measure_spectrum(windows, settings.minimum_windows)
    return replace(_decide(settings, spectrum, reach), periods=periods)


def _without_lines(windows: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], tuple[float, ...]]:
    """Return windows without what repeats over all of them, and its periods in pixels."""
    if windows.ndim != 3:
        return windows, ()
    lines = find_lines(windows)
    if not lines:
        return windows, ()
    periods = dict.fromkeys(line.period for line in lines)  # harmonics share one
    return without_waves(windows, [line.frequency for line in lines]), tuple(periods)


def _reach(settings: SignificanceSettings, shape: tuple[int, ...]) -> tuple[int, ...]:
    half = min(shape[-2:]) // 2
    plane = min(_LARGEST_REACH, half)
    if settings.center_size is not None:
        if settings.center_size // 2 > half:
            raise BadRequest(
                "center_size is larger than the windows",
                got=settings.center_size,
                expected=f"up to {2 * half + 1}",
            )
        plane = settings.center_size // 2
    return (*(min(plane, n // 2) for n in shape[:-2]), plane, plane)


def _decide(
    settings: SignificanceSettings, spectrum: NoiseSpectrum, reach: tuple[int, ...]
) -> StructuralNoise:
    tested = int(np.prod([2 * r + 1 for r in reach]) - 1) // 2
    windows = int(spectrum.windows.max())
    freedom = max(windows - 1, 2)
    seed = _critical(settings.false_alarm / tested, freedom)
    # Once there is correlated noise, only the few lags that touch it are tested.
    growth = _critical(settings.false_alarm, freedom)
    mask = np.zeros([2 * r + 1 for r in reach], dtype=np.bool_)
    note = _objection(spectrum)
    fit = (
        fit_lags(spectrum, reach, seed, growth, _ROOM * settings.relative_floor)
        if spectrum.radius < _HIGHEST_RADIUS
        else _nothing(mask.shape)
    )
    if not note:
        mask = _kernel_of(fit, settings.floor, settings.relative_floor)
        doubtful = spectrum.share < _FAINT or (spectrum.uneven > _UNEVEN and _is_round(mask))
        if doubtful and np.abs(fit.checked[fit.support]).max(initial=0.0) < max(settings.floor, _CLEAR):
            mask = np.zeros_like(mask)
        note = _too_wide(fit, mask) or _too_uneven(spectrum, mask)
        mask = np.zeros_like(mask) if note else mask
    mask[reach] = True
    if settings.max_true_pixels is not None:
        mask = _strongest(mask, np.abs(fit.correlation), settings.max_true_pixels)
    left = np.where(mask, 0.0, fit.correlation)
    return StructuralNoise(
        mask=crop_to_content(mask),
        autocorrelation=fit.correlation,
        z_scores=fit.z_scores,
        windows=windows,
        window_size=min(spectrum.power.shape[-2:]),
        spread=spectrum.spread if np.isfinite(spectrum.spread) else 0.0,
        z_threshold=seed,
        outside=float(left.flat[int(np.abs(left).argmax())]),
        note=note,
    )


def _kernel_of(fit: LagFit, floor: float, relative_floor: float) -> Mask:
    """Return the lags that belong to a kernel by their size; none where no lag reaches the floor."""
    if not (np.where(fit.support, np.abs(fit.checked), 0.0) >= floor).any():
        return np.zeros_like(fit.support)
    kernel = fit.support.copy()
    # Structure adds to the one and errors to the other: the first decides, and the second may not object.
    for correlation, room in ((fit.correlation, _ROOM), (fit.checked, _ROOM * _ROOM)):
        kernel &= np.abs(correlation) >= room * relative_floor * correlated_share(correlation)
    kernel[tuple(n // 2 for n in kernel.shape)] = True
    return _connected(kernel)


def _is_round(mask: Mask) -> bool:
    """Whether the kernel is more than a line: four or more of the eight neighbours in the plane."""
    middle = tuple(n // 2 for n in mask.shape)
    near = mask[middle[:-2]][middle[-2] - 1 : middle[-2] + 2, middle[-1] - 1 : middle[-1] + 2]
    return bool(near.sum() - near[1, 1] >= 4)


def _too_uneven(spectrum: NoiseSpectrum, mask: Mask) -> str:
    """Return why a round kernel is taken for structure, or nothing."""
    if spectrum.uneven <= _TOO_UNEVEN or not _is_round(mask):
        return ""
    return (
        "structure everywhere: a round correlation, and windows whose noise would have to differ "
        f"{spectrum.uneven:.1f} times its mean"
    )


def _nothing(shape: tuple[int, ...]) -> LagFit:
    flat = np.zeros(shape)
    flat[tuple(n // 2 for n in shape)] = 1.0
    return LagFit(flat, np.zeros(shape), np.zeros(shape, dtype=np.bool_), flat)


def centred_crop(array: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return the middle of a centred array."""
    slices = tuple(
        slice(n // 2 - m // 2, n // 2 + m // 2 + 1) for n, m in zip(array.shape, shape, strict=True)
    )
    return array[slices]


def crop_to_content(mask: Mask) -> Mask:
    """Return the smallest centred box that holds every True pixel of a centred mask."""
    offsets = np.abs(np.argwhere(mask) - np.array(mask.shape) // 2)
    return centred_crop(mask, tuple(2 * int(half) + 1 for half in offsets.max(axis=0)))


def _critical(chance: float, freedom: int) -> float:
    """Return what a t-distributed score exceeds, on either side, with this chance."""
    return float(scipy.special.stdtrit(freedom, 1.0 - chance / 2.0))


def _objection(spectrum: NoiseSpectrum) -> str:
    """Return why the correlation cannot be taken for noise, or nothing."""
    if spectrum.radius >= _HIGHEST_RADIUS:
        return (
            f"structure everywhere: at all but the highest frequencies (beyond {spectrum.radius:.2f} cycles "
            f"per pixel) windows differ more than noise would, so noise cannot be told from structure"
        )
    if spectrum.spread > _MOST_SPREAD:
        return (
            f"structure everywhere: even the flattest windows differ {spectrum.spread:.1f} times as much as "
            f"noise would, so noise cannot be told from structure"
        )
    if spectrum.share < _NONE:
        return f"next to no noise: {spectrum.share:.1g} of the variance, and that may be finest structure"
    return ""


def _too_wide(fit: LagFit, mask: Mask) -> str:
    """Return why a mask is no blind-spot kernel, or nothing."""
    middle = tuple(n // 2 for n in mask.shape)
    planes = range(mask.ndim - 2, mask.ndim)
    near = [fit.correlation[tuple(m + (axis == step) for axis, m in enumerate(middle))] for step in planes]
    if min(near) >= _SMOOTH:
        return "smooth along both axes: structure, or noise that cannot be told from it"
    if any(np.moveaxis(mask, axis, 0)[0].any() for axis in planes):
        return f"correlated as far as was measured ({middle[-1]} pixels): structure, or stripes"
    if mask.sum() > _MOST_PIXELS:
        return f"correlated over {mask.sum()} pixels: structure, or too wide to be predicted from outside"
    return ""


def _connected(candidates: Mask) -> Mask:
    """Keep what touches the centre, also over corners."""
    middle = tuple(n // 2 for n in candidates.shape)
    candidates = candidates.copy()
    candidates[middle] = True
    labels, _ = scipy.ndimage.label(candidates, structure=np.ones((3,) * candidates.ndim))
    component: Mask = labels == labels[middle]
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
    return _connected(chosen)
