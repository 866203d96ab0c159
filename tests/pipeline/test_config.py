"""The job file: validated once, with messages that a person can act on."""

from __future__ import annotations

from dataclasses import fields

import pytest
import yaml

from denoizarr.errors import ConfigError
from denoizarr.pipeline.config import JobConfig, StageSettings
from denoizarr.training.options import TrainingOptions

SMALLEST = {"input": {"url": "in.ome.zarr"}, "output": {"url": "run"}}


def test_input_and_output_alone_are_a_job(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("input: {url: in.ome.zarr}\noutput: {url: run}\n")
    job = JobConfig.load(path)
    assert job.input.url == str(tmp_path / "in.ome.zarr"), "relative paths count from the job file"
    assert job.output.url == str(tmp_path / "run")
    assert job.run_stage1
    assert job.run_stage2


def test_the_resolved_job_is_a_job_file_of_the_same_job(tmp_path):
    job = JobConfig.load(SMALLEST)
    path = tmp_path / "job.yaml"
    path.write_text(job.to_yaml())
    assert JobConfig.load(path) == job
    assert yaml.safe_load(job.to_yaml())["stage1"]["batch_size"] == 8


def test_who_does_the_work_is_not_the_jobs_identity():
    job, other = JobConfig.load(SMALLEST), JobConfig.load({**SMALLEST, "cluster": {"workers": 7}})
    assert job.identity() == other.identity()
    assert job.identity() != JobConfig.load({**SMALLEST, "stage1": {"seed": 1}}).identity()
    assert job.identity() != JobConfig.load({**SMALLEST, "cluster": {"memory_limit": "1GiB"}}).identity()
    fast = JobConfig.load({**SMALLEST, "output": {"url": "run", "precision": "bfloat16"}})
    assert job.identity() != fast.identity(), "of another precision are other voxels"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_fliter": {}}, "unknown key 'patch_fliter'.*did you mean 'patch_filter'"),
        ({"stage1": {"patchsize": 64}}, "unknown key 'stage1.patchsize'.*did you mean 'patch_size'"),
        ({"num_epochs": 3}, "did you mean 'stage1.num_epochs'"),
        ({"stage1": {"device": "cuda"}}, "'stage1.device'.*a job takes the GPU by itself"),
        ({"device": "cuda"}, "'device'.*a job takes the GPU by itself"),
        ({"stage2": {"mask_source": "stage1"}, "run_stage1": False}, r"^stage2\.mask_source: stage1 needs"),
        ({"zzzzzz": 3}, "expected one of input, output"),
        ({"stage1": {"patch_size": "wide"}}, "stage1.patch_size.*got 'wide'"),
        ({"stage1": {"mask_percentage": 80}}, "stage1.mask_percentage.*50"),
        ({"stage1": {"masking_strategy": "guess"}}, "uniform"),
        ({"stage2": {"mask_source": "file"}}, "mask_file_path"),
        ({"stage2": {"mask_source": "stage1"}, "run_stage1": False}, "run_stage1"),
        ({"run_stage1": False, "run_stage2": False}, "nothing to do"),
        ({"cluster": {"kind": "address"}}, "address"),
        ({"patch_filter": {"std_threshold": 3}}, "mean_std"),
        ({"input": {}}, "either url or urls"),
        ({"input": {"url": "a", "urls": ["b"]}}, "either url or urls"),
        ({"input": 3}, "input"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        JobConfig.load({**SMALLEST, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("input: {url: [a\noutput: b", "not YAML.*line 2"),
        ("- a\n- b\n", "mapping"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("", "mapping"),
        ("input: {url: a}\n", "'output' is missing"),
    ],
)
def test_files_that_are_no_job(text, message, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        JobConfig.load(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no such job file"):
        JobConfig.load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="folder"):
        JobConfig.load(tmp_path)


def test_every_option_of_the_trainer_is_a_key_of_a_stage():
    options = {field.name: field.default for field in fields(TrainingOptions)}
    stage = StageSettings().model_dump()
    # The device is this machine's, and the number of threads is kept in the run folder.
    missing = set(options) - set(stage) - {"device", "threads"}
    assert not missing
    differ = {name for name in options if name in stage and options[name] != stage[name]}
    assert differ == {"patches_per_epoch"}


@pytest.mark.parametrize(
    ("given", "shape"), [(32, (32, 32)), ([32, 48], (32, 48)), ([16, 64, 64], (16, 64, 64))]
)
def test_a_patch_is_one_int_or_two_or_three(given, shape):
    job = JobConfig.load({**SMALLEST, "stage1": {"patch_size": given}})
    assert job.stage1.patch_shape == shape
    assert JobConfig.load(yaml.safe_load(job.to_yaml())) == job


@pytest.mark.parametrize("given", [0, [64], [64, 0], [64, 64, 64, 64], [8, "x"], 6.5, True, "wide"])
def test_anything_else_is_no_patch(given):
    with pytest.raises(ConfigError, match=r"stage2\.patch_size: in voxels: one int, or y and x, or z, y"):
        JobConfig.load({**SMALLEST, "stage2": {"patch_size": given}})


def test_patches_per_image_take_the_place_of_patches_per_epoch():
    job = JobConfig.load({**SMALLEST, "stage1": {"patches_per_image": 100}})
    assert job.stage1.patches_per_epoch is None
    assert JobConfig.load(yaml.safe_load(job.to_yaml())) == job
    both = {"patches_per_image": 100, "patches_per_epoch": 50}
    with pytest.raises(ConfigError, match="patches_per_image and patches_per_epoch"):
        JobConfig.load({**SMALLEST, "stage1": both})


def test_a_target_trains_one_stage(tmp_path):
    (tmp_path / "job.yaml").write_text(
        "input: {url: in.ome.zarr}\noutput: {url: run}\ntarget: clean.ome.zarr\n"
    )
    job = JobConfig.load(tmp_path / "job.yaml")
    assert job.target.sources == (str(tmp_path / "clean.ome.zarr"),)
    assert job.run_stage1
    assert not job.run_stage2
    assert JobConfig.load(yaml.safe_load(job.to_yaml())) == job
    assert job.identity() != JobConfig.load({**SMALLEST, "run_stage2": False}).identity()
    with pytest.raises(ConfigError, match="leave run_stage2 out"):
        JobConfig.load({**SMALLEST, "target": "clean", "run_stage2": True})
    with pytest.raises(ConfigError, match="leave run_stage1 on"):
        JobConfig.load({**SMALLEST, "target": "clean", "run_stage1": False})
    with pytest.raises(ConfigError, match=r"unknown key .target\.leve.*did you mean .level"):
        JobConfig.load({**SMALLEST, "target": {"url": "clean", "leve": 1}})
    with pytest.raises(ConfigError, match="either url or urls"):
        JobConfig.load({**SMALLEST, "target": {"level": 1}})


def test_how_often_a_checkpoint_is_written_is_not_the_jobs_identity():
    job = JobConfig.load({**SMALLEST, "stage1": {"checkpoint_minutes": 1}})
    assert job.identity() == JobConfig.load(SMALLEST).identity()
