"""The requests that reading takes are stated as they are counted, for any layout of an array."""

from __future__ import annotations

import itertools
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.geometry.boxes import Box
from denoizarr.pipeline.array_reads import StoredImage, even_cuts, with_halo
from denoizarr.stores.images import open_image, reader_of
from denoizarr.stores.sources import open_source
from tests.store_calls import counted_calls


@st.composite
def layouts(draw, dims=(2, 3)):
    n = draw(st.integers(*dims))
    chunks = [draw(st.integers(1, 5)) for _ in range(n)]
    per_shard = [draw(st.integers(1, 3)) for _ in range(n)]
    shards = draw(st.sampled_from([None, tuple(c * k for c, k in zip(chunks, per_shard, strict=True))]))
    shape = [draw(st.integers(max(c, 3), 21)) for c in chunks]
    return tuple(shape), tuple(chunks), shards


def write(folder, shape, chunks, shards, zarr_format=3):
    values = np.arange(np.prod(shape), dtype="u2").reshape(shape)
    array = zarr.create_array(
        f"{folder}/a",
        shape=shape,
        chunks=chunks,
        shards=shards,
        dtype="u2",
        zarr_format=zarr_format,
        config={"write_empty_chunks": True},
    )
    array[...] = values
    return values


def opened(folder, shape, missing="error"):
    """Return the image, by a reader that knows nothing of its shards yet."""
    open_source.cache_clear()
    return open_image(f"{folder}/a", axes="tzyx"[-len(shape) :], missing=missing)


def boxes_of(ends):
    counts = [range(len(starts)) for starts, _ in ends]
    for at in itertools.product(*counts):
        yield Box(
            tuple(int(starts[i]) for (starts, _), i in zip(ends, at, strict=True)),
            tuple(int(stops[i]) for (_, stops), i in zip(ends, at, strict=True)),
        )


def of_voxels(calls):
    """Of what lies in chunks: metadata are asked for by name."""
    return [call for call in calls.calls if "zarr.json" not in call.key and "/.z" not in call.key]


@given(layouts(), st.data())
@settings(max_examples=30)
def test_blocks_with_a_halo_take_what_is_stated(layout, data):
    shape, chunks, shards = layout
    steps = [data.draw(st.integers(1, n)) for n in shape]
    halos = [data.draw(st.integers(0, 3)) for _ in shape]
    stride = data.draw(st.sampled_from([1, 2, 4]))
    ends = [with_halo(even_cuts(n, s), h, stride) for n, s, h in zip(shape, steps, halos, strict=True)]
    starts, stops = [a for a, _ in ends], [b for _, b in ends]
    with TemporaryDirectory() as folder:
        values = write(folder, shape, chunks, shards)
        image = opened(folder, shape)
        stated = StoredImage.of(reader_of(image)).reading(starts, stops, readers=1)
        assert stated == StoredImage.of(reader_of(image)).reading_boxes(boxes_of(ends), readers=1)
        reader = reader_of(opened(folder, shape))
        with counted_calls() as calls:
            for box in boxes_of(ends):
                assert np.array_equal(reader.read(box), values[box.slices])
    found = of_voxels(calls)
    assert len(found) == stated.gets == stated.total
    assert sum(call.n_bytes for call in found) <= stated.bytes_read


