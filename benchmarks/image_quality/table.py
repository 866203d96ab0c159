"""The committed page: Markdown and one picture, of whatever has been measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .bias_figure import draw
from .cases import BOXED_CASES, CASES, LINES_CASE, PAIRS, SHALE, Case
from .comparison import Found, interval, largest_bias, missing
from .kept import Kept
from .methods import BY_NAME, GOALS, METHODS, Cell, all_cells
from .metrics import BIAS_BINS, BIN_PIXELS, PEAK, SSIM_WINDOW, above_own_range
from .pictures import draw_all

_NOTHING = "–"
N2V, BM3D, STAGE1, STAGE2, TRUE = "careamics-n2v", "bm3d", "ours-stage1", "ours-stage2", "ours-true"
AHEAD, AHEAD_ON_AVERAGE, BEHIND_BM3D, KERNEL_COST, STAGES = 0.0, 0.4, -0.1, 0.1, 5.0
RESIDUAL_ROWS, ROWS_LEFT, OVER_BUDGET = 0.1, 0.03, 1.03


def write(kept: Kept, seeds: tuple[int, ...], out: Path, command: str) -> None:
    """Write the page, and beside it the picture of bias by intensity where there are S cases."""
    cells = all_cells(seeds)
    found = Found.of(kept, cells)
    parts = [
        _head(kept, seeds, command),
        _goals(found),
        _statistics(found),
        *_matrices(found),
        _slices(found),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    picture = out.with_name(f"{out.stem}-bias.png")
    drawn = draw(found, picture)
    parts += [_bias(found, picture.name if drawn else None), _all(found), _missing(found, cells)]
    begun = out.with_suffix(f".{os.getpid()}")
    begun.write_text("\n\n".join(part for part in parts if part) + "\n")
    begun.replace(out)
    draw_all(found, kept.scratch / "pictures")
    print(f"{out}: {len(found.results)} of {len(cells)} cells")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _number(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    if value is None or not np.isfinite(value):
        return _NOTHING
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


def _head(kept: Kept, seeds: Sequence[int], command: str) -> str:
    return (
        "# Quality beside other denoisers\n\n"
        "Written by this command; what the cases and the figures are, and how it is measured, says\n"
        f"[benchmarks.md](benchmarks.md#quality).\n\n```\n{command}\n```\n\n"
        f"{kept.budget_seconds:g} CPU seconds for each training, one thread; seeds "
        f"{', '.join(map(str, seeds))} for the cases with a goal and the first of them elsewhere.\n"
        f"PSNR has the peak {PEAK:g}, in dB; SSIM has windows of {SSIM_WINDOW} x {SSIM_WINDOW} and the range "
        "of the truth. *Scale-invariant* is after the gain and the offset that fit best.\n"
        f"{platform.system()}, Python {platform.python_version()}."
    )


# ---- goals and statistics


def _goals(found: Found) -> str:
    rows = []
    for goal in GOALS:
        values = [r[goal.figure] for r in found.seeds(goal.case, goal.method)]
        kind = "scale-invariant PSNR" if goal.figure == "si_psnr" else "PSNR"
        row = [goal.case, kind, f"{goal.decibels:g}"]
        if values:
            spread = f" ({_number(min(values))} to {_number(max(values))})" if len(values) > 1 else ""
            row += [_number(float(np.mean(values))) + spread, str(len(values))]
            row.append(_yes(float(np.mean(values)) >= goal.decibels))
        else:
            row += [_NOTHING, "0", _NOTHING]
        others = ("gaussian", "bm3d", "bm3d-spectrum", N2V, "careamics-n2v2", "careamics-structn2v")
        best = [(found.mean(goal.case, name, goal.figure), name) for name in others]
        known = [(value, name) for value, name in best if value is not None]
        row.append(f"{_number(max(known)[0])} ({BY_NAME[max(known)[1]].label})" if known else _NOTHING)
        truth = goal_truth(found, goal.case)
        row.append(_NOTHING if truth is None else _number(above_own_range(truth)))
        rows.append(row)
    head = ["case", "figure", "goal", "ours, stage 2 (over seeds)", "seeds", "met", "best of the others"]
    return "## Goals\n\n" + _table([*head, "dB above the PSNR with the truth's own range"], rows)


def goal_truth(found: Found, name: str) -> Any:
    case = next(case for case in CASES if case.name == name)
    path = case.truth_path(found.kept.scratch)
    return np.load(path) if path.exists() else None


def _statistics(found: Found) -> str:
    rows: list[list[str]] = []

    def line(
        label: str, differences: dict[str, float], cases: Sequence[Case], goal: str, met: bool | None
    ) -> None:
        if not differences:
            rows.append([label, _NOTHING, _NOTHING, _NOTHING, f"0 of {len(cases)}", goal, _NOTHING])
            return
        mean, half = interval(list(differences.values()))
        width = f"{_number(mean - half, sign=True)} to {_number(mean + half, sign=True)}"
        least = min(differences, key=lambda name: differences[name])
        rows.append(
            [
                label,
                _number(mean, sign=True),
                width if np.isfinite(half) else _NOTHING,
                f"{_number(differences[least], sign=True)} ({least})",
                f"{len(differences)} of {len(cases)}",
                goal,
                "" if met is None else _yes(met) + ("" if len(differences) == len(cases) else ", so far"),
            ]
        )

    for figure, name in (("si_psnr", "scale-invariant"), ("psnr", "PSNR")):
        ahead = found.differences(PAIRS, STAGE2, N2V, figure)
        met = (
            bool(ahead)
            and min(ahead.values()) >= AHEAD
            and interval(list(ahead.values()))[0] >= AHEAD_ON_AVERAGE
        )
        goal = f"each at least {AHEAD:g}, mean at least {AHEAD_ON_AVERAGE:g}"
        line(f"pairs, {name}: ours less CAREamics N2V", ahead, PAIRS, goal, met)
    narrow = tuple(case for case in PAIRS if not case.image.startswith("WideField"))
    for figure, name in (("si_psnr", "scale-invariant"), ("psnr", "PSNR")):
        level = found.differences(PAIRS, STAGE2, BM3D, figure)
        met = bool(level) and interval(list(level.values()))[0] >= BEHIND_BM3D
        goal = f"mean at least {_number(BEHIND_BM3D, 1)}"
        line(f"pairs, {name}: ours less BM3D", level, PAIRS, goal, met)
        level = found.differences(narrow, STAGE2, BM3D, figure)
        line(f"the same without the wide-field image, {name}", level, narrow, "", None)
        level = found.differences(PAIRS, STAGE2, "bm3d-spectrum", figure)
        line(f"pairs, {name}: ours less BM3D with measured spectrum", level, PAIRS, "", None)
    cost = found.differences(BOXED_CASES, STAGE2, TRUE, "psnr")
    met = bool(cost) and abs(interval(list(cost.values()))[0]) <= KERNEL_COST
    line("S: found less true kernel", cost, BOXED_CASES, f"mean within {KERNEL_COST:g}", met)
    gained = found.differences(BOXED_CASES, STAGE2, STAGE1, "psnr")
    met = bool(gained) and interval(list(gained.values()))[0] >= STAGES
    line("S: stage 2 less stage 1", gained, BOXED_CASES, f"mean at least {STAGES:g}", met)
    level = found.differences(BOXED_CASES, STAGE2, BM3D, "psnr")
    line("S: stage 2 less BM3D, which knows the noise's spectrum", level, BOXED_CASES, "", None)
    head = ["difference, dB", "mean", "95 % interval", "least", "cases", "goal", "met"]
    return "## Differences\n\n*Ours* is stage 2 with the found kernel.\n\n" + _table(head, rows)


# ---- tables of cases


def _matrices(found: Found) -> list[str]:
    return [
        "## Real pairs\n\nScale-invariant PSNR / PSNR; best scale-invariant in bold.\n\n"
        + _matrix(found, PAIRS, ("si_psnr", "psnr")),
        "## Known noise\n\nPSNR / SSIM; best PSNR in bold. S: white 10 and boxed 1x9 of 15; "
        "L: white 10 and 12 sin(2 pi x / 8).\n\n"
        + _matrix(found, (*BOXED_CASES, LINES_CASE), ("psnr", "ssim")),
    ]


def _matrix(found: Found, cases: Sequence[Case], figures: tuple[str, str]) -> str:
    methods = [m for m in METHODS if any(found.mean(c.name, m.name, figures[0]) is not None for c in cases)]
    rows = []
    for case in cases:
        means = [[found.mean(case.name, m.name, figure) for figure in figures] for m in methods]
        best = max((first for first, _ in means if first is not None), default=None)
        row = [case.name]
        for first, second in means:
            digits = 3 if figures[1] == "ssim" else 2
            shown = _number(first) if first is None or first != best else f"**{_number(first)}**"
            row.append(_NOTHING if first is None else f"{shown} / {_number(second, digits)}")
        rows.append(row)
    return _table(["case", *(m.label for m in methods)], rows)


def _slices(found: Found) -> str:
    figures = (
        "residual_x1", "residual_y1", "removed_deviation", "rows_left", "slices_rms", "slices_correlation"
    )  # fmt: skip
    rows = [
        [method.label, *(_number(found.mean(SHALE.name, method.name, f), 3) for f in figures)]
        for method in METHODS
        if found.seeds(SHALE.name, method.name)
    ]
    head = ["method", "residual at x=1", "residual at y=1", "deviation removed"]
    head += ["rows left", "rms between slices", "correlation of slices"]
    return (
        "## sem-shale, without truth\n\n"
        "Correlation of neighbours in what was taken away (goal: above "
        f"{RESIDUAL_ROWS:g} at x=1), and its deviation in grey levels;\n"
        "*rows left*, the covariance at x=1 less that at y=1 of the output's background, as a share of the "
        f"noisy variance (goal: below {ROWS_LEFT:g});\n"
        "what neighbouring slices differ by, and how they correlate: their noise is not the same.\n\n"
        + _table(head, rows)
    )


def _bias(found: Found, picture: str | None) -> str:
    rows = []
    for method in METHODS:
        for case in BOXED_CASES:
            results = found.seeds(case.name, method.name)
            if results and method.name in ("gaussian", BM3D, "careamics-structn2v", STAGE2, TRUE):
                by_truth, by_output = (largest_bias(results[0], b) for b in ("bias", "bias_by_output"))
                rows.append(
                    [
                        case.name,
                        method.label,
                        *(
                            text
                            for b in (by_truth, by_output)
                            for text in (
                                _number(b["bias"], 1, sign=True),
                                f"{b['lower']:.0f} to {b['upper']:.0f}",
                                f"{100 * b['pixels'] / 512**2:.2f}",
                            )
                        ),
                    ]
                )
    rows.sort(key=lambda row: [case.name for case in BOXED_CASES].index(row[0]))
    head = ["case", "method", "by truth: largest, %", "bin, grey levels", "% of pixels"]
    head += ["by output: largest, %", "bin, grey levels", "% of pixels"]
    shown = f"\n\n![Mean error by intensity over the S cases]({picture})" if picture else ""
    return (
        "## Intensities\n\nLargest mean error, prediction less truth, per cent of the range, in "
        f"{BIAS_BINS} equal bins of the range with at least {BIN_PIXELS} pixels:\n"
        "sorted by the truth, which says how dark or bright structures came out, and also counts what of a "
        "narrow peak is lost;\nand sorted by the output, which says whether a mean of output values can be "
        "believed. The best possible denoiser has bias in the\nfirst, for noise hides what is small and "
        "rare, and none in the second. First seed." + shown + "\n\n" + _table(head, rows)
    )


# ---- everything


def _all(found: Found) -> str:
    rows = []
    for case in CASES:
        for method in METHODS:
            results = found.seeds(case.name, method.name)
            if results and case.has_truth:
                figures = (
                    ("psnr", 2),
                    ("si_psnr", 2),
                    ("ssim", 3),
                    ("si_ssim", 3),
                    ("cpu_seconds", 0),
                    ("steps", 0),
                )
                row = [case.name, method.label, str(len(results)) if method.trains else ""]
                row += [_number(found.mean(case.name, method.name, f), digits) for f, digits in figures]
                rows.append([*row, _remarks(results, found.kept.budget_seconds)])
    head = [
        "case",
        "method",
        "seeds",
        "PSNR",
        "scale-invariant",
        "SSIM",
        "SSIM after fit",
        "CPU seconds",
        "steps",
    ]
    return "## All cells\n\nMeans over seeds.\n\n" + _table([*head, "of the first seed"], rows)


def _remarks(results: Sequence[dict[str, Any]], budget_seconds: float) -> str:
    """Return what is to be known of a row beside its numbers: all of the first seed but the budget."""
    result, remarks = results[0], []
    if "sigma" in result:
        remarks.append(f"sigma {result['sigma']:g}")
    if "kernel" in result:
        height, width = np.shape(result["kernel"])
        pixels = int(np.sum(result["kernel"]))
        remarks.append(
            f"kernel {height} x {width}" + (f", {pixels} pixels" if pixels != height * width else "")
        )
    if result.get("periods"):
        remarks.append("periods " + ", ".join(f"{p:.4g}" for p in result["periods"]))
    if "same_as" in result:
        remarks.append(f"the same training as {result['same_as']}")
    spent = max(r.get("cpu_seconds", 0.0) for r in results)
    if "steps" in result and spent > OVER_BUDGET * budget_seconds:
        remarks.append(f"**{100 * (spent / budget_seconds - 1):.0f} % over the budget**")
    noise = result.get("noise") or {}
    remarks += [
        f"{name.replace('_', ' ')} {value:.3g}" for name, value in noise.items() if np.ndim(value) == 0
    ]
    return "; ".join(remarks)


def _missing(found: Found, cells: Sequence[Cell]) -> str:
    lacking = missing(found, cells)
    if not lacking:
        return ""
    lines = "\n".join(f"- {label}: {', '.join(names)}" for label, names in lacking.items())
    return f"## Not measured\n\n{lines}"
