from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.ndimage
from scipy.signal import fftconvolve

from denoizarr.errors import BadRequest, EmptyIndex, ImageNotFound
from denoizarr.kernels.simulate import simulate_stack
from denoizarr.training.noise_kernel import NoiseKernel, extract_noise_kernel
from denoizarr.training.structure import StructuralNoiseExtractor

KERNELS = {
    "row 3": np.ones((1, 3)),
    "row 5": np.ones((1, 5)),
    "row 9": np.ones((1, 9)),
    "column 9": np.ones((9, 1)),
    "box 3": np.ones((3, 3)),
    "diagonal 5": np.eye(5),
}


def noise(shape: tuple[int, int], kernel: np.ndarray, seed: int = 0) -> np.ndarray:
    """White noise of variance 1, correlated by a kernel."""
    wide = tuple(n + k - 1 for n, k in zip(shape, kernel.shape, strict=True))
    white = np.random.default_rng(seed).standard_normal(wide)
    return np.asarray(fftconvolve(white, kernel / np.sqrt((kernel**2).sum()), mode="valid"))


def true_kernel(kernel: np.ndarray) -> np.ndarray:
    """Where the noise's own autocorrelation is at least a tenth."""
    correlation = fftconvolve(kernel, kernel[::-1, ::-1])
    return np.asarray(correlation / correlation.max() >= 0.1 - 1e-9)


