"""Is what was removed noise? Measured on one plane and, where a stack has one, an independent neighbour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from denoizarr.kernels.noise_left import NoiseLeft, noise_left
from denoizarr.kernels.residual import (
    ResidualCorrelation,
    classify_windows,
    residual_correlation,
    shared_noise,
)
from denoizarr.kernels.signal_loss import SignalLoss, signal_loss

from .planes import Planes

# Neighbouring planes whose residuals agree more than this on background do not have independent noise.
_INDEPENDENT = 0.05


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """What the residual says.

    Attributes
    ----------
    background, signal : ResidualCorrelation or None
        Of raw minus denoised, in flat and in structured windows.
    loss : SignalLoss or None
    left : NoiseLeft or None
    gap : int or None
        How many planes further on the independent reference lies; None where there is none.
    """

    background: ResidualCorrelation | None
    signal: ResidualCorrelation | None
    loss: SignalLoss | None
    left: NoiseLeft | None
    gap: int | None


def diagnose(planes: Planes, mask: np.ndarray[Any, Any]) -> Diagnostics | None:
    """Measure the residual of the middle of a plane, at most 1024 x 1024 pixels.

    Parameters
    ----------
    planes : Planes
        With its neighbours, where it has any: the first whose noise is independent is the reference.
    mask : (odd, odd) array of bool
        The noise kernel.

    Returns
    -------
    Diagnostics or None
        None where nothing can be measured: no result, too small, constant, or nothing removed.
    """
    if planes.denoised is None:
        return None
    raw, denoised = (plane[planes.core].astype(np.float64) for plane in (planes.noisy, planes.denoised))
    residual = raw - denoised
    classes = classify_windows(raw, denoised)
    if classes is None or not np.nanmax(np.abs(residual)) > 0:
        return None
    gap, other = None, None
    for number, (other_raw, other_denoised) in enumerate(planes.neighbours, start=1):
        pair = (other_raw.astype(np.float64), other_denoised.astype(np.float64))
        if abs(shared_noise(residual, pair[0] - pair[1], classes)) < _INDEPENDENT:
            gap, other = number, pair
            break
    background = residual_correlation(residual, mask, classes, on="background", kept=denoised)
    signal = None
    if background is not None:
        signal = residual_correlation(
            residual, mask, classes, on="signal", allowed=background.autocorrelation
        )
    return Diagnostics(
        background=background,
        signal=signal,
        loss=signal_loss(raw, denoised, classes, other=other),
        left=noise_left(raw, denoised, mask, classes, other=other),
        gap=gap,
    )
