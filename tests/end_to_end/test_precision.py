"""``denoizarr predict --precision`` and a job's ``output.precision`` reach the network and the ledger."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from denoizarr.cli.app import app
from denoizarr.images.save import save_image
from denoizarr.kernels.unet import NetworkShape, build_network
from denoizarr.pipeline.checked_job import check_job, untrained_network
from denoizarr.pipeline.config import JobConfig
from denoizarr.stores.images import open_image
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.normalisation import Normalisation

from .jobs import scan_noise, write_job


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precision")
    save_image(scan_noise((2, 96, 96)), folder / "in.ome.zarr", levels=1)
    shape = NetworkShape(features=8, norm="none")
    weights = build_network(shape, seed=0).state_dict()
    Denoiser(shape, weights, Normalisation((300.0,), (60.0,))).save(folder / "model")
    return folder


def predicted(folder: Path, name: str, *options: str) -> np.ndarray:
    given = ["predict", str(folder / "model.safetensors"), str(folder / "in.ome.zarr"), str(folder / name)]
    # As a share first: it needs no cluster.
    for share in (["--blocks", "1/1"], ["--workers", "1"]):
        done = CliRunner().invoke(app, [*given, *share, *options])
        assert done.exit_code == 0, done.output
    return open_image(folder / name).values


def test_it_is_asked_for_on_the_command_line(folder: Path) -> None:
    exact, fast = predicted(folder, "exact"), predicted(folder, "fast", "--precision", "bfloat16")
    difference = np.abs(exact.astype(float) - fast)
    assert 0 < difference.max() <= 0.2 * exact.std()


def test_no_other_is_taken(folder: Path) -> None:
    given = [str(folder / "model.safetensors"), str(folder / "in.ome.zarr"), str(folder / "no")]
    done = CliRunner().invoke(app, ["predict", *given, "--precision", "half"])
    assert done.exit_code != 0
    assert not (folder / "no").exists()


def test_a_job_plans_with_it(tmp_path: Path) -> None:
    image = scan_noise((2, 96, 96))
    plans = []
    for name, output in (("float32", {}), ("bfloat16", {"precision": "bfloat16"})):
        job = write_job(tmp_path / name, image, output={"url": "run", **output})
        checked = check_job(JobConfig.load(job))
        assert untrained_network(checked).precision == name
        plans.append(checked.predictions[0].bytes_per_worker)
    assert plans[1] < plans[0]
