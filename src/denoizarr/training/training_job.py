"""What is trained on and how, checked before any work."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import nn

from denoizarr.errors import BadRequest, EmptyIndex
from denoizarr.images.periodic import Periodic, without_known_lines, without_lines
from denoizarr.kernels.blindspot import check_blind_spot, reached_percentage
from denoizarr.kernels.centre_weights import footprint_of
from denoizarr.kernels.unet import NetworkShape, build_network
from denoizarr.kernels.waves import Frequency
from denoizarr.selection.index_builder import build_index
from denoizarr.selection.patch_index import PatchIndex, identity_of
from denoizarr.stores.images import ImageLike, as_images, reader_of
from denoizarr.stores.records import digest

from .batches import Preparation
from .centre_measurement import measure_centre_weights
from .checkpoints import differing_parts
from .denoiser import Denoiser
from .exactness import step_precision
from .held_out import HeldOut, held_out_patches, measured_normalisation
from .normalisation import Normalisation
from .options import TrainingOptions
from .own_network import OwnNetwork, measure_network
from .patch_stream import PatchStream
from .processes import Processes, device_named
from .tensor_files import tensors_digest
from .training_record import TrainingRecord

_LOG = logging.getLogger(__name__)
# What decides no weights, or what may differ on another machine.
_OWN_WEIGHTS = "network's weights"
_DECIDES_NO_WEIGHTS = ("device", "threads", "checkpoint_minutes", "use_centre")


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """Everything about one training that is known before its first step.

    Attributes
    ----------
    images, targets : list of DataArray
        No targets: trained by blind spots.
    index : PatchIndex
        Of all images.
    training, validation : PatchIndex
        Its two parts.
    kernel : ndarray of bool, or None
        The blind-spot kernel, with as many axes as a patch; None with targets.
    options : TrainingOptions
    normalisation, target_normalisation : Normalisation
    network : NetworkShape or OwnNetwork
    periodic : tuple of (fy, fx)
        Frequencies of the periodic lines that were taken out of the images.
    """

    images: list[xr.DataArray]
    targets: list[xr.DataArray] | None
    index: PatchIndex
    training: PatchIndex
    validation: PatchIndex
    kernel: NDArray[np.bool_] | None
    options: TrainingOptions
    normalisation: Normalisation
    target_normalisation: Normalisation | None
    network: NetworkShape | OwnNetwork
    periodic: tuple[Frequency, ...] = ()

    @property
    def has_own_network(self) -> bool:
        """Whether the network is a user's."""
        return isinstance(self.network, OwnNetwork)

    def parts(self, processes: Processes) -> dict[str, Any]:
        """Return all that decides the weights, by name: every option, and the digests of what is larger."""
        options = {n: v for n, v in asdict(self.options).items() if n not in _DECIDES_NO_WEIGHTS}
        cells = [hashlib.blake2b(cells.packed.data).hexdigest() for cells in self.index.classes]
        large: dict[str, Any] = {
            "kernel": None if self.kernel is None else self.kernel.astype(int).tolist(),
            "normalisation": asdict(self.normalisation),
            "images": self.index.images,
            "index": [cells, [float(weight) for weight in self.index.table]],
        }
        if self.targets is not None:
            large["targets"] = [identity_of(target) for target in self.targets]
            large["target_normalisation"] = self.target_normalisation and asdict(self.target_normalisation)
        if self.periodic:
            large["periodic"] = [identity_of(image) for image in self.images]
        if isinstance(self.network, OwnNetwork):
            state = {name: value.clone() for name, value in self.network.module.state_dict().items()}
            large["network"] = self.network.description
            large[_OWN_WEIGHTS] = tensors_digest(state)
        return (
            {f"options.{name}": value for name, value in options.items()}
            | {name: digest(value)[:16] for name, value in large.items()}
            | {"processes": processes.count}
        )

    def check_alike(self, processes: Processes) -> None:
        """Make sure that all processes are about to train alike.

        The weights at the start may differ, for all take over the first one's.

        Raises
        ------
        BadRequest
            They are not; the message names what differs.
        """
        if processes.count == 1:
            return
        own = {name: value for name, value in self.parts(processes).items() if name != _OWN_WEIGHTS}
        own["options.use_centre"] = self.options.use_centre  # all wait for what the first one measures
        everyone = processes.from_all(own)
        names = sorted({name for other in everyone for name in differing_parts(everyone[0], other)})
        if names:
            raise BadRequest(
                "the processes of one training were given different settings",
                where=", ".join(names),
                got="; ".join(", ".join(str(one.get(name)) for name in names) for one in everyone),
                remedy="start all of them with the same",
            )

    def new_network(self) -> nn.Module:
        """Return the network as it is before the first step."""
        if isinstance(self.network, OwnNetwork):
            return copy.deepcopy(self.network.module)
        return build_network(self.network, seed=self.options.seed)

    def stream(self, processes: Processes, client: Any) -> PatchStream:
        """Return the stream of this process's share of the patches."""
        return PatchStream(
            self.images,
            self.training,
            target=self.targets,
            batch_size=self.options.batch_size,
            patches_per_epoch=self.options.epoch_size(self.training.n_patches),
            seed=self.options.seed,
            num_epochs=self.options.num_epochs,
            client=client,
            rank=processes.rank,
            world_size=processes.count,
        )

    def preparation(self, device: torch.device) -> Preparation:
        """Return what makes batches of the stream's items."""
        return Preparation(self.options, self.kernel, self.normalisation, self.target_normalisation, device)

    def held_out(self) -> HeldOut | None:
        """Return the fixed patches to validate on, or None where nothing could be held out."""
        if self.validation.n_patches:
            return held_out_patches(self.images, self.validation, self.targets, self.options)
        if self.options.validation_fraction == 0:
            _LOG.info("nothing is held out (validation_fraction is 0): the last epoch is kept, not the best")
            return None
        stops = self.options.early_stopping
        _LOG.warning(
            "the image is too small to hold patches out: the last epoch is kept, not the best%s",
            "" if stops is None else f", and early_stopping={stops} stops nothing",
        )
        return None

    def denoiser(self, record: TrainingRecord, processes: Processes) -> Denoiser:
        """Return the model that a training with this record has learnt."""
        last = record.history[-1]
        training = {
            "options": asdict(self.options),
            "patches_per_epoch": self.options.epoch_size(self.training.n_patches),
            "epochs": len(record.history),
            "steps": last["step"],
            "best_epoch": record.best_epoch,
            "best_validation_loss": record.best_loss if np.isfinite(record.best_loss) else None,
            "train_loss": last["train_loss"],
            "learns_from": "blind spots" if self.targets is None else "targets",
            "device": processes.device.type,
            "precision": step_precision(self.options.precision, processes.device),
            "processes": processes.count,
            "threads": record.threads,
            "images": len(self.images),
        }
        return Denoiser(
            self.network,
            record.best,
            self.normalisation,
            target_normalisation=self.target_normalisation,
            blind_spot=self.kernel,
            patch_size=self.options.patch_shape,
            pixel_size=self._pixel_size(),
            periodic=self.periodic,
            training=training,
        )

    def with_centre(self, denoiser: Denoiser, processes: Processes) -> Denoiser:
        """Return the model with what it is to keep of a voxel's own value, where that can be measured."""
        if self.kernel is None or not self.options.use_centre:
            return denoiser
        weights = processes.from_first(
            # Where it was trained: on the CPU beside a GPU the others would wait for it too long.
            lambda: measure_centre_weights(
                denoiser.to(str(processes.device)), self.images, self.training, self.options
            )
        )
        if weights is None:
            _LOG.info("there is not enough to tell what a voxel's own value is worth: it is left out")
        return denoiser.with_centre(weights, footprint_of(denoiser.blind_spot))

    def _pixel_size(self) -> dict[str, dict[str, Any]] | None:
        """Return spacing and unit along a patch's axes, of the first image; None where it states none."""
        axes = self.index.axes[0]
        names = self.index.dims[-len(self.options.patch_shape) :]
        sizes = {
            str(name): {"value": abs(float(axes[name]["spacing"])), "unit": axes[name]["attrs"].get("units")}
            for name in names
        }
        stated = any(size["unit"] is not None or size["value"] != 1 for size in sizes.values())
        return sizes if stated and all(size["value"] > 0 for size in sizes.values()) else None


