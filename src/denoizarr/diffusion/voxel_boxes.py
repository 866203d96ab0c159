"""A box of a 4D image in the hands of Patch2Self: read with its halo, then worked on in slabs.

::

    box with its halo                 slabs along the first spatial axis, each as rows of a matrix
    0 0 0 0 0 0 0  <- zeros beyond    (n volumes * p offsets, v voxels) of some megabytes: it stays in the
    . b b b b b .     the image's     cache while it is widened and multiplied
    . b b b b b .     border, as in
    . b b b b b .     DIPY
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoizarr.errors import NonFiniteData
from denoizarr.geometry.boxes import Box
from denoizarr.kernels.intensity import cast_intensities
from denoizarr.kernels.leave_one_out import Predictor
from denoizarr.kernels.neighbourhoods import n_offsets, neighbour_rows
from denoizarr.kernels.scatter import Floats, Scatter, scatter_of_parts
from denoizarr.kernels.voxel_rows import AnyFloats, add_to_rows, smallest
from denoizarr.stores.sources import Array

# Rows of a slab, were they float64: in the dtypes that they take about what a core's caches hold, and enough
# columns for a matrix product.
_SLAB_BYTES, _FEWEST_VOXELS = 4 * 2**20, 256

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

    @property
    def nbytes(self) -> int:
        """What it holds in memory."""
        # A part of what was read holds all of it.
        read = self.kept.base if isinstance(self.kept.base, np.ndarray) else self.kept
        own = 0 if np.may_share_memory(read, self.padded) else read.nbytes
        return self.padded.nbytes + own + (0 if self.inside is None else self.inside.nbytes)

    def parts(self) -> Iterator[tuple[slice, ...]]:
        """Yield slabs of the box, of as many voxels as are worked on at a time, in C order."""
        n, *extents = self.kept.shape
        voxels = max(_SLAB_BYTES // (8 * n * n_offsets(self.radius)), _FEWEST_VOXELS)
        yield from _parts(tuple(extents), voxels)

    def slabs(self) -> Iterator[tuple[tuple[slice, ...], Array]]:
        """Yield slabs of the box and their rows (n * p, voxels)."""
        for part in self.parts():
            halo = tuple(slice(s.start, s.stop + 2 * r) for s, r in zip(part, self.radius, strict=True))
            yield part, neighbour_rows(self.padded[(slice(None), *halo)], self.radius)

    def scatter(self) -> Scatter:
        """Return the scatter of all volumes' neighbourhoods over the voxels that count."""
        return scatter_of_parts(
            (rows if self.inside is None else rows[:, self.inside[part].reshape(-1)])
            for part, rows in self.slabs()
        )

    def minima(self, predictor: Predictor, sums: AnyFloats | None = None) -> tuple[Floats, Floats]:
        """Return each volume's smallest value and smallest prediction; infinite where no voxel counts.

        Parameters
        ----------
        predictor : Predictor
        sums : array of its weights' dtype (n, ...), optional
            Takes all of the box, to be finished later; may be a view of any order.
        """
        n = len(predictor.intercepts)
        lowest, least = np.full(n, np.inf), np.full(n, np.inf)
        for part, rows in self.slabs():
            counts = slice(None) if self.inside is None else self.inside[part].reshape(-1)
            values = self.kept[(slice(None), *part)].reshape(n, -1)[:, counts]
            # Of all voxels, as they are predicted: what is the minimum here is so to the last bit there.
            here = _summed(rows, predictor, None if sums is None else sums[(slice(None), *part)])
            if values.shape[1]:
                lowest = np.minimum(lowest, smallest(values))
                least = np.minimum(least, smallest(here[:, counts]))
        return lowest, least + predictor.intercepts

    def predict(self, predictor: Predictor, out: Array, *, clip_negative: bool) -> None:
        """Fill ``out`` (n, ...) with predictions in its dtype; outside the mask with the input.

        Parameters
        ----------
        predictor : Predictor
        out : array (n, ...)
            May be a view of any order.
        clip_negative : bool
        """
        for part, rows in self.slabs():
            sums = predictor.sums(rows).reshape(out[(slice(None), *part)].shape)
            self._finish(part, sums, predictor.intercepts, out, clip_negative)

    def finish(self, sums: AnyFloats, intercepts: Floats, out: Array, *, clip_negative: bool) -> None:
        """Fill ``out`` as ``predict`` does, from what ``minima`` put into ``sums``, which is changed.

        ``out`` may be ``sums`` itself.
        """
        for part in self.parts():
            self._finish(part, sums[(slice(None), *part)], intercepts, out, clip_negative)

    def _finish(
        self, part: tuple[slice, ...], sums: AnyFloats, intercepts: Floats, out: Array, clip_negative: bool
    ) -> None:
        here = (slice(None), *part)
        there = out[here]
        by_volume: NDArray[Any] = intercepts.astype(sums.dtype)
        if out.dtype.kind == "f" and not clip_negative:
            _add(sums, by_volume, there)
        else:
            _add(sums, by_volume, sums)
            if clip_negative:
                np.maximum(sums, 0, out=sums)
            there[...] = cast_intensities(sums, out.dtype)
        if self.inside is not None:
            outside = ~self.inside[part]
            there[:, outside] = _as_it_is(self.kept[here][:, outside], out.dtype)


def _add(sums: AnyFloats, by_volume: AnyFloats, out: Array) -> None:
    """Put (n, ...) and a number for each volume into ``out``."""
    flat, into = sums.reshape(len(sums), -1), out.reshape(len(out), -1)
    if np.may_share_memory(flat, sums) and np.may_share_memory(into, out):
        add_to_rows(flat, by_volume, into)
    else:
        np.add(sums, by_volume.reshape(-1, *(1,) * (sums.ndim - 1)), out=out, casting="same_kind")


def _summed(rows: Array, predictor: Predictor, into: AnyFloats | None) -> AnyFloats:
    """Return weighted sums (n, v), and put them into (n, ...) if it is given."""
    if into is None:
        return predictor.sums(rows)
    flat = into.reshape(len(into), -1)
    if np.shares_memory(flat, into):
        return predictor.sums(rows, flat)
    found = predictor.sums(rows)
    into[...] = found.reshape(into.shape)
    return found


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
