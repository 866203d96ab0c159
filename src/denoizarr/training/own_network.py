"""A network of one's own in place of ours: its structure apart from its weights, and what it costs.

Tiles equal the whole image only if a network does not know of its tile, so that it is measured before it is
used: :func:`measure_network` finds its stride and halo, proves them, and refuses what sees the whole tile.
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from denoizarr.errors import BadRequest

from .network_reach import checked_output, measured_reach, reach_holds
from .tensor_files import Weights

_LOG = logging.getLogger(__name__)

_CONVOLUTION = torch.ops.aten.convolution.default
# Freed tensors stay with the process for a while.
_ALLOCATOR_MARGIN = 1.5
_SMALL_TILE = 16
_PROBED_SIDES = (16, 32)


@dataclass(frozen=True, slots=True)
class OwnNetwork:
    """One's own network, measured. Equal to another of the same description and measures.

    Attributes
    ----------
    module : torch.nn.Module
        Maps (n, 1, [z,] y, x) to the same shape.
    ndim : int
        Spatial axes, 2 or 3.
    halo, stride : tuple of int
        Per spatial axis, in voxels: what a tile must read around its valid part, and what its origin and
        extents must be multiples of. The halo is a multiple of the stride.
    description : str
        Module and name of its class, for messages and for the model's file.
    """

    module: nn.Module = field(compare=False, repr=False)
    ndim: int
    halo: tuple[int, ...]
    stride: tuple[int, ...]
    description: str

    def structure(self) -> OwnNetwork:
        """Return the network without the values of its weights: small, to be sent to other processes."""
        # What is no part of the state, such as a fixed kernel in an attribute, stays: no file has it.
        memo: dict[int, Any] = {id(value): _emptied(value) for value in stateful_tensors(self.module)}
        bare = copy.deepcopy(self.module, memo)
        return OwnNetwork(bare, self.ndim, self.halo, self.stride, self.description)

    def empty_state(self) -> Weights:
        """Return names, shapes and types of the weights: tensors without values."""
        return {name: value.detach().to("meta") for name, value in self.module.state_dict().items()}

    def with_weights(self, weights: Weights) -> nn.Module:
        """Return a copy of the module that holds these weights, in evaluation mode, without gradients."""
        module = self.structure().module
        module.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)
        return module.eval().requires_grad_(False)


def measure_network(module: nn.Module, ndim: int) -> OwnNetwork:
    """Find the stride and halo of a network, and prove that its tiles equal the whole.

    Measured on copies with other weights, because the given ones may happen to be zero, and proven with the
    given ones too. Neither the module nor torch's generators change. Takes seconds for large networks.

    Parameters
    ----------
    module : torch.nn.Module
        Maps (n, 1, [z,] y, x) to the same shape and type, in float32 and in float64, on the CPU.
    ndim : int
        Spatial axes, 2 or 3.

    Returns
    -------
    OwnNetwork

    Raises
    ------
    BadRequest
        It does not map an image to an image; it gives another answer when asked again; its output does not
        depend on its weights; or it depends on the whole tile, as with instance or group normalisation,
        global pooling and attention, so that tiles could not equal the whole image.
    """
    description = _described(module)
    if ndim not in (2, 3):
        raise BadRequest("a network has 2 or 3 spatial axes", where="network", got=ndim)
    _LOG.info("Measuring how far the network %s reaches", description)
    stride, halo = measured_reach(module, ndim, description)
    _LOG.info("The network %s has the stride %s and the halo %s", description, stride, halo)
    return OwnNetwork(module, ndim, halo, stride, description)


def proven_network(module: nn.Module, stride: tuple[int, ...], halo: tuple[int, ...]) -> OwnNetwork | None:
    """Return a network whose stride and halo are known already; None if its tiles do not equal the whole.

    Raises
    ------
    BadRequest
        It does not map an image to an image.
    """
    description = _described(module)
    if not reach_holds(module, description, stride, halo):
        return None
    return OwnNetwork(module, len(stride), halo, stride, description)


def stateful_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters and buffers that a module's state holds, each once."""
    kept = module.state_dict(keep_vars=True)
    yield from {id(value): value for value in kept.values() if isinstance(value, Tensor)}.values()


