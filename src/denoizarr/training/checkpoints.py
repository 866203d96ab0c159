"""The state of a training after each epoch, so that it can be killed at any moment."""

from __future__ import annotations

import logging
import re
from typing import Any

from denoizarr.errors import LedgerMismatch, ModelError
from denoizarr.stores import locations
from denoizarr.stores.records import digest

from .tensor_files import Weights, read_tensors, tensors_digest, write_tensors

_LOG = logging.getLogger(__name__)
_FORMAT, _VERSION = "denoizarr-checkpoint", 1
_NAME = re.compile(r"^epoch-(\d{6})\.safetensors$")
_KEPT = 3


class Checkpoints:
    """One file per finished epoch in one folder, the last three kept.

    A file is replaced whole or not at all, and carries a digest of its content, so that a torn one is told
    from a good one; then the one before it is used.

    Parameters
    ----------
    url : str
        The folder; made when the first checkpoint is written.
    identity : str
        Names all that decides the weights; a checkpoint of another identity is refused.
    """

    def __init__(self, url: str, identity: str) -> None:
        self.url, self.identity = url, identity

    def save(self, epoch: int, header: dict[str, Any], tensors: Weights) -> None:
        """Write the state after ``epoch`` finished epochs, then delete all but the last three."""
        header = header | {
            "format": _FORMAT,
            "version": _VERSION,
            "epoch": epoch,
            "identity": self.identity,
        }
        header["digest"] = _digest(header, tensors)
        write_tensors(locations.join(self.url, f"epoch-{epoch:06d}.safetensors"), header, tensors)
        for name in self._names()[_KEPT:]:
            locations.delete(locations.join(self.url, name))

    def latest(self) -> tuple[dict[str, Any], Weights] | None:
        """Return header and tensors of the last good checkpoint, or None where there is none.

        Raises
        ------
        LedgerMismatch
            The folder holds the checkpoints of another training.
        """
        for name in self._names():
            where = locations.join(self.url, name)
            try:
                header, tensors = read_tensors(where)
                self._check(header, tensors, where)
            except LedgerMismatch:
                raise
            except (ModelError, KeyError) as error:
                _LOG.warning("a damaged checkpoint is left out: %s", error)
                continue
            return header, tensors
        return None

    def _names(self) -> list[str]:
        return sorted((n for n in locations.list_names(self.url) if _NAME.match(n)), reverse=True)

    def _check(self, header: dict[str, Any], tensors: Weights, where: str) -> None:
        if (header["format"], header["version"]) != (_FORMAT, _VERSION):
            raise ModelError("a file of another kind or version", where=where, got=header["format"])
        if header["digest"] != _digest(header, tensors):
            raise ModelError("the content does not have the recorded digest", where=where)
        if header["identity"] != self.identity:
            raise LedgerMismatch(
                "the checkpoint is of another training: other options, kernel, image, index or normalisation",
                where=where,
                got=header["identity"],
                expected=self.identity,
                remedy="use another checkpoint folder, or delete this one to begin anew",
            )


def _digest(header: dict[str, Any], tensors: Weights) -> str:
    return digest([{k: v for k, v in header.items() if k != "digest"}, tensors_digest(tensors)])
