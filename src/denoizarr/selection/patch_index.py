"""The patch index: one small weight per cell, from which patches are drawn.

A cell costs two bits: the number of its class; a table gives the weight of each class. Sums over runs of
4,096 cells make a weighted draw two short searches, so a terabyte image's index fits a laptop and draws at
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from denoizarr.errors import BadRequest, EmptyIndex
from denoizarr.geometry.boxes import Box
from denoizarr.stores.images import ImageLike, as_images, reader_of
from denoizarr.stores.sources import ImageReader

from . import index_file
from .cell_classes import N_CLASSES, OUTSIDE, CellClasses, Classes, piece_shape
from .cells import Cells, Patch
from .holdout import hold_out
from .image_statistics import ImageStatistics
from .weighted import RUN, run_sums, weighted_choice

Origins = NDArray[np.int64]


class PatchIndex:
    """Where to draw patches from in one image or several.

    Made by :func:`~denoizarr.selection.index_builder.build_index`, never directly.

    Attributes
    ----------
    patch_size : (y, x) or (z, y, x)
        In voxels.
    dims : tuple of str
        Of an origin: those of t, z, y, x that the images have.
    shapes : list of tuple of int
        Extent of each image along ``dims``, in voxels.
    classes : list of CellClasses
        Class of every cell, one array per image, one axis per dim.
    table : float32 array
        Weight of each of at most four classes, in [0, 1].
    images : list of dict
        Identity of each image.
    axes : list of dict
        By image and dim: world coordinate of the first voxel, spacing, unit.
    settings : dict
        Of filter, mask and region of interest, and ``filtered_patch_prob``.
    jitter : bool
        Whether a patch may begin up to half a patch off its cell; not in a validation index.
    statistics : list of ImageStatistics, or None
        Of each image, where the pass that scored it counted it too: training then reads it once less.
    """

    def __init__(
        self,
        *,
        patch_size: Patch,
        dims: tuple[str, ...],
        shapes: Sequence[tuple[int, ...]],
        classes: Sequence[CellClasses | Classes],
        table: NDArray[np.float32],
        images: Sequence[dict[str, Any]],
        axes: Sequence[dict[str, Any]],
        settings: dict[str, Any],
        jitter: bool = True,
        statistics: Sequence[ImageStatistics] | None = None,
    ) -> None:
        self.patch_size, self.dims, self.jitter = patch_size, dims, jitter
        self.shapes, self.table = list(shapes), np.asarray(table, np.float32)
        self.classes = [c if isinstance(c, CellClasses) else CellClasses.of(c) for c in classes]
        assert self.table.size <= N_CLASSES, f"{self.table.size} classes do not fit into two bits"
        self.images, self.axes, self.settings = list(images), list(axes), dict(settings)
        self.statistics = None if statistics is None else list(statistics)
        for shape, cells in zip(self.shapes, self.classes, strict=True):
            assert cells.shape == Cells(dims, shape, patch_size).counts, (
                f"{cells.shape} cells for an image of {shape}"
            )
        runs = [run_sums(cells, self.table) for cells in self.classes]
        self._first_run = np.cumsum([0, *(r.size for r in runs)])
        self._run_sums = np.cumsum(np.concatenate(runs))

    def __repr__(self) -> str:
        size = "x".join(map(str, self.patch_size))
        return (
            f"PatchIndex({len(self.images)} images, {self.n_cells} cells of {size}, {self.n_patches} patches)"
        )

    @property
    def n_cells(self) -> int:
        """Number of cells of all images."""
        return sum(c.size for c in self.classes)

    @property
    def total_weight(self) -> float:
        """Sum of the weights of all cells."""
        return float(self._run_sums[-1])

    @property
    def n_patches(self) -> int:
        """Sum of the weights, rounded: how many patches a full look at the images is."""
        return round(self.total_weight)

    @property
    def n_background(self) -> int:
        """Number of cells with less than full weight."""
        return self._count(*np.flatnonzero(self.table < 1))

    def _count(self, *numbers: int) -> int:
        """Return how many cells are of these classes."""
        return sum(int(np.isin(run, numbers).sum()) for cells in self.classes for run in cells.pieces())

    @property
    def weights(self) -> xr.DataArray | list[xr.DataArray]:
        """The weight of every cell, float32, lazy; a list where there are several images."""
        arrays = [self._weights_of(i) for i in range(len(self.classes))]
        return arrays[0] if len(arrays) == 1 else arrays

    def _weights_of(self, number: int) -> xr.DataArray:
        # Dask slices it as any array-like; a chunk is about a hundred thousand cells.
        classes = da.from_array(
            self.classes[number], chunks=piece_shape(self.classes[number].shape), fancy=False
        )
        weights = classes.map_blocks(
            self.table.__getitem__, dtype=np.float32, meta=np.empty((0,) * classes.ndim, np.float32)
        )
        cells = self.cells_of(number)
        coords = {
            dim: xr.Variable((dim,), np.arange(size) * axis["spacing"] + axis["first"], axis["attrs"])
            for (dim, axis), size in zip(self.axes[number].items(), self.shapes[number], strict=True)
        }
        voxels = xr.DataArray(da.zeros(self.shapes[number], dtype=np.uint8), dims=self.dims, coords=coords)
        return xr.DataArray(
            weights,
            dims=self.dims,
            coords=cells.coordinates(voxels),
            name="weight",
            attrs={"patch_size": list(self.patch_size)},
        )

    def cells_of(self, number: int) -> Cells:
        """Return the grid of cells of one image."""
        return Cells(self.dims, self.shapes[number], self.patch_size)

    def summary(self) -> str:
        """Return the log line that says what filter, mask and regions of interest did."""
        if not self.settings.keys() & {"name", "mask", "roi"}:
            return f"{self.n_patches} patches."
        if "roi" not in self.settings:
            found = f"Found {self.n_background} background regions."
        else:
            outside = self._count(OUTSIDE)
            found = (
                f"{self.n_cells - outside} of {self.n_cells} cells lie in the regions of interest, "
                f"{self.n_background - outside} of them background by filter or mask."
            )
        return f"{found} Number of patches has been reduced to {self.n_patches} from {self.n_cells}."

    def sample(self, n: int, seed: int = 0) -> Origins:
        """Draw patches: a cell by weight, then an origin uniform within half a patch of the cell's.

        Parameters
        ----------
        n : int
        seed : int

        Returns
        -------
        int64 array (n, dims)
            First voxel of each patch along ``dims``, so that the patch lies in the image; with several
            images a leading column holds the image's number.

        Raises
        ------
        EmptyIndex
            No cell has a weight.
        """
        if n < 0 or seed < 0:
            raise BadRequest("not a draw", got=f"n={n}, seed={seed}", expected="0 or more of both")
        if self.total_weight <= 0:
            raise EmptyIndex("no cell of the index has a weight", remedy="lower the filter's threshold")
        generator = np.random.Generator(np.random.Philox(key=seed))
        position = generator.random(n) * self.total_weight
        jitter = generator.random((n, len(self.patch_size)))
        run = weighted_choice(np.diff(self._run_sums, prepend=0.0), position)
        before = np.concatenate([[0.0], self._run_sums])[run]
        image = np.searchsorted(self._first_run, run, side="right") - 1
        flat = np.empty(n, np.int64)
        order = np.argsort(run, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(run[order])) + 1) if n else []:
            number, this_run = int(image[group[0]]), int(run[group[0]])
            first = (this_run - self._first_run[number]) * RUN
            weights = self.table[self.classes[number].run(first, min(first + RUN, self.classes[number].size))]
            flat[group] = first + weighted_choice(weights, position[group] - before[group])
        origins = np.empty((n, len(self.dims)), np.int64)
        for number in range(len(self.classes)):
            chosen = image == number
            cells = np.stack(np.unravel_index(flat[chosen], self.classes[number].shape), axis=1)
            origins[chosen] = self.origins_of(number, cells, jitter[chosen])
        return np.column_stack([image, origins]) if len(self.classes) > 1 else origins

    def origins_of(
        self, number: int, cells: Origins, uniform: NDArray[np.float64], within: Box | None = None
    ) -> Origins:
        """Return a patch origin for each cell.

        Parameters
        ----------
        number : int
            Of the image.
        cells : int64 array (n, dims)
        uniform : float64 array (n, axes of the patch)
            In [0, 1), for each axis of the patch: where in the range ``-P//2 .. P - P//2 - 1`` around the
            cell's own origin, cut at the image's border. Neighbouring cells' ranges meet and do not overlap
            inside the image: equal weights, equally likely positions. At its border, where a range has
            half as many positions, they are twice as likely. A short last cell keeps the weight of a whole
            one and leaves its patches few positions: with patches of 64 the last two of 513 are 27 times as
            likely as others, of 1030 the last 5 ten times.
        within : Box, optional
            Along ``dims``: patches lie in it. It holds the cells' centres and is a patch wide or more.
        """
        origins: Origins = cells * np.array(self.cells_of(number).step)
        box = Box.whole(self.shapes[number]) if within is None else within
        for axis, patch in zip(range(-len(self.patch_size), 0), self.patch_size, strict=True):
            start, half = origins[:, axis], patch // 2
            first, last = box.start[axis], box.stop[axis] - patch
            own = np.minimum(start, self.shapes[number][axis] - patch)
            if self.jitter:
                # Never a patch or more away from the cell: the guard of a split is one cell wide.
                nearest, furthest = np.maximum(start - patch, first), np.minimum(start + patch, last)
                low = np.maximum(own - half, nearest)
                high = np.minimum(own + patch - half - 1, last)
                if within is not None:
                    # A block's border may leave a cell a position or two, and patches would pile up there.
                    high = np.maximum(high, np.minimum(low + half, furthest))
                    low = np.minimum(low, np.maximum(high - half, nearest))
                own = low + np.floor(uniform[:, axis] * (high - low + 1)).astype(np.int64)
            else:
                own = np.clip(own, first, last)
            origins[:, axis] = own
        return origins

    def split(self, fraction: float = 0.1, seed: int = 0) -> tuple[PatchIndex, PatchIndex]:
        """Split into a training and a validation index that share no voxel.

        Parameters
        ----------
        fraction : float
            Of the weight, wanted for validation.
        seed : int

        Returns
        -------
        (training, validation)
            The cells around the validation cells belong to neither: a patch reaches half a patch beyond its
            cell. Where the images are too small for that, validation is empty: ``n_patches`` is 0.
        """
        if not 0 <= fraction < 1:
            raise BadRequest(
                "not a fraction", where="validation fraction", got=fraction, expected="0 up to below 1"
            )
        table = np.append(self.table, np.float32(0)) if not (self.table == 0).any() else self.table
        zero = int(np.flatnonzero(table == 0)[0])
        whole = [np.asarray(c) for c in self.classes]
        held, guard = hold_out(whole, table, self.shapes, self.patch_size, fraction, seed)
        training = [np.where(g, np.uint8(zero), c) for g, c in zip(guard, whole, strict=True)]
        validation = [np.where(h, c, np.uint8(zero)) for h, c in zip(held, whole, strict=True)]
        return self._with(training, table, self.jitter), self._with(validation, table, False)

    def _with(self, classes: Sequence[Classes], table: NDArray[np.float32], jitter: bool) -> PatchIndex:
        return PatchIndex(
            patch_size=self.patch_size,
            dims=self.dims,
            shapes=self.shapes,
            classes=classes,
            table=table,
            images=self.images,
            axes=self.axes,
            settings=self.settings,
            jitter=jitter,
            statistics=self.statistics,
        )

    def check_image(self, images: ImageLike | Sequence[ImageLike]) -> None:
        """Make sure that this is the index of these images, in this order.

        Raises
        ------
        BadRequest
            Their number, shape or identity differs.
        """
        opened = as_images(images)
        if len(opened) != len(self.images):
            raise BadRequest(
                "the index is of other images", got=f"{len(opened)} images", expected=len(self.images)
            )
        for image, expected in zip(opened, self.images, strict=True):
            found = identity_of(image)
            if found != expected and _stored_identity(image) != expected:
                differing = [
                    k for k in sorted(found.keys() | expected.keys()) if found.get(k) != expected.get(k)
                ]
                raise BadRequest(
                    "the index is of another image",
                    where=", ".join(differing),
                    got=", ".join(str(found.get(k)) for k in differing),
                    expected=", ".join(str(expected.get(k)) for k in differing),
                    remedy="build an index of this image",
                )

    def save(self, url: str | Path) -> None:
        """Write the index as a Zarr group; marked complete last. An index that lies there is replaced."""
        index_file.write(str(url), vars(self))

    @classmethod
    def open(cls, url: str | Path) -> PatchIndex:
        """Read an index.

        Raises
        ------
        ImageNotFound, NotOmeZarr, IncompleteOutput, ModelError
        """
        return cls(**index_file.read(str(url)))


def _stored_identity(image: xr.DataArray) -> dict[str, Any] | None:
    """Return the identity of the stored image, for one less its periodic lines: places are the same."""
    stored = reader_of(image).uncorrected
    return None if stored is None else _identity(stored, image, stored.dtype)


def identity_of(image: xr.DataArray) -> dict[str, Any]:
    """Return what makes an image this one and no other, JSON-able."""
    return _identity(reader_of(image), image, np.dtype(image.dtype))


def _identity(reader: ImageReader, image: xr.DataArray, dtype: np.dtype[Any]) -> dict[str, Any]:
    return {
        **reader.identity,
        "dims": "".join(str(d) for d in image.dims),
        "shape": [int(n) for n in image.shape],
        "dtype": str(dtype),
    }
