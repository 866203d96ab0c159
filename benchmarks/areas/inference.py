"""Inference: what predicting costs beside the network itself, and its speed beside CAREamics'.

*Overhead*: the wall time of ``predict``, from one OME-Zarr to another with its pyramid, over that of the bare
forward passes of the same tiles, normalised and in memory before the clock starts; one process, two threads.
The forward passes are run as fast as they can be: two tiles at a time, each by one thread, and, for who
wonders, one tile at a time by two threads. *Throughput*: voxels per CPU-second of ``predict`` on one core
beside ``CAREamist.predict`` with tiles from memory to memory, the networks alike (U-Net, depth 2, 32
features, BatchNorm; parameters are counted). Weights are random: they do not matter here. Ours, the bare
passes included, has one arena of memory for all threads, as our workers and ``predict --blocks`` have.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import HERE, Group, Row, Side

OPTIONS = {
    "plane": [2048, 2048],
    "volume": [64, 512, 512],
    "peer_stack": [4, 1024, 1024],
    "features": 32,
    "features_3d": 32,
    "tile": 512,
    "large_tile": 1024,
    "peer_tiles": [256, 512, 1024],
    "threads": 2,
}
MEAN, STD = 250.0, 450.0
OVERHEAD = ("<=", 1.10)
THROUGHPUT, IN_BFLOAT16 = (">=", 1.5), (">=", 2.8)
Work = Callable[[], dict[str, Any]]


def prepare(options: dict[str, Any], folder: Path) -> None:
    import microscope

    from denoizarr.images.save import save_image

    for shape in (options["plane"], options["volume"], options["peer_stack"]):
        path = _image(shape, folder)
        if not path.exists():
            stack = microscope.light_sheet((1, *shape) if len(shape) == 2 else tuple(shape))
            np.save(path, stack.reshape(shape))
        if not path.with_suffix(".zarr").exists():
            save_image(np.load(path), path.with_suffix(".zarr"), levels=1)


def _image(shape: list[int], folder: Path) -> Path:
    return folder / f"noisy-{'x'.join(map(str, shape))}.npy"


def groups(options: dict[str, Any], folder: Path) -> list[Group]:
    found = []
    for title, shape, ndim in (
        ("plane", options["plane"], 2),
        ("volume, plane by plane", options["volume"], 2),
        ("volume, 3D", options["volume"], 3),
    ):
        features = options["features" if ndim == 2 else "features_3d"]
        settings = _settings(options, folder, shape) | {"ndim": ndim, "features": features}
        # In 3D the tile that the plan chooses.
        settings["tile"] = [options["tile"]] * 2 if ndim == 2 else None
        found.append(_overhead(title, settings))
    return [*found, _throughput(options, _settings(options, folder, options["peer_stack"]))]


def _settings(options: dict[str, Any], folder: Path, shape: list[int]) -> dict[str, Any]:
    return {
        "image": str(_image(shape, folder)),
        "features": options["features"],
        "ndim": 2,
        "threads": options["threads"],
    }


def _overhead(title: str, settings: dict[str, Any]) -> Group:
    once = {"warm_up": False, "min_seconds": 0}
    sides = [
        Side("predict", "predicted", settings, **once),
        Side("bare", "bare", settings | {"side_by_side": True}, **once),
        Side("bare, a tile by all threads", "bare", settings | {"side_by_side": False}, **once),
    ]
    rows = [
        Row("wall time over the bare forward passes", "predict", "bare", "wall_seconds", OVERHEAD),
        Row("the same by CPU time", "predict", "bare"),
        Row(
            "over one tile at a time by all threads", "predict", "bare, a tile by all threads", "wall_seconds"
        ),
    ]
    return Group(f"overhead, {title}", sides, rows)


def _throughput(options: dict[str, Any], settings: dict[str, Any]) -> Group:
    tiles, large = [options["tile"]] * 2, [options["large_tile"]] * 2
    variants: dict[str, dict[str, Any]] = {
        "ours": {"tile": tiles},
        "ours, large tiles": {"tile": large},
        "ours, bfloat16": {"tile": tiles, "precision": "bfloat16"},
    }
    one = settings | {"threads": 1}
    sides = [Side(name, "predicted", one | more, min_seconds=0) for name, more in variants.items()]
    peers = [f"CAREamics, tiles of {side}" for side in options["peer_tiles"]]
    for name, side in zip(peers, options["peer_tiles"], strict=True):
        sides.append(
            Side(name, "careamics", settings | {"tile": [side] * 2}, peer="careamics", min_seconds=0)
        )
    goals = dict(zip(variants, (THROUGHPUT, None, IN_BFLOAT16), strict=True))
    rows = [
        # The goal is against whichever of its tiles is asked for first.
        Row(f"{name}, times {peer}", name, peer, goal=goals[name] if peer == peers[0] else None, faster=True)
        for peer in peers
        for name in variants
    ]
    rows += [Row(f"parameters, {name}", name, quantity="parameters") for name in ("ours", peers[0])]
    return Group("throughput", sides, rows)


def _model(settings: dict[str, Any]) -> Any:
    from denoizarr.kernels.unet import NetworkShape, build_network
    from denoizarr.training.denoiser import Denoiser
    from denoizarr.training.normalisation import Normalisation

    shape = NetworkShape(ndim=settings["ndim"], features=settings["features"], norm="batch")
    weights = build_network(shape, seed=0).state_dict()
    return Denoiser(
        shape,
        weights,
        Normalisation((MEAN,), (STD,)),
        patch_size=(16,) * settings["ndim"],
        precision=settings.get("precision", "float32"),
    )


def _on_cores(count: int) -> None:
    """Keep this process to so many cores: predict fills those that it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def predicted(settings: dict[str, Any]) -> Work:
    from denoizarr.engine.freed_memory import one_arena
    from denoizarr.images.save import save_image
    from denoizarr.inference.predict import predict

    one_arena()
    _on_cores(settings["threads"])
    model, source = _model(settings), Path(settings["image"]).with_suffix(".zarr")
    folder = Path(tempfile.mkdtemp(prefix="denoizarr-"))
    small = np.full((32,) * settings["ndim"], MEAN, np.float32)

    def run(image: Any, name: str) -> None:
        for beside in (name, f"{name}.ledger"):
            shutil.rmtree(folder / beside, ignore_errors=True)
        predict(
            model,
            image,
            folder / name,
            tile_shape=settings["tile"],
            precision=settings.get("precision", "float32"),
            memory_limit="4GiB",
            progress=False,
        )

    # What is loaded once in a process is not for an image.
    save_image(small, folder / "small.zarr", levels=1)
    run(folder / "small.zarr", "small")

    parameters = sum(p.numel() for p in _weights(model))

    def work() -> dict[str, Any]:
        run(source, "out")
        return {"units": int(np.prod(_shape(settings))), "parameters": parameters}

    return work


