"""Training on images with periodic lines: without them, recorded with the model, and resumable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import denoizarr.cli  # noqa: F401  (registers the verbs)
import denoizarr.images.periodic as periodic_lines
from denoizarr.cli.app import app
from denoizarr.errors import LedgerMismatch, ModelError
from denoizarr.images.periodic import without_lines
from denoizarr.images.save import save_image
from denoizarr.selection.index_builder import build_index
from denoizarr.stores.images import as_image
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.options import TrainingOptions
from denoizarr.training.tensor_files import read_tensors, write_tensors
from denoizarr.training.trainer import train

OPTIONS = TrainingOptions(
    patch_size=32, num_epochs=2, patches_per_epoch=32, batch_size=8, features=4, num_layers=1, threads=1
)
LINE = 30 * np.sin(2 * np.pi * np.arange(300) / 8)


def noisy(seed=0):
    random = np.random.default_rng(seed)
    return (random.normal(300, 20, (260, 300)) + 200 * (np.arange(260)[:, None] > 130)).astype("float32")


@pytest.fixture(scope="module")
def striped():
    return noisy() + LINE.astype("float32")


@pytest.fixture(scope="module")
def model(striped):
    return train(striped, options=OPTIONS, progress=False)


def test_lines_are_taken_out_and_recorded(striped, model: Denoiser) -> None:
    ((fy, fx),) = model.periodic
    assert (fy, fx) == pytest.approx((0.0, 0.125), abs=1e-4)
    # As if it had been trained on the image less its lines.
    (corrected,), _ = without_lines([as_image(striped)])
    alike = train(corrected, options=OPTIONS, progress=False, periodic="off")
    assert alike.digest == model.digest
    plain = train(striped, options=OPTIONS, progress=False, periodic="off")
    assert plain.periodic == ()
    assert plain.normalisation.std[0] > model.normalisation.std[0]


def test_without_lines_nothing_changes() -> None:
    models = [train(noisy(), options=OPTIONS, progress=False, periodic=p) for p in ("auto", "off")]
    assert models[0].digest == models[1].digest
    assert models[0].periodic == ()


def test_an_index_of_the_stored_image_serves(striped, tmp_path: Path, model: Denoiser) -> None:
    save_image(as_image(striped), tmp_path / "image.ome.zarr", chunks=(64, 64))
    index = build_index(str(tmp_path / "image.ome.zarr"), 32)
    trained = train(str(tmp_path / "image.ome.zarr"), index, options=OPTIONS, progress=False)
    assert trained.periodic == model.periodic


def test_targets_lose_the_same_lines(striped) -> None:
    second = noisy(1) + 2 * LINE.astype("float32")
    with_lines = train(striped, target=second, options=OPTIONS, progress=False)
    assert len(with_lines.periodic) == 1
    assert with_lines.target_normalisation is not None
    spread = with_lines.target_normalisation.std[0]
    clean = train(striped, target=noisy(1), options=OPTIONS, progress=False)
    assert clean.target_normalisation is not None
    assert spread == pytest.approx(clean.target_normalisation.std[0], rel=1e-2)


def test_a_resumed_training_knows_its_lines(striped, model: Denoiser, tmp_path: Path, monkeypatch) -> None:
    train(striped, options=replace(OPTIONS, num_epochs=2), progress=False, checkpoint=tmp_path)
    again = train(striped, options=OPTIONS, progress=False, checkpoint=tmp_path)
    assert again.digest == model.digest
    measure = periodic_lines.measure_waves

    def otherwise(reader, frequencies, **options):
        return measure(reader, [(fy, fx + 1e-3) for fy, fx in frequencies], **options)

    monkeypatch.setattr(periodic_lines, "measure_waves", otherwise)
    with pytest.raises(LedgerMismatch, match=r"periodic|index|images"):
        train(striped, options=OPTIONS, progress=False, checkpoint=tmp_path)


def test_the_header_holds_them_and_old_ones_load(model: Denoiser, tmp_path: Path) -> None:
    path = model.save(tmp_path / "model")
    header, _ = read_tensors(path)
    assert header["periodic"] == [list(frequency) for frequency in model.periodic]
    loaded = Denoiser.load(path)
    assert loaded.periodic == model.periodic
    assert loaded.digest == model.digest
    old = train(noisy(), options=OPTIONS, progress=False).save(tmp_path / "old")
    assert "periodic" not in read_tensors(old)[0]
    assert Denoiser.load(old).periodic == ()


@pytest.mark.parametrize(
    "value", [3, None, [[0.1]], [[0.1, "x"]], [[0.1, 0.9]], [0.1, 0.2], [[0.1, 0.2]] * 2000]
)
def test_a_spoilt_field_is_refused_by_name(model: Denoiser, tmp_path: Path, value: object) -> None:
    path = model.save(tmp_path / "model")
    header, tensors = read_tensors(path)
    write_tensors(path, header | {"periodic": value}, tensors)
    with pytest.raises(ModelError, match="periodic"):
        Denoiser.load(path)


def test_the_command_line_has_the_setting(striped, tmp_path: Path) -> None:
    save_image(as_image(striped), tmp_path / "image.ome.zarr", chunks=(64, 64))
    words = [
        "train",
        str(tmp_path / "image.ome.zarr"),
        "--out",
        str(tmp_path / "model"),
        "--patch-size",
        "32",
    ]
    words += ["--epochs", "1", "--patches-per-epoch", "16", "--features", "4", "--depth", "1"]
    refused = CliRunner().invoke(app, [*words, "--periodic", "on"])
    assert refused.exit_code != 0
    assert "auto or off" in f"{refused.output}{refused.exception}"
    done = CliRunner().invoke(app, [*words, "--periodic", "off"], catch_exceptions=False)
    assert done.exit_code == 0
    assert Denoiser.load(tmp_path / "model").periodic == ()
