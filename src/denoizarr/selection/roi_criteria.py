"""Scores of one's own for regions of interest: functions of the coarse level, compared and combined.

A function gets a part of the coarse level, scaled to 0..1 by the image's extremes, with a halo that is
cropped at the image's border, and returns an array of that shape. Where it looks no further than its halo,
its values do not depend on how the image is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoizarr.errors import BadRequest, NonFiniteData

Function = Callable[[NDArray[np.float64]], NDArray[Any]]
# Of a plain function, which cannot say how far it looks; in pixels of the coarse level.
DEFAULT_HALO = 32


@dataclass(frozen=True, slots=True)
class Quantile:
    """A threshold that is a quantile of the whole image's values.

    Attributes
    ----------
    q : float
        Between 0 and 1. The value is the smallest that at least a fraction ``q`` of the pixels of the level
        does not exceed (numpy's ``inverted_cdf``), exact for values rounded to float32.
    """

    q: float

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 1:
            raise BadRequest("not a quantile", where="Quantile", got=self.q, expected="0 to 1")


Bound = float | Quantile | None
# The quantiles of an image, by criterion and fraction.
Resolved = Mapping[tuple["Criterion", float], float]


class Expression:
    """What can be combined: ``a & b`` asks for both, ``a | b`` for either."""

    __slots__ = ()

    def __and__(self, other: Expression) -> Combination:
        return Combination("and", (self, other))

    def __or__(self, other: Expression) -> Combination:
        return Combination("or", (self, other))

    def criteria(self) -> Iterator[Criterion]:
        """Yield the criteria that it is made of."""
        raise NotImplementedError

    def reach(self) -> int:
        """Return how far its functions look, in pixels of the coarse level."""
        return max(c.halo for c in self.criteria())

    def identity(self) -> Any:
        """Return what it does, JSON-able."""
        raise NotImplementedError

    def values(self, level: NDArray[np.float64], quantiles: Resolved) -> NDArray[Any]:
        """Return the score of every pixel: True and False where something is compared."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Criterion(Expression):
    """A score per pixel, and the values of it that count.

    Attributes
    ----------
    score : callable, optional
        ``score(level) -> array of the same shape``; ``level`` is a (y, x) float64 array in 0..1, (z, y, x)
        for 3D patches. None is the intensity itself. A function at the top of a module travels to a cluster.
    above, below : float or Quantile, optional
        A pixel counts where ``above < score < below``. With neither, the score is taken as it is: alone, its
        mean over a window is compared; combined, a pixel counts where it is not zero.
    halo : int
        How far the score looks from a pixel, in pixels of the coarse level.

    Examples
    --------
    >>> mid_grey = Criterion(above=0.3, below=0.7)
    >>> chosen = mid_grey & Criterion(np.square, above=Quantile(0.25))
    """

    score: Function | None = None
    above: Bound = None
    below: Bound = None
    halo: int = 0

    def __post_init__(self) -> None:
        if self.score is not None and not callable(self.score):
            raise BadRequest(
                "not a score", where="Criterion", got=self.score, expected="a function of an array"
            )
        for name, bound in (("above", self.above), ("below", self.below)):
            if bound is not None and not isinstance(bound, Quantile) and not isfinite(bound):
                raise BadRequest("not a threshold", where=name, got=bound, expected="a number or Quantile(q)")
        if self.halo < 0:
            raise BadRequest("not a halo", where="halo", got=self.halo, expected="0 or more coarse pixels")

    @property
    def name(self) -> str:
        """Where the function is found: module and name, with the arguments of a ``functools.partial``."""
        return "intensity" if self.score is None else _name_of(self.score)

    def criteria(self) -> Iterator[Criterion]:
        """Yield itself."""
        yield self

    def quantiles(self) -> list[float]:
        """Return the fractions whose quantiles it needs."""
        return sorted({b.q for b in (self.above, self.below) if isinstance(b, Quantile)})

    def identity(self) -> dict[str, Any]:
        """Return its name, bounds and halo."""
        bounds = [{"quantile": b.q} if isinstance(b, Quantile) else b for b in (self.above, self.below)]
        return {"score": self.name, "above": bounds[0], "below": bounds[1], "halo": self.halo}

    def scores(self, level: NDArray[np.float64]) -> NDArray[Any]:
        """Return the bare score of every pixel.

        Raises
        ------
        BadRequest
            The function returns another shape.
        NonFiniteData
            It returns NaN or infinity.
        """
        found = level if self.score is None else np.asarray(self.score(level))
        if found.shape != level.shape:
            raise BadRequest(
                "a score of another shape",
                where=self.name,
                got=found.shape,
                expected=f"{level.shape}, that of the array it was given",
            )
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise NonFiniteData("the score is NaN or infinite", where=self.name, remedy="mend the function")
        return found

    def values(self, level: NDArray[np.float64], quantiles: Resolved) -> NDArray[Any]:
        """Return the score, or where it lies between its bounds."""
        found = self.scores(level)
        if self.above is None and self.below is None:
            return found
        counts = np.ones(found.shape, bool)
        if self.above is not None:
            counts &= np.greater(*self._compared(found, self.above, quantiles))
        if self.below is not None:
            counts &= np.less(*self._compared(found, self.below, quantiles))
        return counts

    def _compared(
        self, found: NDArray[Any], bound: float | Quantile, quantiles: Resolved
    ) -> tuple[NDArray[Any], float]:
        if not isinstance(bound, Quantile):
            return found, bound
        # As the quantile was: of values rounded to float32.
        return found.astype(np.float32), float(np.float32(quantiles[self, bound.q]))


@dataclass(frozen=True, slots=True)
class Combination(Expression):
    """Several criteria, all of which (``and``) or any of which (``or``) a pixel must meet.

    Attributes
    ----------
    rule : {"and", "or"}
    parts : tuple of Expression
    """

    rule: str
    parts: tuple[Expression, ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            if not isinstance(part, Expression):
                raise BadRequest("not a criterion", got=type(part).__name__, expected="Criterion(...)")

    def criteria(self) -> Iterator[Criterion]:
        """Yield the criteria of all parts."""
        for part in self.parts:
            yield from part.criteria()

    def identity(self) -> dict[str, Any]:
        """Return the rule and the parts' identities."""
        return {self.rule: [part.identity() for part in self.parts]}

    def values(self, level: NDArray[np.float64], quantiles: Resolved) -> NDArray[np.bool_]:
        """Return where all, or any, of the parts are met."""
        rule = np.logical_and if self.rule == "and" else np.logical_or
        return np.asarray(rule.reduce([part.values(level, quantiles).astype(bool) for part in self.parts]))


def expression_of(score: Any) -> Expression:
    """Return a function, an expression or a list of them (all must be met) as one expression.

    Raises
    ------
    BadRequest
    """
    if isinstance(score, Expression):
        return score
    if callable(score):
        return Criterion(score, halo=DEFAULT_HALO)
    if isinstance(score, Sequence) and not isinstance(score, str) and len(score):
        parts = tuple(expression_of(part) for part in score)
        return parts[0] if len(parts) == 1 else Combination("and", parts)
    raise BadRequest("not a score", where="score", got=score, expected="a function, a Criterion, or several")


def _name_of(function: Any) -> str:
    if isinstance(function, partial):
        given = [repr(a) for a in function.args] + [
            f"{k}={v!r}" for k, v in sorted(function.keywords.items())
        ]
        return f"{_name_of(function.func)}({', '.join(given)})"
    name = getattr(function, "__qualname__", None)
    if name is None:  # an instance with __call__: its class says what it does, its state is not known
        return (
            f"<{type(function).__qualname__}>"
            if not isinstance(function, np.ufunc)
            else f"numpy.{function.__name__}"
        )
    return f"{getattr(function, '__module__', None) or 'builtins'}.{name}"
