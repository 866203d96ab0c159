"""Patches that are looked at before and beside the training: to normalise by, to validate on, to show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from denoizarr.errors import DegenerateData
from denoizarr.selection.image_statistics import ImageStatistics
from denoizarr.selection.patch_index import PatchIndex

from .losses import not_finite
from .normalisation import Normalisation
from .options import TrainingOptions
from .patch_stream import validation_patches

# Enough for the mean and std of each channel to within a few per cent of the std.
STATISTICS_PATCHES = 256


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The fixed patches that are never trained on.

    Attributes
    ----------
    item : dict of str to Tensor
        As of :class:`~denoizarr.training.patch_stream.PatchStream`: patch, origin, perhaps image and target.
    repeats : int
        How often each patch is validated on, hidden otherwise every time.
    """

    item: dict[str, Tensor]
    repeats: int

    def items(self, size: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches of this size of all patches, all repeats after one another, each with its number."""
        n = len(self.item["patch"])
        for first in range(0, n * self.repeats, size):
            numbers = torch.arange(first, min(first + size, n * self.repeats))
            yield {name: value[numbers % n] for name, value in self.item.items()} | {"number": numbers}


def held_out_patches(
    images: list[xr.DataArray],
    index: PatchIndex,
    targets: list[xr.DataArray] | None,
    options: TrainingOptions,
) -> HeldOut:
    """Read the patches to validate on.

    Where there are few, each comes several times, and is masked otherwise every time: a loss over a few
    hundred predicted pixels would choose the best epoch by chance.

    Raises
    ------
    NonFiniteData
        Some hold NaN or infinity; the message names them.
    """
    n = options.validation_patches
    item = _finite_item(images, index, targets, n, options.seed, "validation")
    repeats = 1 if targets is not None else max(n // len(item["patch"]), 1)
    return HeldOut(item, repeats)


def measured_normalisation(
    images: list[xr.DataArray],
    index: PatchIndex,
    targets: list[xr.DataArray] | None,
    seed: int,
    given: Normalisation | None,
) -> tuple[Normalisation, Normalisation | None]:
    """Return mean and std of the images and of the targets, by channel.

    Of the whole images where the index knows them, else of a sample of patches.

    Raises
    ------
    NonFiniteData, DegenerateData
        The patches hold NaN or infinity (the message names them), or nothing but one value.
    """
    if given is None and index.statistics is not None:
        whole = ImageStatistics.merged(index.statistics).channels
        given = Normalisation(tuple(c.mean for c in whole), tuple(c.std for c in whole))
    if given is not None and targets is None:
        return given, None
    item = _finite_item(images, index, targets, STATISTICS_PATCHES, seed, "statistics of")
    return (
        given or _of_patches(item["patch"].numpy(), "image"),
        None if targets is None else _of_patches(item["target"].numpy(), "target image"),
    )


def _of_patches(patches: NDArray[np.float32], what: str) -> Normalisation:
    channels = np.asarray(patches, np.float64).swapaxes(0, 1).reshape(patches.shape[1], -1)
    mean, std = channels.mean(1), channels.std(1)
    if not (std > 0).all():
        raise DegenerateData(
            "a channel holds nothing but one value, so there is no noise to learn from",
            where=f"{what}, channel {int(np.argmin(std))}",
            got=f"{mean[np.argmin(std)]:g} everywhere in {len(patches)} patches",
        )
    return Normalisation(tuple(map(float, mean)), tuple(map(float, std)))


def _finite_item(
    images: list[xr.DataArray],
    index: PatchIndex,
    targets: list[xr.DataArray] | None,
    n: int,
    seed: int,
    purpose: str,
) -> dict[str, Tensor]:
    """Draw patches once, as a stream's item; those that hold NaN or infinity are refused by name."""
    patches, origins, drawn_targets = validation_patches(images, index, n, seed, target=targets)
    several = len(images) > 1
    item = {"patch": torch.from_numpy(patches), "origin": torch.from_numpy(origins[:, int(several) :])}
    if several:
        item["image"] = torch.from_numpy(origins[:, 0])
    if drawn_targets is not None:
        item["target"] = torch.from_numpy(drawn_targets)
    if not all(bool(torch.isfinite(item[key]).all()) for key in ("patch", "target") if key in item):
        raise not_finite(item, purpose)
    return item
