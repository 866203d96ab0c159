"""What can be trained besides a blind-spot network on planes: targets, volumes, networks of one's own."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import ndimage
from torch import Tensor, nn
from typer.testing import CliRunner

from denoizarr.cli import app
from denoizarr.errors import BadRequest, LedgerMismatch, NonFiniteData
from denoizarr.selection.index_builder import build_index
from denoizarr.training import trainer, training_job
from denoizarr.training.learner import Learner
from denoizarr.training.losses import StepReport
from denoizarr.training.options import TrainingOptions
from denoizarr.training.trainer import train
from denoizarr.training.training_record import EpochReport

SMALL = TrainingOptions(
    patch_size=16,
    batch_size=4,
    num_epochs=3,
    patches_per_epoch=18,
    features=4,
    mask_percentage=3,
    validation_patches=8,
    threads=1,
)
VOLUMES = replace(SMALL, patch_size=(8, 16, 16), batch_size=2)


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    truth = ndimage.gaussian_filter(random.normal(size=shape), 4)
    return np.asarray(truth / truth.std() * 100 + 1000, np.float32)


def noisy(truth: np.ndarray, seed: int, strength: float = 100) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, strength, truth.shape)
    return np.asarray(truth + noise, np.float32)


def error_of(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - truth) ** 2)))


# ---- targets


def test_a_clean_target_of_another_range_is_learnt() -> None:
    truth = smooth((160, 160))
    target = 3 * truth - 500
    options = replace(SMALL, patch_size=32, num_epochs=3, patches_per_epoch=320, features=8)
    denoiser = train(noisy(truth, 1), target=target, options=options, progress=False)
    assert error_of(denoiser.denoise(noisy(truth, 2)), target) < 3 * 40
    assert denoiser.target_normalisation is not None
    assert denoiser.target_normalisation.mean[0] == pytest.approx(float(target.mean()), rel=0.1)
    assert denoiser.training["learns_from"] == "targets"
    assert denoiser.blind_spot.size == 1


def test_a_second_noisy_image_is_as_good_a_target() -> None:
    truth = smooth((160, 160))
    # Noise along rows, which a single blind spot would learn; of the second image it knows nothing.
    rows = [ndimage.uniform_filter1d(noisy(0 * truth, seed), 5, axis=1) for seed in (1, 2)]
    images = [truth + 100 * row / row.std() for row in rows]
    options = replace(SMALL, patch_size=32, num_epochs=3, patches_per_epoch=160, features=8)
    with_target = train(images[0], target=images[1], options=options, progress=False)
    alone = train(images[0], options=options, progress=False)
    errors = [error_of(d.denoise(images[0]), truth) for d in (with_target, alone)]
    assert errors[0] < 0.6 * errors[1]


def test_several_images_and_channels_have_targets_of_their_own(tmp_path: Path) -> None:
    truths = [np.stack([smooth(shape, 1), smooth(shape, 2) * 2]) for shape in ((64, 80), (96, 70))]
    images = [xr.DataArray(noisy(t, 3), dims=("c", "y", "x")) for t in truths]
    targets = [xr.DataArray(t, dims=("c", "y", "x")) for t in truths]
    arguments: dict[str, Any] = {"options": SMALL, "progress": False, "checkpoint": tmp_path}
    denoiser = train(images, target=targets, **arguments)
    assert denoiser.channels == 2
    assert denoiser.target_normalisation is not None
    assert denoiser.target_normalisation.mean[1] > 1.8 * denoiser.target_normalisation.mean[0]
    with pytest.raises(LedgerMismatch):
        train(images, target=[targets[0], targets[1] + 1], **arguments)
    with pytest.raises(LedgerMismatch):
        train(images, **arguments)


def test_a_target_that_does_not_fit_is_refused() -> None:
    image = smooth((64, 80))
    arguments: dict[str, Any] = {"options": SMALL, "progress": False}
    with pytest.raises(BadRequest, match=r"with a target nothing is hidden.*\(1, 3\)"):
        train(image, target=image, blind_spot=np.ones((1, 3), np.bool_), **arguments)
    with pytest.raises(BadRequest, match="target"):
        train(image, target=image[:60], **arguments)
    with pytest.raises(BadRequest, match="images and targets have different numbers of channels"):
        train(image, target=xr.DataArray(np.stack([image] * 2), dims=("c", "y", "x")), **arguments)
    holed = image.copy()
    holed[20:44, 30:50] = np.nan
    with pytest.raises(NonFiniteData, match=r"target image holds NaN.*patches at \["):
        train(image, target=holed, **arguments)


# ---- volumes


def test_volumes_are_denoised() -> None:
    truth = smooth((24, 64, 64))
    image = noisy(truth, 1)
    options = replace(VOLUMES, num_epochs=3, patches_per_epoch=120, features=8)
    volumes = train(image, options=options, progress=False)
    assert volumes.axes == "zyx"
    assert volumes.patch_size == (8, 16, 16)
    assert error_of(volumes.denoise(image), truth) < 45  # of a noise of 100


def test_volumes_with_channels_time_and_a_kernel_of_a_plane() -> None:
    image = xr.DataArray(
        noisy(np.stack([[smooth((16, 40, 48), s)] * 2 for s in (1, 2)]), 1), dims=("t", "c", "z", "y", "x")
    )
    kernel = np.ones((1, 3), np.bool_)
    denoiser = train(image, blind_spot=kernel, options=VOLUMES, progress=False)
    assert denoiser.blind_spot.shape == (1, 1, 3)
    assert denoiser.channels == 2
    solid = train(image, blind_spot=np.ones((3, 1, 3), np.bool_), options=VOLUMES, progress=False)
    assert solid.blind_spot.shape == (3, 1, 3)


def test_planes_and_volumes_are_not_mistaken_for_each_other() -> None:
    image = smooth((16, 64, 64))
    for given, options in ((16, VOLUMES), ((8, 16, 16), SMALL)):
        with pytest.raises(BadRequest, match="index is for another patch size"):
            train(image, build_index(image, given), options=options, progress=False)
    with pytest.raises(BadRequest, match="blind"):
        train(image, blind_spot=np.ones((3, 3, 3), np.bool_), options=SMALL, progress=False)


def test_the_pixel_size_of_the_image_is_the_models() -> None:
    coords = {
        name: xr.Variable((name,), np.arange(n) * step, {"units": "micrometer"})
        for name, n, step in (("z", 16, 2.0), ("y", 40, 0.25), ("x", 48, 0.5))
    }
    image = xr.DataArray(noisy(smooth((16, 40, 48)), 1), dims=("z", "y", "x"), coords=coords)
    sizes = {"y": {"value": 0.25, "unit": "micrometer"}, "x": {"value": 0.5, "unit": "micrometer"}}
    assert train(image, options=SMALL, progress=False).pixel_size == sizes
    sizes["z"] = {"value": 2.0, "unit": "micrometer"}
    assert train(image, options=VOLUMES, progress=False).pixel_size == sizes
    assert train(image.values, options=SMALL, progress=False).pixel_size is None


# ---- networks of one's own


class Small(nn.Module):
    """Halves and doubles its input once; has BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.down, self.drop = nn.Conv2d(8, 8, 2, stride=2), nn.Dropout(0.1)
        self.up, self.last = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Conv2d(16, 1, 3, padding=1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        answer: Tensor = self.last(torch.cat((first, self.up(self.drop(self.down(first)))), 1))
        return answer


def test_a_network_of_ones_own_trains_resumes_and_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = smooth((96, 112))
    network, untouched = Small(), Small().state_dict()
    arguments: dict[str, Any] = {"network": network, "progress": False, "options": SMALL}
    straight = train(noisy(truth, 1), **arguments)
    assert straight.stride == (2, 2)
    assert straight.denoise(truth).shape == truth.shape
    assert all(torch.equal(value, untouched[name]) for name, value in network.state_dict().items())

    def stop(report: StepReport) -> None:
        if report.step == 8:
            raise InterruptedError

    frequent = replace(SMALL, checkpoint_minutes=0.0)
    arguments |= {"options": frequent, "checkpoint": tmp_path}
    with pytest.raises(InterruptedError):
        train(noisy(truth, 1), on_step=stop, **arguments)
    assert train(noisy(truth, 1), **arguments).digest == straight.digest
    with torch.no_grad():
        network.last.bias += 1
    with pytest.raises(LedgerMismatch):
        train(noisy(truth, 1), **arguments)


def test_a_network_of_ones_own_that_sees_the_whole_patch_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training_job, "build_index", None)
    whole = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.Conv2d(4, 1, 1))
    with pytest.raises(BadRequest, match="tile"):
        train(smooth((64, 64)), network=whole, options=SMALL, progress=False)
    coarse = nn.Sequential(nn.Conv2d(1, 4, 6, stride=6), nn.ConvTranspose2d(4, 1, 6, stride=6))
    with pytest.raises(BadRequest, match=r"patch_size.*got \(16, 16\).*expected \(18, 18\)"):
        train(smooth((64, 64)), network=coarse, options=SMALL, progress=False)


