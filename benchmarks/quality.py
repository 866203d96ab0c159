"""Denoised images beside their truth: ours, BM3D, a Gaussian and CAREamics, at an equal CPU budget.

    DENOIZARR_DATA=FOLDER python benchmarks/quality.py [--cells WORDS ...] [--images NAMES ...]

A cell is one case, one method, one seed. It runs in a process of its own with one thread and is kept in the
scratch folder when it is done: a run that was stopped goes on at the first cell that is missing, and runs on
several cores may share the folder. At the end, and with ``--table-only`` at once, the table is made of
whatever is there, and says what is not. A kept cell is of its case, method, seed and budget, not of the code:
delete those that a change concerns. ``docs/benchmarks.md`` says what the cases and the figures are.
"""

from __future__ import annotations

import argparse
import os
import sys
from fnmatch import fnmatch
from pathlib import Path

from harness import HERE, ONE_THREAD, Place
from image_quality.cases import CASES, IMAGES
from image_quality.kept import Kept
from image_quality.methods import METHODS, Cell, all_cells


def chosen(cells: list[Cell], words: list[str], images: list[str]) -> list[Cell]:
    """Return the cells whose case and method the words name; a word may be a pattern, such as ``S_*``.

    Raises
    ------
    ValueError
        A word names neither a case nor a method.
    """
    cases, methods = {case.name for case in CASES}, {method.name for method in METHODS}
    for word in words:
        if not any(fnmatch(name, word) for name in cases | methods):
            raise ValueError(
                f"no case or method is called {word!r}: there are {', '.join(sorted(cases | methods))}"
            )
    of_cases = [word for word in words if any(fnmatch(name, word) for name in cases)]
    of_methods = [word for word in words if any(fnmatch(name, word) for name in methods)]
    return [
        cell
        for cell in cells
        if (not images or cell.case.image in images or cell.case.name in images)
        and (not of_cases or any(fnmatch(cell.case.name, word) for word in of_cases))
        and (not of_methods or any(fnmatch(cell.method.name, word) for word in of_methods))
    ]


def run(cells: list[Cell], kept: Kept, place: Place) -> bool:
    """Measure what is missing, and first what that needs; tell whether all of it is there."""
    complete = True
    for cell in cells:
        for step in (*(n for c in cell.needs for n in c.needs), *cell.needs, cell):
            if kept.result(step) is None and not _measure(step, kept, place):
                complete = False
                break
    return complete


def _measure(cell: Cell, kept: Kept, place: Place) -> bool:
    with kept.claimed(cell) as mine:
        if not mine or kept.result(cell) is not None:
            print(f"{cell}: another run has it", flush=True)
            return kept.result(cell) is not None
        environment = os.environ | ONE_THREAD
        result = kept.measure(cell, place.interpreter(cell.method.peer), environment)
    if result is not None:
        names = ("psnr", "si_psnr", "residual_x1", "cpu_seconds", "steps")
        shown = (f"{name} {result[name]:.4g}" for name in names if name in result)
        print(f"{cell}: {', '.join(shown)}", flush=True)
    return result is not None


def _command(budget_seconds: float, seeds: tuple[int, ...]) -> str:
    """Return the command that measures all that the table shows, however many runs it took."""
    options = f"--budget-seconds {budget_seconds:g} --seeds {' '.join(map(str, seeds))}"
    return f"DENOIZARR_DATA=FOLDER python benchmarks/quality.py {options}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cells", nargs="+", default=[], metavar="WORD", help="cases and methods, or patterns"
    )
    parser.add_argument("--images", nargs="+", default=[], choices=[*IMAGES, "sem-shale"], metavar="NAME")
    parser.add_argument("--budget-seconds", type=float, default=240.0, help="CPU seconds of each training")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="the first alone off the goals"
    )
    parser.add_argument("--scratch", type=Path, default=HERE / ".scratch" / "quality")
    parser.add_argument("--peers", type=Path, default=HERE / ".peers", help="where install_peers.py put them")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "quality.md")
    parser.add_argument("--table-only", action="store_true", help="measure nothing")
    arguments = parser.parse_args()

    kept = Kept(arguments.scratch.absolute(), arguments.budget_seconds)
    seeds = tuple(dict.fromkeys(arguments.seeds))
    try:
        cells = chosen(all_cells(seeds), arguments.cells, arguments.images)
    except ValueError as error:
        parser.error(str(error))
    complete = arguments.table_only or run(cells, kept, Place(kept.scratch, arguments.peers.absolute()))

    from image_quality.table import write

    write(kept, seeds, arguments.out, _command(arguments.budget_seconds, seeds))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