def prepare_job(
    images: list[xr.DataArray],
    index: PatchIndex | None,
    target: ImageLike | Sequence[ImageLike] | None,
    blind_spot: NDArray[np.bool_] | None,
    options: TrainingOptions,
    normalisation: Normalisation | None,
    network: nn.Module | None,
    periodic: Periodic = "off",
    client: Any = None,
) -> TrainingJob:
    """Check what :func:`~denoizarr.train` was given, the cheapest first, and complete it.

    Raises
    ------
    BadRequest
        As :func:`~denoizarr.train` says.
    """
    _check_options(options)
    device_named(options.device)
    kernel = _kernel_of(blind_spot, target is not None, options)
    if kernel is not None:
        options = replace(options, mask_percentage=options.percentage_of(kernel))
    shape: NetworkShape | OwnNetwork = options.network_shape
    if network is not None:
        shape = measure_network(network, len(options.patch_shape))
        _check_stride(shape, options)
    targets = None if target is None else as_images(target)
    _check_targets(images, targets or [])
    channels = _channels_of(images, targets or [])
    images, frequencies = without_lines(images, periodic, client=client)
    if targets is not None:
        targets = without_known_lines(targets, frequencies, client=client)
    if index is None:
        index = build_index(images, options.patch_shape, seed=options.seed)
    index.check_image(images)
    if tuple(index.patch_size) != options.patch_shape:
        raise BadRequest(
            "the index is for another patch size",
            where="patch_size",
            got=options.patch_size,
            expected=tuple(index.patch_size),
            remedy="build an index with this patch_size, or train with the index's",
        )
    training, validation = index.split(options.validation_fraction, options.seed)
    if training.n_patches == 0:
        raise EmptyIndex("no patch to train on", got=index.summary(), remedy="lower the filter's threshold")
    measured, target_normalisation = measured_normalisation(
        images, training, targets, options.seed, normalisation
    )
    if len(measured.mean) != channels:
        got, expected = f"{len(measured.mean)} channels", f"{channels}, as the image has"
        raise BadRequest("one mean and std per channel", where="normalisation", got=got, expected=expected)
    return TrainingJob(
        images, targets, index, training, validation, kernel, options, measured, target_normalisation, shape,
        frequencies,
    )  # fmt: skip


