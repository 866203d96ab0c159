"""Which errors are tried again, how often, how long the waits are, and that the others are not."""

from __future__ import annotations

import errno
import urllib.error
from email.message import Message
from pathlib import Path
from types import SimpleNamespace

import obstore
import pytest
from block_tasks import fail_at_first
from hypothesis import given
from hypothesis import strategies as st

from denoizarr.engine.ledger import Ledger
from denoizarr.engine.retries import ONE_TRY, RetryPolicy, is_transient, retried
from denoizarr.engine.runner import Step, run_step
from denoizarr.errors import (
    BadRequest,
    BlockFailed,
    ClusterLost,
    CorruptChunk,
    DenoizarrError,
    MissingChunk,
    NonFiniteData,
    NoSpace,
    PermissionDenied,
    StoreUnavailable,
)
from denoizarr.stores import locations

POLICY = RetryPolicy()
AT_ONCE = RetryPolicy(first_seconds=0)


class _ResponseError(Exception):
    """As HTTP libraries have them: the status is an attribute, or one of the response."""

    def __init__(self, status: int, *, inside: bool) -> None:
        super().__init__("refused")
        if inside:
            self.response = SimpleNamespace(status_code=status)
        else:
            self.status = status


def _translated(error: BaseException) -> BaseException:
    with pytest.raises(DenoizarrError) as caught, locations.translated("here"):
        raise error
    return caught.value


