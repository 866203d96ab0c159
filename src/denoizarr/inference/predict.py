"""A trained network over a whole image, block by block, back into an OME-Zarr pyramid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from denoizarr.engine.cluster import usable_cores
from denoizarr.engine.freed_memory import freed_memory_kept
from denoizarr.engine.shares import Share
from denoizarr.engine.summary import RunSummary, added
from denoizarr.images.output import check_apart, check_free, ledger_url
from denoizarr.images.periodic import keep_waves, kept_waves
from denoizarr.images.plane_waves import measure_waves
from denoizarr.images.write import ImageJob, write_image
from denoizarr.stores import locations
from denoizarr.stores.images import ImageLike, as_images, corrected_image
from denoizarr.stores.periodic import WaveTable
from denoizarr.stores.sources import ImageReader
from denoizarr.stores.strict import Missing
from denoizarr.training.denoiser import Denoiser, Precision
from denoizarr.training.exactness import multiplies_bfloat16
from denoizarr.training.own_network import OwnNetwork

from .block import PredictionSpec, denoise_block, use_model
from .devices import batch_voxels, place_of
from .prediction import PREDICTION_BATCH_VOXELS, Prediction, plan_prediction

_LOG = logging.getLogger(__name__)
_WAVES = "periodic.json"
# Cores are filled with tiles; one tile's last bits depend on its number of threads.
_TILE_THREADS = 1


def predict(
    denoiser: Denoiser | str | Path,
    source: ImageLike | Sequence[ImageLike],
    destination: str | Path,
    *,
    client: Any = None,
    memory_limit: str | int = "2GiB",
    tile_shape: Sequence[int] | None = None,
    dtype: str | np.dtype[Any] | None = None,
    ome_version: str = "0.5",
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
    levels: int | None = None,
    missing: Missing = "error",
    overwrite: bool = False,
    progress: bool = True,
    share: tuple[int, int] | None = None,
    precision: Precision = "float32",
) -> RunSummary:
    """Denoise a whole image into an OME-Zarr pyramid whose voxels do not show where the blocks were.

    Run again with the same arguments to resume: blocks that the ledger holds are not done twice, and another
    ``memory_limit`` keeps the blocks and tiles of the first run. Where the
    model knows of periodic lines, a pass before the first block measures those of every plane, and they are
    taken out of what is read; they are kept beside the ledger, so that a resumed run does not measure again.

    Parameters
    ----------
    denoiser : Denoiser, str or Path
        One of 3D needs an image with z. One of one's own network is handed over loaded, not as a path; with a
        ``client`` its class must be importable on the workers, or defined in the main program.
    source : str, Path, zarr.Array, DataArray, dask or numpy array, or a list or glob of them
        Any axes of t, c, z beside the model's own are looped. With a ``client``, workers must be able to
        read it from its store.
    destination : str or Path
        The output; its ledger, with a copy of the model, lies beside it as ``<destination>.ledger``. For
        several images, a folder that gets one output for each, under the image's name.
    client : distributed.Client, optional
        Without one, as many threads of this process as there are cores. Where its workers declare the
        resource "GPU", they do the blocks, each GPU one at a time.
    memory_limit : str or int
        Per worker process, or per thread where there is no client.
    tile_shape : sequence of int, optional
        Valid voxels of a tile along the model's axes; by default chosen, with the shards, under the limit.
    dtype : optional
        Of the output; the input's by default. Integers are rounded half to even and clipped.
    ome_version, chunks, shards, levels
        As in ``save_image``; by default the input's chunks where they suit.
    missing : {"error", "fill"}
        For a source given as URL: an absent chunk is an error, or is filled and counted.
    overwrite : bool
    progress : bool
    share : (int, int), optional
        (i, n), i from 1 to n: every n-th batch of blocks only, beside other processes, without Dask. A call
        without it, when all are done, builds the pyramid and marks the image finished.
    precision : {"float32", "bfloat16", "float64"}
        Of the network. With "bfloat16" it is two to four times as fast on processors and GPUs that multiply
        it in hardware, and voxels differ from those in float32 by about 0.02 standard deviations of the
        image, single ones by 0.1.

    Returns
    -------
    RunSummary

    Raises
    ------
    ModelError, MemoryLimitTooSmall, OutputExists, LedgerMismatch, MissingChunk, NonFiniteData, BlockFailed,
    ClusterLost
    """
    asked = None if share is None else Share(*share)
    model = Denoiser.load(denoiser) if isinstance(denoiser, str | Path) else denoiser
    if model.precision != precision:
        model = model.to(precision=precision)
    images = as_images(source, missing=missing)
    outputs = [locations.join(destination)]
    if len(images) > 1:
        outputs = [locations.join(destination, f"{name}.ome.zarr") for name in unique_names(images)]
    how: dict[str, Any] = {
        "memory_limit": memory_limit,
        "tile_shape": tile_shape,
        "dtype": dtype,
        "ome_version": ome_version,
        "chunks": chunks,
        "shards": shards,
        "levels": levels,
    }
    for image, output in zip(images[1:], outputs[1:], strict=True):
        # One that is bad is refused before the first of them is begun.
        planned = plan_prediction(model, image, output, anew=overwrite, **how)
        check_apart(output, planned.reader.urls)
        if not overwrite:
            check_free(output)
    summaries = [
        _predict_one(
            model, image, output, client=client, overwrite=overwrite, progress=progress, share=asked, **how
        )
        for image, output in zip(images, outputs, strict=True)
    ]
    return summaries[0] if len(images) == 1 else added(locations.join(destination), summaries)


def unique_names(images: Sequence[xr.DataArray]) -> tuple[str, ...]:
    """Return a file name for every image: its own, numbered where several share one."""
    return locations.distinct(str(image.name or "image") for image in images)


def _predict_one(
    model: Denoiser,
    image: xr.DataArray,
    destination: str,
    *,
    client: Any,
    overwrite: bool,
    progress: bool,
    share: Share | None,
    **layout_options: Any,
) -> RunSummary:
    layout_options["anew"] = overwrite
    planned = plan_prediction(model, image, destination, **layout_options)
    waves_url = locations.join(ledger_url(planned.layout.url), _WAVES)
    lines = _waves_of(model, planned, waves_url, client, overwrite)
    if lines is not None and not lines.numbers:
        text = "%s: the model's periodic lines are left in: too few pixels along y or x to measure them"
        _LOG.warning(text, planned.reader.name)
    if lines is not None and not lines.is_empty:
        planned = plan_prediction(model, corrected_image(image, lines), destination, **layout_options)
    for warning in planned.warnings:
        _LOG.warning("%s: %s", planned.reader.name, warning)
    _LOG.info("%s: %s", planned.reader.name, planned.in_words())
    place = place_of(client)
    if (
        client is None
        and (place.device, model.precision) == ("cpu", "bfloat16")
        and not multiplies_bfloat16()
    ):
        _LOG.warning("this processor does not multiply bfloat16 in hardware: float32 is as fast, or faster")
    model_url = locations.join(ledger_url(planned.layout.url), "model.safetensors")
    identity = {
        "kind": "predict",
        "missing": getattr(planned.reader.source, "missing", "error"),
        "model": model.digest,
        "tile_shape": list(planned.tile_shape),
        "threads": _TILE_THREADS,
        "device": place.device,
        "precision": model.precision,
    }
    spec = PredictionSpec(
        planned.reader,
        model_url,
        model.digest,
        planned.layout,
        planned.tile_shape,
        _TILE_THREADS,
        place.device,
        model.precision,
        # Without weights: a task must stay small, and they come from the model's file.
        model.network.structure() if isinstance(model.network, OwnNetwork) else None,
    )
    job = ImageJob(
        planned.reader,
        planned.layout,
        identity,
        denoise_block,
        spec,
        batch_voxels(place.device, planned.layout.levels[0].write_units, PREDICTION_BATCH_VOXELS),
        "inference",
        planned.changes,
        place.resources,
    )
    if client is None and str(model.device) == place.device:
        use_model(spec, model)
    threads_before = torch.get_num_threads()
    try:
        # From one block to the next, too, where this process does them.
        with freed_memory_kept() if client is None else nullcontext():
            return write_image(
                job,
                overwrite=overwrite,
                client=client,
                threads=usable_cores(),
                progress=progress,
                prepare=lambda: _keep(model, model_url, waves_url, planned.reader, lines),
                share=share,
            )
    finally:
        torch.set_num_threads(threads_before)


def _keep(model: Denoiser, url: str, waves_url: str, reader: ImageReader, lines: WaveTable | None) -> None:
    """Put a copy of the model beside the output, for the workers and for later, and what was measured."""
    if not locations.exists(url):
        model.save(url)
    if lines is not None:
        keep_waves(waves_url, reader, lines)


def _waves_of(
    model: Denoiser, planned: Prediction, url: str, client: Any, overwrite: bool
) -> WaveTable | None:
    """Return the image's periodic lines: as an earlier run of this job measured them, or measured now.

    None where the model knows of none, or the image is less its lines already.
    """
    reader = planned.reader
    if not model.periodic or reader.uncorrected is not None:
        return None
    known = None if overwrite else kept_waves(url, reader, model.periodic)
    if known is not None:
        return known
    # Refused here, before a pass over the whole image, and not only after it.
    check_apart(planned.layout.url, reader.urls)
    if not overwrite:
        check_free(planned.layout.url)
    _LOG.info("%s: measuring periodic lines", reader.name)
    return measure_waves(reader, model.periodic, client=client)