@given(layouts(), st.data())
@settings(max_examples=12)
def test_no_box_takes_more_than_it_would_anywhere(layout, data):
    shape, chunks, shards = layout
    extents = [data.draw(st.integers(1, n)) for n in shape]
    starts = [data.draw(st.integers(0, n - e)) for n, e in zip(shape, extents, strict=True)]
    box = Box(tuple(starts), tuple(a + e for a, e in zip(starts, extents, strict=True)))
    with TemporaryDirectory() as folder:
        write(folder, shape, chunks, shards)
        stored = StoredImage.of(reader_of(opened(folder, shape)))
    assert stored.reading_boxes([box]).gets <= stored.reading_anywhere(extents, 1).gets
    on_cells = Box(
        tuple(min(a // e * e, n - e) for a, e, n in zip(starts, extents, shape, strict=True)),
        tuple(min(a // e * e, n - e) + e for a, e, n in zip(starts, extents, shape, strict=True)),
    )
    assert stored.reading_boxes([on_cells]).gets <= stored.reading_of_cells(extents, 1).gets


@pytest.mark.parametrize("shards", [None, (1, 8, 8)])
def test_a_part_of_an_image_lies_elsewhere_in_its_chunks(tmp_path, shards):
    write(tmp_path, (3, 20, 20), (1, 4, 4), shards)
    part = opened(tmp_path, (3, 20, 20)).isel(z=1, y=slice(3, 17), x=slice(5, 20))
    stored = StoredImage.of(reader_of(part))
    ends = [(c[:-1], c[1:]) for c in (even_cuts(14, 6), even_cuts(15, 6))]
    stated = stored.reading([a for a, _ in ends], [b for _, b in ends], readers=1)
    open_source.cache_clear()
    reader = reader_of(opened(tmp_path, (3, 20, 20)).isel(z=1, y=slice(3, 17), x=slice(5, 20)))
    with counted_calls() as calls:
        for box in boxes_of(ends):
            reader.read(box)
    assert len(of_voxels(calls)) == stated.gets


@pytest.mark.parametrize(("shards", "kind"), [(None, "heads"), ((8, 8), "gets")])
def test_looking_for_what_is_to_be_filled(tmp_path, shards, kind):
    write(tmp_path, (20, 20), (4, 4), shards)
    image = opened(tmp_path, (20, 20), missing="fill")
    reader = reader_of(image)
    stored = StoredImage.of(reader)
    cuts = [even_cuts(20, 8), even_cuts(20, 8)]
    with counted_calls() as calls:
        for box in boxes_of([(c[:-1], c[1:]) for c in cuts]):
            reader.absent_in(box)
    stated = stored.looking_through(cuts)
    assert 0 < len(of_voxels(calls)) <= getattr(stated, kind) == stated.total
    # Reading itself does not look first.
    reader = reader_of(opened(tmp_path, (20, 20), missing="fill"))
    with counted_calls() as calls:
        reader.read(Box((0, 0), (20, 20)))
    assert len(of_voxels(calls)) == stored.reading_boxes([Box((0, 0), (20, 20))], 1).gets


def test_zarr_version_2_takes_the_same(tmp_path):
    write(tmp_path, (20, 20), (4, 5), None, zarr_format=2)
    reader = reader_of(opened(tmp_path, (20, 20)))
    box = Box((3, 3), (14, 11))
    with counted_calls() as calls:
        reader.read(box)
    assert len(of_voxels(calls)) == StoredImage.of(reader).reading_boxes([box], 1).gets == 4 * 3


def test_drawn_patches_take_no_more_than_chance_allows(tmp_path):
    # Whole cells: one that is cut at the far end has its patches all in one place, and may take more.
    write(tmp_path, (192, 192), (32, 32), (64, 64))
    image = opened(tmp_path, (192, 192))
    stored = StoredImage.of(reader_of(image))
    random = np.random.default_rng(0)
    # All of the cells whose patches cross most borders: no index can be worse.
    cells = np.array([[32, 32], [96, 32], [32, 96], [96, 96]])[random.integers(0, 4, 256)]
    starts = np.clip(cells + random.integers(-16, 17, cells.shape), 0, 160)
    boxes = [Box((int(y), int(x)), (int(y) + 32, int(x) + 32)) for y, x in starts]
    stated = stored.reading_of_draws((32, 32), 256, 1).gets
    assert stored.reading_boxes(boxes, 1).gets <= stated <= 1.5 * stored.reading_boxes(boxes, 1).gets
    assert stated < stored.reading_anywhere((32, 32), 256, 1).gets


@pytest.mark.parametrize("shards", [None, (1, 8, 12), (2, 16, 12)])
@pytest.mark.parametrize("extents", [(1, 5, 3), (1, 4, 12), (2, 1, 1), (3, 21, 15)])
@pytest.mark.parametrize("size", [24, 27])  # of which the last shards lack chunks
def test_boxes_read_chunk_by_chunk_take_no_more_than_is_stated(tmp_path, size, shards, extents):
    write(tmp_path, (3, size, size), (1, 4, 6), shards)
    image = opened(tmp_path, (3, size, size))[:, 3:, 2:]
    stored = StoredImage.of(reader_of(image))
    # All the boxes that there are, those that begin in the same chunk as one.
    chunks: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for origin in np.ndindex(*(n - e + 1 for n, e in zip(image.shape, extents, strict=True))):
        chunk = tuple(np.add(origin, (0, 3, 2)) // (1, 4, 6))
        chunks.setdefault(chunk, []).append(origin)
    boxes = [
        Box(tuple(np.min(some, axis=0)), tuple(np.max(some, axis=0) + extents)) for some in chunks.values()
    ]
    found, stated = stored.reading_boxes(boxes, 1), stored.reading_by_chunk(extents, 1)
    assert found.gets <= stated.gets
    assert found.bytes_read <= stated.bytes_read
    # Whole shards are read in one, which is not counted on.
    assert stated.gets <= (1.8 if extents[1] < 8 else 3) * found.gets
    assert shards is not None or found == stated


def test_a_plane_of_a_volume_read_chunk_by_chunk(tmp_path):
    write(tmp_path, (3, 24, 24), (1, 4, 6), (2, 8, 12))
    for z in (0, 2):  # in a whole shard, and in one that lacks its second plane
        image = opened(tmp_path, (3, 24, 24)).isel(z=z)
        stored = StoredImage.of(reader_of(image))
        boxes = [Box((y, x), (y + 4, x + 6)) for y in range(0, 24, 4) for x in range(0, 24, 6)]
        assert stored.reading_by_chunk((1, 1), 1) == stored.reading_boxes(boxes, 1)


def test_negative_control_a_halo_that_is_left_out_is_missed(tmp_path):
    write(tmp_path, (24, 24), (4, 4), None)
    reader = reader_of(opened(tmp_path, (24, 24)))
    cuts = [even_cuts(24, 8)] * 2
    ends = [with_halo(c, 2, 1) for c in cuts]
    with counted_calls() as calls:
        for box in boxes_of(ends):
            reader.read(box)
    assert len(of_voxels(calls)) > StoredImage.of(reader).reading_grid(cuts).gets


def test_an_image_in_memory_or_in_a_file_asks_no_store():
    stored = StoredImage.of(reader_of(open_in_memory()))
    assert stored.reading_boxes([Box((0, 0), (4, 4))]).total == 0
    assert stored.reading_anywhere((4, 4), 3).total == 0


def open_in_memory():
    from denoizarr.stores.images import as_image

    return as_image(np.zeros((8, 8), "u2"))
