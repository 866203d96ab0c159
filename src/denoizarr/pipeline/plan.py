"""The dry run: every check that can fail early, and what the job will cost, from metadata alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from denoizarr.engine.cluster import usable_cores
from denoizarr.engine.ledger import Ledger
from denoizarr.errors import BadData, BadRequest, ConfigError, OutputExists, PatchTooLarge, Unfinished
from denoizarr.images.output import check_apart
from denoizarr.inference.predict import unique_names
from denoizarr.inference.prediction import Prediction, plan_prediction
from denoizarr.kernels.blindspot import check_blind_spot, largest_percentage
from denoizarr.kernels.unet import NetworkShape, build_network
from denoizarr.selection.index_settings import IndexSettings
from denoizarr.stores import locations
from denoizarr.stores.images import as_images, reader_of
from denoizarr.training.denoiser import Denoiser, Normalisation
from denoizarr.training.noise_kernel import NoiseKernel
from denoizarr.training.options import TrainingOptions

from .config import JobConfig, StageSettings
from .where_to_look import settings_of

# The standard network (depth 2, 32 features) on one CPU core: voxels predicted, patch voxels trained.
_PREDICTED_PER_SECOND = 0.44e6
_TRAINED_PER_SECOND = 0.19e6


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job would do.

    Attributes
    ----------
    blocks, batches : int
        Of the finest level of all outputs; one task is one batch.
    bytes_read, bytes_written : int
        Decoded voxels of the inference, halos and pyramid included.
    bytes_per_worker : int
        Projected peak memory of a worker process.
    recompute_factor : float
        Voxels computed over voxels kept, largest of the images.
    seconds : float
        A rough guess from constants of one CPU core, training included; within a factor of two.
    problems : tuple of str
        Why the job would be refused; empty where it would start.
    """

    blocks: int = 0
    batches: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_per_worker: int = 0
    recompute_factor: float = 1.0
    seconds: float = 0.0
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-able data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CheckedJob:
    """A job whose inputs are open and whose settings fit them.

    Attributes
    ----------
    job : JobConfig
    images : tuple of DataArray
    names : tuple of str
        Unique and safe as file names, one per image.
    stage1, stage2 : TrainingOptions or None
        None for a stage that does not run.
    kernel : NoiseKernel or None
        From ``stage2.mask_file_path``.
    looks : dict
        By stage that runs, what its index is built from.
    predictions : tuple of Prediction
        One per image, for a network of the last stage's shape.
    """

    job: JobConfig
    images: tuple[xr.DataArray, ...]
    names: tuple[str, ...]
    stage1: TrainingOptions | None
    stage2: TrainingOptions | None
    kernel: NoiseKernel | None
    looks: dict[str, IndexSettings]
    predictions: tuple[Prediction, ...]


def plan(config: JobConfig | Mapping[str, Any] | str | Path) -> Plan:
    """Say what a job would do, without doing any of it.

    Parameters
    ----------
    config : JobConfig, dict or path of a YAML file

    Returns
    -------
    Plan
        With ``problems`` where the job would be refused.

    Raises
    ------
    ConfigError
        The job file itself is not valid.
    """
    job = JobConfig.load(config)
    try:
        checked = check_job(job)
    except (BadRequest, BadData, Unfinished) as error:
        return Plan(problems=(str(error),))
    planned = checked.predictions
    workers = usable_cores() if job.cluster.workers == "auto" else job.cluster.workers
    voxels = sum(int(np.prod(p.reader.shape)) * p.recompute_factor for p in planned)
    times = 1 + int(checked.stage1 is not None and checked.stage2 is not None and job.output.keep_stage1)
    cost = _cost(checked.stage2 or checked.stage1)
    inference = times * voxels * cost / _PREDICTED_PER_SECOND / workers
    training = sum(_training_seconds(o) for o in (checked.stage1, checked.stage2) if o is not None)
    return Plan(
        blocks=times * sum(p.blocks for p in planned),
        batches=times * sum(p.batches for p in planned),
        bytes_read=times * sum(p.bytes_read for p in planned),
        bytes_written=times * sum(p.bytes_written for p in planned),
        bytes_per_worker=max(p.bytes_per_worker for p in planned),
        recompute_factor=max(p.recompute_factor for p in planned),
        seconds=round(inference + training, 1),
    )


def check_job(job: JobConfig) -> CheckedJob:
    """Open the inputs and check everything that can be checked without reading voxels.

    Raises
    ------
    BadRequest, BadData, Unfinished
        The first thing that is wrong.
    """
    given = job.input
    images = tuple(as_images(given.sources, given.axes, level=given.level, missing=given.missing))
    _check_alike(images, job)
    for image in images:
        check_apart(job.output.url, reader_of(image).urls)
    names = unique_names(images)
    stage1 = options_of(job.stage1) if job.run_stage1 else None
    stage2 = options_of(job.stage2) if job.run_stage2 else None
    looks = {}
    for label, options, settings in (("stage1", stage1, job.stage1), ("stage2", stage2, job.stage2)):
        if options is not None:
            _check_patch(images, options, label)
            looks[label] = settings_of(job, images, settings)
            for mask in looks[label].masks:
                check_apart(job.output.url, mask.urls)
    kernel = None
    if stage2 is not None and job.stage2.mask_file_path is not None:
        kernel = NoiseKernel.load(job.stage2.mask_file_path)
        check_blind_spot(kernel.mask, stage2.patch_shape, stage2_percentage(stage2, kernel))
    network = _untrained(stage2 or stage1, _channels(images[0]))
    predictions = tuple(
        plan_prediction(network, image, destination_of(job, names, name), **output_options(job))
        for image, name in zip(images, names, strict=True)
    )
    checked = CheckedJob(job, images, names, stage1, stage2, kernel, looks, predictions)
    _check_run_folder(checked)
    return checked