class Skipping(nn.Module):
    """Has a parameter without a gradient, one with a gradient now and then, and a buffer that is not kept."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
        self.spare, self.sometimes = nn.Conv2d(1, 1, 1), nn.Conv2d(4, 4, 1)
        self.register_buffer("fading", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x).relu()
        if not self.training or bool(torch.rand(()) < 0.5):
            features = features + self.sometimes(features)
        if self.training:
            self.fading.mul_(0.95)
        answer: Tensor = self.last(features) * self.fading
        return answer


def test_a_network_that_uses_parameters_now_and_then_resumes_to_the_same_weights(tmp_path: Path) -> None:
    def stop(report: StepReport) -> None:
        if report.step == 8:
            raise InterruptedError

    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "network": Skipping(),
        "progress": False,
        "options": replace(SMALL, checkpoint_minutes=0.0, validation_fraction=0.0),
    }
    image = noisy(smooth((96, 112)), 1)
    straight = train(image, **arguments)
    with pytest.raises(InterruptedError):
        train(image, on_step=stop, checkpoint=tmp_path, **arguments)
    assert train(image, checkpoint=tmp_path, **arguments).digest == straight.digest


class Overflowing(nn.Module):
    """Its answers are finite, and a running statistic is not."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Conv2d(1, 1, 1)
        self.register_buffer("seen", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.mul_(1e30)
        answer: Tensor = self.only(x)
        return answer


def test_weights_that_are_not_finite_are_neither_kept_nor_saved(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no longer finite numbers at after epoch 1, seen"):
        train(smooth((64, 64)), network=Overflowing(), options=SMALL, progress=False, checkpoint=tmp_path)
    assert not list(tmp_path.iterdir())


# ---- settings of the loop


def test_every_step_and_epoch_is_reported() -> None:
    steps: list[StepReport] = []
    epochs: list[EpochReport] = []
    image = noisy(smooth((96, 112)), 1)
    denoiser = train(image, options=SMALL, on_step=steps.append, on_epoch=epochs.append, progress=False)
    assert [(report.epoch, report.step) for report in steps] == [(1 + n // 5, 1 + n) for n in range(15)]
    assert [(report.epoch, report.step) for report in epochs] == [(1, 5), (2, 10), (3, 15)]
    for number, epoch in enumerate(epochs):
        own = steps[5 * number : 5 * number + 5]
        assert epoch.train_loss == pytest.approx(np.mean([report.loss for report in own]))
        assert epoch.learning_rate == own[-1].learning_rate
        assert epoch.seconds is not None
        assert epoch.seconds > 0
    assert epochs[-1].best_epoch == denoiser.training["best_epoch"]


def test_training_stops_early_and_stays_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 1.0, 2.0, 1.5])
    monkeypatch.setattr(Learner, "validate", lambda *_: next(losses))
    options = replace(SMALL, num_epochs=50, early_stopping=2)
    image = noisy(smooth((96, 112)), 1)
    arguments: dict[str, Any] = {"options": options, "checkpoint": tmp_path, "progress": False}
    denoiser = train(image, **arguments)
    assert (denoiser.training["epochs"], denoiser.training["best_epoch"]) == (4, 2)
    assert train(image, **arguments).digest == denoiser.digest


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": "plateau"},
        {"schedule": "constant"},
        {"loss": "mae"},
        {"n2v2": True, "masking_strategy": "median"},
        {"separate_masks": True},
        {"upsampling": "transposed"},
    ],
    ids=lambda change: "-".join(map(str, change.values())),
)
def test_every_choice_trains_and_makes_a_difference(change: dict[str, Any]) -> None:
    image = noisy(smooth((96, 112)), 1)
    changed = train(image, options=replace(SMALL, **change), progress=False)
    assert np.isfinite(changed.training["train_loss"])
    assert np.isfinite(changed.denoise(image)).all()
    plain = train(image, options=SMALL, progress=False)
    # The best epoch may be the first, which a schedule does not reach.
    assert changed.digest != plain.digest or "schedule" in change


