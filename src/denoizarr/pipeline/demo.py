"""The demo: a simulated microscope with known truth, through the whole job, scored against the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from denoizarr.engine.summary import RunSummary
from denoizarr.figures.canvas import png_of
from denoizarr.figures.panels import panels_figure
from denoizarr.images.output import is_complete
from denoizarr.images.save import save_image
from denoizarr.kernels.simulate import simulate_stack
from denoizarr.report.page import write_report
from denoizarr.stores import locations, records
from denoizarr.stores.images import open_image

from .run import run_pipeline

SHAPE = (32, 512, 512)
_SPACING_UM = {"z": 0.5, "y": 0.1, "x": 0.1}
# Half the standard network and a quarter of the standard training: minutes on two cores, not half an hour.
# The training never sees the truth, and the same settings serve every seed.
_STAGE: dict[str, Any] = {"features": 16, "num_epochs": 6, "patches_per_epoch": 1536}


@dataclass(frozen=True, slots=True)
class Score:
    """How far an image is from the truth: PSNR in dB over the truth's range, mean SSIM of its planes."""

    name: str
    psnr: float
    ssim: float


def demo(out: str | Path = "demo-out", *, seed: int = 0, progress: bool = True) -> RunSummary:
    """Simulate a stack, denoise it with the whole job, and compare with the truth that only the score sees.

    Parameters
    ----------
    out : str or Path
        The folder for everything; run again to resume. ``scores.json`` in it holds the scores.
    seed : int
        Draws the specimen, the noise and the length of the scan noise.
    progress : bool

    Returns
    -------
    RunSummary
        Of the denoised image.
    """
    noisy, truth, run = (locations.join(out, name) for name in ("noisy.ome.zarr", "truth.ome.zarr", "run"))
    if not (locations.exists(truth) and is_complete(truth)):
        simulation = simulate_stack(SHAPE, seed)
        for values, where in ((simulation.noisy, noisy), (simulation.truth, truth)):
            save_image(_with_coordinates(values), where)
    summary = run_pipeline(
        {
            "input": {"url": noisy},
            "output": {"url": run, "keep_stage1": True},
            "stage1": {**_STAGE, "seed": seed},
            "stage2": {**_STAGE, "seed": seed},
        },
        progress=progress,
    )
    # Training and the job never see the truth; the report, written once more, compares intensities with it.
    records.write_json(locations.join(run, "truth.json"), {"url": "../truth.ome.zarr"})
    write_report(run)
    stage1 = locations.join(run, "stage1.ome.zarr")
    images = {"noisy": noisy, "stage 1": stage1 if locations.exists(stage1) else summary.destination}
    images["stage 2"] = summary.destination
    scores = [_score(name, url, truth) for name, url in images.items()]
    picture = locations.join(out, "demo.png")
    locations.put(picture, _picture(images, truth, scores))
    paths = {
        "noisy": noisy,
        "truth": truth,
        "denoised": summary.destination,
        "picture": picture,
        "report": locations.join(run, "report.html"),
    }
    records.write_json(
        locations.join(out, "scores.json"), {"scores": [asdict(score) for score in scores], "paths": paths}
    )
    return summary


def score_table(out: str | Path) -> str:
    """Return the scores of a finished demo, one row each, and the paths to look at."""
    found = records.read_json(locations.join(out, "scores.json"))
    rows = [f"{'':8}  {'PSNR (dB)':>9}  {'SSIM':>6}"]
    rows += [f"{row['name']:8}  {row['psnr']:9.2f}  {row['ssim']:6.3f}" for row in found["scores"]]
    return "\n".join([*rows, "", *(f"{name:9} {path}" for name, path in found["paths"].items())])


def _with_coordinates(values: np.ndarray[Any, Any]) -> xr.DataArray:
    coords = {
        dim: (dim, np.arange(n) * step, {"units": "micrometer", "spacing": step})
        for (dim, step), n in zip(_SPACING_UM.items(), values.shape, strict=True)
    }
    return xr.DataArray(values, dims=tuple(_SPACING_UM), coords=coords)


def _picture(images: Mapping[str, str], truth: str, scores: Sequence[Score]) -> bytes:
    """Return a PNG of the middle plane's centre, before, between and after, beside the truth."""
    opened = {name: open_image(url) for name, url in {**images, "truth": truth}.items()}
    titles = {score.name: f"{score.name}, {score.psnr:.1f} dB" for score in scores}
    crops = {}
    for name, image in opened.items():
        y, x = (slice(image.sizes[d] // 4, image.sizes[d] // 4 * 3) for d in ("y", "x"))
        crops[titles.get(name, name)] = np.asarray(image.isel(z=image.sizes["z"] // 2, y=y, x=x))
    figure = panels_figure(
        crops,
        reference="truth",
        title="A simulated stack, denoised from the noisy data alone",
        caption="All at one contrast. Stage 1 removes random noise, stage 2 what runs along the rows.",
    )
    return png_of(figure, dots_per_inch=80)


def _score(name: str, url: str, truth_url: str) -> Score:
    """Return the scores of an image, plane by plane so that any stack would do."""
    from skimage.metrics import structural_similarity

    image, truth = open_image(url), open_image(truth_url)
    low, high = float(truth.min()), float(truth.max())
    squares, similarities = [], []
    for z in range(truth.sizes["z"]):
        a, b = (np.asarray(x.isel(z=z), np.float64) for x in (image, truth))
        squares.append(np.mean((a - b) ** 2))
        similarities.append(structural_similarity(a, b, data_range=high - low))
    psnr = 10 * np.log10((high - low) ** 2 / np.mean(squares))
    return Score(name, round(float(psnr), 3), round(float(np.mean(similarities)), 4))
