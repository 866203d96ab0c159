"""Zarr's work on what is in memory, in the thread that asks for it."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import MemoryStore

from denoizarr.stores.own_thread import in_own_thread


@pytest.fixture
def codec_threads(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Collect the threads in which chunks are encoded."""
    found: set[int] = set()
    encode = BloscCodec._encode_sync

    def noted(*arguments: Any) -> Any:
        found.add(threading.get_ident())
        return encode(*arguments)

    monkeypatch.setattr(BloscCodec, "_encode_sync", noted)
    return found


def sharded() -> zarr.Array[Any]:
    return zarr.create_array(
        MemoryStore(),
        shape=(3, 40, 40),
        chunks=(1, 8, 8),
        shards=(3, 24, 24),
        dtype="uint16",
        compressors=BloscCodec(cname="zstd"),
    )


def some_values() -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.random.default_rng(0).integers(0, 900, (3, 40, 40)).astype(np.uint16)


def objects_of(array: zarr.Array[Any]) -> dict[str, bytes]:
    return {key: value.to_bytes() for key, value in array.store._store_dict.items()}  # type: ignore[attr-defined]


def test_what_is_stored_is_what_zarr_stores_and_the_codecs_run_here(codec_threads: set[int]) -> None:
    values, ours, theirs = some_values(), sharded(), sharded()
    theirs[...] = values
    assert threading.get_ident() not in codec_threads, "zarr encodes in threads of its own"
    codec_threads.clear()
    in_own_thread(ours.async_array.setitem(..., values))
    assert codec_threads == {threading.get_ident()}
    assert objects_of(ours) == objects_of(theirs)
    np.testing.assert_array_equal(in_own_thread(ours.async_array.getitem(...)), values)


def test_several_threads_each_have_their_own(codec_threads: set[int]) -> None:
    values, together = some_values(), threading.Barrier(3)

    def write() -> dict[str, bytes]:
        together.wait(30)
        array = sharded()
        in_own_thread(array.async_array.setitem(..., values))
        return objects_of(array)

    with ThreadPoolExecutor(3) as pool:
        first, *others = [future.result() for future in [pool.submit(write) for _ in range(3)]]
    assert len(codec_threads) == 3
    assert others == [first, first]


def test_a_thread_whose_loop_runs_leaves_it_to_zarr(codec_threads: set[int]) -> None:
    array, values = sharded(), some_values()

    async def in_a_notebook() -> None:
        in_own_thread(array.async_array.setitem(..., values))

    asyncio.run(in_a_notebook())
    assert len(codec_threads) > 0
    assert threading.get_ident() not in codec_threads
    np.testing.assert_array_equal(array[...], values)


def test_what_fails_in_a_codec_fails_here_and_leaves_no_task(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def torn(*_: Any) -> Any:
        raise RuntimeError("torn")

    monkeypatch.setattr(BloscCodec, "_encode_sync", torn)
    with pytest.raises(RuntimeError, match="torn"):
        in_own_thread(sharded().async_array.setitem(..., some_values()))
    gc.collect()
    assert "Task" not in caplog.text
