"""The command line: parse, call one public function, print. Nothing is computed here."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from denoizarr.errors import DenoizarrError, Stopped

app = typer.Typer(
    name="denoizarr",
    help="Denoise image stacks that do not fit in memory, learning from the noisy data alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable line last.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Sizes = Annotated[
    str | None, typer.Option(help="One int per dim in the order t, c, z, y, x, such as 1,512,512.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete what lies at the destination first.")]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line.

    Exit status: 0 done; 1 a block or step failed; 2 the request or the data were wrong; 75 stopped in an
    orderly way and resumable.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(
        format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING, stream=sys.stderr
    )
    logging.getLogger("denoizarr").setLevel(logging.INFO)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        app(given, standalone_mode=True)
    except DenoizarrError as error:
        if "--debug" in given:
            raise
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(error.exit_status)
    sys.exit(0)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(f"stopped by {signal.Signals(number).name}", remedy="run the same command again to resume")


def _say(lines: str, data: Mapping[str, Any], as_json: bool) -> None:
    print(lines)
    if as_json:
        print(json.dumps(data, default=str))


def _ints(text: str | None, option: str) -> tuple[int, ...] | None:
    return None if text is None else tuple(_numbers(text, option, int))


def _numbers(text: str, option: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"got {text!r}, expected numbers between commas", param_hint=option
        ) from None


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run; run again to resume.")] = Path("demo-out"),
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
    _say(score_table(out), summary.to_json(), as_json)


@app.command()
def info(
    url: Annotated[str, typer.Argument(help="An OME-Zarr image.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Axes, levels, chunks, shards, dtype, scale, codecs, size, what is missing.

    Example: `denoizarr info stack.ome.zarr`
    """
    from denoizarr.stores.describe import info as describe

    found = describe(url)
    lines = [
        f"{found['url']}  OME-Zarr {found['version']}, {found['state']}",
        f"axes {''.join(found['axes'])}",
    ]
    lines += [_level_line(level) for level in found["levels"]]
    if any(found["units"]):
        lines.append(
            "units " + ", ".join(f"{a} {u}" for a, u in zip(found["axes"], found["units"], strict=True) if u)
        )
    _say("\n".join(lines), found, as_json)


def _level_line(level: Mapping[str, Any]) -> str:
    shape, chunks, shards = (
        " x ".join(map(str, level[key] or ["none"])) for key in ("shape", "chunks", "shards")
    )
    line = f"level {level['path']}: {shape} {level['dtype']}, chunks {chunks}, shards {shards}"
    line += (
        f", codecs {'+'.join(level['codecs']) or 'none'}, scale {' '.join(f'{s:g}' for s in level['scale'])}"
    )
    line += f", {level['size_bytes'] / 2**20:.1f} MiB"
    if level["stored_bytes"] is not None:
        line += f" ({level['stored_bytes'] / 2**20:.1f} MiB stored)"
    return line + (f", {level['missing_chunks']} chunks missing" if level["missing_chunks"] else "")


