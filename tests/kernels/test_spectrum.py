"""Lines in the mean spectrum: found to a thousandth of their period, and in nothing else."""

from __future__ import annotations

from functools import cache
from math import hypot

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.errors import BadRequest
from denoizarr.kernels.spectrum import MeanPower, find_lines, grouped, mean_power, without_waves

SIDE = 512
Y, X = np.mgrid[:SIDE, :SIDE]
PATTERNS = {
    "sine": np.sin(2 * np.pi * X / 8),
    "every eighth column": (X % 8 == 0).astype(float),
    "ramps": (X % 8) / 8,
    "two rows of eight": (Y % 8 < 2).astype(float),
    "diagonal": np.sin(2 * np.pi * (0.083 * X + 0.061 * Y)),
    "falling diagonal": np.sin(2 * np.pi * (0.083 * X - 0.061 * Y)),
}
PERIODS = dict.fromkeys(PATTERNS, 8.0) | dict.fromkeys(
    ("diagonal", "falling diagonal"), 1 / hypot(0.083, 0.061)
)


def windows_of(image, side=64):
    rows, columns = image.shape[0] // side, image.shape[1] // side
    cut = image[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return cut.swapaxes(1, 2).reshape(-1, side, side)


def noise(kind, seed, shape=(SIDE, SIDE)):
    white = np.random.default_rng(seed).normal(size=shape)
    if kind == "boxed":
        return 3 * scipy.ndimage.uniform_filter1d(white, 9, axis=1)
    if kind == "blurred":
        return 5 * scipy.ndimage.gaussian_filter(white, 1.5)
    return white


@cache
def structure(seed, shape=(SIDE, SIDE)):
    """Discs, straight edges and a fibre, of a clean image."""
    random = np.random.default_rng(seed)
    image = np.zeros(shape)
    for _ in range(60):
        y, x, r = random.integers(0, shape[0]), random.integers(0, shape[1]), random.integers(4, 25)
        image += random.uniform(20, 200) * ((Y - y) ** 2 + (X - x) ** 2 < r**2)
    image += 100.0 * (X > 200) + 60.0 * (0.7 * X + 0.4 * Y > 250) + 80.0 * (np.abs(Y - 300) < 3)
    return scipy.ndimage.gaussian_filter(image, 1.0)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("level", [0.0, 0.5, 2.0])
def test_a_pattern_is_found_with_its_period(name: str, level: float) -> None:
    pattern = PATTERNS[name] - PATTERNS[name].mean()
    image = 10 * pattern / pattern.std() + 10 * level * noise("white", 1)
    lines = find_lines(windows_of(image))
    assert len({line.period for line in lines}) == 1
    assert all(abs(line.period / PERIODS[name] - 1) < (3e-3 if level > 1 else 1e-3) for line in lines)
    assert len({line.harmonic for line in lines}) == len(lines)
    assert len(lines) == {"sine": 1, "diagonal": 1, "falling diagonal": 1, "two rows of eight": 3}.get(
        name, 4
    )


@pytest.mark.parametrize("kind", ["white", "boxed", "blurred"])
def test_a_line_is_found_under_structure_and_noise(kind: str) -> None:
    image = structure(3) + 10 * noise(kind, 3) + 15 * PATTERNS["falling diagonal"]
    (line,) = find_lines(windows_of(image))
    # Windows of unknown places tell no more; whole planes do (tests/images/test_periodic.py).
    assert abs(line.period / PERIODS["diagonal"] - 1) < 1e-2
    assert line.direction == pytest.approx(np.degrees(np.arctan2(-0.061, 0.083)), abs=1.0)


@pytest.mark.parametrize("kind", ["white", "boxed", "blurred"])
@pytest.mark.parametrize("side", [64, 128])
def test_noise_has_no_lines(kind: str, side: int) -> None:
    assert not any(find_lines(windows_of(noise(kind, seed), side)) for seed in range(4))


@pytest.mark.parametrize("level", [0.0, 1.0, 30.0])
def test_structure_has_no_lines(level: float) -> None:
    for seed in range(2):
        assert find_lines(windows_of(structure(seed) + level * noise("white", seed))) == ()


def test_a_texture_in_few_windows_is_no_line_of_the_image() -> None:
    image = 5 * noise("white", 4)
    image[:64] += 200 * PATTERNS["sine"][:64]  # one window in eight
    assert find_lines(windows_of(image)) == ()
    assert len(find_lines(windows_of(image)[:8])) == 1  # the negative control: in those, it is


@settings(max_examples=10)
@given(st.floats(0.07, 0.47), st.floats(-0.47, 0.47), st.integers(0, 99))
def test_any_frequency_is_refined_between_bins(fx: float, fy: float, seed: int) -> None:
    image = np.sin(2 * np.pi * (fx * X[:256] + fy * Y[:256])) + noise("white", seed)[:256]
    (line,) = find_lines(windows_of(image))
    assert np.abs(np.subtract(line.frequency, (fy, fx))).max() < 5e-4


def test_windows_of_any_order_and_scale_count_alike() -> None:
    windows = windows_of(PATTERNS["sine"] + noise("white", 5))
    scaled = windows * np.random.default_rng(0).uniform(0.1, 1000, (len(windows), 1, 1)) + 5000
    for other in (windows[::-1], scaled):
        (first,), (second,) = find_lines(windows), find_lines(other)
        assert first.frequency == pytest.approx(second.frequency, abs=1e-9)


def test_few_constant_and_spoilt_windows_tell_nothing() -> None:
    windows = windows_of(PATTERNS["sine"])
    assert find_lines(windows[:7]) == ()
    assert find_lines(np.full_like(windows, 3.0)) == ()
    assert find_lines(np.full_like(windows, np.nan)) == ()
    mixed = np.concatenate([np.full((5, 64, 64), 7.0), np.full((5, 64, 64), np.inf), windows])
    assert len(find_lines(mixed)) == 1


@pytest.mark.parametrize("shape", [(64, 64), (20, 15, 64)])
def test_what_is_no_window_is_refused(shape: tuple[int, ...]) -> None:
    for function in (find_lines, mean_power):
        with pytest.raises(BadRequest):
            function(np.zeros(shape))


def test_spectra_of_parts_merge_to_that_of_the_whole() -> None:
    windows = windows_of(structure(1) + noise("white", 1))
    whole = mean_power(windows)
    merged = MeanPower.merged(
        [mean_power(windows[:20]), mean_power(windows[20:21]), mean_power(windows[21:])]
    )
    assert merged.windows == whole.windows == len(windows)
    np.testing.assert_allclose(merged.power, whole.power, rtol=1e-12)
    np.testing.assert_allclose(merged.excess, whole.excess, rtol=1e-9, atol=1e-9)


def test_the_power_of_white_noise_is_one() -> None:
    power = mean_power(windows_of(noise("white", 2)))
    inside = power.power[3:-3, 3:-3] / power.windows
    assert inside.mean() == pytest.approx(1.0, abs=0.02)


def test_waves_are_taken_out_of_windows_by_least_squares() -> None:
    windows = windows_of(noise("white", 6) + 50)[:9]
    frequencies = [(0.0, 0.125), (0.061, 0.083), (0.0, 0.5)]
    waves = sum(
        a * np.cos(2 * np.pi * (fy * Y[:64, :64] + fx * X[:64, :64]) + 0.3)
        for a, (fy, fx) in zip((5, 3, 2), frequencies, strict=True)
    )
    plain = without_waves(windows, frequencies)
    np.testing.assert_allclose(without_waves(windows + waves, frequencies), plain, atol=1e-9)
    assert np.abs(plain.mean() - 50) < 0.1
    np.testing.assert_array_equal(without_waves(windows, []), windows)


def test_harmonics_share_a_fundamental_also_beyond_half_a_cycle() -> None:
    windows = windows_of((X % 7 == 0) * 60.0 + 10 * noise("white", 2))
    lines = find_lines(windows)
    assert sorted(line.harmonic for line in lines) == [1, 2, 3]
    third = next(line for line in lines if line.harmonic == 3)
    folded = [line for line in lines if line.frequency[1] > 0.4]
    assert third in folded
    assert len({line.fundamental for line in lines}) == 1
    assert lines[0].period == pytest.approx(7, rel=1e-4)


def test_lines_that_are_no_harmonics_stay_apart() -> None:
    image = PATTERNS["sine"] + np.sin(2 * np.pi * 0.3071 * Y) + noise("white", 1)
    lines = find_lines(windows_of(image))
    assert sorted(round(line.period, 2) for line in lines) == [3.26, 8.0]
    assert all(line.harmonic == 1 and line.fundamental == line.frequency for line in lines)
    assert grouped([], (64, 64)) == ()
