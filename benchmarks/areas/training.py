"""Steps per CPU-second beside CAREamics': the same network, batch and patch.

U-Net of depth 2 with 32 features and BatchNorm, batches of 16 patches of 64 x 64, one blind pixel in 500,
filled uniformly, patches turned, Adam. *Step*: masks, network, loss, gradients, optimiser, on patches that
are there already. *Loop*: what a user calls, ``train`` and ``CAREamist.train``, on an array in memory, from
one step to a later one of the first epoch, so that drawing patches and logging are inside, and starting and
validating are not. Ours also clips gradients and averages weights. Parameters are counted, so that a reader
sees that the networks are alike.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import HERE, Group, Row, Side

OPTIONS = {
    "shape": [8, 1024, 1024],
    "patch": 64,
    "batch": 16,
    "features": 32,
    "mask_percentage": 0.2,
    "steps": 30,
    "first_steps": 5,
    "min_seconds": 10.0,
}
GOAL = (">=", 1.3)
MEAN, STD = 250.0, 450.0


def prepare(options: dict[str, Any], folder: Path) -> None:
    import microscope

    path = _image(options, folder)
    if not path.exists():
        np.save(path, microscope.light_sheet(tuple(options["shape"])))


def _image(options: dict[str, Any], folder: Path) -> Path:
    return folder / f"noisy-{'x'.join(map(str, options['shape']))}.npy"


def groups(options: dict[str, Any], folder: Path) -> list[Group]:
    given = ("patch", "batch", "features", "mask_percentage", "steps", "first_steps")
    settings = {"image": str(_image(options, folder))} | {name: options[name] for name in given}
    return [_steps(settings, options["min_seconds"]), _loops(settings)]


def _steps(settings: dict[str, Any], min_seconds: float) -> Group:
    variants: dict[str, dict[str, Any]] = {
        "ours": {},
        "ours, channels first": {"channels_last": False},
        "ours, no norm": {"norm": "none"},
        "ours, no norm, bfloat16": {"norm": "none", "precision": "bfloat16"},
    }
    sides = [
        Side(name, "our_step", settings | more, min_seconds=min_seconds) for name, more in variants.items()
    ]
    sides.append(Side("CAREamics", "careamics_step", settings, peer="careamics", min_seconds=min_seconds))
    rows = [Row("times CAREamics' steps per CPU-second", "ours", "CAREamics", goal=GOAL, faster=True)]
    rows += [Row(f"the same of {name}", name, "CAREamics", faster=True) for name in list(variants)[1:]]
    rows.append(
        Row("channels last, times the speed of channels first", "ours", "ours, channels first", faster=True)
    )
    rows += [Row(f"parameters, {name}", name, quantity="parameters") for name in ("ours", "CAREamics")]
    return Group("step", sides, rows)


def _loops(settings: dict[str, Any]) -> Group:
    once = {"warm_up": False, "min_seconds": 0}
    sides = [
        Side("ours", "our_loop", settings, **once),
        Side("ours, no norm", "our_loop", settings | {"norm": "none"}, **once),
        Side("CAREamics", "careamics_loop", settings, peer="careamics", **once),
    ]
    rows = [
        Row("times CAREamics' steps per CPU-second", "ours", "CAREamics", goal=GOAL, faster=True),
        Row("the same of ours, no norm", "ours, no norm", "CAREamics", faster=True),
    ]
    return Group("loop", sides, rows)


def _options(settings: dict[str, Any], **more: Any) -> Any:
    import denoizarr

    return denoizarr.TrainingOptions(
        patch_size=settings["patch"],
        batch_size=settings["batch"],
        features=settings["features"],
        num_layers=2,
        norm=settings.get("norm", "batch"),
        mask_percentage=settings["mask_percentage"],
        precision=settings.get("precision", "float32"),
        device="cpu",
        threads=1,
        **more,
    )


def _batches(settings: dict[str, Any]) -> list[Any]:
    """Return a few batches of normalised patches (batch, 1, patch, patch), the same for every side."""
    import torch

    image, patch = np.load(settings["image"], mmap_mode="r")[0], settings["patch"]
    across = image.shape[1] // patch
    corners = [(patch * (k // across), patch * (k % across)) for k in range(across**2)]
    patches = np.stack([image[y : y + patch, x : x + patch] for y, x in corners]).astype(np.float32)
    normalised = torch.from_numpy((patches - MEAN) / STD)[:, None]
    return [b for b in normalised.split(settings["batch"]) if len(b) == settings["batch"]]


def our_step(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import torch

    from denoizarr.engine.freed_memory import freed_memory_kept
    from denoizarr.kernels.unet import build_network
    from denoizarr.training.batches import Preparation
    from denoizarr.training.learner import Learner
    from denoizarr.training.normalisation import Normalisation
    from denoizarr.training.processes import Processes

    torch.set_num_threads(1)
    batches, n, options = _batches(settings), settings["first_steps"], _options(settings)
    one, as_it_is, here = np.ones((1, 1), np.bool_), Normalisation((0.0,), (1.0,)), torch.device("cpu")
    preparation = Preparation(options, one, as_it_is, None, here)
    network = build_network(options.network_shape, seed=0)
    if not settings.get("channels_last", True):
        # What the learner would lay out by channels it is told to lay out as it is.
        torch.channels_last = torch.contiguous_format
    learner = Learner(options, network, Processes(here))

    def work() -> dict[str, Any]:
        with freed_memory_kept():  # as train does
            for _ in range(n):
                step = learner.steps_done
                patches = batches[step % len(batches)]
                numbers = step * len(patches) + torch.arange(len(patches))
                learner.learn(preparation.batch({"patch": patches, "number": numbers}, 0), 1e-3)
        return {"units": n, "parameters": _size(learner.network)}

    return work


def careamics_step(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    sys.path.insert(1, str(HERE / "peers"))
    import torch
    from load_careamics import n2v_config

    config = n2v_config("array", "SYX", settings["patch"], settings["batch"], **_same(settings))
    from careamics.lightning.modules import create_module

    torch.set_num_threads(1)
    batches, n = _batches(settings), settings["first_steps"]
    module = create_module(config.algorithm_config)
    module.train()
    optimiser = module.configure_optimizers()["optimizer"]
    state = {"step": 0}

    def work() -> dict[str, Any]:
        for _ in range(n):
            state["step"] += 1
            masked, original, mask = module.n2v_manipulate(batches[state["step"] % len(batches)])
            loss = module.loss_func(module.model(masked), original, mask)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return {"units": n, "parameters": _size(module.model)}

    return work


def _size(network: Any) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _same(settings: dict[str, Any]) -> dict[str, Any]:
    network = {"depth": 2, "num_channels_init": settings["features"], "use_batch_norm": True}
    return {"masked_pixel_percentage": settings["mask_percentage"], "model_params": network}


class _Clock:
    """Notes the CPU and wall time of every step."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def step(self, *_: Any) -> None:
        self.times.append((time.process_time(), time.perf_counter()))

    def figures(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the steps from the first that counts to the last, and what they took."""
        first, n = settings["first_steps"], settings["steps"]
        cpu, wall = (self.times[first + n - 1][k] - self.times[first - 1][k] for k in range(2))
        return {"units": n, "cpu_seconds": cpu, "wall_seconds": wall}


def our_loop(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import torch

    import denoizarr

    torch.set_num_threads(1)
    image = np.load(settings["image"])
    n = (settings["steps"] + settings["first_steps"]) * settings["batch"]
    options = _options(settings, num_epochs=1, patches_per_epoch=n)

    def work() -> dict[str, Any]:
        clock = _Clock()
        denoizarr.train(image, options=options, on_step=clock.step, progress=False)
        return clock.figures(settings)

    return work


def careamics_loop(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    sys.path.insert(1, str(HERE / "peers"))
    import torch
    from load_careamics import trainer

    torch.set_num_threads(1)
    image, last = np.load(settings["image"]), settings["steps"] + settings["first_steps"]

    def work() -> dict[str, Any]:
        clock = _Clock()

        def after_step(step: int) -> bool:
            clock.step()
            return step < last

        with tempfile.TemporaryDirectory() as folder:
            careamist = trainer(
                folder, after_step, "SYX", settings["patch"], settings["batch"], **_same(settings)
            )
            careamist.train(train_data=image)
        return clock.figures(settings)

    return work
