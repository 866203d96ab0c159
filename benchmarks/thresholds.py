"""Which threshold parts background from signal best: the table of docs/decisions/006.

    DENOIZARR_DATA=FOLDER python benchmarks/thresholds.py

Every method sees the same score maps (max, mean, standard deviation, Shannon entropy; patches of 16, 32, 64).
Where there is background: how many of the cells with at least 10 % of signal does it keep, and how many of
the empty ones does it drop? Where there is none: does it keep all? Truth is the simulation's own, the mean of
50 frames for the fluorescence images, and a blurred image above 60 grey levels for the brain. Without
DENOIZARR_DATA only simulations and textures are compared. The constants of ``suggest_threshold`` were set on
the images named in CHOSEN_ON; the others were looked at afterwards, and nothing was changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage import data, filters
from skimage.io import imread

from denoizarr.selection.filters import MaxPatchFilter, MeanStdPatchFilter, ShannonPatchFilter
from denoizarr.selection.thresholds import suggest_threshold

Method = Callable[[np.ndarray], float]
CHOSEN_ON = ("shale", "brain", "fluorescence", "texture", "simulated 1", "noise 1")


@dataclass(frozen=True)
class Image:
    name: str
    voxels: np.ndarray
    signal: np.ndarray | None  # None: signal everywhere, or nowhere: there is nothing to part


@dataclass(frozen=True)
class Outcome:
    dropped: float | None  # of the empty cells; None where there are none
    kept: float  # of the cells with signal


def otsu(scores: np.ndarray) -> float:
    counts, edges = np.histogram(scores, 1 << 16)
    return float(filters.threshold_otsu(hist=(counts, (edges[1:] + edges[:-1]) / 2)))


def minimum(scores: np.ndarray) -> float:
    try:
        return float(filters.threshold_minimum(scores))
    except RuntimeError:  # no two modes
        return float(scores.min())


METHODS: dict[str, Method] = {
    "Otsu": otsu,
    "triangle": lambda scores: float(filters.threshold_triangle(scores)),
    "minimum between modes": minimum,
    "Li": lambda scores: float(filters.threshold_li(scores)),
    "valley": lambda scores: suggest_threshold(lambda: [scores]).threshold,
}


def light_sheet(occupied: float, photons: float, tilt: float, seed: int) -> Image:
    """Textured regions and bright spots over an empty background, which may be lit unevenly."""
    random = np.random.default_rng(seed)
    shape = (4, 512, 512)
    region = gaussian_filter(random.standard_normal(shape), (2, 30, 30))
    inside = region >= np.quantile(region, 1 - occupied)
    texture = np.zeros(shape)
    for weight, size in ((0.5, 2), (0.4, 12)):
        layer = gaussian_filter(random.standard_normal(shape), (1, size, size))
        texture += weight * layer / layer.std()
    spots = gaussian_filter(90.0 * inside * (random.random(shape) < 3e-4), (0.7, 3, 3))
    signal = gaussian_filter(photons * (inside * np.exp(texture) + spots), (0.5, 1, 1))
    background = 8 * (1 + tilt * np.linspace(-1, 1, shape[2]))
    levels = 100 + 6 * random.poisson(signal + background) + random.normal(0, 6, shape)
    voxels = levels.clip(0, 65535).astype(np.uint16)
    return Image(f"{occupied:.0%} {photons}", voxels, inside if occupied < 1 else None)


def simulated(first: int) -> Iterator[tuple[str, Image]]:
    group = f"simulated {first}"
    shares, lights = (
        ((0.05, 0.2, 0.6, 1.0), ((4, 0.0), (4, 0.5), (40, 0.0), (40, 0.5))),
        ((0.02, 0.1, 0.3, 0.8, 1.0), ((10, 0.0), (20, 0.2), (100, 0.1))),
    )[first - 1]
    for occupied in shares:
        for photons, tilt in lights:
            yield (
                group,
                light_sheet(occupied, photons, tilt, seed=1000 * first + int(100 * occupied) + photons),
            )


def without_background() -> Iterator[tuple[str, Image]]:
    for name in ("brick", "grass", "gravel"):
        yield "texture", Image(name, getattr(data, name)(), None)
    shape, random = (4, 512, 512), np.random.default_rng(0)
    ramp = np.broadcast_to(np.linspace(50, 100, 512), shape)
    correlated = gaussian_filter(random.standard_normal(shape), (0, 3, 3))
    uneven = np.exp(20 * gaussian_filter(random.standard_normal(shape), (0, 8, 8)))
    for group, name, voxels in (
        ("noise 1", "Gaussian", random.normal(1000, 50, shape)),
        ("noise 1", "Poisson", random.poisson(20, shape)),
        ("noise 1", "ramp", random.poisson(ramp)),
        ("noise 2", "exponential", random.exponential(300, shape)),
        ("noise 2", "correlated", 2000 + 3000 * correlated),
        ("noise 2", "lognormal", random.poisson(50 * uneven)),
        ("noise 2", "Cauchy", 2000 + 50 * random.standard_cauchy(shape)),
    ):
        yield group, Image(name, np.clip(voxels, 0, 65535).astype(np.uint16), None)


def real(folder: Path) -> Iterator[tuple[str, Image]]:
    planes = sorted((folder / "lightsheet-brain").glob("*.tif"))
    brain = np.stack([imread(path) for path in planes])
    smooth = gaussian_filter(brain.astype(np.float32), (0, 4, 4))
    yield "brain", Image("brain", brain, smooth > 60)
    yield "tissue", Image("tissue only", brain[:, 500:, 100:550], None)
    shale = np.stack([np.squeeze(imread(path)) for path in sorted((folder / "sem-shale").rglob("*.tif"))])
    yield "shale", Image("shale", shale, None)
    for path in sorted((folder / "fluorescence" / "raw").glob("*.png")):
        truth = gaussian_filter(imread(folder / "fluorescence" / "gt" / path.name).astype(float), 1)
        empty, bright = np.quantile(truth, [0.02, 0.999])
        yield (
            "fluorescence",
            Image(path.stem, imread(path), truth > empty + max(2.0, 0.05 * (bright - empty))),
        )


def outcomes(image: Image) -> Iterator[tuple[str, Outcome]]:
    """Yield what every method makes of every map of one image."""
    for patch in (16, 32, 64):
        maps = [
            np.asarray(kind.filter_map(image.voxels, patch)) for kind in (MaxPatchFilter, ShannonPatchFilter)
        ]
        maps += list(np.asarray(MeanStdPatchFilter.filter_map(image.voxels, patch)))
        share = np.ones(maps[0].shape)
        if image.signal is not None:
            # The largest share over the regions that cover a cell, as the scores are taken.
            share = np.asarray(MeanStdPatchFilter.filter_map(image.signal.astype(np.uint8), patch))[0]
        for scores in maps:
            if scores.min() == scores.max():
                continue
            for name, method in METHODS.items():
                keep = scores >= method(scores.astype(np.float64).ravel())
                empty = share < 0.01
                dropped = float(1 - keep[empty].mean()) if empty.mean() >= 0.01 else None
                yield name, Outcome(dropped, float(keep[share >= 0.1].mean()))


def row(name: str, found: list[Outcome], valleys: list[Outcome]) -> str:
    parted = [(each.dropped, each.kept) for each in found if each.dropped is not None]
    whole = [each.kept for each in found if each.dropped is None]
    kept, dropped = [k for _, k in parted], [d for d, _ in parted]
    # The same maps for every method: those in which the valley was found.
    speaking = [
        (each.dropped + each.kept) / 2
        for each, valley in zip(found, valleys, strict=True)
        if each.dropped is not None and valley.dropped
    ]
    shown: list[Any] = [
        np.mean(kept),
        np.mean([k < 0.9 for k in kept]),
        np.mean(dropped),
        np.mean([(d + k) / 2 for d, k in parted]),
        np.mean(speaking),
        np.mean(whole),
        np.mean([k > 0.99 for k in whole]),
    ]
    return f"| {name} | " + " | ".join(f"{number:.2f}" for number in shown) + " |"


def main() -> None:
    images = [*simulated(1), *simulated(2), *without_background()]
    if "DENOIZARR_DATA" in os.environ:
        images += real(Path(os.environ["DENOIZARR_DATA"]))
    found: dict[bool, dict[str, list[Outcome]]] = {
        side: {name: [] for name in METHODS} for side in (True, False)
    }
    for group, image in images:
        for method, outcome in outcomes(image):
            found[group in CHOSEN_ON][method].append(outcome)
    for side, title in ((True, "Chosen on"), (False, "Checked on")):
        valleys = found[side]["valley"]
        parted = [each for each in valleys if each.dropped is not None]
        spoken = sum(bool(each.dropped) for each in parted)
        print(f"\n{title}: {len(parted)} maps with background (a valley in {spoken} of them),")
        print(f"{len(valleys) - len(parted)} without\n")
        print(
            "| method | signal kept | loses over a tenth | background dropped | balanced | where a valley is",
            end="",
        )
        print(" | no background: kept | keeps all |")
        print("|---|---|---|---|---|---|---|---|")
        for method, each in found[side].items():
            print(row(method, each, valleys))


if __name__ == "__main__":
    main()
