"""Memory of inference: it does not grow with the image, stays under the limit, and is what ``plan`` says.

*ends*: the first and the last blocks of virtual images (made when they are read, as a task makes them of a
plan for the whole) in this process, as its batches would be: read, denoised, written, read back.

*projection*: whole small images of several kinds, from disk to disk by a worker process, in the cut that the
planner chooses for the limit; the peak is that of the worker.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import Group, Row, Side

OPTIONS: dict[str, Any] = {
    "gigabytes": [1, 8, 64],
    "blocks": 50,
    "side": 512,
    "features": 32,
    "limit": "2GiB",
    "cases": ["planes uint8", "planes uint16", "planes float32", "small limit", "volume uint16",
              "volume float32", "deep chunks"],
}  # fmt: skip
# Axes of the network, shape, chunks, dtype, features, limit; None: the option's.
CASES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], str, int | None, str | None]] = {
    "planes uint8": (2, (2, 2048, 2048), (1, 512, 512), "uint8", None, None),
    "planes uint16": (2, (2, 2048, 2048), (1, 512, 512), "uint16", None, None),
    "planes float32": (2, (2, 2048, 2048), (1, 512, 512), "float32", None, None),
    "small limit": (2, (2, 1024, 1024), (1, 256, 256), "uint16", None, "1200MiB"),
    "volume uint16": (3, (64, 192, 192), (64, 64, 64), "uint16", None, None),
    "volume float32": (3, (64, 192, 192), (64, 64, 64), "float32", None, None),
    # Of little computing, so that what is read and written is most of it.
    "deep chunks": (2, (64, 1024, 1024), (64, 256, 256), "uint16", 2, None),
}
ONCE: dict[str, Any] = {"warm_up": False, "min_seconds": 0}


def groups(options: dict[str, Any], folder: Path) -> list[Group]:
    return [_ends(options, folder), _projection(options, folder)]


def _ends(options: dict[str, Any], folder: Path) -> Group:
    common = {name: options[name] for name in ("blocks", "side", "features", "limit")}
    settings = common | {"folder": str(folder)}
    sides = [Side(f"{n} GB", "ends", settings | {"gigabytes": n}, **ONCE) for n in options["gigabytes"]]
    first = sides[0].name
    rows = [
        Row(f"peak at {side.name}, times that at {first}", side.name, first, "peak", ("<=", 1.1))
        for side in sides[1:]
    ]
    for side in sides:
        rows += [
            Row(f"{side.name}: last blocks over first blocks", side.name, quantity="last_over_first",
                goal=("<=", 1.1)),
            Row(f"{side.name}: peak over limit", side.name, quantity="over_limit", goal=("<=", 1.0)),
        ]  # fmt: skip
    return Group("ends", sides, rows)


def _projection(options: dict[str, Any], folder: Path) -> Group:
    common = {"features": options["features"], "limit": options["limit"], "folder": str(folder)}
    sides = [Side(name, "worker", common | {"case": name}, **ONCE) for name in options["cases"]]
    rows = []
    for side in sides:
        rows += [
            Row(f"{side.name}: projected, MiB", side.name, quantity="projected"),
            Row(f"{side.name}: projected over measured, at least", side.name, quantity="over_peak",
                goal=(">=", 1.0)),
            Row(f"{side.name}: projected over measured, at most", side.name, quantity="over_peak",
                goal=("<=", 1.5)),
            Row(f"{side.name}: peak over limit", side.name, quantity="over_limit", goal=("<=", 1.0)),
        ]  # fmt: skip
    return Group("projection", sides, rows)


def network(ndim: int, features: int) -> Any:
    from denoizarr.kernels.unet import NetworkShape, build_network
    from denoizarr.training.denoiser import Denoiser
    from denoizarr.training.normalisation import Normalisation

    shape = NetworkShape(ndim=ndim, features=features)
    weights = build_network(shape, seed=0).state_dict()
    return Denoiser(shape, weights, Normalisation((120.0,), (20.0,)))


# ---- ends


@dataclass(frozen=True)
class Ends:
    """The first blocks of a prediction, or its last ones."""

    spec: Any
    first: int


def _read(spec: Ends, number: int) -> Any:
    from denoizarr.inference.block import denoise_block

    return denoise_block.read(spec.spec, spec.first + number)  # type: ignore[attr-defined]


def _compute(spec: Ends, number: int, found: Any) -> Any:
    from denoizarr.inference.block import denoise_block

    return denoise_block.compute(spec.spec, spec.first + number, found)  # type: ignore[attr-defined]


def _write(spec: Ends, number: int, result: Any) -> dict[str, Any]:
    from denoizarr.inference.block import denoise_block

    return denoise_block.write(spec.spec, spec.first + number, result)  # type: ignore[attr-defined,no-any-return]


def _whole(spec: Ends, number: int) -> dict[str, Any]:
    from denoizarr.inference.block import denoise_block

    return denoise_block(spec.spec, spec.first + number)


def ends(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import zarr
    from tests.virtual_image import VirtualStore

    from denoizarr.engine.memory_limits import parse_bytes
    from denoizarr.engine.runner import Step, run_step
    from denoizarr.images.output import begin_output
    from denoizarr.inference.block import PredictionSpec, denoise_block
    from denoizarr.inference.prediction import plan_prediction
    from denoizarr.stores.images import as_image

    logging.getLogger("denoizarr").setLevel(logging.WARNING)
    store = VirtualStore((max(round(settings["gigabytes"] * 1e9 / (2 * 2048**2)), 32), 2048, 2048))
    image = as_image(zarr.open_array(store, mode="r"))
    side, each = settings["side"], settings["blocks"]
    model = network(2, settings["features"])
    planned = plan_prediction(
        model, image, Path(settings["folder"]) / "none", memory_limit=settings["limit"], levels=1,
        chunks=(1, min(side, 512), min(side, 512)), shards=(1, side, side),
    )  # fmt: skip
    # A block's stages overlap with its neighbours' where they are apart.
    overlaps = hasattr(denoise_block, "read")
    task: Any = type(denoise_block)(_read, _compute, _write) if overlaps else _whole  # type: ignore[call-arg]

    def work() -> dict[str, Any]:
        peaks = []
        with tempfile.TemporaryDirectory(dir=settings["folder"]) as folder:
            layout = replace(planned.layout, url=f"{folder}/out")
            begin_output(layout, {})
            url = model.save(f"{folder}/model")
            spec = PredictionSpec(
                planned.reader, url, model.digest, layout, planned.tile_shape, threads=1, device="cpu"
            )
            for first in (0, planned.blocks - each):
                forget_peak()
                step = Step("ends", task, Ends(spec, first), each, max(each // 2, 1))
                run_step(step, threads=1, progress=False)
                peaks.append(_peak())
        limit = parse_bytes(settings["limit"])
        return {
            "units": 2 * each * planned.layout.levels[0].write_units.box(0).size,
            "peak": max(peaks),
            "last_over_first": peaks[1] / peaks[0],
            "projected": planned.bytes_per_worker / 2**20,
            "over_limit": max(peaks) / limit,
        }

    return work


def forget_peak() -> None:
    """Have the system count the peak of this process anew."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    from side import peak_bytes

    return peak_bytes()


