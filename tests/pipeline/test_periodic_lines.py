"""A job on an image with periodic lines: measured once, kept, and taken out of all that it does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import denoizarr.images.periodic_record as lines_of_job
from denoizarr.errors import ConfigError, MetadataError
from denoizarr.images.periodic_record import images_of_record, periodic_record
from denoizarr.images.save import save_image
from denoizarr.pipeline.config import JobConfig
from denoizarr.pipeline.plan import plan
from denoizarr.pipeline.run import run_pipeline
from denoizarr.stores.images import as_image, open_image
from denoizarr.training.denoiser import Denoiser

STAGE = {"features": 4, "num_epochs": 1, "patches_per_epoch": 32, "patch_size": 32}
SHAPE = (2, 256, 256)
LINE = 40 * np.sin(2 * np.pi * np.arange(256) / 8)


def base():
    random = np.random.default_rng(0)
    return random.normal(500, 20, SHAPE) + 300 * (np.arange(256)[:, None] > 120)


def job_of(folder: Path, values, **changes):
    save_image(as_image(values.astype("uint16")), folder / "in.ome.zarr", levels=1)
    return {
        "input": str(folder / "in.ome.zarr"),
        "output": {"url": str(folder / "run"), "levels": 1},
        "stage1": STAGE,
        "run_stage2": False,
        "cluster": {"workers": 1},
        **changes,
    }


def test_the_lines_are_gone_from_the_output_and_in_the_record(tmp_path: Path, monkeypatch) -> None:
    job = job_of(tmp_path, base() + LINE, run_stage2=True, stage2=STAGE)
    assert any("periodic lines" in note for note in plan(job).notes)
    run_pipeline(job, progress=False)
    run = tmp_path / "run"
    record = json.loads((run / "periodic.json").read_text())
    (line,) = record["lines"]
    assert line["period"] == pytest.approx(8, rel=1e-3)
    assert line["amplitude"] == pytest.approx(40, rel=0.05)
    assert "every 8 pixels along x" in record["note"]
    assert len(Denoiser.load(run / "stage1" / "model.safetensors").periodic) == 1
    assert json.loads((run / "noise_kernel.json").read_text())["periods"] == [line["period"]]
    denoised = open_image(run / "denoised.ome.zarr")
    assert denoised.dtype == np.uint16
    waves = np.exp(-2j * np.pi * np.arange(256) / 8)
    left = np.abs((denoised.values.mean(axis=(0, 1)) - base().mean(axis=(0, 1))) @ waves) * 2 / 256
    assert left < 0.05 * 40
    steps = {step["name"]: step for step in json.loads((run / "summary.json").read_text())["steps"]}
    assert "every 8 pixels" in steps["periodic lines"]["note"]

    def never(*arguments, **options):
        raise AssertionError("measured again")

    monkeypatch.setattr(lines_of_job, "find_periodic_lines", never)
    assert run_pipeline(job, progress=False).blocks_done == 0


@pytest.mark.slow
def test_without_lines_and_switched_off_the_images_are_as_they_are(tmp_path: Path) -> None:
    outputs = []
    for number, (periodic, values) in enumerate([("auto", base()), ("off", base()), ("off", base() + LINE)]):
        folder = tmp_path / str(number)
        run_pipeline(job_of(folder, values, periodic=periodic), progress=False)
        model = Denoiser.load(folder / "run" / "stage1" / "model.safetensors")
        assert model.periodic == ()
        assert (folder / "run" / "periodic.json").exists() == (periodic == "auto")
        outputs.append(open_image(folder / "run" / "denoised.ome.zarr").values)
    assert np.array_equal(outputs[0], outputs[1])
    assert json.loads((tmp_path / "0" / "run" / "periodic.json").read_text())["note"] == "none found"


def test_the_setting_is_checked_and_part_of_the_job(tmp_path: Path) -> None:
    given = {"input": "a", "output": "b"}
    assert JobConfig.load(given).periodic == "auto"
    with pytest.raises(ConfigError, match="periodic"):
        JobConfig.load(given | {"periodic": "on"})
    off = JobConfig.load(given | {"periodic": "off"})
    assert off.identity() != JobConfig.load(given).identity()
    notes = plan(job_of(tmp_path, base(), periodic="off")).notes
    assert not any("lines" in note for note in notes)


def test_a_record_of_other_images_or_a_spoilt_one_is_refused() -> None:
    image = as_image(base() + LINE)
    record = periodic_record([image], ["a"])
    (corrected,), periods = images_of_record(record, [image])
    assert corrected.dtype == np.float32
    assert len(periods) == 1
    other = as_image(base())
    for spoilt in (
        record | {"images": []},
        record | {"lines": [3]},
        {},
        record | {"images": [{"waves": []}]},
        record | {"images": [record["images"][0] | {"leading": [float("inf")]}]},
    ):
        with pytest.raises(MetadataError, match=r"periodic\.json"):
            images_of_record(spoilt, [image])
    with pytest.raises(MetadataError, match="other images"):
        images_of_record(record, [other])
    assert images_of_record(periodic_record([other], ["b"]), [other]) == ((other,), ())
