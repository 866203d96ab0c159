"""The scores of one block of regions, from its voxels: what lazy maps and surveys compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoizarr.errors import BadRequest, NonFiniteData
from denoizarr.geometry.boxes import Box
from denoizarr.kernels.patch_scores import (
    coverage_regions,
    default_coverage,
    max_regions,
    mean_std_regions,
    shannon_regions,
)

from .cells import Cells

SCORE_NAMES = ("max", "mean_std", "shannon", "mask")
Bounds = dict[int, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Score:
    """One of the scores, with its setting.

    Attributes
    ----------
    name : {"max", "mean_std", "shannon", "mask"}
        "mask" is the fraction of a region that is not zero, of a mask in place of an image.
    coverage : float or None
        Of the max score; None is a quarter in 2D and an eighth in 3D.
    """

    name: str
    coverage: float | None = None

    def __post_init__(self) -> None:
        if self.name not in SCORE_NAMES:
            raise BadRequest("unknown score", got=self.name, expected=" or ".join(SCORE_NAMES))
        check_coverage(self.coverage)

    @property
    def leading(self) -> tuple[int, ...]:
        """Extents before the image's own dims: 2 (mean, std) for mean_std."""
        return (2,) if self.name == "mean_std" else ()

    def needs_bounds(self, dtype: np.dtype[Any]) -> bool:
        """Tell whether the image's percentiles must be known first: the entropy of floats."""
        return self.name == "shannon" and dtype.kind == "f"

    def coverage_for(self, cells: Cells) -> float:
        """Return the coverage of the max score for these cells."""
        return default_coverage(len(cells.patch)) if self.coverage is None else self.coverage

    def of_regions(
        self, cells: Cells, regions: Box, voxels: NDArray[Any], bounds: Bounds | None = None
    ) -> NDArray[np.float64]:
        """Return the scores of a box of regions.

        Parameters
        ----------
        cells : Cells
        regions : Box
        voxels : array
            What ``cells.voxels_of_regions(regions)`` holds, in the image's dims; finite.
        bounds : dict, optional
            Channel number to (low, high), for the entropy of floats.

        Returns
        -------
        float64 array of ``leading + regions.shape``
        """
        result = np.empty(self.leading + regions.shape)
        shape = regions.shape[cells.n_lead :]
        for index, channel in volumes_of(cells, regions):
            volume = voxels[index] if len(cells.patch) == 3 else voxels[index][np.newaxis]
            scores = self._of_volume(volume, cells, None if bounds is None else bounds[channel])
            place: tuple[Any, ...] = (slice(None),) * len(self.leading) + index
            result[place] = scores.reshape(self.leading + shape)
        return result

    def _of_volume(
        self, volume: NDArray[Any], cells: Cells, bounds: tuple[float, float] | None
    ) -> NDArray[np.float64]:
        if self.name == "max":
            return max_regions(volume, cells.volume_patch, self.coverage_for(cells))
        if self.name == "mean_std":
            return mean_std_regions(volume, cells.volume_patch)
        if self.name == "mask":
            return coverage_regions(volume, cells.volume_patch)
        return shannon_regions(volume, cells.volume_patch, bounds)


def check_coverage(coverage: float | None) -> None:
    """Refuse a coverage that is no fraction."""
    if coverage is not None and not 0 <= coverage <= 1:
        raise BadRequest("not a fraction", where="coverage", got=coverage, expected="0 to 1")


def volumes_of(cells: Cells, box: Box) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield the index of every plane (3D: volume) within the box, and its channel number in the image."""
    axis = cells.dims.index("c") if "c" in cells.dims else None
    for index in np.ndindex(box.shape[: cells.n_lead]):
        yield index, 0 if axis is None else box.start[axis] + index[axis]


def check_finite(cells: Cells, box: Box, voxels: NDArray[Any]) -> None:
    """Refuse voxels that are NaN or infinite; ``box`` says where they are."""
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise_non_finite(cells, box, voxels)


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
