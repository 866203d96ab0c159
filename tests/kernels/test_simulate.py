from __future__ import annotations

import numpy as np
import pytest

from denoizarr.errors import BadRequest
from denoizarr.kernels.simulate import Microscope, Simulation, scan_noise, simulate_stack


@pytest.fixture(scope="module")
def stack() -> Simulation:
    return simulate_stack((8, 256, 256), seed=0)


def correlation(noise: np.ndarray, dy: int, dx: int) -> float:
    height, width = noise.shape[-2:]
    return float((noise[..., dy:, dx:] * noise[..., : height - dy, : width - dx]).mean() / noise.var())


def test_the_same_seed_gives_the_same_stack_and_another_seed_another(stack: Simulation) -> None:
    again, other = simulate_stack((8, 256, 256), seed=0), simulate_stack((8, 256, 256), seed=1)
    assert np.array_equal(stack.noisy, again.noisy)
    assert np.array_equal(stack.truth, again.truth)
    assert not np.array_equal(stack.noisy, other.noisy)


def test_shapes_and_types(stack: Simulation) -> None:
    assert stack.truth.shape == stack.noisy.shape == (8, 256, 256)
    assert stack.truth.dtype == np.float32
    assert stack.noisy.dtype == np.uint16
    assert 5 <= stack.scan_length <= 11


def test_every_scan_length_is_drawn() -> None:
    found = {simulate_stack((1, 16, 16), seed=seed).scan_length for seed in range(80)}
    assert found == set(range(5, 12))


def test_the_noise_is_of_the_stated_size(stack: Simulation) -> None:
    scope = stack.microscope
    noise = (stack.noisy - stack.truth) / scope.gain_levels_per_photon
    photons = (stack.truth - scope.offset_levels) / scope.gain_levels_per_photon
    expected = photons.mean() + scope.read_noise_photons**2 + scope.scan_noise_photons**2
    assert abs(noise.mean()) < 0.05
    assert noise.var() == pytest.approx(expected, rel=0.02)
    assert photons.max() == pytest.approx(scope.brightest_photons, rel=1e-3)
    assert (stack.noisy == 0).mean() < 1e-3


def test_the_noise_is_correlated_along_the_scan_line_alone(stack: Simulation) -> None:
    noise = stack.noisy - stack.truth
    share = (stack.microscope.scan_noise_photons * stack.microscope.gain_levels_per_photon) ** 2 / noise.var()
    length = stack.scan_length
    for lag in range(1, 14):
        assert correlation(noise, 0, lag) == pytest.approx(share * max(1 - lag / length, 0), abs=0.015)
    for lag in range(1, 4):
        assert abs(correlation(noise, lag, 0)) < 0.01
    assert abs(float((noise[1:] * noise[:-1]).mean() / noise.var())) < 0.01


def test_noise_is_plain_to_see_and_half_of_it_is_uncorrelated(stack: Simulation) -> None:
    scope = stack.microscope
    span = float(stack.truth.max() - stack.truth.min())
    noise = stack.noisy - stack.truth
    assert 20 < 20 * np.log10(span / noise.std()) < 25
    scan = (scope.scan_noise_photons * scope.gain_levels_per_photon) ** 2
    assert 0.3 < scan / noise.var() < 0.7


def test_the_specimen_has_background_and_structure_in_three_dimensions(stack: Simulation) -> None:
    scope = stack.microscope
    photons = (stack.truth - scope.offset_levels) / scope.gain_levels_per_photon
    assert 0.1 < (photons < 1.2 * scope.background_photons).mean() < 0.9
    assert np.abs(np.diff(photons, axis=0)).max() > 1


def test_noise_settings_do_not_change_the_specimen(stack: Simulation) -> None:
    quiet = simulate_stack((8, 256, 256), microscope=Microscope(scan_noise_photons=0, read_noise_photons=0))
    assert np.array_equal(quiet.truth, stack.truth)
    assert correlation(quiet.noisy - quiet.truth, 0, 1) == pytest.approx(0, abs=0.01)


def test_scan_noise_has_unit_variance_and_does_not_wrap() -> None:
    noise = scan_noise(np.random.default_rng(0), (4, 200, 200), 9)
    assert noise.dtype == np.float32
    assert noise.var() == pytest.approx(1, rel=0.03)
    assert abs(float((noise[..., 0] * noise[..., -1]).mean())) < 0.1


@pytest.mark.parametrize("shape", [(0, 8, 8), (8, 8)])
def test_a_shape_that_is_no_stack_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadRequest, match="shape of a stack"):
        simulate_stack(shape)  # type: ignore[arg-type]
