"""Kernels on their way through a whole job: measured, cut, skipped, never its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import denoizarr
from denoizarr.errors import BadRequest
from denoizarr.images.output import is_complete
from denoizarr.pipeline.run import run_pipeline
from tests.end_to_end.jobs import scan_noise

SMALL = {"features": 4, "num_epochs": 1, "patches_per_epoch": 16, "patch_size": 32, "num_layers": 1}


def run(
    tmp_path: Path, client: Any, image: np.ndarray, **job: Any
) -> tuple[denoizarr.NoiseKernel, dict[str, Any]]:
    denoizarr.save_image(image, tmp_path / "in.ome.zarr", levels=1)
    whole = {
        "input": str(tmp_path / "in.ome.zarr"),
        "output": str(tmp_path / "run"),
        "stage1": SMALL,
        "stage2": SMALL,
        "patch_filter": {"name": "none"},
        "cluster": {"kind": "address", "address": client.scheduler.address},
        **job,
    }
    run_pipeline(whole, progress=False)
    assert is_complete(str(tmp_path / "run" / "denoised.ome.zarr"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    return denoizarr.NoiseKernel.load(tmp_path / "run" / "noise_kernel.json"), summary


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("denoizarr.pipeline.run.write_report", str)


def test_a_kernel_wider_than_the_patch_is_cut_and_the_job_goes_on(tmp_path: Path, client: Any) -> None:
    stage2 = {**SMALL, "patch_size": 8, "mask_percentage": 10}
    kernel, summary = run(
        tmp_path, client, scan_noise((2, 192, 192), length=9), run_stage1=False, stage2=stage2
    )
    assert kernel.mask.shape[1] >= 15
    assert any("was cut to 1 x 7" in line for line in summary["warnings"])
    model = denoizarr.Denoiser.load(str(tmp_path / "run" / "stage2" / "model.safetensors"))
    assert model.blind_spot.tolist() == [[True] * 7]


def test_volumes_are_measured_in_volumes_by_a_job(tmp_path: Path, client: Any) -> None:
    volumes = {**SMALL, "patch_size": (8, 16, 16)}
    kernel, _ = run(tmp_path, client, scan_noise((8, 192, 192)), run_stage1=False, stage2=volumes)
    assert kernel.mask.shape[:2] == (1, 1)
    assert kernel.mask.shape[2] > 1


def test_rings_measure_what_stage_1_leaves(tmp_path: Path, client: Any) -> None:
    kernel, _ = run(
        tmp_path,
        client,
        scan_noise((2, 192, 192)) // 4 * 4,
        stage2={**SMALL, "mask_source": "stage1"},
        extractor={"base_percentile": 50, "max_true_pixels": 9},
    )
    assert (kernel.method, kernel.source) == ("rings", "stage1")
    assert kernel.settings == {"max_true_pixels": 9}
    assert kernel.mask.sum() <= 9


def test_too_few_windows_end_no_job(tmp_path: Path, client: Any) -> None:
    kernel, summary = run(tmp_path, client, scan_noise((64, 64)))
    assert kernel.is_single_pixel
    assert "too few windows" in kernel.note
    assert any("too few windows" in line for line in summary["warnings"])
    assert not (tmp_path / "run" / "stage2").exists()


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"extractor": {"center_size": 65}}, r"extractor\.center_size: got 65"),
        ({"stage2": {**SMALL, "mask_source": "file", "mask_file_path": "wide.npy"}}, "more than half"),
        ({"stage2": {**SMALL, "mask_source": "file", "mask_file_path": "even.npy"}}, "odd sides"),
        ({"stage2": {**SMALL, "mask_source": "file", "mask_file_path": "seen.npy"}}, "False in the centre"),
    ],
)
def test_what_cannot_work_is_refused_before_work(
    tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch, job: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("wide.npy", np.ones((31, 31), bool))
    np.save("even.npy", np.ones((1, 4), bool))
    np.save("seen.npy", np.array([[1, 0, 1]]))
    with pytest.raises(BadRequest, match=message):
        run(tmp_path, client, scan_noise((48, 64)), **job)
    assert not (tmp_path / "run").exists()
