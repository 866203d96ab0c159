"""Batches that never answer: said, handed to someone else, given up by name; and twins that do no harm."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Collection
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from block_tasks import fail, fail_on_one_worker, freeze_once, kill_always, square, wait_a_little
from distributed import Client, LocalCluster

from denoizarr.engine.cluster import ClusterSettings, open_client
from denoizarr.engine.deadlines import DeadlinePolicy, Deadlines
from denoizarr.engine.failures import Failures
from denoizarr.engine.ledger import Ledger
from denoizarr.engine.runner import Step, run_step
from denoizarr.engine.waves import Waves
from denoizarr.errors import BlockFailed, ClusterLost, CorruptChunk, MissingChunk
from denoizarr.images.layout import plan_layout
from denoizarr.images.output import begin_output, open_level, write_box

POLICY = DeadlinePolicy()


def test_no_soft_deadline_and_a_generous_hard_one_before_a_few_batches_have_ended() -> None:
    limits = Deadlines(POLICY)
    for seconds in (0.1, 0.2):
        limits.add(seconds)
        assert limits.soft_seconds() is None
        assert limits.hard_seconds(1) == POLICY.first_seconds
    limits.add(0.3)
    assert limits.soft_seconds() == limits.hard_seconds(1) == POLICY.least_seconds


def test_deadlines_follow_the_running_median() -> None:
    limits = Deadlines(POLICY)
    for seconds in [100.0] * 50 + [10_000.0]:
        limits.add(seconds)
    assert limits.soft_seconds() == 400
    assert [limits.hard_seconds(n) for n in (1, 2, 3)] == [2000, 4000, 8000]
    for _ in range(200):
        limits.add(10.0)
    assert limits.hard_seconds(1) == 200, "what was long ago does not count"


class _Handle(Future[dict[str, Any]]):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key


class _Crew:
    """Workers a, b and c as a scheduler sees them; the first try of a batch in ``frozen`` never ends."""

    def __init__(self, clock: list[float], frozen: Collection[int], *, always: bool = False) -> None:
        self.clock, self.frozen, self.always = clock, frozen, always
        self.out: dict[str, tuple[str, _Handle]] = {}
        self.asked: list[tuple[int, frozenset[str]]] = []
        self.share, self.deserted = 1.0, 0.0
        self.closed_with: list[Any] | None = None
        self.unassigned: set[str] = set()

    def room(self) -> int:
        return 3

    def workers(self) -> int:
        return 3

    def deserted_seconds(self) -> float:
        return self.deserted

    def has_others(self, avoid: Collection[str]) -> bool:
        return bool(set("abc") - set(avoid))

    def submit(self, work: Any, batch: int, avoid: Collection[str] = ()) -> _Handle:
        assert callable(work)
        self.asked.append((batch, frozenset(avoid)))
        worker = next((w for w in "abc" if w not in avoid), "a")
        handle = _Handle(f"{batch}-{len(self.asked)}")
        self.out[handle.key] = (worker, handle)
        if batch not in self.frozen or (avoid and not self.always):
            self.clock[0] += 1
            handle.set_result({"batch": batch, "by": worker})
        return handle

    def places(self) -> dict[str, tuple[str, float]]:
        self.clock[0] += 30  # each look at the cluster comes half a minute later
        return {k: (w, self.share) for k, (w, _) in self.out.items() if k not in self.unassigned}

    def replace_one(self) -> None:
        pass

    def close(self, unfinished: Collection[Any]) -> None:
        self.closed_with = list(unfinished)


def _run(crew: _Crew, n: int, clock: list[float], policy: DeadlinePolicy = POLICY) -> dict[int, Any]:
    def now() -> float:
        clock[0] += 1  # time passes as the clock is looked at
        return clock[0]

    waves = Waves(
        crew,  # type: ignore[arg-type]
        lambda batch: {"batch": batch},
        "level-0",
        Deadlines(policy),
        clock=now,
        look_seconds=0.001,
    )
    return dict(waves.run(range(n), lambda: True))


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(logging.getLogger("denoizarr.engine.waves"), "disabled", False)
    caplog.set_level("WARNING", logger="denoizarr")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_late_batch_is_said_by_name_and_then_done_by_another_worker(warnings: Any) -> None:
    clock = [0.0]
    crew = _Crew(clock, frozen={5})
    policy = DeadlinePolicy(hard_factor=100)
    found = _run(crew, 8, clock, policy)
    assert found[5] == {"batch": 5, "by": "b"}
    assert sorted(found) == list(range(8))
    assert [a for a in crew.asked if a[0] == 5] == [(5, frozenset()), (5, frozenset("a"))]
    assert crew.closed_with is not None
    assert len(crew.closed_with) == 1, "the frozen worker's own is held to the end, and taken back then"
    said = warnings()
    assert sum("level-0: batch 5 takes long" in line and "on a" in line for line in said) == 1
    assert sum("batch 5 is handed out again: no answer from a" in line for line in said) == 1


def test_a_batch_that_nobody_ends_is_given_up_after_three_tries_and_the_rest_goes_on() -> None:
    clock = [0.0]
    crew = _Crew(clock, frozen={5}, always=True)
    found = _run(crew, 9, clock)
    assert isinstance(found[5], BlockFailed)
    assert "level-0, batch 5" in str(found[5])
    assert "3 tries" in str(found[5])
    assert [batch for batch, _ in crew.asked].count(5) == 3
    assert all(found[b]["batch"] == b for b in range(9) if b != 5)


def test_workers_do_not_wait_for_whoever_takes_what_is_done() -> None:
    crew = _Crew([0.0], frozen=set())
    waves = Waves(crew, dict, "s", Deadlines(POLICY))  # type: ignore[arg-type]
    # All that are out have ended each time; those in their place are out before the next is taken.
    out = [len(crew.asked) for _ in waves.run(range(9), lambda: True)]
    assert out == [3, 4, 5, 6, 7, 8, 9, 9, 9]


def test_a_frozen_worker_shows_even_where_nothing_has_ended_yet() -> None:
    clock = [0.0]
    crew = _Crew(clock, frozen={0, 1})
    assert _run(crew, 2, clock)[0]["by"] == "b"
    assert clock[0] > POLICY.first_seconds


def test_a_worker_with_more_than_its_share_has_more_time() -> None:
    clock = [0.0]
    fair, crowded = _Crew(clock, frozen={5}), _Crew(clock, frozen={5})
    crowded.share = 50.0
    _run(fair, 8, clock)
    began, clock[0] = clock[0], 0.0
    _run(crowded, 8, clock)
    assert clock[0] > 20 * began


def test_what_waits_in_the_scheduler_is_not_late() -> None:
    clock = [0.0]
    crew = _Crew(clock, frozen={5})
    crew.unassigned.add("5-6")

    places, calls = crew.places, []

    def assigned_at_last() -> dict[str, tuple[str, float]]:
        calls.append(clock[0])
        if len(calls) == 40:
            crew.unassigned.clear()
        return places()

    crew.places = assigned_at_last  # type: ignore[method-assign]
    found = _run(crew, 8, clock)
    assert found[5]["by"] == "b"
    assert len(calls) > 40, "its time began when a worker had it"


def test_a_thread_that_never_answers_is_given_up_and_replaced() -> None:
    forever = threading.Event()
    threads = {t.name for t in threading.enumerate()}

    def stuck(spec: Any, block: int) -> dict[str, Any]:
        if block == 4:
            forever.wait()
        return {"block": block}

    policy = DeadlinePolicy(least_seconds=0.05, hard_factor=0, tries=2)
    try:
        with pytest.raises(BlockFailed, match="never ends at s, batch 4: got 2 tries"):
            run_step(Step("s", stuck, None, 12, 1), threads=1, progress=False, deadlines=policy)
    finally:
        forever.set()
    assert {t.name for t in threading.enumerate()} - threads <= {"block-0", "block-1"}


def test_a_stopped_worker_does_not_hang_the_job(tmp_path: Path) -> None:
    step = Step("s", freeze_once, str(tmp_path), 12, 1)
    ledger = Ledger.claim(str(tmp_path / "l"), {})
    policy = DeadlinePolicy(least_seconds=1.0, hard_factor=0, first_seconds=5.0)
    with open_client(ClusterSettings(workers=2, memory_limit_bytes=2**30)) as client:
        client.wait_for_workers(2)
        run_step(Step("warm", square, "", 4, 1), client=client, progress=False)
        records = run_step(step, ledger=ledger, client=client, progress=False, deadlines=policy)
        frozen = int((tmp_path / "frozen").read_text())
        os.kill(frozen, signal.SIGCONT)  # where nothing was resubmitted, the line above is never reached
    assert [x["block"] for r in records for x in r["results"]] == list(range(12))
    assert records[3]["results"][0]["pid"] != frozen


def test_a_batch_that_kills_its_workers_fails_by_name_and_the_rest_goes_on(tmp_path: Path) -> None:
    import dask
    import distributed  # noqa: F401  # fills in the defaults

    before = dask.config.get("distributed.scheduler.allowed-failures")

    step = Step("s", kill_always, None, 6, 1)
    ledger = Ledger.claim(str(tmp_path / "l"), {})
    # Its neighbours in the queue of a worker that dies are suspected as well, and done at their second try.
    patience = DeadlinePolicy(tries=2)
    with open_client(ClusterSettings(workers=2, memory_limit_bytes=2**30)) as client:
        client.run_on_scheduler(_fail_early)
        with pytest.raises(BlockFailed, match=r"whose workers died at s, batch 3: got 2 tries"):
            run_step(step, ledger=ledger, client=client, progress=False, deadlines=patience)
    assert dask.config.get("distributed.scheduler.allowed-failures") == before
    assert [b for b in range(6) if ledger.get("s", b) is None] == [3]


class KilledWorker(Exception):  # noqa: N818  # the name of distributed's
    pass


class _MortalCrew(_Crew):
    """Workers that share what is out, and die with all that they have where one of them is deadly."""

    def __init__(self, deadly: Collection[int], room: int, workers: int = 1) -> None:
        super().__init__([0.0], frozen=())
        self.deadly, self.n_room, self.n_workers = deadly, room, workers
        self.held: list[tuple[int, _Handle]] = []
        self.deaths: list[set[int]] = []
        self.seen, self.until = 0, time.monotonic() + 60
        self.waves = Waves(self, dict, "s", Deadlines(POLICY), look_seconds=0.05)  # type: ignore[arg-type]

    def workers(self) -> int:
        return self.n_workers

    def room(self) -> int:
        """Also do what is out, once nothing was handed out since the last time and nothing is on its way."""
        assert time.monotonic() < self.until, "nothing is handed out and nothing is on its way"
        everything_is_here = len(self.held) == self.waves.in_flight and self.seen == len(self.asked)
        self.seen = len(self.asked)
        if everything_is_here:
            held, self.held = self.held, []
            for number in range(self.n_workers):
                self.work_off(held[number :: self.n_workers])
        return self.n_room

    def work_off(self, mine: list[tuple[int, _Handle]]) -> None:
        batches = {batch for batch, _ in mine}
        if is_dead := not batches.isdisjoint(self.deadly):
            self.deaths.append(batches)
        for batch, handle in mine:
            if is_dead:
                handle.set_exception(KilledWorker(f"{batch}"))
            else:
                handle.set_result({"batch": batch})

    def submit(self, work: Any, batch: int, avoid: Collection[str] = ()) -> _Handle:
        assert callable(work)
        assert len(self.held) < self.n_room
        self.asked.append((batch, frozenset(avoid)))
        self.held.append((batch, _Handle(f"{batch}-{len(self.asked)}")))
        return self.held[-1][1]


@pytest.mark.parametrize(("room", "workers"), [(2, 1), (6, 1), (8, 2), (16, 8)])
@pytest.mark.parametrize("deadly", [{3}, {0, 5}, {59}, {6, 7, 8, 9}, set(range(1, 47)), set()])
def test_only_what_kills_its_workers_fails(deadly: set[int], room: int, workers: int) -> None:
    crew = _MortalCrew(deadly, room, workers)
    found = dict(crew.waves.run(range(60), lambda: True))
    assert sorted(found) == list(range(60))
    assert {batch for batch, record in found.items() if isinstance(record, BlockFailed)} == deadly
    tried = [batch for batch, _ in crew.asked]
    assert {tried.count(batch) for batch in deadly} <= {POLICY.tries}
    # Whoever has killed a worker before is alone with the next.
    suspects: set[int] = set()
    for together in crew.deaths:
        assert together.isdisjoint(suspects) or len(together) == 1
        suspects |= together


@pytest.mark.parametrize(("room", "workers", "most"), [(16, 1, 60), (128, 64, 330)])
def test_a_step_that_kills_all_its_workers_is_given_up_soon(room: int, workers: int, most: int) -> None:
    crew = _MortalCrew(range(10_000), room, workers)
    failures = Failures("s", "s", 10_000)
    for batch, error in crew.waves.run(range(10_000), lambda: not failures.are_hopeless):
        assert isinstance(error, BlockFailed)
        failures.add(batch, error)
    assert failures.are_hopeless
    assert len(crew.deaths) <= most
    assert len({batch for batch, _ in crew.asked}) <= 2 * room


def test_no_suspect_is_tried_while_a_job_is_stopped() -> None:
    crew = _MortalCrew({2}, 6)
    found = dict(crew.waves.run(range(18), lambda: not crew.deaths))
    assert found == {}, "they died together, and are left to whoever resumes"
    assert crew.waves.in_flight == 0
    assert len(crew.asked) == 6


def test_a_cluster_that_goes_away_is_an_error_with_a_name(tmp_path: Path) -> None:
    step = Step("s", wait_a_little, None, 10_000, 1)
    ledger = Ledger.claim(str(tmp_path / "l"), {})
    with LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
    ) as cluster:
        client = Client(cluster.scheduler_address, set_as_default=False, timeout=5)
        end = threading.Timer(1.0, cluster.close)
        end.start()
        with pytest.raises(ClusterLost):
            run_step(step, ledger=ledger, client=client, progress=False)
        end.join()
        client.close(timeout=1)


def test_a_drain_does_not_wait_for_workers_that_are_all_gone() -> None:
    """A scheduler that takes a whole allocation back gives a driver less time than a lost cluster has."""
    clock = [0.0]
    crew = _Crew(clock, frozen={1, 2})
    crew.unassigned |= {"1-2", "2-3"}
    waves = Waves(crew, dict, "s", Deadlines(POLICY), clock=lambda: clock[0], look_seconds=0.001)  # type: ignore[arg-type]
    ended: list[int] = []
    for batch, _ in waves.run(range(9), lambda: not ended):
        ended.append(batch)
        crew.deserted = 31.0
    assert ended == [0]
    assert crew.closed_with is not None
    assert len(crew.closed_with) == 2, "they are taken back, and done when the job goes on"


def _fail_early(dask_scheduler: Any) -> None:
    dask_scheduler.allowed_failures = 0


def test_twins_that_write_the_same_box_do_not_disturb_each_other(tmp_path: Path) -> None:
    layout = plan_layout(
        str(tmp_path / "a.ome.zarr"),
        dims=("z", "y", "x"),
        shape=(3, 60, 50),
        dtype=np.dtype("u2"),
        scale=(1.0, 1.0, 1.0),
        translation=(0.0, 0.0, 0.0),
        units=(None, None, None),
        chunks=(1, 16, 16),
        shards=(1, 32, 32),
        levels=1,
    )
    begin_output(layout, {"kind": "test"})
    level = layout.levels[0]
    box = level.write_units.box(3)  # at the far end: cropped
    values = np.random.default_rng(0).integers(0, 999, box.shape, dtype="u2")
    found: list[Any] = []

    def write() -> None:
        try:
            array = open_level(layout, level)
            found.extend(write_box(array, box, values)["checksum"] for _ in range(40))
        except BaseException as error:  # noqa: BLE001
            found.append(error)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 120
    assert len(set(found)) == 1


def test_a_cluster_that_is_lost_while_a_job_drains_is_noticed() -> None:
    """Its batches are nobody's then, and nobody is slow with them: no deadline would ever pass."""
    clock = [0.0]
    crew = _Crew(clock, frozen={1})
    crew.unassigned.add("1-2")
    asked: list[bool] = []

    def room() -> int:
        asked.append(True)
        if len(asked) > 100:
            raise ClusterLost("the cluster has had no workers for a while")
        return 2

    crew.room = room  # type: ignore[method-assign]
    waves = Waves(crew, dict, "s", Deadlines(POLICY), clock=lambda: clock[0], look_seconds=0.001)  # type: ignore[arg-type]
    ended: list[int] = []
    with pytest.raises(ClusterLost):  # noqa: PT012
        for batch, _ in waves.run(range(9), lambda: not ended):
            ended.append(batch)
    assert ended == [0]


