"""How many requests it takes to read boxes of a stored array: counted, not guessed.

What a box touches is a product of intervals, one along every axis, so the sum over a whole grid of boxes is a
product of sums along the axes. zarr-python reads a shard as follows, and asks for nothing in one with its
neighbour::

    +----+----+----+----+        all chunks of a shard are wanted:   one get of the whole object
    | 1  | 2  | 5  | 6  |        some of them:                       one get of its index (its last bytes),
    +----+----+----+----+                                            then one get for each chunk
    | 3  | 4  | 7  | 8  |
    +----+----+----+----+        before either, our own reader looks at the index for chunks that are absent

A process remembers the indices of shards that lack nothing. Those at the far end of an image always do, where
the shard is larger than what is left of the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, log, prod, sqrt

import numpy as np
from numpy.typing import NDArray

from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import ceil_div, round_up
from denoizarr.stores.sources import ImageReader, ImageSource, open_array

from .requests import NONE, Requests

Integers = NDArray[np.int64]
# Offset and length of every chunk, and a checksum behind them all: the index of a shard.
_INDEX_ENTRY_BYTES, _INDEX_END_BYTES = 16, 4
# What a codec adds to a chunk that it cannot make smaller: blosc 16 bytes, zstd fewer, a checksum 4.
_CODEC_BYTES, _CODEC_SHARE = 64, 256
# The logarithm of how seldom a draw may take more than is said.
_ONCE_IN = log(1e9)


@dataclass(frozen=True, slots=True)
class StoredAxis:
    """One axis of an array; ``shard`` is the chunk where there are no shards."""

    size: int
    chunk: int
    shard: int

    def touched(self, start: Integers, stop: Integers) -> Integers:
        """Return (chunks, shards, shards of which all chunks are, whole shards of the array) by interval."""
        first, last = start // self.chunk, (stop - 1) // self.chunk
        k = self.shard // self.chunk
        whole = ceil_div(self.size, self.chunk) // k
        shards = (first // k, last // k)
        covered = np.maximum((last + 1) // k - -(-first // k), 0)
        complete = np.maximum(np.minimum(shards[1], whole - 1) - shards[0] + 1, 0)
        return np.stack([last - first + 1, shards[1] - shards[0] + 1, covered, complete])


@dataclass(frozen=True, slots=True)
class StoredArray:
    """How an array lies in its store.

    Attributes
    ----------
    axes : tuple of StoredAxis
        In any order, the same as that of the boxes.
    itemsize : int
    is_sharded : bool
    is_looked_through : bool
        Shards are looked through for absent chunks before they are read, as our strict readers do.
    """

    axes: tuple[StoredAxis, ...]
    itemsize: int
    is_sharded: bool
    is_looked_through: bool = True

    @classmethod
    def of(
        cls,
        shape: Sequence[int],
        chunks: Sequence[int],
        shards: Sequence[int] | None,
        itemsize: int,
        *,
        is_looked_through: bool = True,
    ) -> StoredArray:
        """Return it of the numbers that zarr has for it."""
        axes = tuple(StoredAxis(*n) for n in zip(shape, chunks, shards or chunks, strict=True))
        return cls(axes, itemsize, shards is not None, is_looked_through)

    @property
    def chunk_bytes(self) -> int:
        """The most that a stored chunk takes."""
        raw = prod(axis.chunk for axis in self.axes) * self.itemsize
        return raw + raw // _CODEC_SHARE + _CODEC_BYTES

    @property
    def index_bytes(self) -> int:
        """Of a shard's index; 0 without shards."""
        if not self.is_sharded:
            return 0
        return self.chunks_in_shard * _INDEX_ENTRY_BYTES + _INDEX_END_BYTES

    @property
    def chunks_in_shard(self) -> int:
        """Chunks of a whole shard; 1 without shards."""
        return prod(axis.shard // axis.chunk for axis in self.axes)

    @property
    def n_chunks(self) -> int:
        """Those of the array, all shards together."""
        return prod(ceil_div(axis.size, axis.chunk) for axis in self.axes)

    @property
    def n_objects(self) -> int:
        """Shards, or chunks where there are none."""
        return prod(ceil_div(axis.size, axis.shard) for axis in self.axes)

    @property
    def stored_bytes(self) -> int:
        """The most that the whole array takes."""
        return self.n_chunks * self.chunk_bytes + self.n_objects * self.index_bytes

    def reading(self, starts: Sequence[Integers], stops: Sequence[Integers], readers: int = 0) -> Requests:
        """Return what it takes to read every box of a grid: all combinations of one interval along each axis.

        Parameters
        ----------
        starts, stops : sequence of int64 arrays
            Of the intervals along every axis, in voxels.
        readers : int
            Processes, or threads of one that may look at the same shard at once, which remember the indices
            of complete shards; 0: nothing is remembered, as where each box is read by a new reader.
        """
        sums = [
            axis.touched(*ends).sum(axis=1)
            for axis, ends in zip(self.axes, zip(starts, stops, strict=True), strict=True)
        ]
        chunks, shards, covered, complete = (prod(int(s[kind]) for s in sums) for kind in range(4))
        within = self._complete_within([a.min() for a in starts], [b.max() for b in stops])
        return self._of(chunks, shards, covered, complete, readers * within)

    def reading_boxes(self, boxes: Iterable[Box], readers: int = 0) -> Requests:
        """Return what it takes to read some boxes."""
        ends = np.array([(box.start, box.stop) for box in boxes], np.int64)
        if not len(ends):
            return NONE
        along = [axis.touched(ends[:, 0, a], ends[:, 1, a]) for a, axis in enumerate(self.axes)]
        found = np.prod(np.array(along, np.int64), axis=0).sum(axis=1)
        chunks, shards, covered, complete = (int(n) for n in found)
        within = self._complete_within(list(ends[:, 0].min(axis=0)), list(ends[:, 1].max(axis=0)))
        return self._of(chunks, shards, covered, complete, readers * within)

    def reading_anywhere(self, extents: Sequence[int], times: int, readers: int = 0) -> Requests:
        """Return the most that so many boxes of these extents take, wherever they lie."""
        most = []
        for axis, extent in zip(self.axes, extents, strict=True):
            chunks = min((extent - 2) // axis.chunk + 2, ceil_div(axis.size, axis.chunk))
            shards = min((extent - 2) // axis.shard + 2, ceil_div(axis.size, axis.shard))
            # However a box lies, so many shards are whole in it; one that is as long as the axis has all.
            covers = max((extent + 1) // axis.shard - 1, 0) if axis.shard > axis.chunk else chunks
            if extent >= axis.size:
                covers = ceil_div(axis.size, axis.chunk) // (axis.shard // axis.chunk)
            most.append((chunks, shards, covers))
        chunks, shards, covered = (prod(kind) for kind in zip(*most, strict=True))
        within = readers * self._all_complete
        return self._of(times * chunks, times * shards, times * covered, times * shards, within)

    def at_most(self, chunks: int, shards: int, readers: int = 0, complete: int | None = None) -> Requests:
        """Return the most that it takes to touch so many chunks in so many shards, each box by itself.

        Of ``complete`` shards among them the index may be remembered; where that is not said, of all or none.
        """
        if complete is None:
            complete = shards if self._all_complete == self.n_objects else 0
        return self._of(chunks, shards, 0, complete, readers * self._all_complete)

    @property
    def _all_complete(self) -> int:
        return self._complete_within([0] * len(self.axes), [axis.size for axis in self.axes])

    def _complete_within(self, start: Sequence[int], stop: Sequence[int]) -> int:
        """Return how many complete shards a box touches."""
        ends = zip(self.axes, start, stop, strict=True)
        return prod(int(axis.touched(np.array([a]), np.array([b]))[3, 0]) for axis, a, b in ends)

    def _of(self, chunks: int, shards: int, covered: int, complete: int, remembered: int) -> Requests:
        if not self.is_sharded:
            return Requests(gets=chunks, bytes_read=chunks * self.chunk_bytes)
        gets = shards + chunks - covered * self.chunks_in_shard
        looks = 0
        if self.is_looked_through:
            # Each of those that may be remembered is looked at once; without memory, whenever it is read.
            looks = shards - complete + (min(complete, remembered) if remembered else complete)
        n_bytes = chunks * self.chunk_bytes + (shards + looks) * self.index_bytes
        return Requests(gets=gets + looks, bytes_read=n_bytes)


@dataclass(frozen=True, slots=True)
class StoredImage:
    """How an image that is read lies in its store; boxes are of the image.

    Attributes
    ----------
    array : StoredArray or None
        Axes in the order of the image's dims, those that it has not last. None for files, whose parts no
        bucket serves: a TIFF is read from a disk.
    offset : tuple of int
        Where the image begins in the array, likewise.
    dropped : int
        Axes that the image does not have: one voxel thick.
    is_filled : bool
        Absent chunks are looked for in blocks, not in all that is read.
    """

    array: StoredArray | None
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    dropped: int = 0
    is_filled: bool = False

    @classmethod
    def of(cls, reader: ImageReader) -> StoredImage:
        """Return it for an image that a reader reads; its array's metadata are asked for once more."""
        source = (reader.uncorrected or reader).source
        if not isinstance(source, ImageSource):
            return cls(None, tuple(reader.shape), ())
        array = open_array(source.url, source.path, source.missing)
        order = [*source.dims, *source.dropped]
        at = [source.stored_dims.index(dim) for dim in order]
        begin = [0] * array.ndim if source.box is None else list(source.box.start)
        shards = array.shards and tuple(int(array.shards[a]) for a in at)
        fills = source.missing == "fill"
        stored = StoredArray.of(
            tuple(int(array.shape[a]) for a in at),
            tuple(int(array.chunks[a]) for a in at),
            shards,
            array.dtype.itemsize,
            is_looked_through=not fills,
        )
        start = tuple(int(begin[source.stored_order.index(dim)]) for dim in order)
        return cls(stored, tuple(reader.shape), start, len(source.dropped), fills)

    def reading(self, starts: Sequence[Integers], stops: Sequence[Integers], readers: int = 0) -> Requests:
        """Return what it takes to read every box of a grid."""
        if self.array is None:
            return NONE
        ends = [
            tuple(np.asarray(side, np.int64) + offset for side in pair)
            for pair, offset in zip(zip(starts, stops, strict=True), self.offset, strict=False)
        ]
        ends += self._fixed()
        return self.array.reading([a for a, _ in ends], [b for _, b in ends], readers)

    def reading_grid(self, cuts: Sequence[Integers], readers: int = 0) -> Requests:
        """Return what it takes to read every box between cuts 0, ..., size along every axis."""
        return self.reading([c[:-1] for c in cuts], [c[1:] for c in cuts], readers)

    def reading_boxes(self, boxes: Iterable[Box], readers: int = 0) -> Requests:
        """Return what it takes to read some boxes."""
        if self.array is None:
            return NONE
        n = len(self.shape)
        fixed = self.offset[n:]
        shifted = (
            Box(
                (*(a + o for a, o in zip(box.start, self.offset, strict=False)), *fixed),
                (*(b + o for b, o in zip(box.stop, self.offset, strict=False)), *(o + 1 for o in fixed)),
            )
            for box in boxes
        )
        return self.array.reading_boxes(shifted, readers)

    def reading_of_cells(self, extents: Sequence[int], times: int, readers: int = 0) -> Requests:
        """Return the most that so many boxes take that begin at multiples of their extent."""
        if self.array is None:
            return NONE
        most = []
        for axis, extent, size, offset in zip(
            self.array.axes, extents, self.shape, self.offset, strict=False
        ):
            whole = min(extent, size)
            starts = np.minimum(np.arange(0, size, whole, dtype=np.int64), size - whole) + offset
            most.append(axis.touched(starts, starts + whole).max(axis=1)[:2])
        chunks, shards = (prod(int(of[kind]) for of in most) for kind in (0, 1))
        return self.array.at_most(times * chunks, times * shards, readers)

    def reading_of_draws(
        self, extents: Sequence[int], times: int, readers: int = 0, factor: float = 1.0
    ) -> Requests:
        """Return what so many boxes take that are drawn within half their extent of a cell each.

        Whatever the cells: of the cell that crosses most borders, the mean of all that may be drawn for it,
        and so much more that chance exceeds it once in a thousand million (Hoeffding's inequality). All of it
        ``factor`` times.
        """
        if self.array is None:
            return NONE
        means, worst = [1.0, 1.0], [1, 1]
        for axis, extent, size, offset in zip(
            self.array.axes, extents, self.shape, self.offset, strict=False
        ):
            whole = min(extent, size)
            cells = np.arange(0, size, whole, dtype=np.int64)[:, None]
            jitter = np.arange(-(whole // 2), whole // 2 + 1) if whole > 1 else np.array([0])
            starts = np.clip(cells + jitter, 0, size - whole) + offset
            found = axis.touched(starts, starts + whole)[:2]
            for kind in (0, 1):
                means[kind] *= float(found[kind].mean(axis=1).max())
                worst[kind] *= int(found[kind].max())
        by_chance = sqrt(times * _ONCE_IN / 2)
        chunks, shards = (
            ceil(factor * min(times * most, times * mean + by_chance * (most - 1)))
            for mean, most in zip(means, worst, strict=True)
        )
        return self.array.at_most(chunks, shards, readers)

    def reading_by_chunk(self, extents: Sequence[int], readers: int = 0) -> Requests:
        """Return the most that boxes of these extents take, however many they are and wherever they lie.

        Of those that begin in one chunk, the smallest box that holds them is read.
        """
        if self.array is None:
            return NONE
        sums = []
        for axis, extent, size, offset in zip(
            self.array.axes, extents, self.shape, self.offset, strict=False
        ):
            whole = min(extent, size)
            last = offset + size - whole  # that a box may begin at
            chunks = np.arange(offset // axis.chunk, last // axis.chunk + 1, dtype=np.int64)
            starts = np.maximum(chunks * axis.chunk, offset)
            stops = np.minimum((chunks + 1) * axis.chunk - 1, last) + whole
            sums.append(axis.touched(starts, stops).sum(axis=1))
        n_chunks, n_shards, _, complete = (prod(int(of[kind]) for of in sums) for kind in range(4))
        # Axes that the image does not have lie in one shard, which may be the incomplete one.
        for axis, ends in zip(self.array.axes[len(sums) :], self._fixed(), strict=True):
            complete *= int(axis.touched(*ends)[3, 0])
        return self.array.at_most(n_chunks, n_shards, readers, complete)

    def reading_anywhere(self, extents: Sequence[int], times: int, readers: int = 0) -> Requests:
        """Return the most that so many boxes of these extents take, wherever they lie."""
        if self.array is None:
            return NONE
        clipped = [min(e, n) for e, n in zip(extents, self.shape, strict=True)]
        return self.array.reading_anywhere((*clipped, *(1,) * self.dropped), times, readers)

    def looking_through(self, cuts: Sequence[Integers]) -> Requests:
        """Return what it takes to count the absent chunks of every block, where they are filled."""
        if self.array is None or not self.is_filled:
            return NONE
        ends = [(c[:-1] + o, c[1:] + o) for c, o in zip(cuts, self.offset, strict=False)] + self._fixed()
        counts = [axis.touched(*pair).sum(axis=1) for axis, pair in zip(self.array.axes, ends, strict=True)]
        units = prod(int(c[1]) for c in counts)
        if self.array.is_sharded:
            return Requests(gets=units, bytes_read=units * self.array.index_bytes)
        return Requests(heads=units)

    def _fixed(self) -> list[tuple[Integers, Integers]]:
        fixed = self.offset[len(self.shape) :] if self.dropped else ()
        return [(np.array([o], np.int64), np.array([o + 1], np.int64)) for o in fixed]


def even_cuts(size: int, step: int) -> Integers:
    """Return 0, step, 2 step, ..., size."""
    return np.array([*range(0, size, step), size], np.int64)


def with_halo(cuts: Integers, halo: int, stride: int) -> tuple[Integers, Integers]:
    """Return where the boxes between cuts begin and end with a halo, on a grid of strides, within the image.

    The rule of :mod:`denoizarr.geometry.tiling`.
    """
    size = int(cuts[-1])
    padded = round_up(size, stride)
    starts = np.maximum((cuts[:-1] - halo) // stride * stride, 0)
    stops = np.minimum(-(-(cuts[1:] + halo) // stride) * stride, padded)
    return starts, np.minimum(stops, size)
