"""What the diagnostics of the residual mean, in plain words with numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from denoizarr.figures.intensity_bias import IntensityBias
from denoizarr.kernels.noise_left import NoiseLeft
from denoizarr.kernels.residual import ResidualCorrelation
from denoizarr.kernels.signal_loss import GOOD, REMOVED, SignalLoss
from denoizarr.training.noise_kernel import NoiseKernel

from . import words
from .diagnostics import Diagnostics
from .run_folder import number_in

# Correlation of the noise's direction left in the output, in units of the raw noise's variance.
NOTABLE_LEFT = 0.03
_LARGE_BIAS = 0.01
_TINY = 0.001
_KEEP_MORE = " Longer training, a smaller kernel or stage 1 alone may keep more."


def correlation_sentences(found: Diagnostics) -> list[str]:
    """Say whether what was removed is correlated where it should not be, on background and on signal."""
    sentences = []
    for place, check, meaning in (
        ("background", found.background, "noise beyond the kernel, or structure in the flattest places"),
        ("signal", found.signal, "structure that was removed"),
    ):
        if check is None:
            continue
        if check.marked.any():
            sentences.append(
                f"On {place}, what was removed is correlated at {words.plural(_pairs(check), 'distance')} "
                f"where it should not be, most at {_apart(check.lag)} "
                f"({words.number(check.strongest, 2)}): {meaning}."
            )
        else:
            sentences.append(
                f"On {place}, nothing that was removed is correlated where it should not be (largest "
                f"{words.number(check.strongest, 2)}, chance alone gives {words.number(check.chance, 2)})."
            )
    return sentences


def loss_sentence(loss: SignalLoss, gap: int | None) -> str:
    """Say in words how much of the structure was taken away."""
    if loss.reading == "cannot tell":
        return "Whether signal was removed cannot be told: too little structure stands above the noise."
    further = "next plane" if gap == 1 else f"plane {gap} further on"
    against = (
        f"Counted is structure that the {further}, whose noise is independent, shows too; without loss the "
        "gauge stands at 0 % but for chance."
        if gap is not None
        else "There is no second plane of independent noise: the denoised plane is its own reference, and "
        f"what noise alone gives ({_signed_percent(loss.null)}, measured on background) was subtracted. So "
        "the gauge is rough, and small losses are underestimated."
    )
    return (
        f"The gauge of signal loss reads “{loss.reading}”: {_signed_percent(loss.share)} "
        f"(± {words.percent(2 * loss.standard_error)}) of the local contrast of structures up to 16 pixels "
        f"is in what was removed. Below {100 * GOOD:.0f} % is good; from {100 * REMOVED:.0f} % on, signal is "
        f"being removed. {against}{_context(loss)}"
    )


def _context(loss: SignalLoss) -> str:
    """Say what a linear filter could have kept."""
    if not np.isfinite(loss.floor):
        return ""
    return (
        f" The best linear filter for this noise would lose {words.percent(loss.floor)}: structure fainter "
        "than the noise cannot be kept whole by any method."
    )


def tells(left: NoiseLeft | None, kernel: NoiseKernel | None) -> bool:
    """Say whether the raw background has a correlation whose remains are worth looking for."""
    if left is None:
        return False
    if kernel is not None and not kernel.is_single_pixel:
        return True
    # Nothing was found, or nothing was looked for: rows may share noise all the same.
    return left.raw > max(0.05, 3 * left.raw_error)


def is_notable(left: NoiseLeft) -> bool:
    """Say whether more of the noise's direction is left in the output than chance and 0.03."""
    return left.left_anywhere > max(NOTABLE_LEFT, 3 * left.left_anywhere_error)


def left_sentence(left: NoiseLeft) -> str:
    """Say in words how much of the noise's correlation is left in the output's background."""
    at = _apart(left.lag)
    less = f", less that at {_apart(left.turned)}" if left.turned is not None else ""
    if not is_notable(left):
        verdict = "hardly any is left"
    elif left.turned is not None:
        verdict = "some of it is left in the output"
    else:
        verdict = "an upper bound, for this noise has no direction, and smooth remains count in full"
    most = words.number(left.left_anywhere, 2)
    farther = "" if left.left_anywhere < _TINY else f", at most {most} farther out"
    return (
        f"Correlation at {at}{less}, on background and in units of the raw noise's variance: "
        f"{words.number(left.raw, 2)} in the raw image, {words.number(left.removed, 2)} in what was removed "
        f"(a plain correlation of {words.number(left.removed_correlation, 2)}), {_small(left.left)} in the "
        f"output{farther}: {verdict}."
    )


def _small(value: float) -> str:
    return words.number(value, 2) if abs(value) >= _TINY else f"below {_TINY}"


