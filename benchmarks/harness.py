"""Run the sides of a benchmark in turn, each in its own process, and compare what they report.

An area is a module in ``areas/`` with

``OPTIONS``
    Sizes and the like, with defaults; ``run.py --set NAME=VALUE`` changes one.
``prepare(options, folder)``
    Optional: writes what the sides share (images, stores) into ``folder``; called once, kept between runs.
``groups(options, folder)``
    A list of :class:`Group`.

and one function per kind of side, ``function(settings) -> work``: what it does before it returns is set-up
and is not timed; ``work()`` is what is timed, and returns a dict of numbers, of which ``units`` (voxels, say)
makes sides with different amounts of work comparable. A side may run under another interpreter
(``peer="NAME"``), so outside its functions an area's module imports the standard library and numpy only.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
# Libraries that would start threads of their own are told not to.
_THREADS = "OMP_NUM_THREADS OPENBLAS_NUM_THREADS MKL_NUM_THREADS NUMBA_NUM_THREADS BLOSC_NTHREADS"
ONE_THREAD = dict.fromkeys([*_THREADS.split(), "ZARR_THREADING__MAX_WORKERS"], "1")
Result = dict[str, float]


@dataclass(frozen=True)
class Side:
    """One of the things compared.

    Attributes
    ----------
    name : str
        Shown, and named by the rows of its group.
    function : str
        Of the area's module.
    settings : dict
        JSON-able; handed to the function.
    peer : str, optional
        The environment below the folder of peers whose interpreter runs it; ours without.
    warm_up : bool
        Whether the work is done once before it is timed: compilation and caches do not count then.
    min_seconds : float
        The work is repeated within the process until it has taken this many CPU seconds.
    """

    name: str
    function: str
    settings: dict[str, Any] = field(default_factory=dict)
    peer: str | None = None
    warm_up: bool = True
    min_seconds: float = 0.5


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure of a side, or the ratio of two sides' figures.

    Attributes
    ----------
    label : str
    side : str
    against : str, optional
        The side to compare with; the figure alone without.
    quantity : str
        ``cpu_seconds`` and ``wall_seconds`` are per unit of work, ``units_per_cpu_second`` is their inverse,
        all else is as reported.
    goal : (">=" or "<=", number), optional
    faster : bool
        The ratio says how many times less the side needs, not how many times more.
    """

    label: str
    side: str
    against: str | None = None
    quantity: str = "cpu_seconds"
    goal: tuple[str, float] | None = None
    faster: bool = False


@dataclass(frozen=True)
class Group:
    """Sides that run in turn, A B A B ..., and the rows that come of it."""

    title: str
    sides: Sequence[Side]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Place:
    """Where things lie."""

    scratch: Path
    peers: Path

    def interpreter(self, peer: str | None) -> str:
        if peer is None:
            return sys.executable
        found = self.peers / peer / "bin" / "python"
        if not found.exists():
            raise SystemExit(
                f"{peer} is not installed in {self.peers}: run benchmarks/install_peers.py {peer}"
            )
        return str(found)


