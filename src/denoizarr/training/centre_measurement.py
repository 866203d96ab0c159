"""What a voxel's own value is worth to a model that has learnt: measured on patches, by brightness."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, compress
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from denoizarr.kernels.blindspot import draw_blind_spots, largest_percentage
from denoizarr.kernels.centre_weights import (
    axis_lags,
    fit_centre_weights,
    fit_shift,
    footprint_of,
    keep_centres,
    mean_nearby,
    pair_kernel,
    pair_lags,
)
from denoizarr.selection.patch_index import PatchIndex

from .centre_weights import CentreWeights, in_units
from .denoiser import Denoiser
from .exactness import step_precision
from .options import TrainingOptions
from .patch_stream import validation_patches

# Enough for sixteen levels; a million voxels in a pass are a second or two of a core.
_PAIRS, _VOXELS = 60_000, 2**20
# About so many voxels go through the network together: of small patches the calls would take the time.
_VOXELS_AT_ONCE = 2**16
_FEWEST_PATCHES, _MOST_PATCHES, _MOST_PASSES, _SHIFT_PASSES = 16, 1024, 16, 4
# Masks of their own: the number of no epoch, nor of the validation's.
_EPOCH = -2
Floats = NDArray[np.float64]
# Residuals of the first and of the second, mean of their predictions, what is kept squared: (n,) each.
_Pairs = tuple[Floats, Floats, Floats, Floats]


def measure_centre_weights(
    denoiser: Denoiser, images: list[xr.DataArray], index: PatchIndex, options: TrainingOptions
) -> tuple[CentreWeights, ...] | None:
    """Measure on patches of the index how much of a voxel's own value is worth keeping.

    Parameters
    ----------
    denoiser : Denoiser
        A blind-spot network.
    images : list of DataArray
    index : PatchIndex
        Of these images.
    options : TrainingOptions
        As it was trained: seed, filling of hidden voxels, precision.

    Returns
    -------
    tuple of CentreWeights, one per channel, or None
        None where some channel has too little to measure it on, or patches have no room for two kernels.
    """
    footprint = footprint_of(denoiser.blind_spot)
    lags = [pair_lags(denoiser.blind_spot)]
    if footprint.size > 1:
        lags.append(axis_lags(denoiser.blind_spot))
    kernels = [[pair_kernel(denoiser.blind_spot, lag) for lag in some] for some in lags]
    fits = [all(_fits(kernel, options.patch_shape) for kernel in some) for some in kernels]
    if not any(fits):
        return None
    lags, kernels = list(compress(lags, fits)), list(compress(kernels, fits))
    percentage = min([options.percentage_of(denoiser.blind_spot), *map(largest_percentage, chain(*kernels))])
    patches, _, _ = validation_patches(images, index, measured_patches(options), options.seed)
    expected = max(patches[:, 0].size * percentage / 100, 1.0)
    curves = []
    for channel in range(patches.shape[1]):
        turns = [min(max(math.ceil(_PAIRS / expected), len(some)), _MOST_PASSES) for some in lags]
        sample = _Sample(
            denoiser, patches[:, channel], channel if denoiser.channels > 1 else 0, options, footprint
        )
        if footprint.size > 1:
            sample = replace(sample, shift=sample.fit_shift(percentage))
        found = [sample.all_pairs(some, n, percentage) for some, n in zip(lags, turns, strict=True)]
        # What weak correlation of the noise is left, is negative at one of them more than at the other.
        fit = fit_centre_weights(*max(found, key=lambda pairs: float(np.mean(pairs[0] * pairs[1]))))
        if fit is None:
            return None
        curves.append(CentreWeights(*map(_floats, (*fit, *(sample.shift or ())))))
    return tuple(curves)


def measured_patches(options: TrainingOptions) -> int:
    """Return on how many patches it is measured, where the index has as many."""
    return min(max(_VOXELS // math.prod(options.patch_shape), _FEWEST_PATCHES), _MOST_PATCHES)


@dataclass(frozen=True)
class _Sample:
    """Patches of one channel, (n, [z,] y, x) in intensities, and the network that predicts them."""

    denoiser: Denoiser
    patches: NDArray[np.float32]
    channel: int
    options: TrainingOptions
    footprint: NDArray[np.bool_]
    shift: tuple[Floats, Floats] | None = None

    def fit_shift(self, percentage: float) -> tuple[Floats, Floats] | None:
        """Return what answers to pixels that are seen are to be shifted by, in intensities, by level."""
        mean, std = self._scale()
        shown, hidden = [], []
        for turn in range(_SHIFT_PASSES):
            for first, batch in self._batches():
                masked, centres = self._drawn(batch, self.denoiser.blind_spot, first, turn, percentage)
                shown.append(self.answers[first][centres].double().cpu().numpy())
                hidden.append(self._predicted(masked)[centres].double().cpu().numpy())
        return fit_shift(*(np.concatenate(some) * std + mean for some in (shown, hidden)))

    def all_pairs(self, lags: list[tuple[int, ...]], passes: int, percentage: float) -> _Pairs:
        """Return the pairs of some passes over the patches, at these lags in turn."""
        pairs = [self.pairs(lags[turn % len(lags)], turn, percentage) for turn in range(passes)]
        first, second, level, kept = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        return first, second, level, kept

    def pairs(self, lag: tuple[int, ...], turn: int, percentage: float) -> _Pairs:
        """Return residuals of pairs hidden together, means of their predictions, and squares of what is kept.

        In intensities. What is kept is the mean over the footprint of what the network leaves of the patch
        as it is, nothing hidden; of a single pixel, its residual as it was hidden.
        """
        kernel = pair_kernel(self.denoiser.blind_spot, lag)
        mean, std = self._scale()
        found = []
        for first, batch in self._batches():
            hidden, centres = self._drawn(batch, kernel, first, turn, percentage)
            predicted = self._predicted(hidden)
            residual = batch - predicted
            own = residual if self.footprint.size == 1 else self.nearby[first]
            places = torch.nonzero(centres[:, 0])
            others = places + torch.tensor((0, *lag), device=places.device)
            extents = torch.tensor(batch[:, 0].shape, device=places.device)
            inside = ((others >= 0) & (others < extents)).all(1)
            one, other, level_one, level_other, own_one, own_other = (
                values[:, 0][tuple(at[inside].T)].double().cpu().numpy()
                for values in (residual, predicted, own)
                for at in (places, others)
            )
            level = 0.5 * (level_one + level_other) * std + mean
            found.append((one * std, other * std, level, 0.5 * (own_one**2 + own_other**2) * std**2))
        one, other, level, kept = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return one, other, level, kept

    def _drawn(
        self, batch: Tensor, kernel: NDArray[np.bool_], first: int, turn: int, percentage: float
    ) -> tuple[Tensor, Tensor]:
        """Return a batch with this kernel's blind spots, drawn anew for each turn, and their centres."""
        numbers = torch.arange(first, first + len(batch), device=batch.device)
        draws: dict[str, Any] = {"seed": self.options.seed, "epoch": _EPOCH - turn, "numbers": numbers}
        return draw_blind_spots(batch, kernel, percentage, self.options.masking_strategy, **draws)

    @cached_property
    def answers(self) -> dict[int, Tensor]:
        """What the network makes of each batch, nothing hidden, by the number of its first patch."""
        return {first: self._predicted(batch) for first, batch in self._batches()}

    @cached_property
    def nearby(self) -> dict[int, Tensor]:
        """What the network leaves of each batch, over the footprint, by the number of its first patch."""
        nothing_kept = CentreWeights((0.0, 1.0), (0.0, 0.0), *map(_floats, self.shift or ()))
        centre = in_units(nothing_kept, *self._scale(), torch.float32, self.denoiser.device)
        return {
            first: mean_nearby(batch - keep_centres(batch, self.answers[first], centre), self.footprint)
            for first, batch in self._batches()
        }

    def _scale(self) -> tuple[float, float]:
        normalisation = self.denoiser.normalisation
        return normalisation.mean[self.channel], normalisation.std[self.channel]

    def _batches(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of each batch's first patch, and its patches as the network takes them."""
        mean, std = self._scale()
        at_once = max(self.options.batch_size, _VOXELS_AT_ONCE // math.prod(self.options.patch_shape))
        for first in range(0, len(self.patches), at_once):
            batch = (self.patches[first : first + at_once] - mean) / std
            yield first, torch.from_numpy(batch)[:, None].to(self.denoiser.device, torch.float32)

    def _predicted(self, patches: Tensor) -> Tensor:
        device = self.denoiser.device
        bfloat16 = step_precision(self.options.precision, device) == "bfloat16"
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            # One's own network may work in the place of its input.
            predicted: Tensor = self.denoiser.module(patches.clone()).float()
        return predicted


def _fits(kernel: NDArray[np.bool_], patch_shape: tuple[int, ...]) -> bool:
    return all(k <= p for k, p in zip(kernel.shape, patch_shape, strict=True))


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
