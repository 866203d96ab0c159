"""Reads that refuse to invent voxels: an absent chunk is an error or is counted, never silently filled.

Zarr reads an absent chunk as the fill value. In a plain array that is a missing object; in a sharded array
it may also be an inner chunk that the shard's index marks as empty.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Any, Literal, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, Store, SuffixByteRequest
from zarr.codecs import BloscCodec, ShardingCodec
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import WrapperStore

from denoizarr.errors import CorruptChunk, MissingChunk
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import Grid

_METADATA = frozenset({"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"})
EMPTY = 2**64 - 1  # offset and length of an inner chunk that a shard does not hold (Zarr v3 sharding codec)

Missing = Literal["error", "fill"]


class StrictStore(WrapperStore[Store]):
    """A Zarr store whose absent chunks raise ``MissingChunk`` unless they are to be filled.

    For readers only: zarr's sharded writer reads a shard before it writes it, absent or not.
    """

    def __init__(self, store: Store, where: str, missing: Missing = "error") -> None:
        super().__init__(store)
        self.where = where
        self.missing = missing
        self.blosc_bytes: int | None = (
            None  # decoded size of a chunk, where blosc's frame is all that guards it
        )
        self.held: dict[str, NDArray[np.bool_]] = {}  # which inner chunks each shard seen so far has

    def _with_store(self, store: Store) -> Self:
        return type(self)(store, self.where, self.missing)  # zarr's own would leave the rest out

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the object's bytes; a chunk that is absent is an error unless it is to be filled."""
        value = await super().get(key, prototype or default_buffer_prototype(), byte_range)
        if value is None and key.rsplit("/", 1)[-1] not in _METADATA:
            if self.missing == "error":
                raise missing_chunk(self.where, key)
        elif value is not None and self.blosc_bytes is not None and not key.endswith(tuple(_METADATA)):
            _check_blosc(value.to_bytes()[:16], len(value), self.blosc_bytes, f"{self.where}/{key}")
        return value


def guard_frames(array: zarr.Array[Any]) -> None:
    """Have the headers of chunks checked where they are whole blosc frames with no checksum around them."""
    if array.shards is not None or len(array.compressors) != 1 or array.filters:
        return
    codec = array.compressors[0]
    if isinstance(array.store, StrictStore) and (
        isinstance(codec, BloscCodec) or getattr(codec, "codec_id", "") == "blosc"
    ):
        array.store.blosc_bytes = int(np.prod(array.chunks)) * array.dtype.itemsize


def _check_blosc(header: bytes, n_bytes: int, decoded_bytes: int, where: str) -> None:
    """Compare a frame's header with what it should say.

    The decoder believes the header: a frame cut short gives wrong voxels in silence, or a crash.
    Source: the frame header of C-Blosc 1 (decoded, block, frame size: little-endian int32 from byte 4).
    """
    if len(header) < 16:
        raise CorruptChunk("a chunk is shorter than a blosc header", where=where, got=f"{n_bytes} bytes")
    decoded, _, framed = struct.unpack("<iii", header[4:])
    if (decoded, framed) != (decoded_bytes, n_bytes):
        raise CorruptChunk(
            "a chunk is torn",
            where=where,
            got=f"{n_bytes} bytes, of which the header says {framed} for {decoded} decoded",
            expected=f"{decoded_bytes} decoded",
            remedy="restore the chunk",
        )


def missing_chunk(where: str, key: str) -> MissingChunk:
    """Return the error for an absent chunk, naming store and key."""
    return MissingChunk(
        "the store lacks a chunk",
        where=f"{where}/{key}",
        remedy='restore it, or read with missing="fill" to use the fill value and count it',
    )


