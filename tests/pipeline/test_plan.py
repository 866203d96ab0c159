"""The dry run finds, from metadata alone, what would end a job after hours."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import zarr

from denoizarr.errors import BadRequest
from denoizarr.images.output import is_complete
from denoizarr.images.save import save_image
from denoizarr.inference.predict import unique_names
from denoizarr.pipeline.blind_spots import check_kernel_file, fitting_blind_spots, kernel_in_words
from denoizarr.pipeline.checked_job import check_job, identity_of
from denoizarr.pipeline.config import JobConfig
from denoizarr.pipeline.plan import plan
from denoizarr.stores.images import as_image
from denoizarr.training.noise_kernel import NoiseKernel
from denoizarr.training.options import TrainingOptions
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


def test_a_small_job_is_not_promised_in_no_time(job):
    stage = {"num_epochs": 1, "patches_per_epoch": 8, "patch_size": 16, "features": 4, "num_layers": 1}
    # Workers, torch and the report take their time whatever the image.
    assert 20 < plan({**job, "run_stage2": False, "stage1": stage}).seconds < 60


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
        ({"stage1": {"patch_size": 256}}, "at most 128 x 128 (y, x)"),
        ({"stage1": {"mask_percentage": 0.001}}, "predicted at stage1.mask_percentage: got 0.001"),
        ({"stage2": {"mask_percentage": 0.001}}, "predicted at stage2.mask_percentage: got 0.001"),
        (
            {"stage1": {"patch_size": 8, "mask_percentage": 1.5}},
            "predicted at stage1.mask_percentage: got 1.5, expected at least 1.56",
        ),
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


def test_the_network_that_is_planned_is_the_one_that_is_trained(job, tmp_path):
    deep = scan_noise((16, 128, 128))
    save_image(deep, tmp_path / "deep.ome.zarr", levels=1)
    stage = {"features": 4, "num_layers": 2, "patch_size": 32}
    found = {}
    for name, more in (
        ("plain", {}),
        ("n2v2", {"n2v2": True}),
        ("deeper", {"num_layers": 3}),
        ("3D", {"patch_size": [8, 32, 32]}),
    ):
        settings = {"input": str(tmp_path / "deep.ome.zarr"), "output": {"url": str(tmp_path / "run")}}
        settings["output"] |= {"chunks": [4, 64, 64], "shards": [4, 64, 64]}
        checked = check_job(JobConfig.load({**settings, "run_stage2": False, "stage1": {**stage, **more}}))
        found[name] = checked.predictions[0].bytes_read
        assert not plan({**settings, "stage1": {**stage, **more}, "run_stage2": False}).problems
    # Halos of 24, 32 and 48 pixels around blocks of 64 of 128; in 3D around 4 of 16 planes, too.
    planes = 16 * 4 * 2
    for name, halo in (("plain", 24), ("deeper", 48)):
        assert found[name] == planes * (64 + halo) ** 2
    assert found["plain"] < found["n2v2"] <= found["deeper"]
    assert found["3D"] == 4 * 4 * 2 * 16 * (64 + 24) ** 2


def test_targets_are_part_of_what_a_job_is(job, tmp_path):
    identities = []
    for seed in (1, 2):
        save_image(scan_noise((2, 128, 128), seed), tmp_path / f"target{seed}.ome.zarr", levels=1)
        target = str(tmp_path / f"target{seed}.ome.zarr")
        checked = check_job(JobConfig.load({**job, "target": target}))
        assert checked.stage2 is None
        identities.append(identity_of(checked))
    assert identities[0] != identities[1]
    assert not plan({**job, "target": target}).problems


def test_predicted_pixels_are_counted_in_the_whole_patch():
    kernel = NoiseKernel(np.ones((1, 5), bool), np.ones((1, 5)), np.zeros((1, 5)))
    few = {"mask_percentage": 0.3, "num_layers": 1}
    check_kernel_file(kernel, TrainingOptions(patch_size=(8, 16, 16), **few), "kernel.npy")
    with pytest.raises(BadRequest, match="not one pixel a patch"):
        check_kernel_file(kernel, TrainingOptions(patch_size=(16, 16), **few), "kernel.npy")


def test_a_kernel_that_is_wider_than_the_patch_is_cut_where_it_was_measured():
    mask = np.ones((1, 49), bool)
    kernel = NoiseKernel(mask, np.ones((1, 49)), np.zeros((1, 49)))
    wide = fitting_blind_spots(kernel, TrainingOptions(patch_size=64, mask_percentage=0.5))
    assert (wide.mask.shape, wide.warnings) == ((1, 49), ())
    narrow = fitting_blind_spots(kernel, TrainingOptions(patch_size=(8, 32, 32), mask_percentage=0.5))
    assert narrow.mask.shape == (1, 31)
    assert narrow.mask.all()
    assert "1 x 49 pixels was cut to 1 x 31" in narrow.warnings[0]


def test_what_only_blind_spots_need_is_not_asked_of_a_stage_without_them(job, tmp_path):
    save_image(scan_noise((2, 128, 128), 1), tmp_path / "target.ome.zarr", levels=1)
    few = {"mask_percentage": 0.001}
    assert not plan({**job, "target": str(tmp_path / "target.ome.zarr"), "stage1": few}).problems
    assert not plan({**job, "run_stage2": False, "stage2": few}).problems


def test_a_kernel_file_that_leaves_no_pixel_to_predict_is_refused_by_its_key():
    kernel = NoiseKernel(np.ones((1, 5), bool), np.ones((1, 5)), np.zeros((1, 5)))
    options = TrainingOptions(patch_size=(16, 16), mask_percentage=0.3, num_layers=1)
    with pytest.raises(BadRequest, match=r"at stage2\.mask_percentage"):
        check_kernel_file(kernel, options, "kernel.npy")


def test_a_kernel_that_was_not_found_is_not_called_no_noise():
    pixel, zero = np.ones((1, 1)), np.zeros((1, 1))
    nothing = NoiseKernel(pixel.astype(bool), pixel, zero)
    assert kernel_in_words(nothing) == "a single pixel: no structured noise"
    unknown = NoiseKernel(pixel.astype(bool), pixel, zero, note="structure everywhere")
    assert kernel_in_words(unknown) == "a single pixel: structure everywhere"
    wide = NoiseKernel(np.ones((1, 5), bool), np.ones((1, 5)), np.zeros((1, 5)))
    assert kernel_in_words(wide) == "1 x 5 (y, x)"


def test_a_plan_counts_the_halo_that_a_kernel_may_add(job, tmp_path):
    save_image(scan_noise((2, 600, 600)), tmp_path / "large.ome.zarr", levels=1, chunks=(1, 64, 64))
    stage = {"features": 4, "num_layers": 2, "patch_size": 32}
    settings = {**job, "input": {"url": str(tmp_path / "large.ome.zarr")}, "stage1": stage, "stage2": stage}
    settings["output"] |= {"chunks": [1, 64, 64], "shards": [1, 128, 128]}
    found = plan(settings)
    assert any("15 x 15 voxels of halo" in note for note in found.notes)
    np.save(tmp_path / "row.npy", np.ones((1, 5), bool))
    np.save(tmp_path / "disc.npy", np.hypot(*np.mgrid[-3:4, -3:4]) < 3.5)
    known = {}
    for name in ("row", "disc"):
        file = {"mask_source": "file", "mask_file_path": str(tmp_path / f"{name}.npy")}
        known[name] = plan({**settings, "stage2": {**stage, "mask_percentage": 0.5, **file}})
        assert not known[name].problems
    none = plan({**settings, "run_stage2": False})
    assert not any("voxels of halo" in note for note in (*none.notes, *known["row"].notes))
    assert any("3 x 3 voxels of halo" in note for note in known["disc"].notes)
    assert none.bytes_read == known["row"].bytes_read < known["disc"].bytes_read < found.bytes_read
    assert found.read_amplification > 1


def test_a_plan_says_how_the_image_is_cut(job):
    (cut,) = [note for note in plan(job).notes if "tiles of" in note]
    assert "2 blocks of 1 x 128 x 128, tiles of 128 x 128" in cut
    assert "1.00 chunks decoded per chunk" in cut


PETABYTE = """
import json, sys, time
from pathlib import Path
from denoizarr.pipeline.plan import plan

job = json.loads(sys.argv[1])
started = time.process_time()
planned = plan(job)
spent = time.process_time() - started
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps({"plan": planned.to_json(), "seconds": spent, "peak": peak}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("patch_size", [64, [16, 32, 32]])
def test_a_petabyte_is_planned_in_seconds_and_little_memory(tmp_path, patch_size):
    side = 100_000
    zarr.create_array(
        tmp_path / "big.zarr",
        shape=(side, side, side),
        dtype="u1",
        chunks=(32, 128, 128),
        shards=(64, 1024, 1024),
    )
    stage = {"patch_size": patch_size}
    job = {
        "input": {"url": str(tmp_path / "big.zarr"), "axes": "zyx"},
        "output": {"url": str(tmp_path / "run")},
        "stage1": stage,
        "stage2": stage,
    }
    done = subprocess.run(
        [sys.executable, "-c", PETABYTE, json.dumps(job)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["plan"]["problems"] == []
    assert found["plan"]["blocks"] > 10**7
    assert found["plan"]["bytes_written"] >= side**3
    assert found["plan"]["bytes_per_worker"] <= 2 * 2**30
    assert found["seconds"] < 10
    assert found["peak"] < 2**30
    assert not (tmp_path / "run").exists()
