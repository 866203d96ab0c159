"""Verbs for images: info, convert, verify."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Annotated, Any

import typer

from .app import (
    Blocks,
    Cluster,
    Debug,
    Insecure,
    Json,
    Overwrite,
    Sizes,
    Workers,
    app,
    ints_of,
    numbers_of,
    say,
    told,
)


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
    say("\n".join(lines), found, as_json)


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
    levels: Annotated[
        int | None, typer.Option(help="Of the pyramid; default: to 256 pixels, and 1 of a TIFF.")
    ] = None,
    each: Annotated[
        bool,
        typer.Option(
            "--each", help="Every source is an image of its own, and DST a folder for their outputs."
        ),
    ] = False,
    to: Annotated[str, typer.Option(help="With --each: what they become, ome.zarr or ome.tif.")] = "ome.zarr",
    cluster: Cluster = None,
    workers: Workers = None,
    insecure: Insecure = False,
    blocks: Blocks = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """TIFF, OME-TIFF, PNG or npy files, or a Zarr image, to an OME-Zarr pyramid or an OME-TIFF.

    A folder or glob of equal planes becomes one stack, in natural order. DST's name decides what is written.

    Example: `denoizarr convert slices/*.tif stack.ome.zarr --axes zyx --scale 5,2,2`, and back:
    `denoizarr convert stack.ome.zarr stack.ome.tif`
    """
    from denoizarr.engine.cluster import open_client, usable_cores
    from denoizarr.engine.freed_memory import one_arena
    from denoizarr.engine.shares import Share
    from denoizarr.images.convert import convert as run_convert
    from denoizarr.pipeline.cluster_file import cluster_of

    share = None if blocks is None else Share.parse(blocks)
    if cluster is None:
        one_arena()  # as the workers of a local cluster are started
    if len(paths) < 2:
        raise typer.BadParameter("needs at least one source and a destination", param_hint="SRC... DST")
    if workers is not None and cluster is None:
        raise typer.BadParameter("goes with --cluster", param_hint="--workers")
    settings = cluster_of(cluster, workers=workers, insecure=insecure)
    with nullcontext() if cluster is None else open_client(settings) as client:
        summary = run_convert(
            paths[:-1],
            paths[-1],
            axes=axes,
            scale=None if scale is None else numbers_of(scale, "--scale", float),
            units=None if units is None else units.split(","),
            chunks=ints_of(chunks, "--chunks"),
            shards=ints_of(shards, "--shards"),
            levels=levels,
            ome_version=ome_version,
            overwrite=overwrite,
            client=client,
            threads=usable_cores(),
            progress=True,
            share=None if share is None else (share.number, share.count),
            each=f".{to.removeprefix('.')}" if each else None,
        )
    say(told(summary, blocks), summary.to_json(), as_json)


@app.command()
def verify(
    url: Annotated[str, typer.Argument(help="An OME-Zarr image, finished or not.")],
    sample: Annotated[
        int | None,
        typer.Option(
            min=1, help="Read so many shards or chunks of each level, drawn at random; default all."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    missing: Annotated[
        str, typer.Option(help="A chunk that a foreign image lacks: error, or fill to count it only.")
    ] = "error",
    cluster: Cluster = None,
    insecure: Insecure = False,
    nonfinite: Annotated[str, typer.Option(help="NaN and infinity: error, or allow to count them only.")] = (
        "error"
    ),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Read an image again: is all of it there, is it what was written, does its pyramid agree?

    Exit status 0 if nothing is wrong, 1 if something is; an output that is not finished is wrong, too.

    Example: `denoizarr verify run/denoised.ome.zarr`
    """
    from denoizarr.engine.cluster import open_client
    from denoizarr.pipeline.cluster_file import cluster_of
    from denoizarr.pipeline.verify import verify as run_verify

    with nullcontext() if cluster is None else open_client(cluster_of(cluster, insecure=insecure)) as client:
        report = run_verify(
            url,
            sample=sample,
            seed=seed,
            missing=missing,  # type: ignore[arg-type]  # verify checks both and says what they may be
            nonfinite=nonfinite,  # type: ignore[arg-type]
            client=client,
        )
    say(report.in_words(), report.to_json(), as_json)
    if not report.ok:
        raise typer.Exit(1)
