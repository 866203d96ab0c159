"""One network while it learns: a step, the running average of its weights, its state for a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from denoizarr.errors import BadRequest, ModelError
from denoizarr.kernels.blindspot import draw_blind_spots, symmetries_of, turn_patches
from denoizarr.kernels.unet import UNet, build_network

from .exactness import exact_on
from .options import TrainingOptions
from .tensor_files import Weights

# Its own epoch number keeps the masks of validation apart from those of any epoch.
_VALIDATION_EPOCH = -1
_ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")


class Learner:
    """The network, the average of its weights, and the optimiser.

    The average is what is validated and kept: weights averaged over the last steps denoise better than those
    of any one step. Early on it forgets faster, so that the untrained weights do not linger.

    Parameters
    ----------
    options : TrainingOptions
    kernel : ndarray of bool, odd extents (y, x)
        The blind-spot kernel.
    device : torch.device
    total_steps : int
        Of the whole training, over which the learning rate falls.
    """

    def __init__(
        self, options: TrainingOptions, kernel: NDArray[np.bool_], device: torch.device, total_steps: int
    ) -> None:
        self.options, self.kernel, self.device, self.total_steps = options, kernel, device, total_steps
        self.steps_done = 0
        self.network = _on_device(build_network(options.network_shape, seed=options.seed), device)
        self.average = _on_device(build_network(options.network_shape, seed=options.seed), device)
        self.average.eval().requires_grad_(False)
        self._parameters = dict(self.network.named_parameters())
        self._optimiser = torch.optim.Adam(self._parameters.values(), lr=options.learning_rate)
        self._symmetries = symmetries_of(kernel) if options.augment else ()

    def learn(self, patches: Tensor, epoch: int, numbers: Tensor) -> float:
        """Take one step and return the loss, in variances of the image; a loss that is not finite takes none.

        Parameters
        ----------
        patches : Tensor of shape (n, c, y, x), float32
            Normalised intensities.
        epoch : int
        numbers : Tensor of int64, shape (n,)
            The patches' numbers within the epoch.
        """
        self.network.train()
        patches = patches.to(self.device, non_blocking=True)
        drawn: dict[str, Any] = {
            "seed": self.options.seed,
            "epoch": epoch,
            "numbers": numbers.to(self.device),
        }
        target = turn_patches(patches, self._symmetries, **drawn)
        source, centres = self._hide(target, **drawn)
        with self._mixed_precision():
            predicted = self.network(_fold_channels(source))
        loss = _masked_loss(predicted, target, centres)
        value = float(loss.detach())
        if math.isfinite(value):
            self._descend(loss)
        return value

    def _hide(self, target: Tensor, **drawn: Any) -> tuple[Tensor, Tensor]:
        options = self.options
        return draw_blind_spots(
            target, self.kernel, options.mask_percentage, options.masking_strategy, **drawn
        )

    def _descend(self, loss: Tensor) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = self.learning_rate
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters.values(), self.options.gradient_clip)
        self._optimiser.step()
        self.steps_done += 1
        kept = min(self.options.ema_decay, self.steps_done / (9 + self.steps_done))
        with torch.no_grad():
            state = self.network.state_dict()
            for name, value in self.average.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(state[name], 1 - kept)
                else:
                    value.copy_(state[name])

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step: half a cosine from the option's value to zero."""
        done = min(self.steps_done / self.total_steps, 1.0)
        return self.options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    @contextmanager
    def _mixed_precision(self) -> Iterator[None]:
        enabled = self.options.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
            yield

    def masked_loss_of(self, patches: Tensor) -> float:
        """Return the loss of the averaged weights over patches (n, c, y, x), always under the same masks."""
        total = weight = 0.0
        with torch.inference_mode():
            for start in range(0, len(patches), self.options.batch_size):
                target = patches[start : start + self.options.batch_size].to(self.device)
                numbers = torch.arange(start, start + len(target), device=self.device)
                source, centres = self._hide(
                    target, seed=self.options.seed, epoch=_VALIDATION_EPOCH, numbers=numbers
                )
                count = float(centres.sum())
                total += float(_masked_loss(self.average(_fold_channels(source)), target, centres)) * count
                weight += count
        return total / max(weight, 1.0)

    def averaged_weights(self) -> Weights:
        """Return a copy of the averaged weights, on the CPU."""
        return _copied(self.average.state_dict())

    # ---- checkpoints

    def state(self) -> Weights:
        """Return all that the next step depends on, as tensors on the CPU."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for name, parameter in self._parameters.items():
            moments = self._optimiser.state.get(parameter, {})
            tensors |= {f"adam.{moment}.{name}": moments[moment] for moment in _ADAM_MOMENTS if moments}
        return _copied(tensors)

    def restore(self, tensors: Weights, steps_done: int) -> None:
        """Go back to a state that :meth:`state` returned after ``steps_done`` steps.

        Raises
        ------
        ModelError
            A tensor is missing or does not fit.
        """
        try:
            self.network.load_state_dict(_below("network.", tensors))
            self.average.load_state_dict(_below("average.", tensors))
            for name, parameter in self._parameters.items():
                moments: dict[str, Any] = {
                    moment: torch.empty_like(parameter).copy_(tensors[f"adam.{moment}.{name}"])
                    for moment in _ADAM_MOMENTS
                    if steps_done
                }
                if moments:
                    self._optimiser.state[parameter] = {"step": torch.tensor(float(steps_done))} | moments
        except (KeyError, RuntimeError) as error:
            raise ModelError(
                "the checkpoint does not fit the network", got=str(error).split("\n")[0]
            ) from error
        self.steps_done = steps_done


def device_named(name: str) -> torch.device:
    """Return the device of the option ``device``: "auto" is cuda where there is one.

    Raises
    ------
    BadRequest
        It is not present on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadRequest(
            "no such device", where="device", got=repr(name), expected="auto, cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        got = f"{name}, with {torch.cuda.device_count()} such devices here"
        raise BadRequest("the device is not present", where="device", got=got, remedy='use device="auto"')
    return device


@contextmanager
def repeatable(threads: int, device: torch.device) -> Iterator[None]:
    """Compute alike inside the block: with this many threads, which decide the last bits of the weights.

    On cuda with :func:`~denoizarr.training.exactness.exact_cuda`.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with exact_on(device):
            yield
    finally:
        torch.set_num_threads(before)


def _masked_loss(predicted: Tensor, target: Tensor, centres: Tensor) -> Tensor:
    """Return the mean squared error over predicted pixels, which the channels of a patch share."""
    error = (predicted.float().reshape(target.shape) - target).square() * centres
    return error.sum() / (centres.sum() * target.shape[1]).clamp(min=1)


def _fold_channels(patches: Tensor) -> Tensor:
    """Return (n, c, y, x) as (n * c, 1, y, x): the network sees one channel at a time."""
    return patches.reshape(-1, 1, *patches.shape[2:])


def _on_device(network: UNet, device: torch.device) -> UNet:
    moved: UNet = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in stubs
    return moved


def _copied(tensors: Weights) -> Weights:
    # Contiguous, because a file knows no memory layout; the layout comes back when the state is loaded.
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def _below(prefix: str, tensors: Weights) -> Weights:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
