"""What was measured on the plane that is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from denoizarr.figures.residual import IntensityProfile, intensity_profile

from .measurements import NoiseLevel, ResidualCheck, noise_level, residual_check
from .planes import Planes


@dataclass(frozen=True, slots=True)
class Findings:
    """What was measured on the plane that is shown."""

    planes: Planes
    residual: np.ndarray[Any, Any] | None
    noise: NoiseLevel | None
    check: ResidualCheck | None
    profile: IntensityProfile | None


def findings_of(planes: Planes, mask: np.ndarray[Any, Any] | None) -> Findings:
    """Measure everything that pictures and words need, once.

    Parameters
    ----------
    planes : Planes
    mask : (odd, odd) array of bool, or None
        The noise kernel; a single pixel where none was found. None where the network predicts a target: its
        grey levels may be others, and raw minus denoised is then no noise.
    """
    if planes.denoised is None or mask is None:
        return Findings(planes, None, None, None, None)
    residual = planes.raw.astype(np.float64) - planes.denoised
    noise = noise_level(planes.raw, planes.denoised)
    profile = intensity_profile(planes.denoised, residual)
    return Findings(planes, residual, noise, residual_check(residual, mask), profile)
