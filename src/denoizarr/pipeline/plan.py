"""The dry run: every check that can fail early, and what the job will cost, from metadata alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

from denoizarr.engine.cluster import usable_cores
from denoizarr.engine.cluster_settings import cores_of
from denoizarr.engine.simulation import Projection
from denoizarr.errors import BadData, BadRequest, Unfinished

from .checked_job import CheckedJob, check_job, untrained_network, widest_footprint
from .config import JobConfig
from .cost import JobCost
from .job_cost import (
    START_UP_SECONDS,
    cost_of_job,
    denoised_times,
    inference_core_seconds,
    training_core_seconds,
)
from .requests import NONE, Requests
from .scaling import measure_blocks, project_workers


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
    read_amplification : float
        Chunks decoded, halos included, over chunks of the image; likewise.
    seconds : float
        A rough guess from constants of one CPU core, with training, start-up and report; within a factor of
        two.
    workers : int
        For which ``projection`` is; 0 where none was asked for.
    projection : Projection or None
        Of the inference on so many workers like one core of this machine, after a few blocks were measured.
    requests : Requests
        Of the whole job, to all its stores, at most; with the bytes, uncompressed.
    cost : JobCost or None
        Requests, bytes, hours and money of every step; None where the job would not start for other reasons.
    problems : tuple of str
        Why the job would be refused; empty where it would start.
    notes : tuple of str
        What is known only once voxels are read.
    """

    blocks: int = 0
    batches: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_per_worker: int = 0
    recompute_factor: float = 1.0
    read_amplification: float = 1.0
    seconds: float = 0.0
    workers: int = 0
    projection: Projection | None = None
    requests: Requests = NONE
    cost: JobCost | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-able data."""
        return {**asdict(self), "cost": None if self.cost is None else self.cost.to_json()}


def plan(
    config: JobConfig | Mapping[str, Any] | str | Path,
    *,
    workers: int | None = None,
    store_bytes_per_second: float = inf,
    prices: str | Path | Mapping[str, Any] | None = None,
    max_cost: float | None = None,
) -> Plan:
    """Say what a job would do, without doing any of it.

    Parameters
    ----------
    config : JobConfig, dict or path of a YAML file
    workers : int, optional
        Also project the inference on so many workers: four blocks are read, denoised by an untrained network
        of the right shape, and written to a temporary folder; the rest is played out by the engine's rules.
    store_bytes_per_second : float
        What the store gives all of them together, for the projection.
    prices : str, Path or mapping, optional
        A YAML file of prices, or the same as a mapping, in place of the job's ``cost.prices``.
    max_cost : float, optional
        In place of the job's ``cost.max_cost``: a job that may cost more has a problem.

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
    job.reach_stores()
    try:
        checked = check_job(job)
    except (BadRequest, BadData, Unfinished) as error:
        return Plan(problems=(str(error),))
    planned = checked.predictions
    cores = cores_of(job.cluster.settings(), usable_cores())
    times = denoised_times(checked)
    inference = times * inference_core_seconds(checked) / cores
    stages = [options for options in (checked.stage1, checked.stage2) if options is not None]
    training = sum(training_core_seconds(options) for options in stages) / usable_cores()
    projection = _projection(checked, workers, store_bytes_per_second, times) if workers else None
    cost = cost_of_job(checked, prices=prices, workers=workers or 0, projection=projection)
    return Plan(
        blocks=times * sum(p.blocks for p in planned),
        batches=times * sum(p.batches for p in planned),
        bytes_read=times * sum(p.bytes_read for p in planned),
        bytes_written=times * sum(p.bytes_written for p in planned),
        bytes_per_worker=max(p.bytes_per_worker for p in planned),
        recompute_factor=max(p.recompute_factor for p in planned),
        read_amplification=max(p.read_amplification for p in planned),
        seconds=round(START_UP_SECONDS + inference + training, 1),
        workers=workers or 0,
        projection=projection,
        requests=cost.requests,
        cost=cost,
        problems=_too_dear(cost, job.cost.max_cost if max_cost is None else max_cost),
        notes=_notes(checked),
    )


def _projection(checked: CheckedJob, workers: int, store_bytes_per_second: float, times: int) -> Projection:
    """Return the projection of all images one after another, as often as they are denoised."""
    network = untrained_network(checked)
    parts = [
        project_workers(
            measure_blocks(network, planned), planned, workers, store_bytes_per_second=store_bytes_per_second
        )
        for planned in checked.predictions
    ]
    seconds = [part.seconds for part in parts]
    whole = sum(seconds)
    shares = {
        name: sum(getattr(part, name) * s for part, s in zip(parts, seconds, strict=True)) / whole
        for name in ("efficiency", "driver_share", "store_share")
    }
    return Projection(times * whole, **shares)


def _notes(checked: CheckedJob) -> tuple[str, ...]:
    notes = [f"{planned.reader.name}: {planned.in_words()}" for planned in checked.predictions]
    if checked.job.periodic != "off":
        notes.append("where a sample shows periodic lines, every image is read once more, to measure them")
    reach = widest_footprint(checked.job, checked.stage2, checked.kernel)
    if reach is not None:
        beyond = " x ".join(str(n // 2) for n in reach.shape)
        notes.append(
            f"counted with {beyond} voxels of halo beyond the network's, the most that the kernel of shared "
            "noise may add: most kernels add none"
        )
    return tuple(notes)


def _too_dear(cost: JobCost, max_cost: float | None) -> tuple[str, ...]:
    try:
        if max_cost is not None:
            cost.check(max_cost)
    except BadRequest as error:
        return (str(error),)
    return ()
