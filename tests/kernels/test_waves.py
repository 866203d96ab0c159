"""Waves of a plane: the same from any order of reading, exact, and none where the phase wanders."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.kernels.cell_sums import CellSums, cell_edges
from denoizarr.kernels.wave_fit import fit_waves, plane_without_waves
from denoizarr.kernels.waves import Wave, less_waves, wave_values


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def wave(shape, frequency, amplitude=1.0, phase=0.7):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return amplitude * np.cos(2 * np.pi * (frequency[0] * y + frequency[1] * x) + phase)


def fitted(plane, *frequencies):
    sums = CellSums(plane.shape, frequencies)
    sums.add((0, 0), plane)
    return fit_waves(sums)


def test_cells_take_the_rest_of_an_axis() -> None:
    for size in (128, 200, 255, 256, 300, 512, 700, 1104, 8192):
        edges = cell_edges(size)
        assert edges is not None
        sides = np.diff(edges)
        assert edges[0] == 0
        assert edges[-1] == size
        assert len(sides) >= 8
        assert (sides[:-1] == sides[0]).all()
        assert sides[0] <= sides[-1] < 2 * sides[0]
    assert cell_edges(127) is None


def test_windows_are_hann_windowed_sums() -> None:
    plane, frequency = noise((260, 300)), (0.11, -0.083)
    sums = CellSums(plane.shape, [frequency])
    sums.add((0, 0), plane)
    windows = sums.windows()
    rows, columns = sums.edges
    theta = 2 * np.pi * (frequency[0] * np.arange(260)[:, None] + frequency[1] * np.arange(300)[None])

    def hann(edges, k):
        place = np.interp(np.arange(edges[-1]) + 0.5, edges[k : k + 3], [0, 0.5, 1], left=0, right=1)
        return np.sin(np.pi * place) ** 2

    for j in (0, 3, windows.shape[0] - 1):
        for k in (0, 2, windows.shape[1] - 1):
            weights = np.outer(hann(rows, j), hann(columns, k))
            assert windows[j, k, 1] == pytest.approx((plane * weights * np.exp(-1j * theta)).sum(), abs=1e-9)
            assert windows[j, k, 0] == pytest.approx((plane * weights).sum(), abs=1e-9)


@settings(max_examples=15)
@given(st.data())
def test_sums_are_the_same_in_any_pieces(data: st.DataObject) -> None:
    plane = noise((150, 210), 3).astype(np.float32) * 1000
    frequencies = [(0.0, 0.125), (0.21, -0.04)]
    whole, pieces = CellSums(plane.shape, frequencies), CellSums(plane.shape, frequencies)
    whole.add((0, 0), plane)
    rows, columns = whole.edges
    cuts = [sorted({0, len(e) - 1, *data.draw(st.lists(st.integers(0, len(e) - 1)))}) for e in whole.edges]
    boxes = [(a, b, c, d) for a, b in pairwise(cuts[0]) for c, d in pairwise(cuts[1])]
    for top, bottom, left, right in data.draw(st.permutations(boxes)):
        part = plane[rows[top] : rows[bottom], columns[left] : columns[right]]
        pieces.add((top, left), part.copy() if data.draw(st.booleans()) else part)
    assert whole.sums.tobytes() == pieces.sums.tobytes()
    assert fit_waves(whole) == fit_waves(pieces)


@pytest.mark.parametrize(
    "frequency", [(0.0, 0.125), (0.0611, 0.0833), (-0.21, 0.04), (0.0, 0.5), (0.5, 0.5), (0.5, 0.2)]
)
@pytest.mark.parametrize("offset", [0.0, 30000.0])
def test_a_wave_alone_is_fitted_exactly(frequency: tuple[float, float], offset: float) -> None:
    phase = 0.0 if 2 * frequency[0] % 1 == 0 and 2 * frequency[1] % 1 == 0 else 0.7
    line = wave((300, 520), frequency, 2.0, phase)
    near = (frequency[0] + 4e-4, frequency[1] - 7e-4) if max(frequency) < 0.5 else frequency
    (found,) = fitted(line + offset, near)
    left = line - wave_values(found, line.shape, (0, 0), line.shape)
    assert np.abs(left).max() < 2e-3
    assert found.amplitude == pytest.approx(2.0, rel=1e-3)


def test_waves_are_fitted_together() -> None:
    shape, frequencies = (512, 512), [(0.0, 0.125), (0.004, 0.14), (0.0, 0.25)]
    lines = sum(
        wave(shape, f, a, p) for f, a, p in zip(frequencies, (5, 3, 1), (0.1, 2.0, -1.0), strict=True)
    )
    left = plane_without_waves(lines + 0.5 * noise(shape), frequencies) - 0.5 * noise(shape)
    assert (left**2).mean() < 1e-4 * (lines**2).mean()


def test_the_far_end_of_a_long_plane_is_in_phase() -> None:
    """A frequency wrong by 1e-4 alone would be out by eight tenths of a cycle at pixel 8192."""
    shape, frequency = (256, 8192), (0.0611, 0.0833)
    line = wave(shape, frequency, 5.0)
    plane = (line + 20 * noise(shape) + 200).astype(np.float32)
    (found,) = fitted(plane, (frequency[0] + 1e-4, frequency[1] - 1e-4))
    left = line - wave_values(found, shape, (0, 0), shape)
    assert (left[:, -512:] ** 2).mean() < 1e-3 * (line**2).mean()
    drifted = line - wave(shape, (frequency[0] + 1e-4, frequency[1] - 1e-4), 5.0)
    assert (drifted[:, -512:] ** 2).mean() > (line**2).mean()  # the negative control


@settings(max_examples=20)
@given(st.data())
def test_any_box_equals_that_part_of_the_whole(data: st.DataObject) -> None:
    plane = (100 * noise((170, 233))).astype(data.draw(st.sampled_from(["float32", "int16", "float64"])))
    waves = [Wave((0.0613, 0.0977), 3.1, 0.4), Wave((0.0, 0.125), 7.0, -2.0)]
    whole = np.empty(plane.shape, np.float32)
    less_waves(plane, waves, plane.shape, (0, 0), whole)
    expected = plane - sum(wave(plane.shape, w.frequency, w.amplitude, w.phase) for w in waves)
    np.testing.assert_allclose(whole, expected, atol=1e-4)
    start = tuple(data.draw(st.integers(0, n - 1)) for n in plane.shape)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, plane.shape, strict=True))
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    part = np.empty(plane[box].shape, np.float32)
    less_waves(plane[box], waves, plane.shape, start, part)
    assert part.tobytes() == whole[box].tobytes()


def test_what_wanders_in_phase_is_no_wave() -> None:
    shape, frequency = (512, 512), (0.0, 0.11)
    x = np.arange(shape[1]) + np.zeros(shape)
    wander = scipy.ndimage.gaussian_filter(noise(shape, 1), 40)
    for radians, there in ((3.0, False), (0.1, True)):
        texture = 10 * np.cos(2 * np.pi * frequency[1] * x + radians * wander / wander.std()) + noise(
            shape, 2
        )
        (found,) = fitted(texture, frequency)
        assert (found.amplitude > 0) == there
    plane = 5 * noise(shape, 3)
    edge = plane + 300.0 * (x > 205) + 200.0 * (np.abs(x - 333) < 2)
    for other in (plane, edge, edge.T, np.zeros(shape), np.full(shape, np.nan)):
        assert [w.amplitude for w in fitted(other, frequency, (0.11, 0.0), (0.21, 0.3))] == [0.0] * 3
    assert plane_without_waves(plane, [frequency]) is plane


def test_windows_full_of_structure_do_not_decide() -> None:
    shape, frequency = (512, 512), (0.0, 0.125)
    line, bright = wave(shape, frequency, 4.0), np.zeros(shape)
    bright[100:300, 150:350] = 60 * scipy.ndimage.gaussian_filter(noise((200, 200), 5), 1.5) / 0.18
    (found,) = fitted(line + bright + 5 * noise(shape), frequency)
    left = line - wave_values(found, shape, (0, 0), shape)
    assert (left**2).mean() < 1e-2 * (line**2).mean()


def test_small_planes_and_slow_waves_are_left_alone() -> None:
    small = wave((100, 600), (0.0, 0.125), 9.0)
    assert plane_without_waves(small, [(0.0, 0.125)]) is small
    slow = wave((512, 512), (0.0, 0.01), 9.0)
    assert plane_without_waves(slow, [(0.0, 0.01)]) is slow
    assert plane_without_waves(slow, []) is slow
