"""A cluster whose parts have other versions is refused, by the name of what differs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from distributed import Client

from denoizarr.engine.cluster import ClusterSettings, open_client
from denoizarr.engine.cluster_versions import difference
from denoizarr.errors import BadRequest
from tests.dask_processes import scheduler, worker

SAME = {
    "python": "3.11.7.final.0",
    "dask": "2026.8.0",
    "distributed": "2026.8.0",
    "denoizarr": "0.1",
    "numpy": "2.4.6",
    "zarr": "3.1.6",
    "torch": "2.13.0+cpu",
}


@pytest.mark.parametrize(
    ("client", "at_scheduler", "at_workers"),
    [
        ({}, {}, ({}, {})),
        ({}, {}, ()),
        ({"python": "3.11.2.final.0"}, {}, ({},)),
        ({}, {"torch": "2.13.0+cu130"}, ({"torch": "2.13.0+cu126"}, {"torch": "2.13.0+cu126"})),
    ],
)
def test_what_does_not_matter_is_let_pass(client, at_scheduler, at_workers) -> None:
    workers = {f"tcp://w{n}:1": SAME | change for n, change in enumerate(at_workers)}
    assert difference(SAME | client, SAME | at_scheduler, workers) is None


@pytest.mark.parametrize(
    ("client", "at_scheduler", "at_workers", "says"),
    [
        ({"python": "3.12.2.final.0"}, {}, ({},), "python 3.12.2.final.0 in this process, 3.11.7"),
        ({}, {"dask": "2026.3.0"}, ({},), "dask 2026.8.0 in this process, 2026.3.0 in the scheduler"),
        ({}, {"denoizarr": None}, ({},), "denoizarr 0.1 in this process, none in the scheduler"),
        ({}, {}, ({}, {"numpy": "2.4.5"}, {"numpy": "2.4.5"}), "2.4.5 in worker tcp://w1:1"),
        ({}, {}, ({}, {"torch": "2.13.0+cu126"}), "2.13.0+cpu in worker tcp://w0:1, 2.13.0+cu126 in worker"),
    ],
)  # fmt: skip
def test_what_matters_is_named_with_what_each_has(client, at_scheduler, at_workers, says) -> None:
    workers = {f"tcp://w{n}:1": SAME | change for n, change in enumerate(at_workers)}
    problem = difference(SAME | client, SAME | at_scheduler, workers)
    assert problem is not None
    assert says in problem
    assert problem.count("worker ") <= 2, "of many workers, one with each version"


def test_a_worker_with_another_numpy_is_refused_at_the_start(tmp_path: Path) -> None:
    # An installation that says another version, as a real one would: by its metadata.
    other = tmp_path / "other/numpy-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n")
    path = os.pathsep.join([str(other.parent), os.environ.get("PYTHONPATH", "")])
    with scheduler(tmp_path) as address, worker(tmp_path, address, name="same"):
        settings = ClusterSettings("address", address=address)
        with Client(address, set_as_default=False) as probe:
            probe.wait_for_workers(1, timeout=60)
            with open_client(settings) as client:
                assert len(client.nthreads()) == 1, "with the same versions it is taken"
            with worker(tmp_path, address, name="other", environment={"PYTHONPATH": path}):
                probe.wait_for_workers(2, timeout=60)
                says = "versions that must be the same differ at cluster: got numpy .* 0.0.1 in worker tcp://"
                with pytest.raises(BadRequest, match=says), open_client(settings):
                    pass
