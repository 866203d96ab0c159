"""Parts of shards from a bucket: all that a box needs at once, where zarr asks for one chunk after another.

::

    shard   | c0 | c1 | c2 | c3 | c4 | c5 | ... | index |
    needed         ^^   ^^             ^^
    asked for      |---------|      |----|

Neighbours are asked for together, long ranges in pieces, and all of them at the same time.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync

from denoizarr.errors import CorruptChunk
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import Grid

from .held_arrays import array_over
from .own_thread import in_own_thread
from .strict import (
    EMPTY,
    StrictStore,
    chunk_key,
    has_standard_index,
    index_in,
    missing_chunk,
    shard_index,
    write_unit,
)

Index = NDArray[np.uint64]
# A gap that is read along costs less than another request: 256 KiB take 3 ms at 100 MB/s.
_GAP_BYTES, _PIECE_BYTES = 256 * 2**10, 8 * 2**20


@dataclass(frozen=True, slots=True)
class _Needed:
    """Of one shard: its index, as bytes too, and the ranges that are asked for."""

    key: str
    index_bytes: bytes
    ranges: tuple[tuple[int, int], ...]


class ShardReads:
    """Reads boxes of a sharded array in a bucket.

    Parameters
    ----------
    array : zarr.Array
        Of ``open_array``, with an index as zarr writes it.
    at_once : int
        Requests in flight for one box.
    """

    def __init__(self, array: zarr.Array[Any], at_once: int) -> None:
        assert isinstance(array.store, StrictStore), "an array of open_array"
        self._array, self._store, self._at_once = array, array.store, at_once

    @staticmethod
    def suit(array: zarr.Array[Any]) -> bool:
        """Tell whether the array's shards are laid out as zarr lays them out."""
        return array.shards is not None and has_standard_index(array)

    def read(self, box: Box) -> NDArray[Any]:
        """Return the voxels of a box, along the axes as stored.

        Raises
        ------
        MissingChunk
            The store lacks a chunk of it that is not to be filled.
        CorruptChunk
            The index of a shard is damaged.
        """
        objects = sync(self._objects(box))
        over = array_over(self._array, objects, self._store.where)
        return np.asarray(in_own_thread(over.async_array.getitem(box.slices)))

    async def _objects(self, box: Box) -> dict[str, Buffer]:
        """Fetch what a box needs; a shard is an object of which only those parts are filled in."""
        room = asyncio.Semaphore(self._at_once)
        units = Grid(tuple(self._array.shape), write_unit(self._array))
        places = [(chunk_key(self._array, units.index(n)), units.box(n)) for n in units.covering(box)]
        found = await asyncio.gather(*(self._object(key, place, box, room) for key, place in places))
        return {key: data for (key, _), data in zip(places, found, strict=True) if data is not None}

    async def _object(self, key: str, place: Box, box: Box, room: asyncio.Semaphore) -> Buffer | None:
        """Fetch a shard whole where that is one short request, else its index first and then parts of it."""
        n_bytes = place.size * self._array.dtype.itemsize
        if n_bytes <= (_PIECE_BYTES if box.contains(place) else _GAP_BYTES):
            async with room:
                whole = await self._store.get(key, default_buffer_prototype())
            if whole is not None:
                self._needed(key, place, box, *index_in(self._array, whole.to_bytes(), key))
            return whole
        index = await self._index(key, room)
        return None if index is None else await self._filled(self._needed(key, place, box, *index), room)

    async def _index(self, key: str, room: asyncio.Semaphore) -> tuple[Index, bytes] | None:
        # Anew each time: the shard may have been written again, and old offsets would cut its chunks.
        async with room:
            found = await shard_index(self._array, self._store, key)
        if found is None and self._store.missing == "error":
            raise missing_chunk(self._store.where, key)
        return found

    def _needed(self, key: str, place: Box, box: Box, index: Index, index_bytes: bytes) -> _Needed:
        whole, ranges = Box.whole(tuple(self._array.shape)), []
        chunks = tuple(self._array.chunks)
        # No codec makes a chunk twice as long; a shard that was written piece by piece may have dead parts.
        most = 16 * (index.size // 2) * (2 * prod(chunks) * self._array.dtype.itemsize + 1024)
        for inner in itertools.product(*map(range, index.shape[:-1])):
            start = tuple(o + i * c for o, i, c in zip(place.start, inner, chunks, strict=True))
            chunk = Box(start, tuple(a + c for a, c in zip(start, chunks, strict=True)))
            if not (chunk.overlaps(box) and chunk.overlaps(whole)):
                continue
            offset, length = (int(n) for n in index[inner])
            if offset == EMPTY:
                if self._store.missing == "error":
                    raise missing_chunk(self._store.where, f"{key}#{','.join(map(str, inner))}")
                continue
            if offset + length > most:
                raise CorruptChunk(
                    "the index of a shard names bytes beyond any shard's end",
                    where=f"{self._store.where}/{key}",
                    got=offset + length,
                    expected=f"at most {most}",
                    remedy="restore the shard",
                )
            ranges.append((offset, offset + length))
        return _Needed(key, index_bytes, _together(ranges))

    async def _filled(self, needed: _Needed, room: asyncio.Semaphore) -> Buffer:
        last = max((stop for _, stop in needed.ranges), default=0)
        # Zeros that nobody touches take no memory.
        data = bytearray(last + len(needed.index_bytes))
        data[last:] = needed.index_bytes

        async def fill(start: int, stop: int) -> None:
            async with room:
                found = await _get(self._store, needed.key, start, stop)
            data[start:stop] = found

        await asyncio.gather(*(fill(*piece) for piece in _pieces(needed.ranges)))
        return default_buffer_prototype().buffer.from_bytes(data)


async def _get(store: Store, key: str, start: int, stop: int) -> bytes:
    found = await store.get(key, default_buffer_prototype(), RangeByteRequest(start, stop))
    data = b"" if found is None else found.to_bytes()
    if len(data) != stop - start:
        raise CorruptChunk(
            "a shard is shorter than its index says",
            where=key,
            got=f"{len(data)} bytes from {start}",
            expected=f"{stop - start}",
            remedy="restore the shard",
        )
    return data


def _together(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return ranges in order, those with little between them as one."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and start - joined[-1][1] <= _GAP_BYTES:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return tuple(joined)


def _pieces(ranges: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """Return long ranges in pieces of equal length."""
    pieces = []
    for start, stop in ranges:
        count = max(-(-(stop - start) // _PIECE_BYTES), 1)
        edges = [start + (stop - start) * k // count for k in range(count + 1)]
        pieces += list(itertools.pairwise(edges))
    return pieces
