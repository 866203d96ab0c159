"""What a job asks of its stores is at most what is stated, and what is stated is not much more than that."""

from __future__ import annotations

import re
from contextlib import contextmanager

import numpy as np
import pytest
import xarray as xr

from denoizarr.engine import ledger as ledger_module
from denoizarr.engine import runner
from denoizarr.engine.cluster import usable_cores
from denoizarr.engine.ledger import Ledger
from denoizarr.engine.runner import Step, run_step
from denoizarr.images.save import save_image
from denoizarr.inference.predict import predict
from denoizarr.inference.prediction import plan_prediction
from denoizarr.kernels.unet import build_network
from denoizarr.pipeline import run as run_module
from denoizarr.pipeline import run_counters, writing_requests
from denoizarr.pipeline.array_reads import StoredImage
from denoizarr.pipeline.checked_job import check_job
from denoizarr.pipeline.config import JobConfig
from denoizarr.pipeline.job_requests import blocks_read, requests_of
from denoizarr.pipeline.requests import NONE, Requests
from denoizarr.pipeline.run import run_pipeline
from denoizarr.pipeline.writing_requests import recorded_step, written_image
from denoizarr.stores import records
from denoizarr.stores.images import open_image, reader_of
from denoizarr.stores.sources import open_source
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.normalisation import Normalisation
from denoizarr.training.options import TrainingOptions
from tests.end_to_end.jobs import scan_noise
from tests.store_calls import StoreCalls, counted_calls

METADATA = re.compile(r"zarr\.json$|/\.z\w+$")
KINDS = ("gets", "heads", "puts", "lists", "deletes", "bytes_read", "bytes_written")
STAGE = {
    "features": 4,
    "num_layers": 1,
    "num_epochs": 2,
    "patches_per_epoch": 256,
    "patch_size": 32,
    "validation_patches": 16,
}


def assert_bound(found: Requests, stated: Requests, factor: float, label: str = "") -> None:
    """At most what is stated, of every kind; and in all not much less."""
    for kind in KINDS:
        assert getattr(found, kind) <= getattr(stated, kind), f"{label} {kind}: {found}, {stated}"
    assert stated.total <= factor * found.total, f"{label}: {found}, {stated}"


def of_voxels(calls, place):
    """Add up what is asked of chunks and shards: metadata have names of their own."""
    kept = StoreCalls([call for call in calls.calls if not METADATA.search(call.key)])
    return kept.requests(place)


def untrained(axes=2, layers=1):
    options = TrainingOptions(patch_size=(16,) * axes if axes == 3 else 32, features=4, num_layers=layers)
    shape = options.network_shape
    scale = Normalisation((300.0,), (100.0,))
    return Denoiser(shape, build_network(shape).state_dict(), scale, patch_size=options.patch_shape)


