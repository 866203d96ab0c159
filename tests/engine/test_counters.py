"""Counters: what a step does is counted once, whoever does it, and what an earlier run did apart from it."""

from __future__ import annotations

import threading

import pytest

from denoizarr.engine.counters import DONE, Counters, counting, current_counters
from denoizarr.engine.ledger import Ledger
from denoizarr.engine.retries import RetryPolicy
from denoizarr.engine.runner import Step, run_step
from denoizarr.errors import BadRequest, BlockFailed, StoreUnavailable

QUICK = RetryPolicy(tries=3, first_seconds=0.0)


def moving(spec, block):
    return {"block": block, "read_bytes": 100, "written_bytes": 10}


def failing(spec, block):
    if block in spec:
        raise BadRequest("this block is bad", got=block)
    return moving(spec, block)


def ledger_at(folder):
    return Ledger.claim(str(folder / "a.ledger"), {"of": "this test"})


@pytest.mark.parametrize("has_ledger", [True, False])
def test_blocks_bytes_and_memory_of_a_step(tmp_path, has_ledger):
    counters = Counters("abc")
    ledger = ledger_at(tmp_path) if has_ledger else None
    with counting(counters):
        counters.begin_step("inference")
        records = run_step(Step("level-0", moving, None, 7, 2), ledger=ledger, progress=False, label="blocks")
    part = counters.counted().parts["inference", "blocks"]
    assert (part.planned, part.done, part.failed, part.skipped) == (7, 7, 0, 0)
    assert (part.read_bytes, part.written_bytes, part.retries) == (700, 70, 0)
    assert part.peak_bytes == max(record["peak_bytes"] for record in records)
    # The sums are the batch's: a record says of a block what the ledger needs, and no more.
    assert records[0]["read_bytes"] == 200
    assert records[0]["results"] == [{"block": 0}, {"block": 1}]


def test_what_an_earlier_run_did_is_not_counted_as_done(tmp_path):
    ledger, step = ledger_at(tmp_path), Step("level-0", moving, None, 7, 2)
    run_step(step, ledger=ledger, progress=False)
    ledger.discard("level-0", 1)
    counters = Counters()
    with counting(counters):
        run_step(step, ledger=ledger, progress=False)
    part = counters.counted().parts["", "level-0"]
    assert (part.planned, part.done, part.skipped) == (7, 2, 5)
    assert part.read_bytes == 200


def test_failed_blocks_are_told_from_done_ones(tmp_path):
    counters = Counters()
    with counting(counters), pytest.raises((BadRequest, BlockFailed)):
        run_step(Step("level-0", failing, {3}, 6, 1), ledger=ledger_at(tmp_path), progress=False)
    part = counters.counted().parts["", "level-0"]
    assert (part.planned, part.done, part.failed) == (6, 5, 1)
    assert counters.counted().batches_in_flight == 0


def test_tries_beyond_the_first_are_counted(tmp_path):
    failures = {2: 2, 4: 1}

    def unreliable(spec, block):
        if failures.get(block, 0):
            failures[block] -= 1
            raise StoreUnavailable("the store failed", got="status 503")
        return moving(spec, block)

    counters = Counters()
    with counting(counters):
        run_step(
            Step("level-0", unreliable, None, 6, 3), ledger=ledger_at(tmp_path), progress=False, retries=QUICK
        )
    assert counters.counted().parts["", "level-0"].retries == 3
    assert counters.counted().parts["", "level-0"].done == 6


def test_batches_in_flight_while_they_are():
    counters, seen = Counters(), []
    met = threading.Barrier(2)

    def waiting(spec, block):
        if block < 2:
            met.wait(timeout=30)
        return {}

    step = Step("level-0", waiting, None, 4, 1)
    with counting(counters):
        run_step(step, threads=2, progress=False, sink=lambda _: seen.append(counters.counted()))
    assert max(found.batches_in_flight for found in seen) >= 1
    assert counters.counted().batches_in_flight == 0


def test_seconds_belong_to_the_step_that_was_at_work():
    counters = Counters()
    counters.begin_step("one")
    counters.begin_step("two")
    assert counters.step == "two"
    counters.end(DONE)
    found = counters.counted()
    assert set(found.step_seconds) == {"one", "two"}
    assert (found.state, found.step) == (DONE, "")


def test_without_counters_nothing_is_counted(tmp_path):
    assert current_counters() is None
    with counting(Counters("one")):
        with counting(Counters("two")):
            assert current_counters().job == "two"
        assert current_counters().job == "one"
    assert current_counters() is None
