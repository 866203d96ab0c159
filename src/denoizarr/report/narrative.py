"""What came out, in plain words with numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from denoizarr.training.noise_kernel import NoiseKernel

from . import words
from .findings import Findings
from .image_pairs import ImagePair
from .measurements import ResidualCheck
from .run_folder import RunFolder, number_in
from .verdicts import diagnostic_doubts

# Above this share of the noise left, the reader should ask why.
_LITTLE_REMOVED = 0.8
# A mean residual of half the noise at some brightness is signal, not chance.
_DIMMED = 0.5


@dataclass(frozen=True, slots=True)
class Fact:
    """A name and a value, in a table or a tile."""

    name: str
    value: str


def lead_of(folder: RunFolder, pairs: list[ImagePair], findings: Findings | None) -> list[str]:
    """Return the sentences of the first paragraph: what came out of this run."""
    sentences = [_what_was_written(pairs, findings)]
    noise = None if findings is None else findings.noise
    if noise is not None and noise.before > 0:
        grows = " Noise grows with brightness in this image, as photon noise does." if noise.gain > 0 else ""
        sentences.append(
            "In flat parts of the plane shown below, grey levels varied by "
            f"{words.number(noise.before)} (one standard deviation) before and vary by "
            f"{words.number(noise.after)} after, {words.percent(noise.after / noise.before)} of that.{grows}"
        )
    if folder.kernel is not None:
        sentences.append(kernel_sentence(folder))
    if folder.has_target:
        sentences.append(
            "The network was trained to predict the target image, voxel by voxel, not from the noisy image "
            "alone; grey levels are the target's."
        )
    elif folder.stage("stage2") is None and (folder.kernel is None or not folder.kernel.is_single_pixel):
        asked = folder.job.get("run_stage2") is not False
        sentences.append(
            "Stage 2, which removes structured noise, did not run."
            if asked
            else "Stage 2 was not asked for: only noise that is random from pixel to pixel was removed."
        )
    elif folder.stage("stage1") is None and folder.stage("stage2") is not None:
        sentences.append("Stage 1 was not run; stage 2 removed random and structured noise in one.")
    # The sum over the steps: the summary's own time is that of the last run of a resumed job.
    seconds = sum(number_in(step, "seconds") or 0.0 for step in steps_of(folder))
    if seconds:
        sentences.append(f"The whole job took {words.duration(seconds)}.")
    return [sentence for sentence in sentences if sentence]


def _what_was_written(pairs: list[ImagePair], findings: Findings | None) -> str:
    if findings is None or not pairs:
        return "The input image could not be read, so this page has no pictures of it."
    planes = findings.planes
    size = words.sizes(planes.dims, planes.shape)
    volume = words.byte_size(float(np.prod(planes.shape, dtype=np.float64)) * np.dtype(planes.dtype).itemsize)
    first = f"The image “{pairs[0].name}” ({size}, {planes.dtype}, {volume})"
    if planes.denoised is None:
        return f"{first} has no finished result yet."
    more = f", the first of {len(pairs)}," if len(pairs) > 1 else ""
    return f"{first}{more} was denoised and written as {planes.denoised_dtype}."


def facts_of(folder: RunFolder, findings: Findings | None) -> list[Fact]:
    """Return the few numbers that everyone asks for."""
    facts = []
    if findings is not None:
        planes = findings.planes
        size = " × ".join(f"{n:,}" for n in planes.shape)
        facts.append(Fact(f"Image ({', '.join(planes.dims)})", f"{size} {planes.dtype}"))
        if findings.noise is not None:
            noise = findings.noise
            facts.append(
                Fact("Noise in flat parts", f"{words.number(noise.before)} → {words.number(noise.after)}")
            )
    kernel = folder.kernel
    if kernel is not None:
        size = " × ".join(str(n) for n in kernel.mask.shape)
        single = kernel.is_single_pixel
        facts.append(
            Fact(
                f"Noise kernel ({' × '.join('zyx'[-kernel.mask.ndim :])})",
                "single pixel" if single else f"{size}, {int(kernel.mask.sum())} pixels",
            )
        )
    if folder.stages:
        stages = " and ".join(stage.name.replace("stage", "stage ") for stage in folder.stages)
        facts.append(Fact("Trained", "with a target" if folder.has_target else stages))
    if findings is not None and findings.diagnostics is not None and findings.diagnostics.loss is not None:
        loss = findings.diagnostics.loss
        share = f" ({words.percent(max(loss.share, 0.0))})" if loss.reading != "cannot tell" else ""
        facts.append(Fact("Signal loss", f"{loss.reading}{share}"))
    channel = _first_channel(folder.statistics)
    low, high = number_in(channel, "minimum"), number_in(channel, "maximum")
    if low is not None and high is not None:
        facts.append(Fact("Grey levels of the input", f"{words.number(low, 4)} to {words.number(high, 4)}"))
    peak = number_in(folder.summary, "peak_bytes")
    if peak:
        facts.append(Fact("Most memory of an inference worker", words.byte_size(peak)))
    return facts


def _first_channel(statistics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the statistics of the first channel of the first image."""
    found: Any = statistics
    for key in ("images", "channels"):
        inner = found.get(key) if isinstance(found, Mapping) else None
        found = inner[0] if isinstance(inner, list) and inner else found
    return found if isinstance(found, Mapping) else {}


