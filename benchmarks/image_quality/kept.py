"""What has been measured: one JSON file and one array per cell, written whole, never twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .cases import noise_spectrum, prepare
from .methods import Cell
from .metrics import VERSION, with_truth, without_truth

Result = dict[str, Any]
PROGRAM = Path(__file__).parents[1] / "quality_cell.py"


@dataclass(frozen=True)
class Kept:
    """The cells of one scratch folder and one budget.

    Attributes
    ----------
    scratch : Path
    budget_seconds : float
        CPU seconds of what trains; cells of other budgets lie beside and are not seen.
    """

    scratch: Path
    budget_seconds: float

    def path(self, cell: Cell, suffix: str) -> Path:
        budget = f"-{self.budget_seconds:g}s-seed{cell.seed}" if cell.method.trains else ""
        return self.scratch / "cells" / cell.case.name / f"{cell.method.name}{budget}{suffix}"

    def result(self, cell: Cell) -> Result | None:
        """Return what is known of a cell, or None."""
        path = self.path(cell, ".json")
        if not path.exists():
            return None
        found: Result = json.loads(path.read_text())
        if found.get("version") != VERSION and self.path(cell, ".npy").exists():
            found |= self._figures(cell, self.array(cell))
            _write(path, found)
        return found

    def array(self, cell: Cell) -> np.ndarray[Any, Any]:
        array: np.ndarray[Any, Any] = np.load(self.path(cell, ".npy"))
        return array

    # ---- measuring

    def measure(self, cell: Cell, interpreter: str, environment: dict[str, str]) -> Result | None:
        """Run a cell in a process of its own and keep what comes of it; None where that failed."""
        prepare(cell.case, self.scratch)
        begun = {
            suffix: self.path(cell, f".{os.getpid()}{suffix}") for suffix in (".npy", ".json", ".safetensors")
        }
        begun[".npy"].parent.mkdir(parents=True, exist_ok=True)
        task = {"module": cell.method.module, "function": cell.method.function}
        task |= {"array": str(begun[".npy"]), "facts": str(begun[".json"])}
        task["settings"] = self._settings(cell, begun[".safetensors"])
        started = time.monotonic()
        try:
            done = subprocess.run(
                [interpreter, str(PROGRAM), json.dumps(task)],
                env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
            if done.returncode != 0:
                print(f"{cell} failed:\n{done.stderr[-3000:]}", file=sys.stderr, flush=True)
                return None
            facts = json.loads(begun[".json"].read_text())
            result = self._figures(cell, np.load(begun[".npy"])) | facts
            result["wall_seconds"] = time.monotonic() - started
            # The JSON comes last: where it is, the others are.
            for suffix in (".safetensors", ".npy"):
                if begun[suffix].exists():
                    begun[suffix].replace(self.path(cell, suffix))
            _write(self.path(cell, ".json"), result)
            return result
        finally:
            for path in begun.values():
                path.unlink(missing_ok=True)

    def _settings(self, cell: Cell, model: Path) -> Result:
        """Return what the cell's process is told; the truth only where the method is an oracle."""
        case, settings = cell.case, dict(cell.settings)
        settings["noisy"] = str(case.noisy_path(self.scratch))
        settings["budget_seconds"] = self.budget_seconds
        if cell.method.name == "gaussian":
            settings["truth"] = str(case.truth_path(self.scratch)) if case.has_truth else None
        if settings.get("noise") == "known spectrum":
            settings["spectrum"] = self._written(
                "S-spectrum", noise_spectrum(np.load(settings["noisy"]).shape)
            )
        if settings.get("kernel") == "none":
            settings["model"] = str(model)
        if settings.get("kernel") == "true":
            settings["true_kernel"] = self._written("S-kernel", case.true_kernel)
        for needed in cell.needs:
            stage = "stage1" if needed.method.name == "ours-stage1" else "stage2"
            settings[f"{stage}_array"] = str(self.path(needed, ".npy"))
            settings[stage] = str(self.path(needed, ".safetensors"))
            settings["found_kernel"] = (self.result(needed) or {}).get("kernel")
        return settings

    def _written(self, name: str, array: Any) -> str:
        path = self.scratch / "cases" / f"{name}.npy"
        if not path.exists():
            begun = path.with_suffix(f".{os.getpid()}.npy")
            np.save(begun, array)
            begun.replace(path)
        return str(path)

    def _figures(self, cell: Cell, denoised: np.ndarray[Any, Any]) -> Result:
        if cell.case.has_truth:
            figures = with_truth(np.load(cell.case.truth_path(self.scratch)), denoised)
        else:
            figures = without_truth(np.load(cell.case.noisy_path(self.scratch)), denoised)
        return figures | {"version": VERSION}

    @contextmanager
    def claimed(self, cell: Cell) -> Iterator[bool]:
        """Tell whether the cell is this process's to measure: several runs may share a scratch folder."""
        path = self.path(cell, ".claim")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not _alive(path):
            path.unlink(missing_ok=True)
        try:
            with path.open("x") as claim:
                claim.write(str(os.getpid()))
        except FileExistsError:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


def _write(path: Path, result: Result) -> None:
    begun = path.with_suffix(f".{os.getpid()}.json")
    begun.write_text(json.dumps(result, indent=1) + "\n")
    begun.replace(path)


def _alive(claim: Path) -> bool:
    """Tell whether the process that wrote a claim still runs."""
    try:
        os.kill(int(claim.read_text()), 0)
    except (OSError, ValueError):
        return False
    return True
