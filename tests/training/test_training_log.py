"""The log is a file that says what happened, and TensorBoard's where that is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from denoizarr.training.training_log import TrainingLog

ROWS: list[dict[str, Any]] = [
    {"epoch": n, "step": 5 * n, "train_loss": 1 / n, "validation_loss": 2 / n, "learning_rate": 0.1}
    for n in (1, 2, 3)
]


class Writer:
    """Stands for TensorBoard's."""

    made: list[Writer]

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.closed = folder, purge_step, False
        self.scalars: list[tuple[str, float, int]] = []
        self.made.append(self)

    def add_scalar(self, *scalar: Any) -> None:
        self.scalars.append(scalar)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    module: Any = ModuleType("torch.utils.tensorboard")
    Writer.made = []
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return Writer.made


def test_every_epoch_is_a_row_and_a_point_of_each_curve(tmp_path: Path, writers: list[Writer]) -> None:
    without = {**ROWS[1], "validation_loss": None}
    with TrainingLog(tmp_path / "train.csv", []) as log:
        log.add(ROWS[:1], 1.5)
        log.add([ROWS[0], without], None)
    assert (tmp_path / "train.csv").read_text().splitlines() == [
        "epoch,step,train_loss,validation_loss,learning_rate,seconds",
        "1,5,1.0,2.0,0.1,1.5",
        "2,10,0.5,,0.1,",
    ]
    (writer,) = writers
    assert (writer.folder, writer.purge_step) == (str(tmp_path / "train.tensorboard"), 0)
    assert writer.closed
    assert writer.scalars == [
        ("train_loss", 1.0, 5),
        ("validation_loss", 2.0, 5),
        ("learning_rate", 0.1, 5),
        ("train_loss", 0.5, 10),
        ("learning_rate", 0.1, 10),
    ]


def test_a_resumed_log_drops_what_was_logged_in_vain(tmp_path: Path, writers: list[Writer]) -> None:
    with TrainingLog(tmp_path / "train.csv", []) as log:
        for n in (1, 2, 3):
            log.add(ROWS[:n], float(n))
    with TrainingLog(tmp_path / "train.csv", ROWS[:2]) as log:
        assert len((tmp_path / "train.csv").read_text().splitlines()) == 3
        log.add(ROWS, 9.0)
    seconds = [line.rpartition(",")[2] for line in (tmp_path / "train.csv").read_text().splitlines()[1:]]
    assert seconds == ["1.0", "2.0", "9.0"]
    assert writers[1].purge_step == 11


def test_without_tensorboard_there_is_the_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with TrainingLog(tmp_path / "train.csv", []) as log:
        log.add(ROWS[:1], 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["train.csv"]


def test_without_a_place_nothing_is_written(tmp_path: Path, writers: list[Writer]) -> None:
    with TrainingLog(None, []) as log:
        log.add(ROWS[:1], 1.0)
    assert not writers


def test_tensorboard_itself_reads_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TrainingLog(tmp_path / "train.csv", []) as log:
        for n in (1, 2, 3):
            log.add(ROWS[:n], 1.0)
    events = EventAccumulator(str(tmp_path / "train.tensorboard"))
    events.Reload()
    found = [(scalar.step, scalar.value) for scalar in events.Scalars("train_loss")]
    assert found == [(5, 1.0), (10, 0.5), (15, pytest.approx(1 / 3))]
