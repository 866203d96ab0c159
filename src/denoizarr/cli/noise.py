"""The verb for the shape of structured noise: extract-mask."""

from __future__ import annotations

import shlex
from typing import Annotated, Any

import typer

from .app import Debug, Json, app, say
from .looking import PlotFile


@app.command("extract-mask")
def extract_mask(
    url: Annotated[list[str], typer.Argument(help="One or more OME-Zarr images.")],
    out: Annotated[str, typer.Option(help="Of the kernel: KERNEL.json, or .npy for the mask alone.")],
    plot: PlotFile = None,
    index: Annotated[
        str | None, typer.Option(help="A saved patch index: its background is preferred.")
    ] = None,
    mask_source: Annotated[
        str,
        typer.Option(
            help="extractor: the raw image; stage1: what --model makes of it; auto: the raw image, and "
            "stage1 where that cannot tell noise from structure and there is a model."
        ),
    ] = "auto",
    model: Annotated[str | None, typer.Option(help="A model of stage 1, for stage1 and auto.")] = None,
    method: Annotated[
        str | None, typer.Option(help="significance (the default) or rings, the documented algorithm.")
    ] = None,
    center_size: Annotated[
        int | None, typer.Option(help="Side of the square of lags that is analysed, in pixels.")
    ] = None,
    max_true_pixels: Annotated[
        int | None, typer.Option(help="Keep so many pixels, those of the strongest correlation.")
    ] = None,
    planes: Annotated[
        int,
        typer.Option(help="Of a window along z: from 3 on lags along z too, for 3D patches."),
    ] = 1,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting of the method, such as floor=0.05; may be repeated."),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(help="Draw the kernel beside that of this file in --plot; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the windows.")] = 0,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say what each step measured.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """The shape of structured noise: which pixels around a pixel share its noise, measured from the image.

    It is for `denoizarr train --kernel`, or for `mask_file_path` in a job, which else measures its own.

    Example: `denoizarr extract-mask stack.ome.zarr --out kernel.json --plot kernel.png`
    """
    from denoizarr.figures.canvas import png_of
    from denoizarr.figures.mask_comparison import compare_masks
    from denoizarr.selection.patch_index import PatchIndex
    from denoizarr.stores import locations
    from denoizarr.training.denoiser import Denoiser
    from denoizarr.training.noise_kernel import NoiseKernel, extract_noise_kernel
    from denoizarr.training.structure import StructuralNoiseExtractor

    if compare and plot is None:
        raise typer.BadParameter("needs --plot, the picture to draw in", param_hint="--compare")
    locations.refuse_read_only(out)
    extractor = StructuralNoiseExtractor(
        method, center_size=center_size, max_true_pixels=max_true_pixels, **_settings(setting or [])
    )
    others = {path: NoiseKernel.load(path) for path in compare or []}
    kernel = extract_noise_kernel(
        list(url),
        None if index is None else PatchIndex.open(index),
        mask_source=mask_source,
        denoiser=None if model is None else Denoiser.load(model),
        extractor=extractor,
        planes=planes,
        seed=seed,
        verbose=verbose,
    )
    kernel.save(out)
    if plot is not None:
        figure = kernel.plot()
        if others:
            figure = compare_masks(kernel, *others.values(), labels=["measured", *others])
        locations.put(plot, png_of(figure))
    lines = [kernel.in_words(), f"saved in {out}" if plot is None else f"saved in {out}, drawn in {plot}"]
    if not kernel.is_single_pixel:
        patch = ["--patch-size", "16,64,64"] if kernel.mask.ndim == 3 else []
        given = [*url, "--kernel", out, *patch, "--out", "model.safetensors"]
        lines.append(f"next: denoizarr train {shlex.join(given)}")
    elif not kernel.note:
        lines.append("there is nothing to hide beside the pixel itself: train without --kernel")
    say("\n".join(lines), {"kernel": out, **kernel.facts()}, as_json)


def _settings(given: list[str]) -> dict[str, Any]:
    """Return settings given as NAME=VALUE; whole numbers, numbers, true and false are taken as such."""
    settings: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"got {text!r}, expected NAME=VALUE", param_hint="--set")
        if name.strip() in ("method", "center_size", "max_true_pixels"):
            own = name.strip().replace("_", "-")
            raise typer.BadParameter(
                f"got {text!r}, which has an option of its own: --{own}", param_hint="--set"
            )
        settings[name.strip()] = _value(value.strip())
    return settings


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