LAYOUTS = {
    "sharded": (
        {"chunks": (1, 64, 64), "shards": (1, 128, 128)},
        {"chunks": (1, 64, 64), "shards": (1, 128, 128)},
    ),
    "levels along": ({"chunks": (1, 32, 32)}, {"chunks": (1, 32, 32), "shards": (2, 128, 128), "levels": 3}),
    "unsharded": (
        {"chunks": (1, 64, 64), "shards": (1, 64, 64)},
        {"chunks": (1, 96, 96), "shards": (1, 96, 96)},
    ),
    "ome 0.4": (
        {"chunks": (2, 64, 64), "ome_version": "0.4"},
        {"chunks": (1, 128, 128), "ome_version": "0.4"},
    ),
    "halo across many chunks": (
        {"chunks": (1, 16, 16), "shards": (1, 64, 64)},
        {"chunks": (1, 64, 64), "shards": (1, 64, 64)},
    ),
    "volumes": (
        {"chunks": (4, 64, 64), "shards": (8, 128, 128)},
        {"chunks": (8, 64, 64), "shards": (8, 64, 64)},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_prediction_asks_for_what_is_stated(name, tmp_path):
    kept, asked = LAYOUTS[name]
    network = untrained(3 if name == "volumes" else 2)
    values = scan_noise((10, 220, 260) if name == "volumes" else (4, 220, 260))
    save_image(values, tmp_path / "in.ome.zarr", levels=1, **kept)
    image, out = open_image(tmp_path / "in.ome.zarr"), str(tmp_path / "out.ome.zarr")
    planned = plan_prediction(network, image, out, **asked)
    stored = StoredImage.of(reader_of(image))
    open_source.cache_clear()
    image = open_image(tmp_path / "in.ome.zarr")
    with counted_calls() as calls:
        predict(network, image, out, progress=False, **asked)
    read = blocks_read(planned, stored, network, usable_cores())
    # A batch has threads of its own that read ahead: two may look at the same shard's index at once.
    assert_bound(of_voxels(calls, "/in.ome.zarr/0/"), read, 1.5, name)
    per_batch = -(-planned.blocks // planned.batches)
    stated = written_image(planned.layout, per_batch, 3, 2**18)
    assert_bound(calls.requests("/out.ome.zarr"), stated, 1.5, name)


def test_per_output_object_it_is_one_put_and_one_get(tmp_path):
    """So many for each shard, whatever else is asked: the claim that a bill depends on."""
    save_image(scan_noise((4, 512, 512)), tmp_path / "in.ome.zarr", levels=1)
    out = str(tmp_path / "out.ome.zarr")
    how = {"chunks": (1, 64, 64), "shards": (1, 128, 128), "levels": 1}
    with counted_calls() as calls:
        predict(untrained(), str(tmp_path / "in.ome.zarr"), out, progress=False, **how)
    shards = calls.requests("/out.ome.zarr/0/c/")
    # The display windows come with the input; else they would be read off the coarsest level.
    assert shards.puts == shards.gets == 4 * 16


def test_stating_less_would_be_noticed(tmp_path):
    """Negative control: without read back, or without the halo, the count is above the statement."""
    save_image(
        scan_noise((2, 256, 256)), tmp_path / "in.ome.zarr", levels=1, chunks=(1, 32, 32), shards=(1, 32, 32)
    )
    image, out = open_image(tmp_path / "in.ome.zarr"), str(tmp_path / "out.ome.zarr")
    how = {"chunks": (1, 64, 64), "shards": (1, 64, 64), "levels": 1}
    network = untrained()
    planned = plan_prediction(network, image, out, **how)
    with counted_calls() as calls:
        predict(network, image, out, progress=False, **how)
    read = calls.requests("/in.ome.zarr/0/c/")
    blind = StoredImage.of(reader_of(image)).array
    assert read.gets > blind.n_chunks
    stated = written_image(planned.layout, planned.blocks, 3, 2**18)
    without = Requests(gets=stated.gets - 3 * 32, puts=stated.puts - 32)
    with pytest.raises(AssertionError):
        assert_bound(calls.requests("/out.ome.zarr"), without, 1.5)


def counted_block(spec, block):
    return {"block": block}


# Blocks that take no time never ask again whose their output is: the bound allows for it once a second.
@pytest.mark.parametrize(("n_blocks", "per_batch", "factor"), [(7, 2, 1.6), (64, 1, 1.5), (200, 3, 1.5)])
def test_a_step_of_many_batches_gathers_its_records(n_blocks, per_batch, factor, tmp_path, monkeypatch):
    for module in (ledger_module, runner, writing_requests):
        monkeypatch.setattr(module, "GROUP", 16)
    ledger = Ledger.claim(str(tmp_path / "a.ledger"), {"of": "this test"})
    step = Step("level-0", counted_block, None, n_blocks, per_batch)
    with counted_calls() as calls:
        run_step(step, ledger=ledger, progress=False)
    assert_bound(calls.requests(), recorded_step(n_blocks, per_batch), factor)


@pytest.fixture
def counted_steps(monkeypatch):
    """Run a job in this process alone, and note the step of every request."""

    @contextmanager
    def no_cluster(cluster):
        yield lambda: None

    monkeypatch.setattr(run_module, "_lazy_client", no_cluster)
    # In a bucket the counters are written after each step, and not every few seconds as well.
    monkeypatch.setattr(run_counters, "is_remote", lambda _: True)
    plain_step = run_module._Run.step  # what the table of steps is made of

    def run(job, *, reported=True):
        if not reported:  # it takes most of the time of a small job
            monkeypatch.setattr(run_module, "write_report", lambda url: url)
        with counted_calls() as calls:

            @contextmanager
            def step(self, name, *, done=False):
                before, calls.step = calls.step, name
                with plain_step(self, name, done=done) as entry:
                    yield entry
                calls.step = before

            monkeypatch.setattr(run_module._Run, "step", step)
            calls.step = "start"
            run_pipeline(job, progress=False)
        return calls

    return run


JOBS = {
    "stage 1": ((4, 300, 340), {"run_stage2": False, "output": {}}),
    "both, kept": ((4, 512, 512), {"output": {"keep_stage1": True}}),
    "periodic off, no filter": (
        (2, 300, 300),
        {"run_stage2": False, "periodic": "off", "patch_filter": {"name": "none"}, "output": {}},
    ),
    "two values a cell": (
        (2, 300, 300),
        {
            "run_stage2": False,
            "patch_filter": {"name": "mean_std", "threshold": 1.0},
            "output": {"ome_version": "0.4"},
        },
    ),
    "channels": ((2, 3, 200, 260), {"run_stage2": False, "output": {}}),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_whole_job_asks_for_no_more_than_is_stated(name, tmp_path, counted_steps):
    shape, changes = JOBS[name]
    lead = [1] * (len(shape) - 2)
    image = xr.DataArray(scan_noise(shape), dims=tuple("czyx"[-len(shape) :]))
    stored = {"chunks": [*lead, 64, 64], "shards": [*lead, 128, 128]}
    save_image(image, tmp_path / "image.ome.zarr", levels=1, **stored)
    is_old = changes["output"].get("ome_version") == "0.4"
    wanted = {"chunks": stored["chunks"]} if is_old else stored
    job = {
        "input": str(tmp_path / "image.ome.zarr"),
        "stage1": STAGE,
        "stage2": STAGE,
        "cluster": {"workers": 2},
        **changes,
        "output": {"url": str(tmp_path / "run"), **wanted, **changes["output"]},
    }
    checked = check_job(JobConfig.load(job))
    stated = requests_of(checked, {"stage1": 60.0, "stage2": 60.0}, workers=2)
    open_source.cache_clear()
    is_reported = name in ("stage 1", "both, kept")
    calls = counted_steps(job, reported=is_reported)
    sure, total = {}, NONE
    for step in stated:
        kind = step.name.split(",")[0]
        before = sure.get(kind, (NONE, NONE))
        sure[kind] = (before[0] + step.input, before[1] + step.output)
        if step.is_certain and (is_reported or step.name != "report"):
            total += step.input + step.output
    for step, (of_input, of_folder) in sure.items():
        for place, bound in (("/image.ome.zarr", of_input), ("/run", of_folder)):
            found = calls.requests(place, step)
            for kind in KINDS:
                assert getattr(found, kind) <= getattr(bound, kind), f"{step} {place} {kind}: {found} {bound}"
    assert set(sure) >= {call.step for call in calls.calls}
    # Training is drawn, and an index may want the patches that cross most borders: the bound allows for it.
    assert total.total <= 2.5 * calls.requests().total
    inference = next(step for step in stated if step.name == "inference")
    assert_bound(calls.requests("", "inference"), inference.input + inference.output, 1.5)
    looked = next(step for step in stated if step.name.startswith("where to look for stage1"))
    # Shards that a step before has looked through are not looked through again: up to half of it.
    assert_bound(calls.requests("/image", "where to look for stage1"), looked.input, 2.0)


def test_more_images_ask_for_as_much_each(tmp_path, counted_steps):
    for name in ("one", "two"):
        save_image(scan_noise((2, 200, 260)), tmp_path / f"{name}.ome.zarr", levels=1)
    job = {
        "input": str(tmp_path / "*.ome.zarr"),
        "output": {"url": str(tmp_path / "run"), "chunks": [1, 64, 64], "shards": [1, 128, 128]},
        "run_stage2": False,
        "stage1": STAGE,
    }
    stated = requests_of(check_job(JobConfig.load(job)), {"stage1": 60.0}, workers=2)
    calls = counted_steps(job, reported=False)
    total = sum((s.input + s.output for s in stated), NONE)
    for kind in KINDS:
        assert getattr(calls.requests(), kind) <= getattr(total, kind), kind


def test_masks_regions_and_targets_are_within_the_bound(tmp_path, counted_steps):
    """Rarer ways through a job: bounded, though not closely."""
    values = scan_noise((2, 320, 320))
    save_image(values, tmp_path / "image.ome.zarr", levels=1, chunks=(1, 64, 64), shards=(1, 128, 128))
    save_image((values > 300).astype("u1"), tmp_path / "mask.ome.zarr", levels=1)
    save_image(scan_noise((2, 320, 320), seed=1), tmp_path / "target.ome.zarr", levels=1)
    common = {"input": str(tmp_path / "image.ome.zarr"), "stage1": STAGE}
    lines = (values + 60 * np.cos(2 * np.pi * np.arange(320) / 8)).clip(0, 65535).astype("u2")
    save_image(lines, tmp_path / "lines.ome.zarr", levels=1, chunks=(1, 64, 64), shards=(1, 128, 128))
    cases = {
        "lines": {"input": str(tmp_path / "lines.ome.zarr"), "run_stage2": False},
        "regions": {"run_stage2": False, "stage1": {**STAGE, "use_roi": True, "roi_sigma": 20.0}},
        "masked": {"run_stage2": False, "patch_filter": {"mask": str(tmp_path / "mask.ome.zarr")}},
        "target": {"target": str(tmp_path / "target.ome.zarr"), "output": {"dtype": "float32"}},
    }
    for name, changes in cases.items():
        output = {"url": str(tmp_path / name), **changes.pop("output", {})}
        job = {**common, **changes, "output": output}
        stated = requests_of(check_job(JobConfig.load(job)), {"stage1": 60.0}, workers=2)
        calls = counted_steps(job, reported=False)
        total = sum((s.input + s.output for s in stated), NONE)
        for kind in KINDS:
            assert getattr(calls.requests(), kind) <= getattr(total, kind), f"{name} {kind}"
        if name == "lines":
            sure = sum((s.input for s in stated if s.is_certain), NONE)
            assert calls.requests("/lines.ome.zarr").gets > 0.6 * sure.gets
            assert records.read_json(tmp_path / name / "periodic.json")["lines"], "there were some to find"


def test_the_bound_of_a_petabyte_takes_no_time(tmp_path):
    """Sums along axes, not over blocks: what is stated for a huge image is stated at once."""
    import zarr

    zarr.create_array(str(tmp_path / "a"), shape=(4000, 100_000, 100_000), chunks=(1, 1024, 1024), dtype="u2")
    job = {"input": {"url": str(tmp_path / "a"), "axes": "zyx"}, "output": str(tmp_path / "run")}
    stated = requests_of(check_job(JobConfig.load(job)), {"stage1": 60.0, "stage2": 60.0})
    inference = next(step for step in stated if step.name == "inference")
    blocks = check_job(JobConfig.load(job)).predictions[0].blocks
    assert 10**6 < blocks < inference.output.puts < 4 * blocks
    n_bytes = 2 * 4000 * 100_000**2
    assert n_bytes < inference.input.bytes_read < 3 * n_bytes