def cut(image: np.ndarray, side: int = 64) -> np.ndarray:
    rows, columns = (n // side for n in image.shape)
    whole = image[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return whole.swapaxes(1, 2).reshape(-1, side, side)


@cache
def cells() -> np.ndarray:
    """A clean plane of cells with empty background around them; 0 to about 100."""
    truth = simulate_stack((16, 512, 512), seed=1).truth[8]
    return np.asarray((truth - truth.min()) / 6)


@pytest.mark.parametrize("white", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("name", KERNELS)
def test_the_true_kernel_is_found(name: str, white: float) -> None:
    kernel = KERNELS[name]
    image = 10 * noise((512, 512), kernel) + 10 * white * noise((512, 512), np.ones((1, 1)), 1)
    mask, correlation = StructuralNoiseExtractor().extract_mask(cut(image))
    np.testing.assert_array_equal(mask, true_kernel(kernel))
    assert mask.shape == correlation.shape
    assert correlation[mask.shape[0] // 2, mask.shape[1] // 2] == 1


@pytest.mark.parametrize("name", ["row 3", "row 9", "column 9", "box 3"])
def test_the_true_kernel_is_found_on_cells(name: str) -> None:
    kernel = KERNELS[name]
    image = cells() + 10 * noise((512, 512), kernel) + 5 * noise((512, 512), np.ones((1, 1)), 1)
    mask, _ = StructuralNoiseExtractor().extract_mask(cut(image))
    np.testing.assert_array_equal(mask, true_kernel(kernel))


@pytest.mark.parametrize("sigma", [5.0, 20.0])
@pytest.mark.parametrize("what", ["white", "cells", "cells and white", "photons"])
def test_without_correlated_noise_there_is_one_pixel(what: str, sigma: float) -> None:
    white = sigma * noise((512, 512), np.ones((1, 1)), 7)
    image = {
        "white": white,
        "cells": cells(),
        "cells and white": cells() + white,
        "photons": np.random.default_rng(3).poisson((5 + cells()) * 40 / sigma).astype(np.uint16),
    }[what]
    mask, correlation = StructuralNoiseExtractor().extract_mask(cut(image))
    assert mask.tolist() == [[True]]
    assert correlation.tolist() == [[1.0]]


@pytest.mark.parametrize("sigma", [3.0, 6.0, 12.0])
def test_a_smooth_field_is_structure_not_noise(sigma: float) -> None:
    white = np.random.default_rng(5).standard_normal((512, 512))
    found = StructuralNoiseExtractor().analyse(cut(scipy.ndimage.gaussian_filter(white, sigma)))
    assert found.mask.tolist() == [[True]]
    assert found.note


def test_full_stripes_are_no_blind_spot() -> None:
    rows = np.random.default_rng(6).standard_normal((512, 1)) * np.ones((1, 512))
    found = StructuralNoiseExtractor().analyse(cut(rows + noise((512, 512), np.ones((1, 1)))))
    assert found.mask.tolist() == [[True]]
    assert "as far as was measured" in found.note


def test_windows_of_different_brightness_weigh_the_same() -> None:
    level = np.repeat(np.geomspace(1, 50, 64), 64 * 64).reshape(64, 64, 64)
    patches = level * cut(noise((512, 512), np.ones((1, 5))))
    mask, _ = StructuralNoiseExtractor().extract_mask(patches + 5 * level)
    np.testing.assert_array_equal(mask, true_kernel(np.ones((1, 5))))


def test_white_noise_seldom_alarms() -> None:
    extractor = StructuralNoiseExtractor(floor=1e-6, relative_floor=0.999, false_alarm=0.05)
    images = (noise((160, 160), np.ones((1, 1)), seed) for seed in range(40))
    alarms = sum(extractor.extract_mask(cut(image, 32))[0].size > 1 for image in images)
    assert alarms <= 5


def test_constant_and_broken_windows_are_left_out() -> None:
    good = cut(noise((512, 512), np.ones((1, 3)), 2))
    broken = good[:3].copy()
    broken[:, 5, 5] = np.nan
    extractor = StructuralNoiseExtractor()
    mixed = np.concatenate([np.zeros((40, 64, 64)), broken, good])
    assert np.array_equal(extractor.extract_mask(mixed)[0], extractor.extract_mask(good)[0])
    assert extractor.analyse(mixed).windows <= len(good)
    with pytest.raises(EmptyIndex, match="too few windows"):
        extractor.extract_mask(np.zeros((40, 64, 64)))


def test_rounding_that_hides_the_noise_is_not_measured() -> None:
    smooth = 2 * scipy.ndimage.gaussian_filter(np.random.default_rng(8).standard_normal((512, 512)), 6)
    faint = np.rint(20 + smooth + 0.1 * noise((512, 512), np.ones((1, 1)))).astype(np.uint8)
    assert StructuralNoiseExtractor().analyse(cut(faint)).windows > 0
    loud = np.rint(100 + 8 * noise((512, 512), np.ones((1, 5)))).astype(np.uint8)
    both = np.concatenate([cut(faint), cut(loud)])
    mask, _ = StructuralNoiseExtractor().extract_mask(both)
    np.testing.assert_array_equal(mask, true_kernel(np.ones((1, 5))))


def test_few_windows_are_cut_in_four_and_too_few_are_refused() -> None:
    patches = cut(noise((512, 512), np.ones((1, 3)), 2))
    assert StructuralNoiseExtractor().analyse(patches[:6]).window_size == 32
    with pytest.raises(EmptyIndex, match="20 or more"):
        StructuralNoiseExtractor().extract_mask(patches[:4])


def test_max_true_pixels_keeps_the_strongest_pairs() -> None:
    patches = cut(noise((512, 512), np.ones((1, 9))))
    mask, _ = StructuralNoiseExtractor(max_true_pixels=6).extract_mask(patches)
    np.testing.assert_array_equal(mask, np.ones((1, 5), dtype=bool))
    assert StructuralNoiseExtractor(max_true_pixels=1).extract_mask(patches)[0].tolist() == [[True]]


def test_center_size_bounds_the_lags() -> None:
    patches = cut(noise((512, 512), np.ones((1, 3))))
    found = StructuralNoiseExtractor(center_size=9).analyse(patches)
    assert found.autocorrelation.shape == found.z_scores.shape == (9, 9)
    np.testing.assert_array_equal(found.mask, true_kernel(np.ones((1, 3))))
    with pytest.raises(BadRequest, match="center_size is larger"):
        StructuralNoiseExtractor(center_size=99).analyse(patches)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "significance", "base_percentile": 50}, "base_percentile"),
        ({"method": "rings", "floor": 0.1}, "floor"),
        ({"base_percentile": 50, "floor": 0.1}, "cannot be mixed"),
        ({"base_percentile": 150}, "0 to 100"),
        ({"log_autocorr": 1}, "true or false"),
        ({"method": "magic"}, "unknown extractor method"),
        ({"colour": "red"}, "unknown extractor setting"),
        ({"center_size": 10}, "center_size"),
        ({"floor": 2.0}, "floor"),
        ({"max_true_pixels": 0}, "max_true_pixels"),
        ({"minimum_windows": 1}, "minimum_windows"),
    ],
)
def test_settings_that_are_not_understood_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        StructuralNoiseExtractor(**settings)  # type: ignore[arg-type]


def test_patches_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(BadRequest, match="wrong shape"):
        StructuralNoiseExtractor().extract_mask(np.zeros((64, 64)))
    with pytest.raises(BadRequest, match="too small"):
        StructuralNoiseExtractor().extract_mask(np.zeros((64, 16, 16)))


# ---- whole images


