"""A virtual image: a Zarr store that makes its chunks when they are read, so that a terabyte takes no disk.

    store = VirtualStore()                                   # 1 TB of zyx uint16
    array = zarr.open_array(store, mode="r")
    index = build_index(array, 64)                           # or as_image(array).isel(z=slice(0, 119))
    store.reads[...]                                         # how often each chunk was read

What a chunk holds depends on the seed and on its index alone: camera noise, or, in regions of several chunks,
signal.
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

TERABYTE = (119_210, 2048, 2048)
PLANES = (1, 512, 512)
CUBES = (64, 256, 256)
# Noise is precomputed: so many chunks of background, and of signal, each shifted anew for each chunk.
_VARIANTS = 4
_SHIFTS = 4096
# Large chunks repeat it; a prime, so that rows and planes do not repeat each other.
_PERIOD = 262_147
_BACKGROUND = 100
_SIGNAL_SHARE = 0.2


class VirtualStore(Store):
    """A read-only Zarr v3 store of one uint16 array (z, y, x), or (c, z, y, x), synthesised when it is read.

    Parameters
    ----------
    shape, chunks : (z, y, x) or (c, z, y, x)
        In voxels.
    seed : int

    Attributes
    ----------
    reads : uint16 array, one value per chunk
        How often each chunk was read. Of a fixed size, so that counting does not grow with what is read.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(
        self, shape: tuple[int, ...] = TERABYTE, chunks: tuple[int, ...] = PLANES, seed: int = 0
    ) -> None:
        super().__init__(read_only=True)
        self.shape, self.chunks, self.seed = tuple(shape), tuple(chunks), seed
        self.counts = tuple(-(-n // c) for n, c in zip(shape, chunks, strict=True))
        self.reads: NDArray[np.uint16] = np.zeros(self.counts, np.uint16)
        self._lock = threading.Lock()
        generator = np.random.default_rng(seed)
        # More noise than a chunk takes, so that a shift is a view and not a copy.
        voxels = int(np.prod(chunks)) + _SHIFTS
        self._background, self._signal = (
            np.stack([_tiled(generator.poisson(mean, _PERIOD), voxels) for _ in range(_VARIANTS)])
            for mean in (20, 400)
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VirtualStore) and (self.shape, self.chunks, self.seed) == (
            other.shape,
            other.chunks,
            other.seed,
        )

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"virtual://{self.seed}"

    def is_signal(self, index: tuple[int, ...]) -> bool:
        """Tell whether a chunk shows signal."""
        # Regions of about 64 planes and a few chunks of a plane.
        z, y, x = index[0] * self.chunks[0] // 64, index[1] // 2, index[2] // 2
        return _mixed(self.seed, z, y, x) % 1000 < _SIGNAL_SHARE * 1000

    def chunk(self, index: tuple[int, ...]) -> NDArray[np.uint16]:
        """Return the voxels of a chunk, whole also where it reaches beyond the image."""
        number = _mixed(self.seed + 1, *index)
        signal = self.is_signal(index)
        noise = (self._signal if signal else self._background)[number % _VARIANTS]
        first = (number >> 8) % _SHIFTS
        level = np.uint16(_BACKGROUND + ((number >> 24) % 500 if signal else 0))
        made: NDArray[np.uint16] = noise[first : first + int(np.prod(self.chunks))] + level
        return made.reshape(self.chunks)

    def metadata(self) -> dict[str, Any]:
        """Return the array's ``zarr.json``."""
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": "uint16",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.chunks)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            "attributes": {},
            "dimension_names": list("tczyx")[-len(self.shape) :],
        }

    def _index_of(self, key: str) -> tuple[int, ...] | None:
        """Return the chunk that a key names; None for another key, and for a chunk outside the image."""
        first, *rest = key.split("/")
        if first != "c" or len(rest) != len(self.counts) or not all(part.isdecimal() for part in rest):
            return None
        index = tuple(int(part) for part in rest)
        return index if all(i < n for i, n in zip(index, self.counts, strict=True)) else None

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if key == "zarr.json":
            data = np.frombuffer(json.dumps(self.metadata()).encode(), np.uint8)
        else:
            index = self._index_of(key)
            if index is None:
                return None
            with self._lock:
                self.reads[index] += 1
            data = self.chunk(index).astype("<u2", copy=False).reshape(-1).view(np.uint8)
        return prototype.buffer.from_array_like(data[_slice_of(byte_range)])  # type: ignore[arg-type]

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return key == "zarr.json" or self._index_of(key) is not None

    async def set(self, key: str, value: Buffer) -> None:  # noqa: ARG002
        self._check_writable()

    async def delete(self, key: str) -> None:  # noqa: ARG002
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        yield "zarr.json"
        for index in np.ndindex(self.counts):
            yield "c/" + "/".join(map(str, index))

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        parts = [part for part in prefix.split("/") if part]
        if not parts:
            yield "zarr.json"
            yield "c"
        elif parts[0] == "c" and len(parts) <= len(self.counts):
            for number in range(self.counts[len(parts) - 1]):
                yield str(number)


def _slice_of(byte_range: ByteRequest | None) -> slice:
    if isinstance(byte_range, RangeByteRequest):
        return slice(byte_range.start, byte_range.end)
    if isinstance(byte_range, OffsetByteRequest):
        return slice(byte_range.offset, None)
    if isinstance(byte_range, SuffixByteRequest):
        return slice(-byte_range.suffix, None)
    return slice(None)


def _tiled(noise: NDArray[np.int64], voxels: int) -> NDArray[np.uint16]:
    return np.resize(noise.astype(np.uint16), voxels)


def _mixed(*numbers: int) -> int:
    """Return 64 bits that depend on every number and on their order (the finaliser of SplitMix64)."""
    mask, state = 2**64 - 1, 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state
