"""Tensors and a JSON header in one safetensors file, checked when read; models and checkpoints are both one.

::

    | 8 bytes: size of the head | head: JSON with the header and each tensor's type, shape, place | tensors |

Nothing in such a file is executed, whoever wrote it, and what it claims to hold is compared with its size
before anything is read: a claim of terabytes costs eight bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from denoizarr.errors import ModelError
from denoizarr.stores import locations
from denoizarr.stores.records import canonical

Weights = dict[str, Tensor]

_KEY = "denoizarr"
# Far above a network of a thousand tensors, or the history of a hundred thousand epochs.
_LARGEST_HEAD_BYTES = 64 * 2**20
_LARGEST_FILE_BYTES = 32 * 2**30
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def write_tensors(where: str, header: dict[str, Any], tensors: Weights) -> None:
    """Write header and tensors to one file, replacing it whole."""
    locations.put(where, safetensors.torch.save(tensors, metadata={_KEY: canonical(header)}))


def read_header(where: str) -> tuple[dict[str, Any], Weights]:
    """Return the JSON header of a file and its tensors without their values, as ``meta`` tensors.

    Raises
    ------
    ImageNotFound
        There is no such file.
    ModelError
        It is not a whole safetensors file, is larger than any of ours, or has no such header.
    """
    size, head = _head(where)
    try:
        content = json.loads(head)
        header = json.loads(content.pop("__metadata__")[_KEY])
        tensors = {name: _announced(entry) for name, entry in content.items()}
        ends = max((int(entry["data_offsets"][1]) for entry in content.values()), default=0)
    except (
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
        RuntimeError,
    ) as error:
        got = f"no header {error}" if isinstance(error, KeyError) else str(error).split("\n")[0][:200]
        raise ModelError("not a whole file of this package", where=where, got=got) from error
    if not isinstance(header, dict):
        raise ModelError("the header is not a JSON object", where=where, got=type(header).__name__)
    held = size - 8 - len(head)
    if ends != held:
        got, expected = f"{held} bytes of tensors", f"{ends}, as announced"
        raise ModelError("not a whole file of this package", where=where, got=got, expected=expected)
    return header, tensors


def read_tensors(where: str) -> tuple[dict[str, Any], Weights]:
    """Return the JSON header and the tensors of a file that :func:`write_tensors` wrote.

    Raises
    ------
    ImageNotFound
        There is no such file.
    ModelError
        It is not a whole safetensors file, is larger than any of ours, or has no such header.
    """
    header, _ = read_header(where)
    try:
        return header, safetensors.torch.load(locations.get(where))
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ModelError(
            "not a whole file of this package", where=where, got=str(error).split("\n")[0][:200]
        ) from error


def _head(where: str) -> tuple[int, bytes]:
    size = locations.size(where)
    if size < 8:
        raise ModelError("not a whole file of this package", where=where, got=f"{size} bytes")
    claimed = int.from_bytes(locations.get_range(where, 0, 8), "little")
    if size > _LARGEST_FILE_BYTES or claimed > min(size - 8, _LARGEST_HEAD_BYTES):
        raise ModelError(
            "not a file of this package: its size is out of range",
            where=where,
            got=f"{size} bytes with a head of {claimed}",
            expected=f"at most {_LARGEST_FILE_BYTES} with one of {min(size - 8, _LARGEST_HEAD_BYTES)}",
        )
    return size, locations.get_range(where, 8, claimed)


def _announced(entry: Mapping[str, Any]) -> Tensor:
    return torch.empty(tuple(entry["shape"]), dtype=_TYPES[entry["dtype"]], device="meta")


def tensors_digest(tensors: Weights) -> str:
    """Return 32 hex digits that name tensors by their names, types, shapes and bytes."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        state.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        state.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def check_tensors(tensors: Weights, wanted: Weights, where: str) -> None:
    """Check that tensors are, by name, shape, type and finite values, what a network's state is.

    Parameters
    ----------
    tensors, wanted : dict of str to Tensor
        Either may be without values, on the ``meta`` device.
    where : str

    Raises
    ------
    ModelError
        A tensor is missing, superfluous, of the wrong shape or type, or not finite; the message names it.
    """
    if set(tensors) != set(wanted):
        odd = sorted(set(tensors) ^ set(wanted))
        raise ModelError(
            "the tensors are not those of the network", where=f"{where}, {odd[0]}", got=f"{len(odd)} differ"
        )
    for name, value in tensors.items():
        expected = wanted[name]
        if value.shape != expected.shape or value.dtype != expected.dtype:
            raise ModelError(
                "a tensor does not fit the network",
                where=f"{where}, {name}",
                got=f"{value.dtype} {tuple(value.shape)}",
                expected=f"{expected.dtype} {tuple(expected.shape)}",
            )
        if value.is_floating_point() and not value.is_meta and not bool(torch.isfinite(value).all()):
            raise ModelError("a tensor is not finite", where=f"{where}, {name}")
