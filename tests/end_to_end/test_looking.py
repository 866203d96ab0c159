"""``filter-map`` and ``index`` as a user runs them: results, refusals, and a kill in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from denoizarr import PatchIndex, ShannonPatchFilter, build_index
from denoizarr.images.save import save_image
from denoizarr.selection.on_disk import open_filter_map

from .jobs import command, environment, run_cli, tree_hash


def spots(shape=(4, 200, 230), seed=0):
    """Return bright spots on the left half of a dark, noisy image."""
    generator = np.random.default_rng(seed)
    image = generator.normal(100, 3, shape)
    image[..., : shape[-1] // 2] += generator.gamma(1, 60, (*shape[:-1], shape[-1] // 2))
    return image.round().clip(0).astype(np.uint16)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    url = tmp_path_factory.mktemp("image") / "in.ome.zarr"
    save_image(spots(), url, levels=1)
    return str(url)


def last_line(result: subprocess.CompletedProcess[str]) -> dict:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_filter_map_writes_what_the_python_api_gives(image, tmp_path):
    out, picture = tmp_path / "map.zarr", tmp_path / "map.png"
    told = last_line(
        run_cli(
            "filter-map", image, "--patch-size", "16", "--out", str(out), "--plot", str(picture), "--json"
        )
    )
    direct = ShannonPatchFilter.filter_map(image, 16)
    saved = open_filter_map(out)
    np.testing.assert_array_equal(saved.values, direct.values)
    xr.testing.assert_identical(saved.coords.to_dataset(), direct.coords.to_dataset())
    assert xr.open_zarr(out, consolidated=False)["shannon"].dims == ("z", "y", "x")
    assert told["thresholds"] == [ShannonPatchFilter.suggest_threshold(direct)]
    assert told["kept"] == int((direct >= told["thresholds"][0]).sum())
    assert 0 < told["kept"] < told["cells"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_both_thresholds_of_mean_and_std(image, tmp_path):
    out = tmp_path / "map.zarr"
    options = ("--filter", "mean_std", "--threshold", "120", "--std-threshold", "30", "--patch-size", "16,16")
    told = last_line(run_cli("filter-map", image, "--out", str(out), *options, "--json"))
    mean, std = open_filter_map(out).values
    assert told["thresholds"] == [120, 30]
    assert told["kept"] == int(((mean >= 120) & (std >= 30)).sum())


def test_index_equals_build_index_and_another_threshold_needs_no_second_look(image, tmp_path):
    out = tmp_path / "index.zarr"
    arguments = ("index", image, "--patch-size", "16", "--out", str(out))
    last_line(run_cli(*arguments, "--json"))
    direct = build_index(image, 16, patch_filter=ShannonPatchFilter())
    found = PatchIndex.open(out)
    np.testing.assert_array_equal(found.classes[0], direct.classes[0])
    assert found.statistics[0].channels[0].mean == pytest.approx(spots().mean())
    records = {p: p.stat().st_mtime_ns for p in Path(f"{out}.ledger").rglob("*.json")}
    assert records
    told = last_line(run_cli(*arguments, "--threshold", "6.5", "--json"))
    assert told["settings"]["threshold"] == 6.5
    assert {p: p.stat().st_mtime_ns for p in Path(f"{out}.ledger").rglob("*.json")} == records


def test_index_with_mask_and_regions_of_interest(image, tmp_path):
    mask = np.zeros((4, 200, 230), bool)
    mask[:, :, :90] = True
    np.save(tmp_path / "mask.npy", mask)
    out = tmp_path / "index.zarr"
    options = ("--filter", "none", "--mask", str(tmp_path / "mask.npy"), "--mask-coverage", "0.5")
    roi = ("--use-roi", "--roi-sigma", "20", "--plot", str(tmp_path / "patches.png"))
    told = last_line(
        run_cli("index", image, "--patch-size", "16", "--out", str(out), *options, *roi, "--json")
    )
    assert told["settings"]["mask"]["coverage"] == 0.5
    assert told["settings"]["roi"]["select_background"] is False
    index = PatchIndex.open(out)
    weights = index.weights.values
    assert (weights[..., -4:] < 1).all(), "neither in the mask nor bright"
    assert (weights == 1).any()
    assert (tmp_path / "patches.png").read_bytes().startswith(b"\x89PNG")


def _bad(tmp_path: Path) -> dict[str, tuple[tuple[str, ...], str]]:
    np.save(tmp_path / "mask.npy", np.ones((4, 150, 230), bool))
    return {
        "patch": (("--patch-size", "256"), "PatchTooLarge: "),
        "channel": (("--ref-channel", "1"), "BadRequest: no such channel at ref_channel"),
        "mask": (("--mask", str(tmp_path / "mask.npy")), "MisalignedGrid: "),
        "threshold": (
            ("--patch-size", "16", "--threshold", "99"),
            "EmptyIndex: the patch filter keeps no cell",
        ),
        "setting": (("--coverage", "0.5"), "BadRequest: coverage does not apply to this filter"),
        "region": (("--use-roi", "--patch-size", "4"), "BadRequest: "),
    }


@pytest.mark.parametrize("what", ["patch", "channel", "mask", "threshold", "setting", "region"])
def test_bad_requests_are_refused_by_name(image, tmp_path, what):
    options, message = _bad(tmp_path)[what]
    result = run_cli("index", image, "--out", str(tmp_path / "index.zarr"), *options)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(message)
    assert not (tmp_path / "index.zarr").exists()


def test_nan_is_named_with_its_place(tmp_path):
    values = spots().astype(np.float32)
    values[2, 150, 7] = np.nan
    save_image(values, tmp_path / "in.ome.zarr", levels=1)
    result = run_cli("filter-map", str(tmp_path / "in.ome.zarr"), "--out", str(tmp_path / "map.zarr"))
    assert result.returncode == 2
    assert "NonFiniteData" in result.stderr
    assert "z=2, y=150, x=7" in result.stderr
    assert not (tmp_path / "map.zarr").exists()


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    urls = []
    for number in range(3):
        save_image(spots(seed=number), folder / f"{number}.ome.zarr", levels=1)
        urls.append(str(folder / f"{number}.ome.zarr"))
    options = ("--patch-size", "16", "--use-roi", "--roi-sigma", "20")
    whole = folder / "whole.zarr"
    assert run_cli("index", *urls, "--out", str(whole), *options).returncode == 0
    return urls, options, tree_hash(whole)


# What appears beside the index once a phase is under way: the moment to kill.
PHASES = (
    "0/filter_map-*.zarr.ledger/*/*.json",
    "0/roi-*.zarr/*",
    "1/filter_map-*.zarr/*",
    "2/roi-*.zarr.ledger/*",
)


def test_killed_while_indexing_and_run_again(several, tmp_path):
    urls, options, expected = several
    out = tmp_path / "index.zarr"
    arguments = ("index", *urls, "--out", str(out), *options)
    killed = 0
    for pattern in PHASES:
        process = subprocess.Popen(
            command(*arguments), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment()
        )
        while process.poll() is None and not any(Path(f"{out}.ledger").glob(pattern)):
            threading.Event().wait(0.002)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 3
    records = {p: p.stat().st_mtime_ns for p in Path(f"{out}.ledger").rglob("*.zarr.ledger/*/*.json")}
    assert records
    assert run_cli(*arguments).returncode == 0
    assert tree_hash(out) == expected
    assert all(p.stat().st_mtime_ns == time for p, time in records.items()), "what was done is not done again"
