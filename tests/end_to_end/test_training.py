"""``train`` and ``export`` as a user runs them: options, targets, a kill, several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from typer.testing import CliRunner

from denoizarr.cli.app import app
from denoizarr.images.save import save_image
from denoizarr.stores.images import open_image
from denoizarr.training.denoiser import Denoiser

from .jobs import command, environment, run_cli, scan_noise

SMALL = ("--patch-size", "32", "--features", "4", "--patches-per-epoch", "32", "--device", "cpu")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    url = tmp_path_factory.mktemp("image") / "in.ome.zarr"
    save_image(scan_noise((3, 160, 160)), url, levels=1)
    return str(url)


def in_process(*arguments):
    """Run the command line here, where torch is loaded already."""
    return CliRunner().invoke(app, list(arguments))


def test_every_option_reaches_the_training(image, tmp_path):
    np.save(tmp_path / "kernel.npy", np.ones((1, 5), bool))
    out = tmp_path / "model.safetensors"
    given = {
        "--patch-size": "32,48",
        "--epochs": "1",
        "--patches-per-epoch": "20",
        "--batch-size": "5",
        "--mask-percentage": "2",
        "--strategy": "0",
        "--learning-rate": "0.0005",
        "--features": "6",
        "--depth": "3",
        "--early-stopping": "4",
        "--seed": "3",
        "--precision": "bfloat16",
        "--device": "cpu",
        "--kernel": str(tmp_path / "kernel.npy"),
        "--log": str(tmp_path / "train.csv"),
        "--samples": str(tmp_path / "samples"),
        "--checkpoint": str(tmp_path / "state"),
    }
    options = [part for pair in given.items() for part in pair]
    result = in_process("train", image, "--out", str(out), *options, "--n2v2", "--no-use-centre", "--json")
    assert result.exit_code == 0, result.output
    model = Denoiser.load(out)
    assert json.loads(result.stdout.splitlines()[-1])["digest"] == model.digest
    trained = model.training["options"]
    expected = {
        "patch_size": [32, 48],
        "num_epochs": 1,
        "patches_per_epoch": 20,
        "batch_size": 5,
        "mask_percentage": 2.0,
        "masking_strategy": 0,
        "learning_rate": 0.0005,
        "features": 6,
        "num_layers": 3,
        "early_stopping": 4,
        "seed": 3,
        "precision": "bfloat16",
        "device": "cpu",
        "n2v2": True,
        "use_centre": False,
    }
    assert expected == {name: trained[name] for name in expected}
    assert model.blind_spot.shape == (1, 5)
    assert len((tmp_path / "train.csv").read_text().splitlines()) == 2
    assert list((tmp_path / "samples").glob("*.png"))
    assert list((tmp_path / "state").glob("*.safetensors"))
    assert not (tmp_path / "model.checkpoints").exists()


def test_volumes_and_the_filling_of_n2v2(image, tmp_path):
    save_image(scan_noise((16, 64, 64)), tmp_path / "deep.ome.zarr", levels=1)
    out = tmp_path / "model.safetensors"
    options = ("--patch-size", "8,16,16", "--epochs", "1", "--n2v2", "--patches-per-epoch", "8")
    result = in_process(
        "train", str(tmp_path / "deep.ome.zarr"), "--out", str(out), *options, "--features", "2"
    )
    assert result.exit_code == 0, result.output
    model = Denoiser.load(out)
    assert model.axes == "zyx"
    assert model.training["options"]["masking_strategy"] == "median"


def test_a_target_is_trained_on(image, tmp_path):
    clean = open_image(image).values[:, ::-1].astype(np.float32) * 3
    save_image(clean, tmp_path / "target.ome.zarr", levels=1)
    out, target = tmp_path / "model.safetensors", str(tmp_path / "target.ome.zarr")
    result = in_process("train", image, "--target", target, "--out", str(out), *SMALL, "--epochs", "1")
    assert result.exit_code == 0, result.output
    assert Denoiser.load(out).target_normalisation.std[0] == pytest.approx(clean.std(), rel=0.2)


def _bad(folder):
    save_image(scan_noise((3, 96, 96)), folder / "small.ome.zarr", levels=1)
    np.save(folder / "wide.npy", np.ones((1, 33), bool))
    np.save(folder / "even.npy", np.ones((2, 2), bool))
    target = ("--target", str(folder / "small.ome.zarr"))
    return {
        "target": (target, "BadRequest: "),
        "both": ((*target, "--kernel", str(folder / "even.npy")), "needs no blind spots"),
        "patch": (("--patch-size", "30"), "expected 32"),
        "planes": (("--patch-size", "8,512,32"), "PatchTooLarge: "),
        "sizes": (("--patch-size", "8x8"), "expected numbers between commas"),
        "wide": (("--kernel", str(folder / "wide.npy")), "PatchTooLarge: "),
        "even": (("--kernel", str(folder / "even.npy")), "BadRequest: "),
        "strategy": (("--strategy", "guess"), "uniform, median, mean, zero, random"),
        "precision": (("--precision", "float16"), "float32 or bfloat16"),
        "device": (("--device", "tpu"), "auto, cpu, cuda"),
        "index": (("--index", str(folder / "none.zarr")), "ImageNotFound: "),
    }


BAD = (
    "target",
    "both",
    "patch",
    "planes",
    "sizes",
    "wide",
    "even",
    "strategy",
    "precision",
    "device",
    "index",
)


@pytest.mark.parametrize("what", BAD)
def test_bad_requests_are_refused_by_name(what, image, tmp_path):
    options, words = _bad(tmp_path)[what]
    out = tmp_path / "model.safetensors"
    result = in_process("train", image, "--out", str(out), *SMALL, *options, "--epochs", "1")
    error = result.exception
    assert getattr(error, "exit_status", getattr(error, "code", None)) == 2, result.output
    assert words in f"{type(error).__name__}: {error} {' '.join(result.output.split())}"
    assert not out.exists()


def test_a_killed_training_goes_on_by_the_same_command(image, tmp_path):
    options = (*SMALL, "--epochs", "4")
    out = tmp_path / "model.safetensors"
    process = subprocess.Popen(
        command("train", image, "--out", str(out), *options),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    while process.poll() is None and not any((tmp_path / "model.checkpoints").glob("*.safetensors")):
        threading.Event().wait(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    result = run_cli("train", image, "--out", str(out), *options)
    assert result.returncode == 0
    assert "training resumes" in result.stderr
    trained = Denoiser.load(out).training
    assert (trained["epochs"], trained["steps"]) == (4, 16)


def test_two_processes_train_one_model(image, tmp_path):
    out = tmp_path / "model.safetensors"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*torchrun, "-m", "denoizarr.cli", "train", image, "--out", str(out), *SMALL, "--epochs", "1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("model ") == 1, "the first process alone reports"
    assert Denoiser.load(out).training["steps"] == 2, "32 patches, 8 a step in each process"


def test_export_writes_a_package(image, tmp_path):
    out = tmp_path / "model.safetensors"
    assert in_process("train", image, "--out", str(out), *SMALL, "--epochs", "1").exit_code == 0
    result = in_process("export", str(out), str(tmp_path / "model.zip"), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["package"] == str(tmp_path / "model.zip")
    assert (tmp_path / "model.zip").stat().st_size
