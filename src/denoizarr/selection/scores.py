"""The scores of one box of cells, from the voxels around it: what lazy maps and surveys compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoizarr.errors import BadRequest, NonFiniteData
from denoizarr.geometry.boxes import Box
from denoizarr.kernels.patch_scores import DEFAULT_COVERAGE, max_scores, mean_std_scores, shannon_scores

from .cells import Cells

SCORE_NAMES = ("max", "mean_std", "shannon")
Bounds = dict[int, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Score:
    """One of the three scores, with its setting.

    Attributes
    ----------
    name : {"max", "mean_std", "shannon"}
    coverage : float
        Of the max score.
    """

    name: str
    coverage: float = DEFAULT_COVERAGE

    def __post_init__(self) -> None:
        if self.name not in SCORE_NAMES:
            raise BadRequest("unknown score", got=self.name, expected=" or ".join(SCORE_NAMES))
        if not 0 <= self.coverage <= 1:
            raise BadRequest("not a fraction", where="coverage", got=self.coverage, expected="0 to 1")

    @property
    def leading(self) -> tuple[int, ...]:
        """Extents before the image's own dims: 2 (mean, std) for mean_std."""
        return (2,) if self.name == "mean_std" else ()

    def needs_bounds(self, dtype: np.dtype[Any]) -> bool:
        """Tell whether the image's percentiles must be known first: the entropy of floats."""
        return self.name == "shannon" and dtype.kind == "f"

    def of_box(
        self, cells: Cells, core: Box, voxels: NDArray[Any], bounds: Bounds | None = None
    ) -> NDArray[np.float32]:
        """Return the scores of a box of cells.

        Parameters
        ----------
        cells : Cells
        core : Box
            In cells.
        voxels : array
            What ``cells.with_halo(cells.voxels_of(core))`` holds, in the image's dims.
        bounds : dict, optional
            Channel number to (low, high), for the entropy of floats.

        Returns
        -------
        float32 array of ``leading + core.shape``
        """
        if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
            raise_non_finite(cells, cells.with_halo(cells.voxels_of(core)), voxels)
        inner = _inside(core)
        result = np.empty(self.leading + core.shape, np.float32)
        for plane, channel in planes_of(cells, core):
            scores = self._of_plane(voxels[plane], cells.patch, None if bounds is None else bounds[channel])
            place: tuple[Any, ...] = (slice(None),) * len(self.leading) + plane
            result[place] = scores[..., inner[0], inner[1]]
        return result

    def _of_plane(
        self, plane: NDArray[Any], patch: tuple[int, int], bounds: tuple[float, float] | None
    ) -> NDArray[np.float32]:
        if self.name == "max":
            return max_scores(plane, patch, self.coverage)
        if self.name == "mean_std":
            return mean_std_scores(plane, patch)
        return shannon_scores(plane, patch, bounds)


def planes_of(cells: Cells, core: Box) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield the index of every plane within the box, and its channel number in the image."""
    axis = cells.dims.index("c") if "c" in cells.dims else None
    for plane in np.ndindex(core.shape[:-2]):
        yield plane, 0 if axis is None else core.start[axis] + plane[axis]


def _inside(core: Box) -> tuple[slice, slice]:
    """Return where the core's cells lie among those of the box with its halo."""
    before = [1 if core.start[axis] > 0 else 0 for axis in (-2, -1)]
    sizes = core.shape[-2:]
    return slice(before[0], before[0] + sizes[0]), slice(before[1], before[1] + sizes[1])


def raise_non_finite(cells: Cells, box: Box, voxels: NDArray[Any]) -> None:
    """Raise ``NonFiniteData`` naming the first voxel of ``box``, in C order, that is NaN or infinite."""
    bad = ~np.isfinite(voxels)
    first = np.unravel_index(int(np.argmax(bad)), bad.shape)
    index = ", ".join(f"{d}={a + int(i)}" for d, a, i in zip(cells.dims, box.start, first, strict=True))
    raise NonFiniteData(
        "the image holds NaN or infinity",
        where=f"voxel {index}",
        got=f"{voxels[first]} and {int(bad.sum()) - 1} more in this block",
        remedy="replace them, with the image's minimum for example, and save the image again",
    )
