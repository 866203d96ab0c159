"""A small job that has every phase, and how to start it as a user does."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import yaml

from denoizarr.engine import failpoints
from denoizarr.images.save import save_image

STAGE = {"features": 4, "num_epochs": 3, "patches_per_epoch": 64, "patch_size": 32}
SHAPE = (6, 768, 768)


def scan_noise(shape=SHAPE, seed=0, length=5):
    """Return a smooth scene with white noise and noise that is correlated along x over ``length`` pixels."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[-2], : shape[-1]]
    scene = 300 + 120 * np.sin(y / 37) * np.cos(x / 29)
    white = generator.normal(0, 12, shape)
    rows = generator.normal(0, 1, (*shape[:-1], shape[-1] + length - 1))
    rows = sum(rows[..., i : i + shape[-1]] for i in range(length)) * (20 / np.sqrt(length))
    return (scene + white + rows).clip(0, 65535).astype(np.uint16)


def write_job(folder: Path, image: np.ndarray | None = None, **changes: object) -> Path:
    """Save the image and a job file beside it; returns the job file."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "in.ome.zarr"
    if image is not None and not source.exists():
        save_image(image, source, levels=1)
    job = {
        "input": {"url": "in.ome.zarr"},
        "output": {"url": "run", "shards": [1, 512, 512], "chunks": [1, 256, 256], "levels": 3},
        # To measure what a pixel's own value is worth takes longer than these few steps: once is enough.
        "stage1": {**STAGE, "use_centre": False},
        "stage2": STAGE,
        "cluster": {"workers": 2},
        **changes,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "denoizarr.cli", *arguments]


def run_cli(*arguments: str, fail_at: str = "") -> subprocess.CompletedProcess[str]:
    """Run a verb to its end; where ``fail_at`` names a failpoint, to there."""
    # Not a pipe: worker processes that outlive a driver would keep its other end open.
    with TemporaryFile("w+") as out, TemporaryFile("w+") as error:
        done = subprocess.run(
            command(*arguments),
            stdout=out,
            stderr=error,
            check=False,
            env=environment() | {failpoints.VARIABLE: fail_at},
        )
        for file in (out, error):
            file.seek(0)
        return subprocess.CompletedProcess(done.args, done.returncode, out.read(), error.read())


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "default"}


# What a local object store, killed while it puts an object, leaves beside it and never takes for an object.
_STAGED = re.compile(r"#\d+$")


def tree_hash(folder: Path) -> str:
    """Return one digest of every object's name and bytes, in the order of their names."""
    digest = hashlib.blake2b()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not _STAGED.search(path.name):
            for part in (str(path.relative_to(folder)).encode(), path.read_bytes()):
                digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
