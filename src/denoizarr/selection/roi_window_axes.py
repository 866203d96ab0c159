"""The windows that slide over the coarse level, and their places in the image.

::

    image         0 1 2 3 4 5 6 7 8 9 ...                 n voxels
    coarse level  [   0   ][   1   ][   2   ] ...         ceil(n / f) pixels of f voxels
    windows       [------- 0 -------]                     w = patch // f pixels, every max(1, w (1 - overlap))
                           [------- 1 -------]            the last one flush with the end, always
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import numpy as np
from numpy.typing import NDArray

from denoizarr.errors import BadRequest, PatchTooLarge
from denoizarr.geometry.grids import ceil_div


@dataclass(frozen=True, slots=True)
class WindowAxis:
    """The windows along one axis of the patch.

    Attributes
    ----------
    size, patch : int
        Of the image and the patch, in voxels.
    factor : int
        Voxels per coarse pixel.
    overlap : float
        Of neighbouring windows, 0 to less than 1.
    """

    size: int
    patch: int
    factor: int
    overlap: float

    def __post_init__(self) -> None:
        if self.patch > self.size:
            raise PatchTooLarge(
                "the patch is larger than the image",
                got=f"{self.patch} voxels",
                expected=f"at most {self.size}",
                remedy="choose a smaller patch_size",
            )
        if self.width < 2:
            coarsest = self.patch // 2
            raise BadRequest(
                "a window is less than 2 coarse pixels",
                where="scale_factor",
                got=f"1 / {self.factor} for a patch of {self.patch}",
                expected=f"at least {1 / coarsest:.6g} (1 / {coarsest})"
                if coarsest
                else "a patch of 2 or more",
            )

    @property
    def coarse_size(self) -> int:
        """Pixels of the coarse level."""
        return ceil_div(self.size, self.factor)

    @property
    def width(self) -> int:
        """Of a window, in coarse pixels."""
        return self.patch // self.factor

    @property
    def stride(self) -> int:
        """Between neighbouring windows, in coarse pixels; the last may be nearer."""
        return max(1, floor(self.width * (1 - self.overlap) + 1e-9))

    @property
    def count(self) -> int:
        """Number of windows."""
        return ceil_div(self.coarse_size - self.width, self.stride) + 1

    def coarse_origins(self, first: int, stop: int) -> NDArray[np.int64]:
        """Return the first coarse pixel of the windows ``first .. stop - 1``."""
        return np.minimum(np.arange(first, stop) * self.stride, self.coarse_size - self.width)

    @property
    def origins(self) -> NDArray[np.int64]:
        """First voxel of every window's patch, which lies inside the image."""
        return np.minimum(self.coarse_origins(0, self.count) * self.factor, self.size - self.patch)

    def holding(self, voxels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return, per voxel, the range of windows whose patches hold it; they follow one another."""
        origins = self.origins
        return np.searchsorted(origins, voxels - self.patch, "right"), np.searchsorted(
            origins, voxels, "right"
        )
