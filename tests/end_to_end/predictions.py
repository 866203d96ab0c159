"""A small network over a small image of many blocks: what all tests of kills and of many workers predict."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from denoizarr.engine.summary import RunSummary
from denoizarr.images.save import save_image
from denoizarr.inference import predict as inference
from denoizarr.kernels.unet import NetworkShape, build_network
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.normalisation import Normalisation

from .jobs import tree_hash

PROGRAM = Path(__file__).with_name("killed_predictions.py")
# Levels of 3 x 70 x 100, 2 x 35 x 50 and 1 x 18 x 25 voxels, in blocks of 1 x 32 x 64: 18, 4 and 1 of them.
SHAPE, CHUNKS, SHARDS, LEVELS = (3, 70, 100), (1, 16, 32), (1, 32, 64), 3
BLOCKS, BLOCKS_PER_BATCH, THREADS, GROUP = 18 + 4 + 1, 2, 2, 4
BATCH_VOXELS = BLOCKS_PER_BATCH * int(np.prod(SHARDS))
# Of the finest level two threads have a batch each; the next one is a single batch.
IN_FLIGHT = 4
OPTIONS: dict[str, Any] = {"chunks": CHUNKS, "shards": SHARDS, "levels": LEVELS, "tile_shape": (32, 32)}


class Case:
    """Where model and image lie, and the hash of what an undisturbed run makes of them."""

    def __init__(self, folder: Path, shape: tuple[int, ...] = SHAPE) -> None:
        torch.manual_seed(0)
        network = NetworkShape(features=2, depth=1)
        weights = build_network(network).state_dict()
        self.model, self.source = str(folder / "model.safetensors"), str(folder / "in.ome.zarr")
        self.undisturbed = folder / "undisturbed.ome.zarr"
        Denoiser(network, weights, Normalisation((100.0,), (20.0,))).save(self.model)
        image = np.random.default_rng(0).normal(100, 20, shape).clip(0, 250).astype(np.uint16)
        save_image(image, self.source, levels=1, chunks=CHUNKS)
        self.predict(self.undisturbed)
        self.expected = tree_hash(self.undisturbed)

    def predict(self, to: Path, **settings: Any) -> RunSummary:
        """Predict in this process, or on a cluster."""
        return inference.predict(self.model, self.source, to, progress=False, **OPTIONS, **settings)


class Killer:
    """Predicts in processes that are killed; see ``once`` of the program for what a run may ask for."""

    def __init__(self, case: Case) -> None:
        settings = {
            "model": case.model,
            "source": case.source,
            "threads": THREADS,
            "batch_voxels": BATCH_VOXELS,
            "group": GROUP,
            "options": OPTIONS,
        }
        command = [sys.executable, str(PROGRAM), json.dumps(settings)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, *runs: dict[str, Any]) -> list[dict[str, Any]]:
        """Run one process after another; returns what became of each."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(runs) + "\n")
        self._process.stdin.flush()
        outcomes: list[dict[str, Any]] = json.loads(self._process.stdout.readline())
        for outcome in outcomes:
            assert outcome["in_time"], "it hangs"
            assert outcome["status"] in (0, -signal.SIGKILL), "what is printed above went wrong"
        return outcomes

    def close(self) -> None:
        """End the program."""
        with self._process:
            self._process.kill()


def begun(outcome: dict[str, Any]) -> int:
    """Return how many blocks a process began, of all levels."""
    return int(outcome["heard"].get("read", 0) + outcome["heard"].get("pooled", 0))
