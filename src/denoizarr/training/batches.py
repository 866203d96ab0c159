"""What becomes of a batch between the patch stream and the network: copied, normalised, turned, hidden."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from denoizarr.kernels.blindspot import draw_blind_spots, symmetries_of, turn_patches

from .normalisation import Normalisation
from .options import TrainingOptions

# Its own epoch number keeps the masks of validation apart from those of any epoch.
VALIDATION_EPOCH = -1


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's patches, ready for the network, on its device.

    Attributes
    ----------
    source : Tensor of shape (n, c, [z,] y, x), float32
        What the network sees.
    expected : Tensor of the same shape
        What it is to answer.
    centres : Tensor of bool, shape (n, 1, [z,] y, x), or None
        The voxels whose answers count; None is all.
    item : dict of str to Tensor
        What the stream yielded, on the CPU, to name it if something is wrong.
    """

    source: Tensor
    expected: Tensor
    centres: Tensor | None
    item: dict[str, Tensor]


class Preparation:
    """Makes batches of what a stream yields. Equal items of an epoch become equal batches.

    Parameters
    ----------
    options : TrainingOptions
    kernel : ndarray of bool, odd extents, or None
        The blind-spot kernel; None where there is a target to learn from.
    normalisation, target_normalisation : Normalisation
        Of the image and of the target, by channel.
    device : torch.device
    """

    def __init__(
        self,
        options: TrainingOptions,
        kernel: NDArray[np.bool_] | None,
        normalisation: Normalisation,
        target_normalisation: Normalisation | None,
        device: torch.device,
    ) -> None:
        self.options, self.kernel, self.device = options, kernel, device
        self._scale = _scale_of(normalisation, len(options.patch_shape), device)
        self._target_scale = _scale_of(
            target_normalisation or normalisation, len(options.patch_shape), device
        )
        every = np.ones((1,) * len(options.patch_shape), np.bool_)
        self._symmetries = symmetries_of(every if kernel is None else kernel) if options.augment else ()

    def batch(self, item: dict[str, Tensor], epoch: int) -> Batch:
        """Make the batch of one item; in the validation epoch nothing is turned."""
        draws: dict[str, Any] = {
            "seed": self.options.seed,
            "epoch": epoch,
            "numbers": item["number"].to(self.device, non_blocking=True),
        }
        turns = self._symmetries if epoch != VALIDATION_EPOCH else ()
        patches = turn_patches(self._normalised(item["patch"], self._scale), turns, **draws)
        if self.kernel is None:
            target = turn_patches(self._normalised(item["target"], self._target_scale), turns, **draws)
            return Batch(patches, target, None, item)
        source, centres = draw_blind_spots(
            patches,
            self.kernel,
            self.options.percentage_of(self.kernel),
            self.options.masking_strategy,
            separate=self.options.separate_masks,
            **draws,
        )
        return Batch(source, patches, centres, item)

    def batches(self, stream: Iterable[dict[str, Tensor]], epoch: int) -> Iterator[Batch]:
        """Yield the batches of the rest of an epoch.

        On a GPU a batch is made on a side stream. The loop does not wait for a step to be computed before it
        asks for the next batch, so that batch k + 1 is copied and hidden while step k runs::

            main stream   | step k          | step k + 1      |
            side stream   | make k + 1 |....| make k + 2 |....|
        """
        if self.device.type != "cuda":
            for item in stream:
                yield self.batch(item, epoch)
            return
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        # What the loop's own stream has made so far, the scales and the weights, is there for both.
        side.wait_stream(torch.cuda.current_stream(self.device))
        for item in stream:
            with torch.cuda.stream(side):
                # From pinned memory the copy does not stop this thread.
                batch = self.batch({name: value.pin_memory() for name, value in item.items()}, epoch)
            main = torch.cuda.current_stream(self.device)
            main.wait_stream(side)
            for value in (batch.source, batch.expected, batch.centres):
                if value is not None:
                    # Else its memory would be given to batch k + 2 while step k + 1 still reads it.
                    value.record_stream(main)
            yield batch

    def _normalised(self, patches: Tensor, scale: tuple[Tensor, Tensor]) -> Tensor:
        mean, std = scale
        return (patches.to(self.device, non_blocking=True) - mean) / std


def _scale_of(normalisation: Normalisation, ndim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    shape = (-1, *(1,) * ndim)
    mean = torch.tensor(normalisation.mean, dtype=torch.float32, device=device).reshape(shape)
    std = torch.tensor(normalisation.std, dtype=torch.float32, device=device).reshape(shape)
    return mean, std
