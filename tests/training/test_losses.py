"""Losses are added up in order, late or not, and one that is no number names the patches."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

from denoizarr.errors import BadRequest, NonFiniteData
from denoizarr.training.batches import Batch
from denoizarr.training.losses import Losses, StepReport, not_finite
from denoizarr.training.options import TrainingOptions
from denoizarr.training.schedule import learning_rate
from denoizarr.training.training_record import TrainingRecord


def batch_of(*origins: list[int], **more: Any) -> Batch:
    empty = torch.zeros(0)
    patches = torch.zeros(len(origins), 1, 2, 2)
    return Batch(empty, empty, None, {"patch": patches, "origin": torch.tensor(origins), **more})


@pytest.mark.parametrize("late", [False, True])
def test_late_or_not_all_losses_are_reported_in_order(late: bool) -> None:
    reports: list[StepReport] = []
    losses = Losses(reports.append, late=late)
    losses.begin()
    for step in (1, 2, 3):
        loss = torch.tensor(float(step))
        losses.add(loss, batch_of([0, step]), epoch=2, step=10 + step, rate=0.1 * step)
        assert len(reports) == step - int(late)
    assert losses.settle() == 2.0
    assert (losses.total, losses.count, losses.last) == (6.0, 3, 3.0)
    assert reports == [StepReport(2, 10 + n, float(n), 0.1 * n) for n in (1, 2, 3)]


def test_an_epoch_goes_on_where_it_was_left() -> None:
    losses = Losses()
    losses.begin(5.0, 2)
    losses.add(torch.tensor(1.0), batch_of([0, 0]), epoch=1, step=3, rate=0.1)
    assert losses.settle() == 2.0
    losses.begin()
    assert (losses.total, losses.count) == (0.0, 0)


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_that_is_no_number_names_its_own_batch(late: bool) -> None:
    losses = Losses(late=late)
    bad = batch_of([3, 4], [5, 6])
    bad.item["patch"][1, 0, 0, 1] = math.nan
    losses.begin()
    add = partial(losses.add, torch.tensor(math.nan), epoch=1, rate=0.1)
    # The step as StepReport counts it: since the start of the training.
    if late:
        add(bad, step=7)
    with pytest.raises(NonFiniteData, match=r"image holds NaN.*epoch 1, step 7, patches at \[5, 6\];"):
        add(batch_of([7, 8]) if late else bad, step=8 if late else 7)
    losses = Losses(alone=False)
    with pytest.raises(BadRequest, match=r"patches at \[3, 4\].*another process names.*learning_rate"):
        losses.add(torch.tensor(math.inf), batch_of([3, 4]), epoch=1, step=1, rate=0.1)


def test_the_image_and_the_target_are_told_apart() -> None:
    item = batch_of([3, 4], [5, 6], image=torch.tensor([0, 2])).item
    item["target"] = torch.zeros(2, 1, 2, 2)
    item["target"][1] = math.inf
    error = not_finite(item, "step 1")
    assert "target image holds NaN or infinity at step 1 patches at image 2: [5, 6]" in str(error)


def record_of(*losses: float) -> TrainingRecord:
    record = TrainingRecord(1, {})
    for number, loss in enumerate(losses):
        record.close_epoch({"epoch": torch.tensor(number + 1)}, 10 * number, 0.5, loss, 1e-3)
    return record


def test_the_rate_falls_along_half_a_cosine() -> None:
    options = TrainingOptions(learning_rate=0.2)
    rates = [learning_rate(options, step, 10, []) for step in range(11)]
    assert rates[0] == 0.2
    assert rates[5] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(0, abs=1e-12)
    assert learning_rate(TrainingOptions(learning_rate=0.2, schedule="constant"), 9, 10, [1.0] * 99) == 0.2


def test_on_a_plateau_the_rate_is_halved() -> None:
    options = TrainingOptions(learning_rate=0.8, schedule="plateau")
    losses = [3, 2, 2.5, 2.4, 2.3, 1.9, 2, 2, 2, 2, 2, 2, 2]
    rates = [learning_rate(options, 0, 1, losses[:n]) for n in range(len(losses) + 1)]
    assert rates == [0.8] * 5 + [0.4] * 4 + [0.2] * 3 + [0.1] * 2


def test_the_best_epoch_is_kept_and_of_equals_the_last() -> None:
    record = record_of(3, 1, 2, 1, 4)
    assert (record.best_epoch, record.best_loss, int(record.best["epoch"])) == (4, 1, 4)
    assert record.losses == [3, 1, 2, 1, 4]
    assert record.report(1.5).best_epoch == 4


def test_a_training_is_over_after_so_many_epochs_without_a_gain() -> None:
    losses = [3, 1, 2, 2, 0.5, 1, 1, 1]
    patient = TrainingOptions(num_epochs=100, early_stopping=3)
    over = [record_of(*losses[:n]).is_over(patient) for n in range(len(losses) + 1)]
    assert over == [False] * 8 + [True]
    assert not record_of(*losses).is_over(TrainingOptions(num_epochs=100))
    assert record_of(*losses).is_over(TrainingOptions(num_epochs=8))


def test_without_validation_nothing_stops_early_and_the_rate_follows_the_training_loss() -> None:
    record = TrainingRecord(1, {})
    for loss in (3.0, 4.0, 5.0):
        record.close_epoch({}, 1, loss, None, 1e-3)
    assert record.losses == [3.0, 4.0, 5.0]
    assert record.best_epoch == 3
    assert not record.is_over(TrainingOptions(early_stopping=1))
