"""Masks and regions of interest in a job: refused early, measured once, kept in the run folder."""

from __future__ import annotations

import numpy as np
import pytest

from denoizarr.errors import ConfigError
from denoizarr.images.save import save_image
from denoizarr.pipeline.checked_job import check_job
from denoizarr.pipeline.config import JobConfig
from denoizarr.pipeline.plan import plan
from denoizarr.pipeline.run import run_pipeline
from denoizarr.selection.filters import MaskPatchFilter, MeanStdPatchFilter
from denoizarr.selection.patch_index import PatchIndex
from tests.end_to_end.jobs import scan_noise

STAGE = {"features": 4, "num_epochs": 1, "patches_per_epoch": 32, "patch_size": 32}
SHAPE = (2, 256, 256)


def job_of(folder, **changes):
    if not (folder / "in.ome.zarr").exists():
        save_image(scan_noise(SHAPE), folder / "in.ome.zarr", levels=1)
    return {
        "input": {"url": str(folder / "in.ome.zarr")},
        "output": {"url": str(folder / "run"), "levels": 1},
        "stage1": STAGE,
        "stage2": STAGE,
        "cluster": {"workers": 1},
        **changes,
    }


def test_both_stages_look_at_their_own_regions_and_share_what_was_measured(tmp_path):
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, :, :192] = 1
    np.save(tmp_path / "mask.npy", mask)
    kernel = np.ones((1, 5), bool)
    np.save(tmp_path / "kernel.npy", kernel)
    roi = {**STAGE, "use_roi": True, "roi_sigma": 30.0}
    job = job_of(
        tmp_path,
        stage1={**roi, "select_background": True},
        stage2={**roi, "mask_source": "file", "mask_file_path": str(tmp_path / "kernel.npy")},
        patch_filter={"mask": str(tmp_path / "mask.npy"), "mask_coverage": 0.5},
    )
    assert not plan(job).problems
    run_pipeline(job, progress=False)
    run = tmp_path / "run"
    assert (run / "regions_of_interest.zarr").is_dir()
    assert not (run / "regions_of_interest_stage2.zarr").exists(), "computed once for both stages"
    assert (run / "mask_coverage.zarr").is_dir()
    background = PatchIndex.open(run / "stage1" / "index.zarr")
    structure = PatchIndex.open(run / "stage2" / "index.zarr")
    assert background.settings["roi"]["select_background"]
    assert "name" not in background.settings, "where background is looked for, the filter is off"
    assert structure.settings["name"] == "shannon"
    dark, bright = background.weights.values > 0, structure.weights.values > 0
    assert dark.any()
    assert bright.any()
    assert not (dark & bright)[..., 2:-2, 2:-2].all()
    assert (background.weights.values[..., 7:] < 1).all(), "outside the mask"
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*.zarr.ledger/*/*.json")}
    run_pipeline(job, progress=False)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*.zarr.ledger/*/*.json")} == before


def test_other_settings_of_the_second_stage_have_a_place_of_their_own(tmp_path):
    from denoizarr.pipeline.where_to_look import places_of

    checked = check_job(
        JobConfig.load(
            job_of(
                tmp_path,
                stage1={**STAGE, "use_roi": True, "roi_sigma": 30.0},
                stage2={**STAGE, "patch_size": 64, "use_roi": True, "roi_sigma": 30.0},
            )
        )
    )
    first, second = checked.looks["stage1"], checked.looks["stage2"]
    assert first.roi.select_background
    assert not second.roi.select_background
    own = places_of(checked.job, checked.names, "in", second, first)
    assert own.filter_map.endswith("run/filter_map_stage2.zarr")
    assert own.roi.endswith("run/regions_of_interest_stage2.zarr")
    shared = places_of(checked.job, checked.names, "in", first, first)
    assert shared.filter_map.endswith("run/filter_map.zarr")


def test_settings_reach_the_filters(tmp_path):
    np.save(tmp_path / "mask.npy", np.ones(SHAPE, bool))
    settings = {"name": "mean_std", "threshold": 5, "std_threshold": 2, "mask": str(tmp_path / "mask.npy")}
    checked = check_job(JobConfig.load(job_of(tmp_path, patch_filter=settings)))
    look = checked.looks["stage1"]
    assert look.score_filter == MeanStdPatchFilter(5.0, 2.0, 0)
    assert look.mask_filter == MaskPatchFilter()
    only = {"name": "mask", "mask": [str(tmp_path / "mask.npy")], "mask_coverage": 0.3}
    look = check_job(JobConfig.load(job_of(tmp_path, patch_filter=only))).looks["stage1"]
    assert look.score_filter is None
    assert look.mask_filter == MaskPatchFilter(0.3)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "mask"}, "needs mask"),
        ({"mask_coverage": 0.5}, "need mask"),
        ({"mask_missing": "fill"}, "need mask"),
        ({"coverage": 0.5}, "belongs to the filter max"),
        ({"name": "max", "coverage": 1.5}, "less than or equal to 1"),
    ],
)
def test_settings_without_their_filter_are_refused(tmp_path, settings, says):
    with pytest.raises(ConfigError, match=says):
        JobConfig.load(job_of(tmp_path, patch_filter=settings))


def test_a_mask_that_does_not_fit_is_a_problem_of_the_plan(tmp_path):
    np.save(tmp_path / "mask.npy", np.ones((2, 100, 256), bool))
    job = job_of(tmp_path, patch_filter={"mask": str(tmp_path / "mask.npy")})
    (problem,) = plan(job).problems
    assert "mask" in problem
    assert not (tmp_path / "run").exists()


def test_a_region_too_small_for_the_coarse_level_is_a_problem_of_the_plan(tmp_path):
    job = job_of(tmp_path, stage1={**STAGE, "use_roi": True, "scale_factor": 1 / 64})
    (problem,) = plan(job).problems
    assert "scale_factor" in problem


def test_masks_count_from_the_job_file(tmp_path):
    np.save(tmp_path / "mask.npy", np.ones(SHAPE, bool))
    job = job_of(tmp_path, patch_filter={"mask": "mask.npy"})
    text = JobConfig.load({**job}).to_yaml()
    assert "mask: " in text
    (tmp_path / "job.yaml").write_text(
        "input: {url: in.ome.zarr}\noutput: {url: run}\npatch_filter: {mask: [mask.npy]}\n"
    )
    assert JobConfig.load(tmp_path / "job.yaml").patch_filter.masks == (str(tmp_path / "mask.npy"),)
