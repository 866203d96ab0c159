"""A ledger as it lies there, read without changing it: what is recorded, and which records are no good.

``Ledger`` itself deletes a torn record and refuses one of another job, as a job that goes on must. Here both
are found and told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from denoizarr.errors import ImageNotFound, MetadataError
from denoizarr.geometry.grids import batch_of, ceil_div
from denoizarr.stores import locations, records

from .ledger import record_name

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
    """

    step: str
    n_blocks: int
    blocks_per_batch: int
    missing: _Ranges
    bad: tuple[tuple[str, str], ...]

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


def audit_step(claim: LedgerClaim, step: str, n_blocks: int) -> StepAudit:
    """Read every record of a step and tell which blocks they vouch for.

    Reads one small object for each batch, and keeps none.
    """
    per_batch = _blocks_per_batch(claim, step)
    missing: list[tuple[int, int]] = []
    bad: list[tuple[str, str]] = []
    if per_batch == 0:
        # Nothing to go by: whatever lies there is no record.
        names = _record_names(claim, step)
        return StepAudit(
            step, n_blocks, 0, ((0, n_blocks),), tuple((f"{step}/{n}", _why(claim, step, n)) for n in names)
        )
    for batch in range(ceil_div(n_blocks, per_batch)):
        blocks = batch_of(batch, n_blocks, per_batch)
        problem = _problem(claim, _read(claim, step, record_name(batch)), blocks)
        if problem is None:
            continue
        if problem:
            bad.append((f"{step}/{record_name(batch)}", problem))
        if missing and missing[-1][1] == blocks.start:
            missing[-1] = (missing[-1][0], blocks.stop)
        else:
            missing.append((blocks.start, blocks.stop))
    return StepAudit(step, n_blocks, per_batch, tuple(missing), tuple(bad))


def checksums_of(
    claim: LedgerClaim, step: str, blocks: Sequence[int], n_blocks: int, blocks_per_batch: int
) -> dict[int, str]:
    """Return the recorded checksums of these blocks; none for those that no good record vouches for."""
    found: dict[int, str] = {}
    if blocks_per_batch == 0:
        return found
    for batch in sorted({block // blocks_per_batch for block in blocks}):
        members = batch_of(batch, n_blocks, blocks_per_batch)
        record = _read(claim, step, record_name(batch))
        if _problem(claim, record, members) is None:
            assert record is not None, "a record without a problem is there"
            found |= {b: record["results"][b - members.start]["checksum"] for b in blocks if b in members}
    return found


def _record_names(claim: LedgerClaim, step: str) -> list[str]:
    return [n for n in locations.list_names(locations.join(claim.url, step)) if n.endswith(".json")]


def _blocks_per_batch(claim: LedgerClaim, step: str) -> int:
    """Return the size of a batch as the first good record has it.

    A listing shows where to look and is trusted for nothing else: what counts is asked for by its key.
    """
    for name in _record_names(claim, step):
        record = _read(claim, step, name) or {}
        blocks, batch = record.get("blocks"), record.get("batch")
        if record.get("job") != claim.job or not _is_range(blocks) or not isinstance(batch, int) or batch < 0:
            continue
        assert isinstance(blocks, list), "a range of blocks"
        if batch == 0 and blocks[0] == 0:
            return int(blocks[1])
        if batch > 0 and blocks[0] % batch == 0:
            return int(blocks[0] // batch)
    return 0


def _is_range(blocks: Any) -> bool:
    return (
        isinstance(blocks, list)
        and len(blocks) == 2
        and all(isinstance(b, int) for b in blocks)
        and 0 <= blocks[0] < blocks[1]
    )


def _read(claim: LedgerClaim, step: str, name: str) -> dict[str, Any] | None:
    """Return a record; None where there is none, and an empty one where it is torn."""
    try:
        return records.read_json(locations.join(claim.url, step, name))
    except ImageNotFound:
        return None
    except MetadataError:
        return {}


def _problem(claim: LedgerClaim, record: dict[str, Any] | None, blocks: range) -> str | None:
    """Return why a record does not vouch for its blocks: None if it does, "" where there is none."""
    if record is None:
        return ""
    if "job" not in record:
        return "is torn"
    if record["job"] != claim.job:
        return "is of another job"
    if record.get("blocks") != [blocks.start, blocks.stop]:
        return f"is of blocks {record.get('blocks')}, expected [{blocks.start}, {blocks.stop}]"
    results = record.get("results")
    whole = isinstance(results, list) and len(results) == len(blocks)
    if not whole or not all(
        isinstance(r, dict) and isinstance(r.get("checksum"), str) for r in results or ()
    ):
        return "lacks checksums"
    return None


def _why(claim: LedgerClaim, step: str, name: str) -> str:
    record = _read(claim, step, name) or {}
    return "is of another job" if record.get("job", claim.job) != claim.job else "is torn"
