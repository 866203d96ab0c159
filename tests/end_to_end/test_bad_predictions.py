"""A prediction that cannot be is refused by name before any work, and what was there stays as it was."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from denoizarr.errors import (
    BadRequest,
    IncompleteOutput,
    LedgerMismatch,
    MemoryLimitTooSmall,
    MisalignedGrid,
    MissingChunk,
    ModelError,
    NoSpace,
    PermissionDenied,
)
from denoizarr.images.save import save_image
from denoizarr.inference import block
from denoizarr.inference.predict import predict
from denoizarr.kernels.unet import NetworkShape, build_network
from denoizarr.stores.images import as_image, open_image
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.normalisation import Normalisation

from .jobs import run_cli


def model(ndim=2, channels=1, seed=0, features=4):
    shape = NetworkShape(ndim=ndim, features=features, depth=1)
    about = Normalisation((100.0,) * channels, (20.0,) * channels)
    return Denoiser(shape, build_network(shape, seed=seed).state_dict(), about)


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(100, 20, shape).clip(0, 250).astype("uint16")


def files_of(folder):
    return {
        path.relative_to(folder): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def stack(tmp_path):
    save_image(
        noise((3, 96, 100)), tmp_path / "in.ome.zarr", chunks=(1, 32, 32), shards=(1, 64, 64), levels=1
    )
    return tmp_path / "in.ome.zarr"


@pytest.fixture
def no_work(monkeypatch):
    """No block is begun."""

    def begun(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr(block, "denoise_box", begun)
    monkeypatch.setattr("denoizarr.inference.predict.write_image", begun)


REFUSED = {
    "channels": (lambda: model(channels=2), {}, ModelError, "differ in channels.*got 1, expected 2"),
    "slivers": (model, {"chunks": (1, 0, 8)}, BadRequest, "positive int"),
    "axes of chunks": (model, {"chunks": (32, 32)}, BadRequest, "one positive int per dim"),
    "misaligned shards": (
        model, {"chunks": (1, 32, 32), "shards": (1, 48, 64)}, MisalignedGrid, "whole multiples of chunks",
    ),
    "shards in 0.4": (model, {"shards": (1, 64, 64), "ome_version": "0.4"}, BadRequest, "no shards"),
    "tile off the grid": (model, {"tile_shape": (9, 16)}, BadRequest, r"multiples of \(2, 2\)"),
    "axes of a tile": (model, {"tile_shape": (8, 8, 8)}, BadRequest, "multiple of the network's stride"),
    "memory": (model, {"memory_limit": "100MB"}, MemoryLimitTooSmall, "at least [0-9]+ MiB"),
    "memory for this tile": (
        lambda: model(features=64),
        {"tile_shape": (2048, 2048), "shards": (1, 2048, 2048), "memory_limit": "600MiB"},
        MemoryLimitTooSmall,
        "this tile does not fit.*leave tile_shape out",
    ),
    "dtype": (model, {"dtype": "complex64"}, BadRequest, "an integer or a float"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_any_work(case, stack, tmp_path, no_work):
    make, options, kind, words = REFUSED[case]
    before = files_of(tmp_path)
    with pytest.raises(kind, match=words) as caught:
        predict(make(), stack, tmp_path / "out.ome.zarr", progress=False, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(("ndim", "axes", "shape"), [(3, "yx", (40, 40)), (3, "cyx", (3, 40, 40))])
def test_a_model_of_other_dims_is_refused(ndim, axes, shape, tmp_path, no_work):
    with pytest.raises(ModelError, match=f"axes {axes}, expected one that ends in zyx"):
        predict(model(ndim), as_image(noise(shape), axes), tmp_path / "out.ome.zarr", progress=False)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["", "0", "deeper/still", ".."])
def test_an_output_in_the_input_or_around_it_is_refused(where, stack, tmp_path):
    before = files_of(tmp_path)
    with pytest.raises(BadRequest, match="overlaps the input"):
        predict(model(), stack, stack / where, progress=False)
    assert files_of(tmp_path) == before


def test_the_smallest_memory_limit_that_is_named_works(stack, tmp_path):
    options = {"progress": False, "shards": (1, 64, 64), "dtype": "float32"}
    with pytest.raises(MemoryLimitTooSmall) as caught:
        predict(model(), stack, tmp_path / "out.ome.zarr", memory_limit="1MB", **options)
    (smallest,) = re.findall(r"at least (\d+ MiB)", str(caught.value))
    summary = predict(model(), stack, tmp_path / "small.ome.zarr", memory_limit=smallest, **options)
    assert summary.blocks_failed == 0
    predict(model(), stack, tmp_path / "large.ome.zarr", **options)
    small, large = (open_image(tmp_path / f"{name}.ome.zarr").values for name in ("small", "large"))
    assert np.abs(small - large).max() <= 5e-5 * noise((3, 96, 100)).std()


@pytest.mark.parametrize("inner", [False, True])
def test_missing_chunks_are_named_or_filled_and_counted(inner, tmp_path):
    import zarr

    url = tmp_path / "in.ome.zarr"
    save_image(noise((3, 128, 128)), url, chunks=(1, 32, 32), shards=(1, 64, 64), levels=1)
    if inner:
        array = zarr.open_array(str(url / "0"), mode="r+", config={"write_empty_chunks": False})
        array[1, :32, 32:64] = 0  # all fill: zarr leaves the chunk out of its shard
    else:
        (url / "0/c/1/0/1").unlink()
    with pytest.raises(MissingChunk, match=r"c/1/0/0#0,0,1" if inner else "c/1/0/1"):
        predict(model(), url, tmp_path / "out.ome.zarr", progress=False)
    with pytest.raises(IncompleteOutput):
        open_image(tmp_path / "out.ome.zarr")
    filled = tmp_path / "filled.ome.zarr"
    # More blocks than one read the chunk, and it counts once.
    how = {"chunks": (1, 32, 32), "shards": (1, 32, 32), "missing": "fill", "progress": False}
    assert predict(model(), url, filled, **how).missing_chunks == 1
    assert open_image(filled).shape == (3, 128, 128)


def test_a_ledger_of_other_weights_names_what_differs(stack, tmp_path):
    out = tmp_path / "out.ome.zarr"
    predict(model(seed=0), stack, out, progress=False)
    before = files_of(tmp_path)
    with pytest.raises(LedgerMismatch, match="differences in model;") as caught:
        predict(model(seed=1), stack, out, progress=False)
    assert "choose another output" in str(caught.value)
    with pytest.raises(LedgerMismatch, match="dtype"):
        predict(model(seed=0), stack, out, progress=False, dtype="float32")
    save_image(noise((3, 96, 100), 1), tmp_path / "other.ome.zarr", chunks=(1, 32, 32), levels=1)
    with pytest.raises(LedgerMismatch, match="differences in input"):
        predict(model(seed=0), tmp_path / "other.ome.zarr", out, progress=False)
    after = files_of(tmp_path)
    assert {path: after[path] for path in before} == before


def test_the_command_line_says_it_in_one_line(stack, tmp_path):
    path = model(channels=3).save(tmp_path / "model")
    result = run_cli("predict", path, str(stack), str(tmp_path / "out.ome.zarr"))
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("ModelError: model and image differ in channels")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out.ome.zarr").exists()


# ---- disks: mounted here where that may be


@pytest.fixture
def disk(tmp_path):
    """``disk(options) -> folder``: a small disk in memory, or the same one again with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def mount(options):
        again = ["-o", f"remount,{options}"] if mounted else ["-t", "tmpfs", "-o", options, "none"]
        done = subprocess.run(["mount", *again, str(folder)], capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip("disks may not be mounted here")
        mounted.append(options)
        return folder

    try:
        yield mount
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_the_job_and_room_lets_it_go_on(disk, tmp_path):
    save_image(noise((8, 256, 256)), tmp_path / "in.ome.zarr", chunks=(1, 64, 64), levels=1)
    how = {"progress": False, "shards": (1, 256, 256), "levels": 1, "dtype": "float32"}
    small = disk("size=800k") / "out.ome.zarr"
    with pytest.raises(NoSpace, match=r"full.*free some space"):
        predict(model(), tmp_path / "in.ome.zarr", small, **how)
    with pytest.raises(IncompleteOutput):
        open_image(small)
    disk("size=20m")
    predict(model(), tmp_path / "in.ome.zarr", small, **how)
    predict(model(), tmp_path / "in.ome.zarr", tmp_path / "roomy.ome.zarr", **how)
    assert files_of(small) == files_of(tmp_path / "roomy.ome.zarr")


def test_a_read_only_disk_is_refused(disk, stack):
    folder = disk("size=1m")
    disk("ro")
    with pytest.raises(PermissionDenied, match="refuses access"):
        predict(model(), stack, folder / "out.ome.zarr", progress=False)
    assert not any(folder.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(stack, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    with pytest.raises(PermissionDenied, match="refuses access"):
        predict(model(), stack, folder / "out.ome.zarr", progress=False)
    assert not any(Path(folder).iterdir())
