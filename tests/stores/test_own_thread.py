"""Zarr's work on what is in memory, in the threads that ask for it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import MemoryStore

from denoizarr.stores import own_thread
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


@pytest.fixture
def company(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every call find another one going on."""
    monkeypatch.setattr(own_thread, "_inside", 1)
    yield
    assert own_thread._inside == 1


def sharded(shape: tuple[int, ...] = (3, 40, 40), shards: tuple[int, ...] = (3, 24, 24)) -> zarr.Array[Any]:
    return zarr.create_array(
        MemoryStore(),
        shape=shape,
        chunks=(1, shape[1] // 5, shape[2] // 5) if shards != shape else shape,
        shards=shards if shards != shape else None,
        dtype="uint16",
        compressors=BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"),
    )


def some_values(shape: tuple[int, ...] = (3, 40, 40)) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.random.default_rng(0).integers(0, 900, shape).astype(np.uint16)


def objects_of(array: zarr.Array[Any]) -> dict[str, bytes]:
    return {key: value.to_bytes() for key, value in array.store._store_dict.items()}  # type: ignore[attr-defined]


def in_a_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@pytest.mark.usefixtures("company")
def test_what_is_stored_is_what_zarr_stores_and_the_codecs_run_here(codec_threads: set[int]) -> None:
    values, ours, theirs = some_values(), sharded(), sharded()
    theirs[...] = values
    codec_threads.clear()

    def write() -> int:
        in_own_thread(ours.async_array.setitem(..., values))
        np.testing.assert_array_equal(in_own_thread(ours.async_array.getitem(...)), values)
        return threading.get_ident()

    assert codec_threads == {in_a_thread(write)}
    assert objects_of(ours) == objects_of(theirs)


def test_a_thread_that_is_alone_leaves_it_to_zarr(codec_threads: set[int]) -> None:
    array, values = sharded(), some_values()

    def write() -> int:
        in_own_thread(array.async_array.setitem(..., values))
        return threading.get_ident()

    assert in_a_thread(write) not in codec_threads
    np.testing.assert_array_equal(array[...], values)
    assert own_thread._inside == 0


@pytest.mark.usefixtures("company")
def test_in_the_main_thread_too_bytes_are_the_same_every_time(codec_threads: set[int]) -> None:
    shape = (4, 1024, 1024)  # of one large chunk, which blosc would share out among threads of its own
    values, found = some_values(shape), set()
    for _ in range(4):
        array = sharded(shape, shape)
        in_own_thread(array.async_array.setitem(..., values))
        found.add(objects_of(array)["c/0/0/0"])
    assert threading.get_ident() not in codec_threads
    assert len(found) == 1


@pytest.mark.usefixtures("company")
@pytest.mark.parametrize("error", [RuntimeError, MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("shape", [(3, 40, 40), (3, 24, 24)])
def test_what_fails_in_a_codec_fails_here_and_leaves_no_task(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: type[BaseException],
    shape: tuple[int, ...],
) -> None:
    def torn(*_: Any) -> Any:
        raise error("torn")

    monkeypatch.setattr(BloscCodec, "_encode_sync", torn)
    array = sharded(shape)

    def write() -> None:
        with pytest.raises(error, match="torn"):
            in_own_thread(array.async_array.setitem(..., some_values(shape)))

    in_a_thread(write)
    gc.collect()
    assert "Task" not in caplog.text
