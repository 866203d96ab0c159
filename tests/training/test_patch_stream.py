import itertools
import os
import pickle
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from denoizarr.errors import BadRequest, CorruptChunk, EmptyIndex
from denoizarr.selection.filters import MaxPatchFilter
from denoizarr.selection.index_builder import build_index
from denoizarr.stores.images import open_image
from denoizarr.training import patch_stream as module
from denoizarr.training import portion_sources, portions
from denoizarr.training.patch_stream import PatchStream, validation_patches
from denoizarr.training.portion_sources import READING_THREADS
from denoizarr.training.portions import Cutter, cutter_of, pieces_by_chunk


def noise(shape, dtype="uint16"):
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


def rows(items):
    """Every patch of some items as one tuple, in order: where it is and what it holds."""
    found = []
    for item in items:
        patches, origins = item["patch"], item["origin"]
        if origins.ndim == 1:
            patches, origins = patches[None], origins[None]
        images = item.get("image", torch.zeros(len(origins), dtype=torch.int64)).reshape(-1)
        for k, origin in enumerate(origins):
            found.append((int(images[k]), *origin.tolist(), patches[k].numpy().tobytes()))
    return found


@pytest.fixture
def stored(tmp_path):
    values = noise((6, 96, 130))
    path = str(tmp_path / "image.zarr")
    array = zarr.create_array(path, shape=values.shape, chunks=(2, 16, 16), dtype=values.dtype)
    array[...] = values
    return values, open_image(path, axes="zyx")


@pytest.mark.parametrize("dims", ["yx", "zyx", "cyx", "tczyx", "tyx"])
@pytest.mark.parametrize("dtype", ["uint16", "float32", "uint8"])
def test_patches_are_the_raw_voxels_at_their_origins(dims, dtype):
    sizes = {"t": 2, "c": 3, "z": 4, "y": 40, "x": 53}
    image = xr.DataArray(noise([sizes[d] for d in dims], dtype), dims=tuple(dims)).chunk({"y": 17, "x": 20})
    index = build_index(image, (8, 6))
    stream = PatchStream(image, index, batch_size=5, patches_per_epoch=23)
    spatial = [d for d in dims if d != "c"]
    sizes = []
    for batch in stream:
        patch, origin = batch["patch"], batch["origin"]
        sizes.append(len(patch))
        assert patch.dtype == torch.float32
        assert patch.shape[1:] == (3 if "c" in dims else 1, 8, 6)
        assert origin.dtype == torch.int64
        assert origin.shape[1:] == (len(spatial),)
        for one, place in zip(patch.numpy(), origin.numpy(), strict=True):
            at = dict(zip(spatial, place, strict=True))
            window = {"y": slice(at["y"], at["y"] + 8), "x": slice(at["x"], at["x"] + 6)}
            expected = image.isel({**{d: at[d] for d in spatial[:-2]}, **window}).values
            np.testing.assert_array_equal(one, expected.reshape(one.shape).astype(np.float32))
    assert sizes == [5, 5, 5, 5, 3]
    assert stream.batches_per_epoch == 5


def test_single_patches_without_a_batch_size():
    image = noise((40, 40))
    items = list(PatchStream(image, build_index(image, 8)))
    assert len(items) == 25
    assert items[0]["patch"].shape == (1, 8, 8)
    assert items[0]["origin"].shape == (2,)


def test_several_images_say_which():
    images = [noise((2, 40, 40)), noise((1, 64, 30)) + 1000]
    index = build_index(images, 8)
    found = set()
    for batch in PatchStream(images, index, batch_size=7, patches_per_epoch=200):
        for patch, origin, number in zip(
            batch["patch"].numpy(), batch["origin"].numpy(), batch["image"].numpy(), strict=True
        ):
            z, y, x = origin
            np.testing.assert_array_equal(patch[0], images[number][z, y : y + 8, x : x + 8])
            found.add(int(number))
    assert found == {0, 1}


