"""Weighted draws from very many cells of few classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cell_classes import CellClasses

# Cells per partial sum: 0.8 % of the index's memory, and a search over a kilobyte within. It divides a piece.
RUN = 4096


def weighted_choice(weights: NDArray[np.floating[Any]], positions: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return, for positions in [0, sum of weights), the number of the weight that each falls into.

    A weight of zero is never chosen, not even where rounding carries a position past the end.
    """
    sums = np.cumsum(weights, dtype=np.float64)
    last = int(np.flatnonzero(weights)[-1])
    return np.asarray(np.minimum(np.searchsorted(sums, positions, side="right"), last), np.int64)


def run_sums(cells: CellClasses, table: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the sum of the weights of every run of ``RUN`` cells, in C order."""
    weights = table.astype(np.float64)
    return np.concatenate(
        [np.add.reduceat(weights[piece], np.arange(0, piece.size, RUN)) for piece in cells.pieces()]
    )
