"""Training repeats itself bit for bit, survives a kill, learns, and refuses what cannot be trained."""

from __future__ import annotations

import csv
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import ndimage

from denoizarr.errors import (
    BadRequest,
    DegenerateData,
    LedgerMismatch,
    NonFiniteData,
    PatchTooLarge,
)
from denoizarr.selection.index_builder import build_index
from denoizarr.training import training_job
from denoizarr.training.batches import Batch
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.learner import Learner
from denoizarr.training.normalisation import Normalisation
from denoizarr.training.options import TrainingOptions
from denoizarr.training.tensor_files import read_tensors
from denoizarr.training.trainer import train

SMALL = TrainingOptions(
    patch_size=16,
    batch_size=4,
    num_epochs=4,
    patches_per_epoch=18,
    features=4,
    mask_percentage=3,
    validation_patches=8,
    threads=1,
)


def noisy(shape: tuple[int, ...] = (96, 112), seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.normal(size=shape), (0,) * (len(shape) - 2) + (4, 4))
    image = 1000 + 400 * smooth / smooth.std() + random.normal(0, 100, shape)
    return image.clip(0).astype(np.uint16)


def rows_of(log: Path) -> list[dict[str, str]]:
    with log.open(newline="") as file:
        return list(csv.DictReader(file))


class Killed(Exception):  # noqa: N818 - stands for a signal
    """What a stop looks like from inside."""


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training break off in the middle of an epoch."""
    learn = Learner.learn

    def stopping(self: Learner, *arguments: Any) -> torch.Tensor:
        if self.steps_done == step:
            raise Killed
        return learn(self, *arguments)

    monkeypatch.setattr(Learner, "learn", stopping)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_stopped_training_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norm: Any
) -> None:
    image, options = noisy(), replace(SMALL, norm=norm)
    folder, log = tmp_path / "checkpoints", tmp_path / "train.csv"
    straight = train(image, options=options, progress=False, log=str(tmp_path / "straight.csv"))
    with monkeypatch.context() as patch:
        stop_at(12, patch)  # 5 steps an epoch: in the third
        with pytest.raises(Killed):
            train(image, options=options, progress=False, checkpoint=str(folder), log=str(log))
    assert [row["epoch"] for row in rows_of(log)] == ["1", "2"]
    # As if it had been killed between the log and the checkpoint of an epoch that is done again.
    log.write_text(log.read_text() + "3,15,9,9,9,9\n")
    resumed = train(image, options=options, progress=False, checkpoint=str(folder), log=str(log))
    assert resumed.digest == straight.digest
    told, expected = rows_of(log), rows_of(tmp_path / "straight.csv")
    assert [row["epoch"] for row in told] == ["1", "2", "3", "4"]
    for row in (*told, *expected):
        row.pop("seconds")
    assert told == expected


def test_a_finished_training_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(noisy(), options=SMALL, progress=False, checkpoint=str(tmp_path))
    stop_at(20, monkeypatch)
    again = train(noisy(), options=SMALL, progress=False, checkpoint=str(tmp_path))
    assert again.digest == first.digest
    assert again.training == first.training


def test_the_last_three_checkpoints_are_kept(tmp_path: Path) -> None:
    train(noisy(), options=SMALL, progress=False, checkpoint=str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{n:09d}.safetensors" for n in (10, 15, 20)]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "header"])
def test_a_damaged_checkpoint_is_left_out_and_the_one_before_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    straight = train(noisy(), options=SMALL, progress=False, checkpoint=str(tmp_path))
    last = tmp_path / "step-000000020.safetensors"
    whole = last.read_bytes()
    spoilt = {
        "truncated": whole[: len(whole) // 2],
        "flipped": whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:],
        "emptied": b"",
        "header": whole.replace(b"steps_done", b"steps_dome"),
    }[damage]
    last.write_bytes(spoilt)
    with caplog.at_level(logging.INFO):
        resumed = train(noisy(), options=SMALL, progress=False, checkpoint=str(tmp_path))
    assert "damaged checkpoint is left out" in caplog.text
    assert "resumes after epoch 3 of 4" in caplog.text
    assert resumed.digest == straight.digest
    assert read_tensors(str(last))[0]["steps_done"] == 20


def test_where_all_checkpoints_are_damaged_training_begins_anew(tmp_path: Path) -> None:
    straight = train(noisy(), options=SMALL, progress=False, checkpoint=str(tmp_path))
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:1000])
    assert train(noisy(), options=SMALL, progress=False, checkpoint=str(tmp_path)).digest == straight.digest


def test_checkpoints_of_another_training_are_refused(tmp_path: Path) -> None:
    folder = str(tmp_path)
    train(noisy(), options=replace(SMALL, num_epochs=1), progress=False, checkpoint=folder)
    row = np.ones((1, 3), np.bool_)
    for change in (
        {"options": SMALL},
        {"options": replace(SMALL, num_epochs=1), "blind_spot": row},
        {"options": replace(SMALL, num_epochs=1), "normalisation": Normalisation((1.0,), (2.0,))},
    ):
        with pytest.raises(LedgerMismatch, match="another training"):
            train(noisy(), progress=False, checkpoint=folder, **change)  # type: ignore[arg-type]
    with pytest.raises(LedgerMismatch):
        train(noisy(seed=1), options=replace(SMALL, num_epochs=1), progress=False, checkpoint=folder)
    # Threads and device are the machine's, not the training's.
    train(noisy(), options=replace(SMALL, num_epochs=1, threads=2), progress=False, checkpoint=folder)


def test_resuming_takes_the_recorded_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    with monkeypatch.context() as patch:
        stop_at(7, patch)
        with pytest.raises(Killed):
            train(noisy(), options=SMALL, progress=False, checkpoint=str(tmp_path))
    assert torch.get_num_threads() == before
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    resumed = train(noisy(), options=replace(SMALL, threads=None), progress=False, checkpoint=str(tmp_path))
    assert resumed.training["threads"] == 1


KILLED_AT_STEP_12 = """
import os, signal, sys
import numpy as np
from denoizarr.training.learner import Learner
from denoizarr.training.options import TrainingOptions
from denoizarr.training.trainer import train
learn = Learner.learn
def dying(self, *arguments):
    if self.steps_done == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return learn(self, *arguments)
