"""Verbs for models: train, predict."""

from __future__ import annotations

from typing import Annotated

import typer

from .app import Debug, Json, Overwrite, app, say, told


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
    patch_size: Annotated[
        int | None, typer.Option(help="In pixels, y and x; default the index's, or 64.")
    ] = None,
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

    found = None if index is None else PatchIndex.open(index)
    denoiser = run_train(
        list(url),
        found,
        blind_spot=None if kernel is None else NoiseKernel.load(kernel).mask,
        options=TrainingOptions(
            patch_size=patch_size or (64 if found is None else found.plane_patch),
            num_epochs=epochs,
            patches_per_epoch=patches_per_epoch,
            mask_percentage=mask_percentage,
            seed=seed,
        ),
        checkpoint=f"{out.removesuffix('.safetensors')}.checkpoints",
    )
    where = denoiser.save(out)
    say(f"model {where}", {"model": where, "digest": denoiser.digest, "training": denoiser.training}, as_json)


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
    say(told(summary), summary.to_json(), as_json)
