"""A job whose inputs are open and whose settings fit them: everything that can be told before any work."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from denoizarr.engine.ledger import Ledger
from denoizarr.errors import BadRequest, ConfigError, OutputExists, PatchTooLarge
from denoizarr.images.output import check_apart
from denoizarr.inference.predict import unique_names
from denoizarr.inference.prediction import Prediction, plan_prediction
from denoizarr.kernels.centre_weights import footprint_of
from denoizarr.kernels.unet import build_network
from denoizarr.selection.index_settings import IndexSettings
from denoizarr.stores import locations
from denoizarr.stores.images import as_images, reader_of
from denoizarr.training.centre_weights import CentreWeights
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.noise_kernel import NoiseKernel
from denoizarr.training.normalisation import Normalisation
from denoizarr.training.options import TrainingOptions

from .blind_spots import (
    check_center_size,
    check_kernel_file,
    check_one_pixel,
    fitting_blind_spots,
    naming,
)
from .config import InputSettings, JobConfig, StageSettings
from .where_to_look import settings_of


@dataclass(frozen=True, slots=True)
class CheckedJob:
    """A job whose inputs are open and whose settings fit them.

    Attributes
    ----------
    job : JobConfig
    images : tuple of DataArray
    targets : tuple of DataArray
        One per image where the job has a target, else none.
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
    targets: tuple[xr.DataArray, ...]
    names: tuple[str, ...]
    stage1: TrainingOptions | None
    stage2: TrainingOptions | None
    kernel: NoiseKernel | None
    looks: dict[str, IndexSettings]
    predictions: tuple[Prediction, ...]


def check_job(job: JobConfig) -> CheckedJob:
    """Open the inputs and check everything that can be checked without reading voxels.

    Raises
    ------
    BadRequest, BadData, Unfinished
        The first thing that is wrong.
    """
    images = _opened(job.input)
    _check_alike(images, job)
    targets = () if job.target is None else _opened(job.target)
    _check_targets(images, targets, job.output.dtype)
    for image in (*images, *targets):
        check_apart(job.output.url, reader_of(image).urls)
    names = unique_names(images)
    stage1 = options_of(job.stage1, "stage1", len(images)) if job.run_stage1 else None
    stage2 = options_of(job.stage2, "stage2", len(images)) if job.run_stage2 else None
    looks = {}
    for label, options, settings in (("stage1", stage1, job.stage1), ("stage2", stage2, job.stage2)):
        if options is not None:
            _check_patch(images, options, label)
            if job.target is None:
                check_one_pixel(options, label)
            looks[label] = settings_of(job, images, settings)
            for mask in looks[label].masks:
                check_apart(job.output.url, mask.urls)
    kernel = None
    if stage2 is not None and job.stage2.mask_file_path is not None:
        kernel = NoiseKernel.load(job.stage2.mask_file_path)
        check_kernel_file(kernel, stage2, job.stage2.mask_file_path)
    elif stage2 is not None:
        check_center_size(job.extractor.extractor(), images)
    footprint = widest_footprint(job, stage2, kernel)
    network = _untrained(stage2 or stage1, _channels(images[0]), footprint).to(precision=job.output.precision)
    predictions = tuple(
        plan_prediction(
            network,
            image,
            destination_of(job, names, name),
            may_lose_lines=job.periodic != "off",
            **output_options(job),
        )
        for image, name in zip(images, names, strict=True)
    )
    checked = CheckedJob(job, images, targets, names, stage1, stage2, kernel, looks, predictions)
    _check_run_folder(checked)
    return checked


def identity_of(checked: CheckedJob) -> dict[str, Any]:
    """Return what makes a job this one: settings and inputs, not who does the work."""
    look = next(iter(checked.looks.values()))
    masks = {"masks": [mask.identity for mask in look.masks]} if look.masks else {}
    targets = {"targets": reader_identities(checked.targets)} if checked.targets else {}
    return {"job": checked.job.identity(), "inputs": reader_identities(checked.images), **masks, **targets}


def ledger_of(job: JobConfig) -> str:
    """Return where the run folder says whose it is."""
    return locations.join(job.output.url, "ledger")


def _check_run_folder(checked: CheckedJob) -> None:
    """Refuse a run folder that holds something else, or another job."""
    folder, ledger = checked.job.output.url, ledger_of(checked.job)
    locations.refuse_read_only(folder)
    if Ledger.is_begun(ledger):
        Ledger.check(ledger, identity_of(checked))
    elif set(locations.list_names(folder)) - {"ledger"}:  # a kill can leave the ledger's empty folder
        raise OutputExists("the run folder holds something else", where=folder, remedy="choose a new folder")


def options_of(settings: StageSettings, label: str, images: int) -> TrainingOptions:
    """Return a stage's settings as the trainer takes them.

    Parameters
    ----------
    settings : StageSettings
    label : str
        "stage1" or "stage2", for messages.
    images : int
        How many the job has: ``patches_per_image`` counts for each.

    Raises
    ------
    ConfigError
        A value does not fit the others, such as a patch size that is no multiple of the network's stride.
    """
    fields = settings.model_dump(include={field.name for field in dataclass_fields(TrainingOptions)})
    if settings.patches_per_image is not None:
        fields["patches_per_epoch"] = settings.patches_per_image * images
    with naming(label):
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


