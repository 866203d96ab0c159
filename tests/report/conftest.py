"""A small run folder, made with the package's own writers but without training anything."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from denoizarr.images.save import save_image
from denoizarr.selection.filters import ShannonPatchFilter
from denoizarr.selection.image_scores import ScorePlaces, score_image
from denoizarr.selection.index_builder import index_of
from denoizarr.selection.index_settings import checked_settings
from denoizarr.stores.images import as_image, open_image
from denoizarr.stores.records import read_json, write_json
from denoizarr.training.noise_kernel import NoiseKernel

PATCH = 16
SIZES = {"t": 2, "c": 2, "z": 3, "y": 90, "x": 120}
LOG = "epoch,step,train_loss,validation_loss,learning_rate,seconds\n"
LOG += "1,10,0.9,0.8,0.001,1\n2,20,0.6,0.5,0.0005,1\n"

MakeRun = Callable[..., Path]


def kernel_of(shape: tuple[int, int]) -> NoiseKernel:
    """A kernel that hides a box of this shape, measured over 9 x 9 lags."""
    correlation = np.zeros((9, 9))
    correlation[4 - shape[0] // 2 : 5 + shape[0] // 2, 4 - shape[1] // 2 : 5 + shape[1] // 2] = 0.4
    correlation[4, 4] = 1
    return NoiseKernel(
        mask=np.ones(shape, bool),
        autocorrelation=correlation,
        z_scores=10 * correlation,
        periods=(),
        windows=200,
        method="significance",
        source="extractor",
    )


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders made so far; making one costs more than copying it."""
    return {"root": tmp_path_factory.mktemp("runs")}


@pytest.fixture
def make_run(tmp_path: Path, templates: dict[str, Path]) -> MakeRun:
    """Return a function that gives a run folder to this test alone; its inputs are shared."""

    def make(*, summary: dict[str, Any] | None = None, **options: Any) -> Path:
        key = repr(sorted(options.items()))
        if key not in templates:
            templates[key] = write_run(templates["root"] / str(len(templates)), **options)
        run = tmp_path / "run"
        shutil.copytree(templates[key], run)
        if summary is not None:
            write_json(run / "summary.json", {**read_json(run / "summary.json"), **summary})
        return run

    return make


def write_run(
    folder: Path,
    *,
    dims: str = "zyx",
    names: tuple[str, ...] = ("brain",),
    stages: tuple[str, ...] = ("stage1", "stage2"),
    kernel: tuple[int, int] | None = (1, 5),
    patch_filter: bool = True,
    denoised: bool = True,
    keep_stage1: bool = False,
    patch: tuple[int, ...] = (PATCH, PATCH),
) -> Path:
    """Write inputs and a run folder; return the run folder."""
    run = folder / "run"
    run.mkdir(parents=True)
    shape = tuple(SIZES[dim] for dim in dims)
    generator = np.random.default_rng(0)
    truth = np.full(shape, 100.0)
    truth[..., 20:60, 30:80] += 100
    inputs, several = [], len(names) > 1
    for name in names:
        url = folder / "inputs" / f"{name}.ome.zarr"
        noisy = (truth + generator.normal(0, 10, shape)).round().astype(np.uint16)
        save_image(with_scale(as_image(noisy, dims)), url)
        inputs.append(url)
        for kind, wanted in (("denoised", denoised), ("stage1", keep_stage1)):
            result = run / kind / f"{name}.ome.zarr" if several else run / f"{kind}.ome.zarr"
            if wanted:
                save_image(as_image(truth.astype(np.uint16), dims), result)
    images = [open_image(url) for url in inputs]
    chosen = ShannonPatchFilter() if patch_filter else None
    settings = checked_settings(
        images, patch, patch_filter=chosen, mask=None, roi=None, filtered_patch_prob=0.1, seed=0
    )
    scores = []
    for name, image in zip(names, images, strict=True):
        place = str(run / "filter_map" / f"{name}.zarr" if several else run / "filter_map.zarr")
        kept = ScorePlaces(filter_map=place)
        scores.append(score_image(image, settings, places=kept, statistics=True, progress=False))
        shutil.rmtree(f"{place}.ledger")
    index = index_of(scores, settings)
    for stage in stages:
        index.save(str(run / stage / "index.zarr"))
        (run / stage / "train.csv").write_text(LOG)
    if kernel is not None:
        kernel_of(kernel).save(str(run / "noise_kernel.json"))
    job = {
        "input": {"urls": [str(url) for url in inputs]},
        "output": {"url": str(run)},
        "run_stage1": "stage1" in stages,
        "run_stage2": kernel is not None,
    }
    (run / "job.yaml").write_text(yaml.safe_dump(job))
    write_json(run / "statistics.json", {"images": [found.statistics.to_json() for found in scores]})
    write_json(
        run / "provenance.json", {"begun": "2026-01-02T03:04:05+00:00", "packages": {"denoizarr": "1.2.3"}}
    )
    step = {"name": "inference", "seconds": 61.5, "resumed": True, "note": "4 of 9 blocks"}
    listed = [{"name": name, "url": str(url)} for name, url in zip(names, inputs, strict=True)]
    write_json(run / "summary.json", {"steps": [step], "images": listed, "seconds": 61.5})
    return run


def with_scale(image):
    """A pixel of half a micrometre."""
    for dim in "yx":
        image = image.assign_coords({dim: image.coords[dim] * 0.5})
        image.coords[dim].attrs.update(units="micrometer", spacing=0.5)
    return image
