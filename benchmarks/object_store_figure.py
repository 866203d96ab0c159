"""Measure how fast an image in a bucket is read as requests take longer, and draw it.

    python benchmarks/object_store_figure.py --out docs/object-stores.png

The bucket is moto's, on this machine, behind the tests' proxy, which holds every request back for as long as
it is told, all in flight side by side. Both are Python programs that share the machine's cores with the
reader: what they can pass on at all (some hundred requests a second) is the ceiling here, and no store's. A
minute or two; ratios of wall time within one run.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import zarr

from denoizarr.figures import canvas
from denoizarr.geometry.boxes import Box
from denoizarr.images.save import save_image
from denoizarr.stores import backends, store_options
from denoizarr.stores.images import open_image, reader_of
from denoizarr.stores.sources import open_array
from denoizarr.stores.store_options import StoreOptions

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.servers.fault_proxy import FaultProxy
from tests.servers.faults import Weather
from tests.servers.s3 import moto_server

SHAPE, CHUNKS = (8, 1024, 1024), (1, 256, 256)
LATENCIES_MS = (0, 5, 20, 50, 100)
# Three quarters of every plane: a part of a shard, as a block with its halo reads it.
BOX = Box((0, 1, 1), (8, 1023, 767))
LAYOUTS = {"128 chunks of 128 KiB": CHUNKS, "one shard of 16 MiB, of such chunks": SHAPE}
ONE, ZARR, OURS = "one request after another", "zarr-python as it comes", "denoizarr"
AT_ONCE = {ONE: 1, ZARR: 10, OURS: 32}
LOOKS = {ONE: (canvas.FAINT, "s"), ZARR: (canvas.ORANGE, "^"), OURS: (canvas.BLUE, "o")}
Rates = dict[tuple[str, str], list[float]]


@contextmanager
def images_behind_a_proxy() -> Iterator[tuple[FaultProxy, dict[str, str]]]:
    """Yield a proxy and the URLs of one image in several layouts in the bucket behind it."""
    values = np.random.default_rng(0).integers(0, 2**16, SHAPE).astype(np.uint16)
    with tempfile.TemporaryDirectory() as folder, moto_server(Path(folder)) as server:
        bucket = server.make_bucket()
        os.environ.update(server.environment())
        urls = {}
        for number, (name, shards) in enumerate(LAYOUTS.items()):
            urls[name] = f"{bucket.url}/{number}.ome.zarr"
            save_image(values, urls[name], levels=1, chunks=CHUNKS, shards=shards)
        with FaultProxy(server.endpoint) as proxy:
            yield proxy, urls


def megabytes_per_second(proxy: FaultProxy, url: str, reader: str, latency_ms: float) -> float:
    """Read the box once and return the rate, of decoded voxels."""
    store_options.use(None, StoreOptions(endpoint=proxy.endpoint, concurrency=AT_ONCE[reader]))
    backends.open_store.cache_clear()
    proxy.calm()
    ours, theirs = reader_of(open_image(url)), open_array(url, "0")
    zarr.config.set({"async.concurrency": AT_ONCE[reader]})
    theirs[:1, :1, :1]  # the connection
    proxy.weather = Weather(latency_seconds=latency_ms / 1000)
    began = time.perf_counter()
    found = ours.read(BOX) if reader == OURS else theirs[BOX.slices]
    return float(found.nbytes / 1e6 / (time.perf_counter() - began))


def measured(proxy: FaultProxy, urls: dict[str, str]) -> Rates:
    """Return the rates of every layout and reader, by latency."""
    found: Rates = {(name, reader): [] for name in urls for reader in AT_ONCE}
    for latency in LATENCIES_MS:
        for (name, reader), rates in found.items():
            # The better of two: other programs' turns are nobody's latency.
            rates.append(max(megabytes_per_second(proxy, urls[name], reader, latency) for _ in range(2)))
    return found


def table(found: Rates) -> str:
    """Return the rates as Markdown."""
    lines = [
        "| layout | reader | "
        + " | ".join(f"{n} ms" for n in LATENCIES_MS)
        + " | times one after another at 20 ms |"
    ]
    lines.append("|---" * (len(LATENCIES_MS) + 3) + "|")
    for (name, reader), rates in found.items():
        at = LATENCIES_MS.index(20)
        cells = " | ".join(f"{rate:.1f}" for rate in rates)
        lines.append(f"| {name} | {reader} | {cells} | {rates[at] / found[name, ONE][at]:.1f} |")
    return "\n".join(lines)


def draw(found: Rates, path: Path) -> None:
    """Write the picture as PNG."""
    figure = canvas.new_canvas(
        "Reading an image from a bucket as requests take longer",
        "MB of decoded voxels per second of wall time, of 12 MiB of uint16 that hardly compress. The "
        "bucket is an emulator on the reader's own two cores, behind a proxy that holds every request "
        "back; what both can pass on at all is the ceiling of all lines. Zarr-python asks for ten "
        "chunks at once, and for those of a shard one after another; denoizarr for 32, and for "
        "neighbours in a shard together.",
        height=5.2,
    )
    for axes, name in zip(figure.subplots(1, len(LAYOUTS), sharey=True), LAYOUTS, strict=True):
        canvas.panel_title(axes, name)
        for reader, (colour, marker) in LOOKS.items():
            axes.plot(
                LATENCIES_MS, found[name, reader], marker=marker, color=colour, label=reader, linewidth=1.8
            )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_xlabel("latency of every request (ms)")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("MB/s")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Measure, print a table, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    with images_behind_a_proxy() as (proxy, urls):
        found = measured(proxy, urls)
    print(table(found))
    draw(found, out)


if __name__ == "__main__":
    main()