@pytest.mark.parametrize("dims", ["zyx", "czyx", "tzyx", "tczyx"])
def test_volumes_as_patches_are_the_raw_voxels_at_their_origins(dims):
    sizes = {"t": 2, "c": 3, "z": 11, "y": 30, "x": 26}
    image = xr.DataArray(noise([sizes[d] for d in dims]), dims=tuple(dims)).chunk({"z": 4, "y": 10, "x": 9})
    stream = PatchStream(image, build_index(image, (4, 8, 6)), batch_size=6, patches_per_epoch=40)
    spatial = [d for d in dims if d != "c"]
    seen = 0
    for batch in stream:
        assert batch["patch"].shape[1:] == (3 if "c" in dims else 1, 4, 8, 6)
        assert batch["origin"].shape[1:] == (len(spatial),)
        for one, place in zip(batch["patch"].numpy(), batch["origin"].numpy(), strict=True):
            at = dict(zip(spatial, place.tolist(), strict=True))
            window = {d: slice(at[d], at[d] + n) for d, n in (("z", 4), ("y", 8), ("x", 6))}
            expected = image.isel({**({"t": at["t"]} if "t" in at else {}), **window}).values
            np.testing.assert_array_equal(one, expected.reshape(one.shape).astype(np.float32))
            seen += 1
    assert seen == 40


@pytest.mark.parametrize("patch", [8, (3, 8, 8)])
def test_pairs_are_the_same_part_of_image_and_target(patch):
    images = [noise((5, 40, 44)), noise((4, 33, 60))]
    targets = [(i * 2.0 + 7).astype(np.float32) for i in images]
    stream = PatchStream(
        images, build_index(images, patch), target=targets, batch_size=9, patches_per_epoch=70
    )
    for batch in stream:
        assert batch["target"].dtype == torch.float32
        assert torch.equal(batch["target"], batch["patch"] * 2 + 7)
    # Two bytes of the image and four of the target a voxel.
    chunks = stream.statistics["chunks_read"]
    assert chunks % 2 == 0
    assert stream.statistics["read_amplification"] > 0


def test_targets_that_do_not_fit_are_refused():
    image = noise((5, 40, 44))
    index = build_index(image, 8)
    with pytest.raises(BadRequest, match="extent of its image") as caught:
        PatchStream(image, index, target=noise((5, 40, 45)))
    assert "z: 5, y: 40, x: 45" in str(caught.value)
    with pytest.raises(BadRequest, match="its own target"):
        PatchStream([image, image], build_index([image, image], 8), target=image)


def test_numbers_count_the_epoch_over_all_ranks():
    image = noise((64, 64))
    index = build_index(image, 8)
    found = []
    for rank in range(2):
        stream = PatchStream(image, index, batch_size=4, patches_per_epoch=40, rank=rank, world_size=2)
        found += [int(n) for item in stream for n in item["number"]]
    assert found == list(range(40))


@pytest.mark.parametrize("dtype", [">u2", "int32", "float64", "bool"])
def test_any_dtype_comes_as_float32(dtype):
    image = noise((40, 40)).astype(dtype)
    for item in PatchStream(image, build_index(image, 8), patches_per_epoch=9):
        y, x = item["origin"].tolist()
        assert item["patch"].dtype == torch.float32
        np.testing.assert_array_equal(item["patch"][0].numpy(), image[y : y + 8, x : x + 8].astype("f4"))


def test_a_slice_of_a_stored_image_is_read_chunk_by_chunk_too(stored):
    """Its first chunk is short: blocks begin where chunks do, not where the slice does."""
    _, image = stored
    part = image.isel(y=slice(9, 96), x=slice(5, 130))
    stream = PatchStream(part, build_index(part, 8), batch_size=16, patches_per_epoch=3000)
    list(stream)
    assert stream.statistics["chunks_read"] == 3 * 6 * 9


@pytest.mark.parametrize("per_epoch", [60, 900])
def test_resuming_at_any_batch_gives_the_next_one_bit_for_bit(stored, per_epoch):
    _, image = stored
    index = build_index(image, 8)

    def stream():
        return PatchStream(image, index, batch_size=8, patches_per_epoch=per_epoch, seed=3, resident_blocks=4)

    whole = stream()
    batches = [list(whole) for _ in range(2)]
    last = len(batches[0])
    stops = np.random.default_rng(per_epoch).integers(0, last + 1, 20).tolist()
    for stop in (0, 1, last, *stops):
        first, second = stream(), stream()
        iterator = iter(first)
        for _ in range(stop):
            next(iterator)
        iterator.close()
        second.load_state_dict(first.state_dict())
        rest = list(second)
        expected = batches[0][stop:] or batches[1]
        assert rows(rest) == rows(expected)
        assert torch.equal(rest[0]["number"], expected[0]["number"])
    assert whole.state_dict() == {"seed": 3, "epoch": 2, "position": 0}