def test_separate_masks_say_how_many_pixels_are_predicted(caplog: pytest.LogCaptureFixture) -> None:
    options = replace(SMALL, num_epochs=1, mask_percentage=8, separate_masks=True)
    with caplog.at_level(logging.INFO, "denoizarr"):
        train(
            noisy(smooth((96, 112)), 1), blind_spot=np.ones((1, 5), np.bool_), options=options, progress=False
        )
    (line,) = [r.getMessage() for r in caplog.records if "separate masks" in r.getMessage()]
    reached = float(line.split(":")[1].split("%")[0])
    assert 1 < reached < 7
    assert "of 8 % asked for" in line


def test_a_picture_of_held_out_patches_is_drawn_after_every_epoch(tmp_path: Path) -> None:
    image = noisy(smooth((16, 64, 64)), 1)
    for name, arguments in (
        ("planes", {"options": replace(SMALL, num_epochs=2)}),
        ("volumes", {"options": replace(VOLUMES, num_epochs=1), "target": smooth((16, 64, 64))}),
    ):
        train(image, samples=tmp_path / name, progress=False, **arguments)  # type: ignore[arg-type]
        files = sorted((tmp_path / name).iterdir())
        epochs = arguments["options"].num_epochs  # type: ignore[attr-defined]
        assert [file.name for file in files] == [f"epoch-000{1 + n}.png" for n in range(epochs)]
        assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    # Nothing is held out of so small an image.
    train(image[0, :20, :20], samples=tmp_path / "none", options=SMALL, progress=False)
    assert not (tmp_path / "none").exists()


