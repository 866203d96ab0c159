"""Whether the simulator says what real runs take: blocks that sleep, on 1 to 16 real workers.

A block sleeps for as long as its batch is said to compute, so that two cores do for sixteen workers. What the
driver costs a batch is measured first, over batches that do nothing; that, the sleeps and the number of
workers is all that the simulator is told. Workers are processes, forked before anything else is loaded; the
scheduler is in the process that is measured.

*even*: batches of one length. *random*: of a logarithmic normal one. *few*: two and a half for each worker,
where the last ones decide. *store*: a part of each batch holds a lock that all workers share, as bytes do
that pass a store one after another. *slow driver*: each batch costs the driver 25 ms more.

*real network*: the standard network over 8 planes of 1024 x 1024 on one worker process and on two, without
the start of the cluster: what a second core is worth.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import Group, Row, Side

OPTIONS = {
    "workers": [1, 2, 4, 8, 16],
    "seconds": 0.3,
    "batches_per_worker": 12,
    "calibration_batches": 600,
    "runs": 2,
    "planes": 8,
}
# Batches for each worker, standard deviation of a batch's seconds over their mean, seconds at the shared
# lock, and seconds of the driver besides its own.
KINDS = {
    "even": (1.0, 0.0, 0.0, 0.0),
    "random": (1.0, 0.5, 0.0, 0.0),
    "few": (2.5 / 12, 0.25, 0.0, 0.0),
    "store": (1.0, 0.0, 0.04, 0.0),
    "slow driver": (1.0, 0.0, 0.0, 0.025),
}


def groups(options: dict[str, Any], folder: Path) -> list[Group]:
    found = []
    for kind, (share, spread, at_lock, of_driver) in KINDS.items():
        sides, rows = [], []
        for workers in options["workers"]:
            settings = {
                "workers": workers,
                "batches": max(round(options["batches_per_worker"] * share * workers), 2),
                "seconds": options["seconds"],
                "spread": spread,
                "at_lock": at_lock,
                "of_driver": of_driver,
                "runs": options["runs"],
                "calibration": options["calibration_batches"],
                "folder": str(folder / "run"),
            }
            side = Side(
                f"{workers} worker{'s' if workers > 1 else ''}",
                "real_run",
                settings,
                warm_up=False,
                min_seconds=0,
            )
            sides.append(side)
            rows.append(
                Row(f"{side.name}: simulated over real time", side.name, quantity="simulated_over_real")
            )
            rows.append(Row(f"{side.name}: off by", side.name, quantity="off", goal=("<=", 0.15)))
        largest = sides[-1].name
        rows.append(Row(f"{largest}: efficiency of the real run", largest, quantity="efficiency"))
        rows.append(Row("driver, ms of CPU a batch", largest, quantity="driver_ms"))
        found.append(Group(kind, sides, rows))
    sides = [
        Side(
            f"{workers} of the network",
            "real_network",
            {"workers": workers, "planes": options["planes"], "folder": str(folder / f"network-{workers}")},
            warm_up=False,
            min_seconds=0,
        )
        for workers in (1, 2)
    ]
    one, two = (side.name for side in sides)
    row = Row("two workers, times the speed of one", two, one, quantity="wall_seconds", faster=True)
    return [*found, Group("real network", sides, [row])]


def sleep(spec: tuple[list[float], float, str], block: int) -> dict[str, str]:
    """Do as if something were computed, and brought to a store that takes one at a time."""
    import fcntl

    seconds, at_lock, lock = spec
    time.sleep(seconds[block])
    if at_lock:
        with Path(lock).open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            time.sleep(at_lock)
    return {"checksum": f"{block:016x}"}


def real_run(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    from distributed import Client, LocalCluster, Worker  # before the forks, and it starts no thread

    # Named as the workers will look for it.
    from areas import scaling

    paths = [_fork(Worker) for _ in range(settings["workers"])]
    folder = Path(settings["folder"])

    def work() -> dict[str, Any]:
        import dask

        from denoizarr.engine.cluster import SETTINGS
        from denoizarr.engine.simulation import BatchCosts, lengths_of, project

        shutil.rmtree(folder, ignore_errors=True)
        n, workers = settings["batches"], settings["workers"]
        costs = BatchCosts(
            settings["seconds"],
            write_bytes=settings["at_lock"],  # of a store of one byte a second
            store_bytes_per_second=1.0,
            spread=settings["spread"],
        )
        lengths = lengths_of(costs, n, seed=0)
        with (
            dask.config.set(SETTINGS),
            LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
            Client(cluster, set_as_default=False) as client,
            _told(paths, client.scheduler.address),
        ):
            client.wait_for_workers(workers, timeout=60)
            step = _Steps(folder, client, scaling.sleep)
            step.run("warm", [0.0] * 4 * workers, 0.0, 0.0)
            cpu = time.process_time()
            step.run("calibration", [0.0] * settings["calibration"], 0.0, 0.0)
            driver = (time.process_time() - cpu) / settings["calibration"]
            # What else goes on makes a run longer, never shorter.
            real = min(
                step.run(f"measured-{number}", lengths, settings["at_lock"], settings["of_driver"])
                for number in range(settings["runs"])
            )
        told = replace(costs, driver_seconds=driver + settings["of_driver"])
        simulated = project(told, n, workers).seconds
        return {
            "units": n,
            "real_seconds": real,
            "simulated_seconds": simulated,
            "simulated_over_real": simulated / real,
            "off": abs(simulated / real - 1),
            "efficiency": sum(lengths) / (workers * real),
            "driver_ms": 1000 * driver,
        }

    return work


class _Steps:
    """Runs steps on a cluster."""

    def __init__(self, folder: Path, client: Any, task: Any) -> None:
        self._folder, self._client, self._task = folder, client, task

    def run(self, name: str, lengths: list[float], at_lock: float, of_driver: float) -> float:
        """Return the seconds of a step whose batches, of one block each, sleep so long."""
        from denoizarr.engine.ledger import Ledger
        from denoizarr.engine.runner import Step, run_step

        self._folder.mkdir(parents=True, exist_ok=True)
        ledger = Ledger.claim(str(self._folder / name), {"kind": name})
        spec = (lengths, at_lock, str(self._folder / "lock"))
        step = Step(name, self._task, spec, len(lengths), 1)
        sink = (lambda _: time.sleep(of_driver)) if of_driver else None
        began = time.perf_counter()
        run_step(step, ledger=ledger, client=self._client, progress=False, sink=sink)
        return time.perf_counter() - began


def _fork(worker: Any) -> int:
    """Return the pipe to a process that waits for a scheduler's address, and works for it then."""
    import asyncio

    reader, writer = os.pipe()
    if os.fork():
        os.close(reader)
        return writer

    async def serve(address: str) -> None:
        async with worker(address, nthreads=1, host="127.0.0.1", memory_limit=0) as found:
            await found.finished()

    try:
        os.close(writer)
        if address := os.read(reader, 1000).decode():
            asyncio.run(serve(address))
    finally:
        os._exit(0)


