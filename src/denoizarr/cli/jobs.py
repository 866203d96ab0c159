"""Verbs for whole jobs: demo, plan, run, status, report."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Annotated

import typer

from .app import Debug, Json, app, say, told

Prices = Annotated[
    Path | None,
    typer.Option(help="Your own prices, a YAML file in place of the example that is shipped."),
]
MaxCost = Annotated[
    float | None, typer.Option(min=0, help="Refuse a job that may cost more, in the currency of the prices.")
]


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="Folder or URL of the run; run again to resume.")] = "demo-out",
    seed: Annotated[
        int, typer.Option(help="Draws the specimen, the noise and the length of the scan noise.")
    ] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """A small simulated microscope stack with known truth through the whole job; prints PSNR and SSIM.

    Example: `denoizarr demo --out demo-out`
    """
    from denoizarr.pipeline.demo import demo as run_demo
    from denoizarr.pipeline.demo import score_table

    summary = run_demo(out, seed=seed)
    say(score_table(out), summary.to_json(), as_json)


@app.command()
def plan(
    job: Annotated[str, typer.Argument(help="A job file, or its URL.")],
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Measure a few blocks, and project the inference on so many workers."),
    ] = None,
    store_rate: Annotated[
        float | None,
        typer.Option(help="What the store gives all workers together, in MB/s. [default: grows with them]"),
    ] = None,
    prices: Prices = None,
    max_cost: MaxCost = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """The dry run: what a job would read, write, need, take and cost, and why it would be refused.

    Example: `denoizarr plan job.yaml --workers 100 --store-rate 5000 --prices prices.yaml --max-cost 50`
    """
    from denoizarr.pipeline.plan import plan as run_plan
    from denoizarr.pipeline.scaling import in_words
    from denoizarr.report.words import duration

    rate = inf if store_rate is None else store_rate * 1e6
    planned = run_plan(job, workers=workers, store_bytes_per_second=rate, prices=prices, max_cost=max_cost)
    table = "" if planned.cost is None else planned.cost.in_words()
    if planned.problems:
        problems = [f"problem: {problem}" for problem in planned.problems]
        say("\n".join([*([table] if table else []), *problems]), planned.to_json(), as_json)
        raise typer.Exit(2)
    lines = (
        f"blocks {planned.blocks} in {planned.batches} batches\n"
        f"inference reads {planned.bytes_read / 2**20:.1f} MiB, "
        f"writes {planned.bytes_written / 2**20:.1f} MiB\n"
        f"memory at most {planned.bytes_per_worker / 2**20:.0f} MiB per worker\n"
        f"computes {planned.recompute_factor:.2f} voxels per voxel kept, "
        f"decodes {planned.read_amplification:.2f} chunks per chunk\n"
        f"roughly {duration(planned.seconds)} on this machine, training included"
    )
    if planned.projection is not None:
        lines += f"\n{in_words(planned.projection, planned.workers)}"
    lines = "\n".join([lines, table, *(f"note: {note}" for note in planned.notes)])
    say(lines, planned.to_json(), as_json)


@app.command()
def run(
    job: Annotated[str, typer.Argument(help="A job file, or its URL.")],
    prices: Prices = None,
    max_cost: MaxCost = None,
    metrics_file: Annotated[
        Path | None,
        typer.Option(
            help="Counters for monitoring, in Prometheus' text format, such as "
            "/var/lib/node_exporter/denoizarr.prom; besides metrics.prom in the run folder."
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """The whole job; run again with the same file to resume.

    A job file needs two lines:

        input: {url: stack.ome.zarr}
        output: {url: run}

    Example: `denoizarr run job.yaml`
    """
    from denoizarr.pipeline.run import run_pipeline
    from denoizarr.stores import locations

    summary = run_pipeline(job, prices=prices, max_cost=max_cost, metrics_file=metrics_file)
    report = locations.join(locations.parent_of(summary.destination), "report.html")
    say(f"{told(summary)}\nreport {report}", summary.to_json(), as_json)


@app.command()
def status(
    where: Annotated[str, typer.Argument(metavar="RUN|OUTPUT", help="A run folder, or an output image.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """How far a job has come: batches done, the last record, whether a driver lives, what to do next.

    It reads only, and may be asked while the job runs or after it died.

    Example: `denoizarr status run`
    """
    from denoizarr.pipeline.status import job_status

    found = job_status(where)
    say(found.in_words(), found.to_json(), as_json)


@app.command()
def report(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the report of a finished run again.

    Example: `denoizarr report run`
    """
    from denoizarr.report.page import write_report

    where = str(write_report(folder))
    say(f"report {where}", {"report": where}, as_json)
