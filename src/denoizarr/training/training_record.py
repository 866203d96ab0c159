"""What a training knows besides its weights: the epochs done, the best of them, how far the next one is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from denoizarr.errors import BadRequest

from .options import TrainingOptions
from .tensor_files import Weights

_BEST = "best."


@dataclass(frozen=True, slots=True)
class EpochReport:
    """How one epoch went; ``on_epoch`` of :func:`~denoizarr.train` is called with it.

    Attributes
    ----------
    epoch, step : int
        Both from 1; the last step of the epoch, since the start of the training.
    train_loss : float
        Mean over the epoch's steps.
    validation_loss : float or None
        Masked, on patches that are never trained on; None where the image was too small to keep any.
    learning_rate : float
        Of the last step.
    best_epoch : int
        Whose weights would be kept if training ended here.
    seconds : float or None
        None for an epoch that was resumed in the middle.
    """

    epoch: int
    step: int
    train_loss: float
    validation_loss: float | None
    learning_rate: float
    best_epoch: int
    seconds: float | None


@dataclass(slots=True)
class TrainingRecord:
    """The part of a training's state that is no tensor of the learner's.

    Attributes
    ----------
    threads : int
        That compute a step.
    best : dict of str to Tensor
        The averaged weights of the best epoch.
    history : list of dict
        One row per epoch done: epoch, step, train_loss, validation_loss, learning_rate.
    best_epoch : int
        From 1; 0 before the first epoch is done.
    best_loss : float
        Its validation loss; infinite where nothing is held out.
    epoch_loss, epoch_steps : float, int
        Sum of the losses of the epoch that is not done yet, and its steps so far.
    """

    threads: int
    best: Weights
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_loss: float = math.inf
    epoch_loss: float = 0.0
    epoch_steps: int = 0

    @property
    def losses(self) -> list[float]:
        """The loss of every epoch done: on validation, or in training where nothing is held out."""
        found = [(row["validation_loss"], row["train_loss"]) for row in self.history]
        return [training if validation is None else validation for validation, training in found]

    def is_over(self, options: TrainingOptions) -> bool:
        """Whether all epochs are done, or so many without a gain that the rest is not worth it."""
        if len(self.history) >= options.num_epochs:
            return True
        if options.early_stopping is None or not math.isfinite(self.best_loss):
            return False
        return len(self.history) - self.best_epoch >= options.early_stopping

    def close_epoch(
        self, weights: Weights, step: int, train_loss: float, validation: float | None, rate: float
    ) -> None:
        """Note that an epoch is done; keep its weights if none before had a lower validation loss.

        Raises
        ------
        BadRequest
            A weight is not finite; the message names the tensor.
        """
        epoch = len(self.history) + 1
        _check_finite(weights, epoch)
        if validation is None or validation <= self.best_loss:
            self.best, self.best_epoch = weights, epoch
            self.best_loss = math.inf if validation is None else validation
        self.history.append(
            {
                "epoch": epoch,
                "step": step,
                "train_loss": train_loss,
                "validation_loss": validation,
                "learning_rate": rate,
            }
        )
        self.epoch_loss, self.epoch_steps = 0.0, 0

    def report(self, seconds: float | None) -> EpochReport:
        """Return the last epoch's report."""
        return EpochReport(**self.history[-1], best_epoch=self.best_epoch, seconds=seconds)

    # ---- checkpoints

    def header(self) -> dict[str, Any]:
        """Return what a checkpoint's header says of it."""
        return {
            "threads": self.threads,
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "epoch_loss": self.epoch_loss,
            "epoch_steps": self.epoch_steps,
        }

    def tensors(self) -> Weights:
        """Return what a checkpoint keeps of it beside the header."""
        return {_BEST + name: value for name, value in self.best.items()}

    @classmethod
    def of_checkpoint(cls, header: dict[str, Any], tensors: Weights, threads: int | None) -> TrainingRecord:
        """Return the record that was saved; ``threads`` overrules what it says, where given."""
        loss = header["best_loss"]
        return cls(
            threads=threads or int(header["threads"]),
            best={n.removeprefix(_BEST): value for n, value in tensors.items() if n.startswith(_BEST)},
            history=list(header["history"]),
            best_epoch=int(header["best_epoch"]),
            best_loss=math.inf if loss is None else float(loss),
            epoch_loss=float(header["epoch_loss"]),
            epoch_steps=int(header["epoch_steps"]),
        )


def _check_finite(weights: Weights, epoch: int) -> None:
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise BadRequest(
                "the network's weights or running statistics are no longer finite numbers",
                where=f"after epoch {epoch}, {name}",
                remedy="lower learning_rate or gradient_clip",
            )
