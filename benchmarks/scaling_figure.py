"""Play jobs of 1 TB and 1 PB on 1 to 10,000 workers, and draw how much of their time they are at work.

    python benchmarks/scaling_figure.py --out docs/scaling.png

Prints the tables of docs/large-jobs.md. Nothing is measured here: the costs below are stated, and ``run.py
scaling`` says how far the simulator is from real runs. A minute or two.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from denoizarr.engine.simulation import BatchCosts, Projection, project
from denoizarr.figures import canvas

# Of uint16, of which the stored bytes are 60 %.
SIZES = {"1 TB": 10**12, "1 PB": 10**15}
WORKERS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
TABLED = (10, 100, 1000, 10_000)
VOXEL_BYTES, STORED = 2, 0.6
BLOCK_VOXELS = 2048 * 2048
# The halo of the standard network; a block is written once and read back once.
READ, WRITTEN = 1.05, 1 + 1
# Of client and scheduler, for a batch of one block; measured by ``run.py scaling``.
DRIVER_SECONDS = 0.002
SPREAD = 0.1
STORES = {"a store that grows with the workers": inf, "one store of 20 GB/s for all": 20e9}
# Below this share of their time at work, something holds the workers up.
HELD_UP = 0.8
MARKERS = {"nothing": "o", "the scheduler": "^", "the store": "s", "the last batches": "X"}


@dataclass(frozen=True)
class Kind:
    """A kind of worker, and how many blocks it gets at a time."""

    label: str
    voxels_per_second: float
    bytes_per_second: float
    blocks: int
    colour: str

    def costs(self, store_bytes_per_second: float) -> BatchCosts:
        """Return what one of its batches costs."""
        stored = self.blocks * BLOCK_VOXELS * VOXEL_BYTES * STORED
        return BatchCosts(
            self.blocks * BLOCK_VOXELS / self.voxels_per_second,
            READ * stored,
            WRITTEN * stored,
            self.bytes_per_second,
            store_bytes_per_second,
            DRIVER_SECONDS,
            SPREAD,
        )


KINDS = (
    Kind("CPU core, batches of 10 s (1 block)", 0.44e6, 200e6, 1, canvas.SKY),
    Kind("CPU core, batches of 1 min (6 blocks)", 0.44e6, 200e6, 6, canvas.BLUE),
    Kind("GPU, batches of 0.2 s (1 block)", 20e6, 1e9, 1, canvas.ORANGE),
    Kind("GPU, batches of 1 min (256 blocks)", 20e6, 1e9, 256, canvas.VERMILION),
)


def played(kind: Kind, image_bytes: int, store: float, workers: int) -> Projection:
    """Return what the finest level of an image takes."""
    batches = ceil(image_bytes / VOXEL_BYTES / BLOCK_VOXELS / kind.blocks)
    return project(kind.costs(store), batches, workers)


def what_holds_up(found: Projection) -> str:
    """Name what most of the waiting is for."""
    if found.efficiency >= HELD_UP:
        return "nothing"
    if found.driver_share > HELD_UP:
        return "the scheduler"
    return "the store" if found.store_share > HELD_UP else "the last batches"


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which there are two."""
    for name, length in (("years", 365.25 * 86400), ("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {name}"
    return f"{seconds:.0f} s"


Found = dict[tuple[str, str, str, int], Projection]


def play_all() -> Found:
    """Return the projections by size, store, kind and workers."""
    return {
        (size, store, kind.label, workers): played(kind, n_bytes, rate, workers)
        for size, n_bytes in SIZES.items()
        for store, rate in STORES.items()
        for kind in KINDS
        for workers in WORKERS
    }


def table(found: Found) -> str:
    """Return the projections as Markdown, a table for each size."""
    lines = []
    for size in SIZES:
        for store in STORES:
            lines += [
                "",
                f"| {size}, {store} | " + " | ".join(f"{n:,}" for n in TABLED) + " |",
                "|---" * 5 + "|",
            ]
            for kind in KINDS:
                cells = []
                for workers in TABLED:
                    one = found[size, store, kind.label, workers]
                    why = what_holds_up(one)
                    cells.append(
                        f"{duration(one.seconds)}, {one.efficiency:.0%}"
                        + ("" if why == "nothing" else f" ({why})")
                    )
                lines.append(f"| {kind.label} | " + " | ".join(cells) + " |")
    return "\n".join(lines[1:]) + "\n"


def draw(found: Found, path: Path) -> None:
    """Write the picture as PNG."""
    figure = canvas.new_canvas(
        "How much of their time workers are at work, from 1 to 10,000 of them",
        f"Simulated by the engine's rules; docs/benchmarks.md says how near that is to real runs of 1 to 16. "
        f"Costs: a CPU core denoises 0.44 million voxels a second (the standard network, measured), a GPU "
        f"20 million (assumed). Blocks are 2048 x 2048 voxels of uint16, "
        f"{BLOCK_VOXELS * VOXEL_BYTES * STORED / 1e6:.0f} MB as stored; each is read once and written "
        f"once, and read back once, at 200 MB/s a core and 1 GB/s a GPU. Client and scheduler need "
        f"{1000 * DRIVER_SECONDS:.0f} ms a batch, in one process for all. Where a line falls, "
        f"more workers hardly help, and its marker says what they wait for.",
        width=11.5,
        height=8.4,
    )
    grid = figure.add_gridspec(len(STORES) + 1, len(SIZES), height_ratios=[0.2] + [1] * len(STORES))
    _legend(figure.add_subplot(grid[0, :]))
    for row, store in enumerate(STORES):
        for column, size in enumerate(SIZES):
            axes = figure.add_subplot(grid[row + 1, column])
            canvas.panel_title(axes, f"{size}, {store}")
            _lines(axes, found, size, store)
    path.write_bytes(canvas.png_of(figure))


def _legend(axes: Axes) -> None:
    """Name colours and markers, where they hide nothing."""
    kinds = [Line2D([], [], color=kind.colour, linewidth=2.2, label=kind.label) for kind in KINDS]
    why = [
        Line2D([], [], color=canvas.INK, marker=marker, markersize=7, linestyle="none", label=_said(name))
        for name, marker in MARKERS.items()
    ]
    axes.legend(handles=[*kinds, *why], loc="center", ncols=4, frameon=False, fontsize=canvas.TEXT_SIZE)
    axes.set_axis_off()


def _said(held_up: str) -> str:
    return "at work" if held_up == "nothing" else f"waiting for {held_up}"


def _lines(axes: Axes, found: Found, size: str, store: str) -> None:
    canvas.plain_plot(axes, x_label="workers", y_label="share of their time at work")
    for kind in KINDS:
        ones = [found[size, store, kind.label, workers] for workers in WORKERS]
        shares = [100 * one.efficiency for one in ones]
        axes.plot(WORKERS, shares, color=kind.colour, linewidth=2.2)
        for workers, share, one in zip(WORKERS, shares, ones, strict=True):
            axes.plot(workers, share, marker=MARKERS[what_holds_up(one)], color=kind.colour, markersize=7)
    axes.set_xscale("log")
    axes.set_xlim(0.8, 14_000)
    axes.set_ylim(0, 106)
    axes.set_xticks([1, 10, 100, 1000, 10_000], ["1", "10", "100", "1,000", "10,000"])
    axes.set_yticks([0, 25, 50, 75, 100], ["0 %", "25 %", "50 %", "75 %", "100 %"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/scaling.png"), help="the picture")
    arguments = parser.parse_args()
    found = play_all()
    draw(found, arguments.out)
    print(table(found))


if __name__ == "__main__":
    main()
