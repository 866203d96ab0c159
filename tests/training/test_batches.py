"""Between stream and network: equal items become equal batches, on a GPU beside the step that runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from denoizarr.training.batches import VALIDATION_EPOCH, Batch, Preparation
from denoizarr.training.normalisation import Normalisation
from denoizarr.training.options import TrainingOptions

CPU = torch.device("cpu")
OPTIONS = TrainingOptions(patch_size=16, mask_percentage=3)
SCALE = Normalisation((100.0, 200.0), (10.0, 20.0))


def item_of(numbers: list[int], shape: tuple[int, ...] = (16, 16)) -> dict[str, Tensor]:
    rows = [torch.randn(2, *shape, generator=torch.Generator().manual_seed(n)) for n in numbers]
    patches = 150 + 30 * torch.stack(rows)
    return {"patch": patches, "number": torch.tensor(numbers), "origin": torch.zeros(len(numbers), 2)}


def preparation_of(options: TrainingOptions = OPTIONS, kernel: Any = ((1,),)) -> Preparation:
    return Preparation(options, None if kernel is None else np.array(kernel, np.bool_), SCALE, None, CPU)


def test_a_batch_is_normalised_by_channel_and_hides_what_it_predicts() -> None:
    preparation = preparation_of(replace(OPTIONS, augment=False))
    item = item_of([0, 1, 2])
    batch = preparation.batch(item, 0)
    mean, std = torch.tensor(SCALE.mean), torch.tensor(SCALE.std)
    expected = (item["patch"] - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(batch.expected, expected)
    assert batch.centres is not None
    changed = (batch.source != batch.expected).any(1, keepdim=True)
    assert torch.equal(changed, batch.centres)


@pytest.mark.parametrize("shape", [(16, 16), (8, 16, 16)])
def test_what_becomes_of_a_patch_does_not_depend_on_its_batch(shape: Any) -> None:
    options = replace(OPTIONS, patch_size=shape)
    preparation = preparation_of(options, np.ones((1,) * len(shape)))
    together = preparation.batch(item_of([5, 6, 7], shape), 3)
    alone = preparation.batch(item_of([6], shape), 3)
    assert torch.equal(together.source[1:2], alone.source)
    assert torch.equal(together.expected[1:2], alone.expected)
    assert not torch.equal(preparation.batch(item_of([6], shape), 4).source, alone.source)


@pytest.mark.parametrize("shape", [(16, 16), (8, 16, 16)])
def test_a_target_turns_with_its_patch_and_nothing_is_hidden(shape: Any) -> None:
    options = replace(OPTIONS, patch_size=shape)
    preparation = Preparation(options, None, SCALE, Normalisation((0.0, 0.0), (2.0, 4.0)), CPU)
    item = item_of(list(range(40)), shape)
    std = torch.tensor(SCALE.std).reshape(-1, *(1,) * len(shape))
    mean = torch.tensor(SCALE.mean).reshape(-1, *(1,) * len(shape))
    # A target that is normalised to the patch itself.
    item["target"] = (item["patch"] - mean) / std * torch.tensor([2.0, 4.0]).reshape(std.shape)
    batch = preparation.batch(item, 0)
    assert batch.centres is None
    torch.testing.assert_close(batch.source, batch.expected)
    turned = [not torch.equal(a, b) for a, b in zip(batch.source, (item["patch"] - mean) / std, strict=True)]
    assert 20 < sum(turned) < 40


def test_in_validation_nothing_is_turned() -> None:
    preparation = preparation_of()
    item = item_of(list(range(10)))
    straight = preparation_of(replace(OPTIONS, augment=False)).batch(item, VALIDATION_EPOCH)
    assert torch.equal(preparation.batch(item, VALIDATION_EPOCH).expected, straight.expected)
    assert not torch.equal(preparation.batch(item, 0).expected, straight.expected)


def test_only_turns_that_leave_the_kernel_unchanged_are_made() -> None:
    ramp = torch.arange(16.0).expand(1, 2, 16, 16).contiguous()
    item = {"patch": ramp.repeat(30, 1, 1, 1), "number": torch.arange(30), "origin": torch.zeros(30, 2)}
    expected = preparation_of(kernel=np.ones((1, 5))).batch(item, 0).expected
    # A quarter turn would make the ramp run along y.
    assert torch.equal(expected, expected[:, :, :1].expand_as(expected))
    expected = preparation_of().batch(item, 0).expected
    assert not torch.equal(expected, expected[:, :, :1].expand_as(expected))


class Recorder:
    """Stands for what a GPU has and this machine may lack; writes down who does what, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.stream = "main"
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: self.named("side"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self.named("main"))
        monkeypatch.setattr(torch.cuda, "stream", self.on)

    def named(self, name: str) -> Any:
        return SimpleNamespace(
            name=name, wait_stream=lambda other: self.events.append(f"{name} waits for {other.name}")
        )

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        self.stream = stream.name
        yield
        self.stream = "main"

    def note(self, event: str) -> None:
        self.events.append(f"{event} on {self.stream}")


class OnDevice:
    """Stands for a tensor."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self.recorder, self.name = recorder, name

    def pin_memory(self) -> OnDevice:
        self.recorder.events.append(f"pin {self.name}")
        return OnDevice(self.recorder, "pinned " + self.name)

    def record_stream(self, stream: Any) -> None:
        self.recorder.events.append(f"keep {self.name} for {stream.name}")


def test_on_a_gpu_the_next_batch_is_made_on_a_side_stream_while_a_step_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder, preparation = Recorder(monkeypatch), preparation_of()
    preparation.device = SimpleNamespace(type="cuda")  # type: ignore[assignment]

    def batch(item: dict[str, Any], epoch: int) -> Batch:
        recorder.note(f"make {item['patch'].name} of epoch {epoch}")
        name = item["patch"].name.removeprefix("pinned ")
        source, expected = (OnDevice(recorder, f"{part} {name}") for part in ("source", "expected"))
        return Batch(source, expected, None, item)  # type: ignore[arg-type]

    monkeypatch.setattr(preparation, "batch", batch)
    items: Any = [{"patch": OnDevice(recorder, str(k))} for k in range(2)]
    for number, _ in enumerate(preparation.batches(items, 7)):
        recorder.note(f"step {number}")
    assert recorder.events == [
        "side waits for main",
        "pin 0",
        "make pinned 0 of epoch 7 on side",
        "main waits for side",
        "keep source 0 for main",
        "keep expected 0 for main",
        "step 0 on main",
        "pin 1",
        "make pinned 1 of epoch 7 on side",
        "main waits for side",
        "keep source 1 for main",
        "keep expected 1 for main",
        "step 1 on main",
    ]
