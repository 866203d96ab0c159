"""The modes of the whole job, on images small enough to train in a second."""

from __future__ import annotations

import json

import numpy as np
import pytest

from denoizarr.errors import BadRequest, LedgerMismatch
from denoizarr.images.save import save_image
from denoizarr.pipeline import demo as demo_module
from denoizarr.pipeline.plan import plan
from denoizarr.pipeline.run import run_pipeline
from denoizarr.stores.images import open_image
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.noise_kernel import NoiseKernel
from tests.end_to_end.jobs import scan_noise

STAGE = {"features": 4, "num_epochs": 1, "patches_per_epoch": 32, "patch_size": 32}
SHAPE = (3, 256, 256)


def job_of(folder, image=None, **changes):
    if image is not None:
        save_image(image, folder / "in.ome.zarr", levels=1)
    return {
        "input": {"url": str(folder / "in.ome.zarr")},
        "output": {"url": str(folder / "run"), "levels": 2},
        "stage1": STAGE,
        "stage2": STAGE,
        "cluster": {"workers": 1},
        **changes,
    }


def steps_of(run):
    return [step["name"] for step in json.loads((run / "summary.json").read_text())["steps"]]


def test_both_stages_and_what_the_run_folder_holds(tmp_path):
    job = job_of(tmp_path, scan_noise(SHAPE))
    job["output"] |= {"keep_stage1": True, "chunks": [1, 256, 256], "shards": [1, 256, 256]}
    planned = plan(job)
    assert not planned.problems
    assert not (tmp_path / "run").exists(), "a dry run writes nothing"
    summary = run_pipeline(job, progress=False)
    run = tmp_path / "run"
    assert summary.peak_bytes <= planned.bytes_per_worker <= 2 * 2**30
    assert planned.blocks == 2 * SHAPE[0]
    for name in ("statistics.json", "noise_kernel.json", "report.html", "job.yaml", "provenance.json"):
        assert (run / name).is_file()
    for stage in ("stage1", "stage2"):
        assert (run / stage / "train.csv").read_text().startswith("epoch,step,train_loss")
        assert Denoiser.load(run / stage / "model.safetensors").patch_size == (32, 32)
    kernel = NoiseKernel.load(run / "noise_kernel.json")
    assert kernel.mask.shape[0] == 1 < kernel.mask.shape[1], "scan noise runs along x"
    assert np.array_equal(Denoiser.load(run / "stage2/model.safetensors").blind_spot, kernel.mask)
    denoised, stage1 = open_image(run / "denoised.ome.zarr"), open_image(run / "stage1.ome.zarr")
    assert denoised.dtype == stage1.dtype == np.uint16
    assert not np.array_equal(denoised.values, stage1.values)


def test_white_noise_skips_stage_2_and_the_report_says_so(tmp_path):
    noise = np.random.default_rng(0).normal(500, 20, SHAPE).astype(np.uint16)
    run_pipeline(job_of(tmp_path, noise), progress=False)
    run = tmp_path / "run"
    assert NoiseKernel.load(run / "noise_kernel.json").is_single_pixel
    assert "training of stage2" not in steps_of(run)
    assert "stage 2 was skipped" in (run / "report.html").read_text().lower()


def test_stage_1_only(tmp_path):
    run_pipeline(job_of(tmp_path, scan_noise(SHAPE), run_stage2=False), progress=False)
    assert not (tmp_path / "run" / "noise_kernel.json").exists()
    assert not (tmp_path / "run" / "stage2").exists()


def test_stage_2_with_a_kernel_from_a_file_on_two_images(tmp_path):
    np.save(tmp_path / "kernel.npy", np.ones((1, 7), bool))
    for name, shape in (("a", SHAPE), ("b", (200, 160))):
        save_image(scan_noise(shape), tmp_path / f"{name}.ome.zarr", levels=1)
    job = job_of(
        tmp_path,
        input={"urls": [str(tmp_path / "a.ome.zarr"), str(tmp_path / "b.ome.zarr")]},
        run_stage1=False,
        stage2={**STAGE, "mask_source": "file", "mask_file_path": str(tmp_path / "kernel.npy")},
    )
    # Images of different dims cannot share an index.
    with pytest.raises(ValueError, match="dims"):
        run_pipeline(job, progress=False)
    save_image(scan_noise((1, 200, 160)), tmp_path / "b.ome.zarr", levels=1, overwrite=True)
    job["output"] = {"url": str(tmp_path / "second"), "levels": 1}
    summary = run_pipeline(job, progress=False)
    assert summary.blocks_total == 4
    assert open_image(tmp_path / "second/denoised/b.ome.zarr").shape == (1, 200, 160)
    assert Denoiser.load(tmp_path / "second/stage2/model.safetensors").blind_spot.shape == (1, 7)


def test_a_run_folder_of_another_job_is_refused_by_what_differs(tmp_path):
    job = job_of(tmp_path, scan_noise((1, 96, 96)), run_stage2=False)
    run_pipeline(job, progress=False)
    with pytest.raises(LedgerMismatch, match=r"stage1\.seed"):
        run_pipeline({**job, "stage1": {**STAGE, "seed": 5}}, progress=False)


def test_the_demo_prints_a_row_for_each_image(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module, "SHAPE", (2, 256, 256))
    monkeypatch.setattr(demo_module, "_STAGE", {**STAGE, "patch_size": 64})
    summary = demo_module.demo(tmp_path, progress=False)
    table = demo_module.score_table(tmp_path)
    assert [line[:8].strip() for line in table.splitlines()[1:4]] == ["noisy", "stage 1", "stage 2"]
    assert summary.destination in table


def test_a_job_is_not_for_torchrun(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadRequest, match=r"one process.*WORLD_SIZE"):
        run_pipeline(job_of(tmp_path, scan_noise((1, 96, 96))), progress=False)
    assert not (tmp_path / "run").exists()