def test_the_simulated_microscope_gives_its_scan_length_and_the_truth_nothing() -> None:
    stack = simulate_stack((16, 512, 512), seed=0)
    kernel = extract_noise_kernel(stack.noisy)
    reach = np.arange(1, stack.scan_length)[
        1 - np.arange(1, stack.scan_length) / stack.scan_length >= 0.1
    ].max()
    assert kernel.mask.shape == (1, 2 * reach + 1)
    assert kernel.mask.all()
    assert kernel.source == "extractor"
    assert abs(kernel.outside) < 0.05


@pytest.mark.parametrize("seed", [1, 2])
def test_the_simulated_truth_has_no_noise_kernel(seed: int) -> None:
    assert extract_noise_kernel(simulate_stack((16, 512, 512), seed).truth).is_single_pixel


def test_the_same_seed_gives_the_same_kernel_and_a_list_is_one_sample() -> None:
    first = noise((512, 300), np.ones((1, 5)), 1)
    second = noise((256, 512), np.ones((1, 5)), 2)
    kernel, again = (extract_noise_kernel([first, second], seed=3) for _ in range(2))
    assert np.array_equal(kernel.autocorrelation, again.autocorrelation)
    np.testing.assert_array_equal(kernel.mask, true_kernel(np.ones((1, 5))))
    alone = extract_noise_kernel(first)
    assert alone.windows < kernel.windows


def test_dense_structure_is_cancelled_between_planes() -> None:
    scene = scipy.ndimage.gaussian_filter(np.random.default_rng(9).standard_normal((512, 512)), 2)
    scene = 20 * np.exp(1.5 * scene / scene.std())
    planes = np.stack([scene + 10 * noise((512, 512), np.ones((1, 5)), seed) for seed in range(6)])
    assert extract_noise_kernel(planes[0]).is_single_pixel
    kernel = extract_noise_kernel(planes)
    assert kernel.source == "plane differences"
    np.testing.assert_array_equal(kernel.mask, true_kernel(np.ones((1, 5))))


def test_an_index_points_at_the_background() -> None:
    image = noise((1024, 1024), np.ones((1, 5)), 1)
    classes = np.ones((16, 16), np.uint8)
    classes[:, 8:] = 0
    image[:, :512] = 0.0
    index = SimpleNamespace(
        check_image=lambda _: None, patch_size=(64, 64), dims=("y", "x"), classes=[classes],
        table=np.array([0.1, 1.0], np.float32),
    )  # fmt: skip
    assert extract_noise_kernel(image, index).mask.shape == (1, 9)  # type: ignore[arg-type]


def test_stage1_measures_what_the_network_leaves() -> None:
    image = np.stack([noise((400, 300), np.ones((1, 5)), seed) for seed in (1, 2)])
    tiles = []

    def run_tile(tile: np.ndarray, channel: int = 0) -> np.ndarray:
        assert all(n % 4 == 0 for n in tile.shape)
        tiles.append(tile.shape)
        return tile.T.copy().T + 1

    denoiser = SimpleNamespace(axes="yx", halo=(24, 24), stride=(4, 4), channels=1, run_tile=run_tile)
    denoiser.with_centre = lambda _: denoiser
    kernel = extract_noise_kernel(image, mask_source="stage1", denoiser=denoiser)  # type: ignore[arg-type]
    raw = extract_noise_kernel(image, mask_source="extractor")
    assert kernel.source == "stage1"
    assert tiles
    # This network only adds one, which correlations do not see: windows and their places are the same.
    np.testing.assert_allclose(kernel.autocorrelation, raw.autocorrelation, atol=1e-5)


def test_what_a_network_smooths_unevenly_is_left_for_the_raw_image(caplog: pytest.LogCaptureFixture) -> None:
    image = noise((512, 512), np.ones((1, 5)))
    asked = []

    def run_tile(tile: np.ndarray, channel: int = 0) -> np.ndarray:
        asked.append(tile.shape)
        return np.asarray(scipy.ndimage.gaussian_filter(tile, 1.0 + 1.5 * (len(asked) % 4)))

    denoiser = SimpleNamespace(axes="yx", halo=(24, 24), stride=(4, 4), channels=1, run_tile=run_tile)
    denoiser.with_centre = lambda _: denoiser
    caplog.set_level("WARNING", logger="denoizarr")
    kernel = extract_noise_kernel(image, mask_source="stage1", denoiser=denoiser)  # type: ignore[arg-type]
    raw = extract_noise_kernel(image, mask_source="extractor")
    assert asked
    assert "the raw image is measured" in caplog.text
    assert kernel.source == "extractor"
    np.testing.assert_array_equal(kernel.mask, raw.mask)
    assert kernel.mask.sum() > 1


