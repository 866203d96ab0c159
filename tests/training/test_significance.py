from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.signal import fftconvolve

from denoizarr.errors import BadRequest, EmptyIndex
from denoizarr.training import noise_sample
from denoizarr.training.lag_fit import correlated_share, fit_lags
from denoizarr.training.significance import SignificanceSettings, StructuralNoise, find_significant


def correlated(random: np.random.Generator, shape: tuple[int, ...], kernel: np.ndarray) -> np.ndarray:
    """White noise of variance 1, correlated by a kernel, for every one of ``shape[0]`` windows."""
    wide = (shape[0], *(n + k - 1 for n, k in zip(shape[1:], kernel.shape, strict=True)))
    scaled = (kernel / np.sqrt((kernel**2).sum()))[None]
    return np.asarray(fftconvolve(random.standard_normal(wide), scaled, mode="valid"))


def structure(random: np.random.Generator, count: int, steepness: float = 2.5) -> np.ndarray:
    """Windows of random structure, each of its own strength, whose power falls with frequency."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64), indexing="ij"))
    spectrum = (np.maximum(frequency, 1 / 64) * 64) ** -steepness * np.exp(-((frequency / 0.15) ** 2))
    plain = np.fft.ifft2(np.fft.fft2(random.standard_normal((count, 64, 64))) * spectrum).real
    strength = random.lognormal(0.0, 0.7, (count, 1, 1))
    return np.asarray(strength * plain / plain.std())


def shape_of(found: StructuralNoise) -> tuple[int, ...]:
    return found.mask.shape


@pytest.mark.parametrize("strength", [0.0, 3.0])
def test_structure_in_every_window_does_not_hide_a_row(strength: float) -> None:
    random = np.random.default_rng(0)
    scene = strength * structure(random, 100)
    found = find_significant(scene + correlated(random, (100, 64, 64), np.ones((1, 5))))
    assert shape_of(found) == (1, 9)
    assert found.mask.all()
    assert abs(found.autocorrelation[24, 25] - 0.8) < 0.03
    assert not found.note


@pytest.mark.parametrize("white", [0.0, 0.5])
def test_structure_in_every_window_is_no_kernel(white: float) -> None:
    random = np.random.default_rng(1)
    found = find_significant(structure(random, 100) + white * random.standard_normal((100, 64, 64)))
    assert found.mask.tolist() == [[True]]


def test_a_round_kernel_is_found_among_structure() -> None:
    random = np.random.default_rng(2)
    found = find_significant(2 * structure(random, 100) + correlated(random, (100, 64, 64), np.ones((3, 3))))
    assert found.mask[found.mask.shape[0] // 2 - 1 :, found.mask.shape[1] // 2 - 1 :][:3, :3].all()
    assert shape_of(found) == (5, 5)


def test_noise_of_volumes_has_lags_along_z() -> None:
    random = np.random.default_rng(3)
    row = find_significant(correlated(random, (24, 8, 48, 48), np.ones((1, 1, 3))))
    assert shape_of(row) == (1, 1, 5)
    assert row.autocorrelation.ndim == row.z_scores.ndim == 3
    deep = find_significant(correlated(random, (24, 8, 48, 48), np.ones((2, 1, 1))))
    assert shape_of(deep) == (3, 1, 1)
    white = find_significant(random.standard_normal((24, 8, 48, 48)))
    assert shape_of(white) == (1, 1, 1)


def test_lines_are_reported_and_not_hidden() -> None:
    random = np.random.default_rng(4)
    phases = 2 * np.pi * (np.arange(64) / 8 + random.random((64, 1, 1)))
    found = find_significant(random.standard_normal((64, 64, 64)) + 2 * np.sin(phases))
    assert len(found.periods) == 1
    assert abs(found.periods[0] - 8) < 0.02
    assert shape_of(found) == (1, 1)
    assert not find_significant(random.standard_normal((64, 64, 64))).periods


def test_a_stream_gives_what_the_whole_gives_however_it_is_cut() -> None:
    windows = correlated(np.random.default_rng(5), (90, 32, 32), np.ones((1, 3)))
    whole = find_significant(windows)
    for size in (7, 50):
        batches = (windows[first : first + size] for first in range(0, 90, size))
        found = find_significant(batches)
        assert np.array_equal(found.autocorrelation, whole.autocorrelation)
        assert np.array_equal(found.mask, whole.mask)


def test_of_many_windows_the_flattest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_sample, "MOST_PIXELS", 40 * 64 * 64)
    random = np.random.default_rng(6)
    flat, busy = random.standard_normal((40, 64, 64)), 5 * structure(random, 300)

    def stream() -> Iterator[np.ndarray]:
        for first in range(0, 300, 50):
            yield busy[first : first + 50]
            yield flat[first // 50 * 7 : first // 50 * 7 + 7]

    kept, count = noise_sample.flattest_windows(stream())
    assert len(kept) == 40
    assert count == 340
    assert np.array_equal(kept, flat)


def test_faint_noise_needs_a_clear_correlation() -> None:
    random = np.random.default_rng(7)
    scene = 20 * structure(random, 100, 6.0)
    weak = random.standard_normal((100, 64, 64)) + 0.5 * correlated(random, (100, 64, 64), np.ones((1, 3)))
    assert shape_of(find_significant(scene + weak)) == (1, 1)
    assert shape_of(find_significant(scene / 20 + weak)) == (1, 5)
    assert shape_of(find_significant(scene + correlated(random, (100, 64, 64), np.ones((1, 3))))) == (1, 5)


def test_the_share_of_white_noise_on_top_is_told() -> None:
    row = np.array([[0, 0.05, 0.1, 0.15, 1, 0.15, 0.1, 0.05, 0]])
    assert correlated_share(row) == pytest.approx(0.2)
    assert correlated_share(np.array([[0, 0.0, 1, 0.0, 0]])) == 0


def test_frequencies_that_are_not_known_are_extrapolated() -> None:
    windows = correlated(np.random.default_rng(8), (400, 64, 64), np.ones((3, 3)))
    spectrum = noise_sample.measure_spectrum(windows, 20)
    frequency = noise_sample.radii((64, 64))
    blind = replace(
        spectrum, power=np.where(frequency < 0.24, np.nan, spectrum.power), radius=0.24, trusted=0.24
    )
    fit = fit_lags(blind, (8, 8), 4.5, 2.7, 0.085)
    box = np.array([1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])
    np.testing.assert_allclose(fit.checked[6:11, 6:11], np.outer(box, box), atol=0.05)


def test_windows_of_volumes_are_cut_in_four_where_there_are_few() -> None:
    random = np.random.default_rng(9)
    found = find_significant(random.standard_normal((6, 4, 64, 64)))
    assert found.window_size == 32
    with pytest.raises(EmptyIndex, match="20 or more"):
        find_significant(random.standard_normal((4, 64, 64)))
    with pytest.raises(EmptyIndex, match="too few windows"):
        find_significant(iter(()))
    with pytest.raises(BadRequest, match="wrong shape"):
        find_significant(np.zeros((64, 64)))


@pytest.mark.parametrize(
    "wrong",
    [{"center_size": 4}, {"floor": 0.0}, {"false_alarm": 1.0}, {"minimum_windows": 2}, {"floor": "much"},
     {"center_size": 5.5}, {"max_true_pixels": "all"}, {"max_true_pixels": 2.5}, {"minimum_windows": 20.5}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=next(iter(wrong))):
        SignificanceSettings(**wrong)
