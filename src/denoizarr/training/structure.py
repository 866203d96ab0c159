"""Which neighbouring pixels share a pixel's noise: one class in front of the two methods that find it.

``significance`` decides by statistics over independent windows; ``rings`` is the documented algorithm of
autoStructN2V. Both give a blind-spot kernel, and all that it was decided by.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from denoizarr.errors import BadRequest

from .rings import RingsSettings, measure_rings
from .significance import Floats, Mask, SignificanceSettings, StructuralNoise, centred_crop, find_significant

__all__ = ["Floats", "Mask", "StructuralNoise", "StructuralNoiseExtractor", "Windows"]

_LOG = logging.getLogger(__name__)

Windows = np.ndarray[Any, Any] | Iterable[np.ndarray[Any, Any]]
Settings = SignificanceSettings | RingsSettings

_SETTINGS_OF: dict[str, type[Settings]] = {"significance": SignificanceSettings, "rings": RingsSettings}


class StructuralNoiseExtractor:
    """Find the lags at which noise is correlated.

    Parameters
    ----------
    method : {"significance", "rings"}, optional
        "significance" keeps lags that are correlated beyond chance over independent windows, of any shape.
        "rings" is autoStructN2V's documented algorithm. Left out, it is "significance", unless a setting
        that only rings have is given.
    center_size : int, optional
        Side of the square of lags that is analysed, odd: by default up to 49 for "significance"; for
        "rings" 10, which is 11, because a square with a centre is odd.
    max_true_pixels : int, optional
        Keep only so many pixels, those of the strongest correlation; by default all that are found, up to
        81, for "significance", and 25 for "rings".
    **settings
        Of :class:`~denoizarr.training.significance.SignificanceSettings` (floor, relative_floor, false_alarm,
        minimum_windows) or of :class:`~denoizarr.training.rings.RingsSettings` (the other twelve of the
        documented fourteen, and minimum_windows).

    Attributes
    ----------
    method : str
    settings : SignificanceSettings or RingsSettings

    Raises
    ------
    BadRequest
        The method or a setting is unknown, out of its range, or of the other method.
    """

    def __init__(
        self,
        method: str | None = None,
        *,
        center_size: int | None = None,
        max_true_pixels: int | None = None,
        **settings: Any,
    ) -> None:
        shared = {"center_size": center_size, "max_true_pixels": max_true_pixels}
        given = settings | {name: value for name, value in shared.items() if value is not None}
        self.method = method_of(method, given)
        self.settings: Settings = _SETTINGS_OF[self.method](**given)

    def extract_mask(
        self, patches: Windows, verbose: bool = False, *, plot: str | Path | None = None
    ) -> tuple[Mask, Floats]:
        """Return the kernel and the autocorrelation inside it.

        Parameters
        ----------
        patches : (n, y, x) array, or an iterable of such arrays
            Raw intensities of windows that show noise. "significance" takes (n, z, y, x) too, and leaves
            windows with structure aside; "rings" averages over all of them.
        verbose : bool
            Say what was measured: the counts, and for "rings" each ring's threshold and the pixels kept. Goes
            to the log where that shows INFO, else to standard output.
        plot : path, optional
            Save the heat map with the kernel there, as PNG.

        Returns
        -------
        mask : odd bool array
            True = hidden; the centre is True; a single pixel is ``[[True]]``. (y, x) or (z, y, x).
        autocorrelation : float64 array of the same shape
            1 in the centre. For "rings" as the rings saw it: averaged logarithms over the centre's, with
            zero for what is negative or below the adaptive threshold.

        Raises
        ------
        EmptyIndex
            There are fewer than ``minimum_windows`` windows that vary.
        BadRequest
            The windows have another shape, or are too small.
        """
        found, centre = self._measure(patches, verbose)
        if plot is not None:
            from denoizarr.figures.noise_kernel import noise_kernel_figure

            noise_kernel_figure(
                found.mask, found.autocorrelation, found.z_scores, z_threshold=found.z_threshold
            ).savefig(plot)
        return found.mask, centred_crop(centre, found.mask.shape)

    def analyse(self, patches: Windows, verbose: bool = False) -> StructuralNoise:
        """Return the kernel and all that was measured; takes and raises what ``extract_mask`` does.

        For "rings" nothing is tested: z-scores, their threshold and the spread are 0.
        """
        return self._measure(patches, verbose)[0]

    def _measure(self, patches: Windows, verbose: bool) -> tuple[StructuralNoise, Floats]:
        if isinstance(self.settings, RingsSettings):
            rings = measure_rings(patches, self.settings)
            if verbose:
                for ring in rings.rings:
                    _tell(ring.in_words())
            found, centre = rings.noise, rings.centre
        else:
            found = find_significant(patches, self.settings)
            centre = found.autocorrelation
        if verbose:
            _tell(_in_words(found))
        return found, centre


def method_of(method: str | None, given: Iterable[str]) -> str:
    """Return the method that settings belong to, where it is not named.

    Parameters
    ----------
    method : str or None
    given : iterable of str
        Names of the settings that are given.

    Raises
    ------
    BadRequest
        The method is unknown; a setting is unknown, or is one that the method named has not.
    """
    if method is not None and method not in _SETTINGS_OF:
        expected = '"significance" or "rings"'
        raise BadRequest("unknown extractor method", got=repr(method), expected=expected)
    known = {name: {field.name for field in fields(kind)} for name, kind in _SETTINGS_OF.items()}
    given = list(given)
    unknown = [name for name in given if not any(name in names for names in known.values())]
    if unknown:
        expected = ", ".join(sorted(set().union(*known.values())))
        raise BadRequest("unknown extractor setting", got=", ".join(unknown), expected=expected)
    foreign = {name: [key for key in given if key not in known[name]] for name in known}
    chosen = method or ("rings" if foreign["significance"] else "significance")
    if foreign[chosen]:
        other = "significance" if chosen == "rings" else "rings"
        raise BadRequest(
            f'the extractor method "{chosen}" has no such setting',
            got=", ".join(foreign[chosen]),
            remedy=f'leave it out, or use method="{other}"'
            if not foreign[other]
            else "settings of the two methods cannot be mixed",
        )
    return chosen


def settings_given(extractor: StructuralNoiseExtractor) -> dict[str, Any]:
    """Return an extractor's settings that differ from its method's defaults, for a record."""
    usual = asdict(_SETTINGS_OF[extractor.method]())
    return {name: value for name, value in asdict(extractor.settings).items() if value != usual[name]}


def _in_words(found: StructuralNoise) -> str:
    size, pixels = " x ".join(map(str, found.mask.shape)), int(found.mask.sum())
    kept = f"noise kernel {size}, {pixels} pixels" if pixels > 1 else "noise kernel: a single pixel"
    spread = f"; spread between windows {found.spread:.2f}" if found.spread else ""
    return (
        f"{kept}, from {found.windows} windows of {found.window_size} pixels{spread}; "
        f"largest correlation left out {found.outside:.3f}{found.note and '; '}{found.note}"
    )


def _tell(line: str) -> None:
    # Someone asked to see this: in an interpreter where nobody set up logging, INFO would be lost.
    if _LOG.isEnabledFor(logging.INFO):
        _LOG.info(line)
    else:
        sys.stdout.write(f"{line}\n")
