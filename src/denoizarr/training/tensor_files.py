"""Tensors and a JSON header in one safetensors file, checked when read; models and checkpoints are both one.

Nothing in such a file is executed, whoever wrote it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from denoizarr.errors import ModelError
from denoizarr.kernels.unet import NetworkShape, build_network
from denoizarr.stores import locations
from denoizarr.stores.records import canonical

Weights = dict[str, Tensor]

_KEY = "denoizarr"


def write_tensors(where: str, header: dict[str, Any], tensors: Weights) -> None:
    """Write header and tensors to one file, replacing it whole."""
    locations.put(where, safetensors.torch.save(tensors, metadata={_KEY: canonical(header)}))


def read_tensors(where: str) -> tuple[dict[str, Any], Weights]:
    """Return the JSON header and the tensors of a file that :func:`write_tensors` wrote.

    Raises
    ------
    ImageNotFound
        There is no such file.
    ModelError
        It is not a whole safetensors file, or has no such header.
    """
    data = locations.get(where)
    try:
        tensors = safetensors.torch.load(data)
        text = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][_KEY]
        header = json.loads(text)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        got = f"no header {error}" if isinstance(error, KeyError) else str(error).split("\n")[0][:200]
        raise ModelError("not a whole file of this package", where=where, got=got) from error
    if not isinstance(header, dict):
        raise ModelError("the header is not a JSON object", where=where, got=type(header).__name__)
    return header, tensors


def tensors_digest(tensors: Weights) -> str:
    """Return 32 hex digits that name tensors by their names, types, shapes and bytes."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        state.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        state.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def check_weights(weights: Weights, shape: NetworkShape, where: str) -> None:
    """Check that tensors are the finite state of a network of this shape.

    Raises
    ------
    ModelError
        A tensor is missing, superfluous, of the wrong shape or type, or not finite; the message names it.
    """
    with torch.device("meta"):
        wanted = build_network(shape).state_dict()
    if set(weights) != set(wanted):
        odd = sorted(set(weights) ^ set(wanted))
        raise ModelError(
            "the tensors are not those of the network", where=f"{where}, {odd[0]}", got=f"{len(odd)} differ"
        )
    for name, value in weights.items():
        expected = wanted[name]
        if value.shape != expected.shape or value.dtype != expected.dtype:
            raise ModelError(
                "a tensor does not fit the network",
                where=f"{where}, {name}",
                got=f"{value.dtype} {tuple(value.shape)}",
                expected=f"{expected.dtype} {tuple(expected.shape)}",
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError("a tensor is not finite", where=f"{where}, {name}")
