"""Peak memory of inference does not grow with the image.

    python benchmarks/memory.py [--gigabytes 1 64] [--blocks 20] [--workers 2]

A virtual image of N gigabytes is an OME-Zarr on disk whose every shard is a hard link to one real shard of
noise, so that it reads like a full one. The first and the last blocks of it are denoised with the standard
network on a local Dask cluster, exactly as ``predict`` does them, and each worker reports the largest
resident memory that it has had.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from denoizarr.engine.cluster import ClusterSettings, open_client
from denoizarr.engine.runner import Step, run_step
from denoizarr.images.layout import create_array, plan_layout
from denoizarr.images.output import begin_output, open_level
from denoizarr.inference.block import PredictionSpec, denoise_block
from denoizarr.inference.prediction import parse_bytes, plan_prediction
from denoizarr.kernels.unet import NetworkShape, build_network
from denoizarr.stores import locations
from denoizarr.stores.images import open_image
from denoizarr.stores.ome_zarr import STATE, ome_attributes
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.normalisation import Normalisation

SIDE = 2048


@dataclass(frozen=True)
class Ends:
    """The first and last blocks of a prediction."""

    spec: PredictionSpec
    n_blocks: int
    each: int


def ends(spec: Ends, number: int) -> dict[str, Any]:
    block = number if number < spec.each else spec.n_blocks - 2 * spec.each + number
    return denoise_block(spec.spec, block)


def virtual_image(url: str, gigabytes: float) -> None:
    planes = max(int(gigabytes * 1e9 / (SIDE * SIDE * 2)), 40)
    layout = plan_layout(
        url, dims=("z", "y", "x"), shape=(planes, SIDE, SIDE), dtype=np.dtype("uint16"), scale=(1, 1, 1),
        translation=(0, 0, 0), units=(None, None, None), levels=1,
    )  # fmt: skip
    group = locations.open_group(url, "a")
    group.update_attributes({**ome_attributes(layout.ome), STATE: "complete"})
    create_array(group, layout, layout.levels[0])
    noise = np.random.default_rng(0).poisson(400, (1, SIDE, SIDE)).astype(np.uint16)
    array: zarr.Array[Any] = open_level(layout, layout.levels[0])
    array[:1] = noise
    first = Path(url) / "0" / "c" / "0" / "0" / "0"
    for plane in range(1, planes):
        target = Path(url) / "0" / "c" / str(plane) / "0" / "0"
        target.parent.mkdir(parents=True)
        os.link(first, target)


def measure(folder: Path, gigabytes: float, blocks: int, workers: int, limit: str) -> tuple[int, int, float]:
    source, destination = str(folder / f"{gigabytes}.ome.zarr"), str(folder / f"{gigabytes}-out.ome.zarr")
    virtual_image(source, gigabytes)
    shape = NetworkShape(features=32, depth=2)
    model = Denoiser(shape, build_network(shape).state_dict(), Normalisation((400.0,), (20.0,)))
    planned = plan_prediction(model, open_image(source), destination, memory_limit=limit, levels=1)
    begin_output(planned.layout, {"bench": gigabytes})
    model_url = model.save(str(folder / f"{gigabytes}.safetensors"))
    spec = PredictionSpec(
        planned.reader, model_url, model.digest, planned.layout, planned.tile_shape, 1, "cpu"
    )
    step = Step("ends", ends, Ends(spec, planned.blocks, blocks), 2 * blocks, 1)
    with open_client(ClusterSettings(workers=workers, memory_limit_bytes=parse_bytes(limit))) as client:
        records = run_step(step, client=client, label=f"{gigabytes} GB")
    shutil.rmtree(destination)
    return planned.bytes_per_worker, max(r["peak_bytes"] for r in records), sum(r["seconds"] for r in records)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1, 64])
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory-limit", default="2GiB")
    arguments = parser.parse_args()
    print("| image, GB | planned per worker, MiB | measured peak, MiB | limit, MiB | worker seconds |")
    print("|---|---|---|---|---|")
    for gigabytes in arguments.gigabytes:
        with tempfile.TemporaryDirectory() as folder:
            planned, peak, seconds = measure(
                Path(folder), gigabytes, arguments.blocks, arguments.workers, arguments.memory_limit
            )
        limit = parse_bytes(arguments.memory_limit)
        mebibytes = " | ".join(f"{n / 2**20:.0f}" for n in (planned, peak, limit))
        print(f"| {gigabytes:g} | {mebibytes} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
