"""Runs of patches, read and cut: what the threads of this process and the workers of a cluster do alike.

A group of blocks is read block by block; each block's patches are copied to their places in the interleaved
order and the block is let go. What is left is the patches alone, in the order in which they are yielded::

    block 3  [....]  ->  rows 0, 4, 5      |0|1|2|3|4|5| ...   the portion
    block 8  [....]  ->  rows 1, 2, 3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from denoizarr.errors import BadRequest
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import ceil_div
from denoizarr.kernels.windows import copy_windows
from denoizarr.selection.patch_index import PatchIndex
from denoizarr.stores.images import ImageLike, as_images, reader_of
from denoizarr.stores.sources import ImageReader

from .block_layout import BLOCK_BYTES, ChunkGrid
from .epoch_plan import EpochPlan, Group

Integers = NDArray[np.int64]
Images: TypeAlias = "ImageLike | Sequence[ImageLike]"


@dataclass(frozen=True, slots=True)
class Piece:
    """The patches that one block gives.

    Attributes
    ----------
    image : int
        Its number.
    origins : int64 array (m, dims)
        First voxels, along the index's dims.
    rows : int64 array (m,)
        Their places in the portion.
    """

    image: int
    origins: Integers
    rows: Integers


@dataclass(frozen=True, slots=True)
class PortionRequest:
    """Consecutive patches of an epoch: ``first`` and the ``size - 1`` after it."""

    first: int
    size: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Read:
    """What reading cost: chunks decoded, and their decoded bytes."""

    chunks: int
    decoded_bytes: int

    def __add__(self, other: Read) -> Read:
        return Read(self.chunks + other.chunks, self.decoded_bytes + other.decoded_bytes)


@dataclass(frozen=True, slots=True)
class Portion:
    """Patches, cut.

    Attributes
    ----------
    first : int
        Number of the first one in its epoch.
    patches : array (n, c, [z,] y, x)
        Raw intensities: float32, or on its way from a worker the images' own dtype where that is narrower.
    targets : array of that shape, or None
    origins : int64 array (n, dims)
    images : int64 array (n,)
    """

    first: int
    patches: NDArray[Any]
    targets: NDArray[Any] | None
    origins: Integers
    images: Integers

    def as_float32(self) -> Portion:
        """Return it with float32 patches."""
        targets = None if self.targets is None else self.targets.astype(np.float32, copy=False)
        return replace(self, patches=self.patches.astype(np.float32, copy=False), targets=targets)


def request_of(plan: EpochPlan, group: Group, first: int, stop: int) -> PortionRequest:
    """Return what to cut for those patches of a group that are numbered ``first`` up to ``stop``."""
    draws = plan.draws(group)
    begin, end = max(first - group.before, 0), min(stop - group.before, group.size)
    visit, origin = draws.visit[begin:end], draws.origin[begin:end]
    pieces = []
    for number in np.unique(visit).tolist():
        rows = np.flatnonzero(visit == number)
        pieces.append(Piece(draws.visits[number].image, origin[rows], rows))
    return PortionRequest(group.before + begin, end - begin, tuple(pieces))


@dataclass(frozen=True, slots=True)
class Cutter:
    """Cuts patches out of images; travels to a worker as the images' sources.

    Attributes
    ----------
    readers : dict of int to ImageReader
        By the images' numbers.
    targets : dict of int to ImageReader, or None
        Of the same extents: every patch comes with the same part of its target.
    dims : tuple of str
        Of an origin.
    patch_size : tuple of int
        Along the last of them.
    """

    readers: dict[int, ImageReader]
    targets: dict[int, ImageReader] | None
    dims: tuple[str, ...]
    patch_size: tuple[int, ...]

    @property
    def grids(self) -> list[ChunkGrid]:
        """The chunks of every image, along the index's dims."""
        return [_chunk_grid(reader, self.dims) for reader in self.readers.values()]

    @property
    def every_reader(self) -> list[ImageReader]:
        """Of images and targets."""
        return [*self.readers.values(), *({} if self.targets is None else self.targets).values()]

    @property
    def channels(self) -> int:
        """Of every image."""
        return channels_of(next(iter(self.readers.values())))

    @property
    def patch_bytes(self) -> tuple[int, ...]:
        """Bytes of one patch, and of its target, in each image's own dtype."""
        voxels = prod(self.patch_size) * self.channels
        both = [sides for sides in (self.readers, self.targets) if sides is not None]
        return tuple(voxels * sum(side[i].dtype.itemsize for side in both) for i in self.readers)

    def part_for(self, request: PortionRequest) -> Cutter:
        """Return what cuts this request alone: a worker opens no other image."""
        needed = {piece.image for piece in request.pieces}
        targets = None if self.targets is None else {i: self.targets[i] for i in needed}
        return replace(self, readers={i: self.readers[i] for i in needed}, targets=targets)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """The images' and targets' own dtype where all have one of 8 or 16-bit integers; else float32."""
        found = {r.dtype.newbyteorder("=") for r in self.every_reader}
        first = next(iter(found))
        is_narrow = len(found) == 1 and first.kind in "uib" and first.itemsize < 4
        return first if is_narrow else np.dtype(np.float32)

    def empty(self, request: PortionRequest, dtype: np.dtype[Any]) -> Portion:
        """Return the portion with nothing in it yet."""
        shape = (request.size, self.channels, *self.patch_size)
        return Portion(
            request.first,
            np.empty(shape, dtype),
            None if self.targets is None else np.empty(shape, dtype),
            np.empty((request.size, len(self.dims)), np.int64),
            np.empty(request.size, np.int64),
        )

    def fill(self, portion: Portion, piece: Piece) -> Read:
        """Read the block of one piece and put its patches where they belong; thread-safe."""
        portion.origins[piece.rows] = piece.origins
        portion.images[piece.rows] = piece.image
        read = self._copy(self.readers[piece.image], piece, portion.patches)
        if self.targets is not None and portion.targets is not None:
            read += self._copy(self.targets[piece.image], piece, portion.targets)
        return read

    def cut(self, request: PortionRequest, dtype: np.dtype[Any]) -> tuple[Portion, Read]:
        """Read and cut a whole portion."""
        portion, read = self.empty(request, dtype), Read(0, 0)
        for piece in request.pieces:
            read += self.fill(portion, piece)
        return portion, read

    def _copy(self, reader: ImageReader, piece: Piece, into: NDArray[Any]) -> Read:
        """Read the smallest box that holds the patches, which lie in one block: chunks are decoded once."""
        lead = len(self.dims) - len(self.patch_size)
        extent = np.array((1,) * lead + self.patch_size)
        start, stop = piece.origins.min(axis=0), piece.origins.max(axis=0) + extent
        box = _box_of(reader, self.dims, start.tolist(), stop.tolist())
        places = np.zeros((piece.rows.size, 4), np.int64)
        places[:, ["tzyx".index(d) for d in self.dims]] = piece.origins - start
        by_dim = dict(zip(reader.dims, box.shape, strict=True))
        block = reader.read(box).reshape([by_dim.get(d, 1) for d in "tczyx"])
        depth = self.patch_size[0] if len(self.patch_size) == 3 else 1
        windows = into.reshape(*into.shape[:2], depth, *self.patch_size[-2:])
        copy_windows(block, places, piece.rows, windows)
        return _read_of(reader, box)


