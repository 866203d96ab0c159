"""Verbs for models: train, predict, export."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import Blocks, Debug, Insecure, Json, Overwrite, Workers, app, say, told
from .looking import patch_of

if TYPE_CHECKING:
    from denoizarr.selection.patch_index import PatchIndex


@app.command()
def train(
    url: Annotated[list[str], typer.Argument(help="One or more OME-Zarr images.")],
    out: Annotated[str, typer.Option(help="The model file; .safetensors is added.")],
    index: Annotated[
        str | None, typer.Option(help="A saved patch index; by default every cell counts alike.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="What to learn to predict, one for each image: supervised, or Noise2Noise."),
    ] = None,
    kernel: Annotated[
        str | None, typer.Option(help="A noise kernel to hide (.json of extract-mask, or .npy): structN2V.")
    ] = None,
    patch_size: Annotated[
        str | None,
        typer.Option(help="In voxels: 64 or 64,64, plane by plane, or 16,64,64; default the index's, or 64."),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Number of epochs, at most.")] = 10,
    patches_per_epoch: Annotated[
        int | None, typer.Option(help="Default: as the index holds, 1024 to 4096.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Patches per step.")] = 8,
    mask_percentage: Annotated[
        float | None,
        typer.Option(help="Predicted pixels, per cent of a patch; default 8, with a kernel less, to 1.5."),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="What hidden pixels become: uniform (the default), median (with --n2v2), mean, zero or "
            "random; or 0, 1, 2 for the last three."
        ),
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="At the start.")] = 1e-3,
    features: Annotated[int, typer.Option(help="Channels of the network's finest level.")] = 32,
    depth: Annotated[int, typer.Option(help="How often the network halves its input.")] = 2,
    n2v2: Annotated[bool, typer.Option("--n2v2", help="Noise2Void 2's network and median filling.")] = False,
    early_stopping: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a better validation loss.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, patches and blind spots.")] = 0,
    periodic: Annotated[
        str, typer.Option(help="Take lines that run through whole images out first: auto or off.")
    ] = "auto",
    use_centre: Annotated[
        bool,
        typer.Option(help="Give a pixel's own value the weight that it is worth, measured after training."),
    ] = True,
    precision: Annotated[str, typer.Option(help="Of the steps: auto, float32 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    checkpoint: Annotated[
        str | None, typer.Option(help="Folder of the state to resume from; default OUT.checkpoints.")
    ] = None,
    log: Annotated[str | None, typer.Option(help="A CSV file with a row for each epoch.")] = None,
    samples: Annotated[
        str | None, typer.Option(help="A folder for a picture of sample predictions after each epoch.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train on noisy images, or on images and targets; run again to resume where it was stopped.

    On several GPUs: `torchrun --standalone --nproc-per-node 2 -m denoizarr.cli train ...`

    Where pixels share noise: `denoizarr train stack.ome.zarr --kernel kernel.json --out model.safetensors`

    Example: `denoizarr train stack.ome.zarr --out model.safetensors`
    """
    from denoizarr.selection.patch_index import PatchIndex
    from denoizarr.stores import locations
    from denoizarr.training.noise_kernel import NoiseKernel
    from denoizarr.training.options import TrainingOptions
    from denoizarr.training.trainer import train as run_train

    if target and kernel:
        raise typer.BadParameter("a target needs no blind spots", param_hint="--kernel")
    locations.refuse_read_only(out)
    found = None if index is None else PatchIndex.open(index)
    denoiser = run_train(
        list(url),
        found,
        target=target or None,
        blind_spot=None if kernel is None else NoiseKernel.load(kernel).hidden,
        options=TrainingOptions(
            patch_size=_patch_size(patch_size, found),
            num_epochs=epochs,
            patches_per_epoch=patches_per_epoch,
            batch_size=batch_size,
            mask_percentage=mask_percentage,
            masking_strategy=_strategy(strategy, n2v2),
            learning_rate=learning_rate,
            features=features,
            num_layers=depth,
            n2v2=n2v2,
            early_stopping=early_stopping,
            seed=seed,
            use_centre=use_centre,
            precision=precision,  # type: ignore[arg-type]  # the options check it and say what it may be
            device=device,
        ),
        checkpoint=checkpoint or f"{out.removesuffix('.safetensors')}.checkpoints",
        log=log,
        samples=samples,
        periodic=periodic,  # type: ignore[arg-type]  # checked where it is used
    )
    if denoiser.training["processes"] > 1 and os.environ.get("RANK", "0") != "0":
        return  # under torchrun all processes come out with the same model, and the first writes it
    where = denoiser.save(out)
    say(f"model {where}", {"model": where, "digest": denoiser.digest, "training": denoiser.training}, as_json)


