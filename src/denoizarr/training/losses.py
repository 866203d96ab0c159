"""The losses of an epoch's steps, read when they are there, and what to say when one is no number."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoizarr.errors import BadRequest, DenoizarrError, NonFiniteData

from .batches import Batch


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did; ``on_step`` of :func:`~denoizarr.train` is called with it.

    Attributes
    ----------
    epoch, step : int
        Both from 1; steps since the start of the training.
    loss : float
        Over the predicted voxels of the batch before the step, in variances of the image (with the loss
        "mae" in standard deviations).
    learning_rate : float
    """

    epoch: int
    step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A loss on its way from the device."""

    loss: Tensor
    arrived: torch.cuda.Event | None
    batch: Batch
    epoch: int
    step: int
    rate: float


class Losses:
    """Adds up the losses of an epoch.

    To read a value from a GPU is to wait for it; so there a loss is read one step late, while the next step
    is computed. On a CPU nothing is late.

    Parameters
    ----------
    on_step : callable, optional
        Called with every step's report, in order.
    late : bool
        Whether losses come from a GPU.
    alone : bool
        Whether no other process trains with this one.

    Attributes
    ----------
    total : float
        Sum of the losses read in this epoch.
    count : int
        How many those are.
    last : float
        The last one.
    """

    def __init__(
        self,
        on_step: Callable[[StepReport], None] | None = None,
        *,
        late: bool = False,
        alone: bool = True,
    ) -> None:
        self.total, self.count, self.last = 0.0, 0, math.nan
        self._on_step, self._late, self._alone = on_step, late, alone
        self._waiting: deque[_Waiting] = deque()

    def add(self, loss: Tensor, batch: Batch, *, epoch: int, step: int, rate: float) -> None:
        """Take the loss of a step (both numbers from 1), and read those that are due.

        Raises
        ------
        NonFiniteData, BadRequest
            A loss that was due is not finite: the image holds NaN, or training diverged.
        """
        arrived = None
        if loss.is_cuda:
            loss = loss.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._waiting.append(_Waiting(loss, arrived, batch, epoch, step, rate))
        while len(self._waiting) > int(self._late):
            self._read()

    def settle(self) -> float:
        """Read all that was added; return the mean over the epoch."""
        while self._waiting:
            self._read()
        return self.total / max(self.count, 1)

    def begin(self, total: float = 0.0, count: int = 0) -> None:
        """Begin an epoch, or go on with one of which so much was done before."""
        self.total, self.count = total, count

    def _read(self) -> None:
        waiting = self._waiting.popleft()
        if waiting.arrived is not None:
            waiting.arrived.synchronize()
        self.last = float(waiting.loss)
        if not math.isfinite(self.last):
            when = f"epoch {waiting.epoch}, step {waiting.step},"
            raise not_finite(waiting.batch.item, when, alone=self._alone)
        self.total += self.last
        self.count += 1
        if self._on_step is not None:
            self._on_step(StepReport(waiting.epoch, waiting.step, self.last, waiting.rate))


def not_finite(item: dict[str, Tensor], when: str, *, alone: bool = True) -> DenoizarrError:
    """Return the error that says which patches made a loss no finite number.

    The loss is the mean over all processes: where this one's patches are finite, another's may not be.
    """
    names = patch_names(item)
    for key, what in (("patch", "image"), ("target", "target image")):
        if key not in item:
            continue
        bad = [name for name, patch in zip(names, item[key], strict=True) if not _is_finite(patch)]
        if bad:
            return NonFiniteData(
                f"the {what} holds NaN or infinity",
                where=f"{when} patches at {', '.join(bad)}",
                remedy="mask or replace them before training",
            )
    return diverged(f"{when} patches at {', '.join(names)}", alone=alone)


def diverged(where: str, *, alone: bool = True) -> BadRequest:
    """Return the error that says that a loss or its gradient is no finite number though the data are."""
    return BadRequest(
        "the loss or its gradient is no longer a finite number",
        where=where,
        remedy=("" if alone else "see which patches another process names, or ")
        + "lower learning_rate or gradient_clip",
    )


def patch_names(item: dict[str, Any]) -> list[str]:
    """Return the origin of every patch, with the number of its image where there are several."""
    origins = [str(origin) for origin in item["origin"].tolist()]
    if "image" not in item:
        return origins
    return [f"image {int(n)}: {origin}" for n, origin in zip(item["image"], origins, strict=True)]


def _is_finite(patch: Tensor) -> bool:
    return bool(torch.isfinite(patch).all())
