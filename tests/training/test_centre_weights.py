"""What a model keeps of a voxel's own value: measured after training, applied, saved, checked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate, gaussian_filter

from denoizarr import Denoiser, TrainingOptions, train
from denoizarr.errors import BadRequest, ConfigError
from denoizarr.training import training_job
from denoizarr.training.centre_weights import CentreWeights

OPTIONS = TrainingOptions(
    patch_size=32, num_epochs=2, patches_per_epoch=320, features=8, num_layers=1, threads=1, device="cpu"
)


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    truth = 300 * np.abs(gaussian_filter(rng.standard_normal((256, 256)), 2)) + 20
    noisy = (truth + rng.standard_normal(truth.shape) * 8).astype(np.float32)
    return truth, noisy, train(noisy, options=OPTIONS, progress=False)


def test_it_comes_closer_to_the_truth(cells):
    truth, noisy, denoiser = cells
    assert denoiser.centre is not None
    blind = denoiser.with_centre(None).denoise(noisy)
    errors = [np.mean((image - truth) ** 2) for image in (blind, denoiser.denoise(noisy))]
    assert errors[1] < 0.95 * errors[0]


def test_it_is_the_plain_definition(cells):
    _, noisy, denoiser = cells
    (curve,) = denoiser.centre
    blind = denoiser.with_centre(None).to(precision="float64").denoise(noisy)
    expected = blind + np.interp(blind, curve.levels, curve.weights) * (noisy - blind)
    found = denoiser.to(precision="float64").denoise(noisy)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_of_noise_alone_next_to_nothing_is_kept():
    noise = np.random.default_rng(1).normal(100, 10, (256, 256)).astype(np.float32)
    denoiser = train(noise, options=OPTIONS, progress=False)
    blind, kept = denoiser.with_centre(None).denoise(noise), denoiser.denoise(noise)
    assert np.std(kept - blind) < 0.05 * np.std(noise)


def test_it_is_measured_the_same_again(cells):
    _, noisy, denoiser = cells
    again = train(noisy, options=OPTIONS, progress=False)
    assert again.centre == denoiser.centre
    assert again.digest == denoiser.digest


def test_it_is_measured_with_the_threads_of_the_training(cells, monkeypatch):
    _, noisy, denoiser = cells
    threads = []
    measure = training_job.measure_centre_weights

    def measured(*arguments):
        threads.append(torch.get_num_threads())
        return measure(*arguments)

    monkeypatch.setattr(training_job, "measure_centre_weights", measured)
    before = torch.get_num_threads()
    torch.set_num_threads(OPTIONS.threads + 1)
    try:
        again = train(noisy, options=OPTIONS, progress=False)
        after = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert threads == [OPTIONS.threads]
    assert after == OPTIONS.threads + 1
    assert again.digest == denoiser.digest


def test_it_is_saved_with_the_model(cells, tmp_path):
    _, noisy, denoiser = cells
    denoiser.save(tmp_path / "model")
    loaded = Denoiser.load(tmp_path / "model")
    assert loaded.centre == denoiser.centre
    assert loaded.digest == denoiser.digest != denoiser.with_centre(None).digest
    np.testing.assert_array_equal(loaded.denoise(noisy), denoiser.denoise(noisy))


def test_it_can_be_left_out(cells):
    _, noisy, _ = cells
    options = TrainingOptions(
        **{name: getattr(OPTIONS, name) for name in OPTIONS.__slots__} | {"use_centre": False}
    )
    assert train(noisy, options=options, progress=False).centre is None


def test_a_target_leaves_nothing_to_keep(cells):
    truth, noisy, _ = cells
    assert train(noisy, target=truth.astype(np.float32), options=OPTIONS, progress=False).centre is None


def test_a_kernel_without_room_for_two_leaves_the_answer_as_it_is(cells):
    _, noisy, _ = cells
    cross = np.zeros((31, 31), bool)
    cross[15] = cross[:, 15] = True  # its nearest independent lag is (1, 1): 33 x 33 do not fit into 32
    short = replace(OPTIONS, num_epochs=1, patches_per_epoch=32, mask_percentage=0.4)
    assert train(noisy, blind_spot=cross, options=short, progress=False).centre is None


@pytest.mark.parametrize(
    ("levels", "weights"),
    [((1.0,), (0.5,)), ((1.0, 1.0), (0, 0)), ((2.0, 1.0), (0, 0)), ((1.0, 2.0), (0, 1.5)), ((1.0, 2.0), (0,)),
     ((1.0, float("nan")), (0, 0)), ((1.0, 2.0), (float("nan"), 0)), ((1.0, 1.0 + 1e-12), (0, 0))],
)  # fmt: skip
def test_weights_that_make_no_sense_are_refused(levels, weights):
    with pytest.raises(ConfigError, match="centre"):
        CentreWeights(levels, weights)


def test_a_model_takes_weights_for_each_channel_only(cells):
    _, _, denoiser = cells
    with pytest.raises(ConfigError, match="channel"):
        denoiser.with_centre(denoiser.centre * 2)


# ---- noise that is correlated on all sides: the mean over a footprint is kept


@pytest.fixture(scope="module")
def blurred():
    """Cells under noise as resampling leaves it, and what a kernel of 3 x 3 makes of it."""
    rng = np.random.default_rng(5)
    truth = 300 * np.abs(gaussian_filter(rng.standard_normal((256, 256)), 2.5)) + 20
    noise = rng.standard_normal((257, 257))
    noise = 12 * (noise[1:, 1:] + noise[:-1, 1:] + noise[1:, :-1] + noise[:-1, :-1]) / 2
    noisy = (truth + noise).astype(np.float32)
    options = replace(OPTIONS, num_epochs=3)
    return truth, noisy, train(noisy, blind_spot=np.ones((3, 3), bool), options=options, progress=False)


def test_a_footprint_comes_closer_than_the_pixel_alone_and_than_nothing(blurred):
    truth, noisy, denoiser = blurred
    assert denoiser.footprint is not None
    assert denoiser.footprint.shape == (3, 3)
    models = (denoiser.with_centre(None), denoiser.with_centre(denoiser.centre), denoiser)
    blind, _, kept = (np.mean((model.denoise(noisy) - truth) ** 2) for model in models)
    assert kept < 0.95 * blind


def test_a_footprint_is_the_plain_definition(blurred):
    _, noisy, denoiser = blurred
    (curve,) = denoiser.centre
    noisy = noisy.astype(np.float64)
    blind = denoiser.with_centre(None).to(precision="float64").denoise(noisy)
    shifted = blind + np.interp(blind, curve.shift_levels, curve.shifts)
    ones = np.ones((3, 3))
    over = correlate(noisy - shifted, ones, mode="constant") / correlate(
        np.ones_like(noisy), ones, mode="constant"
    )
    expected = shifted + np.interp(blind, curve.levels, curve.weights) * over
    np.testing.assert_allclose(denoiser.to(precision="float64").denoise(noisy), expected, rtol=0, atol=1e-9)


def test_a_tile_reads_so_much_more_that_it_equals_the_whole(blurred):
    _, noisy, denoiser = blurred
    (network,) = set(denoiser.with_centre(None).halo)
    assert denoiser.halo == (network + 1,) * 2
    exact, start, side = denoiser.to(precision="float64"), 64, 96
    whole = exact.run_tile(noisy)
    tile = exact.run_tile(noisy[start : start + side, start : start + side])
    h = denoiser.halo[0]
    inner = slice(start + h, start + side - h)
    np.testing.assert_allclose(tile[h:-h, h:-h], whole[inner, inner], rtol=0, atol=1e-9)
    # One less would not do.
    assert np.abs(tile - whole[start : start + side, start : start + side])[h - 1].max() > 1e-9


def test_a_footprint_is_saved_and_a_damaged_one_refused(blurred, tmp_path):
    _, noisy, denoiser = blurred
    loaded = Denoiser.load(denoiser.save(tmp_path / "model"))
    np.testing.assert_array_equal(loaded.footprint, denoiser.footprint)
    assert loaded.digest == denoiser.digest != denoiser.with_centre(denoiser.centre).digest
    np.testing.assert_array_equal(loaded.denoise(noisy), denoiser.denoise(noisy))
    with pytest.raises(BadRequest):
        denoiser.with_centre(denoiser.centre, np.ones((2, 3), bool))


@pytest.mark.parametrize(
    "shift", [((1.0,), (0.5,)), ((1.0, 2.0), (0.5,)), ((2.0, 1.0), (0, 0)), ((), (1.0,))]
)
def test_shifts_that_make_no_sense_are_refused(shift):
    with pytest.raises(ConfigError, match="shifts"):
        CentreWeights((1.0, 2.0), (0.1, 0.2), *shift)


def test_only_a_footprint_comes_with_a_shift(cells, blurred):
    assert all(not curve.shifts for curve in cells[2].centre)
    assert all(len(curve.shifts) >= 2 for curve in blurred[2].centre)
