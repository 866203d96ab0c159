"""Images in a bucket: the same voxels as on a disk, in few requests, and never a fill value instead."""

from __future__ import annotations

import http.server
import os
import threading
from collections import Counter
from functools import partial

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import denoizarr
from denoizarr.errors import (
    BadRequest,
    CorruptChunk,
    ImageNotFound,
    MissingChunk,
    OutputExists,
    StoreUnavailable,
    UnsupportedStore,
)
from denoizarr.geometry.boxes import Box
from denoizarr.selection.filters import MeanStdPatchFilter
from denoizarr.selection.on_disk import write_filter_map
from denoizarr.stores import locations, store_options
from denoizarr.stores.images import reader_of
from denoizarr.stores.shard_reads import ShardReads
from denoizarr.stores.sources import open_array
from denoizarr.stores.store_options import StoreOptions
from tests.servers.faults import Weather

SHAPE = (5, 60, 70)
VALUES = np.random.default_rng(0).integers(1, 4000, SHAPE).astype(np.uint16)
LAYOUTS = {
    "chunks": {"chunks": (1, 16, 32)},
    "shards": {"chunks": (1, 16, 16), "shards": (2, 32, 64)},
    "0.4": {"chunks": (1, 16, 32), "ome_version": "0.4"},
}


@pytest.fixture(params=LAYOUTS)
def stored(request, root):
    url = f"{root}/folder/{request.param}.ome.zarr"
    denoizarr.save_image(VALUES, url, levels=2, **LAYOUTS[request.param])
    return url


def test_what_was_saved_is_read_back(stored, tmp_path, bucket):
    image = denoizarr.open_image(stored)
    np.testing.assert_array_equal(image.values, VALUES)
    np.testing.assert_array_equal(image.isel(z=2, y=slice(3, 50)).values, VALUES[2, 3:50])
    assert image.attrs["url"] == stored
    assert denoizarr.info(stored)["levels"][0]["missing_chunks"] == 0
    assert denoizarr.verify(stored).ok
    # Byte for byte what a disk would hold.
    local = tmp_path / "same.ome.zarr"
    layout = LAYOUTS[stored.rpartition("/")[2].removesuffix(".ome.zarr")]
    denoizarr.save_image(VALUES, local, levels=2, **layout)
    there = {
        path.relative_to(local).as_posix(): path.read_bytes() for path in local.rglob("*") if path.is_file()
    }
    prefix = stored.removeprefix(bucket.url + "/") + "/"
    assert {key.removeprefix(prefix): data for key, data in bucket.contents(prefix).items()} == there


def test_an_output_is_not_overwritten_unasked(stored, fault_proxy):
    # Not even where a listing leaves out that it is there.
    fault_proxy.weather = Weather({"list_drops": 1.0})
    locations.delete_prefix(stored + ".ledger/job.json")
    with pytest.raises(OutputExists):
        denoizarr.save_image(VALUES + 1, stored)
    fault_proxy.calm()
    np.testing.assert_array_equal(denoizarr.open_image(stored).values, VALUES)
    denoizarr.save_image(VALUES + 1, stored, overwrite=True)
    np.testing.assert_array_equal(denoizarr.open_image(stored).values, VALUES + 1)


def test_a_missing_chunk_is_an_error(stored, bucket):
    prefix = stored.removeprefix(bucket.url + "/") + "/0/"
    gone = next(key for key in reversed(bucket.keys(prefix)) if "zarr" not in key.rpartition("/")[2])
    bucket.delete(gone)
    with pytest.raises(MissingChunk, match=gone.rpartition("/")[2]):
        denoizarr.open_image(stored).values  # noqa: B018
    filled = denoizarr.open_image(stored, missing="fill").values
    assert (filled == 0).any()
    assert ((filled == 0) | (filled == VALUES)).all()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_box_of_a_sharded_image(root, fault_proxy, data):
    url = f"{root}/property.ome.zarr"
    if not locations.exists(url):
        denoizarr.save_image(VALUES, url, levels=1, **LAYOUTS["shards"])
    reader = reader_of(denoizarr.open_image(url))
    start = [data.draw(st.integers(0, n - 1)) for n in SHAPE]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, SHAPE, strict=True)]
    box = Box(tuple(start), tuple(stop))
    np.testing.assert_array_equal(reader.read(box), VALUES[box.slices])


