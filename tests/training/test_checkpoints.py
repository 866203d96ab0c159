"""Whatever happens to a training or to its files: it goes on from a whole checkpoint to the same weights."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import torch

from denoizarr.errors import LedgerMismatch, NoSpace
from denoizarr.training import checkpoints as checkpoints_module
from denoizarr.training.checkpoints import Checkpoints
from denoizarr.training.learner import Learner
from denoizarr.training.options import TrainingOptions
from denoizarr.training.tensor_files import read_tensors
from denoizarr.training.trainer import train

SMALL = TrainingOptions(
    patch_size=8,
    batch_size=2,
    num_epochs=6,
    patches_per_epoch=20,
    features=2,
    num_layers=1,
    mask_percentage=5,
    validation_patches=4,
    threads=1,
    checkpoint_minutes=0.0,
    # Measured after the last step, twenty times as long as all of them take; see test_centre_weights.py.
    use_centre=False,
)
PAGE = 4096


def noisy() -> np.ndarray:
    return np.random.default_rng(3).poisson(200, (64, 80)).astype(np.uint16)


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"network.a": torch.randn(90, 100, generator=generator), "best.b": torch.arange(7) + seed}


def two_checkpoints(folder: Path) -> tuple[Checkpoints, Path]:
    checkpoints = Checkpoints(str(folder), "identity")
    checkpoints.save(1, {"stream": {"position": 4}}, tensors(1))
    checkpoints.save(2, {"stream": {"position": 8}}, tensors(2))
    return checkpoints, folder / "step-000000002.safetensors"


def test_what_was_saved_last_comes_back(tmp_path: Path) -> None:
    checkpoints, _ = two_checkpoints(tmp_path)
    found = checkpoints.latest()
    assert found is not None
    header, loaded = found
    assert header["steps_done"] == 2
    assert header["stream"] == {"position": 8}
    assert loaded.keys() == tensors().keys()
    assert all(torch.equal(value, loaded[name]) for name, value in tensors(2).items())


@pytest.mark.parametrize("damage", ["cut off", "zeros from there on", "one page of zeros", "one bit"])
def test_torn_anywhere_it_is_never_loaded_and_the_one_before_is(tmp_path: Path, damage: str) -> None:
    checkpoints, last = two_checkpoints(tmp_path)
    whole = last.read_bytes()
    assert len(whole) > 8 * PAGE
    for at in range(0, len(whole), PAGE):
        rest = len(whole) - at
        torn = {
            "cut off": whole[:at],
            "zeros from there on": whole[:at] + bytes(rest),
            "one page of zeros": whole[:at] + bytes(min(PAGE, rest)) + whole[at + PAGE :],
            "one bit": whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :],
        }[damage]
        assert torn != whole
        last.write_bytes(torn)
        found = checkpoints.latest()
        assert found is not None
        assert found[0]["steps_done"] == 1, at
        assert torch.equal(found[1]["network.a"], tensors(1)["network.a"])
    last.write_bytes(whole)
    found = checkpoints.latest()
    assert found is not None
    assert found[0]["steps_done"] == 2


def test_another_trainings_is_refused_even_if_it_is_the_last_one_whole(tmp_path: Path) -> None:
    _, last = two_checkpoints(tmp_path)
    last.write_bytes(b"")
    with pytest.raises(LedgerMismatch, match="another training"):
        Checkpoints(str(tmp_path), "other").latest()


@pytest.mark.parametrize("version", [2, 99])
def test_those_of_another_version_are_neither_taken_for_damaged_nor_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_module, "_VERSION", version)
        two_checkpoints(tmp_path)
    with pytest.raises(LedgerMismatch, match=rf"another version.*checkpoint', {version}\), expected"):
        Checkpoints(str(tmp_path), "identity").latest()
    assert steps_in(tmp_path) == [1, 2]


def test_another_training_is_refused_by_the_names_of_what_differs(tmp_path: Path) -> None:
    parts = {"options.num_epochs": 2, "options.patch_size": (8, 8), "kernel": "3f2a"}
    Checkpoints(str(tmp_path), "one", parts=parts).save(1, {}, tensors())
    for changed, message in (
        ({"options.num_epochs": 3}, r"options\.num_epochs: got 2, expected 3;"),
        ({"kernel": "77aa", "targets": "1b"}, r"kernel, targets: got 3f2a, None, expected 77aa, 1b;"),
    ):
        with pytest.raises(LedgerMismatch, match=message):
            Checkpoints(str(tmp_path), "other", parts={**parts, **changed}).latest()


def test_a_damaged_one_of_a_later_step_pushes_no_whole_one_out(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), "identity")
    for step in (8, 9, 10):
        (tmp_path / f"step-{step:09d}.safetensors").write_bytes(b"torn")
    (tmp_path / "notes.txt").write_text("not ours")
    for step in range(1, 5):
        checkpoints.save(step, {}, tensors(step))
        found = checkpoints.latest()
        assert found is not None
        assert found[0]["steps_done"] == step
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["notes.txt", *(f"step-{step:09d}.safetensors" for step in (2, 3, 4))]


def steps_in(folder: Path) -> list[int]:
    return [int(re.findall(r"\d+", path.name)[0]) for path in sorted(folder.glob("step-*.safetensors"))]


class Stop(Exception):  # noqa: N818 - stands for a signal
    """A stop from inside."""


@pytest.mark.parametrize("minutes", [0.0, 1e-9, 10.0])
def test_when_checkpoints_are_written_decides_nothing(tmp_path: Path, minutes: float) -> None:
    seen: list[list[int]] = []

    def on_step(_: Any) -> None:
        seen.append(steps_in(tmp_path))

    straight = train(noisy(), options=replace(SMALL, checkpoint_minutes=10.0), progress=False)
    options = replace(SMALL, checkpoint_minutes=minutes)
    frequent = train(noisy(), options=options, progress=False, checkpoint=tmp_path, on_step=on_step)
    assert frequent.digest == straight.digest
    assert seen[-1] == ([57, 58, 59] if minutes < 1 else [30, 40, 50])
    assert steps_in(tmp_path)[-1] == 60


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [3, 10])
def test_a_signal_waits_until_the_step_is_saved(tmp_path: Path, number: signal.Signals, step: int) -> None:
    def stop(given: int, _: Any) -> None:
        raise Stop(signal.Signals(given).name)

    def on_step(report: Any) -> None:
        if report.step == step:
            os.kill(os.getpid(), number)

    # Nothing is due by the clock, however long this takes: what is saved is saved for the signal's sake.
    options = replace(SMALL, num_epochs=2, checkpoint_minutes=10.0**6)
    before = signal.signal(number, stop)
    try:
        with pytest.raises(Stop, match=number.name):
            train(noisy(), options=options, progress=False, checkpoint=tmp_path, on_step=on_step)
        assert signal.getsignal(number) is stop
        assert steps_in(tmp_path) == [step]
        resumed = train(noisy(), options=options, progress=False, checkpoint=tmp_path)
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert resumed.digest == train(noisy(), options=options, progress=False).digest


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    def on_step(report: Any) -> None:
        if report.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    options = replace(SMALL, checkpoint_minutes=10.0)
    # As in a program of one's own: a process that runs tests may ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(noisy(), options=options, progress=False, checkpoint=tmp_path, on_step=on_step)
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps_in(tmp_path) == []


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
@pytest.mark.parametrize("step", [1, 9, 10, 11, 33])
def test_resumed_in_the_middle_of_an_epoch_the_next_batch_and_all_weights_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, schedule: Any
) -> None:
    learn = Learner.learn
    given: list[list[Any]] = []

    def noting(self: Learner, batch: Any, rate: float) -> torch.Tensor:
        if given and len(given[-1]) == 60:
            raise Stop
        given[-1].append((batch.source.clone(), batch.item["number"].tolist(), rate))
        return learn(self, batch, rate)

    monkeypatch.setattr(Learner, "learn", noting)
    options = replace(SMALL, schedule=schedule)
    arguments: dict[str, Any] = {"options": options, "progress": False}
    given.append([])
    straight = train(noisy(), log=tmp_path / "straight.csv", **arguments)

    def stop(report: Any) -> None:
        if report.step == step + 1:
            raise Stop

    given.append([])
    with pytest.raises(Stop):
        train(noisy(), checkpoint=tmp_path / "c", on_step=stop, **arguments)
    given.append([])
    resumed = train(noisy(), checkpoint=tmp_path / "c", log=tmp_path / "log.csv", **arguments)
    assert resumed.digest == straight.digest
    assert len(given[2]) == 60 - step
    for (source, numbers, rate), (expected, *others) in zip(given[2], given[0][step:], strict=True):
        assert torch.equal(source, expected)
        assert [numbers, rate] == others
    lines = [
        [line.rpartition(",")[0] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("straight.csv", "log.csv")
    ]
    assert lines[0] == lines[1]


def test_killed_at_ten_random_moments_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", noisy())
    random = np.random.default_rng()
    plan = [(int(random.integers(0, 6)), float(random.uniform(0, 0.01))) for _ in range(10)]
    program = Path(__file__).parent / "killed_program.py"
    command = [sys.executable, str(program), str(tmp_path), json.dumps(plan), json.dumps(settings())]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert [outcome["signal"] for outcome in outcomes] == [signal.SIGKILL] * 10, outcomes
    # No more than one step is done again: each process goes on where the one before was killed.
    reported = [(outcome["first_step"], outcome["last_step"]) for outcome in outcomes if outcome["last_step"]]
    for (_, last), (first, _) in itertools.pairwise(reported):
        assert first in (last, last + 1)
    resumed = train(noisy(), options=SMALL, progress=False, checkpoint=tmp_path / "checkpoints")
    assert resumed.digest == train(noisy(), options=SMALL, progress=False).digest, plan


def settings() -> dict[str, Any]:
    return {name: getattr(SMALL, name) for name in SMALL.__slots__}


class FullStore:
    """A store that has room for so many objects; how it says that there is no more varies."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error, self.put = room, error, obstore.put

    def __call__(self, store: Any, path: str, *arguments: Any, **options: Any) -> Any:
        if path.startswith("step-"):
            self.room -= 1
            if self.room < 0:
                raise self.error
        return self.put(store, path, *arguments, **options)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        obstore.exceptions.GenericError("Unable to copy data to file: No space left on device (os error 28)"),
    ],
    ids=["disk", "quota", "store"],
)
def test_a_disk_that_fills_leaves_the_old_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(obstore, "put", FullStore(13, error))
        with pytest.raises(NoSpace, match=r"full.*step-000000014"):
            train(noisy(), options=SMALL, progress=False, checkpoint=tmp_path)
    assert steps_in(tmp_path) == [11, 12, 13]
    resumed = train(noisy(), options=SMALL, progress=False, checkpoint=tmp_path)
    assert resumed.digest == train(noisy(), options=SMALL, progress=False).digest


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_on_a_disk_that_is_really_full(tiny_disk: Path) -> None:
    checkpoints = Checkpoints(str(tiny_disk), "identity")
    for step in (1, 2, 3):
        checkpoints.save(step, {}, tensors(step))
    large = {"network.a": torch.zeros(60_000)}
    with pytest.raises(NoSpace, match="full"):
        checkpoints.save(4, {}, large)
    assert steps_in(tiny_disk) == [1, 2, 3]
    found = checkpoints.latest()
    assert found is not None
    assert found[0]["steps_done"] == 3
    assert os.statvfs(tiny_disk).f_bavail * os.statvfs(tiny_disk).f_frsize > 100_000
    checkpoints.save(4, {}, tensors(4))
    assert read_tensors(str(tiny_disk / "step-000000004.safetensors"))[0]["steps_done"] == 4
