"""From an image and its index to a trained model: the loop, read from top to bottom."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from denoizarr.engine.freed_memory import freed_memory_kept
from denoizarr.engine.progress import Progress
from denoizarr.engine.stop_signals import StopSignals
from denoizarr.images.periodic import Periodic
from denoizarr.selection.patch_index import PatchIndex
from denoizarr.stores.images import ImageLike, as_images
from denoizarr.stores.records import digest

from .batches import VALIDATION_EPOCH, Preparation
from .checkpoints import Checkpoints
from .denoiser import Denoiser
from .exactness import repeatable
from .held_out import HeldOut
from .learner import Learner
from .losses import Losses, StepReport, diverged
from .normalisation import Normalisation
from .options import DEFAULT_OPTIONS, TrainingOptions
from .patch_stream import PatchStream
from .processes import Processes, together
from .samples import Samples
from .schedule import learning_rate
from .training_job import TrainingJob, prepare_job
from .training_log import TrainingLog
from .training_record import EpochReport, TrainingRecord

_LOG = logging.getLogger(__name__)


def train(
    image: ImageLike | Sequence[ImageLike],
    index: PatchIndex | None = None,
    *,
    target: ImageLike | Sequence[ImageLike] | None = None,
    blind_spot: NDArray[np.bool_] | None = None,
    options: TrainingOptions = DEFAULT_OPTIONS,
    checkpoint: str | Path | None = None,
    log: str | Path | None = None,
    samples: str | Path | None = None,
    normalisation: Normalisation | None = None,
    network: nn.Module | None = None,
    client: Any = None,
    periodic: Periodic = "auto",
    on_step: Callable[[StepReport], None] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    progress: bool = True,
) -> Denoiser:
    """Train a network: a blind-spot network on nothing but the noisy image, or one from noisy to target.

    Parameters
    ----------
    image : an image, a glob, or a list of images
        Raw intensities; dims t, c, z, y, x as they come. Trained plane by plane, or on volumes where
        ``options.patch_size`` has three numbers; channels share one network, each normalised by its own
        mean and standard deviation.
    index : PatchIndex, optional
        Where to draw patches; must be of this image and of ``options.patch_size``. None: everywhere.
    target : like ``image``, optional
        Of the same extents: the clean image (supervised, CARE), or a second noisy one (Noise2Noise). All
        voxels are predicted then, and there are no blind spots.
    blind_spot : ndarray of bool, odd extents ([z,] y, x), optional
        Which voxels are hidden around a predicted one; None is Noise2Void's single one. Two axes do for
        volumes: the kernel then lies in the plane.
    options : TrainingOptions
    checkpoint : str or Path, optional
        A folder for the state after every epoch and every ``options.checkpoint_minutes``. Where it holds
        that of the same training, that is resumed: on a CPU the weights come out the same bit for bit,
        whenever it was stopped or killed. SIGTERM and Ctrl-C take effect when the step is done and saved.
    log : str or Path, optional
        A CSV file with one row per epoch: epoch (from 1), step (since the start), train_loss, validation_loss
        (masked; empty without validation patches), learning_rate (of the epoch's last step), seconds (of
        epochs begun before a resumption as the file has them already, else empty). Beside it, where the
        package ``tensorboard`` is installed, the folder ``NAME.tensorboard`` with the same curves.
    samples : str or Path, optional
        A folder for a picture per epoch: held-out patches, what the network makes of them, the difference.
    normalisation : Normalisation, optional
        Of the image. None: measured on 256 patches drawn from the index.
    network : torch.nn.Module, optional
        One's own in place of ours, mapping (n, 1, [z,] y, x) to the same shape; it is copied. Its halo and
        stride are measured; one that sees the whole patch (instance norm, attention) is refused.
    client : distributed.Client, optional
        Decode on the workers of this Dask cluster.
    periodic : {"auto", "off"}
        "auto" looks for lines that run through whole images, such as a scanner's hum every so many pixels,
        which no blind spot can hide; takes them out of image and target, and records their frequencies with
        the model, which takes them out of every image that it is applied to. Where there are none, nothing
        changes. "off": for images whose true structure repeats strictly, as a crystal or a printed grid does.
    on_step, on_epoch : callable, optional
        Called with every step's :class:`StepReport` (on a GPU one step late) and every epoch's
        :class:`EpochReport`. What they raise ends the training.
    progress : bool
        Show progress.

    Returns
    -------
    Denoiser
        The averaged weights of the epoch with the lowest masked validation loss, or of the last epoch where
        the image is too small to keep some of it for validation.

    Raises
    ------
    BadRequest
        The index is of another image or patch size; a blind spot cannot be had with these options; the target
        is the image itself; the loss, its gradient or the weights left the range of numbers (the message
        names the batch's origins, or the tensor); the processes were given different settings.
    LedgerMismatch
        The checkpoints are of another training (the message names what differs) or of another version.
    NonFiniteData, DegenerateData
        The image holds NaN or infinity, or nothing but one value.
    NoSpace
        The disk is full; the checkpoints before are whole.
    ClusterLost
        Another process of the same training died.

    Notes
    -----
    Started by ``torchrun``, every process trains on its own share of each epoch's patches with the mean of
    all gradients (a step then sees ``batch_size`` patches per process); the first one alone writes and
    reports, and all return the same model.
    """
    images = as_images(image)
    job = prepare_job(
        images, index, target, blind_spot, options, normalisation, network, periodic=periodic, client=client
    )
    outputs = _Outputs(checkpoint, log, samples, on_step, on_epoch, progress)
    with together(options.device) as processes:
        record = _learn(job, processes, client, outputs if processes.is_first else _NO_OUTPUTS)
        # What is measured is part of the model: with as many threads as it was trained with.
        with repeatable(record.threads, processes.device):
            return job.with_centre(job.denoiser(record, processes), processes)


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Where a training writes and whom it tells, as :func:`train` takes them."""

    checkpoint: str | Path | None = None
    log: str | Path | None = None
    samples: str | Path | None = None
    on_step: Callable[[StepReport], None] | None = None
    on_epoch: Callable[[EpochReport], None] | None = None
    progress: bool = False


_NO_OUTPUTS = _Outputs()


def _learn(job: TrainingJob, processes: Processes, client: Any, outputs: _Outputs) -> TrainingRecord:
    """Train to the end, from the last checkpoint if there is one."""
    options = job.options
    job.check_alike(processes)
    learner = Learner(options, job.new_network(), processes, own=job.has_own_network)
    stream, preparation = job.stream(processes, client), job.preparation(processes.device)
    checkpoints = _checkpoints(outputs, job.parts(processes), options)
    record = _resumed(processes, checkpoints, learner, stream, options)
    total_steps = options.num_epochs * stream.batches_per_epoch
    remaining = 0 if record.is_over(options) else total_steps - learner.steps_done
    on_gpu = processes.device.type == "cuda"
    losses = Losses(outputs.on_step, late=on_gpu, alone=processes.count == 1)
    with (
        closing(stream),
        repeatable(record.threads, processes.device),
        freed_memory_kept(),
        StopSignals(
            checkpoints is not None and processes.count == 1,
            "training stops when this step is done and saved",
        ) as stop,
        TrainingLog(outputs.log, record.history) as log,
        Progress("training", remaining, outputs.progress and remaining > 0) as bar,
    ):
        held_out = job.held_out() if remaining else None
        samples = _samples(outputs, job, held_out)
        while not record.is_over(options):
            epoch, of_last = len(record.history), (len(record.history) + 1) * stream.batches_per_epoch
            # How long the first part of a resumed epoch took is not known.
            started = None if record.epoch_steps else time.monotonic()
            losses.begin(record.epoch_loss, record.epoch_steps)
            stream.set_epoch(epoch)
            for batch in preparation.batches(stream, epoch):
                rate = learning_rate(options, learner.steps_done, total_steps, record.losses)
                loss = learner.learn(batch, rate)
                losses.add(loss, batch, epoch=epoch + 1, step=learner.steps_done, rate=rate)
                bar.advance(1, f"epoch {epoch + 1} of {options.num_epochs}, loss {losses.last:.4g}")
                is_due = checkpoints is not None and (checkpoints.are_due() or stop.are_pending)
                if is_due and learner.steps_done < of_last:
                    losses.settle()
                    record.epoch_loss, record.epoch_steps = losses.total, losses.count
                    _save(checkpoints, learner, record, stream)
                    stop.obey()
            train_loss = losses.settle()
            processes.share_buffers(learner.average)
            validation = processes.from_first(partial(_validated, learner, preparation, held_out, epoch))
            record.close_epoch(
                learner.averaged_weights(), learner.steps_done, train_loss, validation, learner.rate
            )
            _save(checkpoints, learner, record, stream)
            seconds = None if started is None else time.monotonic() - started
            log.add(record.history, seconds)
            if samples is not None:
                samples.draw(epoch + 1, options.num_epochs, learner)
            if outputs.on_epoch is not None:
                outputs.on_epoch(record.report(seconds))
            stop.obey()
    record.best = processes.from_first(lambda: record.best)
    return record


def _validated(
    learner: Learner, preparation: Preparation, held_out: HeldOut | None, epoch: int
) -> float | None:
    """Return the loss on the held-out patches, always under the same masks; None where there are none."""
    if held_out is None:
        return None
    items = held_out.items(learner.options.batch_size)
    loss = learner.validate(preparation.batch(item, VALIDATION_EPOCH) for item in items)
    if not math.isfinite(loss):
        raise diverged(f"validation after epoch {epoch + 1}")
    return loss


def _samples(outputs: _Outputs, job: TrainingJob, held_out: HeldOut | None) -> Samples | None:
    if outputs.samples is None:
        return None
    if held_out is None:
        _LOG.warning("there will be no pictures in %s: no patch is held out to show", outputs.samples)
        return None
    return Samples(outputs.samples, held_out, job.normalisation, job.target_normalisation, job.index.dims)


def _checkpoints(outputs: _Outputs, parts: dict[str, Any], options: TrainingOptions) -> Checkpoints | None:
    if outputs.checkpoint is None:
        return None
    where, minutes = str(outputs.checkpoint), options.checkpoint_minutes
    return Checkpoints(where, digest(parts), minutes=minutes, parts=parts)


def _resumed(
    processes: Processes,
    checkpoints: Checkpoints | None,
    learner: Learner,
    stream: PatchStream,
    options: TrainingOptions,
) -> TrainingRecord:
    """Return the record of the last checkpoint, with learner and stream as they were then; or a new one."""
    found = processes.from_first(lambda: None if checkpoints is None else checkpoints.latest())
    if found is None:
        return TrainingRecord(options.threads or torch.get_num_threads(), learner.averaged_weights())
    header, tensors = found
    record = TrainingRecord.of_checkpoint(header, tensors, options.threads)
    learner.restore(tensors, int(header["steps_done"]))
    stream.load_state_dict(header["stream"])
    text = "training resumes after epoch %d of %d, step %d"
    _LOG.info(text, len(record.history), options.num_epochs, learner.steps_done)
    return record


def _save(
    checkpoints: Checkpoints | None, learner: Learner, record: TrainingRecord, stream: PatchStream
) -> None:
    if checkpoints is None:
        return
    header = record.header() | {"stream": stream.state_dict()}
    checkpoints.save(learner.steps_done, header, learner.state() | record.tensors())
