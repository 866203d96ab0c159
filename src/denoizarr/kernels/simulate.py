"""The demo's microscope: a stack of cells with known truth, seen through blur, photons and scan noise.

The model, in the order in which a laser-scanning microscope does it: fluorescence of cells (soft cytoplasm
with a darker nucleus, filaments, vesicles) on a faint background; the blur of the optics, wider along z;
Poisson counts of photons; read noise of the detector; and scan noise, white noise averaged over a few pixels
along the scan line x, as a slow amplifier or a flickering laser gives it. Shape and seed decide everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage

from denoizarr.errors import BadRequest

Image = np.ndarray[Any, np.dtype[np.float32]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Microscope:
    """What the optics and the detector do; every triple is (z, y, x).

    Attributes
    ----------
    spacing_um : tuple of float
        Between voxel centres.
    psf_sigma_um : tuple of float
        Standard deviations of the Gaussian point-spread function.
    background_photons : float
        Mean count where there is no cell.
    brightest_photons : float
        Mean count of the brightest voxel, background included.
    read_noise_photons : float
        Standard deviation of the detector's noise.
    scan_noise_photons : float
        Standard deviation of the noise that is correlated along x.
    gain_levels_per_photon, offset_levels : float
        Grey levels of the camera: level = offset + gain * photons.
    """

    spacing_um: tuple[float, float, float] = (0.5, 0.1, 0.1)
    psf_sigma_um: tuple[float, float, float] = (0.45, 0.14, 0.14)
    background_photons: float = 4.0
    brightest_photons: float = 70.0
    read_noise_photons: float = 2.5
    scan_noise_photons: float = 3.5
    gain_levels_per_photon: float = 10.0
    offset_levels: float = 200.0

    def levels(self, photons: Image) -> Image:
        """Return grey levels, not rounded."""
        levels: Image = photons * np.float32(self.gain_levels_per_photon) + np.float32(self.offset_levels)
        return levels


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """A simulated stack.

    Attributes
    ----------
    truth : (z, y, x) float32 array
        What a noise-free detector would have shown, in grey levels.
    noisy : (z, y, x) uint16 array
        What this one shows, in grey levels.
    scan_length : int
        Pixels along x over which the scan noise is averaged: its own correlation at lag k is
        1 - k / scan_length, so a blind-spot kernel of 1 x (2 scan_length - 1) covers it.
    seed : int
    microscope : Microscope
    """

    truth: Image
    noisy: np.ndarray[Any, np.dtype[np.uint16]]
    scan_length: int
    seed: int
    microscope: Microscope


def simulate_stack(
    shape: tuple[int, int, int] = (32, 512, 512), seed: int = 0, *, microscope: Microscope | None = None
) -> Simulation:
    """Simulate a stack of cells with known truth.

    Parameters
    ----------
    shape : (int, int, int)
        (z, y, x) in voxels.
    seed : int
        Draws the specimen, the scan length (5 to 11 pixels) and the noise.
    microscope : Microscope, optional

    Returns
    -------
    Simulation

    Raises
    ------
    BadRequest
        When the shape is not three positive numbers.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise BadRequest("not the shape of a stack", got=shape, expected="(z, y, x), each 1 or more")
    microscope = microscope or Microscope()
    # One stream each, so that the specimen of a seed does not change when the noise model does.
    specimen, scan, noise = (np.random.default_rng((seed, part)) for part in range(3))
    photons = _seen(_specimen(specimen, shape, microscope), microscope)
    scan_length = int(scan.integers(5, 12))
    counts = noise.poisson(photons).astype(np.float32)
    counts += noise.standard_normal(shape, dtype=np.float32) * np.float32(microscope.read_noise_photons)
    counts += scan_noise(noise, shape, scan_length) * np.float32(microscope.scan_noise_photons)
    levels = np.clip(np.rint(microscope.levels(counts)), 0, 65535).astype(np.uint16)
    return Simulation(microscope.levels(photons), levels, scan_length, seed, microscope)


def scan_noise(random: np.random.Generator, shape: tuple[int, int, int], length: int) -> Image:
    """Return white noise averaged over ``length`` pixels along x, of variance 1, float32.

    Rows and planes are independent, and no row wraps around.
    """
    white = random.standard_normal((*shape[:2], shape[2] + length - 1), dtype=np.float32)
    total = white[..., : shape[2]].copy()
    for step in range(1, length):
        total += white[..., step : step + shape[2]]
    total /= np.float32(np.sqrt(length))
    return total


def _seen(fluorescence: Image, microscope: Microscope) -> Image:
    """Blur by the optics and scale to photons."""
    sigma = [s / d for s, d in zip(microscope.psf_sigma_um, microscope.spacing_um, strict=True)]
    blurred = scipy.ndimage.gaussian_filter(fluorescence, sigma, mode="nearest", truncate=3.0)
    brightest = float(blurred.max())
    scale = (
        (microscope.brightest_photons - microscope.background_photons) / brightest if brightest > 0 else 0.0
    )
    photons: Image = blurred * np.float32(scale) + np.float32(microscope.background_photons)
    return photons


def _specimen(random: np.random.Generator, shape: tuple[int, int, int], microscope: Microscope) -> Image:
    """Draw the fluorescence before the blur; a cell's cytoplasm is about 1."""
    extent = np.array(shape) * microscope.spacing_um
    # About one cell on 16 x 16 um, but some cell in any stack; cells lie around the middle of the stack.
    count = max(1, round(float(extent[1] * extent[2]) / 260.0))
    centres = _apart(random, count) * extent
    radii = random.uniform((4.0, 6.0, 6.0), (7.0, 12.0, 12.0), (count, 3))
    turns = random.uniform(0.0, np.pi, count)
    volume = np.zeros(shape, dtype=np.float32)
    for centre, radius, turn in zip(centres, radii, turns, strict=True):
        _add_cell(volume, centre, radius, float(turn), random, microscope)
    _splat(volume, *_filaments(random, centres, radii, 70), microscope)
    _splat(volume, *_vesicles(random, centres, radii, 90), microscope)
    return volume


