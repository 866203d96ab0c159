"""A histogram in one line of text: what an error shows of the scores that nothing came of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BARS = "▁▂▃▄▅▆▇█"
_BINS = 24


def sparkline(counts: NDArray[Any]) -> str:
    """Return one character per count; heights by square root, so that rare scores are seen too."""
    tops = np.ceil(np.sqrt(counts / max(counts.max(), 1)) * len(_BARS)).astype(int)
    return "".join(_BARS[top - 1] if top else "·" for top in tops)


def histogram_text(pieces: Callable[[], Iterable[NDArray[Any]]]) -> tuple[str, float]:
    """Return scores as "low |bars| to high", and the highest.

    Parameters
    ----------
    pieces : callable
        Yields arrays of any shape, the same at every call; what is not finite is left out.
    """
    extremes = [(p.min(), p.max()) for p in map(_finite, pieces()) if p.size]
    if not extremes:
        return "none", float("nan")
    low, high = float(min(a for a, _ in extremes)), float(max(b for _, b in extremes))
    counts = np.zeros(_BINS, np.int64)
    for piece in map(_finite, pieces()):
        counts += np.histogram(piece, _BINS, (low, high))[0]
    return f"from {low:.4g} |{sparkline(counts)}| to {high:.4g}", high


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    finite: NDArray[Any] = values[np.isfinite(values)]
    return finite
