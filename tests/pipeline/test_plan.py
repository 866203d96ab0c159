"""The dry run finds, from metadata alone, what would end a job after hours."""

from __future__ import annotations

import numpy as np
import pytest

from denoizarr.images.output import is_complete
from denoizarr.images.save import save_image
from denoizarr.inference.predict import unique_names
from denoizarr.pipeline.plan import plan
from denoizarr.stores.images import as_image
from tests.end_to_end.jobs import scan_noise


@pytest.fixture
def job(tmp_path):
    save_image(scan_noise((2, 128, 128)), tmp_path / "in.ome.zarr", levels=1)
    return {"input": {"url": str(tmp_path / "in.ome.zarr")}, "output": {"url": str(tmp_path / "run")}}


def test_a_good_job_has_a_price_and_no_problem(job):
    found = plan(job)
    assert not found.problems
    assert found.blocks == 2
    assert found.bytes_read == 2 * 2 * 128 * 128
    assert found.recompute_factor == 1
    assert 0 < found.bytes_per_worker < 2 * 2**30
    assert found.seconds > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": {"url": "IN/run"}}, "overlaps the input"),
        ({"input": {"url": "GLOB"}, "output": {"url": "IN/run"}}, "overlaps the input"),
        ({"patch_filter": {"ref_channel": 3}}, "no such channel"),
        ({"stage2": {"mask_source": "file", "mask_file_path": "KERNEL"}}, "kernel"),
        ({"output": {"url": "RUN", "dtype": "float12"}}, "not a dtype"),
        ({"output": {"url": "FOREIGN"}}, "something else"),
        ({"stage1": {"patch_size": 256}}, "does not fit"),
        ({"cluster": {"memory_limit": "10MB"}}, "at least"),
        ({"cluster": {"memory_limit": "lots"}}, "memory_limit"),
        ({"input": {"urls": ["IN", "FLOATS"]}}, "same dtype"),
        ({"input": {"urls": ["IN", "PLANE"]}}, "same dims"),
    ],
)
def test_problems(job, change, message, tmp_path):
    np.save(tmp_path / "kernel.npy", np.ones((1, 129), bool))
    save_image(scan_noise((2, 64, 64)).astype("float32"), tmp_path / "floats.ome.zarr", levels=1)
    save_image(scan_noise((64, 64)), tmp_path / "plane.ome.zarr", levels=1)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    places = {
        "IN": "in.ome.zarr",
        "GLOB": "in*.zarr",
        "KERNEL": "kernel.npy",
        "RUN": "run",
        "FOREIGN": "foreign",
        "FLOATS": "floats.ome.zarr",
        "PLANE": "plane.ome.zarr",
    }

    def placed(value):
        if isinstance(value, dict):
            return {key: placed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [placed(item) for item in value]
        if isinstance(value, str) and value.split("/")[0] in places:
            head, _, tail = value.partition("/")
            return str(tmp_path / places[head] / tail)
        return value

    (problem,) = plan({**job, **placed(change)}).problems
    assert message in problem
    assert "\n" not in problem
    assert not (tmp_path / "run").exists()


def test_what_a_kill_leaves_of_the_first_write_is_not_complete(tmp_path):
    (tmp_path / "empty.ome.zarr").mkdir()
    assert not is_complete(str(tmp_path / "empty.ome.zarr"))
    assert not is_complete(str(tmp_path / "nothing.ome.zarr"))


def test_names_are_unique_whatever_they_are():
    images = [as_image(np.zeros((4, 4))).rename(name) for name in ("a-3", "a", "a", "a")]
    assert unique_names(images) == ("a-3", "a", "a-2", "a-4")
