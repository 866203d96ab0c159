"""How training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from denoizarr.figures import canvas


def training_curves_figure(
    stages: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    title: str = "How training went",
    with_target: bool = False,
) -> Figure:
    """Draw loss and learning rate over epochs, one column of panels per stage.

    Parameters
    ----------
    stages : mapping of str to rows
        Rows of ``train.csv`` per stage, as numbers or text: epoch, train_loss, validation_loss,
        learning_rate. An absent or empty value is a gap. A stage may have no rows.
    title : str
        Title of the figure.
    with_target : bool
        The network learnt to predict a target, not hidden pixels of the noisy image.

    Returns
    -------
    matplotlib.figure.Figure
        Per stage: loss, then learning rate below it.
    """
    compared = (
        "The loss compares predictions with the target, both normalised. What noise the target holds cannot "
        "be predicted, so a good run may level"
        if with_target
        else "The loss compares predicted pixels with the noisy pixels that were hidden, both normalised. "
        "Noise cannot be predicted, so a good run levels"
    )
    caption = (
        f"{compared} out above zero. Validation is measured on "
        "parts of the image that are never trained on; the model with the lowest validation loss is kept. "
        "Still falling at the end: more epochs would help. Validation rising while training falls: "
        "overfitting."
    )
    figure = canvas.new_canvas(title, caption, width=11.0, height=5.6)
    panels = figure.subplots(2, max(len(stages), 1), height_ratios=(2.4, 1), squeeze=False, sharex="col")
    for column, (name, rows) in enumerate(stages.items()):
        _losses(panels[0, column], name, rows)
        _learning_rate(panels[1, column], rows)
    return figure


def column_of(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """One column of ``train.csv`` as float64, NaN where a value is absent or no number."""
    return np.array([_number(row.get(name)) for row in rows], dtype=np.float64)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _losses(axes: Axes, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    canvas.panel_title(axes, name)
    canvas.plain_plot(axes, x_label="", y_label="loss")
    epochs, training, validation = (
        column_of(rows, key) for key in ("epoch", "train_loss", "validation_loss")
    )
    if not np.isfinite(training).any():
        axes.text(
            0.5, 0.5, "no record of this stage", transform=axes.transAxes, ha="center", color=canvas.FAINT
        )
        return
    marker = "o" if len(rows) <= 30 else ""
    axes.plot(epochs, training, color=canvas.BLUE, marker=marker, markersize=3.5, label="training")
    if np.isfinite(validation).any():
        axes.plot(
            epochs, validation, color=canvas.VERMILION, marker=marker, markersize=3.5, label="validation"
        )
        best = int(np.nanargmin(validation))
        axes.plot(
            epochs[best],
            validation[best],
            marker="o",
            markersize=11,
            markerfacecolor="none",
            markeredgecolor=canvas.VERMILION,
            linestyle="none",
            label=f"kept: epoch {epochs[best]:.0f}, loss {validation[best]:.3g}",
        )
    losses = np.concatenate([training, validation])
    losses = losses[np.isfinite(losses)]
    if losses.min() > 0 and losses.max() > 10 * losses.min():
        axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=canvas.TEXT_SIZE, loc="upper right")


def _learning_rate(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    canvas.plain_plot(axes, x_label="epoch", y_label="learning rate")
    epochs, rates = column_of(rows, "epoch"), column_of(rows, "learning_rate")
    marker = "o" if len(rows) <= 2 else ""
    axes.plot(epochs, rates, color=canvas.INK, marker=marker, markersize=3.5)
    known = rates[np.isfinite(rates)]
    axes.set_ylim(0, 1.08 * float(known.max()) if known.size and known.max() > 0 else 1.0)
    if np.isfinite(epochs).any():
        axes.set_xlim(float(np.nanmin(epochs)) - 0.5, float(np.nanmax(epochs)) + 0.5)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    axes.yaxis.get_offset_text().set_fontsize(canvas.TEXT_SIZE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