# ---- projection


def worker(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    from denoizarr.engine.cluster import ClusterSettings, open_client
    from denoizarr.engine.memory_limits import parse_bytes
    from denoizarr.images.save import save_image
    from denoizarr.inference.predict import predict
    from denoizarr.inference.prediction import plan_prediction
    from denoizarr.stores.images import open_image

    logging.getLogger("denoizarr").setLevel(logging.WARNING)
    ndim, shape, chunks, dtype, features, limit = CASES[settings["case"]]
    limit = limit or settings["limit"]
    model = network(ndim, features or settings["features"])

    def work() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=settings["folder"]) as folder:
            noise = np.random.default_rng(0).normal(120, 20, shape).astype(dtype)
            save_image(noise, f"{folder}/in", chunks=chunks, shards=chunks, levels=1)
            planned = plan_prediction(model, open_image(f"{folder}/in"), f"{folder}/out", memory_limit=limit)
            with open_client(ClusterSettings(workers=1, memory_limit_bytes=2**33)) as client:
                summary = predict(
                    model, f"{folder}/in", f"{folder}/out", client=client, memory_limit=limit, progress=False
                )
        return {
            "units": noise.size,
            "peak": summary.peak_bytes,
            "projected": planned.bytes_per_worker / 2**20,
            "over_peak": planned.bytes_per_worker / summary.peak_bytes,
            "over_limit": summary.peak_bytes / parse_bytes(limit),
        }

    return work
