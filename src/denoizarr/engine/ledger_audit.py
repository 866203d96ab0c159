"""A ledger as it lies there, read without changing it: what is recorded, and which records are no good.

``Ledger`` itself deletes a torn record and refuses one of another job, as a job that goes on must. Here both
are found and told::

    <step>/step.json               how many blocks a batch has, where that is on record
    <step>/<batch, 8 digits>.json  the record of one batch
    <step>/group-<6 digits>.json   the records of GROUP batches, where they were gathered in place of theirs
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from denoizarr.errors import ImageNotFound, MetadataError
from denoizarr.geometry.grids import batch_of, ceil_div
from denoizarr.stores import locations, records

from .ledger import GROUP, group_name, record_name

_PARTITION = "step.json"
_Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class LedgerClaim:
    """Whose ledger it is.

    Attributes
    ----------
    url : str
    job : str
        Digest of the identity, repeated in every record.
    identity : dict
        All that decides the output's bytes.
    """

    url: str
    job: str
    identity: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StepAudit:
    """The records of one step.

    Attributes
    ----------
    step : str
    n_blocks : int
    blocks_per_batch : int
        As the records have it; 0 where there is none that could tell.
    missing : tuple of (int, int)
        Blocks without a good record: first, and one past the last.
    bad : tuple of (str, str)
        Name of a record that is no good, such as "level-0/00000003.json", and why.
    gathered : frozenset of int
        Groups of batches whose records lie in one object.
    """

    step: str
    n_blocks: int
    blocks_per_batch: int
    missing: _Ranges
    bad: tuple[tuple[str, str], ...]
    gathered: frozenset[int] = frozenset()

    @property
    def n_missing(self) -> int:
        """Number of blocks without a good record."""
        return sum(stop - start for start, stop in self.missing)


def read_claim(url: str) -> LedgerClaim | None:
    """Return whose ledger lies at ``url``, or None where there is none.

    Raises
    ------
    MetadataError
        Its claim is torn.
    """
    try:
        body = records.read_json(locations.join(url, "job.json"))
    except ImageNotFound:
        return None
    identity = body.get("identity")
    if not isinstance(identity, dict):
        raise MetadataError("a ledger's claim without an identity", where=locations.join(url, "job.json"))
    return LedgerClaim(url, records.digest(body), identity)


def audit_step(claim: LedgerClaim, step: str, n_blocks: int, above: int = 0) -> StepAudit:
    """Read every record of a step and tell which blocks they vouch for.

    Holds the records of one group of batches at a time, and keeps none.

    Parameters
    ----------
    claim : LedgerClaim
    step : str
    n_blocks : int
    above : int
        What of the blocks: 0 their own objects, else those that were written along so many levels above them.
    """
    reader = _Records(claim, step)
    per_batch = reader.blocks_per_batch()
    missing: list[tuple[int, int]] = []
    bad: list[tuple[str, str]] = []
    if per_batch == 0:
        # Nothing to go by: whatever lies there is no record.
        bad = [(name, reader.why(name)) for name in reader.names()]
        missing = [(0, n_blocks)]
    for batch in range(ceil_div(n_blocks, per_batch) if per_batch else 0):
        blocks = batch_of(batch, n_blocks, per_batch)
        problem = _problem(reader.get(batch), claim.job, blocks, above)
        if problem is None:
            continue
        if problem:
            bad.append((reader.name_of(batch), problem))
        if missing and missing[-1][1] == blocks.start:
            missing[-1] = (missing[-1][0], blocks.stop)
        else:
            missing.append((blocks.start, blocks.stop))
    named = tuple((f"{step}/{name}", why) for name, why in dict(bad).items())
    return StepAudit(step, n_blocks, per_batch, tuple(missing), named, frozenset(reader.gathered))


def checksums_of(
    claim: LedgerClaim,
    step: str,
    blocks: Sequence[int],
    n_blocks: int,
    blocks_per_batch: int,
    above: int = 0,
) -> dict[int, str]:
    """Return the recorded checksums of these blocks; none for those that no good record vouches for.

    With ``above``, those of what was written along so many levels above them.
    """
    found: dict[int, str] = {}
    if blocks_per_batch == 0:
        return found
    reader = _Records(claim, step)
    for batch in sorted({block // blocks_per_batch for block in blocks}):
        members = batch_of(batch, n_blocks, blocks_per_batch)
        record = reader.get(batch)
        if _problem(record, claim.job, members, above) is None:
            assert record is not None, "a record without a problem is there"
            results = record["results"]
            found |= {b: str(_checksum(results[b - members.start], above)) for b in blocks if b in members}
    return found


class _Records:
    """The records of a step, as they lie there: one for each batch, or a group's gathered in one object."""

    def __init__(self, claim: LedgerClaim, step: str) -> None:
        self.claim, self.step = claim, step
        self.gathered: set[int] = set()
        self._group: tuple[int, list[Any] | None] = (-1, None)

    def get(self, batch: int) -> dict[str, Any] | None:
        """Return a batch's record; None where there is none, and an empty one where it is torn."""
        alone = self._read(record_name(batch))
        if alone:
            return alone
        group = self._members(batch // GROUP)
        if group is None and alone is None:
            # It may have been gathered since: a job that runs does not wait for who looks on.
            self._group = (-1, None)
            group = self._members(batch // GROUP)
        if group is None:
            return alone
        member = group[batch % GROUP] if batch % GROUP < len(group) else {}
        return {"job": self.claim.job, **member} if isinstance(member, dict) and member else {}

    def name_of(self, batch: int) -> str:
        """Return the name of the object that has, or spoils, a batch's record."""
        return object_name(batch, self.gathered)

    def names(self) -> list[str]:
        """Return the names of whatever lies in the step's folder, but for its partition."""
        listed = locations.list_names(locations.join(self.claim.url, self.step))
        return [name for name in listed if name.endswith(".json") and name != _PARTITION]

    def why(self, name: str) -> str:
        """Return why an object is no record of this job."""
        found = self._read(name) or {}
        return "is of another job" if found.get("job", self.claim.job) != self.claim.job else "is torn"

    def blocks_per_batch(self) -> int:
        """Return the size of a batch, as it is on record, or as the first good record has it; 0 for neither.

        A listing shows where to look and is trusted for nothing else: what counts is asked for by its key.
        """
        partition = self._read(_PARTITION) or {}
        size = partition.get("blocks_per_batch")
        if partition.get("job") == self.claim.job and isinstance(size, int) and size > 0:
            return size
        for name in self.names():
            found = self._read(name) or {}
            members = found.get("records", [found])
            record = members[0] if isinstance(members, list) and members else None
            if found.get("job") == self.claim.job and (size := _size_of_batch(record)):
                return size
        return 0

    def _members(self, group: int) -> list[Any] | None:
        """Return the records of a group, without their job; None where they are not gathered."""
        if self._group[0] != group:
            found = self._read(group_name(group))
            members: list[Any] | None = None
            if found is not None:
                self.gathered.add(group)
                listed = found.get("records")
                ours = found.get("job") == self.claim.job and isinstance(listed, list)
                members = listed if ours else []
            self._group = (group, members)
        return self._group[1]

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return records.read_json(locations.join(self.claim.url, self.step, name))
        except ImageNotFound:
            return None
        except MetadataError:
            return {}


def object_name(batch: int, gathered: Collection[int]) -> str:
    """Return the name of the object that has a batch's record, where these groups are gathered."""
    return group_name(batch // GROUP) if batch // GROUP in gathered else record_name(batch)


def _size_of_batch(record: Any) -> int:
    """Return how many blocks a record shows a batch to have; 0 where it does not."""
    blocks, batch = (record.get("blocks"), record.get("batch")) if isinstance(record, dict) else (None, None)
    if not isinstance(batch, int) or not isinstance(blocks, list) or len(blocks) != 2:
        return 0
    start, stop = blocks
    if not isinstance(start, int) or not isinstance(stop, int) or not 0 <= start < stop:
        return 0
    if batch == 0:
        return stop if start == 0 else 0
    return start // batch if batch > 0 and start % batch == 0 else 0


def _checksum(result: Any, above: int) -> Any:
    """Return what a block's result has for a checksum of what lies so many levels above it, if anything."""
    if not isinstance(result, dict):
        return None
    if above == 0:
        return result.get("checksum")
    others = result.get("above")
    return others[above - 1] if isinstance(others, list) and len(others) >= above else None


def _problem(record: dict[str, Any] | None, job: str, blocks: range, above: int = 0) -> str | None:
    """Return why a record does not vouch for its blocks: None if it does, "" where there is none."""
    if record is None:
        return ""
    if "job" not in record:
        return "is torn"
    if record["job"] != job:
        return "is of another job"
    if record.get("blocks") != [blocks.start, blocks.stop]:
        return f"is of blocks {record.get('blocks')}, expected [{blocks.start}, {blocks.stop}]"
    results = record.get("results")
    whole = isinstance(results, list) and len(results) == len(blocks)
    if not whole or not all(isinstance(_checksum(r, above), str) for r in results or ()):
        return "lacks checksums"
    return None
