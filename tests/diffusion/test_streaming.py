"""Patch2Self from one OME-Zarr to another: the same voxels as in memory, whatever the cut and the kills."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zarr

import denoizarr.diffusion.plan as planning
from denoizarr import open_image, patch2self, save_image, verify
from denoizarr.diffusion import kept_boxes, voxel_boxes
from denoizarr.diffusion.regressions import read_regressions
from denoizarr.diffusion.streaming import DiffusionSpec, regressions_url
from denoizarr.errors import (
    BadRequest,
    BlockFailed,
    LedgerMismatch,
    MemoryLimitTooSmall,
    MisalignedGrid,
    MissingChunk,
    NonFiniteData,
)
from tests.end_to_end.jobs import tree_hash

from .phantom import phantom

BVALS = np.array([0.0] * 3 + [1000.0] * 9)
CHUNKS, SHARDS = (1, 5, 6, 4), (12, 5, 6, 4)


def as_stored(data):
    """Return (n, z, y, x) of (x, y, z, n)."""
    return np.ascontiguousarray(data.T)


@pytest.fixture(scope="module")
def data():
    noisy, *_ = phantom((11, 13, 9), 12, n_b0=3)
    return np.rint(noisy * 4).astype(np.int16)


@pytest.fixture(scope="module")
def stored(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("series") / "series.ome.zarr"
    save_image(as_stored_image(data), path, chunks=(1, 4, 7, 11))
    return path


def as_stored_image(data):
    import xarray as xr

    return xr.DataArray(as_stored(data), dims=("c", "z", "y", "x"))


def read(path):
    return np.asarray(open_image(path)).T


@pytest.mark.parametrize("radius", [0, 1])
@pytest.mark.parametrize("layout", [{}, {"chunks": CHUNKS}, {"chunks": CHUNKS, "shards": SHARDS}])
def test_the_same_voxels_as_in_memory(data, stored, tmp_path, radius, layout):
    how = {"patch_radius": radius, "out_dtype": np.float64}
    summary = patch2self(stored, BVALS, destination=tmp_path / "out", **how, **layout)
    expected = patch2self(data, BVALS, **how)
    assert summary.blocks_failed == 0
    np.testing.assert_allclose(read(tmp_path / "out"), expected, rtol=1e-12, atol=1e-12 * expected.max())
    assert verify(tmp_path / "out").ok


@pytest.mark.parametrize("radius", [(0, 1, 2)])
def test_a_radius_is_along_the_data_s_own_axes(data, stored, tmp_path, radius):
    patch2self(stored, BVALS, destination=tmp_path / "out", patch_radius=radius, out_dtype=np.float64)
    # In memory the axes are x, y, z; stored, z, y, x.
    expected = patch2self(data, BVALS, patch_radius=radius[::-1], out_dtype=np.float64)
    np.testing.assert_allclose(read(tmp_path / "out"), expected, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize(("room", "times"), [(2**29, 1), (0, 3), (20_000, None)])
def test_what_is_kept_is_read_once(stored, tmp_path, monkeypatch, room, times):
    expected, how = tmp_path / "expected", {"chunks": CHUNKS, "patch_radius": 1, "out_dtype": np.float32}
    patch2self(stored, BVALS, destination=expected, **how)
    counts = Counter()
    read_box = DiffusionSpec._read

    def counted(spec, block):
        counts[block] += 1
        return read_box(spec, block)

    monkeypatch.setattr(DiffusionSpec, "_read", counted)
    monkeypatch.setattr("denoizarr.diffusion.patch2self._MOST_KEPT_BYTES", room)
    patch2self(stored, BVALS, destination=tmp_path / "out", **how)
    assert set(counts.values()) == ({times} if times else {1, 3})
    assert tree_hash(tmp_path / "out") == tree_hash(expected)
    assert not kept_boxes._OF_JOBS


def test_two_jobs_at_one_place_do_not_share_boxes():
    values = np.zeros((3, 4, 4, 4))
    box = voxel_boxes.VoxelBox(values, None, values, (0, 0, 0))
    with kept_boxes.boxes_kept("a", 2**20):
        assert kept_boxes.box_of(lambda: "a", 0, lambda: box, last=False) is box
        with kept_boxes.boxes_kept("a", 2**20):  # who is refused, later, as a second driver
            pass
        assert kept_boxes.box_of(lambda: "b", 0, lambda: None, last=False) is None
        assert kept_boxes.box_of(lambda: "a", 0, lambda: None, last=True) is box
        assert kept_boxes.box_of(lambda: "a", 0, lambda: None, last=True) is None
    assert not kept_boxes._OF_JOBS


def test_what_a_kept_part_holds_is_counted():
    read = np.zeros((3, 12, 12, 12), np.int16)
    padded, mask = np.zeros((3, 12, 12, 12), np.int16), np.ones((8, 8, 8), bool)
    box = voxel_boxes.VoxelBox(padded, mask, read[:, 2:-2, 2:-2, 2:-2], (2, 2, 2))
    assert box.nbytes == read.nbytes + padded.nbytes + mask.nbytes
    whole = voxel_boxes.VoxelBox(read, None, read[:, :], (0, 0, 0))
    assert whole.nbytes == read.nbytes


def test_the_number_of_spans_does_not_matter(data, stored, tmp_path, monkeypatch):
    expected = patch2self(data, BVALS, out_dtype=np.float64)
    for most in (1, 3, 256):
        monkeypatch.setattr(planning, "_MOST_SPANS", most)
        how = {"chunks": CHUNKS, "out_dtype": np.float64}
        patch2self(stored, BVALS, destination=tmp_path / f"{most}", **how)
        np.testing.assert_allclose(read(tmp_path / f"{most}"), expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_workers_threads_and_shares_write_the_same_bytes(stored, tmp_path, client, monkeypatch, dtype):
    how = {"chunks": CHUNKS, "patch_radius": 1, "out_dtype": dtype}
    patch2self(stored, BVALS, destination=tmp_path / "threads", **how)
    expected = tree_hash(tmp_path / "threads")
    patch2self(stored, BVALS, destination=tmp_path / "workers", client=client, **how)
    assert tree_hash(tmp_path / "workers") == expected
    # Two rounds in each half of the first pass, and one in the second.
    for _ in range(3):
        for number in (2, 1):
            patch2self(stored, BVALS, destination=tmp_path / "shares", share=(number, 2), **how)
    patch2self(stored, BVALS, destination=tmp_path / "shares", **how)
    assert tree_hash(tmp_path / "shares") == expected


PROGRAM = """
import json, sys
from denoizarr import patch2self
source, destination, how = json.loads(sys.argv[1])
patch2self(source, [0.0] * 3 + [1000.0] * 9, destination=destination, **how)
"""


def run(stored, destination, how, fail_at=""):
    arguments = json.dumps([str(stored), str(destination), how])
    environment = os.environ | ({"DENOIZARR_FAIL_AT": fail_at} if fail_at else {})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "fail_at",
    # Batches of the first pass, of its second half, and of the second pass; a block that is not on record.
    ["recorded:2", "recorded:20", "recorded:37", "written:3", "read-back:4", "marked"],
)
def test_killed_in_either_pass_and_resumed(stored, tmp_path, fail_at):
    how = {"chunks": CHUNKS, "out_dtype": "float32"}
    patch2self(stored, BVALS, destination=tmp_path / "whole", **how)
    status, said = run(stored, tmp_path / "killed", how, fail_at)
    assert status == -signal.SIGKILL, said
    records = sorted((tmp_path / "killed.ledger").glob("*/*.json"))
    before = {record: record.stat().st_mtime_ns for record in records}
    summary = patch2self(stored, BVALS, destination=tmp_path / "killed", **how)
    assert summary.destination.endswith("killed")
    assert tree_hash(tmp_path / "killed") == tree_hash(tmp_path / "whole")
    assert {record: record.stat().st_mtime_ns for record in records} == before, "nothing is done again"


def test_what_the_first_pass_left_is_not_trusted(stored, tmp_path):
    how = {"chunks": CHUNKS}
    patch2self(stored, BVALS, destination=tmp_path / "whole", **how)
    status, said = run(stored, tmp_path / "out", how, "written:2")
    assert status == -signal.SIGKILL, said
    part = sorted((tmp_path / "out.ledger" / "scatter-parts").iterdir())[1]
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    with pytest.raises(BlockFailed, match="run the same job again"):
        patch2self(stored, BVALS, destination=tmp_path / "out", **how)
    patch2self(stored, BVALS, destination=tmp_path / "out", **how)
    assert tree_hash(tmp_path / "out") == tree_hash(tmp_path / "whole")


def test_another_request_is_another_job(stored, tmp_path):
    patch2self(stored, BVALS, destination=tmp_path / "out")
    for changed in ({"model": "ridge"}, {"shift_intensity": False}, {"b0_denoising": False}):
        with pytest.raises(LedgerMismatch):
            patch2self(stored, BVALS, destination=tmp_path / "out", **changed)
    patch2self(stored, BVALS, destination=tmp_path / "out", model="ridge", overwrite=True)


def test_the_regressions_are_kept(data, stored, tmp_path):
    patch2self(stored, BVALS, destination=tmp_path / "out")
    found = read_regressions(regressions_url(str(tmp_path / "out.ledger")))
    assert found.weights.shape == (12, 12)
    assert found.voxels == data[..., 0].size
    assert ((found.r_squared > 0) & (found.r_squared < 1)).all()
    assert (found.norms > 0).all()


def test_a_mask_from_a_store(data, stored, tmp_path):
    mask = np.random.default_rng(3).random(data.shape[:3]) < 0.7
    save_image(np.ascontiguousarray(mask.T.astype(np.uint8)), tmp_path / "mask.ome.zarr")
    how = {"patch_radius": 1, "out_dtype": np.float64}
    patch2self(stored, BVALS, destination=tmp_path / "out", mask=tmp_path / "mask.ome.zarr", **how)
    expected = patch2self(data, BVALS, mask=mask, **how)
    np.testing.assert_allclose(read(tmp_path / "out"), expected, rtol=1e-11, atol=1e-9)


def test_metadata_survive(data, tmp_path):
    import xarray as xr

    image = as_stored_image(data).assign_coords(
        z=xr.DataArray(np.arange(9) * 2.5, dims="z", attrs={"units": "millimeter"}),
        y=xr.DataArray(np.arange(13) * 2.0, dims="y", attrs={"units": "millimeter"}),
        x=xr.DataArray(np.arange(11) * 2.0, dims="x", attrs={"units": "millimeter"}),
    )
    save_image(image, tmp_path / "in.ome.zarr")
    summary = patch2self(
        tmp_path / "in.ome.zarr", BVALS, destination=tmp_path / "out.ome.zarr", out_dtype="float32"
    )
    assert summary.changes == ("dtype int16 became float32",)
    out = open_image(tmp_path / "out.ome.zarr")
    assert out.dims == ("c", "z", "y", "x")
    assert out.coords["z"].attrs["units"] == "millimeter"
    assert float(out.coords["z"][1]) == 2.5


def test_all_volumes_of_a_box_lie_together(stored, tmp_path):
    patch2self(stored, BVALS, destination=tmp_path / "out")
    array = zarr.open_array(tmp_path / "out" / "0", mode="r")
    assert array.shards[0] == 12
    assert array.chunks[0] == 1


def test_warnings_are_said_in_the_end(data, tmp_path, caplog):
    constant = data.copy()
    constant[..., 5] = 9
    save_image(as_stored_image(constant), tmp_path / "in.ome.zarr")
    with caplog.at_level(logging.WARNING):
        patch2self(tmp_path / "in.ome.zarr", BVALS, destination=tmp_path / "out")
    assert "volumes without variance become their mean: 5" in caplog.text
    assert (read(tmp_path / "out")[..., 5] == 9).all()


def damaged(data, tmp_path):
    broken = data.astype(np.float32)
    broken[3, 2, 1, 7] = np.inf
    save_image(as_stored_image(broken), tmp_path / "in.ome.zarr")
    return tmp_path / "in.ome.zarr"


def test_bad_requests_leave_nothing(data, stored, tmp_path):
    out = tmp_path / "out"
    cases = [
        ({"bvals": BVALS[:-1]}, BadRequest, "11 b-values"),
        ({"data": open_image(stored).isel(c=0)}, BadRequest, "volumes of z, y, x"),
        ({"data": open_image(stored).isel(z=0)}, BadRequest, "volumes of z, y, x"),
        ({"destination": None}, BadRequest, "another"),
        ({"chunks": (1, 5, 6, 4), "shards": (6, 5, 6, 4)}, MisalignedGrid, "all volumes"),
        ({"memory_limit": "100MiB"}, MemoryLimitTooSmall, "at least"),
        ({"patch_radius": 2, "memory_limit": "64MiB"}, MemoryLimitTooSmall, "expected 137 MiB"),
        ({"mask": np.ones((3, 3, 3))}, BadRequest, "mask"),
        ({"destination": stored / "inside"}, BadRequest, "overlaps"),
        ({"ome_version": "0.6"}, BadRequest, "version"),
    ]
    for change, kind, said in cases:
        request = {"data": stored, "bvals": BVALS, "destination": out} | change
        with pytest.raises(kind, match=said):
            patch2self(request.pop("data"), request.pop("bvals"), **request)
        assert not list(tmp_path.iterdir()), change


def test_damage_is_named_and_nothing_reads_as_finished(data, tmp_path):
    with pytest.raises(NonFiniteData, match=r"volume 7, voxel \(1, 2, 3\)"):
        patch2self(damaged(data, tmp_path), BVALS, destination=tmp_path / "out")
    assert zarr.open_group(tmp_path / "out", mode="r").attrs["denoizarr.state"] == "incomplete"


def test_a_missing_chunk_is_an_error(data, tmp_path):
    save_image(as_stored_image(data), tmp_path / "in.ome.zarr", chunks=(1, 4, 7, 11), ome_version="0.4")
    next(
        path for path in (tmp_path / "in.ome.zarr" / "0").rglob("*") if path.is_file() and path.name[0] != "."
    ).unlink()
    with pytest.raises(MissingChunk):
        patch2self(tmp_path / "in.ome.zarr", BVALS, destination=tmp_path / "out")


def test_zarr_v2_without_shards(data, stored, tmp_path):
    patch2self(stored, BVALS, destination=tmp_path / "out", ome_version="0.4", out_dtype="float64")
    np.testing.assert_allclose(
        read(Path(tmp_path / "out")), patch2self(data, BVALS, out_dtype="float64"), rtol=1e-11, atol=1e-9
    )
