"""From an image and its index to a trained model: the loop, read from top to bottom."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from denoizarr.engine.progress import Progress
from denoizarr.errors import BadRequest, DegenerateData, EmptyIndex, NonFiniteData
from denoizarr.kernels.blindspot import check_blind_spot
from denoizarr.selection.image_statistics import ImageStatistics
from denoizarr.selection.index_builder import build_index
from denoizarr.selection.patch_index import PatchIndex
from denoizarr.stores import locations
from denoizarr.stores.images import ImageLike, as_images
from denoizarr.stores.records import digest

from .checkpoints import Checkpoints
from .denoiser import Denoiser, Normalisation
from .learner import Learner, device_named, repeatable
from .options import DEFAULT_OPTIONS, TrainingOptions
from .patch_stream import PatchStream, validation_patches
from .tensor_files import Weights

_LOG = logging.getLogger(__name__)
_COLUMNS = ("epoch", "step", "train_loss", "validation_loss", "learning_rate")
# In the log alone: two runs of the same training leave the same checkpoints.
_SECONDS = "seconds"
# Enough for the mean and std of each channel to within a few per cent of the std.
_STATISTICS_PATCHES = 256


def train(
    image: ImageLike | Sequence[ImageLike],
    index: PatchIndex | None = None,
    *,
    blind_spot: NDArray[np.bool_] | None = None,
    options: TrainingOptions = DEFAULT_OPTIONS,
    checkpoint: str | Path | None = None,
    log: str | Path | None = None,
    normalisation: Normalisation | None = None,
    progress: bool = True,
) -> Denoiser:
    """Train a blind-spot network on nothing but the noisy image.

    Parameters
    ----------
    image : an image, a glob, or a list of images
        Raw intensities; dims t, c, z, y, x as they come. Trained plane by plane; channels share one network,
        each normalised by its own mean and standard deviation.
    index : PatchIndex, optional
        Where to draw patches; must be of this image and of ``options.patch_size``. None: everywhere.
    blind_spot : ndarray of bool, odd extents (y, x), optional
        Which pixels are hidden around a predicted one; None is Noise2Void's single pixel.
    options : TrainingOptions
    checkpoint : str or Path, optional
        A folder for the state after every epoch. Where it holds that of the same training, that is resumed:
        on a CPU the weights come out the same bit for bit, whenever it was stopped or killed.
    log : str or Path, optional
        A CSV file with one row per epoch: epoch (from 1), step (since the start), train_loss, validation_loss
        (masked; empty without validation patches), learning_rate (of the epoch's last step), seconds
        (of epochs before a resumption as the file has them already, else empty).
    normalisation : Normalisation, optional
        None: measured on 256 patches drawn from the index.
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
        The index is of another image or patch size; a blind spot cannot be had with these options; the loss
        left the range of numbers (the message names the batch's origins).
    LedgerMismatch
        The checkpoints are of another training.
    NonFiniteData, DegenerateData
        The image holds NaN or infinity, or nothing but one value.
    """
    job = _prepare(as_images(image), index, blind_spot, options, normalisation)
    device = device_named(options.device)
    checkpoints = None if checkpoint is None else Checkpoints(str(checkpoint), job.identity)
    learner = Learner(options, job.kernel, device, job.steps_per_epoch * options.num_epochs)
    state = _resume(checkpoints, learner, options)
    state.seconds = _logged_seconds(log, state.history)
    _write_log(log, state)
    stream = PatchStream(
        job.images,
        job.training,
        batch_size=options.batch_size,
        patches_per_epoch=job.patches_per_epoch,
        seed=options.seed,
    )
    remaining = (options.num_epochs - len(state.history)) * job.steps_per_epoch
    with (
        repeatable(state.threads, device),
        Progress("training", remaining, progress and remaining > 0) as bar,
    ):
        held_out = job.validation_set() if remaining else None
        for epoch in range(len(state.history), options.num_epochs):
            started = time.monotonic()
            losses: list[float] = []
            stream.set_epoch(epoch)
            for batch in stream:
                patches = job.normalised(batch["patch"])
                numbers = len(losses) * options.batch_size + torch.arange(len(patches))
                rate = learner.learning_rate
                losses.append(learner.learn(patches, epoch, numbers))
                if not math.isfinite(losses[-1]):
                    raise _not_finite(batch, epoch, len(losses))
                bar.advance(1, f"epoch {epoch + 1} of {options.num_epochs}, loss {losses[-1]:.4g}")
            validation = None if held_out is None else learner.masked_loss_of(held_out)
            if validation is not None and not math.isfinite(validation):
                raise _diverged(f"validation after epoch {epoch + 1}")
            if validation is None or validation <= state.best_loss:
                state.best, state.best_epoch = learner.averaged_weights(), epoch + 1
                state.best_loss = math.inf if validation is None else validation
            row = (epoch + 1, learner.steps_done, float(np.mean(losses)), validation, rate)
            state.history.append(dict(zip(_COLUMNS, row, strict=True)))
            state.seconds.append(str(round(time.monotonic() - started, 3)))
            _LOG.debug("%s", state.history[-1])
            _save(checkpoints, learner, state)
            _write_log(log, state)
    return job.denoiser(state, device)


@dataclass
class _State:
    """What the loop knows besides the learner: the best epoch and what the log says."""

    threads: int
    history: list[dict[str, Any]]
    best: Weights
    best_epoch: int = 0
    best_loss: float = math.inf
    seconds: list[str] = field(default_factory=list)


def _resume(checkpoints: Checkpoints | None, learner: Learner, options: TrainingOptions) -> _State:
    found = checkpoints.latest() if checkpoints is not None else None
    if found is None:
        threads = options.threads or torch.get_num_threads()
        return _State(threads, [], learner.averaged_weights())
    header, tensors = found
    learner.restore(tensors, int(header["steps_done"]))
    best = {n.removeprefix("best."): value for n, value in tensors.items() if n.startswith("best.")}
    loss = header["best_loss"]
    _LOG.info("training resumes after epoch %d of %d", header["epoch"], options.num_epochs)
    return _State(
        threads=options.threads or int(header["threads"]),
        history=list(header["history"]),
        best=best,
        best_epoch=int(header["best_epoch"]),
        best_loss=math.inf if loss is None else float(loss),
    )


def _save(checkpoints: Checkpoints | None, learner: Learner, state: _State) -> None:
    if checkpoints is None:
        return
    header = {
        "steps_done": learner.steps_done,
        "threads": state.threads,
        "history": state.history,
        "best_epoch": state.best_epoch,
        "best_loss": state.best_loss if math.isfinite(state.best_loss) else None,
    }
    tensors = learner.state() | {f"best.{name}": value for name, value in state.best.items()}
    checkpoints.save(len(state.history), header, tensors)


def _as_logged(row: dict[str, Any]) -> dict[str, str]:
    return {column: "" if row[column] is None else str(row[column]) for column in _COLUMNS}


def _logged_seconds(log: str | Path | None, history: Sequence[dict[str, Any]]) -> list[str]:
    """Return the seconds of epochs done before from the log that lies there; "" where it is not of these."""
    found: dict[str, dict[str, Any]] = {}
    if log is not None and history and locations.is_file(log):
        text = locations.get(log).decode(errors="replace")
        found = {str(row.get("epoch")): row for row in csv.DictReader(io.StringIO(text))}
    rows = [(found.get(str(row["epoch"]), {}), _as_logged(row)) for row in history]
    return [str(old.get(_SECONDS) or "") if old.items() >= new.items() else "" for old, new in rows]


def _write_log(log: str | Path | None, state: _State) -> None:
    """Write the whole log anew, so that an epoch which a killed run logged in vain is never there twice."""
    if log is None:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, (*_COLUMNS, _SECONDS), lineterminator="\n")
    writer.writeheader()
    for row, seconds in zip(state.history, state.seconds, strict=True):
        writer.writerow(_as_logged(row) | {_SECONDS: seconds})
    locations.put(log, text.getvalue().encode())


@dataclass(frozen=True, slots=True)
class _Job:
    """What is trained on, checked."""

    images: list[xr.DataArray]
    training: PatchIndex
    validation: PatchIndex
    kernel: NDArray[np.bool_]
    options: TrainingOptions
    normalisation: Normalisation
    identity: str

    @property
    def patches_per_epoch(self) -> int:
        return self.options.epoch_size(self.training.n_patches)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.patches_per_epoch // self.options.batch_size)

    def normalised(self, patches: Tensor) -> Tensor:
        """Return raw patches (n, c, y, x) in units of each channel's standard deviation."""
        mean = torch.tensor(self.normalisation.mean, dtype=torch.float32).reshape(-1, 1, 1)
        std = torch.tensor(self.normalisation.std, dtype=torch.float32).reshape(-1, 1, 1)
        return (patches - mean) / std

    def validation_set(self) -> Tensor | None:
        """Return the fixed validation patches, normalised, or None where nothing could be held out.

        Where there are few, each comes several times, and is masked otherwise every time: a loss over a few
        hundred predicted pixels would choose the best epoch by chance.
        """
        n = self.options.validation_patches
        if self.validation.n_patches == 0:
            _LOG.info("the image is too small to hold patches out: the last epoch is kept, not the best")
            return None
        drawn, origins = validation_patches(self.images, self.validation, n, self.options.seed)
        bad = np.flatnonzero(~np.isfinite(drawn).all(axis=(1, 2, 3)))
        if bad.size:
            several = len(self.images) > 1
            names = [f"image {o[0]}: {o[1:]}" if several else str(o) for o in origins[bad].tolist()]
            raise NonFiniteData(
                "the image holds NaN or infinity",
                where=f"validation patches at {', '.join(names)}",
                remedy="mask or replace them before training",
            )
        patches = self.normalised(torch.from_numpy(drawn))
        return patches.repeat(max(n // len(patches), 1), 1, 1, 1)

    def denoiser(self, state: _State, device: torch.device) -> Denoiser:
        last = state.history[-1]
        training = {
            "options": asdict(self.options),
            "patches_per_epoch": self.patches_per_epoch,
            "epochs": len(state.history),
            "steps": last["step"],
            "best_epoch": state.best_epoch,
            "best_validation_loss": state.best_loss if math.isfinite(state.best_loss) else None,
            "train_loss": last["train_loss"],
            "device": device.type,
            "threads": state.threads,
            "images": len(self.images),
        }
        return Denoiser(
            self.options.network_shape,
            state.best,
            self.normalisation,
            blind_spot=self.kernel,
            patch_size=self.options.patch_shape,
            training=training,
        )


def _prepare(
    images: list[xr.DataArray],
    index: PatchIndex | None,
    blind_spot: NDArray[np.bool_] | None,
    options: TrainingOptions,
    normalisation: Normalisation | None,
) -> _Job:
    kernel = np.ones((1, 1), np.bool_) if blind_spot is None else np.asarray(blind_spot)
    check_blind_spot(kernel, options.patch_shape, options.mask_percentage)
    if index is None:
        index = build_index(images, options.patch_shape, seed=options.seed)
    index.check_image(images)
    if index.plane_patch != options.patch_shape:
        raise BadRequest(
            "the index is for another patch size",
            where="patch_size",
            got=options.patch_shape,
            expected=tuple(index.patch_size),
            remedy="build an index with this patch_size, or train with the index's",
        )
    channels = _channels_of(images)
    training, validation = index.split(options.validation_fraction, options.seed)
    if training.n_patches == 0:
        raise EmptyIndex("no patch to train on", got=index.summary(), remedy="lower the filter's threshold")
    normalisation = normalisation or _measured(images, training, options.seed)
    if len(normalisation.mean) != channels:
        got, expected = f"{len(normalisation.mean)} channels", f"{channels}, as the image has"
        raise BadRequest("one mean and std per channel", where="normalisation", got=got, expected=expected)
    identity = digest(
        {
            # The device and the number of threads decide bits, and may differ on another machine.
            "options": asdict(options) | {"device": None, "threads": None},
            "kernel": kernel.astype(int).tolist(),
            "normalisation": asdict(normalisation),
            "images": index.images,
            "cells": [hashlib.blake2b(cells.packed.data).hexdigest() for cells in index.classes],
            "weights": [float(weight) for weight in index.table],
        }
    )
    return _Job(images, training, validation, kernel, options, normalisation, identity)


def _channels_of(images: Sequence[xr.DataArray]) -> int:
    counts = {int(image.sizes.get("c", 1)) for image in images}
    if len(counts) > 1:
        raise BadRequest("the images have different numbers of channels", got=sorted(counts))
    return counts.pop()


def _measured(images: list[xr.DataArray], index: PatchIndex, seed: int) -> Normalisation:
    """Return mean and std by channel: of the whole images where the index knows them, else of patches."""
    if index.statistics is not None:
        whole = ImageStatistics.merged(index.statistics).channels
        return Normalisation(tuple(c.mean for c in whole), tuple(c.std for c in whole))
    patches, _ = validation_patches(images, index, _STATISTICS_PATCHES, seed)
    channels = np.asarray(patches, np.float64).swapaxes(0, 1).reshape(patches.shape[1], -1)
    if not np.isfinite(channels).all():
        raise NonFiniteData("the image holds NaN or infinity", remedy="mask or replace them before training")
    mean, std = channels.mean(1), channels.std(1)
    if not (std > 0).all():
        raise DegenerateData(
            "a channel holds nothing but one value, so there is no noise to learn from",
            where=f"channel {int(np.argmin(std))}",
            got=f"{mean[np.argmin(std)]:g} everywhere in {len(patches)} patches",
        )
    return Normalisation(tuple(map(float, mean)), tuple(map(float, std)))


def _not_finite(batch: dict[str, Tensor], epoch: int, step: int) -> Exception:
    origins: list[Any] = batch["origin"].tolist()
    bad = [i for i, patch in enumerate(batch["patch"]) if not bool(torch.isfinite(patch).all())]
    if "image" in batch:
        origins = [f"image {int(n)}: {origin}" for n, origin in zip(batch["image"], origins, strict=True)]
    where = f"epoch {epoch + 1}, step {step}, patches at "
    if bad:
        return NonFiniteData(
            "the image holds NaN or infinity",
            where=where + ", ".join(str(origins[i]) for i in bad),
            remedy="mask or replace them before training",
        )
    return _diverged(where + ", ".join(map(str, origins)))


def _diverged(where: str) -> BadRequest:
    return BadRequest(
        "the loss is no longer a finite number",
        where=where,
        remedy="lower learning_rate or gradient_clip",
    )
