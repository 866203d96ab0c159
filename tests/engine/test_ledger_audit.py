"""A ledger read without changing it: what it vouches for, and which records are no good."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.engine import ledger_audit
from denoizarr.engine.ledger import Ledger
from denoizarr.engine.ledger_audit import LedgerClaim, audit_step, checksums_of, object_name, read_claim
from denoizarr.engine.runner import Record, Step, run_step
from denoizarr.errors import MetadataError
from denoizarr.stores import records


def _checksum(spec: Any, block: int) -> Record:
    return {"checksum": f"{block:016x}"}


def _run(folder: Path, n_blocks: int, per_batch: int) -> LedgerClaim:
    ledger = Ledger.claim(str(folder / "l"), {"kind": "test"})
    run_step(Step("s", _checksum, None, n_blocks, per_batch), ledger=ledger, progress=False)
    # Where the partition is on record too, the records must do without it, but for the test that adds it.
    (folder / "l" / "s" / "step.json").unlink(missing_ok=True)
    claim = read_claim(ledger.url)
    assert claim is not None
    assert claim.job == ledger.job
    assert claim.identity == {"kind": "test"}
    return claim


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 12), st.data())
def test_what_is_deleted_is_missing_and_the_rest_is_vouched_for(
    tmp_path_factory: pytest.TempPathFactory, n_blocks: int, per_batch: int, data: st.DataObject
) -> None:
    claim = _run(tmp_path_factory.mktemp("ledger"), n_blocks, per_batch)
    n_batches = -(-n_blocks // per_batch)
    gone = data.draw(st.sets(st.integers(0, n_batches - 1)))
    for batch in gone:
        (Path(claim.url) / "s" / f"{batch:08d}.json").unlink()
    audit = audit_step(claim, "s", n_blocks)
    lost = (
        {b for b in range(n_blocks) if b // per_batch in gone}
        if len(gone) < n_batches
        else set(range(n_blocks))
    )
    assert {b for start, stop in audit.missing for b in range(start, stop)} == lost
    assert audit.n_missing == len(lost)
    assert all(b < c for (_, b), (c, _) in zip(audit.missing, audit.missing[1:], strict=False)), "merged"
    assert audit.bad == ()
    asked = data.draw(st.lists(st.integers(0, n_blocks - 1), max_size=8, unique=True))
    found = checksums_of(claim, "s", asked, n_blocks, audit.blocks_per_batch)
    assert found == {b: f"{b:016x}" for b in asked if b not in lost}


def _gather(claim: LedgerClaim, group: int) -> Path:
    """Put the records of a whole group into one object, in place of theirs."""
    folder = Path(claim.url) / "s"
    names = [folder / f"{batch:08d}.json" for batch in range(group * 4, group * 4 + 4)]
    members = [json.loads(path.read_text()) for path in names]
    for path, member in zip(names, members, strict=True):
        del member["job"]
        path.unlink()
    there = folder / f"group-{group:06d}.json"
    there.write_text(json.dumps({"job": claim.job, "records": members}))
    return there


@pytest.mark.parametrize("with_partition", [True, False])
def test_gathered_records_vouch_as_single_ones_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_partition: bool
) -> None:
    monkeypatch.setattr(ledger_audit, "GROUP", 4)
    claim = _run(tmp_path, 40, 3)
    if with_partition:
        partition = {"job": claim.job, "blocks": 40, "blocks_per_batch": 3}
        (tmp_path / "l" / "s" / "step.json").write_text(json.dumps(partition))
    _gather(claim, 0)
    torn = _gather(claim, 2)
    (tmp_path / "l" / "s" / "00000005.json").unlink()
    audit = audit_step(claim, "s", 40)
    assert (audit.blocks_per_batch, audit.missing, audit.bad) == (3, ((15, 18),), ())
    assert audit.gathered == {0, 2}
    assert [object_name(b, audit.gathered) for b in (3, 4)] == ["group-000000.json", "00000004.json"]
    everything = checksums_of(claim, "s", range(40), 40, 3)
    assert everything == {b: f"{b:016x}" for b in range(40) if b not in range(15, 18)}
    torn.write_text("{")
    audit = audit_step(claim, "s", 40)
    assert audit.missing == ((15, 18), (24, 36))
    assert audit.bad == (("s/group-000002.json", "is torn"),), "once, not for each of its batches"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"job": "another"}, "is of another job"),
        ({"blocks": [0, 3]}, "is of blocks [0, 3], expected [3, 6]"),
        ({"results": [{"checksum": "0"}]}, "lacks checksums"),
        ({"results": [{"checksum": 1}] * 3}, "lacks checksums"),
        ({"results": "0"}, "lacks checksums"),
    ],
)
def test_a_record_that_is_no_good_is_named_and_stays(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    claim = _run(tmp_path, 8, 3)
    record = tmp_path / "l" / "s" / "00000001.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | change))
    before = record.read_bytes()
    audit = audit_step(claim, "s", 8)
    assert audit.bad == (("s/00000001.json", why),)
    assert audit.missing == ((3, 6),)
    assert set(checksums_of(claim, "s", range(8), 8, 3)) == {0, 1, 2, 6, 7}
    assert record.read_bytes() == before


def test_torn_records_vouch_for_nothing(tmp_path: Path) -> None:
    claim = _run(tmp_path, 8, 3)
    for batch, text in enumerate(("", "{", "[1]")):
        (tmp_path / "l" / "s" / f"{batch:08d}.json").write_text(text)
    audit = audit_step(claim, "s", 8)
    assert (audit.blocks_per_batch, audit.missing) == (0, ((0, 8),))
    assert audit.bad == tuple((f"s/0000000{i}.json", "is torn") for i in range(3))
    assert checksums_of(claim, "s", range(8), 8, 0) == {}


def test_no_ledger_no_step_and_a_torn_claim(tmp_path: Path) -> None:
    assert read_claim(str(tmp_path / "nothing")) is None
    claim = _run(tmp_path, 2, 1)
    assert audit_step(claim, "another", 5).missing == ((0, 5),)
    for text in ("", "{}", '{"identity": 3}'):
        (tmp_path / "l" / "job.json").write_text(text)
        with pytest.raises(MetadataError):
            read_claim(claim.url)


def test_records_that_are_gathered_while_they_are_looked_at_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_audit, "GROUP", 4)
    claim = _run(tmp_path, 24, 3)
    read = records.read_json

    def meanwhile(url: str) -> dict[str, Any]:
        if url.endswith("00000002.json"):
            undone.rename(first)  # the last of its group is done, and its driver gathers them
            _gather(claim, 0)
        return read(url)

    monkeypatch.setattr(records, "read_json", meanwhile)
    first, undone = tmp_path / "l" / "s" / "00000000.json", tmp_path / "kept"
    first.rename(undone)
    audit = audit_step(claim, "s", 24)
    assert audit.missing == ((0, 3),)
