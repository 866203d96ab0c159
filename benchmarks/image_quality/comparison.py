"""What the cells say together: means over seeds, differences between methods, what of the goals is met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .cases import CASES, KINDS, Case
from .kept import Kept, Result
from .methods import METHODS, Cell


@dataclass(frozen=True)
class Found:
    """All cells of a folder that have been measured.

    Attributes
    ----------
    kept : Kept
    results : dict
        By case, method and seed.
    """

    kept: Kept
    results: dict[tuple[str, str, int], Result]

    @classmethod
    def of(cls, kept: Kept, cells: Sequence[Cell]) -> Found:
        known = {(c.case.name, c.method.name, c.seed): kept.result(c) for c in cells}
        return cls(kept, {key: result for key, result in known.items() if result is not None})

    def seeds(self, case: str, method: str) -> list[Result]:
        """Return the results of a case and a method, one per seed."""
        return [
            r for (c, m, _), r in sorted(self.results.items(), key=lambda e: e[0]) if (c, m) == (case, method)
        ]

    def mean(self, case: str, method: str, figure: str) -> float | None:
        """Return the mean over seeds of a figure; None where no seed has it."""
        values = [r[figure] for r in self.seeds(case, method) if r.get(figure) is not None]
        return float(np.mean(values)) if values else None

    def differences(self, cases: Sequence[Case], method: str, other: str, figure: str) -> dict[str, float]:
        """Return by how much a method lies above another, by case; cases that lack either are left out."""
        found = {}
        for case in cases:
            ours, theirs = (self.mean(case.name, name, figure) for name in (method, other))
            if ours is not None and theirs is not None:
                found[case.name] = ours - theirs
        return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval, by Student's t; of one value, no width."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan")
    error = float(np.std(values, ddof=1)) / np.sqrt(len(values))
    return mean, float(t.ppf(0.975, len(values) - 1)) * float(error)


def largest_bias(result: Result, bins: str = "bias") -> dict[str, Any]:
    """Return the bin of the largest mean error."""
    found: dict[str, Any] = max(result[bins], key=lambda b: abs(b["bias"]))
    return found


def pooled_bias(found: Found, method: str, bins: str) -> list[dict[str, float]]:
    """Return the bias per bin over all S cases and seeds, every pixel counting once.

    Returns
    -------
    list of dict
        ``middle`` of the bin in grey levels, ``bias`` in per cent of the range, ``pixels``.
    """
    sums: dict[float, list[float]] = {}
    for case in CASES:
        if case.kind == "S":
            for result in found.seeds(case.name, method):
                for entry in result[bins]:
                    middle = round((entry["lower"] + entry["upper"]) / 2, 3)
                    known = sums.setdefault(middle, [0.0, 0.0])
                    known[0] += entry["bias"] * entry["pixels"]
                    known[1] += entry["pixels"]
    return [{"middle": m, "bias": s / n, "pixels": n} for m, (s, n) in sorted(sums.items())]


def missing(found: Found, cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Return the cells that have not been measured, by method; where a whole kind of case lacks, its name."""
    lacking: dict[str, list[str]] = {}
    for method in METHODS:
        for seed in sorted({cell.seed for cell in cells if cell.method is method}):
            of_seed = [cell for cell in cells if cell.method is method and cell.seed == seed]
            for kind, name in KINDS.items():
                of_kind = [cell for cell in of_seed if cell.case.kind == kind]
                without = [c for c in of_kind if (c.case.name, method.name, seed) not in found.results]
                names = [cell.case.name for cell in without]
                if len(names) == len(of_kind) > 1:
                    names = [f"all {name}"] if seed == cells[0].seed else [f"{name} with a goal"]
                suffix = f" (seed {seed})" if method.trains else ""
                if names:
                    lacking.setdefault(method.label, []).append(", ".join(names) + suffix)
    return lacking
