"""P2 of the design: the bytes of an output do not tell who made it, how many they were, in which order."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster

from denoizarr.engine.cluster import SETTINGS
from denoizarr.inference import predict as inference

from .jobs import tree_hash
from .predictions import BATCH_VOXELS, BLOCKS, BLOCKS_PER_BATCH, Case

WORKERS = Path(__file__).with_name("forked_workers.py")
# Where five workers die, one each: with nothing done, in the middle of a batch, with all of it done.
DEATHS = ("read", "computed:2", "written:2", "read-back:3", "recorded")
N_BATCHES = 9


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "PREDICTION_BATCH_VOXELS", BATCH_VOXELS)


@contextmanager
def cluster_of(*, processes: bool, **size: int) -> Iterator[Client]:
    """Yield a client of a scheduler in this process, and of so many workers in it."""
    with (
        dask.config.set(SETTINGS),
        LocalCluster(
            processes=processes,
            protocol="tcp://",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            **size,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def worker_processes(client: Client, deaths: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """Yield the program that keeps workers; they end with the block."""
    assert client.scheduler is not None
    command = [sys.executable, str(WORKERS), client.scheduler.address, "127.0.0.1", *deaths]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        try:
            yield program
        finally:
            if program.returncode is None:
                program.communicate(timeout=60)


def tell(program: subprocess.Popen[str], workers: int) -> None:
    assert program.stdin is not None
    program.stdin.write(f"{workers}\n")
    program.stdin.flush()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(inference, "usable_cores", lambda: threads)
    case.predict(tmp_path / "out")
    assert tree_hash(tmp_path / "out") == case.expected


def test_threads_of_a_cluster(case: Case, tmp_path: Path) -> None:
    with cluster_of(processes=False, n_workers=2, threads_per_worker=2) as client:
        case.predict(tmp_path / "out", client=client)
    assert tree_hash(tmp_path / "out") == case.expected


def test_worker_processes(case: Case, tmp_path: Path) -> None:
    with cluster_of(processes=True, n_workers=0) as client, worker_processes(client) as program:
        for workers in (1, 2, 4):
            tell(program, workers)
            client.wait_for_workers(workers, timeout=60)
            case.predict(tmp_path / f"{workers}", client=client)
            assert tree_hash(tmp_path / f"{workers}") == case.expected, workers


def test_five_workers_killed_in_one_run(case: Case, tmp_path: Path) -> None:
    with cluster_of(processes=True, n_workers=0) as client, worker_processes(client, DEATHS) as program:
        tell(program, 2)
        client.wait_for_workers(2, timeout=60)
        summary = case.predict(tmp_path / "out", client=client)
        died, _ = program.communicate(timeout=60)
    assert int(died) == len(DEATHS)
    assert summary.blocks_done == BLOCKS
    assert tree_hash(tmp_path / "out") == case.expected


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
@pytest.mark.parametrize("blocks_per_batch", [1, BLOCKS_PER_BATCH])
def test_any_order_of_blocks(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str, blocks_per_batch: int
) -> None:
    monkeypatch.setattr(
        inference, "PREDICTION_BATCH_VOXELS", BATCH_VOXELS // BLOCKS_PER_BATCH * blocks_per_batch
    )
    batches = N_BATCHES * BLOCKS_PER_BATCH // blocks_per_batch
    numbers = list(range(batches, 0, -1))
    if order == "shuffled":
        numbers = (np.random.default_rng(3).permutation(batches) + 1).tolist()
    recorded: list[Any] = []
    for number in numbers:
        case.predict(tmp_path / "out", share=(number, batches))
        folder = tmp_path / "out.ledger" / "level-0"
        recorded.append(sorted(int(path.stem) for path in folder.glob("0*.json")))
    assert recorded == [sorted(n - 1 for n in numbers[: k + 1]) for k in range(batches)]
    summary = case.predict(tmp_path / "out")
    assert summary.blocks_skipped == N_BATCHES * BLOCKS_PER_BATCH
    assert tree_hash(tmp_path / "out") == case.expected