def test_requests_that_cannot_be_met_are_refused() -> None:
    image = noise((256, 256), np.ones((1, 1)))
    with pytest.raises(BadRequest, match="needs the denoiser"):
        extract_noise_kernel(image, mask_source="stage1")
    with pytest.raises(BadRequest, match=r"NoiseKernel\.load"):
        extract_noise_kernel(image, mask_source="file")
    with pytest.raises(EmptyIndex, match="too few windows"):
        extract_noise_kernel(image[:64])
    with pytest.raises(EmptyIndex, match="too small"):
        extract_noise_kernel(image[:16])


# ---- the file


def test_a_kernel_survives_its_file(tmp_path: Path) -> None:
    kernel = extract_noise_kernel(noise((512, 512), np.ones((3, 3))))
    kernel.save(tmp_path / "kernel.json")
    loaded = NoiseKernel.load(tmp_path / "kernel.json")
    for name in ("mask", "autocorrelation", "z_scores"):
        np.testing.assert_array_equal(getattr(kernel, name), getattr(loaded, name))
    for name in ("periods", "windows", "window_size", "method", "source", "spread", "outside", "note"):
        assert getattr(kernel, name) == getattr(loaded, name)
    assert loaded.mask.shape == (5, 5)
    assert not loaded.is_single_pixel


def test_a_mask_from_numpy_is_read_without_pickle(tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", np.ones((1, 5), np.uint8))
    kernel = NoiseKernel.load(tmp_path / "mask.npy")
    assert kernel.mask.dtype == np.bool_
    assert kernel.mask.shape == kernel.autocorrelation.shape == (1, 5)
    assert kernel.source == "file"
    np.save(tmp_path / "evil.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(BadRequest, match="not an array of numbers"):
        NoiseKernel.load(tmp_path / "evil.npy")


@pytest.mark.parametrize(
    "mask", [np.ones((1, 4)), np.zeros((1, 3)), np.ones(3), np.full((1, 3), 2), np.array([["a"]])]
)
def test_masks_that_are_no_kernel_are_refused(tmp_path: Path, mask: np.ndarray) -> None:
    np.save(tmp_path / "mask.npy", mask)
    with pytest.raises(BadRequest, match="noise kernel"):
        NoiseKernel.load(tmp_path / "mask.npy")


@pytest.mark.parametrize(
    "change", [{"format": "x"}, {"version": 3}, {"mask": None}, {"mask": [[0]]}, {"windows": "many"}]
)
def test_files_that_are_no_kernel_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "kernel.json"
    one = np.ones((1, 1))
    NoiseKernel(one.astype(bool), one, 0 * one).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadRequest):
        NoiseKernel.load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound):
        NoiseKernel.load(tmp_path / "none.json")
    with pytest.raises(ImageNotFound):
        NoiseKernel.load(tmp_path / "none.npy")


# ---- real images


def real(pattern: str) -> np.ndarray:
    imread = pytest.importorskip("skimage.io").imread
    root = os.environ.get("DENOIZARR_DATA")
    if not root:
        pytest.skip("DENOIZARR_DATA is not set")
    return np.squeeze(np.stack([imread(path) for path in sorted(Path(root).glob(pattern))]))


def test_scanning_electron_microscope_noise_is_a_row() -> None:
    np.testing.assert_array_equal(extract_noise_kernel(real("sem-shale/*.tif")).mask, np.ones((1, 3), bool))


def test_resampled_light_sheet_noise_is_round() -> None:
    mask = extract_noise_kernel(real("lightsheet-brain/*.tif")).mask
    assert mask.shape in ((5, 5), (7, 7))
    assert mask[mask.shape[0] // 2 - 1 : mask.shape[0] // 2 + 2, mask.shape[1] // 2 - 1 :][:, :3].all()


def test_wide_field_noise_is_round_and_two_pixels_far() -> None:
    mask = extract_noise_kernel(real("fluorescence/raw/WideField_BPAE_G_1.png")).mask
    assert mask.shape == (5, 5)
    assert mask.sum() >= 13


@pytest.mark.parametrize("name", ["Confocal_BPAE_B_1", "Confocal_MICE_1", "TwoPhoton_MICE_1"])
def test_confocal_noise_is_a_single_pixel(name: str) -> None:
    assert extract_noise_kernel(real(f"fluorescence/raw/{name}.png")).is_single_pixel
