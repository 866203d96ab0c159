"""Waves that run through a whole plane: their exact frequency, amplitude and phase, from ``cell_sums``.

A wave has one phase in all windows, but for the drift that a wrong frequency makes, which tells the right
one. Structure has another phase in each, which is how the two are told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import atan2, pi
from typing import Any

import numpy as np
import scipy.fft

from .cell_sums import CellSums, Complex, Edges, cell_edges, window_centres, window_sums
from .waves import Floats, Frequency, Wave, less_waves

# A frequency is known to this beforehand, in cycles per pixel: an eighth of a cell's bin.
DRIFT = 1.0 / 512
# Fewer cycles in a window than these cannot be told from shading.
_FEWEST_CYCLES = 3.0
# How far the coherent power has to stand above that of all other drifts, and of those along y and along x.
# Random phases reach 20 once in 5e8 drifts, and rows of random brightness 10 along y once in 2e4; the edge of
# a structure that runs across a plane reaches 2 along the axis across it.
_COHERENT, _ALONG = 20.0, 10.0
# Frequencies as near as this, in cycles per pixel, disturb each other's sums.
_NEAR = 0.05
_ROBUST_STEPS = 8
# Of a bin of the whole plane: how near the search comes to the frequency.
_STEPS, _FINE_STEPS = (0.25, 0.1), (0.03, 0.01, 0.003)


def plane_without_waves(
    plane: np.ndarray[Any, Any], frequencies: Sequence[Frequency]
) -> np.ndarray[Any, Any]:
    """Return a plane in memory less the waves near some frequencies; itself where it has none.

    Parameters
    ----------
    plane : (y, x) array of any real type
    frequencies : sequence of (fy, fx)
        In cycles per pixel, right to 1/512.

    Returns
    -------
    (y, x) array
        float32; the plane itself where none is there, or where it is under 128 pixels on a side.
    """
    shape = (plane.shape[0], plane.shape[1])
    if not frequencies or any(cell_edges(n) is None for n in shape):
        return plane
    sums = CellSums(shape, frequencies)
    sums.add((0, 0), plane)
    waves = [wave for wave in fit_waves(sums) if wave.amplitude > 0.0]
    if not waves:
        return plane
    result = np.empty(shape, np.float32)
    less_waves(plane, waves, shape, (0, 0), result)
    return result


def fit_waves(sums: CellSums) -> tuple[Wave, ...]:
    """Return the wave near each frequency, exactly as it runs through the plane.

    Each frequency is moved to where all windows agree on the phase. A wave that stands less than 20 times
    above the coherent power at other frequencies nearby (10 times above those along either axis alone) is not
    there. Amplitude and phase are those that windows agree on: the more a window differs, the less it counts.
    """
    shape, frequencies = sums.shape, sums.frequencies
    windows = sums.windows()
    if not np.isfinite(windows).all():
        return tuple(Wave(frequency, 0.0, 0.0) for frequency in frequencies)
    windows = windows[..., 1:] - _of_means(sums, windows[..., 0])
    centres = tuple(window_centres(edges) for edges in sums.edges)
    refined: list[Frequency | None] = []
    tables: list[Complex] = []
    for number, frequency in enumerate(frequencies):
        table = windows[..., number]
        clipped = _clipped(table)
        drift = _drift(clipped, centres, shape, _coarse_drift(clipped, centres), (*_STEPS, *_FINE_STEPS))
        for _ in range(2):  # windows without structure know best
            weights = _weights(table * _turn(drift, centres, -1), np.ones(table.shape, np.complex128))
            drift = _drift(table * weights, centres, shape, drift, _FINE_STEPS)
        turned = table * _turn(drift, centres, -1)
        good = _is_resolved(frequency, sums.edges) and _is_coherent(turned)
        refined.append((frequency[0] + drift[0], frequency[1] + drift[1]) if good else None)
        tables.append(turned)
    return _amplitudes(sums, refined, tables, centres)


def _of_means(sums: CellSums, means: Complex) -> Complex:
    """Return what the mean of every window leaks into its sum at every frequency."""
    rows, columns = sums.edges
    weights = np.outer(window_sums(rows, 0.0).real, window_sums(columns, 0.0).real)
    leaks = [
        np.outer(window_sums(rows, -fy), window_sums(columns, -fx)) * (means / weights)
        for fy, fx in sums.frequencies
    ]
    return np.stack(leaks, axis=-1)


def _turn(drift: Frequency, centres: Sequence[Floats], sign: int) -> Complex:
    return np.outer(*(np.exp(sign * 2j * pi * d * c) for d, c in zip(drift, centres, strict=True)))


def _clipped(table: Complex) -> Complex:
    """Return a table whose largest values are cut to twice the median, so that few windows do not decide."""
    size = np.abs(table)
    most = 2.0 * float(np.median(size))
    if most == 0.0:
        return table
    cut: Complex = table * np.minimum(1.0, most / np.maximum(size, most))
    return cut


def _coarse_drift(table: Complex, centres: Sequence[Floats]) -> Frequency:
    """Return by about how much the frequency is to be moved for all windows to have one phase."""
    sizes = [4 * n for n in table.shape]
    power = np.abs(scipy.fft.fft2(table, sizes)) ** 2
    steps = [float(c[1] - c[0]) for c in centres]
    drifts = [scipy.fft.fftfreq(n, step) for n, step in zip(sizes, steps, strict=True)]
    power[np.abs(drifts[0]) > DRIFT] = -1.0
    power[:, np.abs(drifts[1]) > DRIFT] = -1.0
    best = np.unravel_index(int(power.argmax()), power.shape)
    return float(drifts[0][best[0]]), float(drifts[1][best[1]])


def _drift(
    table: Complex,
    centres: Sequence[Floats],
    shape: tuple[int, int],
    start: Frequency,
    steps: Sequence[float],
) -> Frequency:
    """Return the drift near ``start`` at which the windows add up to most, by ever smaller steps, in bins."""
    y, x = start
    for step in steps:
        offsets = step * np.arange(-1, 2)
        rows = np.exp(-2j * pi * np.outer(y + offsets / shape[0], centres[0]))
        columns = np.exp(-2j * pi * np.outer(centres[1], x + offsets / shape[1]))
        around = np.abs(rows @ table @ columns) ** 2
        y += _crest(around[:, 1]) * step / shape[0]
        x += _crest(around[1, :]) * step / shape[1]
    return y, x


def _crest(values: Floats) -> float:
    """Return where a parabola through three values at -1, 0, 1 is highest, at most two steps away."""
    left, middle, right = map(float, values)
    bend = left - 2.0 * middle + right
    if bend >= 0.0:
        return float(np.sign(right - left))
    return float(np.clip(0.5 * (left - right) / bend, -2.0, 2.0))


def _is_resolved(frequency: Frequency, edges: Sequence[Edges]) -> bool:
    """Whether a window holds cycles enough along some axis."""
    return any(abs(f) * 2 * int(e[1]) >= _FEWEST_CYCLES for f, e in zip(frequency, edges, strict=True))


def _is_coherent(turned: Complex) -> bool:
    """Whether windows agree on a phase, along both axes."""
    power = np.abs(scipy.fft.fft2(_clipped(turned))) ** 2
    peak = float(power[0, 0])
    others = power.copy()
    others[np.ix_((-1, 0, 1), (-1, 0, 1))] = np.nan
    across = (power[0, 2:-1].mean(), power[2:-1, 0].mean())
    return peak > _COHERENT * float(np.nanmean(others)) and all(peak > _ALONG * float(a) for a in across)


def _amplitudes(
    sums: CellSums, refined: list[Frequency | None], tables: list[Complex], centres: Sequence[Floats]
) -> tuple[Wave, ...]:
    """Solve for all waves together, each from the windows' sums at its own frequency."""
    there = [number for number, frequency in enumerate(refined) if frequency is not None]
    coefficients = _solved(sums, refined, tables, centres, there) if there else {}
    waves = []
    for number, frequency in enumerate(sums.frequencies):
        moved, found = refined[number], coefficients.get(number)
        if moved is None or found is None:
            waves.append(Wave(frequency, 0.0, 0.0))
        else:
            waves.append(Wave(moved, float(np.abs(found)), atan2(found.imag, found.real)))
    return tuple(waves)


