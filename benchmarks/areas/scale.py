"""The patch index at size: memory that does not grow with the image, and draws from 100 million cells."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import Group, Row, Side
from side import resident_bytes

OPTIONS = {
    "small_gigabytes": 1,
    "large_gigabytes": 64,
    "cells": 100_000_000,
    "layouts": ["planes", "cubes"],
    "patch": 64,
}
FILTERS = {
    "mean_std": ("MeanStdPatchFilter", {"mean_threshold": 150.0}),
    "shannon": ("ShannonPatchFilter", {"threshold": 5.0}),
}


def groups(options: dict[str, Any], folder: Path) -> list[Group]:
    found = [_flat(layout, name, options) for layout in options["layouts"] for name in FILTERS]
    return [*found, _many_cells(options, folder)]


def _flat(layout: str, name: str, options: dict[str, Any]) -> Group:
    once = {"warm_up": False, "min_seconds": 0}
    settings = {"layout": layout, "filter": name, "patch": options["patch"]}
    sides = [
        Side(f"{n} GB", "index_box", settings | {"gigabytes": n}, **once)
        for n in (options["small_gigabytes"], options["large_gigabytes"])
    ]
    small, large = (side.name for side in sides)
    rows = [
        Row(f"peak memory at {large}, times that at {small}", large, small, "peak_bytes", ("<=", 1.1)),
        Row(f"time per voxel at {large}, times that at {small}", large, small),
    ]
    rows += [
        Row(f"{n}: chunk reads per chunk", n, quantity="chunk_reads", goal=("<=", 1.1))
        for n in (small, large)
    ]
    return Group(f"{layout}, {name}", sides, rows)


def _many_cells(options: dict[str, Any], folder: Path) -> Group:
    once = {"warm_up": False, "min_seconds": 0}
    settings = {"cells": options["cells"], "url": str(folder / f"{options['cells']}-cells.zarr")}
    opened = "open and draw"
    rows = [
        Row("cells", opened, quantity="cells"),
        Row("bytes of memory per cell, index open", opened, quantity="bytes_per_cell", goal=("<=", 1.0)),
        Row("bytes on disk per cell", "build and save", quantity="stored_bytes_per_cell"),
        Row("seconds to open", opened, quantity="open_seconds"),
        Row("seconds for 10,000 weighted draws", opened, quantity="draw_seconds", goal=("<=", 1.0)),
        Row("seconds for the next 10,000", opened, quantity="redraw_seconds", goal=("<=", 1.0)),
    ]  # fmt: skip
    sides = [
        Side("build and save", "save_index", settings, **once),
        Side("open and draw", "draw", settings, **once),
    ]
    return Group("many cells", sides, rows)


def _part(layout: str, gigabytes: float) -> Any:
    """Return the store of the terabyte image, and its first planes of about this size."""
    import zarr
    from tests.virtual_image import CUBES, PLANES, VirtualStore

    from denoizarr.stores.images import as_image

    store = VirtualStore(chunks={"planes": PLANES, "cubes": CUBES}[layout])
    depth = store.chunks[0]
    planes = max(round(gigabytes * 1e9 / (2 * store.shape[1] * store.shape[2] * depth)), 1) * depth
    image = as_image(zarr.open_array(store, mode="r"))
    return store, image.isel(z=slice(0, min(planes, store.shape[0])))


def index_box(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import denoizarr

    logging.getLogger("denoizarr").setLevel(logging.WARNING)
    name, thresholds = FILTERS[settings["filter"]]
    chosen = getattr(denoizarr, name)(**thresholds)
    # Compiles, and loads what an index needs, at either size.
    noise = np.random.default_rng(0).poisson(200, (2, 256, 256)).astype(np.uint16)
    denoizarr.build_index(noise, settings["patch"], patch_filter=chosen)
    store, image = _part(settings["layout"], settings["gigabytes"])

    def work() -> dict[str, Any]:
        index = denoizarr.build_index(image, settings["patch"], patch_filter=chosen)
        planes = -(-image.sizes["z"] // store.chunks[0])
        return {
            "units": image.size,
            "cells": index.n_cells,
            "chunk_reads": float(store.reads.sum(dtype=np.int64)) / store.reads[:planes].size,
        }

    return work


def save_index(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Index small patches of a virtual image, so that there are many cells and both kinds of them."""
    import zarr
    from tests.virtual_image import VirtualStore

    import denoizarr

    side, patch = 2048, 4
    planes = -(-settings["cells"] // (side // patch) ** 2)
    image = zarr.open_array(VirtualStore((planes, side, side)), mode="r")
    chosen = denoizarr.MeanStdPatchFilter(mean_threshold=150)

    def work() -> dict[str, Any]:
        index = denoizarr.build_index(image, patch, patch_filter=chosen)
        index.save(settings["url"])
        stored = sum(p.stat().st_size for p in Path(settings["url"]).rglob("*") if p.is_file())
        return {"units": index.n_cells, "stored_bytes_per_cell": stored / index.n_cells}

    return work


def draw(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import denoizarr

    # What opening and drawing load stays out of the memory of an index.
    noise = np.random.default_rng(0).poisson(200, (2, 64, 64)).astype(np.uint16)
    small = denoizarr.build_index(noise, 4)
    url = settings["url"] + ".small"
    small.save(url)
    denoizarr.PatchIndex.open(url).sample(10_000, 0)

    def work() -> dict[str, Any]:
        before = resident_bytes()
        spent = [time.perf_counter()]
        index = denoizarr.PatchIndex.open(settings["url"])
        spent.append(time.perf_counter())
        for seed in range(2):
            index.sample(10_000, seed)
            spent.append(time.perf_counter())
        names = ("open_seconds", "draw_seconds", "redraw_seconds")
        return {
            "units": index.n_cells,
            "cells": index.n_cells,
            "bytes_per_cell": (resident_bytes() - before) / index.n_cells,
            **dict(zip(names, np.diff(spent).tolist(), strict=True)),
        }

    return work
