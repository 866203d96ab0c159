"""The ledger: whose output this is, and what of it is done."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from denoizarr.engine.ledger import Ledger
from denoizarr.errors import LedgerMismatch

IDENTITY: dict[str, Any] = {"kind": "copy", "input": {"url": "a", "box": None}, "levels": [[1, 2], [3, 4]]}


def test_the_same_job_finds_its_ledger_again(tmp_path: Path) -> None:
    url = str(tmp_path / "l")
    assert not Ledger.is_begun(url)
    first = Ledger.claim(url, IDENTITY)
    assert Ledger.is_begun(url)
    assert Ledger.claim(url, dict(reversed(IDENTITY.items()))) == first
    as_tuples = IDENTITY | {"levels": ((1, 2), (3, 4))}
    assert Ledger.claim(url, as_tuples) == first, "a tuple is a list in the file"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"kind": "predict"}, "kind"),
        ({"input": {"url": "b", "box": None}}, "input.url"),
        ({"input": {"url": "a"}}, "input.box"),
        ({"levels": [[1, 2]]}, "levels"),
        ({"new": 1}, "new"),
        ({"new": None}, "new"),
    ],
)
def test_another_job_is_refused_by_what_differs(tmp_path: Path, change: dict[str, Any], name: str) -> None:
    url = str(tmp_path / "l")
    ledger = Ledger.claim(url, IDENTITY)
    ledger.put("s", 0, {"x": 1})
    with pytest.raises(LedgerMismatch, match=rf"differences in {name}\b"):
        Ledger.claim(url, IDENTITY | change)
    assert Ledger.claim(url, IDENTITY).get("s", 0) == {"job": ledger.job, "x": 1}, "nothing was touched"


def test_a_record_is_immutable(tmp_path: Path) -> None:
    ledger = Ledger.claim(str(tmp_path / "l"), IDENTITY)
    assert ledger.get("s", 0) is None
    ledger.put("s", 0, {"by": "first"})
    ledger.put("s", 0, {"by": "second"})
    assert ledger.get("s", 0) == {"job": ledger.job, "by": "first"}


def test_a_record_of_another_job_is_refused(tmp_path: Path) -> None:
    ledger = Ledger.claim(str(tmp_path / "l"), IDENTITY)
    Ledger(ledger.url, "another").put("s", 0, {})
    with pytest.raises(LedgerMismatch, match="record of another job"):
        ledger.get("s", 0)


def test_a_claim_is_won_by_one_of_two_jobs(tmp_path: Path) -> None:
    barrier = threading.Barrier(2)

    def claim(kind: str) -> str:
        barrier.wait()
        try:
            return Ledger.claim(str(tmp_path / "l"), {"kind": kind}).job
        except LedgerMismatch:
            return ""

    with ThreadPoolExecutor(2) as pool:
        assert sum(bool(job) for job in pool.map(claim, ("a", "b"))) == 1


def test_holds_and_forget(tmp_path: Path) -> None:
    ledger = Ledger.claim(str(tmp_path / "l"), IDENTITY)
    (tmp_path / "l" / "model.safetensors").write_bytes(b"m")
    for batch in (0, 1):
        ledger.put("s", batch, {})
    assert ledger.holds("s", 2)
    assert not ledger.holds("s", 3)
    assert not ledger.holds("other", 1)
    ledger.forget()
    assert not ledger.holds("s", 1)
    assert Ledger.claim(ledger.url, IDENTITY) == ledger
    assert (tmp_path / "l" / "model.safetensors").exists(), "what is no record stays"


def test_a_torn_record_vouches_for_nothing_and_is_redone(tmp_path):
    ledger = Ledger.claim(str(tmp_path / "l"), {"a": 1})
    ledger.put("step", 0, {"results": []})
    record = tmp_path / "l" / "step" / "00000000.json"
    record.write_text("")
    assert ledger.get("step", 0) is None
    ledger.put("step", 0, {"results": [1]})
    assert ledger.get("step", 0)["results"] == [1]
