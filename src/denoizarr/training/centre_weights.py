"""How much of a voxel's own value a model keeps: a curve over brightness for each channel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from denoizarr.errors import ConfigError
from denoizarr.kernels.centre_weights import Centre


@dataclass(frozen=True, slots=True)
class CentreWeights:
    """The share of a voxel's own value in its answer, by the level that the network predicts, of a channel.

    Where the model has a footprint, of the mean over that.

    Attributes
    ----------
    levels : tuple of float
        In raw intensities, ascending, two or more.
    weights : tuple of float
        From 0 (the network's answer alone) to 1; between levels on straight lines, beyond them constant.
    shift_levels, shifts : tuple of float
        What is added to the network's answer first, by its level, in raw intensities; likewise. Or nothing.

    Raises
    ------
    ConfigError
        They do not pair up, do not ascend, or are out of range.
    """

    levels: tuple[float, ...]
    weights: tuple[float, ...]
    shift_levels: tuple[float, ...] = ()
    shifts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_levels(self.levels, self.weights, "weights")
        if self.shift_levels or self.shifts:
            _check_levels(self.shift_levels, self.shifts, "shifts")
        if not all(0 <= weight <= 1 for weight in self.weights):
            raise ConfigError("a weight is from 0 to 1", where="centre", got=str(self.weights)[:200])


def _check_levels(levels: tuple[float, ...], values: tuple[float, ...], name: str) -> None:
    # As networks are run: levels that differ in float64 alone are one in float32.
    with np.errstate(over="ignore"):
        in_float32 = np.array(levels, np.float64).astype(np.float32)
    ascending = len(levels) >= 2 and np.isfinite(in_float32).all() and (np.diff(in_float32) > 0).all()
    if not ascending or len(levels) != len(values) or not all(map(math.isfinite, values)):
        got = f"{len(levels)} levels, {len(values)} {name}: {levels}, {values}"
        expected = "two or more levels that ascend in float32, and a finite number for each"
        raise ConfigError(f"not {name} by level", where="centre", got=got[:200], expected=expected)


def in_units(
    curve: CentreWeights,
    mean: float,
    std: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Centre:
    """Return a channel's curves in units of its standard deviation, as tensors."""

    def tensor(values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    levels, shift_levels = (
        (np.array(some, np.float64) - mean) / std for some in (curve.levels, curve.shift_levels)
    )
    shifts = np.array(curve.shifts, np.float64) / std
    shift = (tensor(shift_levels), tensor(shifts)) if curve.shifts else None
    return Centre(tensor(levels), tensor(curve.weights), shift)