def test_what_is_read_ahead_changes_nothing(stored):
    import threading

    def reading():
        return [t for t in threading.enumerate() if t.name.startswith("patch-stream")]

    _, image = stored
    index = build_index(image, 8)
    plain = PatchStream(image, index, batch_size=8, patches_per_epoch=100)
    expected = [rows(plain) for _ in range(3)]
    stream = PatchStream(image, index, batch_size=8, patches_per_epoch=100, num_epochs=3)
    assert rows(stream) == expected[0]
    assert reading(), "of epoch 1"
    stream.set_epoch(0)
    assert rows(stream) == expected[0], "what was read ahead is not what is wanted"
    assert [rows(stream), rows(stream)] == expected[1:]
    assert not reading(), "there is no fourth epoch"
    assert stream.statistics["patches"] == 400
    stream.set_epoch(0)
    iterator = iter(stream)
    for _ in range(13):
        next(iterator)
    state = stream.state_dict()
    assert state == {"seed": 0, "epoch": 1, "position": 0}
    iterator.close()
    stream.close()
    assert not reading()


def test_set_epoch_chooses_the_epoch(stored):
    _, image = stored
    stream = PatchStream(image, build_index(image, 8), patches_per_epoch=50)
    epochs = [rows(stream) for _ in range(3)]
    assert len({tuple(e) for e in epochs}) == 3
    stream.set_epoch(1)
    assert rows(stream) == epochs[1]
    stream.set_epoch(2)  # what comes next already
    assert rows(stream) == epochs[2]


