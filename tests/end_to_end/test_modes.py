"""The modes of the two-stage page, and training with a target: each would fail as another mode."""

from __future__ import annotations

import json

import numpy as np
import pytest

from denoizarr.errors import BadRequest, ConfigError
from denoizarr.images.save import save_image
from denoizarr.pipeline.plan import plan
from denoizarr.pipeline.run import run_pipeline
from denoizarr.selection.patch_index import PatchIndex
from denoizarr.stores.images import open_image, reader_of
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.noise_kernel import NoiseKernel, extract_noise_kernel

from .jobs import scan_noise

SHAPE = (3, 256, 256)
STAGE1 = {"features": 4, "num_epochs": 1, "patches_per_epoch": 32, "patch_size": 32}
# Another architecture, and a patch that is no square.
STAGE2 = {"features": 6, "num_layers": 1, "n2v2": True, "norm": "batch", "num_epochs": 1} | {
    "patches_per_epoch": 16,
    "patch_size": [48, 64],
}


@pytest.fixture(scope="module")
def cluster(client):
    """One cluster for all jobs of this file: starting it takes longer than a mode."""
    return {"kind": "address", "address": client.scheduler.address}


@pytest.fixture
def without_report(monkeypatch):
    """Drawing the page takes longer than a mode does; test_both_stages draws it."""
    monkeypatch.setattr("denoizarr.pipeline.run.write_report", lambda url: url)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A stack whose noise runs along x."""
    url = tmp_path_factory.mktemp("stack") / "in.ome.zarr"
    save_image(scan_noise(SHAPE), url, levels=1)
    return url


def run_job(source, folder, cluster, **changes):
    job = {
        "input": str(source),
        "output": {"url": str(folder / "run"), "levels": 1},
        "stage1": STAGE1,
        "stage2": STAGE2,
        "cluster": cluster,
        **changes,
    }
    assert not plan(job).problems
    assert not (folder / "run").exists()
    run_pipeline(job, progress=False)
    return folder / "run"


def model(run, stage):
    return Denoiser.load(run / stage / "model.safetensors")


def is_what_it_makes_of(denoiser, raw, image):
    """Whether an image is what a network makes of raw intensities, rounded to integers."""
    expected = denoiser.denoise(raw).round().clip(0, 65535)
    off = np.abs(expected - image)
    return off.max() <= 1 and (off > 0).mean() <= 1e-3


def trained_steps(run):
    steps = [step["name"] for step in json.loads((run / "summary.json").read_text())["steps"]]
    return [name.removeprefix("training of ") for name in steps if name.startswith("training of ")]


def test_both_stages(stack, tmp_path, cluster):
    run = run_job(
        stack,
        tmp_path,
        cluster,
        output={"url": str(tmp_path / "run"), "levels": 1, "keep_stage1": True},
        stage2={**STAGE2, "mask_source": "stage1"},
    )
    assert trained_steps(run) == ["stage1", "stage2"]
    stage1, stage2 = model(run, "stage1"), model(run, "stage2")
    kernel = NoiseKernel.load(run / "noise_kernel.json")
    found = extract_noise_kernel(open_image(stack), mask_source="stage1", denoiser=stage1)
    # What a network of 32 patches makes of the image does not tell its noise: then the raw image is measured.
    assert kernel.source == found.source
    np.testing.assert_array_equal(kernel.mask, found.mask)
    assert kernel.mask.shape[1] > 1
    np.testing.assert_array_equal(stage1.blind_spot, [[True]])
    np.testing.assert_array_equal(stage2.blind_spot, kernel.mask)
    assert (stage1.network.features, stage1.network.depth, stage1.network.n2v2) == (4, 2, False)
    assert (stage2.network.features, stage2.network.depth, stage2.network.n2v2) == (6, 1, True)
    assert (stage1.patch_size, stage2.patch_size) == ((32, 32), (48, 64))
    # Stage 2 learns from the original image, and is applied to it.
    original = reader_of(open_image(stack)).identity
    for stage in ("stage1", "stage2"):
        (trained_on,) = PatchIndex.open(run / stage / "index.zarr").images
        assert original.items() <= trained_on.items()
    raw = open_image(stack).values
    denoised, between = (
        open_image(run / "denoised.ome.zarr").values,
        open_image(run / "stage1.ome.zarr").values,
    )
    assert is_what_it_makes_of(stage2, raw, denoised)
    assert is_what_it_makes_of(stage1, raw, between)
    assert not is_what_it_makes_of(stage1, raw, denoised)
    for stage in ("stage1", "stage2"):
        assert len((run / stage / "train.csv").read_text().splitlines()) == 2
        assert list((run / stage / "samples").glob("*.png"))
        assert (run / "figures" / f"samples_{stage}_epoch-0001.png").is_file()


@pytest.mark.usefixtures("without_report")
def test_stage_1_only(stack, tmp_path, cluster):
    run = run_job(stack, tmp_path, cluster, run_stage2=False)
    assert trained_steps(run) == ["stage1"]
    assert not (run / "noise_kernel.json").exists()
    assert not (run / "stage2").exists()
    stage1 = model(run, "stage1")
    np.testing.assert_array_equal(stage1.blind_spot, [[True]])
    assert is_what_it_makes_of(stage1, open_image(stack).values, open_image(run / "denoised.ome.zarr").values)


@pytest.mark.usefixtures("without_report")
def test_stage_2_with_a_kernel_from_a_file(stack, tmp_path, cluster):
    # Along y, where this noise is not correlated: no measurement would find it.
    mask = np.ones((5, 1), bool)
    np.save(tmp_path / "kernel.npy", mask)
    NoiseKernel.load(tmp_path / "kernel.npy").save(tmp_path / "kernel.json")
    digests = set()
    for name in ("kernel.npy", "kernel.json"):
        (tmp_path / name[-4:]).mkdir()
        run = run_job(
            stack,
            tmp_path / name[-4:],
            cluster,
            run_stage1=False,
            stage2={**STAGE2, "mask_source": "file", "mask_file_path": str(tmp_path / name)},
        )
        assert trained_steps(run) == ["stage2"]
        assert not (run / "stage1").exists()
        kernel = NoiseKernel.load(run / "noise_kernel.json")
        assert kernel.source == "file"
        np.testing.assert_array_equal(kernel.mask, mask)
        stage2 = model(run, "stage2")
        np.testing.assert_array_equal(stage2.blind_spot, mask)
        digests.add(stage2.digest)
        raw, denoised = open_image(stack).values, open_image(run / "denoised.ome.zarr").values
        assert is_what_it_makes_of(stage2, raw, denoised)
    assert len(digests) == 1, "the same kernel, whatever its file"


@pytest.mark.usefixtures("without_report")
def test_stage_2_with_direct_extraction(stack, tmp_path, cluster):
    run = run_job(stack, tmp_path, cluster, run_stage1=False, stage2={**STAGE2, "mask_source": "extractor"})
    assert trained_steps(run) == ["stage2"]
    assert not (run / "stage1").exists()
    kernel = NoiseKernel.load(run / "noise_kernel.json")
    assert kernel.source == "extractor", "measured on the raw image"
    np.testing.assert_array_equal(kernel.mask, extract_noise_kernel(open_image(stack)).mask)
    assert kernel.mask.shape[0] == 1 < kernel.mask.shape[1], "along x"
    stage2 = model(run, "stage2")
    np.testing.assert_array_equal(stage2.blind_spot, kernel.mask)
    assert is_what_it_makes_of(stage2, open_image(stack).values, open_image(run / "denoised.ome.zarr").values)


@pytest.mark.usefixtures("without_report")
def test_a_target_is_learnt_in_its_own_grey_levels(stack, tmp_path, cluster):
    # Twice the intensities: what predicts this has seen it.
    twice = 2 * open_image(stack).values.astype(np.float32) + 1000
    save_image(twice, tmp_path / "target.ome.zarr", levels=1)
    stage1 = {
        **STAGE1,
        "num_epochs": 8,
        "patches_per_epoch": 128,
        "patches_per_image": None,
        "ema_decay": 0.9,
    }
    run = run_job(
        stack,
        tmp_path,
        cluster,
        target=str(tmp_path / "target.ome.zarr"),
        stage1=stage1,
        output={"url": str(tmp_path / "run"), "levels": 1, "dtype": "float32"},
    )
    assert trained_steps(run) == ["stage1"]
    assert not (run / "noise_kernel.json").exists()
    assert not (run / "stage2").exists()
    trained, raw = model(run, "stage1"), open_image(stack).values
    denoised = open_image(run / "denoised.ome.zarr").values
    assert trained.target_normalisation.mean[0] == pytest.approx(twice.mean(), rel=0.05)
    np.testing.assert_allclose(denoised, trained.denoise(raw), atol=1e-3 * twice.std())
    # With blind spots the noise would be gone; without, it is most easily kept.
    assert np.corrcoef(denoised.ravel(), twice.ravel())[0, 1] > 0.9
    assert np.abs(denoised - twice).mean() < 0.5 * twice.std()


def _target_of_another_shape(folder, stack):
    save_image(scan_noise((3, 256, 240)), folder / "target.ome.zarr", levels=1)
    return {"target": str(folder / "target.ome.zarr")}


def _too_few_targets(folder, stack):
    save_image(scan_noise(SHAPE), folder / "other.ome.zarr", levels=1)
    return {
        "input": {"urls": [str(stack), str(folder / "other.ome.zarr")]},
        "target": str(folder / "other.ome.zarr"),
    }


def _target_of_other_axes(folder, stack):
    save_image(scan_noise((256, 256)), folder / "target.ome.zarr", levels=1)
    return {"target": str(folder / "target.ome.zarr")}


def _target_of_another_dtype(folder, stack):
    save_image(scan_noise(SHAPE) / np.float32(65535), folder / "target.ome.zarr", levels=1)
    return {"target": str(folder / "target.ome.zarr")}


def _the_image_itself(folder, stack):
    return {"target": str(stack)}


def _no_target(folder, stack):
    return {"target": str(folder / "none.ome.zarr")}


def _volumes_of_planes(folder, stack):
    save_image(scan_noise((256, 256)), folder / "plane.ome.zarr", levels=1)
    return {"input": str(folder / "plane.ome.zarr"), "stage1": {**STAGE1, "patch_size": [8, 32, 32]}}


def _no_multiple_of_the_stride(folder, stack):
    return {"stage2": {**STAGE2, "num_layers": 3, "patch_size": [48, 60]}}


def _kernel_wider_than_the_patch(folder, stack):
    np.save(folder / "kernel.npy", np.ones((1, 65), bool))
    return {"stage2": {**STAGE2, "mask_source": "file", "mask_file_path": str(folder / "kernel.npy")}}


def _run_folder_in_the_target(folder, stack):
    save_image(scan_noise(SHAPE), folder / "target.ome.zarr", levels=1)
    target = folder / "target.ome.zarr"
    return {"target": str(target), "output": str(target / "run")}


REFUSED = {
    _target_of_another_shape: (BadRequest, "z 3 x y 256 x x 240, expected z 3 x y 256 x x 256"),
    _too_few_targets: (ConfigError, "one target for each image at target: got 1, expected 2"),
    _target_of_other_axes: (BadRequest, "got y 256 x x 256, expected z 3"),
    _target_of_another_dtype: (ConfigError, "say which: output.dtype"),
    _the_image_itself: (BadRequest, "the target is the image itself"),
    _no_target: (BadRequest, "none.ome.zarr"),
    _volumes_of_planes: (BadRequest, "need an image with z at stage1.patch_size"),
    _no_multiple_of_the_stride: (ConfigError, "stage2.patch_size: got (48, 60), expected (48, 64)"),
    _kernel_wider_than_the_patch: (BadRequest, "wider than the patch at stage2.mask_file_path"),
    _run_folder_in_the_target: (BadRequest, "overlaps"),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.__name__)
def test_what_cannot_be_trained_is_refused_before_any_work(case, stack, tmp_path):
    kind, words = REFUSED[case]
    job = {"input": str(stack), "output": str(tmp_path / "run"), "stage1": STAGE1, "stage2": STAGE2}
    job |= case(tmp_path, stack)
    (problem,) = plan(job).problems
    assert words in problem
    assert "\n" not in problem
    with pytest.raises(kind):
        run_pipeline(job, progress=False)
    assert not (tmp_path / "run").exists()


def test_volumes_are_trained_on_and_predicted(tmp_path, cluster):
    image = scan_noise((24, 64, 64))
    save_image(image, tmp_path / "in.ome.zarr", levels=1, chunks=(24, 64, 64))
    np.save(tmp_path / "kernel.npy", np.ones((1, 3), bool))
    volumes = {**STAGE1, "num_layers": 1, "patch_size": [8, 16, 16], "patches_per_epoch": 16}
    run = run_job(
        tmp_path / "in.ome.zarr",
        tmp_path,
        cluster,
        stage1=volumes,
        stage2={**volumes, "mask_source": "file", "mask_file_path": str(tmp_path / "kernel.npy")},
        patch_filter={"name": "max"},
        output={"url": str(tmp_path / "run"), "levels": 1, "chunks": [24, 64, 64]},
    )
    assert trained_steps(run) == ["stage1", "stage2"]
    stage1, stage2 = model(run, "stage1"), model(run, "stage2")
    assert stage1.axes == stage2.axes == "zyx"
    assert stage1.blind_spot.shape == (1, 1, 1)
    np.testing.assert_array_equal(stage2.blind_spot, np.ones((1, 1, 3), bool))
    index = PatchIndex.open(run / "stage2" / "index.zarr")
    assert index.patch_size == (8, 16, 16)
    assert index.weights.shape == (3, 4, 4)
    assert is_what_it_makes_of(stage2, image, open_image(run / "denoised.ome.zarr").values)
    page = (run / "report.html").read_text()
    assert "left out" not in page