def _patch_size(text: str | None, index: PatchIndex | None) -> Any:
    if text is not None:
        return patch_of(text)
    return 64 if index is None else tuple(index.patch_size)


def _strategy(text: str | None, n2v2: bool) -> str | int:
    if text is None:
        return "median" if n2v2 else "uniform"
    return int(text) if text.isdecimal() else text


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A model file.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The package, a .zip file.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """A model as a package of the BioImage Model Zoo, which other programs load.

    Example: `denoizarr export model.safetensors model.zip`
    """
    from denoizarr.training.denoiser import Denoiser

    where = str(Denoiser.load(model).export_bioimageio(out))
    say(f"package {where}", {"package": where}, as_json)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="A model file.")],
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC... DST", help="OME-Zarr images or globs, then the output; of several, a folder."
        ),
    ],
    memory_limit: Annotated[
        str | None, typer.Option(help="Per worker process; default: the cluster file's, or 2GiB.")
    ] = None,
    cluster: Annotated[
        str,
        typer.Option(help="local, the address of a scheduler, or a YAML file with a job's cluster keys."),
    ] = "local",
    workers: Workers = None,
    insecure: Insecure = False,
    dtype: Annotated[str | None, typer.Option(help="Of the output; default: the input's.")] = None,
    missing: Annotated[str, typer.Option(help="An absent chunk: error or fill.")] = "error",
    precision: Annotated[
        str, typer.Option(help="Of the network: float32, or bfloat16: faster where in hardware, less exact.")
    ] = "float32",
    blocks: Blocks = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Apply a model to whole images, block by block; run again to resume.

    Example: `denoizarr predict model.safetensors stack.ome.zarr denoised.ome.zarr`, or
    `denoizarr predict model.safetensors 'night/*.ome.zarr' denoised`
    """
    from denoizarr.engine.cluster import open_client
    from denoizarr.engine.freed_memory import one_arena
    from denoizarr.engine.memory_limits import parse_bytes
    from denoizarr.engine.shares import Share
    from denoizarr.inference.devices import visible_gpus
    from denoizarr.inference.predict import predict as run_predict
    from denoizarr.inference.prediction import plan_prediction
    from denoizarr.pipeline.cluster_file import cluster_of
    from denoizarr.stores.images import as_images
    from denoizarr.training.denoiser import Denoiser

    share = None if blocks is None else Share.parse(blocks)
    if share is not None:
        one_arena()  # as the workers of a local cluster are started
    if share is not None and (cluster != "local" or workers is not None):
        raise typer.BadParameter("a share is run by this process alone", param_hint="--blocks")
    if len(paths) < 2:
        raise typer.BadParameter("needs at least one source and a destination", param_hint="SRC... DST")
    *source, destination = paths
    settings = cluster_of(
        cluster,
        workers=workers,
        memory_limit_bytes=None if memory_limit is None else parse_bytes(memory_limit),
        insecure=insecure,
    )
    limit = settings.memory_limit_bytes
    # Before a cluster is started for nothing.
    denoiser = Denoiser.load(model, precision=precision)  # type: ignore[arg-type]  # it checks it
    planned = [
        plan_prediction(denoiser, image, destination, memory_limit=limit, dtype=dtype, anew=overwrite)
        for image in as_images(source, missing=missing)  # type: ignore[arg-type]  # open_image checks it
    ]
    batches = sum(of_image.batches for of_image in planned)
    with ExitStack() as stack:
        client = None
        if share is None:
            client = stack.enter_context(open_client(settings, at_most=batches, gpus=visible_gpus()))
        summary = run_predict(
            denoiser,
            source,
            destination,
            client=client,
            memory_limit=limit,
            dtype=dtype,
            missing=missing,  # type: ignore[arg-type]  # open_image checks it and says what it may be
            overwrite=overwrite,
            share=None if share is None else (share.number, share.count),
            precision=precision,  # type: ignore[arg-type]  # the model checks it and says what it may be
        )
    say(told(summary, blocks), summary.to_json(), as_json)