def _emptied(value: Tensor) -> Tensor:
    empty = value.detach().to("meta")
    return nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty


def _described(module: nn.Module) -> str:
    """Return module and name of a network's class, after a check of its state."""
    given: object = module
    if not isinstance(given, nn.Module):
        got = f"{type(given).__module__}.{type(given).__name__}"
        raise BadRequest("not a torch.nn.Module", where="network", got=got)
    description = f"{type(module).__module__}.{type(module).__qualname__}"
    _check_state(module, description)
    return description


def _check_state(module: nn.Module, description: str) -> None:
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor) or nn.parameter.is_lazy(value):
            raise BadRequest(
                "the network's state must be tensors that exist before its first run",
                where=f"{description}, {name}",
                got=type(value).__name__,
            )
    if any(p.is_complex() for p in module.parameters()) or not any(True for _ in module.parameters()):
        raise BadRequest("the network needs real weights that can be trained", where=description)


def peak_bytes_per_voxel(module: nn.Module, stride: tuple[int, ...], dtype: torch.dtype) -> int:
    """Return the peak memory of a forward pass, in bytes per voxel of its input, its weights aside.

    The tensors alive at once while two small tiles are run, by what the larger one needs more: what does not
    grow with the tile would else be counted for every voxel of a large one. Half as much again for memory
    that is freed and not returned, and in float64 what a convolution unrolls its input into. The two take
    milliseconds, next to the seconds in which a network of one's own is measured or proven, so that nothing
    of it is kept.
    """
    module = copy.deepcopy(module).to("cpu", dtype)
    (small, few), (large, many) = (_probed(module, stride, dtype, side) for side in _PROBED_SIDES)
    return max(int((large - small) / (many - few)) + 1, 1)


def _probed(module: nn.Module, stride: tuple[int, ...], dtype: torch.dtype, side: int) -> tuple[float, int]:
    """Return the bytes that a tile of at least this side needs, and its voxels."""
    # Strides wider than the sides: one and two of them.
    extents = (-(-side // s) * s if s <= _PROBED_SIDES[0] else side // _PROBED_SIDES[0] * s for s in stride)
    tile = torch.zeros((1, 1, *extents), dtype=dtype)
    with torch.no_grad(), _LiveBytes() as live:
        checked_output(module, tile, "network")
    unrolled = live.unrolled if dtype == torch.float64 else 0
    return _ALLOCATOR_MARGIN * live.peak + unrolled, tile.numel()


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base class
    """Counts the bytes of all tensors that operations return while they are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.peak = self.unrolled = self._now = 0
        self._alive: dict[int, tuple[int, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is _CONVOLUTION:
            source, weight = args[:2]
            self.unrolled = max(
                self.unrolled, result[0, 0].numel() * weight[0].numel() * source.element_size()
            )
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._born(value)
        return result

    def _born(self, value: Tensor) -> None:
        # Views share one storage, which lives as long as the last of them.
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes()  # noqa: SLF001  # a storage's address is 0 on meta
        holders, _ = self._alive.get(key, (0, size))
        if not holders:
            self._now += size
            self.peak = max(self.peak, self._now)
        self._alive[key] = (holders + 1, size)
        weakref.finalize(value, self._gone, key)

    def _gone(self, key: int) -> None:
        holders, size = self._alive.pop(key)
        if holders > 1:
            self._alive[key] = (holders - 1, size)
        else:
            self._now -= size


def example_answer(network: OwnNetwork, weights: Weights) -> list[float]:
    """Return what the network answers, in float64 on the CPU, to a fixed tile of noise: 16 of its values.

    Weights and their names do not tell one activation from another; this does.
    """
    shape = tuple(-(-_SMALL_TILE // s) * s for s in network.stride)
    noise = np.random.default_rng(0).standard_normal(shape)
    module = network.with_weights(weights).double()
    with torch.inference_mode():
        answer = checked_output(module, torch.from_numpy(noise)[None, None], network.description)
    values = answer.flatten()
    return [float(v) for v in values[torch.linspace(0, values.numel() - 1, 16).long()]]
