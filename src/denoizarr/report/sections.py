"""The illustrated parts of the report: each a heading, what to look for, and a figure."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from matplotlib.figure import Figure

from denoizarr.errors import DenoizarrError
from denoizarr.figures.canvas import png_of
from denoizarr.figures.comparison import comparison_figure
from denoizarr.figures.filter_maps import filter_map_figure
from denoizarr.figures.noise_kernel import noise_kernel_figure
from denoizarr.figures.patches import patch_origins_figure
from denoizarr.figures.residual import residual_figure
from denoizarr.figures.training_curves import training_curves_figure
from denoizarr.selection.patch_index import PatchIndex
from denoizarr.stores import locations

from .findings import Findings
from .narrative import kernel_sentence, residual_sentence
from .patch_planes import filter_plane, how_chosen, origins_near
from .planes import Planes
from .run_folder import RunFolder, Stage

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Picture:
    """A rendered figure: its file in ``figures/`` and what it shows, for those who cannot see it."""

    name: str
    png: bytes
    description: str

    @property
    def base64(self) -> str:
        """The bytes as they go into the page."""
        return base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page; ``absent`` says in a sentence what is left out and why."""

    anchor: str
    title: str
    paragraphs: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    absent: tuple[str, ...] = ()


def all_sections(run: RunFolder, findings: Findings | None) -> list[Section]:
    """Return the illustrated sections in the page's order."""
    return [
        _before_and_after(run, findings),
        _patches(run, findings),
        _training(run),
        _kernel(run),
        _residual(run, findings),
    ]


def _picture(name: str, figure: Figure, description: str) -> Picture:
    return Picture(name, png_of(figure), description)


def _before_and_after(run: RunFolder, findings: Findings | None) -> Section:
    title = "Result"
    if findings is None:
        return Section(
            "comparison", title, absent=("The pictures are left out: the input could not be read.",)
        )
    planes = findings.planes
    if planes.denoised is None:
        reason = "; ".join(planes.problems) or "there is no result yet"
        return Section("comparison", title, absent=(f"The pictures are left out: {reason}.",))
    sigma = None if findings.noise is None else findings.noise.sigma_at(planes.denoised)
    figure = comparison_figure(
        planes.raw,
        planes.stage1,
        planes.denoised,
        findings.residual,
        noise_sigma=sigma if findings.noise is None or findings.noise.gain > 0 else findings.noise.before,
        pixel_size_um=planes.pixel_size_um,
        note=f"Shown: {planes.where()}.",
        other_grey_levels=run.has_target,
    )
    whole = planes.whole and not any(size > 1 for size in planes.shape[:-2])
    reason = "" if whole else ", chosen for being in the middle, not for its looks"
    text = f"Shown is {planes.where()}{reason}."
    removed = "" if run.has_target else " what was removed,"
    description = f"One plane before and after denoising,{removed} and enlarged parts of all."
    return Section("comparison", title, (text,), (_picture("comparison", figure, description),))


def _patches(run: RunFolder, findings: Findings | None) -> Section:
    title = "Training patches"
    stage = next((stage for stage in run.stages if stage.index is not None), None)
    if stage is None or stage.index is None:
        reasons = [text for key, text in run.missing.items() if key.endswith(".index")]
        return Section("patches", title, absent=tuple(reasons or ["The run left no patch index."]))
    paragraphs = [f"{stage.title}. {stage.index.summary()}", *how_chosen(stage.index.settings)]
    if findings is None:
        return Section(
            "patches", title, tuple(paragraphs), absent=("The input could not be read for pictures.",)
        )
    pictures: list[Picture] = []
    absent: list[str] = []
    index, planes = stage.index, findings.planes
    drawn = _safely(absent, "The map of patches", lambda: _origins_picture(index, planes))
    if drawn is not None:
        pictures.append(drawn)
    scored = _safely(absent, "The filter map", lambda: _filter_picture(run, index, planes))
    if scored is not None:
        pictures.append(scored)
    elif not absent:
        absent.append(
            "There is no map of scores to show: no patch filter decided."
            if len(paragraphs) > 1
            else "No patch filter was used: every place of the image had the same chance."
        )
    return Section("patches", title, tuple(paragraphs), tuple(pictures), tuple(dict.fromkeys(absent)))