def _cluster_of(count: int) -> LocalCluster:
    return LocalCluster(n_workers=count, threads_per_worker=1, processes=False, dashboard_address=None)


def test_a_worker_that_fails_what_others_do_does_not_get_the_queue(tmp_path: Path, warnings: Any) -> None:
    ledger = Ledger.claim(str(tmp_path / "l"), {})
    spec = {"name": "1", "marks": str(tmp_path / "marks")}
    with _cluster_of(3) as cluster, Client(cluster) as client:
        run_step(Step("s", fail_on_one_worker, spec, 60, 1), ledger=ledger, client=client, progress=False)
    assert all(ledger.get("s", batch) for batch in range(60))
    failed = len(list((tmp_path / "marks").iterdir()))
    # Three, those that it had by then, and as many as the others needed for the first three.
    assert 3 <= failed <= 20
    (warning,) = [line for line in warnings() if "failed 3 batches that others did" in line]
    assert "it gets no more" in warning


def test_where_there_is_no_other_worker_what_fails_has_failed(tmp_path: Path) -> None:
    spec = {"name": "0", "marks": str(tmp_path / "marks")}
    ledger = Ledger.claim(str(tmp_path / "l"), {})
    with (
        _cluster_of(1) as cluster,
        Client(cluster) as client,
        pytest.raises(MissingChunk, match="no such file"),
    ):
        run_step(Step("s", fail_on_one_worker, spec, 6, 1), ledger=ledger, client=client, progress=False)
    assert len(list((tmp_path / "marks").iterdir())) == 6


def test_what_is_bad_on_every_worker_fails_by_name_after_a_second_one_tried(
    tmp_path: Path, warnings: Any
) -> None:
    ledger = Ledger.claim(str(tmp_path / "l"), {})
    spec = {str(block): "corrupt" for block in range(4, 12)}
    with _cluster_of(2) as cluster, Client(cluster) as client, pytest.raises(CorruptChunk, match="block 4"):
        run_step(Step("s", fail, spec, 20, 1), ledger=ledger, client=client, progress=False)
    assert [b for b in range(20) if ledger.get("s", b) is None] == list(range(4, 12))
    assert not any("that others did" in line for line in warnings())