def write_unit(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Return the smallest box, in voxels, that one task may write: the shard, else the chunk."""
    return tuple(array.shards or array.chunks)


def chunk_key(array: zarr.Array[Any], index: tuple[int, ...]) -> str:
    """Return the store key of the write unit at this position on the array's grid."""
    name = array.metadata.encode_chunk_key(index)
    return f"{array.path}/{name}" if array.path else name


def absent_chunks(array: zarr.Array[Any], box: Box) -> Iterator[str]:
    """Yield a name for every chunk inside ``box`` that the store lacks, inner chunks of shards included.

    Reads no voxels: one existence check or one shard index for each write unit, and the index only once.
    """
    strict = (
        array.store if isinstance(array.store, StrictStore) else StrictStore(array.store, str(array.store))
    )
    units = Grid(tuple(array.shape), write_unit(array))
    for number in units.covering(box):
        index = units.index(number)
        key = chunk_key(array, index)
        if array.shards is None:
            if not sync(strict.exists(key)):
                yield key
            continue
        held = strict.held.get(key)
        if held is None:
            held = _held_by(array, strict, key)
            if held is None:
                yield key
                continue
            if held.all():  # a shard with gaps may be written again, so only a full one is remembered
                strict.held[key] = held
        origin = units.box(number).start
        for inner in itertools.product(*(range(n) for n in held.shape)):
            start = tuple(o + i * c for o, i, c in zip(origin, inner, array.chunks, strict=True))
            chunk = Box(start, tuple(a + c for a, c in zip(start, array.chunks, strict=True)))
            if not held[inner] and chunk.overlaps(box) and chunk.overlaps(Box.whole(array.shape)):
                yield f"{key}#{','.join(map(str, inner))}"


def _held_by(array: zarr.Array[Any], strict: StrictStore, key: str) -> NDArray[np.bool_] | None:
    """Return which inner chunks a shard holds, as its grid of chunks; None where it is absent."""
    if not has_standard_index(array):
        # A foreign layout: what it holds cannot be told without decoding it, so nothing is claimed.
        counts = _inner_counts(array)
        return np.ones(counts, bool) if sync(strict.exists(key)) else None
    found = sync(shard_index(array, strict, key))
    return None if found is None else found[0][..., 0] != EMPTY


def _inner_counts(array: zarr.Array[Any]) -> tuple[int, ...]:
    assert array.shards is not None
    return tuple(s // c for s, c in zip(array.shards, array.chunks, strict=True))


async def shard_index(
    array: zarr.Array[Any], strict: StrictStore, key: str
) -> tuple[NDArray[np.uint64], bytes] | None:
    """Return a shard's index: offset and length of every inner chunk, and the bytes that say so.

    Parameters
    ----------
    array : zarr.Array
        With an index as zarr writes it (:func:`has_standard_index`).
    strict : StrictStore
    key : str

    Returns
    -------
    uint64 array (chunks along every axis ..., 2) and bytes, or None
        ``EMPTY`` for a chunk that the shard does not hold; None for a shard that is absent.
    """
    n_bytes = 16 * int(np.prod(_inner_counts(array))) + 4
    tail = await WrapperStore.get(strict, key, default_buffer_prototype(), SuffixByteRequest(n_bytes))
    return None if tail is None else index_in(array, tail.to_bytes(), key)


def index_in(array: zarr.Array[Any], shard: bytes, key: str) -> tuple[NDArray[np.uint64], bytes]:
    """Return the index at the end of a shard, or of what is left of one: see :func:`shard_index`."""
    counts = _inner_counts(array)
    n_bytes = 16 * int(np.prod(counts)) + 4  # (offset, length) as little-endian uint64 each, then a crc32c
    data = shard[-n_bytes:]
    if len(data) != n_bytes:
        raise CorruptChunk(
            "a shard is shorter than its own index", where=key, got=len(data), expected=f"{n_bytes} bytes"
        )
    _check_crc32c(data, key)
    return np.frombuffer(data[:-4], "<u8").reshape(*counts, 2), data


def has_standard_index(array: zarr.Array[Any]) -> bool:
    """Tell whether an array's shards end with an index as zarr writes it."""
    codecs = getattr(array.metadata, "codecs", ())
    return any(
        isinstance(codec, ShardingCodec)
        and str(codec.index_location.value) == "end"
        and [type(c).__name__ for c in codec.index_codecs] == ["BytesCodec", "Crc32cCodec"]
        for codec in codecs
    )


def _check_crc32c(data: bytes, key: str) -> None:
    import google_crc32c  # zarr's own dependency for its crc32c codec

    expected = struct.unpack("<I", data[-4:])[0]
    got = google_crc32c.value(data[:-4])
    if got != expected:
        raise CorruptChunk(
            "the index of a shard fails its checksum", where=key, got=f"{got:08x}", expected=f"{expected:08x}"
        )
