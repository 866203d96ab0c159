"""The dry run: every check that can fail early, and what the job will cost, from metadata alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from denoizarr.engine.cluster import usable_cores
from denoizarr.errors import BadData, BadRequest, Unfinished
from denoizarr.training.options import TrainingOptions

from .checked_job import check_job
from .config import JobConfig

# The standard network (depth 2, 32 features) on one CPU core: voxels predicted, patch voxels trained.
_PREDICTED_PER_SECOND = 0.44e6
_TRAINED_PER_SECOND = 0.19e6
# Worker processes, torch and the report, whatever the image: 20 to 30 s measured.
_START_UP_SECONDS = 25.0


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
        A rough guess from constants of one CPU core, with training, start-up and report; within a factor of
        two.
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
    seconds: float = 0.0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-able data."""
        return asdict(self)


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
    voxels = sum(prod(p.reader.shape) * p.recompute_factor for p in planned)
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
        seconds=round(_START_UP_SECONDS + inference + training, 1),
        notes=_notes(job),
    )


def _notes(job: JobConfig) -> tuple[str, ...]:
    if job.periodic == "off":
        return ()
    return ("where a sample shows periodic lines, every image is read once more, to measure them",)


def _cost(options: TrainingOptions | None) -> float:
    """Return the cost per voxel relative to the standard network."""
    assert options is not None, "a job has a stage"
    wider = 3 if len(options.patch_shape) == 3 else 1  # a convolution of 27 weights in place of 9
    return (options.features / 32) ** 2 * (0.6 + 0.2 * options.num_layers) * wider


def _training_seconds(options: TrainingOptions) -> float:
    patches = options.num_epochs * (options.patches_per_epoch or 4096)
    return patches * prod(options.patch_shape) * _cost(options) / _TRAINED_PER_SECOND / usable_cores()
