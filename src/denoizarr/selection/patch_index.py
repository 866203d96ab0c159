"""The patch index: one small weight per cell, from which patches are drawn.

A cell costs one byte: the number of its class; a table gives the weight of each class. Sums over runs of
4,096 cells make a weighted draw two short searches, so a terabyte image's index fits a laptop and draws at
once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from denoizarr.errors import BadRequest, EmptyIndex, PatchTooLarge
from denoizarr.stores.images import ImageLike, as_images, reader_of

from . import index_file
from .cells import Cells, PatchSize, patch_pair
from .filter_maps import lazy_map
from .filters import MeanStdPatchFilter, PatchFilter
from .holdout import hold_out
from .weighted import RUN, pieces_of, run_sums, weighted_choice

_LOG = logging.getLogger(__name__)
Classes = NDArray[np.uint8]
Origins = NDArray[np.int64]


class PatchIndex:
    """Where to draw patches from in one image or several.

    Made by :func:`build_index`, never directly.

    Attributes
    ----------
    patch_size : (y, x)
        In voxels.
    dims : tuple of str
        Of an origin: those of t, z, y, x that the images have.
    shapes : list of tuple of int
        Extent of each image along ``dims``, in voxels.
    classes : list of uint8 arrays
        Class of every cell, one array per image, one axis per dim.
    table : float32 array
        Weight of each class, in [0, 1].
    images : list of dict
        Identity of each image.
    axes : list of dict
        By image and dim: world coordinate of the first voxel, spacing, unit.
    settings : dict
        The filter's name and thresholds, and ``filtered_patch_prob``.
    jitter : bool
        Whether a patch may begin up to half a patch off its cell; not in a validation index.
    """

    def __init__(
        self,
        *,
        patch_size: tuple[int, int],
        dims: tuple[str, ...],
        shapes: Sequence[tuple[int, ...]],
        classes: Sequence[Classes],
        table: NDArray[np.float32],
        images: Sequence[dict[str, Any]],
        axes: Sequence[dict[str, Any]],
        settings: dict[str, Any],
        jitter: bool = True,
    ) -> None:
        self.patch_size, self.dims, self.jitter = patch_size, dims, jitter
        self.shapes, self.classes, self.table = list(shapes), list(classes), np.asarray(table, np.float32)
        self.images, self.axes, self.settings = list(images), list(axes), dict(settings)
        for shape, cells in zip(self.shapes, self.classes, strict=True):
            assert cells.shape == Cells(dims, shape, patch_size).counts, (
                f"{cells.shape} cells for an image of {shape}"
            )
        runs = [run_sums(cells, self.table) for cells in self.classes]
        self._first_run = np.cumsum([0, *(r.size for r in runs)])
        self._run_sums = np.cumsum(np.concatenate(runs))

    def __repr__(self) -> str:
        size = f"{self.patch_size[0]}x{self.patch_size[1]}"
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
        low = np.flatnonzero(self.table < 1)
        return sum(int(np.isin(run, low).sum()) for cells in self.classes for run in pieces_of(cells))

    @property
    def weights(self) -> xr.DataArray | list[xr.DataArray]:
        """The weight of every cell, float32, lazy; a list where there are several images."""
        arrays = [self._weights_of(i) for i in range(len(self.classes))]
        return arrays[0] if len(arrays) == 1 else arrays

    def _weights_of(self, number: int) -> xr.DataArray:
        classes = da.from_array(self.classes[number])
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
        """Return the log line that says what the filter did."""
        return (
            f"Found {self.n_background} background regions. "
            f"Number of patches has been reduced to {self.n_patches} from {self.n_cells}."
        )

    def sample(self, n: int, seed: int = 0) -> Origins:
        """Draw patches: a cell by weight, then an origin uniform within half a patch of the cell's.

        Parameters
        ----------
        n : int
        seed : int

        Returns
        -------
        int64 array (n, dims)
            First voxel of each patch along ``dims``, clipped so that the patch lies in the image; with
            several images a leading column holds the image's number.

        Raises
        ------
        EmptyIndex
            No cell has a weight.
        """
        if self.total_weight <= 0:
            raise EmptyIndex("no cell of the index has a weight", remedy="lower the filter's threshold")
        generator = np.random.Generator(np.random.Philox(key=seed))
        position = generator.random(n) * self.total_weight
        jitter = generator.random((n, 2))
        run = weighted_choice(np.diff(self._run_sums, prepend=0.0), position)
        before = np.concatenate([[0.0], self._run_sums])[run]
        image = np.searchsorted(self._first_run, run, side="right") - 1
        flat = np.empty(n, np.int64)
        order = np.argsort(run, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(run[order])) + 1) if n else []:
            number, first = (
                int(image[group[0]]),
                (int(run[group[0]]) - self._first_run[image[group[0]]]) * RUN,
            )
            weights = self.table[self.classes[number].reshape(-1)[first : first + RUN]]
            flat[group] = first + weighted_choice(weights, position[group] - before[group])
        origins = np.empty((n, len(self.dims)), np.int64)
        for number in range(len(self.classes)):
            chosen = image == number
            cells = np.stack(np.unravel_index(flat[chosen], self.classes[number].shape), axis=1)
            origins[chosen] = self.origins_of(number, cells, jitter[chosen])
        return np.column_stack([image, origins]) if len(self.classes) > 1 else origins

    def origins_of(self, number: int, cells: Origins, uniform: NDArray[np.float64]) -> Origins:
        """Return a patch origin for each cell.

        Parameters
        ----------
        number : int
            Of the image.
        cells : int64 array (n, dims)
        uniform : float64 array (n, 2)
            In [0, 1), for y and x: where in the range ``-P//2 .. P - P//2 - 1`` around the cell's own origin.
            Neighbouring cells' ranges meet and do not overlap: equal weights, equally likely positions.
        """
        origins: Origins = cells * np.array(self.cells_of(number).step)
        for axis, patch, column in ((-2, self.patch_size[0], 0), (-1, self.patch_size[1], 1)):
            if self.jitter:
                origins[:, axis] += np.floor(uniform[:, column] * patch).astype(np.int64) - patch // 2
            np.clip(origins[:, axis], 0, self.shapes[number][axis] - patch, out=origins[:, axis])
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
        held, guard = hold_out(self.classes, table, self.shapes, self.patch_size, fraction, seed)
        training = [np.where(g, np.uint8(zero), c) for g, c in zip(guard, self.classes, strict=True)]
        validation = [np.where(h, c, np.uint8(zero)) for h, c in zip(held, self.classes, strict=True)]
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
            if found != expected:
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

    def save(self, url: str) -> None:
        """Write the index as a Zarr group; marked complete last. An index that lies there is replaced."""
        index_file.write(url, vars(self))

    @classmethod
    def open(cls, url: str) -> PatchIndex:
        """Read an index.

        Raises
        ------
        ImageNotFound, NotOmeZarr, IncompleteOutput, ModelError
        """
        return cls(**index_file.read(url))


def identity_of(image: xr.DataArray) -> dict[str, Any]:
    """Return what makes an image this one and no other, JSON-able."""
    reader = reader_of(image)
    return {
        **reader.identity,
        "dims": "".join(str(d) for d in image.dims),
        "shape": [int(n) for n in image.shape],
        "dtype": str(np.dtype(image.dtype)),
    }


def build_index(
    image: ImageLike | Sequence[ImageLike],
    patch_size: PatchSize,
    *,
    patch_filter: PatchFilter | None = None,
    filtered_patch_prob: float = 0.1,
    seed: int = 0,
    client: Any = None,
) -> PatchIndex:
    """Score one image or several, and index where to draw patches.

    Parameters
    ----------
    image : an image, a glob, or a list of images
        Of any sizes, but with the same dims.
    patch_size : int or (y, x)
    patch_filter : MaxPatchFilter, MeanStdPatchFilter or ShannonPatchFilter, optional
        Without one every cell has weight 1. A filter without a threshold chooses it from the map.
    filtered_patch_prob : float
        Weight of the cells that the filter does not keep.
    seed : int
        Kept in the settings; an index itself draws nothing.
    client : distributed.Client, optional
        Computes the filter map; the scheduler of this process does without one.

    Raises
    ------
    PatchTooLarge
        A patch does not fit into an image's plane.
    EmptyIndex
        The threshold keeps nothing; the message names one that would do.
    BadRequest
        For a triple ``patch_size``, images of different dims, or a probability outside [0, 1].
    """
    images = as_images(image)
    pair = patch_pair(patch_size)
    _check_sizes(images, pair)
    if patch_filter is None:
        return index_from_maps(images, None, pair, filtered_patch_prob=filtered_patch_prob, seed=seed)
    maps = []
    for opened in images:
        channel = patch_filter.ref_channel if "c" in opened.dims else None
        lazy = lazy_map(opened, pair, patch_filter.score, ref_channel=channel)
        maps.append(
            lazy.copy(data=client.compute(lazy.data).result()) if client is not None else lazy.compute()
        )
    return index_from_maps(
        images, maps, pair, patch_filter=patch_filter, filtered_patch_prob=filtered_patch_prob, seed=seed
    )


def index_from_maps(
    images: Sequence[xr.DataArray],
    maps: Sequence[xr.DataArray] | None,
    patch_size: PatchSize,
    *,
    patch_filter: PatchFilter | None = None,
    filtered_patch_prob: float = 0.1,
    seed: int = 0,
) -> PatchIndex:
    """Index images whose filter maps are made already; see :func:`build_index`.

    Parameters
    ----------
    maps : sequence of DataArray, optional
        One per image, of the filter's own score; a map with c gives the filter's ``ref_channel``.
    """
    pair = patch_pair(patch_size)
    _check_sizes(images, pair)
    if not 0 <= filtered_patch_prob <= 1:
        raise BadRequest(
            "not a probability", where="filtered_patch_prob", got=filtered_patch_prob, expected="0 to 1"
        )
    dims = tuple(str(d) for d in images[0].dims if d != "c")
    shapes = [tuple(int(i.sizes[d]) for d in dims) for i in images]
    settings: dict[str, Any] = {"filtered_patch_prob": float(filtered_patch_prob), "seed": int(seed)}
    if patch_filter is None or maps is None:
        classes = [np.zeros(Cells(dims, shape, pair).counts, np.uint8) for shape in shapes]
        table = np.ones(1, np.float32)
    else:
        one = [_channel_of(m, patch_filter.ref_channel) for m in maps]
        chosen = patch_filter.resolved(*one)
        classes = [np.asarray(chosen.keep(m), np.uint8) for m in one]
        if not any(c.any() for c in classes):
            raise _nothing_kept(chosen, one)
        table = np.array([filtered_patch_prob, 1], np.float32)
        settings |= chosen.settings()
    index = PatchIndex(
        patch_size=pair,
        dims=dims,
        shapes=shapes,
        classes=classes,
        table=table,
        images=[identity_of(i) for i in images],
        axes=[{d: _axis_of(i, d) for d in dims} for i in images],
        settings=settings,
    )
    _LOG.info("%s", index.summary())
    return index


def _check_sizes(images: Sequence[xr.DataArray], patch: tuple[int, int]) -> None:
    for image in images:
        if image.dims != images[0].dims:
            raise BadRequest("images of different dims", got=image.dims, expected=images[0].dims)
        plane = (image.sizes["y"], image.sizes["x"])
        if plane[0] < patch[0] or plane[1] < patch[1]:
            raise PatchTooLarge(
                "the patch is larger than the image",
                where=str(image.name or "image"),
                got=f"patch {patch[0]} x {patch[1]}",
                expected=f"at most {plane[0]} x {plane[1]} (y x x)",
                remedy="choose a smaller patch_size",
            )


def _channel_of(filter_map: xr.DataArray, channel: int) -> xr.DataArray:
    if "c" not in filter_map.dims:
        return filter_map
    if not 0 <= channel < filter_map.sizes["c"]:
        raise BadRequest(
            "no such channel", where="ref_channel", got=channel, expected=f"0 to {filter_map.sizes['c'] - 1}"
        )
    return filter_map.isel(c=channel)


def _axis_of(image: xr.DataArray, dim: str) -> dict[str, Any]:
    coordinate = (
        image.coords[dim] if dim in image.coords else xr.DataArray(np.arange(image.sizes[dim]), dims=dim)
    )
    values = np.asarray(coordinate.values, float)
    attrs = {k: v for k, v in coordinate.attrs.items() if k == "units"}
    spacing = float(values[1] - values[0]) if values.size > 1 else float(coordinate.attrs.get("spacing", 1.0))
    return {"first": float(values[0]), "spacing": spacing, "attrs": attrs}


def _nothing_kept(patch_filter: PatchFilter, maps: Sequence[xr.DataArray]) -> EmptyIndex:
    if isinstance(patch_filter, MeanStdPatchFilter):
        mean = max(float(m.sel(statistic="mean").max()) for m in maps)
        std = max(float(m.sel(statistic="std").max()) for m in maps)
        got = f"mean_threshold={patch_filter.mean_threshold}, std_threshold={patch_filter.std_threshold}"
        expected = f"at most {mean:g} and {std:g}, reached by the same cell"
    else:
        largest = max(float(m.max()) for m in maps)
        got, expected = (
            f"threshold={patch_filter.main_threshold()}",
            f"at most {largest:g}, the map's largest value",
        )
    typical = patch_filter.suggest_threshold(xr.concat([_flat(m) for m in maps], dim="cell"))
    return EmptyIndex(
        "the patch filter keeps no cell",
        where=type(patch_filter).__name__,
        got=got,
        expected=expected,
        remedy=f"{typical:g} separates this image's own scores best",
    )


def _flat(filter_map: xr.DataArray) -> xr.DataArray:
    leading = [d for d in filter_map.dims if d == "statistic"]
    values = np.asarray(filter_map).reshape([filter_map.sizes[d] for d in leading] + [-1])
    coords = {"statistic": ["mean", "std"]} if leading else {}
    return xr.DataArray(values, dims=(*leading, "cell"), coords=coords)
