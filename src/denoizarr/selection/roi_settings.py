"""What a user asks of regions of interest: the settings, checked, and what of them decides which numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from denoizarr.errors import BadRequest

from .roi_criteria import Expression, Quantile, expression_of

RoiScore = Callable[..., Any] | Expression | Sequence[Callable[..., Any] | Expression]


@dataclass(frozen=True, slots=True)
class RoiSettings:
    """The settings of a region of interest; ``RegionOfInterest`` documents them."""

    threshold: float | Quantile = 0.5
    select_background: bool = False
    background: Literal["dark", "bright"] = "dark"
    scale_factor: float = 0.25
    sigma: float = 300.0
    equalize: Literal["global", "adaptive", "none"] = "global"
    overlap: float = 0.5
    score: RoiScore | None = None
    ref_channel: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, Quantile) and not (
            isinstance(self.threshold, int | float | np.number) and isfinite(self.threshold)
        ):
            raise BadRequest(
                "not a threshold",
                where="threshold",
                got=repr(self.threshold),
                expected="a finite number or Quantile(q)",
            )
        _check_one_of("background", self.background, ("dark", "bright"))
        _check_one_of("equalize", self.equalize, ("global", "adaptive", "none"))
        if not (isfinite(self.sigma) and self.sigma >= 0):
            raise BadRequest(
                "not a width", where="sigma", got=self.sigma, expected="0 or more full-resolution pixels"
            )
        if not 0 <= self.overlap < 1:
            raise BadRequest("not an overlap", where="overlap", got=self.overlap, expected="0 to less than 1")
        _ = self.factor, self.expression

    @property
    def factor(self) -> int:
        """Voxels of the image per pixel of the coarse level, along each axis of the patch.

        Raises
        ------
        BadRequest
            ``1 / scale_factor`` is no whole number; the two nearest that are one are named.
        """
        scale = self.scale_factor
        if not (isfinite(scale) and 0 < scale <= 1):
            raise BadRequest(
                "not a scale", where="scale_factor", got=scale, expected="more than 0, at most 1"
            )
        inverse = 1 / scale
        if abs(inverse - round(inverse)) > 1e-9:
            raise BadRequest(
                "a coarse pixel is not a whole number of pixels",
                where="scale_factor",
                got=f"{scale:g} (1 / {inverse:g})",
                expected=f"{1 / ceil(inverse):.6g} (1 / {ceil(inverse)}) or {1 / floor(inverse):.6g}"
                f" (1 / {floor(inverse)})",
            )
        return round(inverse)

    @property
    def expression(self) -> Expression | None:
        """The score as one expression; None for the blurred and equalised intensity."""
        return None if self.score is None else expression_of(self.score)

    @property
    def selects_high(self) -> bool:
        """Whether the windows above the threshold are taken, and not those below."""
        return self.select_background == (self.background == "bright")

    def selects(self, means: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
        """Tell which window means are on the side asked for; a mean at the threshold is on neither."""
        return means > threshold if self.selects_high else means < threshold

    def level_identity(self) -> dict[str, Any]:
        """Return what decides the window means, JSON-able: all settings but the choice among the windows."""
        expression = self.expression
        smooth = {"sigma": float(self.sigma), "equalize": self.equalize} if expression is None else {}
        return {
            "version": 1,
            "factor": self.factor,
            "overlap": float(self.overlap),
            "ref_channel": int(self.ref_channel),
            "score": None if expression is None else expression.identity(),
            **smooth,
        }

    def settings(self) -> dict[str, Any]:
        """Return what an index records of this selection, JSON-able."""
        threshold = (
            {"quantile": self.threshold.q} if isinstance(self.threshold, Quantile) else float(self.threshold)
        )
        return {
            **self.level_identity(),
            "threshold": threshold,
            "select_background": bool(self.select_background),
            "background": self.background,
        }

    def check_nameable(self) -> None:
        """Refuse a score that another process could not import, or that a kept result could not be told by.

        Raises
        ------
        BadRequest
        """
        if self.expression is None:
            return
        for criterion in self.expression.criteria():
            if "<" in criterion.name:
                raise BadRequest(
                    "a score that only this process knows",
                    where="score",
                    got=criterion.name,
                    expected="a function defined at the top of a module",
                    remedy="move it into a module, or leave out destination, ledger and client",
                )


def _check_one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BadRequest("unknown setting", where=name, got=value, expected=" or ".join(known))
