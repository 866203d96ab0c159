"""When the learning rate falls and when training stops: functions of what has happened, without a state."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .options import TrainingOptions

_PATIENCE_EPOCHS = 3


def learning_rate(options: TrainingOptions, step: int, total_steps: int, losses: Sequence[float]) -> float:
    """Return the learning rate of a step.

    Parameters
    ----------
    options : TrainingOptions
    step : int
        Steps done before.
    total_steps : int
        Of the whole training, were it not stopped early.
    losses : sequence of float
        Of the epochs done before, on validation where there is one.
    """
    if options.schedule == "cosine":
        done = min(step / total_steps, 1.0)
        return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if options.schedule == "plateau":
        return options.learning_rate * 0.5 ** _plateaus(losses)
    return options.learning_rate


def _plateaus(losses: Sequence[float]) -> int:
    """Return how often the loss has not improved for a while, counted anew after each time."""
    best, waited, plateaus = math.inf, 0, 0
    for loss in losses:
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if waited == _PATIENCE_EPOCHS:
            waited, plateaus = 0, plateaus + 1
    return plateaus