def loss_caption(with_left: bool) -> str:
    """Return how to read the picture of the gauge."""
    text = (
        "Top: how much of the local contrast of structures is in what was removed; 0 % is what noise alone "
        "gives. Below, the same by size: the finest structures are the first to drown in noise."
    )
    if with_left:
        text += (
            " Right: a denoised background is smooth, so its neighbours agree in all directions; what counts "
            "is the noise's own direction. Drawn is the covariance at a distance of the noise kernel, minus "
            "that at the same distance turned by a quarter where the kernel has a direction, over the "
            "variance of the raw noise. It should move from the raw image into what was removed and leave "
            "nothing in the output."
        )
    return text


def kernel_measured_sentence(kernel: NoiseKernel) -> str:
    """Say how the kernel was measured: windows, method, source, certainty."""
    if kernel.source == "file" or kernel.windows == 0:
        return ""
    source = {
        "extractor": "the raw image",
        "stage1": "what stage 1 made of the image",
        "plane differences": "differences of neighbouring planes, where structure cancels",
    }.get(kernel.source, kernel.source)
    return (
        f"Measured in {words.plural(kernel.windows, 'window')} of {kernel.window_size} pixels of {source}, "
        f"by the method “{kernel.method}”. The largest correlation beyond the kernel is "
        f"{words.number(kernel.outside, 2)}."
    )


def periods_sentence(periodic: Mapping[str, Any], kernel: NoiseKernel | None) -> str:
    """Say which patterns repeat, how strong they were, and what was done about them.

    Parameters
    ----------
    periodic : mapping
        The run's record of periodic lines; empty where none was looked for.
    kernel : NoiseKernel or None
        May know of periods that were left in.
    """
    listed_lines = periodic.get("lines")
    groups: dict[float, float] = {}
    for line in listed_lines if isinstance(listed_lines, list) else []:
        if not isinstance(line, Mapping):
            continue
        period, amplitude = (number_in(line, key) for key in ("period", "amplitude"))
        if period:
            groups[period] = max(groups.get(period, 0.0), amplitude or 0.0)
    if groups:
        listed = " and ".join(
            f"{words.number(period, 4)} pixels (amplitude {words.number(amplitude)} grey levels)"
            for period, amplitude in sorted(groups.items())
        )
        return (
            f"A pattern repeats every {listed}. No blind spot can hide what repeats, so it was taken out of "
            "every plane before training and inference, and is no part of what is called removed below."
        )
    if kernel is None or not kernel.periods:
        return ""
    listed = " and ".join(words.number(period, 4) for period in kernel.periods)
    return (
        f"A pattern repeats every {listed} pixels. No blind spot can hide what repeats; “periodic: auto” "
        "takes it out before training."
    )


def bias_sentence(bias: IntensityBias) -> str:
    """Say how far intensities are kept, against a known truth."""
    largest = bias.largest
    verb = "too bright" if largest > 0 else "too dark"
    text = (
        f"Against the known truth, the largest mean error of any intensity is {words.percent(abs(largest))} "
        f"of the truth's range ({verb}), on the plane shown."
    )
    if largest < -_LARGE_BIAS:
        text += " Too dark at the bright end: small bright structures are averaged with what surrounds them."
    return text


def diagnostic_doubts(found: Diagnostics, kernel: NoiseKernel | None) -> list[str]:
    """Return what in the diagnostics should make a reader look twice."""
    doubts = []
    if found.loss is not None and found.loss.reading == "signal is being removed":
        share = words.percent(found.loss.share)
        # What no linear filter could keep is no reason to train for longer.
        fainter = np.isfinite(found.loss.floor) and found.loss.share <= found.loss.floor
        advice = _context(found.loss) if fainter else _KEEP_MORE
        doubts.append(
            f"Signal is being removed: {share} of the local contrast of structures is in the residual."
            f"{advice}"
        )
    left = found.left
    # Without a direction it is an upper bound: what is left may be smooth, and no fault.
    if left is not None and left.turned is not None and tells(left, kernel) and is_notable(left):
        doubts.append(
            f"The output's background keeps {words.number(left.left_anywhere, 2)} of the noise's variance as "
            "correlation along the noise's own direction."
        )
    return doubts


def _pairs(check: ResidualCorrelation) -> int:
    """Count marked lags; a lag and its opposite are one."""
    return int(np.ceil(check.marked.sum() / 2))


def _apart(lag: tuple[int, int]) -> str:
    apart = zip("xy", lag[::-1], strict=True)
    named = [
        f"{words.plural(abs(step), 'pixel')} along {axis}"
        if sum(map(bool, lag)) == 1
        else f"{axis} {words.number(step)}"
        for axis, step in apart
        if step
    ]
    return ", ".join(named)


def _signed_percent(share: float) -> str:
    return words.percent(share) if share >= 0 else f"−{words.percent(-share)}"
