"""Verbs for where to look: filter-map, index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import Blocks, Debug, Json, app, numbers_of, say

PatchSizes = Annotated[
    str, typer.Option(help="In voxels: one int, y,x or z,y,x; an int or a pair is applied plane by plane.")
]
FilterName = Annotated[str, typer.Option("--filter", help="shannon, max, mean_std, mask, or none.")]
Threshold = Annotated[
    str,
    typer.Option(
        help="What reaches it is kept; auto suggests it, and keeps all where it finds no background."
    ),
]
StdThreshold = Annotated[
    float | None, typer.Option(help="Of the standard deviation too, with --filter mean_std.")
]
RefChannel = Annotated[int, typer.Option(help="The channel that is scored.")]
Coverage = Annotated[
    float | None,
    typer.Option(help="Of max, and of --filter mask: fraction of a region; default 0.25, in 3D 0.125."),
]
Masks = Annotated[
    list[str] | None,
    typer.Option(help="A precomputed mask: OME-Zarr, Zarr, TIFF, PNG or npy; one for each image."),
]
MaskCoverage = Annotated[
    float | None,
    typer.Option(help="Fraction of a region that the mask must cover; default 0.25, in 3D 0.125."),
]
MaskMissing = Annotated[str, typer.Option(help="A chunk that the mask's store lacks: error or fill.")]
_ROI_OPTIONS = {
    "threshold": "--roi-threshold",
    "select_background": "--select-background",
    "scale_factor": "--scale-factor",
    "sigma": "--roi-sigma",
    "equalize": "--roi-equalize",
    "overlap": "--roi-overlap",
    "background": "--roi-background",
}
PlotFile = Annotated[Path | None, typer.Option("--plot", help="Write a picture, a PNG.")]


@app.command("filter-map")
def filter_map(
    url: Annotated[str, typer.Argument(help="An OME-Zarr image.")],
    out: Annotated[str, typer.Option(help="Of the map: a Zarr group that xarray opens.")],
    filter_name: Annotated[str, typer.Option("--filter", help="shannon, max, mean_std or mask.")] = "shannon",
    patch_size: PatchSizes = "64",
    threshold: Threshold = "auto",
    std_threshold: StdThreshold = None,
    ref_channel: RefChannel = 0,
    coverage: Coverage = None,
    mask: Annotated[
        str | None, typer.Option(help="With --filter mask: an OME-Zarr, Zarr, TIFF, PNG or npy.")
    ] = None,
    mask_missing: MaskMissing = "error",
    plot: PlotFile = None,
    t_idx: Annotated[int | None, typer.Option(help="Time point shown in the picture.")] = None,
    z_idx: Annotated[int | None, typer.Option(help="Plane shown in the picture; default the middle.")] = None,
    blocks: Blocks = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Where signal is: one score per patch, a suggested threshold, a picture; run again to resume.

    Example: `denoizarr filter-map stack.ome.zarr --patch-size 64,64 --out map.zarr --plot map.png`
    """
    from denoizarr.engine.cluster import usable_cores
    from denoizarr.engine.shares import Share
    from denoizarr.selection.filters import filter_of
    from denoizarr.selection.looks import look_at_filter_map

    chosen = filter_of(
        filter_name,
        threshold=_threshold(threshold),
        std_threshold=std_threshold,
        ref_channel=ref_channel,
        coverage=coverage,
        missing=mask_missing,
    )
    if chosen is None:
        raise typer.BadParameter("a map needs a filter", param_hint="--filter")
    found = look_at_filter_map(
        url,
        out,
        patch_of(patch_size),
        chosen,
        mask=mask,
        plot=plot,
        t_idx=t_idx,
        z_idx=z_idx,
        threads=usable_cores(),
        share=None if blocks is None else Share.parse(blocks),
    )
    say("\n".join(found.pop("lines")), found, as_json)