def _origins_picture(index: PatchIndex, planes: Planes) -> Picture:
    origins, sentence = origins_near(index, planes)
    size = index.patch_size
    figure = patch_origins_figure(planes.raw, origins, (int(size[-2]), int(size[-1])), note=sentence)
    return _picture(
        "patches", figure, "Outlines of training patches on the image, and some of them enlarged."
    )


def _filter_picture(run: RunFolder, index: PatchIndex, planes: Planes) -> Picture | None:
    scores = filter_plane(run, index, planes)
    if scores is None:
        return None
    figure = filter_map_figure(
        planes.raw,
        scores.maps,
        scores.keep,
        thresholds=scores.thresholds,
        cell_shape=scores.cell_shape,
        title="Where the filter looks",
    )
    return _picture(
        "filter_map", figure, "The image, the score of each cell, the cells kept, and a histogram of scores."
    )


def _safely(absent: list[str], what: str, draw: Callable[[], T]) -> T | None:
    try:
        return draw()
    except DenoizarrError as error:
        absent.append(f"{what} is left out: {error}.")
        return None


def _training(run: RunFolder) -> Section:
    stages = {stage.title: stage.rows for stage in run.stages if stage.rows}
    reasons = tuple(text for key, text in run.missing.items() if key.endswith(".train"))
    if not stages:
        return Section("training", "Training", absent=reasons or ("The run left no training log.",))
    figure = training_curves_figure(stages, with_target=run.has_target)
    pictures = [_picture("training", figure, "Training and validation loss and learning rate over epochs.")]
    absent = list(reasons)
    for stage in run.stages:
        pictures += _safely(absent, f"Sample predictions of {stage.name}", partial(_samples, stage)) or []
    return Section("training", "Training", (), tuple(pictures), tuple(absent))


def _samples(stage: Stage) -> list[Picture]:
    """Return the pictures that training left: after the first epoch and after the last."""
    return [
        Picture(
            f"samples_{stage.name}_{Path(url).stem}",
            locations.get(url),
            f"{stage.title}: patches and what the network made of them, {Path(url).stem}.",
        )
        for url in stage.samples
    ]


def _kernel(run: RunFolder) -> Section:
    title = "Noise"
    if run.kernel is None:
        why = "a target was given" if run.has_target else "the run had no second stage"
        reason = run.missing.get("kernel", f"The noise's shape was not measured: {why}.")
        return Section("kernel", title, absent=(reason,))
    kernel = run.kernel
    figure = noise_kernel_figure(
        kernel.mask,
        # A mask from a file comes without measurements: nothing, rather than zeros that nobody measured.
        [[1.0]] if kernel.source == "file" else kernel.autocorrelation,
        None if kernel.source == "file" else kernel.z_scores,
        z_threshold=kernel.z_threshold,
    )
    picture = _picture(
        "noise_kernel", figure, "Autocorrelation of the noise, the pixels hidden, and cuts along x and y."
    )
    return Section("kernel", title, (kernel_sentence(run),), (picture,))


def _residual(run: RunFolder, findings: Findings | None) -> Section:
    title = "Residual"
    if run.has_target:
        why = "the result has the target's grey levels, and what raw and result differ by is not the noise"
        return Section("residual", title, absent=(f"What was removed is not checked: {why}.",))
    if findings is None or findings.check is None or findings.residual is None:
        return Section(
            "residual", title, absent=("There is no result to check, or nothing was removed from it.",)
        )
    kernel = run.kernel
    expected = None
    if findings.noise is not None and findings.profile is not None:
        expected = findings.noise.sigma_at(findings.profile.intensity)
    figure = residual_figure(
        findings.check.autocorrelation,
        [[True]] if kernel is None else kernel.mask,
        findings.profile,
        expected_autocorrelation=None if kernel is None else kernel.autocorrelation,
        noise_sigma=expected,
    )
    picture = _picture(
        "residual", figure, "Autocorrelation of what was removed, and its mean and spread by intensity."
    )
    return Section("residual", title, (residual_sentence(findings.check),), (picture,))
