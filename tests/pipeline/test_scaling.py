"""What a few blocks cost, and what follows for many workers."""

import json
import math

import numpy as np
import pytest

from denoizarr.engine.simulation import Projection
from denoizarr.errors import MissingChunk
from denoizarr.images.save import save_image
from denoizarr.pipeline.checked_job import check_job, untrained_network
from denoizarr.pipeline.config import JobConfig
from denoizarr.pipeline.plan import plan
from denoizarr.pipeline.scaling import BlockCost, in_words, measure_blocks, project_workers


@pytest.fixture
def job(tmp_path):
    image = np.random.default_rng(0).integers(0, 999, (12, 128, 128)).astype(np.uint16)
    save_image(image, tmp_path / "in.ome.zarr", levels=1, chunks=(1, 128, 128))
    stage = {"patch_size": 32, "features": 4, "num_layers": 1}
    return {
        "input": {"url": str(tmp_path / "in.ome.zarr")},
        "output": {"url": str(tmp_path / "run")},
        "stage1": stage,
        "stage2": stage,
    }


def test_blocks_are_measured_and_nothing_is_left_behind(job, tmp_path):
    checked = check_job(JobConfig.load(job))
    before = sorted(tmp_path.rglob("*"))
    cost = measure_blocks(untrained_network(checked), checked.predictions[0])
    assert sorted(tmp_path.rglob("*")) == before
    assert cost.seconds > 0
    assert 1 <= cost.blocks <= 3
    assert cost.bytes_read > 0
    assert cost.bytes_written > 0


def test_more_workers_are_sooner_done_until_batches_run_out(job):
    planned = check_job(JobConfig.load(job)).predictions[0]
    cost = BlockCost(10.0, 0.1, 1e6, 1e6, 3)
    seconds = [project_workers(cost, planned, workers).seconds for workers in (1, planned.batches, 1000)]
    assert seconds[0] == pytest.approx(10.0 * planned.blocks, rel=0.1)
    assert seconds[0] >= seconds[1]
    assert seconds[2] == pytest.approx(seconds[1], rel=0.01)


def test_a_slow_store_is_what_holds_them_up(job):
    planned = check_job(JobConfig.load(job)).predictions[0]
    cost = BlockCost(0.001, 0.0, 1e6, 1e6, 3)
    projection = project_workers(cost, planned, 4, store_bytes_per_second=1e5)
    assert projection.seconds == pytest.approx(20 * planned.blocks, rel=0.05)
    assert "held up by the store" in in_words(projection, 4)


def test_a_plan_for_workers_has_a_projection_and_others_have_none(job):
    assert plan(job).projection is None
    found = plan(job, workers=3)
    assert found.workers == 3
    assert found.projection is not None
    assert found.projection.seconds > 0
    assert 0 < found.projection.efficiency <= 1.01
    json.dumps(found.to_json(), allow_nan=False)


def test_a_block_that_cannot_be_read_is_named(job, tmp_path):
    chunk = next(path for path in (tmp_path / "in.ome.zarr" / "0").rglob("*") if path.name == "0")
    while not chunk.is_file():
        chunk = next(chunk.iterdir())
    chunk.unlink()
    with pytest.raises(MissingChunk):
        plan(job, workers=2)


@pytest.mark.parametrize(
    ("projection", "words"),
    [
        (Projection(60.0, 1.0, 0.1, 0.0), "1,000 workers: inference takes 60 s"),
        (Projection(60.0, 0.5, 0.99, 0.0), "held up by the scheduler"),
        (Projection(60.0, 0.5, 0.1, 0.1), "held up by the last batches"),
    ],
)
def test_words_say_what_holds_up(projection, words):
    assert words in in_words(projection, 1000)
    assert math.isfinite(projection.seconds)
