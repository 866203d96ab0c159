"""How much of a voxel's own value a model keeps: a curve over brightness for each channel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from denoizarr.errors import ConfigError


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

    Raises
    ------
    ConfigError
        They do not pair up, do not ascend, or are out of range.
    """

    levels: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        # As networks are run: levels that differ in float64 alone are one in float32.
        with np.errstate(over="ignore"):
            levels = np.array(self.levels, np.float64).astype(np.float32)
        ascending = len(levels) >= 2 and np.isfinite(levels).all() and (np.diff(levels) > 0).all()
        shares = all(math.isfinite(w) and 0 <= w <= 1 for w in self.weights)
        if not ascending or not shares or len(self.levels) != len(self.weights):
            got = f"{len(self.levels)} levels, {len(self.weights)} weights: {self.levels}, {self.weights}"
            expected = "two or more levels that ascend in float32, and a weight from 0 to 1 for each"
            raise ConfigError("not weights by level", where="centre", got=got[:200], expected=expected)


def in_units(
    curve: CentreWeights,
    mean: float,
    std: float,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return levels, in units of a channel's standard deviation, and weights as tensors."""
    levels = (np.array(curve.levels, np.float64) - mean) / std
    weights = torch.tensor(curve.weights, dtype=dtype, device=device)
    return torch.tensor(levels, dtype=dtype, device=device), weights
