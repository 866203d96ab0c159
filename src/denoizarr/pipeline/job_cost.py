"""From a checked job to what it costs: how long its steps work, what they ask for, which stores charge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from denoizarr.engine.cluster import usable_cores
from denoizarr.engine.simulation import Projection
from denoizarr.stores import locations
from denoizarr.training.options import TrainingOptions

from .checked_job import CheckedJob
from .cost import JobCost, StepWork, cost_of
from .job_requests import StepRequests, requests_of
from .prices import PriceTable
from .training_requests import training_kept_bytes
from .writing_requests import stored_level

# The standard network (depth 2, 32 features) on one CPU core: voxels predicted, patch voxels trained.
PREDICTED_PER_SECOND = 0.44e6
TRAINED_PER_SECOND = 0.19e6
# Worker processes, torch and the report, whatever the image: 20 to 30 s measured.
START_UP_SECONDS = 25.0
# Bytes of voxels that one core reads, decodes and scores.
_LOOKED_AT_PER_SECOND = 150e6


def cost_of_job(
    checked: CheckedJob,
    *,
    prices: str | Path | Mapping[str, Any] | None = None,
    workers: int = 0,
    projection: Projection | None = None,
) -> JobCost:
    """Return what a job costs at most.

    Parameters
    ----------
    checked : CheckedJob
    prices : str, Path or mapping, optional
        In place of the job's own.
    workers : int
        That the projection is for.
    projection : Projection, optional
        Of the inference, in place of constants: workers that wait are paid for, too.

    Raises
    ------
    ConfigError
        The prices are not valid.
    """
    job, settings = checked.job, checked.job.cost
    table = PriceTable.load(settings.prices if prices is None else prices)
    if settings.currency is not None and prices is None:
        table = table.in_currency(settings.currency)
    is_gpu = settings.processor == "gpu" or (settings.processor == "auto" and _has_gpu())
    speed = settings.gpu_voxels_per_second / PREDICTED_PER_SECOND if is_gpu else 1.0
    stages = {n: o for n, o in (("stage1", checked.stage1), ("stage2", checked.stage2)) if o is not None}
    training = {name: training_core_seconds(options) / speed for name, options in stages.items()}
    inference = inference_core_seconds(checked) / speed
    if projection is not None and not is_gpu:  # it is of cores
        inference = workers * projection.seconds / denoised_times(checked)
    work = []
    n_workers = _workers_of(checked)
    seconds = {name: s / (1 if is_gpu else usable_cores()) for name, s in training.items()}
    for step in requests_of(checked, seconds, n_workers):
        core, gpu = 0.0, 0.0
        if step.name.startswith("training of"):
            core = training[step.name.removeprefix("training of ")]
        elif step.name.startswith("inference"):
            core = inference
        if is_gpu:
            core, gpu = 0.0, core
        if step.name == "report":
            core += START_UP_SECONDS * usable_cores()
        elif not core and not gpu:
            core += step.input.bytes_read / _LOOKED_AT_PER_SECOND
        work.append(StepWork(step, core, gpu))
    return cost_of(
        work,
        table,
        stored_bytes=_stored_bytes(checked, [step.requests for step in work]),
        storage_months=settings.storage_months,
        input_is_charged=settings.charge_local or any(locations.is_remote(url) for url in _urls_of(checked)),
        output_is_charged=settings.charge_local or locations.is_remote(job.output.url),
    )


def allowed_cost(
    checked: CheckedJob, prices: str | Path | Mapping[str, Any] | None, max_cost: float | None
) -> JobCost | None:
    """Return what a job may cost, refused where that is too much; None where nobody asks.

    Parameters
    ----------
    checked : CheckedJob
    prices, max_cost : optional
        In place of the job's own.

    Raises
    ------
    BadRequest
        It may cost more than it is allowed to.
    """
    limit = checked.job.cost.max_cost if max_cost is None else max_cost
    if limit is None and prices is None:
        return None
    cost = cost_of_job(checked, prices=prices)
    if limit is not None:
        cost.check(limit)
    return cost


def denoised_times(checked: CheckedJob) -> int:
    """Return how often every image is denoised: twice where stage 1's result is kept beside the final one."""
    return 1 + int(
        checked.stage1 is not None and checked.stage2 is not None and checked.job.output.keep_stage1
    )


def inference_core_seconds(checked: CheckedJob) -> float:
    """Return how long one CPU core would take to denoise all images once."""
    voxels = sum(prod(p.reader.shape) * p.recompute_factor for p in checked.predictions)
    return voxels * relative_cost(checked.stage2 or checked.stage1) / PREDICTED_PER_SECOND


def training_core_seconds(options: TrainingOptions) -> float:
    """Return how long one CPU core would take to train a stage."""
    patches = options.num_epochs * (options.patches_per_epoch or 4096)
    return patches * prod(options.patch_shape) * relative_cost(options) / TRAINED_PER_SECOND


def relative_cost(options: TrainingOptions | None) -> float:
    """Return the cost per voxel relative to the standard network."""
    assert options is not None, "a job has a stage"
    wider = 3 if len(options.patch_shape) == 3 else 1  # a convolution of 27 weights in place of 9
    return (options.features / 32) ** 2 * (0.6 + 0.2 * options.num_layers) * wider


def _stored_bytes(checked: CheckedJob, steps: Sequence[StepRequests]) -> int:
    """Return the most that the run folder holds in the end: the results, models, and what is small."""
    images = sum(
        stored_level(planned.layout, level).stored_bytes
        for planned in checked.predictions
        for level in planned.layout.levels
    )
    stages = sum(training_kept_bytes(o) for o in (checked.stage1, checked.stage2) if o is not None)
    known = ("inference", "training of")
    beside = sum(step.output.bytes_written for step in steps if not step.name.startswith(known))
    return denoised_times(checked) * images + stages + beside


def _workers_of(checked: CheckedJob) -> int:
    """Return how many processes do the inference; 0 where nobody knows."""
    given = checked.job.cluster
    if given.workers == "auto":
        return usable_cores() if given.kind == "local" else 0
    return given.workers


def _urls_of(checked: CheckedJob) -> tuple[str, ...]:
    targets = () if checked.job.target is None else checked.job.target.sources
    return (*checked.job.input.sources, *targets, *checked.job.patch_filter.masks)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
