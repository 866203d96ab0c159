"""The stored objects of an array, one by one: read once, hashed, decoded, and what is wrong with them named.

::

    object (a shard, or a chunk)  --read once-->  bytes  --> checksum
                                                    |
                                                    +--decode--> voxels, or the inner chunk that refuses
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import WrapperStore

from denoizarr.errors import DenoizarrError, Outage
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import Grid

from . import locations
from .held_arrays import array_over
from .own_thread import in_own_thread
from .sources import UNDECODABLE, Array
from .strict import StrictStore, absent_chunks, chunk_key, guard_frames, write_unit

# Beside what codecs raise on purpose: what falls out of them on bytes that no writer ever wrote.
REFUSALS = (*UNDECODABLE, DenoizarrError, LookupError, ArithmeticError, MemoryError, AttributeError)


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with a stored object, or with an inner chunk of a shard.

    Attributes
    ----------
    key : str
        In the store; ``#i,j,k`` behind it is the inner chunk's position in its shard.
    box : Box
        Its voxels, along the axes as stored.
    reason : str
        What is wrong, for a sentence that begins with the key.
    absent : bool
        Nothing is stored; readers would take the fill value.
    """

    key: str
    box: Box
    reason: str
    absent: bool = False


@dataclass(frozen=True, slots=True)
class UnitReading:
    """One write unit as it was found.

    Attributes
    ----------
    key : str
    box : Box
        Its voxels, cropped at the array's far end.
    checksum : str or None
        Of the object's bytes; None where it is absent or cannot be read.
    n_bytes : int
        Stored.
    values : ndarray or None
        Of the box's shape, absent inner chunks filled; None where nothing could be decoded.
    flaws : tuple of Flaw
    """

    key: str
    box: Box
    checksum: str | None
    n_bytes: int
    values: Array | None
    flaws: tuple[Flaw, ...]


def stored_checksum(data: bytes) -> str:
    """Return what a ledger keeps of a stored object: 16 hex digits of BLAKE2b."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def read_unit(array: zarr.Array[Any], number: int) -> UnitReading:
    """Read one write unit: its bytes once, for the checksum and for the voxels alike.

    Parameters
    ----------
    array : zarr.Array
        From ``open_array(..., missing="fill")``.
    number : int
        On the grid of write units, in C order.

    Returns
    -------
    UnitReading
        Nothing is raised for an object that is absent, unreadable or refused by its decoder.
    """
    units = Grid(tuple(array.shape), write_unit(array))
    key, box = chunk_key(array, units.index(number)), units.box(number)
    assert isinstance(array.store, StrictStore), "an array of open_array"
    try:
        with locations.translated(f"{array.store.where}/{key}"):
            # Not the strict store's own get, which would look at the bytes and refuse some.
            found = sync(WrapperStore.get(array.store, key, default_buffer_prototype()))
    except Outage as error:
        flaw = Flaw(key, box, f"cannot be read: {error.got or error.what}")
        return UnitReading(key, box, None, 0, None, (flaw,))
    if found is None:
        return UnitReading(key, box, None, 0, None, (Flaw(key, box, "is absent", absent=True),))
    values, flaws = _decoded(_held(array, key, found), key, box)
    return UnitReading(key, box, stored_checksum(found.to_bytes()), len(found), values, flaws)


def _held(array: zarr.Array[Any], key: str, data: Buffer) -> zarr.Array[Any]:
    assert isinstance(array.store, StrictStore), "an array of open_array"
    held = array_over(array, {key: data}, array.store.where)
    guard_frames(held)
    return held


def _decoded(held: zarr.Array[Any], key: str, box: Box) -> tuple[Array | None, tuple[Flaw, ...]]:
    absent: tuple[Flaw, ...] = ()
    try:
        if held.shards is not None:
            gaps = set(absent_chunks(held, box))
            absent = tuple(
                Flaw(name, part, "is absent from its shard", absent=True)
                for name, part in _inner_chunks(held, key, box)
                if name in gaps
            )
        return np.asarray(in_own_thread(held.async_array.getitem(box.slices))), absent
    except REFUSALS as error:
        if held.shards is None:
            return None, (Flaw(key, box, _refused(error)),)
    return None, (*absent, *_refusing_chunks(held, key, box))


def _refusing_chunks(held: zarr.Array[Any], key: str, box: Box) -> Iterator[Flaw]:
    """Yield the inner chunks of a shard that cannot be decoded; the shard itself where none of them can."""
    chunks = list(_inner_chunks(held, key, box))
    flaws = []
    for name, part in chunks:
        try:
            held[part.slices]
        except REFUSALS as error:
            flaws.append(Flaw(name, part, _refused(error)))
    if len(flaws) == len(chunks):
        # Its index, most likely: one sentence, not one for each chunk.
        flaws = [Flaw(key, box, flaws[0].reason)]
    yield from flaws


def _inner_chunks(array: zarr.Array[Any], key: str, box: Box) -> Iterator[tuple[str, Box]]:
    """Yield name and voxels of every chunk of a shard that has voxels of the image."""
    grid = Grid(box.shape, tuple(array.chunks))
    for index in itertools.product(*map(range, grid.counts)):
        yield f"{key}#{','.join(map(str, index))}", grid.box(grid.number(index)).shift(box.start)


def _refused(error: BaseException) -> str:
    text = (error.got or error.what) if isinstance(error, DenoizarrError) else str(error) or repr(error)
    return f"cannot be decoded: {' '.join(str(text).split())[:200]}"
