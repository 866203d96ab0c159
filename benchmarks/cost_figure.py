"""Price a job of 1 TB in several chunks, from metadata alone, and draw what its money goes to.

    python benchmarks/cost_figure.py --out docs/cost.png

Prints the table of docs/cost.md. No voxel exists: the prices are the example that is shipped, the seconds of
work constants, and the requests the bounds that the tests hold against counted ones. A few seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import zarr
from matplotlib.axes import Axes

from denoizarr.figures import canvas
from denoizarr.pipeline.cost import JobCost
from denoizarr.pipeline.plan import plan

SHAPE = (1200, 20480, 20480)
# Of the input: chunks and shards. The output has the plan's own layout.
LAYOUTS = {
    "512 x 512, shards of 2048 x 2048": ((1, 512, 512), (1, 2048, 2048)),
    "512 x 512": ((1, 512, 512), None),
    "128 x 128, shards of 2048 x 2048": ((1, 128, 128), (1, 2048, 2048)),
    "128 x 128": ((1, 128, 128), None),
    "64 x 64": ((1, 64, 64), None),
}
PROCESSORS = {"cpu": "CPU cores", "gpu": "GPUs"}
PARTS = {
    "hours of cores and GPUs": canvas.BLUE,
    "requests of inference": canvas.VERMILION,
    "requests of the pass before training": canvas.ORANGE,
    "requests of periodic lines, if found": canvas.SKY,
    "all other requests": canvas.INK,
    "a month's storage": "#b9b9b9",
}


def priced(chunks: tuple[int, ...], shards: tuple[int, ...] | None, processor: str) -> JobCost:
    """Return the cost of a job over an image of 1 TB that is all metadata."""
    with TemporaryDirectory() as folder:
        zarr.create_array(f"{folder}/in", shape=SHAPE, chunks=chunks, shards=shards, dtype="uint16")
        job = {
            "input": {"url": f"{folder}/in", "axes": "zyx"},
            "output": f"{folder}/run",
            "cost": {"charge_local": True, "processor": processor},
        }
        found = plan(job)
    assert found.cost is not None, found.problems
    return found.cost


def parts_of(cost: JobCost) -> dict[str, float]:
    """Return what the money goes to."""
    requests = {step.name: step.requests_money for step in cost.steps}
    found = {
        "hours of cores and GPUs": sum(step.compute_money for step in cost.steps),
        "requests of inference": requests.pop("inference"),
        "requests of the pass before training": requests.pop("where to look for stage1"),
        "requests of periodic lines, if found": requests.pop("periodic lines, if found"),
    }
    return {**found, "all other requests": sum(requests.values()), "a month's storage": cost.storage_money}


def table(found: dict[tuple[str, str], JobCost]) -> str:
    """Return the costs as Markdown."""
    lines = ["| chunks of the input | requests | on CPU cores | on GPUs |", "|---" * 4 + "|"]
    for name in LAYOUTS:
        cpu, gpu = (found[name, processor] for processor in PROCESSORS)
        millions = cpu.requests.total / 1e6
        lines.append(f"| {name} | {millions:.0f} million | {cpu.money:.0f} USD | {gpu.money:.0f} USD |")
    return "\n".join(lines)


def draw(found: dict[tuple[str, str], JobCost], path: Path) -> None:
    """Write the picture as PNG."""
    figure = canvas.new_canvas(
        "What the money for a job of 1 TB goes to, by the chunks of its input",
        "At most, by the example of prices that is shipped (list prices of large providers, 2025, rounded): "
        "reading 0.40 USD a million requests, writing 5 USD, a core 0.045 USD an hour, a GPU 1 USD, "
        "0.023 USD per GB and month. 1,200 planes of 20,480 x 20,480 voxels of uint16; two stages of "
        "training, periodic lines sought. A CPU core denoises 0.44 million voxels a second (measured), "
        "a GPU 20 million (assumed).",
        width=11.5,
        height=7.2,
    )
    grid = figure.add_gridspec(len(PROCESSORS) + 1, 1, height_ratios=[0.16] + [1] * len(PROCESSORS))
    legend = figure.add_subplot(grid[0, :])
    for row, (processor, words) in enumerate(PROCESSORS.items()):
        axes = figure.add_subplot(grid[row + 1, 0])
        canvas.panel_title(axes, f"on {words}")
        _bars(axes, {name: parts_of(found[name, processor]) for name in LAYOUTS})
    handles, labels = axes.get_legend_handles_labels()
    legend.legend(handles, labels, loc="center", ncols=3, frameon=False, fontsize=canvas.TEXT_SIZE)
    legend.set_axis_off()
    path.write_bytes(canvas.png_of(figure))


def _bars(axes: Axes, found: dict[str, dict[str, float]]) -> None:
    canvas.plain_plot(axes, x_label="USD", y_label="")
    left = dict.fromkeys(found, 0.0)
    names = list(found)
    for part, colour in PARTS.items():
        widths = [found[name][part] for name in names]
        axes.barh(names, widths, left=[left[name] for name in names], color=colour, label=part, height=0.62)
        for name, width in zip(names, widths, strict=True):
            left[name] += width
    for row, name in enumerate(names):
        axes.text(left[name], row, f"  {left[name]:.0f}", va="center", fontsize=canvas.TEXT_SIZE)
    axes.set_xlim(0, 1.08 * max(left.values()))
    axes.invert_yaxis()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/cost.png"), help="the picture")
    arguments = parser.parse_args()
    found = {
        (name, processor): priced(chunks, shards, processor)
        for name, (chunks, shards) in LAYOUTS.items()
        for processor in PROCESSORS
    }
    draw(found, arguments.out)
    print(table(found))


if __name__ == "__main__":
    main()
