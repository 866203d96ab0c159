"""``denoizarr verify`` as a user runs it, on what ``denoizarr predict`` wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from denoizarr.cli.app import app
from denoizarr.errors import BadRequest, ImageNotFound, UnsupportedStore
from denoizarr.images.save import save_image
from denoizarr.inference.predict import predict
from denoizarr.training.options import TrainingOptions
from denoizarr.training.trainer import train

from .jobs import run_cli, scan_noise


@pytest.fixture(scope="module")
def denoised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    image = scan_noise((2, 160, 160))
    save_image(image, folder / "in.ome.zarr", levels=1)
    options = TrainingOptions(patch_size=32, num_epochs=1, patches_per_epoch=16, features=4)
    model = train(image, options=options, progress=False)
    url = folder / "denoised.ome.zarr"
    predict(
        model, folder / "in.ome.zarr", url, chunks=(1, 32, 32), shards=(1, 64, 64), levels=2, progress=False
    )
    return url


def test_sound_then_damaged_then_mended(denoised: Path) -> None:
    done = run_cli("verify", str(denoised), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing wrong" in done.stdout.splitlines()[0]
    data = json.loads(done.stdout.splitlines()[-1])
    assert data["ok"]
    assert data["complete"]
    assert [level["agreeing"] for level in data["levels"]] == [18, 4]
    assert "verify" in done.stderr, "a log shows how far it is"

    victim = denoised / "0" / "c" / "1" / "2" / "0"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:99] + bytes([whole[99] ^ 4]) + whole[100:])
    done = CliRunner().invoke(app, ["verify", str(denoised), "--json"])
    assert done.exit_code == 1
    assert "problem: level 0: 0/c/1/2/0" in done.output
    assert "(z 1:2, y 128:160, x 0:32) cannot be decoded" in done.output
    assert not json.loads(done.output.splitlines()[-1])["ok"]
    victim.write_bytes(whole)
    assert CliRunner().invoke(app, ["verify", str(denoised), "--sample", "3"]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["nothing.ome.zarr"], ImageNotFound),
        (["ftp://host/a.ome.zarr"], UnsupportedStore),
        (["DENOISED", "--missing", "ignore"], BadRequest),
        (["DENOISED", "--sample", "0"], SystemExit),
    ],
)
def test_a_wrong_request_has_status_2(denoised: Path, arguments: list[str], kind: type[Exception]) -> None:
    given = [str(denoised) if a == "DENOISED" else a for a in arguments]
    done = CliRunner().invoke(app, ["verify", *given])
    assert isinstance(done.exception, kind)
    assert getattr(done.exception, "exit_status", done.exit_code) == 2


def test_a_cluster_that_runs_already_does_it(denoised: Path, client: Any) -> None:
    done = CliRunner().invoke(app, ["verify", str(denoised), "--cluster", client.scheduler.address])
    assert done.exit_code == 0, done.output


def test_a_foreign_image_with_gaps_passes_where_they_are_filled(tmp_path: Path) -> None:
    image = np.zeros((64, 64), "u1")
    image[:32] = 5
    save_image(image, tmp_path / "a.ome.zarr", chunks=(32, 32), shards=(32, 32), levels=1)
    shutil.rmtree(tmp_path / "a.ome.zarr.ledger")
    metadata = tmp_path / "a.ome.zarr" / "zarr.json"
    data = json.loads(metadata.read_text())
    del data["attributes"]["denoizarr.state"]
    metadata.write_text(json.dumps(data))
    (tmp_path / "a.ome.zarr" / "0" / "c" / "1" / "1").unlink()
    url = str(tmp_path / "a.ome.zarr")
    assert CliRunner().invoke(app, ["verify", url]).exit_code == 1
    assert CliRunner().invoke(app, ["verify", url, "--missing", "fill"]).exit_code == 0
