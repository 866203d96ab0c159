"""Peaks of predictions, each counted anew in one process on one core; run by ``test_memory.py``."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from denoizarr.images.save import save_image
from denoizarr.inference.memory_model import BASE_BYTES
from denoizarr.inference.predict import predict
from denoizarr.inference.prediction import plan_prediction
from denoizarr.kernels.unet import NetworkShape, build_network
from denoizarr.stores.images import open_image
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.normalisation import Normalisation

# Axes of the network, features, shape, chunks of the input, shards of the output, tile.
CASES: dict[str, tuple[Any, ...]] = {
    "a tile": (2, 32, (512, 512), (128, 128), (512, 512), (512, 512)),
    "a tile of a volume": (3, 16, (64, 64, 64), (32, 32, 32), (64, 64, 64), (64, 64, 64)),
    # What the tiles need is little beside what is read and written.
    "blocks": (2, 1, (32, 560, 560), (32, 128, 128), (32, 512, 512), (128, 128)),
}


def status(name: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024


def measured(case: str, dtype: str) -> dict[str, Any]:
    ndim, features, shape, chunks, shards, tile = CASES[case]
    network = NetworkShape(ndim=ndim, features=features, depth=1)
    about = Normalisation((120.0,), (20.0,))
    model = Denoiser(network, build_network(network, seed=0).state_dict(), about)
    with tempfile.TemporaryDirectory() as folder:
        values = np.random.default_rng(0).normal(120, 20, shape).clip(0, 250).astype(dtype)
        save_image(values, f"{folder}/in", chunks=chunks, levels=1)
        del values
        model.run_tile(np.zeros((16,) * ndim))
        how: dict[str, Any] = {"levels": 1, "chunks": chunks, "shards": shards, "tile_shape": tile}
        planned = plan_prediction(model, open_image(f"{folder}/in"), f"{folder}/out", **how)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        predict(model, f"{folder}/in", f"{folder}/out", progress=False, **how)
        beyond = status("VmHWM") - before
    projected = planned.bytes_per_worker - BASE_BYTES
    return {"case": case, "dtype": dtype, "base": before, "beyond": beyond, "projected": projected}


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found = [measured(case, dtype) for case, dtype in json.loads(sys.argv[1])]
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