def _check_options(options: object) -> None:
    if not isinstance(options, TrainingOptions):
        raise BadRequest(
            "the options are no TrainingOptions",
            where="options",
            got=type(options).__name__,
            expected="TrainingOptions(patch_size=64, ...)",
        )


def _check_targets(images: Sequence[xr.DataArray], targets: Sequence[xr.DataArray]) -> None:
    """Refuse an image as its own target; whether they have one extent the stream checks."""
    for number, (image, target) in enumerate(zip(images, targets, strict=False)):
        if reader_of(target).identity == reader_of(image).identity:
            raise BadRequest(
                "the target is the image itself, which teaches a network to change nothing",
                where=f"target {number}",
                remedy="leave target out to learn from the noisy image alone",
            )


def _kernel_of(
    blind_spot: NDArray[np.bool_] | None, has_target: bool, options: TrainingOptions
) -> NDArray[np.bool_] | None:
    """Return the kernel with as many axes as a patch; None where there is a target."""
    if has_target:
        if blind_spot is not None:
            raise BadRequest(
                "with a target nothing is hidden",
                where="blind_spot",
                got=f"a kernel of shape {np.shape(blind_spot)}",
                remedy="leave out the blind spot, or the target",
            )
        return None
    ndim = len(options.patch_shape)
    kernel = np.ones((1,) * ndim, np.bool_) if blind_spot is None else np.asarray(blind_spot)
    if kernel.ndim == 2 and ndim == 3:
        kernel = kernel[None]  # the noise of a plane knows nothing of the planes beside it
    percentage = options.percentage_of(kernel)
    check_blind_spot(kernel, options.patch_shape, percentage)
    if options.separate_masks:
        reached = reached_percentage(kernel, options.patch_shape, percentage, separate=True)
        _LOG.info(
            "separate masks: %.3g %% of the pixels are predicted, of %.3g %% asked for", reached, percentage
        )
    return kernel


def _check_stride(network: OwnNetwork, options: TrainingOptions) -> None:
    shape, stride = options.patch_shape, network.stride
    if any(n % s for n, s in zip(shape, stride, strict=True)):
        raise BadRequest(
            "a patch is a multiple of the network's stride",
            where="patch_size",
            got=shape,
            expected=tuple(-(-n // s) * s for n, s in zip(shape, stride, strict=True)),
        )


def _channels_of(images: Sequence[xr.DataArray], targets: Sequence[xr.DataArray]) -> int:
    counts = {int(image.sizes.get("c", 1)) for image in (*images, *targets)}
    if len(counts) > 1:
        what = "images and targets" if targets else "images"
        raise BadRequest(f"the {what} have different numbers of channels", got=sorted(counts))
    return counts.pop()
