"""What is compared: which function, in which environment, on which cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .cases import BOX, CASES, Case


@dataclass(frozen=True)
class Method:
    """One column of the table.

    Attributes
    ----------
    name : str
        On the command line and in file names.
    label : str
        In the table.
    module, function : str
        Of this package: ``function(settings) -> (array, facts)``.
    kinds : tuple of str
        The kinds of case it is for.
    settings : dict
        For its function, whatever the case.
    peer : str, optional
        The environment of ``install_peers.py`` that runs it; this interpreter without.
    trains : bool
        Whether it has a budget and seeds.
    needs : tuple of str
        Methods whose cell of the same case and seed comes first.
    """

    name: str
    label: str
    module: str
    function: str = "denoise"
    kinds: tuple[str, ...] = ("pair", "S", "L", "slices")
    settings: dict[str, Any] = field(default_factory=dict)
    peer: str | None = None
    trains: bool = True
    needs: tuple[str, ...] = ()


_CAREAMICS: dict[str, Any] = {"module": "careamics_networks", "peer": "careamics"}
METHODS = (
    Method("raw", "raw", "filters", "raw", trains=False),
    Method("gaussian", "Gaussian, best sigma", "filters", "gaussian", trains=False),
    Method("bm3d", "BM3D", "block_matching", peer="bm3d", trains=False),
    Method(
        "bm3d-spectrum",
        "BM3D, measured spectrum",
        "block_matching",
        kinds=("pair", "S", "slices"),
        settings={"noise": "signal dependent, spectrum"},
        peer="bm3d",
        trains=False,
    ),
    Method("careamics-n2v", "CAREamics N2V", **_CAREAMICS, settings={"network": "n2v", "batch": 8}),
    Method("careamics-n2v2", "CAREamics N2V2", **_CAREAMICS, settings={"network": "n2v2", "batch": 8}),
    Method(
        "careamics-structn2v",
        "CAREamics structN2V, true kernel",
        **_CAREAMICS,
        kinds=("S",),
        settings={"network": "structn2v", "batch": 8, "span": 2 * BOX - 1},
    ),
    Method("ours-stage1", "ours, stage 1", "our_networks", settings={"kernel": "none"}),
    Method(
        "ours-stage2",
        "ours, stage 2",
        "our_networks",
        settings={"kernel": "found"},
        needs=("ours-stage1",),
    ),
    Method(
        "ours-true",
        "ours, true kernel",
        "our_networks",
        kinds=("S",),
        settings={"kernel": "true"},
        needs=("ours-stage2",),
    ),
)
BY_NAME = {method.name: method for method in METHODS}
_NOISE = {
    "pair": "signal dependent",
    "slices": "signal dependent",
    "S": "known spectrum",
    "L": "lines, then white",
}


@dataclass(frozen=True)
class Cell:
    """One case, denoised by one method, with one seed."""

    case: Case
    method: Method
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.case.name}, {self.method.name}, seed {self.seed}"

    @property
    def needs(self) -> tuple[Cell, ...]:
        return tuple(Cell(self.case, BY_NAME[name], self.seed) for name in self.method.needs)

    @property
    def settings(self) -> dict[str, Any]:
        """What the method is told: of the noise what a user of BM3D would know, in S cases the truth."""
        settings = {"seed": self.seed} | self.method.settings
        if self.method.name == "bm3d":
            settings["noise"] = _NOISE[self.case.kind]
        return settings


@dataclass(frozen=True)
class Goal:
    """What a case is to reach."""

    case: str
    method: str
    figure: str
    decibels: float


GOALS = (
    Goal("Confocal_MICE", "ours-stage2", "psnr", 37.5),
    Goal("TwoPhoton_MICE", "ours-stage2", "si_psnr", 35.2),
    Goal("WideField_BPAE_G", "ours-stage2", "psnr", 32.7),
    Goal("S_Confocal_MICE", "ours-stage2", "psnr", 34.3),
    Goal("L_Confocal_MICE", "ours-stage2", "psnr", 39.0),
)


def all_cells(seeds: tuple[int, ...]) -> list[Cell]:
    """Return every cell, the first seed of all before the others, which only cases with a goal have."""
    goal_cases = {goal.case for goal in GOALS}
    return [
        Cell(case, method, seed)
        for number, seed in enumerate(seeds)
        for method in METHODS
        for case in CASES
        if case.kind in method.kinds and (number == 0 or (method.trains and case.name in goal_cases))
    ]
