import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import zarr
from distributed import Client, LocalCluster

from denoizarr.engine import remote_calls
from denoizarr.errors import BadRequest, ClusterLost, MissingChunk
from denoizarr.selection.index_builder import build_index
from denoizarr.stores.images import open_image
from denoizarr.training import portion_sources
from denoizarr.training.patch_stream import PatchStream


def local_cluster(workers):
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
    )


@pytest.fixture(scope="module")
def client():
    with local_cluster(2) as cluster, Client(cluster, set_as_default=False) as client:
        yield client


@pytest.fixture
def image(tmp_path):
    values = np.random.default_rng(0).integers(0, 4000, (6, 96, 130)).astype("uint16")
    path = str(tmp_path / "image.zarr")
    array = zarr.create_array(path, shape=values.shape, chunks=(1, 16, 16), dtype=values.dtype)
    array[...] = values
    return open_image(path, axes="zyx")


def stream_of(image, client=None, **options):
    index = build_index(image, options.pop("patch_size", 8))
    settings = {"batch_size": 8, "patches_per_epoch": 600, "resident_blocks": 4, "seed": 2} | options
    return PatchStream(image, index, client=client, **settings)


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for mine, its in zip(found, expected, strict=True):
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[key], its[key]) for key in its)


@pytest.mark.parametrize("patch_size", [8, (4, 8, 8)])
def test_the_cluster_gives_the_same_sequence(image, client, patch_size):
    expected = stream_of(image, patch_size=patch_size, target=image)
    stream = stream_of(image, client, patch_size=patch_size, target=image)
    for _ in range(2):
        assert_equal(list(stream), list(expected))
    mine, its = stream.statistics, expected.statistics
    assert {k: v for k, v in mine.items() if k != "seconds_waited"} == {
        k: v for k, v in its.items() if k != "seconds_waited"
    }


@pytest.mark.parametrize("dtype", [">u2", "float16", "float64", "bool"])
def test_any_dtype_arrives_as_float32(client, tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 3, (2, 40, 40)).astype(dtype)
    path = str(tmp_path / "other.zarr")
    zarr.create_array(path, shape=values.shape, chunks=(1, 20, 20), dtype=values.dtype)[...] = values
    image = open_image(path, axes="zyx")
    found = list(stream_of(image, client, patches_per_epoch=40))
    assert found[0]["patch"].dtype == torch.float32
    assert_equal(found, list(stream_of(image, patches_per_epoch=40)))


def test_resuming_at_a_batch(image, client):
    expected = list(stream_of(image))
    first, second = stream_of(image, client), stream_of(image, client)
    iterator = iter(first)
    for _ in range(13):
        next(iterator)
    iterator.close()
    second.load_state_dict(first.state_dict())
    assert_equal(list(second), expected[13:])


def test_a_slow_trainer_is_waited_for(image, client, monkeypatch):
    """No more than the window is begun, however long nothing is taken."""
    begun = []
    whole = portion_sources.ClusterSource.begin

    def begin(self, request):
        begun.append(request.first)
        return whole(self, request)

    monkeypatch.setattr(portion_sources.ClusterSource, "begin", begin)
    stream = stream_of(image, client)
    iterator = iter(stream)
    next(iterator)
    window = 3  # one for each of the two workers' threads and one in use
    assert len(begun) == window
    deadline = time.monotonic() + 60
    while client.run_on_scheduler(_processing) and time.monotonic() < deadline:
        pass
    assert len(begun) == window, "they are done, and no more was begun"
    rest = sum(1 for _ in iterator)
    assert rest == 74
    assert len(begun) > window


def _processing(dask_scheduler):
    return sum(len(w.processing) for w in dask_scheduler.workers.values())


def test_the_window_is_bounded_however_many_workers_there_are(image, client, monkeypatch):
    monkeypatch.setattr(portion_sources, "_MOST_ON_CLUSTER", 2)
    stream = stream_of(image, client)
    source = portion_sources.ClusterSource(stream._cutter, client)
    assert source.depth == 2
    source.close()
    assert_equal(list(stream), list(stream_of(image)))


def test_an_error_on_a_worker_is_raised_here(image, client, tmp_path):
    stream = stream_of(image, client)
    (tmp_path / "image.zarr" / "c" / "0" / "2" / "3").unlink()
    with pytest.raises(MissingChunk):
        list(stream)


def test_an_image_in_memory_is_refused_before_any_work(client):
    values = np.zeros((40, 40), np.uint8) + np.arange(40, dtype=np.uint8)
    with pytest.raises(BadRequest, match="save it first"):
        PatchStream(values, build_index(values, 8), client=client)


def test_it_stays_in_this_process(image, client):
    import pickle

    with pytest.raises(BadRequest, match="num_workers=0"):
        pickle.dumps(stream_of(image, client))


def test_a_killed_worker_is_made_good(image):
    expected = list(stream_of(image))
    with local_cluster(2) as cluster, Client(cluster, set_as_default=False) as client:
        stream = stream_of(image, client)
        found = []
        for item in stream:
            found.append(item)
            if len(found) in (3, 40):
                os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        assert_equal(found, expected)


def test_a_cluster_without_workers_ends_in_an_error(image, monkeypatch):
    monkeypatch.setattr(remote_calls, "_ASK_SECONDS", 0.2)
    monkeypatch.setattr(remote_calls, "patience_seconds", lambda: 0.5)
    with (
        local_cluster(0) as cluster,
        Client(cluster, set_as_default=False) as client,
        pytest.raises(ClusterLost, match="no workers"),
    ):
        list(stream_of(image, client))


def test_a_scheduler_that_goes_away_ends_in_an_error(image, monkeypatch):
    monkeypatch.setattr(remote_calls, "_ASK_SECONDS", 0.2)
    cluster = local_cluster(1)
    client = Client(cluster, set_as_default=False, timeout="2s")
    try:
        stream = stream_of(image, client)
        iterator = iter(stream)
        next(iterator)
        cluster.close()
        with pytest.raises(ClusterLost):
            list(iterator)
    finally:
        client.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("patch-stream")]


_RAISES = """
import sys
from distributed import Client, LocalCluster
from denoizarr import PatchStream, build_index, open_image

def main():
    cluster = LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    )
    client = Client(cluster, set_as_default=False)
    image = open_image(sys.argv[1], axes="zyx")
    stream = PatchStream(
        image, build_index(image, 8), batch_size=8, patches_per_epoch=600, client=client, num_epochs=2
    )
    globals().update(kept=(cluster, client, stream))  # as a notebook keeps them
    for _ in stream:
        if stream._ahead is not None:
            raise KeyError("the consumer's own error")

if __name__ == "__main__":
    main()
"""


def test_a_program_that_raises_while_reading_ahead_ends(image, tmp_path):
    """At the interpreter's end nobody is told any more that a call has ended."""
    program = tmp_path / "program.py"
    program.write_text(_RAISES)
    done = subprocess.run(
        [sys.executable, str(program), str(image.attrs["url"])],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "the consumer's own error" in done.stderr
