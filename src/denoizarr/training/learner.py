"""One network while it learns: a step, the running average of its weights, its state for a checkpoint."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from denoizarr.errors import BadRequest, ModelError

from .batches import Batch
from .exactness import step_precision
from .options import TrainingOptions
from .processes import Processes
from .tensor_files import Weights

_ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
_STEP = "step"
_SEEDS = 2**63


class Learner:
    """The network, the average of its weights, and the optimiser.

    The average is what is validated and kept: weights averaged over the last steps denoise better than those
    of any one step. Early on it forgets faster, so that the untrained weights do not linger.

    Parameters
    ----------
    options : TrainingOptions
    network : torch.nn.Module
        Maps (n, 1, [z,] y, x) to the same shape; it is moved to the device and trained in place.
    processes : Processes
        This one and those that train with it.
    own : bool
        Whether the network is a user's: it may draw at random, and leave parameters out of a step.

    Attributes
    ----------
    network, average : torch.nn.Module
    steps_done : int
    rate : float
        Learning rate of the last step.
    """

    def __init__(
        self, options: TrainingOptions, network: nn.Module, processes: Processes, *, own: bool = False
    ) -> None:
        self.options, self.processes, self.device = options, processes, processes.device
        self.steps_done, self.rate = 0, options.learning_rate
        ndim = len(options.patch_shape)
        memory_format = torch.channels_last if ndim == 2 else torch.channels_last_3d
        self.network = network.to(self.device).to(memory_format=memory_format)  # type: ignore[call-overload]
        self.average: nn.Module = copy.deepcopy(self.network).eval().requires_grad_(False)
        self._parameters = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        self._optimiser = torch.optim.Adam(self._parameters.values(), lr=options.learning_rate, fused=True)
        self._averaged, self._copied = _pairs(self.average, self.network)
        parallel = processes.parallel(self.network, may_skip_parameters=own)
        self._forward: Any = torch.compile(parallel) if options.compile else parallel

    def learn(self, batch: Batch, rate: float) -> Tensor:
        """Take one step at this learning rate; return the loss before it, in variances, on the device.

        The loss is the mean over all processes, so that all of them know when it, or a gradient, is no longer
        finite: it is NaN then.
        """
        self.network.train()
        self._seed_draws()
        with self._mixed_precision(), _compiling(self.options.compile):
            predicted = self._forward(_fold_channels(batch.source))
        loss = self._loss_of(predicted, batch)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.rate = rate
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), self.options.gradient_clip, foreach=True)
        self._optimiser.step()
        self.steps_done += 1
        self._follow()
        # A finite loss may have a gradient that is not: told by way of the loss, without waiting for a GPU.
        is_finite = norm.isfinite().to(loss.device)
        return self.processes.mean(torch.where(is_finite, loss.detach(), math.nan))

    def _seed_draws(self) -> None:
        """Let what an own network draws in a step (dropout) be a function of the step; ours draws nothing."""
        draw = self.options.seed + self.steps_done * self.processes.count + self.processes.rank
        torch.default_generator.manual_seed(draw % _SEEDS)
        if self.device.type == "cuda":
            # Of this device alone: torch.manual_seed would leave a trace in the generators of all others.
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(draw % _SEEDS)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the weights, BatchNorm's running statistics among them."""
        kept = min(self.options.ema_decay, self.steps_done / (9 + self.steps_done))
        torch._foreach_lerp_(*self._averaged, 1 - kept)
        for average, value in zip(*self._copied, strict=True):
            average.copy_(value)

    @contextmanager
    def _mixed_precision(self) -> Iterator[None]:
        enabled = step_precision(self.options.precision, self.device) == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
            yield

    def _loss_of(self, predicted: Tensor, batch: Batch) -> Tensor:
        """Return the mean error over the voxels that count, which the channels of a patch share."""
        error = predicted.float().reshape(batch.expected.shape) - batch.expected
        error = error.square() if self.options.loss == "mse" else error.abs()
        if batch.centres is None:
            return error.mean()
        return (error * batch.centres).sum() / (batch.centres.sum() * error.shape[1]).clamp(min=1)

    def validate(self, batches: Iterable[Batch]) -> float:
        """Return the loss of the averaged weights over all voxels that count in these batches."""
        total = weight = 0.0
        for batch in batches:
            counted = batch.expected if batch.centres is None else batch.centres
            count = float(counted.numel() if batch.centres is None else counted.sum())
            with torch.inference_mode():
                total += float(self._loss_of(self.average(_fold_channels(batch.source)), batch)) * count
            weight += count
        return total / max(weight, 1.0)

    def predict(self, patches: Tensor) -> Tensor:
        """Return what the averaged weights make of normalised patches (n, c, [z,] y, x)."""
        with torch.inference_mode():
            answer = self.average(_fold_channels(patches.to(self.device)))
        result: Tensor = answer.reshape(patches.shape).cpu()
        return result

    def averaged_weights(self) -> Weights:
        """Return a copy of the averaged weights, on the CPU."""
        return _on_cpu(self.average.state_dict())

    # ---- checkpoints

    def state(self) -> Weights:
        """Return all that the next step depends on, as tensors on the CPU."""
        tensors: Weights = {}
        for prefix, module in (("network", self.network), ("average", self.average)):
            tensors |= {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
            passing = _passing_buffers(module)
            tensors |= {f"passing.{prefix}.{name}": value for name, value in passing.items()}
        for name, parameter in self._parameters.items():
            # Nothing where it had no gradient yet; fewer steps than others where it had not always one.
            moments = self._optimiser.state.get(parameter, {})
            tensors |= {f"adam.{part}.{name}": moments[part] for part in (_STEP, *_ADAM_MOMENTS) if moments}
        return _on_cpu(tensors)

    def restore(self, tensors: Weights, steps_done: int) -> None:
        """Go back to a state that :meth:`state` returned after ``steps_done`` steps.

        Raises
        ------
        ModelError
            A tensor is missing or does not fit.
        """
        try:
            for prefix, module in (("network", self.network), ("average", self.average)):
                module.load_state_dict(_below(f"{prefix}.", tensors))
                for name, buffer in _passing_buffers(module).items():
                    buffer.copy_(tensors[f"passing.{prefix}.{name}"])
            for name, parameter in self._parameters.items():
                if f"adam.{_STEP}.{name}" not in tensors:
                    continue
                moments = {
                    moment: torch.empty_like(parameter).copy_(tensors[f"adam.{moment}.{name}"])
                    for moment in _ADAM_MOMENTS
                }
                step = tensors[f"adam.{_STEP}.{name}"].to(self.device, copy=True)
                self._optimiser.state[parameter] = {_STEP: step} | moments
        except (KeyError, RuntimeError) as error:
            raise ModelError(
                "the checkpoint does not fit the network", got=str(error).split("\n")[0]
            ) from error
        self.steps_done = steps_done


def _pairs(
    average: nn.Module, network: nn.Module
) -> tuple[tuple[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]:
    """Return what is averaged and what is copied, each as a list of targets and one of sources."""
    averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
    copied: tuple[list[Tensor], list[Tensor]] = ([], [])
    pairs = (
        *zip(average.parameters(), network.parameters(), strict=True),
        *zip(average.buffers(), network.buffers(), strict=True),
    )
    for target, source in pairs:
        lists = averaged if target.is_floating_point() else copied
        lists[0].append(target.detach())
        lists[1].append(source.detach())
    return averaged, copied


@contextmanager
def _compiling(wanted: bool) -> Iterator[None]:
    """Name the setting where torch cannot compile here."""
    try:
        yield
    except RuntimeError as error:
        if not wanted or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise BadRequest(
            "torch cannot compile the network on this machine",
            where="compile",
            got=f"{type(error).__name__}: {str(error).split(chr(10))[0][:200]}",
            remedy="train with compile=False, or install a C++ compiler",
        ) from error


def _fold_channels(patches: Tensor) -> Tensor:
    """Return (n, c, [z,] y, x) as (n * c, 1, [z,] y, x): the network sees one channel at a time."""
    return patches.reshape(-1, 1, *patches.shape[2:])


def _passing_buffers(module: nn.Module) -> Weights:
    """Return the buffers that a module keeps out of its state: a step may depend on them all the same."""
    kept = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name not in kept}


def _on_cpu(tensors: Weights) -> Weights:
    # Contiguous, because a file knows no memory layout; the layout comes back when the state is loaded.
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def _below(prefix: str, tensors: Weights) -> Weights:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