@app.command()
def index(
    url: Annotated[list[str], typer.Argument(help="One or more OME-Zarr images.")],
    out: Annotated[str, typer.Option(help="Of the index.")],
    patch_size: PatchSizes = "64",
    filter_name: FilterName = "shannon",
    threshold: Threshold = "auto",
    std_threshold: StdThreshold = None,
    ref_channel: RefChannel = 0,
    coverage: Coverage = None,
    mask: Masks = None,
    mask_coverage: MaskCoverage = None,
    mask_missing: MaskMissing = "error",
    filtered_patch_prob: Annotated[
        float, typer.Option(help="Chance of the patches that are filtered out, of that of the others.")
    ] = 0.1,
    use_roi: Annotated[bool, typer.Option("--use-roi", help="Only inside regions of interest.")] = False,
    select_background: Annotated[
        bool, typer.Option(help="Regions of background in place of structure; the filter is then off.")
    ] = False,
    roi_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="On the equalised window means; default 0.5.")
    ] = None,
    scale_factor: Annotated[
        float | None, typer.Option(help="Of the coarse level that regions are sought on; default 0.25.")
    ] = None,
    roi_sigma: Annotated[
        float | None, typer.Option(help="Blur before, in pixels of the image; default 300.")
    ] = None,
    roi_equalize: Annotated[
        str | None, typer.Option(help="global, adaptive or none; default global.")
    ] = None,
    roi_overlap: Annotated[float | None, typer.Option(help="Of neighbouring windows; default 0.5.")] = None,
    roi_background: Annotated[
        str | None, typer.Option(help="What background is: dark or bright; default dark.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the patches drawn in the picture.")] = 0,
    plot: PlotFile = None,
    blocks: Blocks = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Where training looks: weights by filter, mask and regions of interest; run again to resume.

    What is measured stays in OUT.ledger: another threshold takes no second look at the image.

    Example: `denoizarr index stack.ome.zarr --out index.zarr --plot patches.png`
    """
    from denoizarr.engine.cluster import usable_cores
    from denoizarr.engine.shares import Share
    from denoizarr.selection.filters import MaskPatchFilter, filter_of
    from denoizarr.selection.looks import look_at_index
    from denoizarr.selection.regions_of_interest import RegionOfInterest

    given = {
        "threshold": roi_threshold,
        "select_background": select_background or None,
        "scale_factor": scale_factor,
        "sigma": roi_sigma,
        "equalize": roi_equalize,
        "overlap": roi_overlap,
        "background": roi_background,
    }
    roi_settings = {name: value for name, value in given.items() if value is not None}
    if roi_settings and not use_roi:
        names = ", ".join(_ROI_OPTIONS[name] for name in roi_settings)
        raise typer.BadParameter(f"{names} go with it", param_hint="--use-roi")
    of_mask = filter_name == "mask"
    if of_mask and coverage is not None and mask_coverage is not None:
        raise typer.BadParameter(
            "are the same with --filter mask; give one", param_hint="--coverage, --mask-coverage"
        )
    if not mask and (mask_coverage is not None or mask_missing != "error"):
        raise typer.BadParameter("--mask-coverage and --mask-missing need it", param_hint="--mask")
    chosen = filter_of(
        filter_name,
        threshold=_threshold(threshold),
        std_threshold=std_threshold,
        ref_channel=ref_channel,
        coverage=mask_coverage if of_mask and coverage is None else coverage,
        missing=mask_missing,
    )
    filters = [] if chosen is None else [chosen]
    if mask and not of_mask:
        filters.append(MaskPatchFilter(mask_coverage, ref_channel, mask_missing))  # type: ignore[arg-type]
    found = look_at_index(
        url,
        out,
        patch_of(patch_size),
        filters,
        masks=mask or None,
        roi=RegionOfInterest(ref_channel=ref_channel, **roi_settings) if use_roi else None,  # type: ignore[arg-type]
        filtered_patch_prob=filtered_patch_prob,
        seed=seed,
        plot=plot,
        threads=usable_cores(),
        share=None if blocks is None else Share.parse(blocks),
    )
    say("\n".join(found.pop("lines")), found, as_json)


def patch_of(text: str) -> int | tuple[int, ...]:
    """Return a patch size: one int, or two or three between commas."""
    sizes = tuple(numbers_of(text, "--patch-size", int))
    return sizes[0] if len(sizes) == 1 else sizes


def _threshold(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(
            f"got {text!r}, expected a number or auto", param_hint="--threshold"
        ) from None
