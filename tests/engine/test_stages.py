"""Blocks in three stages: what overlaps, what is held, whose error it is, and that nothing else changes."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.engine.ledger import Ledger
from denoizarr.engine.retries import RetryPolicy
from denoizarr.engine.runner import Step, run_step
from denoizarr.engine.stages import BLOCKS_AHEAD, BLOCKS_BEHIND, Stages, overlapped
from denoizarr.errors import CorruptChunk, MissingChunk, NonFiniteData, StoreUnavailable

AT_ONCE = RetryPolicy(first_seconds=0)
Key = tuple[str, int]


class Held:
    """What is read or computed of a block: can be referred to weakly."""

    def __init__(self, block: int) -> None:
        self.block = block


class Work:
    """Stages that note what happens; each may fail so often for some blocks, or wait for another to begin."""

    def __init__(self, fails: dict[Key, list[Exception]] | None = None) -> None:
        self.fails = fails or {}
        self.waits: dict[Key, Key] = {}
        self.tried: Counter[Key] = Counter()
        self.begun: list[Key] = []
        self.ended: list[Key] = []
        self.threads: dict[Key, str] = {}
        self.alive: dict[str, list[weakref.ref[Held]]] = {"read": [], "compute": []}
        self.most: Counter[str] = Counter()
        self.patience_seconds = 5.0
        self._changed = threading.Condition()

    def stages(self) -> Stages:
        return Stages(self.read, self.compute, self.write)

    def _do(self, stage: str, block: int) -> Held:
        key = stage, block
        with self._changed:
            self.threads[key] = threading.current_thread().name
            self.tried[key] += 1
            self.begun.append(key)
            self._changed.notify_all()
            if key in self.waits:
                began = self._changed.wait_for(lambda: self.waits[key] in self.begun, self.patience_seconds)
                assert began, f"{key} is alone"
        if self.fails.get(key):
            raise self.fails[key].pop()
        held = Held(block)
        with self._changed:
            self.ended.append(key)
            if stage in self.alive:
                self.alive[stage].append(weakref.ref(held))
                now = sum(ref() is not None for ref in self.alive[stage])
                self.most[stage] = max(self.most[stage], now)
        return held

    def read(self, _: Any, block: int) -> Held:
        return self._do("read", block)

    def compute(self, _: Any, block: int, found: Held) -> Held:
        assert found.block == block
        return self._do("compute", block)

    def write(self, _: Any, block: int, result: Held) -> dict[str, Any]:
        assert result.block == block
        self._do("write", block)
        return {"block": block}

    def written(self) -> list[int]:
        return [block for stage, block in self.ended if stage == "write"]


def at_once(work: Any, what: str, *drawn_from: object) -> Any:
    return work()


def test_the_next_is_read_and_the_last_is_written_while_one_is_computed() -> None:
    work = Work()
    # A circle: it is passed only where all three are under way together.
    work.waits = {("compute", 5): ("read", 6), ("read", 6): ("write", 4), ("write", 4): ("compute", 5)}
    assert overlapped(work.stages(), None, range(3, 8), at_once) == [{"block": b} for b in range(3, 8)]
    computing = {work.threads["compute", b] for b in range(3, 8)}
    assert computing == {threading.current_thread().name}


def test_in_turn_they_would_wait_in_vain() -> None:
    """Negative control: without overlap the test above fails."""
    work = Work()
    work.patience_seconds = 0.05
    work.waits = {("compute", 0): ("read", 1)}
    with pytest.raises(AssertionError, match="alone"):
        [work.stages()(None, block) for block in range(2)]


@settings(max_examples=9)
@given(n=st.integers(1, 9))
def test_one_block_ahead_and_one_behind_are_all_that_is_held(n: int) -> None:
    work = Work()
    overlapped(work.stages(), None, range(n), at_once)
    assert work.most["read"] <= 1 + BLOCKS_AHEAD
    assert work.most["compute"] <= 1 + BLOCKS_BEHIND
    assert not any(ref() for refs in work.alive.values() for ref in refs)
    assert work.written() == list(range(n))


def test_a_batch_of_one_block_begins_no_thread() -> None:
    work = Work()
    overlapped(work.stages(), None, [4], at_once)
    assert set(work.threads.values()) == {threading.current_thread().name}
    assert work.ended == [("read", 4), ("compute", 4), ("write", 4)]


@pytest.mark.parametrize(
    ("failing", "raised", "written"),
    [
        ({("read", 3): MissingChunk}, MissingChunk, [0, 1, 2]),
        ({("compute", 3): NonFiniteData}, NonFiniteData, [0, 1, 2]),
        ({("write", 3): CorruptChunk}, CorruptChunk, [0, 1, 2]),
        # By block, and not by time: 4 is read before 3 is computed.
        ({("read", 4): MissingChunk, ("compute", 3): NonFiniteData}, NonFiniteData, [0, 1, 2]),
        ({("read", 4): MissingChunk, ("write", 3): CorruptChunk}, CorruptChunk, [0, 1, 2]),
        ({("compute", 4): NonFiniteData, ("write", 3): CorruptChunk}, CorruptChunk, [0, 1, 2]),
        ({("write", 5): CorruptChunk}, CorruptChunk, [0, 1, 2, 3, 4]),
        ({("read", 0): MissingChunk}, MissingChunk, []),
    ],
)
def test_the_error_is_that_of_the_first_block_that_failed(
    failing: dict[Key, type[Exception]], raised: type[Exception], written: list[int]
) -> None:
    work = Work({key: [kind(f"{key}")] for key, kind in failing.items()})
    before = set(threading.enumerate())
    with pytest.raises(raised, match=str(min(block for _, block in failing))):
        overlapped(work.stages(), None, range(6), at_once)
    assert work.written() == written, "those before it are done"
    for thread in set(threading.enumerate()) - before:
        thread.join(1)
        assert not thread.is_alive(), "no thread is left at work"


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_a_stage_that_fails_for_a_moment_is_tried_again_alone(stage: str, tmp_path: Path) -> None:
    work = Work({(stage, 1): [StoreUnavailable("away") for _ in range(3)]})
    step = Step("s", work.stages(), None, 4, 4)
    (record,) = run_step(step, ledger=Ledger.claim(str(tmp_path), {}), progress=False, retries=AT_ONCE)
    assert record["results"] == [{"block": b} for b in range(4)]
    assert {key: n for key, n in work.tried.items() if n > 1} == {(stage, 1): 4}, "nothing else is done again"


def test_a_stage_that_goes_on_failing_fails_its_batch_alone(tmp_path: Path) -> None:
    work = Work({("write", 4): [StoreUnavailable("away") for _ in range(9)]})
    ledger = Ledger.claim(str(tmp_path), {})
    with pytest.raises(StoreUnavailable):
        run_step(Step("s", work.stages(), None, 9, 3), ledger=ledger, progress=False, retries=AT_ONCE)
    assert work.tried["write", 4] == AT_ONCE.tries
    assert [b for b in range(3) if ledger.get("s", b) is None] == [1]


def test_the_records_are_those_of_stages_in_turn(tmp_path: Path) -> None:
    found = []
    for name, threads in (("one", 1), ("three", 3)):
        step = Step("s", Work().stages(), None, 20, 3)
        ledger = Ledger.claim(str(tmp_path / name), {})
        records = run_step(step, ledger=ledger, threads=threads, progress=False)
        found.append([(r["batch"], r["blocks"], r["results"]) for r in records])
    assert found[0] == found[1]
    in_turn = Work().stages()
    assert [result for _, _, results in found[0] for result in results] == [
        in_turn(None, b) for b in range(20)
    ]
