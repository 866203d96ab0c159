"""What was measured on the plane that is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from denoizarr.figures.intensity_bias import IntensityBias
from denoizarr.figures.residual import IntensityProfile, intensity_profile

from .diagnostics import Diagnostics, diagnose
from .measurements import NoiseLevel, ResidualCheck, noise_level, residual_check
from .planes import Planes


@dataclass(frozen=True, slots=True)
class Findings:
    """What was measured on the plane that is shown; ``bias`` where the truth is known.

    Periodic lines are no part of the residual: a filter took them, not the network.
    """

    planes: Planes
    residual: np.ndarray[Any, Any] | None
    noise: NoiseLevel | None
    check: ResidualCheck | None
    profile: IntensityProfile | None
    diagnostics: Diagnostics | None = None
    bias: IntensityBias | None = None


def findings_of(planes: Planes, mask: np.ndarray[Any, Any] | None) -> Findings:
    """Measure everything that pictures and words need, once.

    Parameters
    ----------
    planes : Planes
    mask : (odd, odd) or (odd, odd, odd) array of bool, or None
        The noise kernel; a single pixel where none was found. Of a kernel in 3D, the plane through its centre
        counts. None where the network predicts a target: its grey levels may be others, and raw minus
        denoised is then no noise.
    """
    if planes.denoised is None or mask is None:
        return Findings(planes, None, None, None, None)
    residual = planes.noisy.astype(np.float64) - planes.denoised
    noise = noise_level(planes.noisy, planes.denoised)
    profile = intensity_profile(planes.denoised, residual)
    flat = in_plane(mask)
    return Findings(planes, residual, noise, residual_check(residual, flat), profile, diagnose(planes, flat))


def in_plane(centred: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the (y, x) plane through the centre of an array of two axes or more."""
    plane: np.ndarray[Any, Any] = centred[tuple(size // 2 for size in centred.shape[:-2])]
    return plane