def _opened(given: InputSettings) -> tuple[xr.DataArray, ...]:
    return tuple(as_images(given.sources, given.axes, level=given.level, missing=given.missing))


def _check_patch(images: tuple[xr.DataArray, ...], options: TrainingOptions, label: str) -> None:
    patch = options.patch_shape
    axes = ("z", "y", "x")[-len(patch) :]
    for image in images:
        where = f"{label}.patch_size, {image.attrs.get('url')}"
        if any(axis not in image.dims for axis in axes):
            raise BadRequest(
                "patches of z, y and x need an image with z",
                where=where,
                got=f"axes {', '.join(str(dim) for dim in image.dims)}",
                remedy="give patch_size as one int, or y and x",
            )
        extent = tuple(int(image.sizes[axis]) for axis in axes)
        if any(p > n for p, n in zip(patch, extent, strict=True)):
            raise PatchTooLarge(
                "a patch does not fit into the image",
                where=where,
                got=" x ".join(map(str, patch)),
                expected=f"at most {' x '.join(map(str, extent))} ({', '.join(axes)})",
            )


def _check_targets(
    images: tuple[xr.DataArray, ...], targets: tuple[xr.DataArray, ...], output_dtype: str
) -> None:
    """Refuse targets that do not lie voxel by voxel on their images, or leave the output's dtype open."""
    if not targets:
        return
    if len(targets) != len(images):
        raise ConfigError("one target for each image", where="target", got=len(targets), expected=len(images))
    for image, target in zip(images, targets, strict=True):
        where = f"target {target.attrs.get('url')}"
        if image.dims != target.dims or image.shape != target.shape:
            raise BadRequest(
                "a target has the extent of its image",
                where=where,
                got=_extent(target),
                expected=_extent(image),
            )
        if reader_of(target).identity == reader_of(image).identity:
            raise BadRequest(
                "the target is the image itself, which teaches a network to change nothing",
                where=where,
                remedy="leave target out to learn from the noisy image alone",
            )
    dtypes = {str(target.dtype) for target in targets}
    if output_dtype == "same" and dtypes != {str(images[0].dtype)}:
        # A target of floats in 0..1, rounded into the input's integers, would come out black.
        raise ConfigError(
            "the output has the target's grey levels, and the target has another dtype than the input",
            where="output.dtype",
            got=f"same, with a target of {' and '.join(sorted(dtypes))} and an input of {images[0].dtype}",
            remedy="say which: output.dtype: float32, for one",
        )


def _extent(image: xr.DataArray) -> str:
    return " x ".join(f"{dim} {size}" for dim, size in image.sizes.items())


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


def untrained_network(checked: CheckedJob) -> Denoiser:
    """Return a network of the last stage's shape with random weights."""
    network = _untrained(checked.stage2 or checked.stage1, _channels(checked.images[0]))
    return network.to(precision=checked.job.output.precision)


def planned_networks(checked: CheckedJob) -> dict[str, Denoiser]:
    """Return a network for each stage that runs, with random weights and the widest halo that it may get."""
    channels = _channels(checked.images[0])
    footprint = widest_footprint(checked.job, checked.stage2, checked.kernel)
    stages = {"stage1": (checked.stage1, None), "stage2": (checked.stage2, footprint)}
    return {
        name: _untrained(options, channels, reach)
        for name, (options, reach) in stages.items()
        if options is not None
    }


def widest_footprint(
    job: JobConfig, stage2: TrainingOptions | None, kernel: NoiseKernel | None
) -> NDArray[np.bool_] | None:
    """Return the most that a voxel's own value may come from: it is part of the halo of the trained model.

    It lies within the kernel of shared noise, which is measured during the job, or given, and as wide as a
    patch at most. None where no stage measures it.
    """
    if stage2 is None or not stage2.use_centre or job.target is not None:
        return None
    if kernel is None:
        extents = [n - 1 + n % 2 for n in stage2.patch_shape]
        # Its middle and its corners say how far it reaches.
        reach = np.zeros(extents, np.bool_)
        for index in ((0,) * len(extents), tuple(n // 2 for n in extents), (-1,) * len(extents)):
            reach[index] = True
        return reach
    found = footprint_of(fitting_blind_spots(kernel, stage2).mask)
    return found if found.size > 1 else None


def _untrained(
    options: TrainingOptions | None, channels: int, footprint: NDArray[np.bool_] | None = None
) -> Denoiser:
    """Return a network of the right shape and random weights: what a plan needs of a model."""
    assert options is not None, "a job has a stage"
    shape = options.network_shape
    return Denoiser(
        shape,
        build_network(shape).state_dict(),
        Normalisation((0.0,) * channels, (1.0,) * channels),
        patch_size=options.patch_shape,
        # Without weight, so that it costs what it costs and changes nothing.
        centre=None if footprint is None else (CentreWeights((0.0, 1.0), (0.0, 0.0)),) * channels,
        footprint=footprint,
    )


def reader_identities(images: tuple[xr.DataArray, ...]) -> list[dict[str, Any]]:
    """Return what names the inputs of a job."""
    return [reader_of(image).identity for image in images]
