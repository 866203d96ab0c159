"""A scheduler and a client in one process: predicts with workers that come from elsewhere.

    python driver_program.py HOST WORKERS BATCH_VOXELS ARGUMENTS

Prints the scheduler's address, begins once so many workers are there, and prints at the end how many are left
and how long they were waited for. ARGUMENTS are those of ``predict``, as JSON.
"""

from __future__ import annotations

import json
import sys

import dask
from distributed import Client, LocalCluster

from denoizarr.engine.cluster import SETTINGS
from denoizarr.inference import predict as inference


def main() -> None:
    host, workers, batch_voxels, arguments = sys.argv[1:]
    inference.PREDICTION_BATCH_VOXELS = int(batch_voxels)
    with (
        dask.config.set(SETTINGS),
        LocalCluster(n_workers=0, host=host, dashboard_address=f"{host}:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        print(client.scheduler.address, flush=True)  # noqa: T201
        client.wait_for_workers(int(workers), timeout=60)
        summary = inference.predict(client=client, progress=False, **json.loads(arguments))
        print(json.dumps({"blocks": summary.blocks_done, "workers": len(client.nthreads())}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