@app.command()
def convert(
    paths: Annotated[
        list[str], typer.Argument(metavar="SRC... DST", help="Files, folders or globs, then the destination.")
    ],
    axes: Annotated[str | None, typer.Option(help="Axis names in stored order, such as zyx.")] = None,
    scale: Annotated[
        str | None, typer.Option(help="Voxel size per axis in stored order, such as 2,0.5,0.5.")
    ] = None,
    units: Annotated[
        str | None, typer.Option(help="Unit per axis, such as micrometer,micrometer,micrometer.")
    ] = None,
    chunks: Sizes = None,
    shards: Sizes = None,
    ome_version: Annotated[str, typer.Option(help="0.5 or 0.4.")] = "0.5",
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """TIFF, OME-TIFF, PNG or npy files, or a plain Zarr array, to an OME-Zarr pyramid.

    A folder or glob of equal planes becomes one stack, in natural order.

    Example: `denoizarr convert slices/*.tif stack.ome.zarr --axes zyx --scale 5,2,2`
    """
    from denoizarr.engine.cluster import usable_cores
    from denoizarr.images.convert import convert as run_convert

    if len(paths) < 2:
        raise typer.BadParameter("needs at least one source and a destination", param_hint="SRC... DST")
    summary = run_convert(
        paths[:-1],
        paths[-1],
        axes=axes,
        scale=None if scale is None else _numbers(scale, "--scale", float),
        units=None if units is None else units.split(","),
        chunks=_ints(chunks, "--chunks"),
        shards=_ints(shards, "--shards"),
        ome_version=ome_version,
        overwrite=overwrite,
        threads=usable_cores(),
        progress=True,
    )
    _say(_told(summary), summary.to_json(), as_json)


@app.command()
def train(
    url: Annotated[list[str], typer.Argument(help="One or more OME-Zarr images.")],
    out: Annotated[str, typer.Option(help="The model file; .safetensors is added.")],
    index: Annotated[
        str | None, typer.Option(help="A saved patch index; by default every cell counts alike.")
    ] = None,
    kernel: Annotated[
        str | None, typer.Option(help="A noise kernel (.json or .npy) to hide: structN2V.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Number of epochs.")] = 10,
    patch_size: Annotated[int, typer.Option(help="In pixels, y and x.")] = 64,
    patches_per_epoch: Annotated[
        int | None, typer.Option(help="Default: as the index holds, 1024 to 4096.")
    ] = None,
    mask_percentage: Annotated[float, typer.Option(help="Predicted pixels, per cent of a patch.")] = 1.5,
    seed: Annotated[int, typer.Option(help="Of weights, patches and blind spots.")] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a blind-spot network on noisy images; run again to resume from the last epoch.

    Example: `denoizarr train stack.ome.zarr --out model.safetensors`
    """
    from denoizarr.selection.patch_index import PatchIndex
    from denoizarr.training.noise_kernel import NoiseKernel
    from denoizarr.training.options import TrainingOptions
    from denoizarr.training.trainer import train as run_train

    denoiser = run_train(
        list(url),
        None if index is None else PatchIndex.open(index),
        blind_spot=None if kernel is None else NoiseKernel.load(kernel).mask,
        options=TrainingOptions(
            patch_size=patch_size,
            num_epochs=epochs,
            patches_per_epoch=patches_per_epoch,
            mask_percentage=mask_percentage,
            seed=seed,
        ),
        checkpoint=f"{out.removesuffix('.safetensors')}.checkpoints",
    )
    where = denoiser.save(out)
    _say(
        f"model {where}", {"model": where, "digest": denoiser.digest, "training": denoiser.training}, as_json
    )


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="A model file.")],
    source: Annotated[str, typer.Argument(metavar="SRC", help="An OME-Zarr image.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="The output.")],
    memory_limit: Annotated[str, typer.Option(help="Per worker process.")] = "2GiB",
    cluster: Annotated[str, typer.Option(help="local, or the address of a scheduler.")] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Local worker processes; default: one per core.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the output; default: the input's.")] = None,
    missing: Annotated[str, typer.Option(help="An absent chunk: error or fill.")] = "error",
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Apply a model to a whole image, block by block; run again to resume.

    Example: `denoizarr predict model.safetensors stack.ome.zarr denoised.ome.zarr`
    """
    from denoizarr.engine.cluster import ClusterSettings, open_client
    from denoizarr.inference.predict import predict as run_predict
    from denoizarr.inference.prediction import parse_bytes
    from denoizarr.stores.images import as_images
    from denoizarr.training.denoiser import Denoiser

    limit = parse_bytes(memory_limit)
    denoiser = Denoiser.load(model)  # before a cluster is started for nothing
    as_images(source)
    address = None if cluster == "local" else cluster
    settings = ClusterSettings("local" if address is None else "address", workers or "auto", limit, address)
    with open_client(settings) as client:
        summary = run_predict(
            denoiser,
            source,
            destination,
            client=client,
            memory_limit=limit,
            dtype=dtype,
            missing=missing,  # type: ignore[arg-type]  # open_image checks it and says what it may be
            overwrite=overwrite,
        )
    _say(_told(summary), summary.to_json(), as_json)


@app.command()
def plan(
    job: Annotated[Path, typer.Argument(help="A job file.")], as_json: Json = False, debug: Debug = False
) -> None:
    """The dry run: what a job would read, write, need and take, and why it would be refused.

    Example: `denoizarr plan job.yaml`
    """
    from denoizarr.pipeline.plan import plan as run_plan

    planned = run_plan(job)
    if planned.problems:
        _say("\n".join(f"problem: {problem}" for problem in planned.problems), planned.to_json(), as_json)
        raise typer.Exit(2)
    lines = (
        f"blocks {planned.blocks} in {planned.batches} batches\n"
        f"reads {planned.bytes_read / 2**20:.1f} MiB, writes {planned.bytes_written / 2**20:.1f} MiB\n"
        f"memory at most {planned.bytes_per_worker / 2**20:.0f} MiB per worker\n"
        f"computes {planned.recompute_factor:.2f} voxels per voxel kept\n"
        f"roughly {planned.seconds / 60:.1f} minutes on this machine, training included"
    )
    _say(lines, planned.to_json(), as_json)


@app.command()
def run(
    job: Annotated[Path, typer.Argument(help="A job file.")], as_json: Json = False, debug: Debug = False
) -> None:
    """The whole job; run again with the same file to resume.

    A job file needs two lines:

        input: {url: stack.ome.zarr}
        output: {url: run}

    Example: `denoizarr run job.yaml`
    """
    from denoizarr.pipeline.run import run_pipeline

    summary = run_pipeline(job)
    report = Path(summary.destination).parent / "report.html"
    _say(f"{_told(summary)}\nreport {report}", summary.to_json(), as_json)


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
    _say(f"report {where}", {"report": where}, as_json)


def _told(summary: Any) -> str:
    blocks = (
        f"{summary.blocks_done} of {summary.blocks_total} blocks done, {summary.blocks_skipped} done before"
    )
    cost = f"{summary.seconds:.1f} s, peak {summary.peak_bytes / 2**20:.0f} MiB"
    lines = [f"output {summary.destination}", f"{blocks}, {cost}"]
    if summary.missing_chunks:
        lines.append(f"{summary.missing_chunks} absent input chunks were read as the fill value")
    lines += [f"changed: {change}" for change in summary.changes]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
