"""The state of a training, written now and then, so that it can be killed at any moment."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping
from typing import Any

from denoizarr.engine import failpoints
from denoizarr.errors import LedgerMismatch, ModelError
from denoizarr.stores import locations
from denoizarr.stores.records import canonical, digest

from .tensor_files import Weights, read_tensors, tensors_digest, write_tensors

_LOG = logging.getLogger(__name__)
_FORMAT, _VERSION = "denoizarr-checkpoint", 3
_NAME = re.compile(r"^step-(\d{9})\.safetensors$")
KEPT = 3


class Checkpoints:
    """Files in one folder, named by the steps done, the last three kept.

    A file is replaced whole or not at all, and carries a digest of its content, so that a torn one is told
    from a good one; then the one before it is used.

    Parameters
    ----------
    url : str
        The folder; made when the first checkpoint is written.
    identity : str
        Names all that decides the weights; a checkpoint of another identity is refused.
    minutes : float
        Longest time between two of them.
    parts : mapping, optional
        What the identity is made of, JSON-able, by name: a checkpoint of another identity is refused by the
        names of those that differ.
    """

    def __init__(
        self, url: str, identity: str, *, minutes: float = 0.0, parts: Mapping[str, Any] | None = None
    ) -> None:
        self.url, self.identity, self.minutes = url, identity, minutes
        self.parts: dict[str, Any] = json.loads(canonical(dict(parts or {})))
        self._saved = time.monotonic()

    def are_due(self) -> bool:
        """Whether the last one, or the start, is longer ago than it may be."""
        return time.monotonic() - self._saved >= 60 * self.minutes

    def save(self, step: int, header: dict[str, Any], tensors: Weights) -> None:
        """Write the state after ``step`` steps, then delete all but the last three.

        Raises
        ------
        NoSpace, PermissionDenied, StoreUnavailable
            It could not be written; the checkpoints before it are as they were.
        """
        header = header | {
            "format": _FORMAT,
            "version": _VERSION,
            "steps_done": step,
            "identity": self.identity,
            "parts": self.parts,
        }
        header["digest"] = _digest(header, tensors)
        own = f"step-{step:09d}.safetensors"
        write_tensors(locations.join(self.url, own), header, tensors)
        names = self._names()
        # Those of later steps are damaged, or this training would have gone on from them.
        earlier = [name for name in names if name <= own]
        for name in set(names) - set(earlier[:KEPT]):
            locations.delete(locations.join(self.url, name))
        self._saved = time.monotonic()
        failpoints.reach("saved")

    def latest(self) -> tuple[dict[str, Any], Weights] | None:
        """Return header and tensors of the last good checkpoint, or None where there is none.

        Raises
        ------
        LedgerMismatch
            The folder holds the checkpoints of another training, or of another version of this package.
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
        kind = header["format"], header["version"]
        if kind[0] == _FORMAT and kind[1] != _VERSION:
            # It may be whole: to take it for damaged would be to write over it.
            raise LedgerMismatch(
                "the checkpoint is of another version of this package",
                where=where,
                got=kind,
                expected=(_FORMAT, _VERSION),
                remedy="go on with that version, or use another checkpoint folder",
            )
        if kind[0] != _FORMAT:
            raise ModelError("a file of another kind", where=where, got=kind, expected=(_FORMAT, _VERSION))
        if header["digest"] != _digest(header, tensors):
            raise ModelError("the content does not have the recorded digest", where=where)
        if header["identity"] != self.identity:
            found = header.get("parts") or {}
            names = differing_parts(found, self.parts)
            told: dict[str, tuple[Any, Any]]
            told = {name: (found.get(name), self.parts.get(name)) for name in names}
            told = told or {"identity": (header["identity"], self.identity)}
            raise LedgerMismatch(
                "the checkpoint is of another training",
                where=", ".join((where, *told)),
                got=", ".join(str(got) for got, _ in told.values()),
                expected=", ".join(str(expected) for _, expected in told.values()),
                remedy="use another checkpoint folder, or delete this one to begin anew",
            )


def differing_parts(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the names of those parts of two identities that are not equal."""
    return [n for n in sorted(first.keys() | second.keys()) if first.get(n) != second.get(n)]


def _digest(header: dict[str, Any], tensors: Weights) -> str:
    return digest([{k: v for k, v in header.items() if k != "digest"}, tensors_digest(tensors)])