def warnings_of(folder: RunFolder, findings: Findings | None) -> list[str]:
    """Return what the run warned of, what is missing, and what in the measurements gives pause."""
    found = [str(text) for text in _listed(folder.summary.get("warnings"))]
    found += [f"Not kept from the input: {text}." for text in _listed(folder.summary.get("changes"))]
    missing, failed = (
        int(number_in(folder.summary, key) or 0) for key in ("missing_chunks", "blocks_failed")
    )
    if missing:
        found.append(
            f"{words.plural(missing, 'chunk')} of the input absent and read as fill value, as the job allows."
        )
    if failed:
        found.append(
            f"{words.plural(failed, 'block')} failed: the result is not complete. Run the same job again."
        )
    if findings is not None:
        found += [] if folder.has_target else _doubts(findings, folder.kernel)
        found += [f"Not shown: {problem}." for problem in findings.planes.problems]
    found += list(dict.fromkeys(folder.missing.values()))
    return found


def _doubts(findings: Findings, kernel: NoiseKernel | None) -> list[str]:
    """Return what in the measurements should make a reader look twice."""
    doubts = []
    noise, check, profile = findings.noise, findings.check, findings.profile
    if noise is not None and noise.after > _LITTLE_REMOVED * noise.before:
        doubts.append(
            f"Little noise was removed: {words.percent(noise.after / noise.before)} is left in flat parts. "
            "Noise that neighbouring pixels share, or too few epochs, are the usual reasons."
        )
    if check is not None and check.outside > max(check.chance, 0.15):
        doubts.append(
            f"What was removed is correlated ({words.number(check.outside, 2)}) beyond the noise kernel: "
            "look for structure in the picture of what was removed."
        )
    if noise is not None and profile is not None and profile.intensity.size:
        worst = int(np.argmax(np.abs(profile.mean) / noise.sigma_at(profile.intensity)))
        amount = float(profile.mean[worst])
        if abs(amount) > _DIMMED * float(noise.sigma_at(profile.intensity[worst : worst + 1])[0]):
            verb = "dimmed" if amount > 0 else "brightened"
            doubts.append(
                f"Pixels near grey level {words.number(float(profile.intensity[worst]))} were {verb} by "
                f"{words.number(abs(amount))} on average: some signal was changed with the noise."
            )
    found = findings.diagnostics
    return doubts + ([] if found is None else diagnostic_doubts(found, kernel))


def kernel_sentence(run: RunFolder) -> str:
    """Say in words what shape the noise has and what followed from it."""
    kernel = run.kernel
    if kernel is None:
        return "The shape of the noise was not measured."
    if kernel.is_single_pixel:
        return f"{_single_pixel(kernel)} {_after_single_pixel(run)}".strip()
    hidden = kernel.hidden
    reaches = zip("xyz", (int(size) // 2 for size in kernel.mask.shape[::-1]), strict=False)
    along = " and ".join(f"{words.plural(reach, 'pixel')} along {axis}" for axis, reach in reaches if reach)
    found = "By the mask given in a file, neighbouring" if kernel.source == "file" else "Neighbouring"
    text = (
        f"{found} pixels share noise, up to {along}: to predict a pixel, stage 2 hides "
        f"{int(np.sum(hidden)) - 1} pixels around it and the pixel itself."
    )
    if hidden is not kernel.mask:
        more = int(np.sum(hidden)) - int(np.sum(kernel.mask))
        text += f" {more} of them share little of its noise, but would tell much of it together."
    return f"{text} Note: {kernel.note}." if kernel.note else text


def _single_pixel(kernel: NoiseKernel) -> str:
    if kernel.note:
        # Not found is not the same as not there.
        return (
            f"No noise that pixels share could be told from the image ({kernel.note}): one pixel is hidden."
        )
    if kernel.source == "file":
        return "The mask given in a file is a single pixel."
    return "The noise is random from pixel to pixel: the kernel is a single pixel."


def _after_single_pixel(run: RunFolder) -> str:
    if run.stage("stage2") is None:
        return "There is nothing more for stage 2 to do than stage 1 has done, so stage 2 was skipped."
    if run.stage("stage1") is None:
        return "Stage 2, run alone, therefore hid nothing but the pixel itself, as stage 1 would."
    return ""


def residual_sentence(check: ResidualCheck) -> str:
    """Say in words whether what was removed is correlated where noise is not."""
    usual = max(check.chance, 0.05)
    if check.outside > usual:
        apart = zip("xy", check.lag[::-1], strict=True)
        place = " and ".join(f"{words.plural(lag, 'pixel')} along {axis}" for axis, lag in apart if lag)
        return (
            f"Pixels that are {place} apart should share no noise, yet what was removed is correlated there "
            f"by {words.number(check.outside, 2)}; chance gives at most {words.number(check.chance, 2)}. "
            "Some structure, or noise outside the kernel, is in it."
        )
    limit = words.number(usual, 2)
    text = f"Where pixels share no noise, what was removed is hardly correlated (below {limit})."
    if check.opposite < -usual:
        text += (
            f" The negative correlation ({words.number(check.opposite, 2)}) next to the kernel is usual: a "
            "little of each pixel's noise is left in the results of its neighbours."
        )
    return text


def steps_of(folder: RunFolder) -> list[Mapping[str, Any]]:
    """Return the steps that the run's summary lists."""
    return [step for step in _listed(folder.summary.get("steps")) if isinstance(step, Mapping)]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
