"""Patch2Self: the same series in memory by DIPY and by us, and from Zarr to Zarr beside a mere copy.

CPU seconds of the call, in a process that has made it before. DIPY's version 1 fits every volume on all
voxels, its version 3 on a sketch; both are stopped after a time, and then count as having taken it. *copy*
copies the series from Zarr to Zarr through the same engine, in the same shards.

*memory*: the peak of this process, from a virtual series (made when it is read) to Zarr, in threads.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import Group, Row, Side

OPTIONS = {
    "series": {"64x64x32x60": [64, 64, 32, 60], "96x96x40x160": [96, 96, 40, 160]},
    "limit_seconds": 300,
    "peers_of": {"64x64x32x60": [1, 3], "96x96x40x160": [3]},
    "gigabytes": [1, 32],
    "limit": "2GiB",
}
GOALS = {
    "64x64x32x60": {"version 1": 25, "version 3": 20, "zarr": 12},
    "96x96x40x160": {"version 3": 40},
}
N_B0 = 6
Work = Callable[[], dict[str, Any]]


def prepare(options: dict[str, Any], folder: Path) -> None:
    import xarray as xr

    from denoizarr.images.save import save_image
    from denoizarr.images.series import block_of_series

    for name, shape in options["series"].items():
        path = _series(folder, name)
        if not path.exists():
            np.save(path, _signal(tuple(shape)))
        if not path.with_suffix(".zarr").exists():
            values = np.ascontiguousarray(np.load(path).T)
            block = block_of_series(values.shape, (1, *values.shape[1:]), 2)
            image = xr.DataArray(values, dims=("t", "z", "y", "x"))
            save_image(
                image, path.with_suffix(".zarr"), chunks=(1, *block), shards=(len(values), *block), levels=1
            )


def _signal(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return a smooth object with a direction in every voxel, attenuated along each gradient, with noise."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:3]), indexing="ij")
    main = np.stack([np.cos(3 * x + y), np.sin(2 * y - z), 0.5 * np.cos(z)], -1)
    main /= np.linalg.norm(main, axis=-1, keepdims=True)
    directions = rng.normal(size=(shape[3], 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    weight = np.where(np.arange(shape[3]) < N_B0, 0.0, 1.0)
    inside = x**2 + y**2 + z**2 < 0.9
    truth = 1000 * inside[..., None] * np.exp(-weight * (0.5 + 1.2 * (main @ directions.T) ** 2))
    return np.rint(np.abs(truth + rng.normal(0, 30, shape))).astype(np.int16)


def _series(folder: Path, name: str) -> Path:
    return folder / f"series-{name}.npy"


def groups(options: dict[str, Any], folder: Path) -> list[Group]:
    return [*(_group(name, options, folder) for name in options["series"]), _memory(options, folder)]


def _memory(options: dict[str, Any], folder: Path) -> Group:
    settings = {"limit": options["limit"], "folder": str(folder)}
    once = {"warm_up": False, "min_seconds": 0}
    sides = [Side(f"{n} GB", "virtual", settings | {"gigabytes": n}, **once) for n in options["gigabytes"]]
    first = sides[0].name
    rows = [
        Row(f"{side.name}: peak over limit", side.name, quantity="over_limit", goal=("<=", 1.0))
        for side in sides
    ]
    rows += [
        Row(f"peak at {side.name}, times that at {first}", side.name, first, "peak", ("<=", 1.1))
        for side in sides[1:]
    ]
    return Group("memory", sides, rows)


def _group(name: str, options: dict[str, Any], folder: Path) -> Group:
    settings = {"data": str(_series(folder, name)), "limit_seconds": options["limit_seconds"]}
    sides = [
        Side("ours", "in_memory", settings),
        Side("ours, Zarr to Zarr", "zarr_to_zarr", settings),
        Side("ours, Zarr to Zarr, no shift", "zarr_to_zarr", settings | {"shift_intensity": False}),
        Side("copy, Zarr to Zarr", "copied", settings),
    ]
    versions = [f"version {version}" for version in options["peers_of"][name]]
    sides += [
        Side(
            f"DIPY, {version}",
            "dipy",
            settings | {"version": int(version[-1])},
            peer="dipy",
            warm_up=False,
            min_seconds=0,
        )
        for version in versions
    ]
    goals = GOALS.get(name, {})
    rows = [
        Row(f"in memory, times DIPY's {v}", "ours", f"DIPY, {v}", goal=_at_least(goals.get(v)), faster=True)
        for v in versions
    ]
    rows.append(
        Row(
            f"Zarr to Zarr, times DIPY's {versions[0]} in memory",
            "ours, Zarr to Zarr",
            f"DIPY, {versions[0]}",
            goal=_at_least(goals.get("zarr")),
            faster=True,
        )
    )
    rows += [
        Row(f"{side[6:]}, times a copy", side, "copy, Zarr to Zarr", goal=("<=", 2.5))
        for side in ("ours, Zarr to Zarr", "ours, Zarr to Zarr, no shift")
    ]
    rows += [Row(f"DIPY's {v}: stopped by the limit", f"DIPY, {v}", quantity="stopped") for v in versions]
    return Group(name, sides, rows)


def _at_least(factor: float | None) -> tuple[str, float] | None:
    return None if factor is None else (">=", factor)


def _bvals(n: int) -> np.ndarray[Any, Any]:
    return np.where(np.arange(n) < N_B0, 0.0, 1000.0)


def in_memory(settings: dict[str, Any]) -> Work:
    from denoizarr import patch2self

    data = np.load(settings["data"])

    def work() -> dict[str, Any]:
        patch2self(data, _bvals(data.shape[3]), out_dtype=np.float32)
        return {"units": data.size}

    return work


def dipy(settings: dict[str, Any]) -> Work:
    import signal

    from dipy.denoise.patch2self import patch2self

    data = np.load(settings["data"])
    warm = data[:8, :8, :4]
    patch2self(warm, _bvals(data.shape[3]), version=settings["version"], out_dtype=np.float32, verbose=False)

    class StoppedError(Exception):
        pass

    def stop(_number: int, _frame: object) -> None:
        raise StoppedError

    def work() -> dict[str, Any]:
        signal.signal(signal.SIGALRM, stop)
        signal.alarm(settings["limit_seconds"])
        stopped = 0
        try:
            patch2self(
                data, _bvals(data.shape[3]), version=settings["version"], out_dtype=np.float32, verbose=False
            )
        except StoppedError:
            stopped = 1
        finally:
            signal.alarm(0)
        return {"units": data.size, "stopped": stopped}

    return work


def zarr_to_zarr(settings: dict[str, Any]) -> Work:
    from denoizarr import patch2self

    source, folder = Path(settings["data"]).with_suffix(".zarr"), Path(tempfile.mkdtemp(prefix="denoizarr-"))
    n = np.load(settings["data"], mmap_mode="r").shape[3]
    more = {name: settings[name] for name in ("shift_intensity",) if name in settings}

    def work() -> dict[str, Any]:
        for beside in ("out", "out.ledger"):
            shutil.rmtree(folder / beside, ignore_errors=True)
        # The dtype of the copy beside it.
        patch2self(source, _bvals(n), destination=folder / "out", **more)
        return {"units": int(np.prod(np.load(settings["data"], mmap_mode="r").shape))}

    return work


def copied(settings: dict[str, Any]) -> Work:
    import zarr

    from denoizarr.images.save import save_image

    source, folder = Path(settings["data"]).with_suffix(".zarr"), Path(tempfile.mkdtemp(prefix="denoizarr-"))
    array = zarr.open_array(source / "0", mode="r")

    def work() -> dict[str, Any]:
        for beside in ("out", "out.ledger"):
            shutil.rmtree(folder / beside, ignore_errors=True)
        save_image(source, folder / "out", chunks=array.chunks, shards=array.shards, levels=1)
        return {"units": int(array.size)}

    return work


def virtual(settings: dict[str, Any]) -> Work:
    import zarr
    from side import peak_bytes
    from tests.virtual_image import VirtualStore

    from denoizarr import patch2self
    from denoizarr.engine.freed_memory import one_arena
    from denoizarr.engine.memory_limits import parse_bytes
    from denoizarr.stores.images import as_image

    one_arena()  # as the command does
    n, side = 60, 256
    deep = max(round(settings["gigabytes"] * 1e9 / (2 * n * side**2)), 1)
    store = VirtualStore((n, deep, side, side), (1, 8, 128, 128))

    def work() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=settings["folder"]) as folder:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
            patch2self(
                as_image(zarr.open_array(store, mode="r"), "czyx"),
                _bvals(n),
                destination=f"{folder}/out",
                memory_limit=settings["limit"],
            )
        peak = peak_bytes()
        return {
            "units": n * deep * side**2,
            "peak": peak,
            "over_limit": peak / parse_bytes(settings["limit"]),
        }

    return work