def _apart(random: np.random.Generator, count: int) -> Floats:
    """Return places in a unit stack, (count, 3), each the farthest of a few from those before it."""
    places = np.empty((0, 3))
    for _ in range(count):
        candidates = random.uniform((0.35, 0.0, 0.0), (0.65, 1.0, 1.0), (8, 3))
        gaps = np.linalg.norm(candidates[:, None, 1:] - places[None, :, 1:], axis=-1)
        farthest = int(gaps.min(axis=1).argmax()) if len(places) else 0
        places = np.vstack([places, candidates[farthest]])
    return places


def _add_cell(
    volume: Image,
    centre: Floats,
    radius: Floats,
    turn: float,
    random: np.random.Generator,
    microscope: Microscope,
) -> None:
    """Add an ellipsoid of soft border, with a nucleus of half its brightness; only its box is touched."""
    spacing = np.array(microscope.spacing_um)
    reach = np.array([radius[0], max(radius[1:]), max(radius[1:])]) * 1.25
    first = np.clip(((centre - reach) / spacing).astype(int), 0, volume.shape)
    stop = np.clip(((centre + reach) / spacing).astype(int) + 1, 0, volume.shape)
    if (stop <= first).any():
        return
    axes = (np.arange(a, b) * d - c for a, b, d, c in zip(first, stop, spacing, centre, strict=True))
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    along, across = np.cos(turn) * y + np.sin(turn) * x, np.cos(turn) * x - np.sin(turn) * y
    flat = (along / radius[1]) ** 2 + (across / radius[2]) ** 2
    distance = np.sqrt((z / radius[0]) ** 2 + flat)
    nucleus = np.sqrt((z / (0.55 * radius[0])) ** 2 + flat / 0.4**2)
    shape = _soft_step(distance, 0.08) * (1.0 - 0.5 * _soft_step(nucleus, 0.1))
    box = tuple(slice(a, b) for a, b in zip(first, stop, strict=True))
    volume[box] += (random.uniform(0.5, 1.3) * shape).astype(np.float32)


def _soft_step(distance: Floats, width: float) -> Floats:
    """Return 1 inside (distance below 1), 0 outside, with a border of this width."""
    step: Floats = 1.0 / (1.0 + np.exp(np.clip((distance - 1.0) / width, -30.0, 30.0)))
    return step


def _filaments(
    random: np.random.Generator, centres: Floats, radii: Floats, per_cell: int
) -> tuple[Floats, Floats]:
    """Return points along bent filaments, (n, 3) in micrometres, and their brightness, (n,).

    A filament is a walk of constant step whose direction drifts: a persistence length of about 12 um.
    """
    step_um, steps = 0.05, 320
    owner = np.repeat(np.arange(len(centres)), per_cell)
    start = centres[owner] + random.uniform(-0.6, 0.6, (len(owner), 3)) * radii[owner]
    angle = random.uniform(0.0, 2.0 * np.pi, (len(owner), 1))
    angle = angle + np.cumsum(random.normal(0.0, np.sqrt(2.0 * step_um / 12.0), (len(owner), steps)), axis=1)
    rise = random.normal(0.0, 0.12, (len(owner), 1)) * np.ones(steps)
    walk = np.stack([rise, np.sin(angle), np.cos(angle)], axis=-1) * step_um
    points = start[:, None, :] + np.cumsum(walk, axis=1)
    distance = np.sqrt((((points - centres[owner][:, None, :]) / radii[owner][:, None, :]) ** 2).sum(axis=-1))
    # Filaments fade out at the border of their cell.
    brightness = random.uniform(2.0, 6.0, (len(owner), 1)) * _soft_step(distance, 0.1)
    return points.reshape(-1, 3), brightness.ravel()


def _vesicles(
    random: np.random.Generator, centres: Floats, radii: Floats, per_cell: int
) -> tuple[Floats, Floats]:
    """Return the points of small round bodies, (n, 3) in micrometres, and their brightness, (n,)."""
    grains = 24
    owner = np.repeat(np.arange(len(centres)), per_cell)
    places = centres[owner] + random.normal(0.0, 0.4, (len(owner), 3)) * radii[owner]
    size_um = random.uniform(0.1, 0.3, (len(owner), 1, 1))
    points = places[:, None, :] + random.normal(0.0, 1.0, (len(owner), grains, 3)) * size_um
    brightness = np.repeat(random.uniform(1.0, 5.0, len(owner)), grains)
    return points.reshape(-1, 3), brightness


def _splat(volume: Image, points_um: Floats, brightness: Floats, microscope: Microscope) -> None:
    """Share every point's brightness among the eight voxels around it; what falls outside is lost."""
    place = points_um / np.array(microscope.spacing_um)
    corner = np.floor(place).astype(np.int64)
    part = place - corner
    total = np.zeros(volume.size)
    for offset in np.ndindex(2, 2, 2):
        voxel = corner + offset
        weight = brightness * np.prod(np.where(np.array(offset, bool), part, 1.0 - part), axis=1)
        inside = ((voxel >= 0) & (voxel < volume.shape)).all(axis=1)
        flat = np.ravel_multi_index(tuple(voxel[inside].T), volume.shape)
        total += np.bincount(flat, weights=weight[inside], minlength=volume.size)
    volume += total.reshape(volume.shape).astype(np.float32)