def pieces_by_chunk(cutter: Cutter, images: Integers, origins: Integers) -> tuple[Piece, ...]:
    """Return patches from anywhere as pieces: those that begin in one chunk are read together.

    In one of the image and one of its target, where there are targets.

    Parameters
    ----------
    cutter : Cutter
    images : int64 array (n,)
        Number of each patch's image.
    origins : int64 array (n, dims)
    """
    if not len(origins):
        return ()
    begins_in = [images[:, None]]
    each = (1,) * len(cutter.dims)
    for readers in filter(None, (cutter.readers, cutter.targets)):
        grids = [_chunk_grid(reader, cutter.dims) for reader in readers.values()]
        are_together = [are_read_together(r, cutter.dims, cutter.patch_size) for r in readers.values()]
        steps = np.array([g.chunks if t else each for g, t in zip(grids, are_together, strict=True)])
        offsets = np.array([grid.offset for grid in grids])
        begins_in.append((origins + offsets[images]) // steps[images])
    _, which = np.unique(np.concatenate(begins_in, axis=1), axis=0, return_inverse=True)
    order = np.argsort(which, kind="stable")
    rows_of = np.split(order, np.flatnonzero(np.diff(which[order])) + 1)
    return tuple(Piece(int(images[rows[0]]), origins[rows], rows) for rows in rows_of)


def are_read_together(reader: ImageReader, dims: Sequence[str], patch_size: Sequence[int]) -> bool:
    """Tell whether the box of all patches that begin in one chunk is no larger than a block may be."""
    grid, sizes = _chunk_grid(reader, dims), dict(zip(reader.dims, reader.shape, strict=True))
    extents = (*(1,) * (len(dims) - len(patch_size)), *patch_size)
    box = (min(c + e - 1, sizes[d]) for d, c, e in zip(dims, grid.chunks, extents, strict=True))
    return prod(box) * grid.voxel_bytes <= BLOCK_BYTES


def cutter_of(image: Images, index: PatchIndex, target: Images | None) -> Cutter:
    """Return what cuts the patches of an index out of its images and their targets.

    Raises
    ------
    BadRequest
        The index is of other images; they differ in channels; a target is missing, or has other dims or
        another shape than its image.
    """
    images = as_images(image)
    index.check_image(images)
    readers = [reader_of(i) for i in images]
    if len({channels_of(r) for r in readers}) > 1:
        got = ", ".join(str(channels_of(r)) for r in readers)
        raise BadRequest("the images have different numbers of channels", where="image", got=got)
    if target is None:
        return Cutter(dict(enumerate(readers)), None, index.dims, tuple(index.patch_size))
    targets = [reader_of(t) for t in as_images(target)]
    if len(targets) != len(readers):
        raise BadRequest(
            "every image needs its own target", where="target", got=len(targets), expected=len(readers)
        )
    for mine, its in zip(readers, targets, strict=True):
        if (mine.dims, mine.shape) != (its.dims, its.shape):
            raise BadRequest(
                "a target has the extent of its image",
                where=f"target {its.name}",
                got=_extent(its),
                expected=_extent(mine),
            )
    return Cutter(dict(enumerate(readers)), dict(enumerate(targets)), index.dims, tuple(index.patch_size))


def channels_of(reader: ImageReader) -> int:
    """Return the number of channels; an image without that axis has one."""
    return int(dict(zip(reader.dims, reader.shape, strict=True)).get("c", 1))


def _chunk_grid(reader: ImageReader, dims: Sequence[str]) -> ChunkGrid:
    """Return the reader's chunks along the index's dims."""
    at = [reader.dims.index(d) for d in dims]
    chunks, offset = (tuple(int(axes[i]) for i in at) for axes in (reader.chunks, reader.offset))
    return ChunkGrid(chunks, offset, channels_of(reader) * reader.dtype.itemsize)


def _box_of(reader: ImageReader, dims: Sequence[str], start: Sequence[int], stop: Sequence[int]) -> Box:
    """Return a box along the index's dims as one along the reader's: all of c."""
    ends = {d: (a, b) for d, a, b in zip(dims, start, stop, strict=True)}
    pairs = [ends.get(d, (0, n)) for d, n in zip(reader.dims, reader.shape, strict=True)]
    return Box(tuple(a for a, _ in pairs), tuple(b for _, b in pairs))


def _read_of(reader: ImageReader, box: Box) -> Read:
    """Return the chunks that a box touches, whole as they are decoded."""
    touched = prod(
        ceil_div(b + o, c) - (a + o) // c
        for a, b, c, o in zip(box.start, box.stop, reader.chunks, reader.offset, strict=True)
    )
    chunk = prod(min(c, n + o) for c, n, o in zip(reader.chunks, reader.shape, reader.offset, strict=True))
    return Read(touched, touched * chunk * reader.dtype.itemsize)


def _extent(reader: ImageReader) -> str:
    return ", ".join(f"{d}: {n}" for d, n in zip(reader.dims, reader.shape, strict=True))
