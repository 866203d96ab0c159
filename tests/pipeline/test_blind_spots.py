"""Kernels against patches: a file's is refused before work, a measured one never ends a job."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.errors import BadRequest, ConfigError, PatchTooLarge
from denoizarr.kernels.blindspot import check_blind_spot
from denoizarr.pipeline.blind_spots import (
    check_center_size,
    check_kernel_file,
    check_one_pixel,
    fitting_blind_spots,
)
from denoizarr.pipeline.config import JobConfig
from denoizarr.stores.images import as_image
from denoizarr.training.noise_kernel import NoiseKernel
from denoizarr.training.options import TrainingOptions
from denoizarr.training.structure import StructuralNoiseExtractor

ODD = st.integers(0, 20).map(lambda n: 2 * n + 1)


@settings(max_examples=60)
@given(
    shape=st.tuples(ODD, ODD) | st.tuples(ODD, ODD, ODD).filter(lambda s: np.prod(s) < 4000),
    patch=st.sampled_from([(4, 4), (8, 8), (64, 64), (4, 4, 4), (4, 16, 16)]),
    percentage=st.sampled_from([1.5, 10.0, 50.0]),
    seed=st.integers(0, 9),
)
def test_a_measured_kernel_always_fits(
    shape: tuple[int, ...], patch: tuple[int, ...], percentage: float, seed: int
) -> None:
    mask = np.random.default_rng(seed).random(shape) < 0.7
    mask |= mask[tuple(slice(None, None, -1) for _ in shape)]
    mask[tuple(n // 2 for n in shape)] = True
    options = TrainingOptions(patch_size=patch, mask_percentage=percentage, num_layers=1)
    try:
        check_one_pixel(options, "stage2")
    except BadRequest:
        return  # such a stage is refused whatever its kernel
    fitting = fitting_blind_spots(NoiseKernel.from_mask(mask), options)
    hidden = fitting.mask.reshape((1,) * (len(patch) - fitting.mask.ndim) + fitting.mask.shape)
    check_blind_spot(hidden, patch, fitting.options.mask_percentage)


def test_a_kernel_over_half_of_a_patch_is_cut_and_said() -> None:
    kernel = NoiseKernel.from_mask(np.ones((7, 7)))
    fitting = fitting_blind_spots(kernel, TrainingOptions(patch_size=8, mask_percentage=10, num_layers=1))
    assert fitting.mask.shape == (5, 5)
    assert "7 x 7 pixels was cut to 5 x 5" in fitting.warnings[0]
    assert "predicted 2 %" in fitting.warnings[1]


def test_patches_of_planes_see_the_middle_plane_of_a_kernel() -> None:
    volume = np.zeros((3, 3, 5), bool)
    volume[1, 1] = volume[0, 0, 0] = volume[2, 2, 4] = True
    plane = fitting_blind_spots(NoiseKernel.from_mask(volume), TrainingOptions(patch_size=32))
    np.testing.assert_array_equal(plane.mask, np.ones((1, 5), bool))
    whole = fitting_blind_spots(NoiseKernel.from_mask(volume), TrainingOptions(patch_size=(8, 32, 32)))
    np.testing.assert_array_equal(whole.mask, volume)
    along_z = np.ones((3, 1, 1))
    assert fitting_blind_spots(NoiseKernel.from_mask(along_z), TrainingOptions(patch_size=32)).is_single_pixel


def test_a_kernel_as_wide_as_the_network_sees_is_said() -> None:
    shallow = TrainingOptions(patch_size=64, num_layers=1, mask_percentage=0.1)
    wide = fitting_blind_spots(NoiseKernel.from_mask(np.ones((19, 19))), shallow)
    assert "raise num_layers" in wide.warnings[-1]
    assert not fitting_blind_spots(NoiseKernel.from_mask(np.ones((1, 33))), shallow).warnings


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 41), {"patch_size": 32}, "wider than the patch at stage2.mask_file_path, k.npy: got 1 x 41"),
        ((31, 31), {"patch_size": 32}, r"hides more than half of a patch .*: got 961 of 1024 pixels, "),
        ((3, 3, 3), {"patch_size": 32}, "is for patches of volumes"),
        ((9, 3, 3), {"patch_size": (8, 32, 32)}, r"9 x 3 x 3, expected at most 8 x 32 x 32 \(z, y, x\)"),
        ((41, 41), {"patch_size": 64, "num_layers": 1}, "hides all that the network sees"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_before_work(
    shape: tuple[int, ...], options: dict[str, object], message: str
) -> None:
    with pytest.raises(BadRequest, match=message) as caught:
        check_kernel_file(
            NoiseKernel.from_mask(np.ones(shape)),
            TrainingOptions(mask_percentage=0.2, **options),  # type: ignore[arg-type]
            "k.npy",
        )
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, PatchTooLarge) == ("wider" in message or "at most" in message)


def test_files_that_fit_are_taken() -> None:
    for shape, patch in (((1, 31), 32), ((3, 3), (8, 32, 32)), ((3, 3, 3), (8, 32, 32))):
        kernel = NoiseKernel.from_mask(np.ones(shape))
        check_kernel_file(kernel, TrainingOptions(patch_size=patch), "k.npy")  # type: ignore[arg-type]


def test_lags_that_no_window_holds_are_refused_before_work() -> None:
    images = [as_image(np.zeros((4, 48, 100), np.uint8)), as_image(np.zeros((300, 300)))]
    check_center_size(StructuralNoiseExtractor(center_size=49), images)
    check_center_size(StructuralNoiseExtractor("rings", center_size=95), images)
    for extractor in (
        StructuralNoiseExtractor(center_size=51),
        StructuralNoiseExtractor("rings", center_size=96),
    ):
        with pytest.raises(BadRequest, match=r"extractor\.center_size: got .* windows of 48 pixels"):
            check_center_size(extractor, images)


# ---- the section "extractor" of a job


def job(**extractor: object) -> JobConfig:
    return JobConfig.load({"input": "in", "output": "out", "extractor": extractor})


def test_a_job_takes_every_setting_of_both_methods() -> None:
    assert job().extractor.method == "significance"
    significant = job(floor=0.05, relative_floor=0.2, false_alarm=0.05, minimum_windows=9, center_size=9)
    assert significant.extractor.extractor().settings.floor == 0.05  # type: ignore[union-attr]
    rings = job(
        norm_autocorr=True, log_autocorr=False, crop_autocorr=True, adapt_autocorr=False, adapt_CB=40,
        adapt_DF=0.5, center_size=21, base_percentile=40, percentile_decay=1.1, center_ratio_threshold=0.2,
        use_center_proximity=False, center_proximity_threshold=0.9, keep_center_component_only=False,
        max_true_pixels=40,
    )  # fmt: skip
    made = rings.extractor.extractor()
    assert (made.method, made.settings.max_true_pixels) == ("rings", 40)
    assert rings.extractor.method == "rings"  # the resolved job file names it
    assert JobConfig.load(rings.model_dump()).identity() == rings.identity()


@pytest.mark.parametrize(
    ("extractor", "message"),
    [
        ({"method": "significance", "base_percentile": 50}, "base_percentile"),
        ({"method": "rings", "floor": 0.1}, "floor"),
        ({"floor": 0.1, "adapt_DF": 1}, "cannot be mixed"),
        ({"floor": 3}, "floor"),
        ({"base_percentile": -1}, "base_percentile"),
        ({"center_size": 10}, "odd"),
        ({"colour": 1}, "colour"),
        ({"method": "magic"}, "method"),
    ],
)
def test_settings_of_a_job_are_refused_by_name(extractor: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        job(**extractor)
    assert "extractor" in str(caught.value)
