"""Converting TIFF against merely reading it: the same files, as many threads, everything in the page cache.

*Read* has tifffile decode every page into memory. *Convert* reads, compresses, writes, reads back, compares,
hashes and builds the pyramid. A page that lies uncompressed in the page cache is read at the speed of memory,
which nothing that compresses can keep up with: these rows say what a gigabyte costs. The rows of a *disk*
pace the bytes of the files, on both sides, to what a disk gives: what is computed meanwhile is hidden as long
as there are cores for it.

*Pyramid* counts the bytes that are read from the output while it is written, with the coarser levels written
along with the finest, and with a pass over each level as it was before.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from harness import Group, Row, Side

OPTIONS = {"planes": 96, "side": 2048, "threads": 2, "disk_megabytes_per_second": [100, 200]}
SOURCES = {
    "one-page files, uncompressed": "plain",
    "one-page files, deflate": "deflate",
    "BigTIFF of all pages, uncompressed": "plain.tif",
    "BigTIFF of all pages, LZW": "lzw.tif",
}


def prepare(options: dict[str, Any], folder: Path) -> None:
    """Write cells over camera noise, 12 bits in uint16: it compresses to about half."""
    import tifffile

    name = f"{options['planes']}x{options['side']}"
    where = folder / name
    if (where / "done").exists():
        return
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: options["side"], : options["side"]]
    planes = []
    for z in range(options["planes"]):
        cells = 300 + 2000 * (np.sin(x / 97 + z) * np.sin(y / 83) > 0.7)
        planes.append(rng.poisson(cells).astype(np.uint16))
    for kind, compression in (("plain", None), ("deflate", "zlib")):
        (where / kind).mkdir(parents=True, exist_ok=True)
        for z, plane in enumerate(planes):
            path = where / kind / f"p{z:04}.tif"
            tifffile.imwrite(path, plane, photometric="minisblack", compression=compression)
    for kind, compression in (("plain", None), ("lzw", "lzw")):
        stack = np.stack(planes)
        tifffile.imwrite(
            where / f"{kind}.tif", stack, photometric="minisblack", bigtiff=True, compression=compression
        )
    (where / "done").touch()


def groups(options: dict[str, Any], folder: Path) -> list[Group]:
    where = folder / f"{options['planes']}x{options['side']}"
    common = {"threads": options["threads"], "out": str(folder / "out.ome.zarr")}
    found = []
    for title, name in SOURCES.items():
        settings = common | {"source": str(where / name)}
        found.append(_against_reading(title, settings))
    for rate in options["disk_megabytes_per_second"]:
        for title, name in list(SOURCES.items())[:2]:
            settings = common | {"source": str(where / name), "rate": rate * 1e6}
            found.append(_against_reading(f"{title}, from a disk of {rate} MB/s", settings))
    settings = common | {"source": str(where / "plain")}
    sides = [
        Side("along", "pyramid", settings | {"along": True}, warm_up=False, min_seconds=0),
        Side("passes", "pyramid", settings | {"along": False}, warm_up=False, min_seconds=0),
    ]
    rows = [
        Row("bytes read from the output, per byte of it", "along", quantity="read_again", goal=("<=", 1.1)),
        Row("the same with passes over finished levels", "passes", quantity="read_again"),
        Row("CPU time with passes, times that along", "passes", "along"),
    ]
    return [*found, Group("pyramid", sides, rows)]


def _against_reading(title: str, settings: dict[str, Any]) -> Group:
    sides = [
        Side("read", "read", settings),
        Side("convert", "convert", settings, warm_up=False, min_seconds=0),
    ]
    rows = [
        Row("wall time, times that of reading", "convert", "read", "wall_seconds", ("<=", 1.3)),
        Row("CPU time, times that of reading", "convert", "read"),
        Row("megabytes per CPU-second", "convert", quantity="megabytes_per_cpu_second"),
    ]
    return Group(title, sides, rows)


class Disk:
    """Gives so many bytes a second to all threads together, in the order in which they ask.

    As a disk does, it goes on to the next request whether or not whoever made the last one has woken.
    """

    def __init__(self, rate: float | None) -> None:
        self.rate, self._lock, self._free_at = rate, threading.Lock(), 0.0

    def take(self, n_bytes: int) -> None:
        if self.rate:
            with self._lock:
                self._free_at = max(self._free_at, time.perf_counter()) + n_bytes / self.rate
                done_at = self._free_at
            time.sleep(max(done_at - time.perf_counter(), 0))


def files_of(source: str) -> list[str]:
    path = Path(source)
    return sorted(str(p) for p in path.glob("*.tif")) if path.is_dir() else [source]


def read(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Read every page into memory, pages shared out among the threads."""
    import tifffile

    disk, paths, threads = Disk(settings.get("rate")), files_of(settings["source"]), settings["threads"]

    def pages(path: str, numbers: Sequence[int]) -> int:
        n_bytes = 0
        with tifffile.TiffFile(path) as file:
            for number in numbers:
                page = file.pages[number]
                disk.take(sum(page.databytecounts))
                n_bytes += page.asarray(maxworkers=1).nbytes
        return n_bytes

    def work() -> dict[str, Any]:
        if len(paths) > 1:
            shares: list[tuple[str, Sequence[int]]] = [(path, [0]) for path in paths]
        else:
            with tifffile.TiffFile(paths[0]) as file:
                n = len(file.pages)
            shares = [(paths[0], range(i, n, threads)) for i in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            total = sum(pool.map(lambda share: pages(*share), shares))
        return {"units": total / 2}

    return work


def convert(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import tifffile

    import denoizarr
    from denoizarr.engine.freed_memory import one_arena
    from denoizarr.stores import tiff

    one_arena()  # as the command does
    disk, os_preadv, os_pread = Disk(settings.get("rate")), tiff.os.preadv, tiff.os.pread

    def preadv(handle: int, views: Any, offset: int) -> int:
        disk.take(sum(map(len, views)))
        return os_preadv(handle, views, offset)

    def pread(handle: int, n_bytes: int, offset: int) -> bytes:
        disk.take(n_bytes)
        return os_pread(handle, n_bytes, offset)

    if disk.rate:
        tiff.os.preadv, tiff.os.pread = preadv, pread

    # What is loaded once in a process is not for an image.
    with tempfile.TemporaryDirectory() as small:
        tifffile.imwrite(f"{small}/in.tif", np.zeros((64, 64), np.uint16))
        denoizarr.convert(f"{small}/in.tif", f"{small}/out.ome.zarr")

    def work() -> dict[str, Any]:
        for end in ("", ".ledger"):
            shutil.rmtree(settings["out"] + end, ignore_errors=True)
        cpu = time.process_time()
        denoizarr.convert(settings["source"], settings["out"], threads=settings["threads"])
        cpu = time.process_time() - cpu
        voxels = float(np.prod(denoizarr.info(settings["out"])["levels"][0]["shape"]))
        return {"units": voxels, "megabytes_per_cpu_second": 2e-6 * voxels / cpu}

    return work


def pyramid(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    from dataclasses import replace

    from zarr.storage import ObjectStore

    from denoizarr.images import conversion as module

    n_read, get, plan = [0], ObjectStore.get, module.plan_layout

    async def counting(self: Any, key: str, *arguments: Any, **options: Any) -> Any:
        found = await get(self, key, *arguments, **options)
        n_read[0] += 0 if found is None or "zarr.json" in key else len(found)
        return found

    ObjectStore.get = counting  # type: ignore[method-assign]
    if not settings["along"]:
        module.plan_layout = lambda *a, **o: replace(plan(*a, **o), along=0)
    convert_all = convert(settings)

    def work() -> dict[str, Any]:
        n_read[0] = 0
        found = convert_all()
        stored = sum(p.stat().st_size for p in Path(settings["out"]).rglob("*") if p.is_file())
        return found | {"read_again": n_read[0] / stored}

    return work