def test_it_is_said_where_nothing_is_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image, options = noisy(smooth((20, 20)), 1), replace(SMALL, num_epochs=1, early_stopping=2)
    train(image, samples=tmp_path / "none", options=options, progress=False)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "too small to hold patches out" in warnings[0]
    assert "early_stopping=2 stops nothing" in warnings[0]
    assert "no pictures" in warnings[1]
    caplog.clear()
    with caplog.at_level(logging.INFO, "denoizarr"):
        train(image, options=replace(SMALL, num_epochs=1, validation_fraction=0.0), progress=False)
    assert "validation_fraction is 0" in caplog.text
    assert "too small" not in caplog.text


def test_what_can_be_refused_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_job, "build_index", None)
    image = smooth((64, 64))
    with pytest.raises(BadRequest, match=r"options: got dict, expected TrainingOptions\("):
        train(image, options={"patch_size": 16}, progress=False)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="device"):
        train(image, options=replace(SMALL, device="cuda:99"), progress=False)
    with pytest.raises(BadRequest, match="the target is the image itself"):
        train(image, target=image, options=SMALL, progress=False)


@pytest.mark.parametrize(("processes", "is_saved"), [(1, True), (2, False)])
def test_a_rank_without_other_processes_does_not_keep_the_command_from_saving(
    monkeypatch: pytest.MonkeyPatch, processes: int, is_saved: bool
) -> None:
    saved: list[str] = []

    class Trained:
        training: ClassVar = {"processes": processes}
        digest = "d"

        def save(self, out: str) -> str:
            saved.append(out)
            return out

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(trainer, "train", lambda *_, **__: Trained())
    result = CliRunner().invoke(app, ["train", "image.ome.zarr", "--out", "model"])
    assert result.exit_code == 0, result.output
    assert saved == (["model"] if is_saved else [])
