"""What is denoised: noisy arrays, their truth where there is one, and what is known of their noise.

    case             noisy                                            truth
    NAME             fluorescence/raw, uint8                          fluorescence/gt, a mean of 50 frames
    S_NAME           gt in 0..255 + white 10 + boxed 1x9 along x, 15  gt in 0..255
    L_Confocal_MICE  gt in 0..255 + white 10 + 12 sin(2 pi x / 8)     gt in 0..255
    sem-shale        7 slices, their middle 512 x 512, uint8          none

Deviations are standard ones, in grey levels. The noise of a case is drawn once, from a seed that is the
case's own: the seeds of a run are those of the networks.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Pixels = np.ndarray[Any, Any]

IMAGES = (
    "Confocal_BPAE_B",
    "Confocal_BPAE_G",
    "Confocal_BPAE_R",
    "Confocal_FISH",
    "Confocal_MICE",
    "TwoPhoton_BPAE_R",
    "TwoPhoton_MICE",
    "WideField_BPAE_G",
)
WHITE, BOXED, BOX, LINES, PERIOD = 10.0, 15.0, 9, 12.0, 8
SHALE_SIDE = 512
KINDS = {"pair": "pairs", "S": "S cases", "L": "L", "slices": "slices"}
_SEED = 2026


@dataclass(frozen=True)
class Case:
    """One noisy array.

    Attributes
    ----------
    name : str
    kind : "pair", "S", "L" or "slices"
    image : str
        The pair whose truth it is made of.
    """

    name: str
    kind: str
    image: str = ""

    @property
    def has_truth(self) -> bool:
        return self.kind != "slices"

    def noisy_path(self, scratch: Path) -> Path:
        return scratch / "cases" / f"{self.name}-noisy.npy"

    def truth_path(self, scratch: Path) -> Path:
        return scratch / "cases" / f"{self.name}-truth.npy"

    @property
    def true_kernel(self) -> Pixels | None:
        """Where the correlated noise's own autocorrelation is at least .1: a boxed row of 9 is one of 17."""
        return np.ones((1, 2 * BOX - 1), bool) if self.kind == "S" else None


PAIRS = tuple(Case(name, "pair", name) for name in IMAGES)
BOXED_CASES = tuple(Case(f"S_{name}", "S", name) for name in IMAGES)
LINES_CASE = Case("L_Confocal_MICE", "L", "Confocal_MICE")
SHALE = Case("sem-shale", "slices")
CASES = (*PAIRS, *BOXED_CASES, LINES_CASE, SHALE)


def data_folder() -> Path:
    """Return the folder of the real images, which the environment variable DENOIZARR_DATA names."""
    if "DENOIZARR_DATA" not in os.environ:
        raise SystemExit("the images are not here: set DENOIZARR_DATA to the folder with fluorescence/ in it")
    return Path(os.environ["DENOIZARR_DATA"])


def prepare(case: Case, scratch: Path) -> None:
    """Write a case's arrays, unless they are there."""
    for path, make in ((case.noisy_path(scratch), _noisy), (case.truth_path(scratch), _truth)):
        if not path.exists() and (case.has_truth or make is _noisy):
            path.parent.mkdir(parents=True, exist_ok=True)
            begun = path.with_suffix(f".{os.getpid()}.npy")
            np.save(begun, make(case))
            begun.replace(path)


def _read(kind: str, image: str) -> Pixels:
    from skimage.io import imread

    pixels: Pixels = imread(data_folder() / "fluorescence" / kind / f"{image}_1.png")
    return pixels


def _truth(case: Case) -> Pixels:
    truth = _read("gt", case.image)
    return truth if case.kind == "pair" else scaled(truth)


def _noisy(case: Case) -> Pixels:
    if case.kind == "slices":
        return _slices()
    return (
        _read("raw", case.image) if case.kind == "pair" else with_noise(case, scaled(_read("gt", case.image)))
    )


def scaled(truth: Pixels) -> Pixels:
    """Return an image as float32 with 0 for its smallest value and 255 for its largest."""
    values = truth.astype(np.float64)
    return ((values - values.min()) * (255 / np.ptp(values))).astype(np.float32)


def with_noise(case: Case, truth: Pixels) -> Pixels:
    """Return a truth with the noise of an S or L case, as float32."""
    generator = np.random.default_rng([_SEED, zlib.crc32(case.name.encode())])
    noise = generator.normal(0, WHITE, truth.shape)
    if case.kind == "S":
        noise += boxed(generator, truth.shape)
    else:
        noise += LINES * np.sin(2 * np.pi * np.arange(truth.shape[1]) / PERIOD)
    return (truth + noise).astype(np.float32)


def boxed(generator: np.random.Generator, shape: tuple[int, int]) -> Pixels:
    """Return means of BOX neighbours along x of white noise, scaled to the deviation BOXED."""
    white = generator.normal(0, 1, (shape[0], shape[1] + BOX - 1))
    sums = np.lib.stride_tricks.sliding_window_view(white, BOX, axis=1).sum(axis=2)
    return np.asarray(sums * (BOXED / sums.std()))


def noise_spectrum(shape: tuple[int, int]) -> Pixels:
    """Return the power spectrum of an S case's noise; as BM3D takes it, its mean is variance times pixels."""
    box = np.zeros(shape[1])
    box[:BOX] = 1
    along_x = np.abs(np.fft.fft(box)) ** 2 * (BOXED**2 / BOX)
    return np.broadcast_to((along_x + WHITE**2) * np.prod(shape), shape).copy()


def _slices() -> Pixels:
    import tifffile

    planes = [tifffile.imread(path) for path in sorted((data_folder() / "sem-shale").glob("*.tif"))]
    top, left = ((extent - SHALE_SIDE) // 2 for extent in planes[0].shape)
    return np.stack([plane[top : top + SHALE_SIDE, left : left + SHALE_SIDE] for plane in planes])
