"""Arrays over stored objects that are in memory already: encoded or decoded without a store."""

from __future__ import annotations

from typing import Any

import zarr
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore, StorePath

from .strict import StrictStore


def array_over(array: zarr.Array[Any], objects: dict[str, Buffer], where: str = "") -> zarr.Array[Any]:
    """Return the array over a store that has these objects only, in memory: nothing is read a second time."""
    path = StorePath(StrictStore(MemoryStore(objects), where or str(array.store), "fill"), array.path)
    return zarr.Array(zarr.AsyncArray(array.metadata, path, array.async_array.config))