def stage2_percentage(options: TrainingOptions, kernel: NoiseKernel) -> float:
    """Return the predicted pixels of stage 2 in per cent: as asked, or what hides at most half of a patch.

    A measured kernel must not end a job that has come as far as stage 2.
    """
    return min(options.mask_percentage, largest_percentage(kernel.mask))


def identity_of(checked: CheckedJob) -> dict[str, Any]:
    """Return what makes a job this one: settings and inputs, not who does the work."""
    look = next(iter(checked.looks.values()))
    masks = {"masks": [mask.identity for mask in look.masks]} if look.masks else {}
    return {"job": checked.job.identity(), "inputs": reader_identities(checked.images), **masks}


def ledger_of(job: JobConfig) -> str:
    """Return where the run folder says whose it is."""
    return locations.join(job.output.url, "ledger")


def _check_run_folder(checked: CheckedJob) -> None:
    """Refuse a run folder that holds something else, or another job."""
    folder, ledger = checked.job.output.url, ledger_of(checked.job)
    if Ledger.is_begun(ledger):
        Ledger.check(ledger, identity_of(checked))
    elif set(locations.list_names(folder)) - {"ledger"}:  # a kill can leave the ledger's empty folder
        raise OutputExists("the run folder holds something else", where=folder, remedy="choose a new folder")


def options_of(settings: StageSettings) -> TrainingOptions:
    """Return a stage's settings as the trainer takes them."""
    fields = settings.model_dump(include={field.name for field in dataclass_fields(TrainingOptions)})
    return TrainingOptions(**fields)


def output_options(job: JobConfig) -> dict[str, Any]:
    """Return the settings of the output as ``predict`` takes them."""
    given: dict[str, Any] = {"memory_limit": job.cluster.memory_limit, "ome_version": job.output.ome_version}
    given["dtype"] = None if job.output.dtype == "same" else job.output.dtype
    for key in ("chunks", "shards", "levels"):
        value = getattr(job.output, key)
        given[key] = None if value == "auto" else value
    return given


def destination_of(job: JobConfig, names: tuple[str, ...], name: str, kind: str = "denoised") -> str:
    """Return where an output image lies in the run folder; several lie in a folder of their kind."""
    if len(names) == 1:
        return locations.join(job.output.url, f"{kind}.ome.zarr")
    return locations.join(job.output.url, kind, f"{name}.ome.zarr")


def _check_patch(images: tuple[xr.DataArray, ...], options: TrainingOptions, label: str) -> None:
    patch = options.patch_shape
    for image in images:
        extent = tuple(int(image.sizes[d]) for d in ("y", "x"))
        if any(p > n for p, n in zip(patch, extent, strict=True)):
            raise PatchTooLarge(
                "a patch does not fit into the image",
                where=f"{label}.patch_size, {image.attrs.get('url')}",
                got=f"{patch[0]} x {patch[1]}",
                expected=f"at most {extent[0]} x {extent[1]} (y x x)",
            )


def _check_alike(images: tuple[xr.DataArray, ...], job: JobConfig) -> None:
    """Refuse images that cannot share one network, and a channel that none has."""
    for label, values in (
        ("dims", [tuple(str(d) for d in image.dims) for image in images]),
        ("dtype", [str(image.dtype) for image in images]),
        ("channels", [_channels(image) for image in images]),
    ):
        if len(set(values)) > 1:
            raise ConfigError(
                f"images of one job have the same {label}", where="input.urls", got=sorted(set(values))
            )
    channel, channels = job.patch_filter.ref_channel, _channels(images[0])
    if channel >= channels:
        raise ConfigError(
            "no such channel", where="patch_filter.ref_channel", got=channel, expected=f"0 to {channels - 1}"
        )


def _channels(image: xr.DataArray) -> int:
    return int(image.sizes.get("c", 1))


def _untrained(options: TrainingOptions | None, channels: int) -> Denoiser:
    """Return a network of the right shape and random weights: what a plan needs of a model."""
    assert options is not None, "a job has a stage"
    shape = NetworkShape(features=options.features, depth=options.num_layers)
    return Denoiser(
        shape, build_network(shape).state_dict(), Normalisation((0.0,) * channels, (1.0,) * channels)
    )


def _cost(options: TrainingOptions | None) -> float:
    """Return the cost per voxel relative to the standard network."""
    assert options is not None, "a job has a stage"
    return (options.features / 32) ** 2 * (0.6 + 0.2 * options.num_layers)


def _training_seconds(options: TrainingOptions) -> float:
    patch = options.patch_shape
    patches = options.num_epochs * (options.patches_per_epoch or 4096)
    return patches * patch[0] * patch[1] * _cost(options) / _TRAINED_PER_SECOND / usable_cores()


def reader_identities(images: tuple[xr.DataArray, ...]) -> list[dict[str, Any]]:
    """Return what names the inputs of a job."""
    return [reader_of(image).identity for image in images]
