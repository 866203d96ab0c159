"""Pictures to look at, beside the cells: they show the images, so they are not for the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .cases import CASES, Case
from .comparison import Found
from .methods import GOALS, METHODS, Cell

Pixels = np.ndarray[Any, Any]
_SIDE = 160


def draw_all(found: Found, folder: Path) -> None:
    """Write one picture per case that has a goal, and one of the slices, of the first seed."""
    goal_cases = {goal.case for goal in GOALS}
    for case in CASES:
        if case.name in goal_cases or not case.has_truth:
            shown = _arrays(found, case)
            if "raw" in shown and len(shown) > 1:
                folder.mkdir(parents=True, exist_ok=True)
                _draw(case, shown, folder / f"{case.name}.png")


def _arrays(found: Found, case: Case) -> dict[str, Pixels]:
    """Return what there is of a case, by label: one plane of it, the truth first."""
    shown = {}
    if case.has_truth and case.truth_path(found.kept.scratch).exists():
        shown["truth"] = np.load(case.truth_path(found.kept.scratch))
    for method in METHODS:
        keys = sorted(key for key in found.results if key[:2] == (case.name, method.name))
        if keys:
            array = found.kept.array(Cell(case, method, keys[0][2]))
            shown[method.label] = array if array.ndim == 2 else array[array.shape[0] // 2]
    return {label: array.astype(np.float64) for label, array in shown.items()}


def _draw(case: Case, shown: dict[str, Pixels], path: Path) -> None:
    """Draw the same window of every array, and below what was taken from the noisy one."""
    from matplotlib.figure import Figure

    reference = shown.get("truth", next(iter(shown.values())))
    box = _brightest(shown.get("truth", list(shown.values())[-1]))
    low, high = np.quantile(reference[box], (0.005, 0.998))
    noisy = shown["raw"][box]
    reach = 3 * float(np.std(noisy - list(shown.values())[-1][box])) or 1.0
    figure = Figure(figsize=(2.5 * len(shown), 5.4), dpi=100, layout="constrained")
    panels = figure.subplots(2, len(shown), squeeze=False)
    for column, (label, array) in enumerate(shown.items()):
        panels[0, column].imshow(array[box], cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        panels[0, column].set_title(label, fontsize=8)
        panels[1, column].imshow(
            noisy - array[box], cmap="gray", vmin=-reach, vmax=reach, interpolation="nearest"
        )
    for axes in panels.ravel():
        axes.set_xticks([])
        axes.set_yticks([])
    panels[1, 0].set_ylabel("noisy less this", fontsize=9)
    figure.suptitle(f"{case.name}: a window of {_SIDE} x {_SIDE}", fontsize=10)
    figure.savefig(path)


def _brightest(plane: Pixels) -> tuple[slice, slice]:
    """Return the window with the most structure."""
    step = _SIDE // 4
    origins = [
        (y, x) for y in range(0, plane.shape[0] - _SIDE, step) for x in range(0, plane.shape[1] - _SIDE, step)
    ]
    y, x = max(origins, key=lambda o: float(plane[o[0] : o[0] + _SIDE, o[1] : o[1] + _SIDE].std()))
    return slice(y, y + _SIDE), slice(x, x + _SIDE)