Learner.learn = dying
folder = sys.argv[1]
options = TrainingOptions(patch_size=16, batch_size=4, num_epochs=4, patches_per_epoch=18, features=4,
                          mask_percentage=3, validation_patches=8, threads=1)
train(np.load(folder + "/image.npy"), options=options, progress=False,
      checkpoint=folder + "/checkpoints", log=folder + "/train.csv")
"""


def test_a_training_killed_by_sigkill_resumes_with_the_same_weights(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", noisy())
    command = [sys.executable, "-c", KILLED_AT_STEP_12, str(tmp_path)]
    died = subprocess.run(command, check=False, capture_output=True, env=os.environ, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    arguments: dict[str, Any] = {"options": SMALL, "progress": False}
    log = tmp_path / "train.csv"
    resumed = train(noisy(), checkpoint=str(tmp_path / "checkpoints"), log=str(log), **arguments)
    assert resumed.digest == train(noisy(), **arguments).digest
    assert [row["epoch"] for row in rows_of(log)] == ["1", "2", "3", "4"]


def test_training_is_a_function_of_the_seed() -> None:
    first, second = (train(noisy(), options=SMALL, progress=False) for _ in range(2))
    other = train(noisy(), options=replace(SMALL, seed=1), progress=False)
    assert first.digest == second.digest != other.digest


def test_the_log_tells_each_epoch(tmp_path: Path) -> None:
    log = tmp_path / "train.csv"
    denoiser = train(noisy(), options=SMALL, progress=False, log=str(log))
    rows = rows_of(log)
    assert list(rows[0]) == ["epoch", "step", "train_loss", "validation_loss", "learning_rate", "seconds"]
    assert [int(row["step"]) for row in rows] == [5, 10, 15, 20]
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 1e-4
    losses = [float(row["validation_loss"]) for row in rows]
    assert denoiser.training["best_validation_loss"] == min(losses)
    assert denoiser.training["best_epoch"] == int(np.argmin(losses)) + 1


def test_the_epoch_with_the_best_validation_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    averages: list[Any] = []
    losses = iter([3.0, 1.0, 2.0, 1.5])

    def told(self: Learner, batches: Iterable[Batch]) -> float:
        patches = torch.cat([batch.expected for batch in batches])
        # Four cells were held out, and each counts twice.
        assert len(patches) == 2 * len(torch.unique(patches, dim=0)) == SMALL.validation_patches
        averages.append(self.averaged_weights())
        return next(losses)

    monkeypatch.setattr(Learner, "validate", told)
    denoiser = train(noisy(), options=SMALL, progress=False)
    assert denoiser.training["best_epoch"] == 2
    expected = Denoiser(denoiser.network, averages[1], denoiser.normalisation, patch_size=(16, 16))
    assert denoiser.with_centre(None).digest == expected.digest


def test_an_image_too_small_for_validation_keeps_the_last_epoch(tmp_path: Path) -> None:
    log = tmp_path / "train.csv"
    denoiser = train(noisy((20, 20)), options=SMALL, progress=False, log=str(log))
    assert [row["validation_loss"] for row in rows_of(log)] == [""] * 4
    assert denoiser.training["best_epoch"] == 4
    assert denoiser.training["best_validation_loss"] is None
    again = train(noisy(), options=replace(SMALL, validation_fraction=0.0), progress=False)
    assert again.training["best_epoch"] == 4


@pytest.mark.parametrize("device", ["cpu"])
def test_it_denoises(device: str) -> None:
    random = np.random.default_rng(0)
    truth = ndimage.gaussian_filter(random.normal(size=(160, 160)), 4)
    truth = truth / truth.std() * 100 + 1000
    image = truth + random.normal(0, 100, truth.shape)
    options = replace(SMALL, patch_size=32, num_epochs=3, patches_per_epoch=320, features=8, device=device)
    denoiser = train(image.astype(np.float32), options=options, progress=False)
    error = float(np.sqrt(np.mean((denoiser.denoise(image) - truth) ** 2)))
    assert error < 40  # of a noise of 100; a Gaussian filter of the best width leaves 27


def test_a_kernel_is_kept_and_keeps_correlated_noise_from_being_learnt() -> None:
    random = np.random.default_rng(0)
    truth = ndimage.gaussian_filter(random.normal(size=(160, 160)), 6)
    truth = truth / truth.std() * 100
    rows = ndimage.uniform_filter1d(random.normal(size=truth.shape), 3, axis=1)
    image = (truth + rows / rows.std() * 100).astype(np.float32)
    options = replace(SMALL, patch_size=32, num_epochs=3, patches_per_epoch=320, features=8)
    kernel = np.ones((1, 5), np.bool_)
    errors = []
    for blind_spot in (None, kernel):
        denoiser = train(image, blind_spot=blind_spot, options=options, progress=False)
        errors.append(float(np.sqrt(np.mean((denoiser.denoise(image) - truth) ** 2))))
    np.testing.assert_array_equal(denoiser.blind_spot, kernel)
    assert errors[1] < 0.7 * errors[0]


def test_channels_share_a_network_and_have_their_own_statistics() -> None:
    planes = np.stack([noisy(), 5 * noisy(seed=1) + 300])
    image = xr.DataArray(planes, dims=("c", "y", "x"))
    denoiser = train(image, options=SMALL, progress=False)
    assert denoiser.channels == 2
    assert denoiser.normalisation.mean[1] > 4 * denoiser.normalisation.mean[0]
    assert denoiser.denoise(planes).shape == planes.shape


def test_several_images_of_unequal_sizes_with_an_index() -> None:
    images = [noisy((3, 64, 80)), noisy((2, 96, 70), seed=1)]
    index = build_index(images, 16)
    denoiser = train(images, index, options=SMALL, progress=False)
    assert denoiser.training["images"] == 2
    with pytest.raises(BadRequest, match="index"):
        train(images[0], index, options=SMALL, progress=False)
    with pytest.raises(BadRequest, match="patch_size"):
        train(images, index, options=replace(SMALL, patch_size=32), progress=False)


def test_a_given_normalisation_is_used_and_must_fit() -> None:
    given = Normalisation((900.0,), (150.0,))
    assert train(noisy(), options=SMALL, normalisation=given, progress=False).normalisation == given
    with pytest.raises(BadRequest, match="channel"):
        train(noisy(), options=SMALL, normalisation=Normalisation((1.0, 1.0), (1.0, 1.0)), progress=False)


def test_mixed_precision_trains() -> None:
    denoiser = train(noisy(), options=replace(SMALL, precision="bfloat16"), progress=False)
    assert np.isfinite(denoiser.training["train_loss"])
    plain = train(noisy(), options=replace(SMALL, precision="float32"), progress=False)
    assert denoiser.digest != plain.digest
    chosen = train(noisy(), options=SMALL, progress=False)
    assert chosen.training["precision"] in ("float32", "bfloat16")
    assert chosen.digest == (plain if chosen.training["precision"] == "float32" else denoiser).digest


@pytest.mark.parametrize("strategy", ["uniform", "median", "mean", "zero", "random", 0])
def test_every_strategy_trains(strategy: Any) -> None:
    options = replace(SMALL, num_epochs=1, masking_strategy=strategy)
    assert np.isfinite(train(noisy(), options=options, progress=False).training["train_loss"])


def test_nan_in_the_image_stops_training_and_names_the_patches() -> None:
    image = noisy().astype(np.float32)
    image[40:60, 30:50] = np.nan
    with pytest.raises(NonFiniteData, match="NaN"):
        train(image, options=SMALL, progress=False)
    with pytest.raises(NonFiniteData, match=r"epoch \d+, step \d+, patches at \[\d+, \d+\]"):
        train(image, options=SMALL, normalisation=Normalisation((1000.0,), (100.0,)), progress=False)


def test_a_diverging_training_stops_and_names_the_patches() -> None:
    far = Normalisation((0.0,), (1e-35,))
    with pytest.raises(BadRequest, match=r"patches at \[\d+, \d+\], .*learning_rate"):
        train(noisy(), options=SMALL, normalisation=far, progress=False)


def test_a_constant_image_is_refused() -> None:
    with pytest.raises(DegenerateData, match="channel 0"):
        train(np.full((64, 64), 7, np.uint8), options=SMALL, progress=False)


def test_impossible_blind_spots_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_job, "build_index", None)
    with pytest.raises(PatchTooLarge, match="patch_size"):
        train(noisy(), blind_spot=np.ones((1, 17), np.bool_), options=SMALL, progress=False)
    with pytest.raises(BadRequest, match="mask_percentage"):
        train(noisy(), blind_spot=np.ones((5, 5), np.bool_), options=SMALL, progress=False)


def test_nan_among_the_held_out_patches_is_found_before_training() -> None:
    image = noisy().astype(np.float32)
    _, held_out = build_index(image, 16, seed=SMALL.seed).split(SMALL.validation_fraction, SMALL.seed)
    y, x = held_out.sample(1)[0]
    image[y + 3, x + 5] = np.nan
    with pytest.raises(NonFiniteData, match=rf"validation patches at .*\[{y}, {x}\]"):
        train(image, options=SMALL, normalisation=Normalisation((1000.0,), (100.0,)), progress=False)


def test_a_validation_loss_that_is_no_number_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Learner, "validate", lambda *_: float("nan"))
    with pytest.raises(BadRequest, match="validation after epoch 1"):
        train(noisy(), options=SMALL, progress=False, checkpoint=tmp_path)
    assert not list(tmp_path.iterdir())


def test_equal_trainings_leave_equal_files_and_the_log_keeps_its_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        train(noisy(), options=SMALL, progress=False, checkpoint=tmp_path / name).save(tmp_path / f"{name}.m")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert (tmp_path / "a.m.safetensors").read_bytes() == (tmp_path / "b.m.safetensors").read_bytes()
    log, arguments = tmp_path / "train.csv", {"checkpoint": tmp_path / "c", "progress": False}
    with monkeypatch.context() as patch:
        stop_at(12, patch)
        with pytest.raises(Killed):
            train(noisy(), options=SMALL, log=log, **arguments)  # type: ignore[arg-type]
    before = rows_of(log)
    assert all(float(row["seconds"]) > 0 for row in before)
    # The second row is of something else: its seconds are not taken over.
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:2], "2,10,9,9,9,77"]) + "\n")
    train(noisy(), options=SMALL, log=log, **arguments)  # type: ignore[arg-type]
    found = [row["seconds"] for row in rows_of(log)]
    assert found[:2] == [before[0]["seconds"], ""]
    assert all(float(seconds) > 0 for seconds in found[2:])
    log.unlink()
    train(noisy(), options=SMALL, log=log, **arguments)  # type: ignore[arg-type]
    assert [row["seconds"] for row in rows_of(log)] == [""] * 4
