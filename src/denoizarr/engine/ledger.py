"""What is done, written down outside the output: one immutable record per batch of blocks.

::

    <destination>.ledger/
        job.json                       the job's identity, put if absent: whose ledger this is
        <step>/<batch, 8 digits>.json  written after the batch's bytes are stored and read back

Keys are deterministic, so no listing is ever trusted; records are put if absent, so two writers of one batch
(a retry and its twin) agree. An object in the output is never taken for a done block; a record is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from denoizarr.errors import ImageNotFound, LedgerMismatch, MetadataError
from denoizarr.stores import locations, records

_NOTHING = object()
FORMAT = 1  # of the ledger and of what its identity covers; part of every job's identity


@dataclass(frozen=True, slots=True)
class Ledger:
    """The ledger of one job.

    Attributes
    ----------
    url : str
        Its folder.
    job : str
        Digest of the job's identity, repeated in every record.
    """

    url: str
    job: str

    @classmethod
    def claim(cls, url: str, identity: dict[str, Any]) -> Ledger:
        """Open the ledger at ``url`` for the job of this identity, beginning it where there is none.

        Raises
        ------
        LedgerMismatch
            It belongs to another job; the message names what differs.
        """
        body = _body(identity)
        if not records.create_json(locations.join(url, "job.json"), body):
            cls.check(url, identity)
        return cls(url, records.digest(body))

    @staticmethod
    def check(url: str, identity: dict[str, Any]) -> None:
        """Make sure that the ledger at ``url`` was claimed for this identity.

        Raises
        ------
        LedgerMismatch
            It belongs to another job; the message names what differs.
        """
        differences = sorted(
            _differences(records.read_json(locations.join(url, "job.json")), _body(identity))
        )
        if differences:
            raise LedgerMismatch(
                "this output was begun by another job",
                where=url,
                got=f"differences in {', '.join(differences[:4])}",
                remedy="choose another output, or delete this one and its ledger",
            )

    @staticmethod
    def is_begun(url: str) -> bool:
        """Tell whether a job has claimed the ledger at ``url``."""
        return locations.exists(locations.join(url, "job.json"))

    def _key(self, step: str, batch: int) -> str:
        return locations.join(self.url, step, f"{batch:08d}.json")

    def get(self, step: str, batch: int) -> dict[str, Any] | None:
        """Return the record of a batch, or None where it is not done by this job."""
        try:
            record = records.read_json(self._key(step, batch))
        except ImageNotFound:
            return None
        except MetadataError:
            # A power cut can leave an empty file. It vouches for nothing, and would win against a redo.
            locations.delete(self._key(step, batch))
            return None
        if record.get("job") != self.job:
            raise LedgerMismatch(
                "a record of another job",
                where=self._key(step, batch),
                remedy="delete the ledger and the output",
            )
        return record

    def done(self, step: str, n_batches: int) -> bytearray:
        """Return a one for every batch of a step that is done, a zero for the others."""
        return bytearray(self.get(step, batch) is not None for batch in range(n_batches))

    def records(self, step: str, n_batches: int) -> Iterator[dict[str, Any] | None]:
        """Yield the record of every batch of a step in order, None where there is none."""
        for batch in range(n_batches):
            yield self.get(step, batch)

    def holds(self, step: str, n_batches: int) -> bool:
        """Tell whether every batch of a step has its record."""
        return all(locations.is_file(self._key(step, batch)) for batch in range(n_batches))

    def forget(self, ending: str = "") -> None:
        """Delete the records of steps whose names end so: what they vouch for is gone. The claim stays."""
        for name in locations.list_names(self.url):
            if name.endswith(ending) and not locations.is_file(locations.join(self.url, name)):
                locations.delete_prefix(locations.join(self.url, name))

    def put(self, step: str, batch: int, record: dict[str, Any]) -> None:
        """Record a batch as done; the first record of a batch stays."""
        records.create_json(self._key(step, batch), {"job": self.job, **record})


def _body(identity: dict[str, Any]) -> dict[str, Any]:
    """Return what job.json holds, as it comes back: tuples are lists there, and keys are text."""
    body: dict[str, Any] = json.loads(records.canonical({"format": FORMAT, "identity": identity}))
    return body


def _differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Return the dotted names of the leaves in which two JSON trees differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            name
            for key in a.keys() | b.keys()
            for name in _differences(
                a.get(key, _NOTHING),
                b.get(key, _NOTHING),
                f"{path}.{key}".removeprefix(".identity").strip("."),
            )
        ]
    return [] if a == b else [path]