def run_side(area: str, side: Side, place: Place) -> Result:
    """Run a side once in a process of its own and return what it reports."""
    task = {
        "area": area,
        "function": side.function,
        "settings": side.settings,
        "warm_up": side.warm_up,
        "min_seconds": side.min_seconds,
    }
    done = subprocess.run(
        [place.interpreter(side.peer), str(HERE / "side.py"), json.dumps(task)],
        env=os.environ | ONE_THREAD,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(f"  {side.name} failed:\n{done.stderr[-3000:]}", file=sys.stderr)
        return {}
    found: Result = json.loads(done.stdout.splitlines()[-1])
    return found


def figure(result: Mapping[str, float], quantity: str) -> float:
    """Return a side's figure; not a number where it failed or does not report it."""
    if quantity == "units_per_cpu_second":
        return 1 / figure(result, "cpu_seconds")
    value = float(result.get(quantity, float("nan")))
    return value / result.get("units", 1.0) if quantity in ("cpu_seconds", "wall_seconds") else value


def values_of(row: Row, rounds: Sequence[Mapping[str, Result]], quantity: str | None = None) -> list[float]:
    """Return a row's value in every round; ratios are those of sides that ran one after the other."""
    quantity = quantity or row.quantity
    values = []
    for results in rounds:
        value = figure(results[row.side], quantity)
        if row.against is not None:
            other = figure(results[row.against], quantity)
            value = (other / value if row.faster else value / other) if value and other else float("nan")
        values.append(value)
    return values


def meets(value: float, goal: tuple[str, float] | None) -> bool | None:
    """Tell whether a value meets its goal; a side that failed meets none."""
    if goal is None:
        return None
    if isnan(value):
        return False
    return value >= goal[1] if goal[0] == ">=" else value <= goal[1]


def run_group(area: str, group: Group, place: Place, repeats: int) -> dict[str, Any]:
    """Run the sides in turn and return all that was measured, JSON-able."""
    rounds: list[dict[str, Result]] = []
    for number in range(repeats):
        print(f"{group.title}: round {number + 1} of {repeats}", file=sys.stderr, flush=True)
        rounds.append({side.name: run_side(area, side, place) for side in group.sides})
    rows = []
    for row in group.rows:
        values = values_of(row, rounds)
        middle = median(values)
        spread = {"median": middle, "min": min(values), "max": max(values)}
        entry: dict[str, Any] = {**asdict(row), **spread, "met": meets(middle, row.goal)}
        if row.against is not None and row.quantity == "cpu_seconds":
            entry["wall_median"] = median(values_of(row, rounds, "wall_seconds"))
        rows.append(entry)
    sides = {
        side.name: {
            "cpu_ns_per_unit": median(1e9 * figure(r[side.name], "cpu_seconds") for r in rounds),
            "units_per_cpu_second": median(figure(r[side.name], "units_per_cpu_second") for r in rounds),
            "wall_seconds": median(r[side.name].get("wall_seconds", float("nan")) for r in rounds),
            "peak_bytes": max(r[side.name].get("peak_bytes", float("nan")) for r in rounds),
        }
        for side in group.sides
    }
    return {"title": group.title, "rows": rows, "sides": sides, "rounds": rounds}


def without_nan(value: Any) -> Any:
    """Return nested dicts and lists with None for not-a-number, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and isnan(value) else value


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    return {"python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count()}


def shown(value: float, digits: int = 4) -> str:
    """Return a number as a table shows it: large ones whole, never with an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def markdown(area: str, measured: Sequence[Mapping[str, Any]], repeats: int) -> str:
    """Return the tables of an area."""
    lines = [f"### {area}", "", f"Medians of {repeats} rounds (smallest to largest); one thread.", ""]
    lines += ["| what | value | spread | by wall clock | goal | met |", "|---|---|---|---|---|---|"]
    for group in measured:
        for row in group["rows"]:
            goal = "" if row["goal"] is None else f"{row['goal'][0]} {row['goal'][1]:g}"
            met = {None: "", True: "yes", False: "**no**"}[row["met"]]
            wall = f"{row['wall_median']:.3g}" if "wall_median" in row else ""
            value = f"{shown(row['median'])} | {shown(row['min'], 3)} to {shown(row['max'], 3)}"
            lines.append(f"| {group['title']}: {row['label']} | {value} | {wall} | {goal} | {met} |")
    # Voxels come in millions a second, patches and steps do not.
    rates = [side["units_per_cpu_second"] for group in measured for side in group["sides"].values()]
    many = all(rate >= 1e5 for rate in rates if not isnan(rate))
    units = "million units" if many else "units"
    lines += ["", f"| side | {units} per CPU-second | wall seconds | peak MiB |", "|---|---|---|---|"]
    for group in measured:
        for name, side in group["sides"].items():
            lines.append(
                f"| {group['title']}: {name} | {shown(side['units_per_cpu_second'] / (1e6 if many else 1))} "
                f"| {side['wall_seconds']:.3g} | {side['peak_bytes'] / 2**20:.0f} |"
            )
    return "\n".join(lines) + "\n"