def test_large_shards_are_read_in_ranges_side_by_side(root, fault_proxy, monkeypatch):
    """The control: zarr itself asks for one inner chunk after another."""
    from denoizarr.stores import shard_reads

    monkeypatch.setattr(shard_reads, "_GAP_BYTES", 0)
    values = np.random.default_rng(1).integers(0, 60000, (4, 256, 256)).astype(np.uint16)
    url = f"{root}/large.ome.zarr"
    denoizarr.save_image(values, url, levels=1, chunks=(1, 32, 32), shards=(4, 256, 256))
    array = open_array(url, "0")
    assert ShardReads.suit(array)
    fault_proxy.weather = Weather(latency_seconds=0.02)
    box = Box((0, 0, 0), (4, 200, 40))
    fault_proxy.log.clear()
    np.testing.assert_array_equal(ShardReads(array, 32).read(box), values[box.slices])
    assert fault_proxy.log.peak_in_flight > 4
    ours = fault_proxy.log.count("GET")
    fault_proxy.log.clear()
    np.testing.assert_array_equal(array[box.slices], values[box.slices])
    assert fault_proxy.log.peak_in_flight == 1
    assert ours <= fault_proxy.log.count("GET")


def test_gaps_in_a_shard(root):
    store = locations.zarr_store(f"{root}/gaps.zarr", create=True)
    array = zarr.create_array(store, shape=(4, 64, 64), dtype="u2", chunks=(1, 16, 16), shards=(4, 64, 64))
    array[1, :16, :16] = 7
    reader = reader_of(denoizarr.open_image(f"{root}/gaps.zarr", axes="zyx"))
    assert (reader.read(Box((1, 0, 0), (2, 16, 16))) == 7).all()
    with pytest.raises(MissingChunk, match="#0,0,0"):
        reader.read(Box((0, 0, 0), (2, 16, 16)))
    filled = denoizarr.open_image(f"{root}/gaps.zarr", axes="zyx", missing="fill").values
    assert filled.sum() == 7 * 256


@pytest.mark.parametrize("whole", [True, False])
def test_a_damaged_shard_is_named(root, bucket, whole, monkeypatch):
    from denoizarr.stores import shard_reads

    monkeypatch.setattr(shard_reads, "_GAP_BYTES", 0)
    url = f"{root}/a.ome.zarr"
    denoizarr.save_image(VALUES, url, levels=1, **LAYOUTS["shards"])
    key = "a.ome.zarr/0/c/0/0/0"
    good = bucket.get(key)
    part = Box((0, 0, 0), (2, 32, 64)) if whole else Box((0, 0, 0), (1, 16, 16))
    for bad in (good[:-1] + bytes([good[-1] ^ 1]), good[:10], good[:40] + bytes([good[40] ^ 8]) + good[41:]):
        bucket.put(key, bad)
        with pytest.raises(CorruptChunk):
            reader_of(denoizarr.open_image(url)).read(part)
    bucket.put(key, good)
    np.testing.assert_array_equal(reader_of(denoizarr.open_image(url)).read(part), VALUES[part.slices])


def test_reading_through_faults_invents_nothing(stored, fault_proxy):
    faults = Counter()
    for seed in range(5):
        fault_proxy.restart(
            seed,
            Weather.mixed(0.3, "slow_down", "reset", "cut", "short_range", "lost_request", "lost_response"),
        )
        np.testing.assert_array_equal(denoizarr.open_image(stored).values, VALUES)
        faults += fault_proxy.log.faults()
    assert len(faults) > 1


