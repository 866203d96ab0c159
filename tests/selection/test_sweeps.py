"""What a sweep promises: every region once, with its own voxels, every voxel of a block read once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from denoizarr.geometry.boxes import Box
from denoizarr.selection import sweeps
from denoizarr.selection.cells import Cells
from denoizarr.selection.filter_maps import own_voxels
from denoizarr.selection.filters import MaxPatchFilter
from denoizarr.selection.survey import survey
from denoizarr.selection.sweeps import plan_sweep
from denoizarr.stores.images import as_image, open_image
from denoizarr.stores.sources import ImageReader
from denoizarr.stores.strict import StrictStore
from tests.virtual_image import VirtualStore

BYTES = st.sampled_from([1, 300, 1500, 6000, 10**9])


class CountingImage:
    """An image whose voxels are numbered, and which counts how often each chunk and voxel is read."""

    def __init__(self, dims, shape, chunks, offset):
        self.values = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
        self.chunks, self.offset = chunks, offset
        self.chunk_reads = np.zeros(
            [-(-(n + o) // c) for n, c, o in zip(shape, chunks, offset, strict=True)], int
        )
        self.voxel_reads = np.zeros(shape, int)
        self.reader = ImageReader(
            self.fetch,
            dims=dims,
            shape=shape,
            dtype=self.values.dtype,
            chunks=chunks,
            identity={},
            name="counted",
            offset=offset,
        )

    def fetch(self, box):
        spans = zip(box.start, box.stop, self.chunks, self.offset, strict=True)
        self.chunk_reads[tuple(slice((a + o) // c, -(-(b + o) // c)) for a, b, c, o in spans)] += 1
        self.voxel_reads[box.slices] += 1
        return self.values[box.slices]


@st.composite
def images(draw):
    """Dims, extents, chunks, where the image begins inside its first chunk, and a patch."""
    patch = draw(
        st.one_of(
            st.tuples(st.integers(2, 7), st.integers(2, 7)),
            st.tuples(st.integers(1, 4), st.integers(2, 5), st.integers(2, 5)),
        )
    )
    dims = draw(
        st.sampled_from(["zyx", "tzyx", "czyx", "tczyx"] + (["yx", "tyx"] if len(patch) == 2 else []))
    )
    shape = tuple(draw(st.integers(1, 3 if d in "tc" else 26)) for d in dims)
    chunks = tuple(draw(st.integers(1, 11)) for _ in dims)
    offset = tuple(draw(st.integers(0, c - 1)) for c in chunks)
    return tuple(dims), shape, chunks, offset, patch


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(images(), BYTES, BYTES, BYTES, st.booleans())
def test_every_region_comes_once_with_its_own_voxels(set_sweeps, case, room, block, group, swept):
    dims, shape, chunks, offset, patch = case
    set_sweeps(plane=room, volume=room, block=block, group=group)
    image, cells = CountingImage(dims, shape, chunks, offset), Cells(dims, shape, patch)
    sweep = plan_sweep(cells, chunks, 4, swept=swept)
    done, own = np.zeros(cells.region_counts, int), np.zeros(shape, int)
    for box in sweep.grid:
        whole, before = cells.voxels_of_regions(box), image.voxel_reads.copy()
        read = np.zeros(shape, int)
        for slab in sweep.slabs(image.reader, box):
            assert box.contains(slab.regions)
            done[slab.regions.slices] += 1
            if slab.regions.size:
                needed = cells.voxels_of_regions(slab.regions)
                np.testing.assert_array_equal(slab.voxels, image.values[needed.slices])
            np.testing.assert_array_equal(slab.read, image.values[slab.box.slices])
            read[slab.box.slices] += 1
        np.testing.assert_array_equal(read, image.voxel_reads - before)
        assert (read[whole.slices] == 1).all()
        assert read.sum() == whole.size
        own[cells.own_voxels_of_regions(box).slices] += 1
    assert (done == 1).all()
    assert (own == 1).all(), "every voxel is counted in one block"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(images(), BYTES, BYTES)
def test_own_voxels_are_read_once_and_belong_to_one_block(set_sweeps, case, room, block):
    dims, shape, chunks, offset, patch = case
    set_sweeps(plane=room, volume=room, block=block, group=room)
    image, cells = CountingImage(dims, shape, chunks, offset), Cells(dims, shape, patch)
    sweep = plan_sweep(cells, chunks, 4)
    for number in range(len(sweep.grid)):
        for box, voxels in own_voxels(image.reader, sweep, number):
            np.testing.assert_array_equal(voxels, image.values[box.slices])
    assert (image.voxel_reads == 1).all()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(images(), BYTES)
def test_slabs_end_where_chunks_end(set_sweeps, case, room):
    """So along the axis of the sweep no chunk is decoded twice within a block."""
    dims, shape, chunks, offset, patch = case
    set_sweeps(plane=room, volume=room, block=10**9, group=1)
    image, cells = CountingImage(dims, shape, chunks, offset), Cells(dims, shape, patch)
    sweep = plan_sweep(cells, chunks, 4)
    axis = sweep.axis
    for box in sweep.grid:
        whole = cells.voxels_of_regions(box)
        edges = [slab.box.stop[axis] for slab in sweep.slabs(image.reader, box)]
        assert edges[-1] == whole.stop[axis]
        assert all((edge + offset[axis]) % chunks[axis] == 0 for edge in edges[:-1])


@pytest.mark.parametrize(
    ("dims", "shape", "chunks", "patch"),
    [
        ("zyx", (9, 60, 60), (1, 16, 16), (8, 8)),
        ("zyx", (9, 60, 61), (3, 17, 13), (8, 9)),
        ("tczyx", (2, 2, 6, 30, 30), (1, 2, 2, 11, 7), (5, 6)),
        ("zyx", (20, 30, 30), (7, 11, 13), (3, 8, 8)),
    ],
)
def test_what_fits_is_read_exactly_once_chunk_by_chunk(dims, shape, chunks, patch):
    image, cells = (
        CountingImage(tuple(dims), shape, chunks, (0,) * len(shape)),
        Cells(tuple(dims), shape, patch),
    )
    sweep = plan_sweep(cells, chunks, 4)
    for box in sweep.grid:
        for _ in sweep.slabs(image.reader, box):
            pass
    assert (image.chunk_reads == 1).all()


@pytest.mark.parametrize(
    ("shape", "chunks", "patch", "room"),
    [
        ((200, 60, 64), (8, 16, 16), (4, 8, 8), 2**18),
        ((200, 60, 64), (1, 60, 64), (5, 8, 8), 2**18),
        ((3, 300, 260), (1, 20, 20), (8, 8), 2**16),
        ((300, 260), (20, 20), (7, 9), 2**16),
    ],
)
@pytest.mark.parametrize("shift", [0, 3])
def test_an_axis_that_is_swept_whole_costs_no_chunk_twice(set_sweeps, shape, chunks, patch, room, shift):
    set_sweeps(plane=room, volume=room, block=10**9, group=1)
    offset = tuple(min(shift, c - 1) if a >= len(shape) - len(patch) else 0 for a, c in enumerate(chunks))
    dims = ("z", "y", "x")[-len(shape) :]
    image, cells = CountingImage(dims, shape, chunks, offset), Cells(dims, shape, patch)
    sweep = plan_sweep(cells, chunks, 4)
    slabs = [slab for box in sweep.grid for slab in sweep.slabs(image.reader, box)]
    assert len(slabs) > 2 * len(sweep.grid), "the test sweeps"
    assert image.chunk_reads.mean() <= 1.1
    assert image.chunk_reads.max() <= 2


@pytest.mark.parametrize("shift", [0, 3])
def test_own_voxels_cost_no_chunk_twice_within_a_block(set_sweeps, shift):
    """Also of a part of an image, which begins inside a chunk: statistics and percentiles read so."""
    set_sweeps(plane=2**16, volume=2**18, block=10**9, group=1)
    shape, chunks = (200, 60, 64), (8, 16, 16)
    image, cells = (
        CountingImage(("z", "y", "x"), shape, chunks, (shift,) * 3),
        Cells(("z", "y", "x"), shape, (4, 8, 8)),
    )
    sweep = plan_sweep(cells, chunks, 4)
    for number in range(len(sweep.grid)):
        assert len(list(own_voxels(image.reader, sweep, number))) > 3
    assert image.chunk_reads.mean() <= 1.1


def test_blocks_that_are_not_swept_read_their_borders_twice(set_sweeps):
    """The control of the tests above: what a sweep saves."""
    set_sweeps(plane=1, volume=2**14, block=1, group=1)
    shape, chunks = (200, 20, 20), (5, 20, 20)
    image, cells = (
        CountingImage(("z", "y", "x"), shape, chunks, (0, 0, 0)),
        Cells(("z", "y", "x"), shape, (5, 8, 8)),
    )
    sweep = plan_sweep(cells, chunks, 4, swept=False)
    for box in sweep.grid:
        assert len(list(sweep.slabs(image.reader, box))) <= 2
    assert image.chunk_reads.mean() > 1.2


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(st.integers(1, 40), st.integers(100, 400), st.integers(100, 400)),
    st.tuples(st.integers(1, 8), st.sampled_from([16, 20, 32]), st.sampled_from([16, 25, 32])),
    st.sampled_from([(8, 8), (12, 16), (4, 8, 8), (1, 16, 16)]),
)
def test_what_is_held_at_once_is_bounded(set_sweeps, shape, chunks, patch):
    """A slab keeps within the limit wherever two chunks (or patches) across and a few planes do."""
    limit = 2**20
    set_sweeps(plane=limit, volume=limit, block=2**22, group=2**16)
    cells = Cells(("z", "y", "x"), shape, patch)
    sweep = plan_sweep(cells, chunks, 4)
    image = ImageReader(
        lambda box: np.broadcast_to(np.int32(0), box.shape),
        dims=cells.dims,
        shape=shape,
        dtype=np.dtype(np.int32),
        chunks=chunks,
        identity={},
        name="broadcast",
    )
    held = max(slab.voxels.nbytes for box in sweep.grid for slab in sweep.slabs(image, box))
    assert held <= 1.25 * limit, "a rest below a patch comes with the last slab"


def store_of(shape, chunks):
    store = VirtualStore(shape, chunks)
    return store, as_image(zarr.open_array(store, mode="r"))


@pytest.mark.parametrize("names", [(), ("mean_std",), ("max", "mean_std", "shannon")])
@pytest.mark.parametrize("patch", [16, (4, 16, 16)])
def test_a_survey_that_fits_decodes_every_chunk_once(names, patch):
    store, image = store_of((12, 130, 150), (3, 32, 64))
    survey(image, patch_size=patch, names=names, progress=False)
    assert (store.reads == 1).all()


@pytest.mark.parametrize("patch", [16, (4, 16, 16)])
@pytest.mark.parametrize("names", [(), ("mean_std", "max")])
def test_a_swept_survey_decodes_every_chunk_about_once(set_sweeps, names, patch):
    set_sweeps(plane=2**15, volume=2**21, block=10**9, group=1)
    store, image = store_of((96, 256, 256), (1, 32, 64) if patch == 16 else (4, 64, 64))
    survey(image, patch_size=patch, names=names, progress=False)
    assert store.reads.min() == 1
    assert store.reads.mean() <= 1.1


@pytest.fixture
def chunk_gets(monkeypatch):
    """How often each chunk of a store on disk is read."""
    gets, get = Counter(), StrictStore.get

    async def counted(store, key, *args, **kwargs):
        if key.startswith("c/"):
            gets[key] += 1
        return await get(store, key, *args, **kwargs)

    monkeypatch.setattr(StrictStore, "get", counted)
    return gets


@pytest.mark.parametrize("patch", [8, (4, 8, 8)])
def test_a_part_of_an_image_reads_its_own_chunks_alone(tmp_path, chunk_gets, patch):
    shape, chunks = (40, 96, 96), (2, 32, 32)
    stored = zarr.create_array(str(tmp_path / "a"), shape=shape, chunks=chunks, dtype="u2")
    stored[...] = np.random.default_rng(0).integers(0, 999, shape)
    part = open_image(str(tmp_path / "a"), axes="zyx").isel(z=slice(6, 18), y=slice(33, 95))
    survey(part, patch_size=patch, names=("mean_std",), progress=False)
    expected = {f"c/{z}/{y}/{x}": 1 for z in range(3, 9) for y in (1, 2) for x in range(3)}
    assert chunk_gets == expected
    chunk_gets.clear()
    MaxPatchFilter.filter_map(part, patch).compute(scheduler="synchronous")
    assert chunk_gets == expected


def test_a_large_image_has_blocks_enough_and_not_too_many():
    """A terabyte is not one task, and not a hundred million."""
    for shape, patch in [((119_210, 2048, 2048), (64, 64)), ((119_210, 2048, 2048), (32, 64, 64))]:
        sweep = plan_sweep(Cells(("z", "y", "x"), shape, patch), (1, 512, 512), 2)
        assert 300 <= len(sweep.grid) <= 200_000
        first = sweep.cells.voxels_of_regions(sweep.grid.box(0))
        assert first.size * 2 <= 4 * sweeps._LARGEST_BLOCK_BYTES
        assert Box.whole(sweep.grid.shape).contains(sweep.grid.box(len(sweep.grid) - 1))
