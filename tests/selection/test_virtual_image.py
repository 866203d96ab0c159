"""The virtual image itself: what every test and benchmark at scale stands on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import zarr

from denoizarr import MeanStdPatchFilter, build_index
from denoizarr.stores.images import as_image
from tests.virtual_image import CUBES, PLANES, TERABYTE, VirtualStore

CHUNKS = [PLANES, CUBES]


def test_it_is_a_terabyte_that_takes_no_memory_to_open():
    store = VirtualStore()
    array = zarr.open_array(store, mode="r")
    assert array.shape == TERABYTE
    assert array.nbytes >= 10**12
    assert array[119_000, 1000:1002, 7].shape == (2,)
    assert store.reads.sum() == 1
    assert store.reads.nbytes < 8 * 2**20


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_voxels_depend_on_seed_and_position_only(chunks):
    shape = (130, 700, 600)
    first, again, other = (
        zarr.open_array(VirtualStore(shape, chunks, seed=seed), mode="r") for seed in (3, 3, 4)
    )
    box = (slice(60, 70), slice(250, 530), slice(240, 600))
    whole = first[box]
    np.testing.assert_array_equal(again[box], whole)
    np.testing.assert_array_equal(np.concatenate([first[60:64], first[64:70]])[:, 250:530, 240:], whole)
    assert (other[box] != whole).mean() > 0.5
    larger = zarr.open_array(VirtualStore((200, 900, 900), chunks, seed=3), mode="r")
    np.testing.assert_array_equal(larger[box], whole)


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_it_has_background_and_signal(chunks):
    store = VirtualStore((512, 2048, 2048), chunks)
    some = itertools.islice(np.ndindex(store.counts), 0, None, 3)
    kinds = {index: store.is_signal(index) for index in some}
    assert 0.05 < np.mean(list(kinds.values())) < 0.5
    means = {kind: [] for kind in (False, True)}
    for index, kind in kinds.items():
        if len(means[kind]) < 5:
            means[kind].append(store.chunk(index).mean())
    assert max(means[False]) < 150 < min(means[True])


def test_every_read_is_counted_also_from_the_public_functions():
    store = VirtualStore((6, 1024, 1024))
    array = zarr.open_array(store, mode="r")
    found = MeanStdPatchFilter.filter_map(array, 64).sel(statistic="mean").compute(scheduler="synchronous")
    assert (store.reads == 1).all()
    scores = np.asarray(found)[:, ::8, ::8]
    signal = np.array([store.is_signal(i) for i in np.ndindex(store.counts)]).reshape(store.counts)
    assert ((scores > 150) >= signal).all()


def test_a_slice_of_a_terabyte_is_indexed_without_reading_the_rest():
    store = VirtualStore()
    sample = as_image(zarr.open_array(store, mode="r")).isel(z=slice(50_000, 50_004))
    index = build_index(sample, 64, patch_filter=MeanStdPatchFilter(mean_threshold=50))
    assert index.n_cells == 4 * 32 * 32
    assert set(np.argwhere(store.reads)[:, 0]) == {50_000, 50_001, 50_002, 50_003}


def test_keys_that_are_no_chunks_are_absent_and_nothing_is_written():
    store = VirtualStore((4, 512, 512))
    prototype = zarr.core.buffer.default_buffer_prototype()
    for key in ("c/9/0/0", "c/0/0", "c/-1/0/0", "zarr.jso", "d/0/0/0"):
        assert zarr.core.sync.sync(store.get(key, prototype)) is None
        assert not zarr.core.sync.sync(store.exists(key))
    with pytest.raises(ValueError, match="read-only"):
        zarr.core.sync.sync(store.delete("c/0/0/0"))
    with pytest.raises(ValueError, match="read-only"):
        zarr.open_array(VirtualStore((4, 512, 512)), mode="r+")[0] = 1