@contextmanager
def _told(pipes: list[int], address: str) -> Iterator[None]:
    """Tell the processes for whom to work; they end when the scheduler does."""
    for pipe in pipes:
        os.write(pipe, address.encode())
        os.close(pipe)
    yield


def real_network(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import atexit
    from contextlib import ExitStack

    import numpy as np
    import torch

    from denoizarr.engine.cluster import ClusterSettings, open_client
    from denoizarr.images.save import save_image
    from denoizarr.inference.predict import predict
    from denoizarr.kernels.unet import NetworkShape, build_network
    from denoizarr.training.denoiser import Denoiser
    from denoizarr.training.normalisation import Normalisation

    torch.manual_seed(0)
    shape = NetworkShape(features=32, depth=2)
    denoiser = Denoiser(shape, build_network(shape).state_dict(), Normalisation((100.0,), (10.0,)))
    folder = Path(settings["folder"])
    shutil.rmtree(folder, ignore_errors=True)
    planes = np.random.default_rng(0).poisson(100, (settings["planes"], 1024, 1024)).astype(np.uint16)
    save_image(planes, folder / "in.ome.zarr", levels=1, chunks=(1, 512, 512))
    save_image(planes[:, :64, :64], folder / "small.ome.zarr", levels=1, chunks=(1, 64, 64))
    cluster = ExitStack()
    atexit.register(cluster.close)
    client = cluster.enter_context(open_client(ClusterSettings(workers=settings["workers"])))
    options: dict[str, Any] = {"client": client, "progress": False, "levels": 1}
    # What a worker loads at first is not the network's.
    for number in range(settings["workers"]):
        predict(denoiser, folder / "small.ome.zarr", folder / f"small-{number}", **options)

    def work() -> dict[str, Any]:
        predict(denoiser, folder / "in.ome.zarr", folder / "out", shards=(1, 512, 1024), **options)
        return {"units": planes.size}

    return work