PASSING = [
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.EIO, "Input/output error"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    BrokenPipeError(),
    TimeoutError("no answer"),
    _ResponseError(503, inside=False),
    _ResponseError(429, inside=True),
    urllib.error.HTTPError("u", 500, "m", Message(), None),
    StoreUnavailable("the store failed"),
    StoreUnavailable("the store failed", got="status: 503 Service Unavailable"),
    _translated(OSError(errno.ESTALE, "Stale file handle")),
    obstore.exceptions.GenericError("error sending request: operation timed out"),
    _translated(obstore.exceptions.GenericError("Server returned 503 Service Unavailable")),
    _translated(obstore.exceptions.GenericError("Stale file handle (os error 116)")),
]
LASTING = [
    OSError(errno.EISDIR, "Is a directory"),
    OSError("no number"),
    FileNotFoundError(errno.ENOENT, "gone"),
    PermissionError(errno.EACCES, "no"),
    OSError(errno.ENOSPC, "full"),
    _ResponseError(403, inside=False),
    _ResponseError(404, inside=True),
    urllib.error.HTTPError("u", 404, "m", Message(), None),
    _translated(OSError(errno.ENAMETOOLONG, "too long")),
    _translated(obstore.exceptions.GenericError("Is a directory (os error 21)")),
    _translated(obstore.exceptions.GenericError("Client error with status 400 Bad Request")),
    obstore.exceptions.NotFoundError("nothing"),
    BadRequest("no"),
    CorruptChunk("no"),  # an OSError, too
    MissingChunk("no"),
    NonFiniteData("no"),
    NoSpace("full"),
    PermissionDenied("no"),
    ClusterLost("gone"),  # a ConnectionError, too
    ValueError("a mistake"),
    KeyError("a mistake"),
    MemoryError(),
    RuntimeError("503"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_may_pass_is_tried_again(error: BaseException) -> None:
    assert is_transient(error)


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_lasts_is_not(error: BaseException) -> None:
    assert not is_transient(error)


class _Clock:
    """Time that passes only while something sleeps, or as long as a try is said to take."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def _fails(times: int, clock: _Clock, error: Exception, takes: float = 0.0):
    tries: list[float] = []

    def work() -> int:
        tries.append(clock.now)
        clock.now += takes
        if len(tries) <= times:
            raise error
        return len(tries)

    return work, tries


@pytest.mark.parametrize("times", range(7))
def test_at_most_five_tries(times: int) -> None:
    clock = _Clock()
    work, tries = _fails(times, clock, TimeoutError("away"))
    how = {"what": "w", "clock": clock, "sleep": clock.sleep}
    if times < POLICY.tries:
        assert retried(work, POLICY, 1, **how) == times + 1
    else:
        with pytest.raises(TimeoutError, match="away"):
            retried(work, POLICY, 1, **how)
    assert len(tries) == min(times + 1, POLICY.tries)
    assert len(clock.waits) == len(tries) - 1


@pytest.mark.parametrize("takes", [0.0, 30.0, 70.0, 1000.0])
def test_no_try_begins_later_than_two_minutes_after_the_first_failure(takes: float) -> None:
    clock = _Clock()
    work, tries = _fails(9, clock, TimeoutError(), takes)
    with pytest.raises(TimeoutError):
        retried(work, POLICY, 1, what="w", clock=clock, sleep=clock.sleep)
    assert tries[-1] - (tries[0] + takes) <= POLICY.total_seconds
    if takes == 1000:
        # What the first try took does not count: a batch may last long. A second failure is far too late.
        assert len(tries) == 2


def test_what_lasts_is_tried_once() -> None:
    clock = _Clock()
    work, tries = _fails(9, clock, ValueError("a mistake"))
    with pytest.raises(ValueError, match="a mistake"):
        retried(work, POLICY, 1, what="w", clock=clock, sleep=clock.sleep)
    assert len(tries) == 1


@given(st.integers(1, 9), st.integers(0, 10**6))
def test_waits_are_drawn_below_a_doubling_bound(number: int, batch: int) -> None:
    wait = POLICY.wait_seconds(number, "step", batch)
    assert 0 <= wait <= min(2.0 * 2 ** (number - 1), POLICY.longest_seconds)
    assert wait == POLICY.wait_seconds(number, "step", batch)


def test_batches_do_not_come_back_together() -> None:
    waits = [POLICY.wait_seconds(3, "step", batch) for batch in range(2000)]
    bound = 2.0 * 4
    assert len(set(waits)) == len(waits)
    for tenth in range(10):
        inside = sum(bound * tenth / 10 <= w < bound * (tenth + 1) / 10 for w in waits)
        assert 140 < inside < 260, "full jitter is uniform from zero to the bound"


@pytest.mark.parametrize("kind", ["outage", "stale", "timeout"])
def test_a_block_that_fails_for_a_moment_is_done_where_it_was(
    tmp_path: Path, kind: str, client: object
) -> None:
    for name, who in (("here", {"threads": 2}), ("there", {"client": client})):
        marks = tmp_path / name
        step = Step("s", fail_at_first, {"marks": str(marks), "kind": kind, "times": 3, "block": 4}, 10, 3)
        ledger = Ledger.claim(str(tmp_path / f"{name}.ledger"), {})
        records = run_step(step, ledger=ledger, progress=False, retries=AT_ONCE, **who)  # type: ignore[arg-type]
        assert [x["block"] for r in records for x in r["results"]] == list(range(10))
        tried = {b: len(list(marks.glob(f"{b}-*"))) for b in range(10)}
        assert tried == {b: 4 if b == 4 else 1 for b in range(10)}, "its neighbours are not done again"


@pytest.mark.parametrize(
    ("kind", "times", "policy", "error", "tried"),
    [
        ("outage", 9, AT_ONCE, StoreUnavailable, 5),
        ("outage", 1, ONE_TRY, StoreUnavailable, 1),
        ("value", 9, AT_ONCE, BlockFailed, 1),
        ("corrupt", 9, AT_ONCE, CorruptChunk, 1),
        ("request", 9, AT_ONCE, BadRequest, 1),
    ],
)
def test_a_block_that_goes_on_failing_fails_alone(
    tmp_path: Path, kind: str, times: int, policy: RetryPolicy, error: type[Exception], tried: int
) -> None:
    marks = tmp_path / "marks"
    step = Step("s", fail_at_first, {"marks": str(marks), "kind": kind, "times": times, "block": 4}, 10, 1)
    ledger = Ledger.claim(str(tmp_path / "l"), {})
    with pytest.raises(error):
        run_step(step, ledger=ledger, progress=False, retries=policy)
    assert len(list(marks.glob("4-*"))) == tried
    assert [b for b in range(10) if ledger.get("s", b) is None] == [4], "the rest goes on"


@pytest.mark.parametrize("kind", ["full", "forbidden"])
def test_an_outage_that_lasts_stops_the_rest(tmp_path: Path, kind: str) -> None:
    marks = tmp_path / "marks"
    step = Step("s", fail_at_first, {"marks": str(marks), "kind": kind, "times": 9, "block": 4}, 50, 1)
    with pytest.raises((NoSpace, PermissionDenied)):
        run_step(step, progress=False, retries=AT_ONCE)
    assert len(list(marks.glob("*"))) == 5


def test_a_step_of_which_nothing_succeeds_is_given_up(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    step = Step("s", fail_at_first, {"marks": str(marks), "kind": "value", "times": 9, "block": None}, 500, 1)
    with pytest.raises(BlockFailed, match="20 of 500 batches failed"):
        run_step(step, progress=False)
    assert len(list(marks.glob("*"))) == 20