def test_a_store_that_is_away_is_no_missing_chunk(stored, fault_proxy):
    image = denoizarr.open_image(stored)
    store_options.use(None, StoreOptions(tries=2, first_wait_seconds=0.001))
    fault_proxy.plan("slow_down", times=None)
    with pytest.raises(StoreUnavailable):
        denoizarr.open_image(stored)
    with pytest.raises(StoreUnavailable):
        image.values  # noqa: B018


def test_options_of_one_image(root, fault_proxy, bucket, monkeypatch):
    denoizarr.save_image(VALUES, f"{root}/a.ome.zarr", levels=1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    image = denoizarr.open_image(f"{root}/a.ome.zarr", storage_options={"endpoint": fault_proxy.endpoint})
    np.testing.assert_array_equal(image.values, VALUES)
    with pytest.raises(BadRequest, match="secret is not an option"):
        denoizarr.open_image(f"{root}/a.ome.zarr", storage_options={"secret": "x"})


def test_several_images_by_a_pattern(root):
    from denoizarr.stores.images import as_images

    for name in ("b", "a", "c"):
        denoizarr.save_image(VALUES[:1], f"{root}/many/{name}1.ome.zarr", levels=1)
    found = as_images(f"{root}/many/[ab]*.ome.zarr")
    assert [image.attrs["url"] for image in found] == [f"{root}/many/{n}1.ome.zarr" for n in "ab"]
    with pytest.raises(ImageNotFound, match="no image matches"):
        as_images(f"{root}/many/z*.ome.zarr")


def test_overlapping_places_are_refused(root):
    denoizarr.save_image(VALUES[:1], f"{root}/a.ome.zarr", levels=1)
    with pytest.raises(BadRequest, match="overlaps the input"):
        denoizarr.save_image(denoizarr.open_image(f"{root}/a.ome.zarr"), f"{root}/a.ome.zarr/b.ome.zarr")


@pytest.fixture
def web(tmp_path):
    """The address at which a web server has the test's folder."""
    handler = partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_an_image_on_a_web_server(web, tmp_path):
    denoizarr.save_image(VALUES, tmp_path / "a.ome.zarr", levels=1, **LAYOUTS["shards"])
    np.testing.assert_array_equal(denoizarr.open_image(f"{web}/a.ome.zarr").values, VALUES)
    level = denoizarr.info(f"{web}/a.ome.zarr")["levels"][0]
    assert level["shape"] == list(VALUES.shape)
    assert level["stored_bytes"] is level["missing_chunks"] is None, "a web server lists nothing"
    with pytest.raises(ImageNotFound):
        denoizarr.open_image(f"{web}/b.ome.zarr")
    with pytest.raises(UnsupportedStore, match="read only"):
        denoizarr.save_image(VALUES, f"{web}/c.ome.zarr")


def test_a_filter_map_of_an_image_on_a_web_server_is_measured_anew_when_that_was_replaced(web, tmp_path):
    """A web server lists nothing: metadata and its time tell one image from another."""
    image = tmp_path / "a.ome.zarr"
    denoizarr.save_image(VALUES, image, levels=1)

    def mean_of_the_map():
        write_filter_map(
            f"{web}/a.ome.zarr", tmp_path / "map.zarr", (20, 35), MeanStdPatchFilter(), progress=False
        )
        return float(denoizarr.open_filter_map(tmp_path / "map.zarr").sel(statistic="mean").mean())

    before = mean_of_the_map()
    denoizarr.save_image(2 * VALUES, image, levels=1, overwrite=True)
    os.utime(image / "0" / "zarr.json", (1e9, 1e9))  # another second than before, however quick this machine
    assert mean_of_the_map() == 2 * before


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Python's own server, which knows no ranges: what it sends is more than was asked for."""

    def log_message(self, *_: object) -> None:
        pass
