"""Every verb of the command line, with all that it takes and makes in a bucket."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile

import denoizarr
from denoizarr.cli import main
from denoizarr.images.save import save_image
from tests.end_to_end.jobs import scan_noise


@pytest.fixture
def run(capsys):
    """Run a verb in this process; its exit status must be as expected."""

    def of(*arguments: str, status: int = 0) -> str:
        try:
            found = main([str(argument) for argument in arguments])
        except SystemExit as end:
            found = end.code
        told = capsys.readouterr()
        assert (found or 0) == status, f"{arguments}: {told.out}\n{told.err}"
        return told.out + told.err

    return of


def test_every_verb(root, run, tmp_path, bucket):
    image = scan_noise((2, 128, 128))
    for z, plane in enumerate(image):
        tifffile.imwrite(tmp_path / f"plane{z}.tif", plane)
    source, index, kernel, model = (
        f"{root}/{n}" for n in ("a.ome.zarr", "i.zarr", "k.json", "m.safetensors")
    )
    run("convert", tmp_path / "plane0.tif", tmp_path / "plane1.tif", source, "--axes", "zyx")
    assert '"z"' in run("info", source, "--json")
    run("filter-map", source, "--patch-size", "32,32", "--out", f"{root}/map.zarr")
    run("index", source, "--patch-size", "32,32", "--out", index)
    run("extract-mask", source, "--out", kernel)
    options = ("--patch-size", "32", "--epochs", "1", "--patches-per-epoch", "16", "--features", "2")
    run("train", source, "--index", index, "--kernel", kernel, "--out", model, *options)
    run("predict", model, source, f"{root}/out.ome.zarr")
    of_prediction = json.loads(run("status", f"{root}/out.ome.zarr", "--json").splitlines()[-1])
    assert of_prediction["is_complete"] is True
    run("verify", f"{root}/out.ome.zarr")
    run("convert", f"{root}/out.ome.zarr", tmp_path / "back.tif")
    np.testing.assert_array_equal(
        tifffile.imread(tmp_path / "back.tif"), denoizarr.open_image(f"{root}/out.ome.zarr").values
    )
    assert {"k.json", "m.safetensors"} <= set(bucket.keys())


def test_patch2self(root, run):
    rng = np.random.default_rng(0)
    series = rng.normal(100, 5, (6, 2, 8, 8)) + rng.normal(0, 20, (1, 2, 8, 8))
    url = f"{root}/dwi.ome.zarr"
    save_image(denoizarr.stores.images.as_image(series.astype(np.float32), "tzyx"), url, levels=1)
    denoizarr.patch2self(url, [0, 0, 0, 1000, 1000, 1000], destination=f"{root}/clean.ome.zarr")
    assert denoizarr.open_image(f"{root}/clean.ome.zarr").shape == series.shape


@pytest.mark.parametrize("verb", ["convert", "train", "extract-mask", "index"])
def test_a_web_server_as_destination_is_refused_before_any_work(root, run, fault_proxy, verb):
    save_image(scan_noise((1, 256, 256)), f"{root}/a.ome.zarr", levels=1)
    fault_proxy.log.clear()
    there = f"{fault_proxy.endpoint}/{root[5:]}/made.zarr"
    to = (there,) if verb == "convert" else ("--out", there)
    said = run(verb, f"{root}/a.ome.zarr", *to, status=2)
    assert "read only" in said
    assert fault_proxy.log.count("GET", "a.ome.zarr/0/c/*") == 0
