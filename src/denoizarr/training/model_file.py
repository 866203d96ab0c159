"""The file of a model: its header is checked, and fits its tensors, before any tensor is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from denoizarr.errors import BadRequest, ModelError
from denoizarr.kernels.unet import NetworkShape, build_network

from .model_header import ModelHeader, file_digest, parsed_header
from .network_reach import WIDEST_HALO, WIDEST_STRIDE
from .own_network import OwnNetwork, example_answer, proven_network
from .tensor_files import Weights, check_tensors, read_header, read_tensors, write_tensors

# Another machine rounds otherwise; another network differs in the first digits.
_SAME_ANSWER = 1e-6


def write_model(
    where: str, header: dict[str, Any], network: NetworkShape | OwnNetwork, weights: Weights
) -> None:
    """Write a header, but for what is computed from the others, and weights to one file."""
    example = example_answer(network, weights) if isinstance(network, OwnNetwork) else None
    header = header | {"example": example}
    write_tensors(where, header | {"digest": file_digest(header, weights)}, weights)


def read_model(
    where: str, network: nn.Module | OwnNetwork | None
) -> tuple[ModelHeader, NetworkShape | OwnNetwork, Weights]:
    """Return the header, the network's structure and the weights of a file; nothing in it is executed.

    Parameters
    ----------
    where : str
    network : torch.nn.Module or OwnNetwork or None
        The structure of a model of one's own network.

    Raises
    ------
    ImageNotFound, ModelError
        As :meth:`~denoizarr.training.denoiser.Denoiser.load` says.
    """
    raw, announced = read_header(where)
    header = parsed_header(raw, where)
    structure = _structure(header, network, where)
    wanted = structure.empty_state() if isinstance(structure, OwnNetwork) else _state_of(structure)
    check_tensors(announced, wanted, where)
    raw, weights = read_tensors(where)
    check_tensors(weights, wanted, where)
    if file_digest(raw, weights) != header.digest:
        raise ModelError(
            "the file is damaged: its content does not have the recorded digest",
            where=f"{where}, digest",
            got=file_digest(raw, weights),
            expected=header.digest,
        )
    if isinstance(structure, OwnNetwork):
        _check_answer(structure, weights, header, where)
    return header, structure, weights


def _state_of(shape: NetworkShape) -> Weights:
    with torch.device("meta"):
        return dict(build_network(shape).state_dict())


def _structure(
    header: ModelHeader, given: nn.Module | OwnNetwork | None, where: str
) -> NetworkShape | OwnNetwork:
    """Return the network that a file is of, measured where it is one's own."""
    if isinstance(header.network, NetworkShape):
        if given is not None:
            raise ModelError(
                "the file holds a network of this package",
                where=f"{where}, network",
                remedy="load it without network=",
            )
        return header.network
    if given is None:
        raise ModelError(
            "the model is of one's own network, and a file holds no code",
            where=f"{where}, network",
            got=header.network,
            remedy="load it with Denoiser.load(url, network=module)",
        )
    module = _fitting(header, given, where)
    # A class that has moved to another module since is still the same network: the file's name for it stays.
    return OwnNetwork(module, header.ndim, header.halo, header.stride, header.network)


def _fitting(header: ModelHeader, given: nn.Module | OwnNetwork, where: str) -> nn.Module:
    """Return the module of a network whose tiles equal the whole with the header's stride and halo."""
    if isinstance(given, OwnNetwork):
        for name in ("halo", "stride"):
            if getattr(given, name) != getattr(header, name):
                raise ModelError(
                    f"{given.description} is not the network that was trained, {header.network}",
                    where=f"{where}, {name}",
                    got=getattr(given, name),
                    expected=getattr(header, name),
                )
        return given.module
    # Beyond, no network is ever measured: a damaged header must not make us run one over a gigabyte.
    for name, lengths, widest in (
        ("halo", header.halo, WIDEST_HALO),
        ("stride", header.stride, WIDEST_STRIDE),
    ):
        if max(lengths) > widest:
            expected = f"at most {widest}"
            raise ModelError("out of range", where=f"{where}, {name}", got=lengths, expected=expected)
    unlike = f"the network is not the one that was trained, {header.network}"
    reach = f"halo {header.halo} and stride {header.stride}"
    try:
        proven = proven_network(given, header.stride, header.halo)
    except BadRequest as error:
        raise ModelError(unlike, where=f"{where}, network", got=str(error), expected=reach) from error
    if proven is None:
        raise ModelError(f"{unlike}: it reaches farther", where=f"{where}, halo", expected=reach)
    return proven.module


def _check_answer(network: OwnNetwork, weights: Weights, header: ModelHeader, where: str) -> None:
    found, expected = np.array(example_answer(network, weights)), np.array(header.example)
    if found.shape != expected.shape or not np.allclose(found, expected, _SAME_ANSWER, _SAME_ANSWER):
        raise ModelError(
            "the network is not the one that was trained: it answers otherwise with the same weights",
            where=f"{where}, example",
            got=found[:3].tolist(),
            expected=expected[:3].tolist(),
        )
