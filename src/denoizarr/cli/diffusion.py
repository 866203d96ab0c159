"""The verb for diffusion MRI: patch2self."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Annotated, Any

import typer

from .app import Blocks, Cluster, Debug, Insecure, Json, Overwrite, Workers, app, ints_of, say, told


@app.command()
def patch2self(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="An OME-Zarr image of axes t or c, z, y, x, or NIfTI.")
    ],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="The output, an OME-Zarr image or NIfTI.")
    ],
    bvals: Annotated[
        str | None,
        typer.Option(
            help="A text file of b-values, in a row or a column; default: those that SRC came with."
        ),
    ] = None,
    patch_radius: Annotated[
        str, typer.Option(help="In voxels: 0 predicts from the voxel itself; 1, or 0,1,1 along z, y, x.")
    ] = "0",
    model: Annotated[str, typer.Option(help="ols, ridge or lasso.")] = "ols",
    alpha: Annotated[float, typer.Option(help="Penalty of ridge and lasso.")] = 1.0,
    b0_threshold: Annotated[float, typer.Option(help="At most this b-value, in s/mm2, is b0.")] = 50.0,
    b0_denoising: Annotated[bool, typer.Option(help="Denoise the b0 volumes, among themselves.")] = True,
    clip_negative_vals: Annotated[
        bool, typer.Option("--clip-negative-vals", help="Negative values become zero; nothing is shifted.")
    ] = False,
    shift_intensity: Annotated[
        bool, typer.Option(help="Shift each volume until its minimum is that of its input.")
    ] = True,
    group_by_shell: Annotated[
        bool, typer.Option("--group-by-shell", help="Predict each shell's volumes among themselves.")
    ] = False,
    mask: Annotated[
        str | None, typer.Option(help="An image of z, y, x: voxels that count; the others stay as they are.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the output; default float32 of integers, else the input's.")
    ] = None,
    memory_limit: Annotated[str, typer.Option(help="Per worker process.")] = "2GiB",
    shards: Annotated[
        str | None, typer.Option(help="Of the output, such as 86,10,64,64: all volumes of a box.")
    ] = None,
    report: Annotated[str | None, typer.Option(help="A page of the result, such as report.html.")] = None,
    report_volume: Annotated[
        int | None, typer.Option(help="Which volume it shows; default: a diffusion-weighted one.")
    ] = None,
    report_slice: Annotated[
        int | None, typer.Option(help="Which slice along z it shows; default: the middle one.")
    ] = None,
    cluster: Cluster = None,
    workers: Workers = None,
    insecure: Insecure = False,
    blocks: Blocks = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Denoise diffusion MRI: predict each volume from all others (Patch2Self); run again to resume.

    Example: `denoizarr patch2self dwi.nii.gz denoised.nii.gz --bvals dwi.bval`, or
    `denoizarr patch2self dwi.ome.zarr denoised.ome.zarr --cluster local`
    """
    from denoizarr.diffusion.patch2self import patch2self as run_patch2self
    from denoizarr.engine.cluster import open_client
    from denoizarr.engine.freed_memory import one_arena
    from denoizarr.engine.memory_limits import parse_bytes
    from denoizarr.engine.shares import Share
    from denoizarr.engine.summary import RunSummary
    from denoizarr.pipeline.cluster_file import cluster_of
    from denoizarr.stores.images import open_image
    from denoizarr.stores.nifti import is_nifti_name, open_nifti

    share = None if blocks is None else Share.parse(blocks)
    if workers is not None and cluster is None:
        raise typer.BadParameter("goes with --cluster", param_hint="--workers")
    if share is not None and cluster is not None:
        raise typer.BadParameter("a share is run by this process alone", param_hint="--blocks")
    if share is not None and report is not None:
        raise typer.BadParameter("goes with the call that finishes, without --blocks", param_hint="--report")
    radius = ints_of(patch_radius, "--patch-radius") or (0,)
    stored = open_nifti(source) if is_nifti_name(source) else open_image(source)
    # Of another number of axes it is refused below.
    axes = (3, 2) if is_nifti_name(source) else (0, 1)
    volumes, depth = (stored.shape[i] if len(stored.shape) == 4 else sys.maxsize for i in axes)
    for option, shown, count in (
        ("--report-volume", report_volume, volumes),
        ("--report-slice", report_slice, depth),
    ):
        if shown is not None and report is None:
            raise typer.BadParameter("goes with --report", param_hint=option)
        if shown is not None and not 0 <= shown < count:
            raise typer.BadParameter(f"{shown} is not one of 0 to {count - 1}", param_hint=option)
    # Predictions are no whole numbers; rounded, they would have noise of their own.
    out_dtype = dtype or ("float32" if stored.dtype.kind in "ui" else stored.dtype.name)
    limit = parse_bytes(memory_limit)
    if cluster is None:
        one_arena()  # as the workers of a local cluster are started
    pages: list[str] = []

    def page_of(image: Any, output: str) -> None:
        from denoizarr.diffusion.volume_groups import read_bvals
        from denoizarr.report.diffusion import write_diffusion_report

        assert report is not None
        values = None if bvals is None else read_bvals(bvals).tolist()
        pages.append(
            write_diffusion_report(
                image,
                output,
                report,
                bvals=values,
                volume=report_volume,
                z=report_slice,
                title=destination if is_nifti_name(destination) else None,
            )
        )

    settings = cluster_of(cluster, workers=workers, memory_limit_bytes=limit, insecure=insecure)
    with nullcontext() if cluster is None else open_client(settings) as client:
        summary = run_patch2self(
            source,
            bvals,
            destination=destination,
            patch_radius=radius[0] if len(radius) == 1 else radius,
            model=model,
            alpha=alpha,
            b0_threshold=b0_threshold,
            b0_denoising=b0_denoising,
            clip_negative_vals=clip_negative_vals,
            shift_intensity=shift_intensity and not clip_negative_vals,
            group_by_shell=group_by_shell,
            mask=mask,
            out_dtype=out_dtype,
            verbose=True,
            client=client,
            memory_limit=limit,
            shards=ints_of(shards, "--shards"),
            overwrite=overwrite,
            share=None if share is None else (share.number, share.count),
            then=None if report is None else page_of,
        )
    assert isinstance(summary, RunSummary), "of a stored image"
    if share is not None and not summary.blocks_total:
        # Of a first pass: whoever finished now would do the rest alone.
        text = f"share {blocks} of this pass is done; when all shares are, run all of them again"
        say(text, summary.to_json(), as_json)
        return
    text = "\n".join([told(summary, blocks), *(f"report {page}" for page in pages)])
    say(text, {**summary.to_json(), **({"report": pages[0]} if pages else {})}, as_json)