def _solved(
    sums: CellSums,
    refined: list[Frequency | None],
    tables: list[Complex],
    centres: Sequence[Floats],
    there: list[int],
) -> dict[int, complex]:
    """Return A exp(i phase) of every wave.

    A wave c = A exp(i phase) adds c / 2 G(f - f0) + conj(c) / 2 G(-f - f0) to a sum at f0, G(g) the sum of
    the weights times exp(2 pi i (gy y + gx x)): linear in the real and imaginary parts of all c.
    """
    n = len(there)
    matrix = np.zeros((2 * n, 2 * n))
    right = np.zeros(2 * n)
    for row, number in enumerate(there):
        nominal, moved = sums.frequencies[number], refined[number]
        assert moved is not None, "a wave that is there"
        drift = (moved[0] - nominal[0], moved[1] - nominal[1])
        back = _turn(drift, centres, -1)
        own = _sum_table(sums, moved, nominal, back)
        weights = _weights(tables[number], own)
        total = complex((weights * tables[number]).sum())
        right[2 * row : 2 * row + 2] = total.real, total.imag
        for column, other in enumerate(there):
            at = refined[other]
            assert at is not None, "a wave that is there"
            for sign in (1, -1):
                signed = (sign * at[0], sign * at[1])
                if not _are_near(signed, nominal):
                    continue
                g = 0.5 * complex((weights * _sum_table(sums, signed, nominal, back)).sum())
                # c g for the wave itself, conj(c) g for its mirror image.
                matrix[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += [
                    [g.real, -sign * g.imag],
                    [g.imag, sign * g.real],
                ]
    # At half a cycle per pixel a wave and its mirror image are one: the smallest solution has no sine.
    found = np.linalg.lstsq(matrix, right, rcond=1e-9)[0]
    return {number: complex(found[2 * i], found[2 * i + 1]) for i, number in enumerate(there)}


def _sum_table(sums: CellSums, frequency: Frequency, nominal: Frequency, back: Complex) -> Complex:
    parts = [window_sums(edges, f - f0) for edges, f, f0 in zip(sums.edges, frequency, nominal, strict=True)]
    table: Complex = np.outer(*parts) * back
    return table


def _are_near(first: Frequency, second: Frequency) -> bool:
    apart = [(a - b) % 1.0 for a, b in zip(first, second, strict=True)]
    return all(min(a, 1.0 - a) < _NEAR for a in apart)


def _weights(table: Complex, own: Complex) -> Floats:
    """Return how much every window counts: less the more it differs from what the others say (Cauchy)."""
    weights = np.ones(table.shape)
    for _ in range(_ROBUST_STEPS):
        found = (weights * table).sum() / (weights * own).sum()
        apart = np.abs(table / own - found) ** 2
        middle = float(np.median(apart))
        if middle <= 0.0:
            break
        weights = 1.0 / (1.0 + apart / middle)
    return weights