def test_threads_and_timing_change_nothing(stored, monkeypatch):
    _, image = stored
    index = build_index(image, 8)
    found = []
    for threads in (1, 4):
        monkeypatch.setattr(portion_sources, "READING_THREADS", threads)
        found.append(rows(PatchStream(image, index, batch_size=4, patches_per_epoch=300)))
    assert found[0] == found[1]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_an_epoch(stored, world_size):
    _, image = stored
    index = build_index(image, 8)
    alone = rows(PatchStream(image, index, batch_size=8, patches_per_epoch=500))
    shares = [
        rows(PatchStream(image, index, batch_size=8, patches_per_epoch=500, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    assert len({len(s) for s in shares}) == 1
    joined = [row for share in shares for row in share]
    assert joined == alone[: len(joined)]
    assert len(joined) > 500 - 8 * world_size


def test_workers_share_an_epoch(stored, monkeypatch):
    _, image = stored
    stream = PatchStream(image, build_index(image, 8), batch_size=8, patches_per_epoch=500)
    alone = rows(stream)
    shares = []
    for number in range(3):
        monkeypatch.setattr(module, "get_worker_info", lambda n=number: SimpleNamespace(id=n, num_workers=3))
        stream.set_epoch(1)
        stream.set_epoch(0)
        shares += rows(stream)
    assert shares == alone


_FEW_CORES = pytest.mark.filterwarnings("ignore:This DataLoader will create . worker:UserWarning")


@_FEW_CORES
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_loader_workers_yield_the_epoch(workers):
    image = noise((3, 64, 64))
    index = build_index(image, 8)
    stream = PatchStream(image, index, batch_size=8, patches_per_epoch=100)
    context = {"multiprocessing_context": "fork"} if workers else {}
    loader = DataLoader(stream, batch_size=None, num_workers=workers, **context)
    expected = PatchStream(image, index, batch_size=8, patches_per_epoch=100)
    assert sorted(rows(loader)) == sorted(rows(expected))


@_FEW_CORES
@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("done", [1, 5, 11])
def test_loader_workers_yield_what_is_left_of_an_epoch(workers, done):
    image = noise((3, 64, 64))
    index = build_index(image, 8)

    def stream():
        return PatchStream(image, index, batch_size=8, patches_per_epoch=100)

    batches = list(stream())
    resumed = stream()
    resumed.load_state_dict({"seed": 0, "epoch": 0, "position": done * 8})
    context = {"multiprocessing_context": "fork"} if workers else {}
    found = rows(
        DataLoader(resumed, batch_size=None, num_workers=workers, timeout=60 if workers else 0, **context)
    )
    assert sorted(found) == sorted(rows(batches[done:]))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_worker_does_not_wait_for_what_its_parent_reads_ahead():
    image = noise((3, 64, 64))
    index = build_index(image, 8)
    stream = PatchStream(image, index, batch_size=8, patches_per_epoch=100, num_epochs=3)
    list(stream)
    expected = PatchStream(image, index, batch_size=8, patches_per_epoch=100)
    expected.set_epoch(1)
    loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert sorted(rows(loader)) == sorted(rows(expected))
    stream.close()


_RANK = """
import sys, numpy, torch
from denoizarr import open_image, build_index, PatchStream
path, rank, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[4]}", rank=rank, world_size=size)
image = open_image(path, axes="zyx")
stream = PatchStream(image, build_index(image, 8, seed=1), batch_size=8, patches_per_epoch=500)
for item in stream:
    for number, origin in zip(item["number"].tolist(), item["origin"].tolist()):
        print(number, *origin)
torch.distributed.destroy_process_group()
"""


def test_two_ranks_in_two_processes_share_an_epoch(stored, tmp_path):
    _, image = stored
    command = [sys.executable, "-c", _RANK, str(image.attrs["url"])]
    ranks = [
        subprocess.Popen([*command, str(r), "2", str(tmp_path / "meet")], stdout=subprocess.PIPE, text=True)
        for r in range(2)
    ]
    found = [{tuple(map(int, line.split())) for line in rank.communicate()[0].splitlines()} for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert len(found[0]) == len(found[1]) == 248
    assert not found[0] & found[1]
    alone = PatchStream(image, build_index(image, 8, seed=1), batch_size=8, patches_per_epoch=500)
    numbered = {
        (int(n), *o) for i in alone for n, o in zip(i["number"], i["origin"].tolist(), strict=True) if n < 496
    }
    assert found[0] | found[1] == numbered


def test_a_forked_worker_that_would_hang_is_refused(stored):
    """The object store's threads do not survive a fork; a read there would never end."""
    _, image = stored
    stream = PatchStream(image, build_index(image, 8))
    loader = DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(BadRequest, match="spawn"):
        next(iter(loader))


def test_a_stream_travels_to_another_process(stored):
    _, image = stored
    stream = PatchStream(image, build_index(image, 8), batch_size=8, patches_per_epoch=100)
    copy = pickle.loads(pickle.dumps(stream))  # noqa: S301, our own bytes
    assert rows(copy) == rows(stream)


@pytest.mark.parametrize("per_epoch", [80, 1500])
def test_background_is_drawn_at_its_rate_however_few_blocks_an_epoch_visits(per_epoch):
    """Equal quotas from blocks drawn without replacement would give background far more than its share."""
    image = noise((8, 128, 128)) // 25
    image[..., 64:] += 1000
    index = build_index(image, 8, patch_filter=MaxPatchFilter(500), filtered_patch_prob=0.1)
    lazy = xr.DataArray(image, dims=("z", "y", "x")).chunk({"z": 1, "y": 16, "x": 16})
    stream = PatchStream(lazy, _of(index, lazy), batch_size=40, patches_per_epoch=per_epoch, seed=1)
    counts = np.zeros(2)
    for _ in range(24_000 // per_epoch):
        x = np.concatenate([item["origin"][:, 2].numpy() for item in stream])
        counts += [(x < 48).sum(), (x >= 72).sum()]
    assert counts[0] / counts[1] == pytest.approx(0.1, rel=0.12)


def _of(index, image):
    """The same index, for the same voxels in other chunks."""
    other = build_index(image, index.patch_size)
    other.classes, other.table = index.classes, index.table
    return (
        index._with(index.classes, index.table, jitter=True)
        if other.images == index.images
        else _renamed(index, other)
    )


def _renamed(index, other):
    renamed = index._with(index.classes, index.table, jitter=True)
    renamed.images = other.images
    return renamed


def test_a_chunk_is_decoded_about_once_an_epoch(stored, monkeypatch):
    _, image = stored
    index = build_index(image, 8)
    stream = PatchStream(image, index, batch_size=16, patches_per_epoch=3000)
    assert len(list(stream)) == 188
    chunks = 3 * 6 * 9
    assert stream.statistics["chunks_read"] <= chunks
    assert stream.statistics["patches"] == 3000
    assert stream.statistics["bytes_read"] == stream.statistics["chunks_read"] * 2 * 16 * 16 * 2
    used = 3000 * 8 * 8 * 2
    assert stream.statistics["read_amplification"] == pytest.approx(stream.statistics["bytes_read"] / used)
    few = PatchStream(image, index, batch_size=16, patches_per_epoch=64)
    list(few)
    assert few.statistics["chunks_read"] < chunks / 2, "a short epoch visits a few blocks only"


def test_every_position_is_reached_over_the_epochs():
    image = xr.DataArray(noise((32, 40)), dims=("y", "x")).chunk({"y": 8, "x": 8})
    stream = PatchStream(image, build_index(image, 4), batch_size=100, patches_per_epoch=3000)
    seen = set()
    for _ in range(30):
        seen |= {tuple(origin) for item in stream for origin in item["origin"].tolist()}
    assert seen == {(y, x) for y in range(29) for x in range(37)}


def test_blocks_are_interleaved(stored):
    """Few at the beginning of an epoch, which is then soon under way."""
    _, image = stored
    stream = PatchStream(image, build_index(image, 8), batch_size=32, patches_per_epoch=900)
    blocks = [len(np.unique(item["origin"].numpy() // [2, 32, 32], axis=0)) for item in stream]
    assert blocks[0] >= 2
    assert np.median(blocks) > 4


def test_an_iteration_left_early_leaves_no_thread(stored):
    import threading

    _, image = stored
    iterator = iter(PatchStream(image, build_index(image, 8), batch_size=2))
    next(iterator)
    iterator.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("patch-stream")]


def test_an_error_while_reading_ahead_is_raised(stored, monkeypatch):
    _, image = stored
    stream = PatchStream(image, build_index(image, 8), batch_size=2)

    def fails(*arguments):
        raise OSError("gone")

    monkeypatch.setattr(portions, "_read_of", fails)
    with pytest.raises(OSError, match="gone"):
        next(iter(stream))


@settings(max_examples=15)
@given(
    st.tuples(st.integers(1, 3), st.integers(20, 80), st.integers(20, 80)),
    st.integers(5, 40),
    st.integers(0, 3),
)
def test_training_patches_never_touch_a_validation_patch(shape, chunk, seed):
    image = xr.DataArray(noise(shape), dims=("z", "y", "x")).chunk({"y": chunk, "x": chunk})
    training, validation = build_index(image, (4, 5)).split(0.15, seed)
    held = np.zeros(shape, bool)
    patches, origins, _ = validation_patches(image, validation, 50, seed)
    assert len(np.unique(origins, axis=0)) == len(origins)
    for patch, (z, y, x) in zip(patches, origins, strict=True):
        held[z, y : y + 4, x : x + 5] = True
        np.testing.assert_array_equal(patch[0], image.values[z, y : y + 4, x : x + 5])
    for item in PatchStream(image, training, batch_size=64, patches_per_epoch=600, seed=seed):
        for z, y, x in item["origin"].numpy():
            assert not held[z, y : y + 4, x : x + 5].any()


def test_validation_patches_are_fixed_and_empty_where_nothing_is_held_out():
    image = noise((20, 20))
    validation = build_index(image, 10).split(0.1)[1]
    patches, origins, _ = validation_patches(image, validation, 5)
    assert patches.shape == (0, 1, 10, 10)
    assert origins.shape == (0, 2)
    index = build_index(image, 4)
    first, second = (validation_patches(image, index, 9, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    assert len(first[0]) == 9


def test_validation_patches_of_several_images_come_with_their_targets():
    values = [noise((3, 48, 50)), noise((2, 60, 41)) + 7]
    chunked = [{"z": 2, "y": 16, "x": 20}, {"z": 1, "y": 9, "x": 41}]
    images = [
        xr.DataArray(v, dims=("z", "y", "x")).chunk(c)[:, 3:] for v, c in zip(values, chunked, strict=True)
    ]
    index = build_index(images, (5, 6))
    patches, origins, targets = validation_patches(images, index, 80, target=[i + 1 for i in images])
    assert len(patches) == 80
    assert set(origins[:, 0]) == {0, 1}
    for patch, target, (number, z, y, x) in zip(patches, targets, origins, strict=True):
        expected = values[number][z, y + 3 : y + 8, x : x + 6]
        np.testing.assert_array_equal(patch[0], expected)
        np.testing.assert_array_equal(target[0], expected + 1)


@pytest.mark.parametrize(("first", "n"), [(0, 60), (5, 60), (16, 7), (37, 1), (3, 0)])
@pytest.mark.parametrize("target_chunks", [None, (1, 4, 4), (6, 96, 50), (2, 12, 16)])
def test_patches_that_begin_in_one_chunk_are_one_piece(stored, tmp_path, target_chunks, first, n):
    values, image = stored
    images, grids = [image[1:, first:], image[:, :, first:]], [(2, 16, 16)]
    targets = None
    if target_chunks is not None:
        path = str(tmp_path / "target.zarr")
        zarr.create_array(path, shape=values.shape, chunks=target_chunks, dtype="u2")
        target = open_image(path, axes="zyx")
        targets = [target[1:, first:], target[:, :, first:]]
        grids.append(target_chunks)
    cutter = cutter_of(images, build_index(images, 4), targets)
    rng = np.random.default_rng(n)
    numbers, origins = rng.integers(0, 2, n), rng.integers(0, (4, 50, 80), (n, 3))
    pieces = pieces_by_chunk(cutter, numbers, origins)
    assert sorted(row for piece in pieces for row in piece.rows) == list(range(n))
    found = set()
    for piece in pieces:
        np.testing.assert_array_equal(piece.origins, origins[piece.rows])
        assert set(numbers[piece.rows]) == {piece.image}
        stored_at = piece.origins + [(1, first, 0), (0, 0, first)][piece.image]
        (begins_in,) = np.unique(np.hstack([stored_at // grid for grid in grids]), axis=0).tolist()
        found.add((piece.image, *begins_in))
    assert len(found) == len(pieces)


def test_a_box_that_outweighs_a_block_is_not_read_for_a_few_patches(stored, monkeypatch):
    _, image = stored
    cutter = cutter_of(image, build_index(image, 4), None)
    origins = np.array([(0, 0, 0), (0, 1, 1), (1, 10, 10)])
    assert len(pieces_by_chunk(cutter, np.zeros(3, np.int64), origins)) == 1
    monkeypatch.setattr(portions, "BLOCK_BYTES", 2 * 19 * 19 * 2 - 1)
    assert len(pieces_by_chunk(cutter, np.zeros(3, np.int64), origins)) == 3


def test_held_out_patches_are_read_side_by_side(stored, monkeypatch):
    if min(READING_THREADS, os.cpu_count()) < 2:
        pytest.skip("one thread")
    _, image = stored
    together, calls, fill = threading.Barrier(2, timeout=20), itertools.count(), Cutter.fill

    def meeting(self, portion, piece):
        if next(calls) < 2:
            together.wait()
        return fill(self, portion, piece)

    monkeypatch.setattr(Cutter, "fill", meeting)
    assert len(validation_patches(image, build_index(image, 16), 40)[0]) == 40
    assert next(calls) > 2


def test_an_error_of_a_held_out_patch_is_raised_and_leaves_no_thread(stored, monkeypatch):
    _, image = stored

    def failing(self, portion, piece):
        raise CorruptChunk("a chunk cannot be decoded", where="here")

    monkeypatch.setattr(Cutter, "fill", failing)
    with pytest.raises(CorruptChunk, match="here"):
        validation_patches(image, build_index(image, 16), 40)
    assert not [t for t in threading.enumerate() if t.name.startswith("patch-stream")]


def test_requests_that_cannot_be_are_refused():
    image = noise((40, 40))
    index = build_index(image, 8)
    with pytest.raises(BadRequest, match="another image"):
        PatchStream(image + 1, index)
    with pytest.raises(BadRequest, match="batch_size"):
        PatchStream(image, index, batch_size=0)
    with pytest.raises(BadRequest, match="go together"):
        PatchStream(image, index, rank=1)
    for name, value in (("batch_size", 2.5), ("seed", 2**70), ("seed", -1), ("num_epochs", 0)):
        with pytest.raises(BadRequest, match=name):
            PatchStream(image, index, **{name: value})
    stream = PatchStream(image, index, patches_per_epoch=64)
    for state in ({"seed": 0}, {"seed": 0, "epoch": 0, "position": 1.5}, None):
        with pytest.raises(BadRequest, match="not the state of a stream"):
            stream.load_state_dict(state)
    for position in (-8, 64):
        with pytest.raises(BadRequest, match="position"):
            stream.load_state_dict({"seed": 0, "epoch": 0, "position": position})
    colours = [noise((3, 40, 40)), noise((1, 40, 40))]
    colours = [xr.DataArray(c, dims=("c", "y", "x")) for c in colours]
    with pytest.raises(BadRequest, match="different numbers of channels"):
        PatchStream(colours, build_index(colours, 8))
    with pytest.raises(BadRequest, match="world_size=0"):
        PatchStream(image, index, rank=0, world_size=0)
    with pytest.raises(BadRequest, match="fewer batches"):
        PatchStream(image, index, batch_size=8, patches_per_epoch=8, rank=0, world_size=2)
    with pytest.raises(EmptyIndex):
        PatchStream(image, build_index(image, 20).split(0.1)[1])