def _shape(settings: dict[str, Any]) -> tuple[int, ...]:
    return tuple(np.load(settings["image"], mmap_mode="r").shape)


def _weights(model: Any) -> Any:
    from denoizarr.kernels.unet import build_network

    return build_network(model.network).parameters()


def bare(settings: dict[str, Any]) -> Work:
    """Return the forward passes of the tiles that predict would run, block by block, in its order."""
    import torch

    from denoizarr.engine.freed_memory import freed_memory_kept, one_arena
    from denoizarr.geometry.boxes import Box
    from denoizarr.geometry.tiling import tiles_of
    from denoizarr.inference.prediction import plan_prediction
    from denoizarr.inference.tile_threads import run_side_by_side
    from denoizarr.stores.images import open_image

    one_arena()
    threads = settings["threads"]
    _on_cores(threads)
    model, source = _model(settings), Path(settings["image"]).with_suffix(".zarr")
    image = np.load(settings["image"])
    planned = plan_prediction(
        model, open_image(source), "out", tile_shape=settings["tile"], memory_limit="4GiB"
    )
    n = settings["ndim"]
    places = []
    for block in planned.layout.levels[0].write_units:
        valid, shape = Box(block.start[-n:], block.stop[-n:]), image.shape[-n:]
        for plane in np.ndindex(*block.shape[:-n]):
            at = tuple(p + a for p, a in zip(plane, block.start, strict=False))
            tiles = tiles_of(valid, planned.tile_shape, shape, model.halo, model.stride)
            places += [(at, tile) for tile in tiles]
    normalised = (image.astype(np.float32) - MEAN) / STD

    def tensor(number: int) -> Any:
        at, tile = places[number]
        voxels = normalised[at][tile.inside(image.shape[-n:]).slices]
        padded = np.pad(voxels, tile.padding(image.shape[-n:]), mode="edge")
        return torch.from_numpy(np.ascontiguousarray(padded))[None, None]

    tensors = [tensor(number) for number in range(len(places))]

    def forward(number: int) -> dict[str, Any]:
        torch.set_num_threads(1)
        with torch.inference_mode():
            model.module(tensors[number])
        return {}

    def work() -> dict[str, Any]:
        with freed_memory_kept():
            if settings["side_by_side"]:
                run_side_by_side(forward, len(tensors), threads)
            else:
                torch.set_num_threads(threads)
                with torch.inference_mode():
                    for x in tensors:
                        model.module(x)
        return {"units": image.size, "tiles": len(tensors)}

    return work


def careamics(settings: dict[str, Any]) -> Work:
    sys.path.insert(1, str(HERE / "peers"))
    import torch
    from load_careamics import trainer

    torch.set_num_threads(1)
    image, tile = np.load(settings["image"]), tuple(settings["tile"])
    folder = tempfile.mkdtemp(prefix="denoizarr-")
    network = {"depth": 2, "num_channels_init": settings["features"], "use_batch_norm": True}
    # It predicts only after it has trained: one step.
    careamist = trainer(folder, lambda _: False, "SYX", 64, 1, model_params=network)
    careamist.train(train_data=image[:1, :256, :256])

    def work() -> dict[str, Any]:
        last = Path(folder) / "last.ckpt"
        if not last.exists():
            careamist.trainer.save_checkpoint(last)
        found, _ = careamist.predict(
            image, tile_size=tile, tile_overlap=(48, 48), batch_size=1, checkpoint=last
        )
        assert np.asarray(found).size == image.size, "every voxel is predicted"
        return {"units": image.size, "parameters": sum(p.numel() for p in careamist.model.model.parameters())}

    return work
