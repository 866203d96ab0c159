"""A box of a 4D image in the hands of Patch2Self: read with its halo, then worked on in slabs.

::

    box with its halo                 slabs along the first spatial axis, each as rows of a matrix
    0 0 0 0 0 0 0  <- zeros beyond    (n volumes * p offsets, v voxels) of some megabytes: it stays in the
    . b b b b b .     the image's     cache while it is widened to float64 and multiplied
    . b b b b b .     border, as in
    . b b b b b .     DIPY
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from denoizarr.errors import NonFiniteData
from denoizarr.geometry.boxes import Box
from denoizarr.kernels.intensity import cast_intensities
from denoizarr.kernels.leave_one_out import apply_weights
from denoizarr.kernels.neighbourhoods import n_offsets, neighbour_rows
from denoizarr.kernels.scatter import Floats, Scatter, merged, scatter_of
from denoizarr.stores.sources import Array

# Rows of a slab, widened: about what a core's caches hold, and enough columns for a matrix product.
_SLAB_BYTES, _FEWEST_VOXELS = 8 * 2**20, 256

Fetch = Callable[[Box], Array]
"""Returns the voxels of a spatial box, of all volumes: (n, ...)."""


@dataclass(frozen=True, slots=True)
class VoxelBox:
    """All volumes of a box of space.

    Attributes
    ----------
    padded : array (n, ...)
        With a halo of ``radius``, of zeros beyond the image and outside the mask.
    inside : bool array or None
        The box's voxels that count; None for all.
    kept : array (n, ...)
        The box as it is stored, without halo.
    radius : tuple of int
    outside_non_finite : int
        Values outside the mask that are not finite.
    """

    padded: Array
    inside: NDArray[np.bool_] | None
    kept: Array
    radius: tuple[int, ...]
    outside_non_finite: int = 0

    def slabs(self) -> Iterator[tuple[tuple[slice, ...], Array]]:
        """Yield parts of the box and their rows (n * p, voxels), in C order."""
        n, *extents = self.kept.shape
        p = n_offsets(self.radius)
        voxels = max(_SLAB_BYTES // (8 * n * p), _FEWEST_VOXELS)
        for part in _parts(tuple(extents), voxels):
            halo = tuple(slice(s.start, s.stop + 2 * r) for s, r in zip(part, self.radius, strict=True))
            yield part, neighbour_rows(self.padded[(slice(None), *halo)], self.radius)

    def scatter(self) -> Scatter:
        """Return the scatter of all volumes' neighbourhoods over the voxels that count."""
        return merged(
            scatter_of(rows if self.inside is None else rows[:, self.inside[part].reshape(-1)])
            for part, rows in self.slabs()
        )

    def minima(self, weights: Floats, intercepts: Floats) -> tuple[Floats, Floats]:
        """Return each volume's smallest value and smallest prediction; infinite where no voxel counts."""
        n = len(weights)
        lowest, predicted = np.full(n, np.inf), np.full(n, np.inf)
        for part, rows in self.slabs():
            counts = slice(None) if self.inside is None else self.inside[part].reshape(-1)
            values = self.kept[(slice(None), *part)].reshape(n, -1)[:, counts]
            if values.shape[1]:
                lowest = np.minimum(lowest, values.min(axis=1))
                here = apply_weights(rows[:, counts], weights, intercepts)
                predicted = np.minimum(predicted, here.min(axis=1))
        return lowest, predicted

    def predict(
        self, weights: Floats, intercepts: Floats, finish: Callable[[Floats], Array], out: Array
    ) -> None:
        """Fill ``out`` (n, ...) with predictions, ``finish``ed from float64; outside the mask with the input.

        Parameters
        ----------
        weights, intercepts : float64 arrays (n, n * p), (n,)
        finish : callable
            From float64 (n, v) to the output's dtype, in place if it likes.
        out : array (n, ...)
            May be a view of any order.
        """
        n = len(weights)
        for part, rows in self.slabs():
            here = (slice(None), *part)
            values = finish(apply_weights(rows, weights, intercepts))
            out[here] = values.reshape(n, *out[here].shape[1:])
            if self.inside is not None:
                outside = ~self.inside[part]
                out[here][:, outside] = _as_it_is(self.kept[here][:, outside], out.dtype)


def read_voxels(
    fetch: Fetch,
    box: Box,
    shape: tuple[int, ...],
    radius: tuple[int, ...],
    mask: Callable[[Box], NDArray[np.bool_]] | None,
    where: str,
) -> VoxelBox:
    """Read a box of space with its halo.

    Parameters
    ----------
    fetch : callable
    box : Box
        Along the spatial axes.
    shape : tuple of int
        Of the whole image along them.
    radius : tuple of int
    mask : callable or None
        ``mask(box)``: which voxels count.
    where : str
        Names the image, for the message.

    Raises
    ------
    NonFiniteData
        A value that counts is NaN or infinite.
    """
    around = box.grow(radius)
    read = around.clip(shape)
    found = fetch(read)
    inside = None if mask is None else mask(read)
    values = _cleared(found, inside, read, where)
    before = [a - b for a, b in zip(read.start, around.start, strict=True)]
    after = [b - a for a, b in zip(read.stop, around.stop, strict=True)]
    beyond = list(zip(before, after, strict=True))
    padded = np.pad(values, [(0, 0), *beyond]) if any(map(any, beyond)) else values
    own = box.relative_to(read.start).slices
    kept, counts = found[(slice(None), *own)], None if inside is None else inside[own]
    n_outside = 0
    if counts is not None and found.dtype.kind == "f":
        n_outside = int(np.count_nonzero(~np.isfinite(kept[:, ~counts])))
    return VoxelBox(padded, counts, kept, radius, n_outside)


def _cleared(found: Array, inside: NDArray[np.bool_] | None, box: Box, where: str) -> Array:
    """Return the values with zeros outside the mask."""
    if inside is not None:
        found = np.where(inside, found, np.zeros((), found.dtype))
    if found.dtype.kind == "f":
        # A sum is finite where all of its terms are, or they overflow: then it is looked at closely.
        with np.errstate(invalid="ignore", over="ignore"):
            suspicious = not np.isfinite(found.sum(dtype=np.float64))
        if suspicious and not (finite := np.isfinite(found)).all():
            volume, *place = (int(i[0]) for i in np.nonzero(~finite))
            voxel = tuple(a + i for a, i in zip(box.start, place, strict=True))
            raise NonFiniteData(
                "the image holds NaN or infinity",
                where=f"{where}, volume {volume}, voxel {voxel}",
                got=f"{int(np.count_nonzero(~finite))} such values in this part",
                remedy="pass a mask that leaves them out",
            )
    return found


def _as_it_is(values: Array, dtype: np.dtype[np.generic]) -> Array:
    """Return values that are kept in the output's dtype; among integers what is not finite becomes zero."""
    if dtype == values.dtype or dtype.kind == "f":
        return values.astype(dtype, copy=False)
    return cast_intensities(np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0), dtype)


def _parts(extents: tuple[int, ...], voxels: int) -> Iterator[tuple[slice, ...]]:
    """Yield slabs of at most about so many voxels that cover a box, in C order."""
    first, *rest = extents
    plane = prod(rest)
    if plane > voxels and len(extents) > 1:
        for k in range(first):
            for inner in _parts(tuple(rest), voxels):
                yield (slice(k, k + 1), *inner)
        return
    step = max(voxels // max(plane, 1), 1)
    for k in range(0, first, step):
        yield (slice(k, min(k + step, first)), *(slice(0, extent) for extent in rest))
