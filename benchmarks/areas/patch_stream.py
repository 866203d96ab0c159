"""Patches from Zarr beside CAREamics' dataset: how many per CPU-second, and how often a voxel is decoded."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from harness import HERE, Group, Row, Side

OPTIONS = {
    "shape": [64, 1024, 1024],
    "plane": [8192, 8192],
    "chunk": 512,
    "patch": 64,
    "batch": 16,
    "patches_per_chunk": 64,
    "peer_batches": 64,
    "peer_planes": 8,
    "table_patches": [1024, 4096, 16384, 65536],
    "table_blocks": [4, 16, 64],
}
RATE, AMPLIFICATION, TIMES = 20_000, 1.1, 20


def prepare(options: dict[str, Any], folder: Path) -> None:
    import microscope

    for shape in (options["shape"], options["plane"]):
        path = store(folder, shape)
        if not path.exists():
            stack = microscope.light_sheet((1, *shape) if len(shape) == 2 else tuple(shape))
            write(path, stack.reshape(shape), options["chunk"])


def store(folder: Path, shape: list[int]) -> Path:
    """Return the group that holds an image of this shape as its array ``0``."""
    return folder / f"noisy-{'x'.join(map(str, shape))}.zarr"


def write(path: Path, image: np.ndarray[Any, Any], chunk: int) -> None:
    """Write an image as the array ``0`` of a group, in chunks of one plane."""
    import zarr
    from zarr.codecs import BloscCodec

    begun = path.with_suffix(".begun")
    array = zarr.create_group(str(begun), overwrite=True).create_array(
        "0",
        shape=image.shape,
        chunks=(1,) * (image.ndim - 2) + (chunk, chunk),
        dtype=image.dtype,
        compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle")],
        dimension_names=("z", "y", "x")[-image.ndim :],
    )
    array[:] = image
    begun.rename(path)


def groups(options: dict[str, Any], folder: Path) -> list[Group]:
    return [_stack(options, folder), _plane(options, folder), _table(options, folder)]


def _epoch(options: dict[str, Any], shape: list[int]) -> int:
    """Return the patches of an epoch in which every chunk gives its share."""
    planes, (height, width), chunk = int(np.prod(shape[:-2])), shape[-2:], options["chunk"]
    return options["patches_per_chunk"] * planes * -(-height // chunk) * -(-width // chunk)


def settings_of(options: dict[str, Any], folder: Path, shape: list[int]) -> dict[str, Any]:
    """Return what a side needs to stream patches of the image of this shape."""
    return {
        "url": f"{store(folder, shape)}/0",
        "axes": "zyx"[-len(shape) :],
        "patch": options["patch"],
        "batch": options["batch"],
        "patches": _epoch(options, shape),
    }


def _stack(options: dict[str, Any], folder: Path) -> Group:
    settings = settings_of(options, folder, options["shape"])
    theirs = settings | {"batches": options["peer_batches"]}
    peer = {"peer": "careamics", "warm_up": True, "min_seconds": 0.1}
    sides = [
        Side("ours", "ours", settings),
        Side("ours, normalised and turned", "ours", settings | {"turned": True}),
        Side("CAREamics", "careamics", theirs | {"planes": None}, **peer),
        Side("CAREamics in memory", "careamics", theirs | {"planes": options["peer_planes"]}, **peer),
    ]
    rows = [
        Row("patches per CPU-second", "ours", quantity="units_per_cpu_second", goal=(">=", RATE)),
        *_amplification(),
        Row("times CAREamics' patches per CPU-second", "ours", "CAREamics", goal=(">=", TIMES), faster=True),
        Row(
            "the same where we normalise and turn, as it does",
            "ours, normalised and turned",
            "CAREamics",
            faster=True,
        ),
        Row("times those of CAREamics with the image in memory", "ours", "CAREamics in memory", faster=True),
        Row("CPU-seconds before the first batch", "ours", quantity="first_seconds"),
        Row("CPU-seconds before CAREamics' first batch", "CAREamics", quantity="first_seconds"),
    ]
    return Group("stack", sides, rows)


def _plane(options: dict[str, Any], folder: Path) -> Group:
    settings = settings_of(options, folder, options["plane"])
    rows = [Row("patches per CPU-second", "ours", quantity="units_per_cpu_second"), *_amplification()]
    return Group("one plane", [Side("ours", "ours", settings)], rows)


def _amplification() -> list[Row]:
    goal = ("<=", AMPLIFICATION)
    return [
        Row("read amplification", "ours", quantity="read_amplification", goal=goal),
        Row("decodes of a voxel in an epoch", "ours", quantity="decodes", goal=goal),
    ]


def _table(options: dict[str, Any], folder: Path) -> Group:
    """Amplification and rate against patches per epoch and resident blocks."""
    settings = settings_of(options, folder, options["shape"])
    sides, rows = [], []
    for n in options["table_patches"]:
        for blocks in options["table_blocks"]:
            name = f"{n} patches, {blocks} blocks"
            sides.append(Side(name, "ours", settings | {"patches": n, "blocks": blocks}))
            rows += [
                Row(f"{name}: read amplification", name, quantity="read_amplification"),
                Row(f"{name}: patches per CPU-second", name, quantity="units_per_cpu_second"),
            ]
    return Group("patches per epoch and resident blocks", sides, rows)


def ours(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import torch

    import denoizarr

    torch.set_num_threads(1)
    started = time.process_time()
    image = denoizarr.open_image(settings["url"], axes=settings["axes"])
    stream = denoizarr.PatchStream(
        image,
        denoizarr.build_index(image, settings["patch"]),
        batch_size=settings["batch"],
        patches_per_epoch=settings["patches"],
        resident_blocks=settings.get("blocks", 16),
    )
    next(iter(stream))
    first_seconds = time.process_time() - started
    worst = {"read_amplification": 0.0, "decodes": 0.0}

    def work() -> dict[str, Any]:
        # Every epoch shifts its blocks: the worst of those that were timed is told.
        stream.set_epoch(stream.epoch + 1)
        before, n = stream.statistics, 0
        for batch in _turned(stream) if settings.get("turned") else stream:
            n += len(batch["patch"])
        read = {name: value - before[name] for name, value in stream.statistics.items()}
        used = n * settings["patch"] ** 2 * image.dtype.itemsize
        worst["read_amplification"] = max(worst["read_amplification"], read["bytes_read"] / used)
        worst["decodes"] = max(worst["decodes"], read["bytes_read"] / image.nbytes)
        return {"units": n, "first_seconds": first_seconds, **worst}

    return work


def _turned(stream: Any) -> Iterator[dict[str, Any]]:
    """Do to the patches what CAREamics' dataset does besides: normalise them, flip and turn them."""
    import torch

    from denoizarr.kernels.blindspot import symmetries_of, turn_patches

    symmetries = symmetries_of(np.ones((1, 1), np.bool_))
    for step, batch in enumerate(stream):
        numbers = step * len(batch["patch"]) + torch.arange(len(batch["patch"]))
        patches = (batch["patch"] - 250.0) / 450.0
        turned = turn_patches(patches, symmetries, seed=0, epoch=stream.epoch, numbers=numbers)
        yield batch | {"patch": turned}


def careamics(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    sys.path.insert(1, str(HERE / "peers"))
    import torch
    import zarr
    from load_careamics import patches

    torch.set_num_threads(1)
    started = time.process_time()
    # Its 2D networks take the planes of a stack as samples. Without a number of planes it reads from Zarr.
    if settings["planes"] is None:
        loader = patches(f"file://{settings['url']}", "zarr", "SYX", settings["patch"], settings["batch"])
    else:
        image = zarr.open_array(settings["url"], mode="r")[: settings["planes"]]
        loader = patches(image, "array", "SYX", settings["patch"], settings["batch"])
    next(iter(loader))
    first_seconds = time.process_time() - started

    def work() -> dict[str, Any]:
        n = sum(len(batch[0].data) for batch in islice(loader, settings["batches"]))
        return {"units": n, "first_seconds": first_seconds}

    return work
