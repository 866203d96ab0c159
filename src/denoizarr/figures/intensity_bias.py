"""Are intensities kept? Mean error of a denoised image by the true intensity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from denoizarr.errors import BadRequest
from denoizarr.figures import canvas

_FEW = 100


@dataclass(frozen=True, slots=True)
class IntensityBias:
    """Mean error by true intensity; one value per bin that holds a pixel.

    Attributes
    ----------
    intensity : (n,) float64 array
        Mean truth of a bin, in grey levels.
    bias, spread : (n,) float64 array
        Mean and standard deviation of output minus truth, in grey levels.
    count : (n,) int64 array
        Pixels.
    value_range : float
        Largest minus smallest truth.
    """

    intensity: np.ndarray
    bias: np.ndarray
    spread: np.ndarray
    count: np.ndarray
    value_range: float

    @property
    def largest(self) -> float:
        """Largest bias, with its sign, as a share of the range; bins of under 100 pixels do not count."""
        enough = self.count >= min(_FEW, int(self.count.max()))
        bias = self.bias[enough]
        return float(bias[np.abs(bias).argmax()] / self.value_range)


def bias_by_intensity(truth: Any, output: Any, bins: int = 32) -> IntensityBias:
    """Measure the mean error of an output in bins of the truth.

    Parameters
    ----------
    truth, output : array
        Of one shape, any number of axes, in the same grey levels. Pixels that are not finite are left out.
    bins : int
        Bins of equal width over the truth's range.

    Returns
    -------
    IntensityBias
        Bins of the truth: how dark or bright what truly has one brightness came out. This counts what is
        lost of small bright structures too, which noise hides from any denoiser: even the best possible one
        (the mean of all that the noise leaves possible) draws rare intensities towards common ones. Whether
        a mean of *output* values can be believed is another question, of bins of the output; there the best
        possible one has no bias, and the report asks it without a truth, by the mean of what was removed.

    Raises
    ------
    BadRequest
        When the shapes differ, the truth does not vary, or ``bins`` is below 1.
    """
    true, given = np.asarray(truth, np.float64).ravel(), np.asarray(output, np.float64).ravel()
    if np.shape(truth) != np.shape(output):
        raise BadRequest("truth and output differ in size", got=np.shape(output), expected=np.shape(truth))
    if bins < 1:
        raise BadRequest("bad number of bins", got=bins, expected="1 or more")
    finite = np.isfinite(true) & np.isfinite(given)
    true, error = true[finite], given[finite] - true[finite]
    if true.size == 0 or true.min() == true.max():
        raise BadRequest("the truth does not vary: there is nothing to bin", got=f"{true.size} finite pixels")
    low, value_range = float(true.min()), float(np.ptp(true))
    number = np.minimum(((true - low) / value_range * bins).astype(np.int64), bins - 1)
    count = np.bincount(number, minlength=bins)
    filled = count > 0
    size = np.maximum(count, 1)
    bias = np.bincount(number, error, bins) / size
    # Around each bin's mean: the difference of two large sums would lose a small variance.
    variance = np.bincount(number, (error - bias[number]) ** 2, bins) / size
    centre = np.bincount(number, true, bins) / size
    return IntensityBias(centre[filled], bias[filled], np.sqrt(variance[filled]), count[filled], value_range)


def intensity_bias(
    truth: Any, output: Any, bins: int = 32, *, title: str = "Are intensities kept?"
) -> Figure:
    """Draw the mean error of an output by true intensity, with one per cent of the range and pixel counts.

    Parameters
    ----------
    truth, output : array
        As :func:`bias_by_intensity` takes them.
    bins : int
        Bins of equal width over the truth's range.
    title : str
        Title of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        Axes in this order: bias, counts.

    Raises
    ------
    BadRequest
        As :func:`bias_by_intensity`.
    """
    return bias_figure(bias_by_intensity(truth, output, bins), title=title)


def bias_figure(found: IntensityBias, *, title: str = "Are intensities kept?") -> Figure:
    """Draw what :func:`bias_by_intensity` found; returns and axes as :func:`intensity_bias`."""
    caption = (
        "Above: output minus truth, averaged over all pixels of one true brightness; noise cancels there, so "
        "what is left is bias. Below zero at the bright end: bright structures came out too dark. Blur does "
        "that, and any denoiser does some of it to what is small and rare. Dashed: one per cent of the "
        f"truth's range. Hollow: under {_FEW} pixels, perhaps beyond the frame. Below: how many pixels that "
        "is."
    )
    figure = canvas.new_canvas(title, caption, width=11, height=6.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, 1))
    hundredth = 0.01 * found.value_range
    for sign in (-1, 1):
        upper.axhline(
            sign * hundredth,
            color=canvas.VERMILION,
            linestyle="--",
            linewidth=1.1,
            label="1 % of the range" if sign > 0 else None,
        )
    upper.axhline(0, color=canvas.FAINT, linewidth=1)
    many = found.count >= _FEW
    upper.plot(found.intensity[many], found.bias[many], color=canvas.BLUE, linewidth=1.4)
    for chosen, face in ((many, canvas.BLUE), (~many, "white")):
        upper.plot(
            found.intensity[chosen],
            found.bias[chosen],
            linestyle="none",
            marker="o",
            markersize=4.5,
            color=canvas.BLUE,
            markerfacecolor=face,
        )
    reach = max(1.15 * float(np.abs(found.bias[many] if many.any() else found.bias).max()), 1.6 * hundredth)
    upper.set_ylim(-reach, reach)
    largest = found.largest
    canvas.panel_title(upper, f"Bias: at most {100 * abs(largest):.2g} % of the range")
    canvas.plain_plot(upper, x_label="", y_label="output minus truth (grey levels)")
    upper.legend(frameon=False, fontsize=canvas.TEXT_SIZE, loc="best")
    low, high = float(found.intensity.min()), float(found.intensity.max())
    lower.bar(
        found.intensity,
        found.count,
        width=0.8 * found.value_range / max(len(found.count), 2),
        color=canvas.SKY,
    )
    lower.set_yscale("log")
    lower.set_xlim(low - 0.03 * found.value_range, high + 0.03 * found.value_range)
    canvas.plain_plot(lower, x_label="true intensity (grey levels)", y_label="pixels")
    return figure
