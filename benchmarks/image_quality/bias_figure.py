"""Mean error by intensity over the S cases, for a few methods beside each other."""

from __future__ import annotations

from pathlib import Path

from .comparison import Found, pooled_bias
from .methods import BY_NAME

# Colours that people with colour blindness can tell apart (Okabe and Ito).
_DRAWN = {
    "gaussian": "#999999",
    "bm3d": "#E69F00",
    "careamics-structn2v": "#CC79A7",
    "ours-stage2": "#0072B2",
}


def draw(found: Found, path: Path) -> bool:
    """Write the picture as PNG; without an S case there is none, and False is returned."""
    lines = {name: [pooled_bias(found, name, bins) for bins in ("bias", "bias_by_output")] for name in _DRAWN}
    if not any(by_truth for by_truth, _ in lines.values()):
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = ("sorted by the true intensity", "sorted by the denoised intensity")
    for number, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        axes.axhspan(-1, 1, color="#009E73", alpha=0.15, linewidth=0, label="within 1 %")
        axes.axhline(0, color="black", linewidth=0.6)
        for name, both in lines.items():
            if both[number]:
                x, y = ([entry[key] for entry in both[number]] for key in ("middle", "bias"))
                axes.plot(x, y, "o-", color=_DRAWN[name], markersize=4, label=BY_NAME[name].label)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("intensity, grey levels of 0 to 255")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mean of denoised less true, % of the range")
    panels[0].legend(frameon=False, fontsize=9, loc="lower left")
    figure.suptitle("Where a denoised intensity is too high or too low, over the S cases", fontsize=12)
    figure.savefig(path)
    return True
