"""The illustrated parts of the report: each a heading, what to look for, and a figure."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from matplotlib.figure import Figure

from denoizarr.errors import DenoizarrError
from denoizarr.figures.canvas import png_of
from denoizarr.figures.comparison import comparison_figure
from denoizarr.figures.filter_maps import filter_map_figure
from denoizarr.figures.intensity_bias import bias_figure
from denoizarr.figures.patches import patch_origins_figure
from denoizarr.figures.residual import CorrelationView, intensity_profile_figure, residual_figure
from denoizarr.figures.signal_loss import signal_loss_figure
from denoizarr.figures.training_curves import training_curves_figure
from denoizarr.figures.z_scores import z_score_figure
from denoizarr.kernels.noise_left import NoiseLeft
from denoizarr.kernels.residual import ResidualCorrelation
from denoizarr.kernels.signal_loss import GOOD, REMOVED, SCALES, SignalLoss
from denoizarr.selection.patch_index import PatchIndex
from denoizarr.stores import locations
from denoizarr.training.noise_kernel import NoiseKernel

from .diagnostics import Diagnostics
from .findings import Findings, in_plane
from .narrative import kernel_sentence, residual_sentence
from .patch_planes import filter_plane, how_chosen, origins_near
from .planes import Planes
from .run_folder import RunFolder, Stage
from .verdicts import (
    bias_sentence,
    correlation_sentences,
    kernel_measured_sentence,
    left_sentence,
    loss_caption,
    loss_sentence,
    periods_sentence,
    tells,
)

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
        *_bias(findings),
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
        note=_note(planes),
        other_grey_levels=run.has_target,
    )
    whole = planes.whole and not any(size > 1 for size in planes.shape[:-2])
    reason = "" if whole else ", chosen for being in the middle, not for its looks"
    text = f"Shown is {planes.where()}{reason}."
    removed = "" if run.has_target else " what was removed,"
    description = f"One plane before and after denoising,{removed} and enlarged parts of all."
    return Section("comparison", title, (text,), (_picture("comparison", figure, description),))


def _note(planes: Planes) -> str:
    """Say what is shown, and what is not in it."""
    less = " Periodic lines, which a filter took out first, are in the raw picture only."
    return f"Shown: {planes.where()}.{less if planes.corrected is not None else ''}"


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
            f"samples_{stage.name}_{name}",
            locations.get(url),
            f"{stage.title}: patches and what the network made of them, {name}.",
        )
        for url, name in ((url, locations.name_of(url).split(".")[0]) for url in stage.samples)
    ]


def _kernel(run: RunFolder) -> Section:
    title = "Noise"
    if run.kernel is None:
        why = "a target was given" if run.has_target else "the run had no second stage"
        reason = run.missing.get("kernel", f"The noise's shape was not measured: {why}.")
        periods = periods_sentence(run.periodic, None)
        return Section("kernel", title, (periods,) if periods else (), absent=(reason,))
    # A mask from a file comes without measurements; the kernel's own plot knows.
    pictures = [
        _picture(
            "noise_kernel",
            run.kernel.plot(),
            "Autocorrelation of the noise, the pixels hidden, and cuts along x and y.",
        )
    ]
    scores = in_plane(run.kernel.z_scores)
    if run.kernel.source != "file" and scores.any():
        figure = z_score_figure(scores, in_plane(run.kernel.mask), run.kernel.z_threshold)
        pictures.append(
            _picture("noise_z_scores", figure, "How certain the correlation is at every distance.")
        )
    sentences = (
        kernel_sentence(run),
        kernel_measured_sentence(run.kernel),
        periods_sentence(run.periodic, run.kernel),
    )
    return Section("kernel", title, tuple(text for text in sentences if text), tuple(pictures))


def _residual(run: RunFolder, findings: Findings | None) -> Section:
    title = "Residual"
    if run.has_target:
        why = "the result has the target's grey levels, and what raw and result differ by is not the noise"
        return Section("residual", title, absent=(f"What was removed is not checked: {why}.",))
    if findings is None or findings.check is None or findings.residual is None:
        return Section(
            "residual", title, absent=("There is no result to check, or nothing was removed from it.",)
        )
    found = findings.diagnostics
    paragraphs, pictures = [], []
    if found is not None and found.background is not None:
        paragraphs += correlation_sentences(found)
        pictures.append(_correlation_picture(run.kernel, found, found.background))
    else:
        paragraphs.append(residual_sentence(findings.check))
    if found is not None and found.loss is not None:
        left = found.left if tells(found.left, run.kernel) else None
        paragraphs.append(loss_sentence(found.loss, found.gap))
        paragraphs += [] if left is None else [left_sentence(left)]
        pictures.append(_loss_picture(found.loss, left))
    if findings.profile is not None and findings.profile.intensity.size:
        noise = findings.noise
        sigma = None if noise is None else noise.sigma_at(findings.profile.intensity)
        pictures.append(
            _picture(
                "residual_by_intensity",
                intensity_profile_figure(findings.profile, sigma),
                "Mean and spread of what was removed, by brightness.",
            )
        )
    return Section("residual", title, tuple(paragraphs), tuple(pictures))


def _correlation_picture(
    kernel: NoiseKernel | None, found: Diagnostics, background: ResidualCorrelation
) -> Picture:
    views = [
        None
        if check is None
        else CorrelationView(check.autocorrelation, check.chance, check.marked, check.windows)
        for check in (background, found.signal)
    ]
    assert views[0] is not None, "the background was measured"
    measured = kernel is not None and kernel.source not in ("file", "stage1") and kernel.windows > 0
    figure = residual_figure(
        views[0],
        views[1],
        [[True]] if kernel is None else in_plane(kernel.mask),
        expected_autocorrelation=in_plane(kernel.autocorrelation) if kernel and measured else None,
    )
    return _picture(
        "residual", figure, "Autocorrelation of what was removed, on background and on signal, with its cuts."
    )


def _loss_picture(loss: SignalLoss, left: NoiseLeft | None) -> Picture:
    bars = None
    if left is not None:
        bars = (
            ("raw", "removed", "output"),
            (left.raw, left.removed, left.left),
            (left.raw_error, left.removed_error, left.left_error),
            "covariance / variance of the raw noise",
        )
    figure = signal_loss_figure(
        loss.share,
        loss.standard_error,
        (GOOD, REMOVED),
        loss.reading,
        scales=SCALES,
        by_scale=loss.by_scale,
        by_scale_error=loss.by_scale_error,
        floor_by_scale=loss.floor_by_scale,
        left=bars,
        caption=loss_caption(left is not None),
        title="Was signal removed, and is noise left?" if left is not None else "Was signal removed?",
    )
    return _picture(
        "signal_loss", figure, "A gauge of signal loss, the loss by size, and what noise the output keeps."
    )


def _bias(findings: Findings | None) -> list[Section]:
    """Return the section about intensities: only a simulation knows its truth."""
    if findings is None or findings.bias is None:
        return []
    picture = _picture(
        "intensity_bias",
        bias_figure(findings.bias),
        "Mean error of the output by true intensity, and counts.",
    )
    return [Section("bias", "Intensities", (bias_sentence(findings.bias),), (picture,))]
