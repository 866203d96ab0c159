"""One step: what follows the weights, what validation leaves alone, what a checkpoint must hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from denoizarr.errors import BadRequest, ModelError
from denoizarr.kernels.unet import build_network
from denoizarr.training.batches import VALIDATION_EPOCH, Batch, Preparation
from denoizarr.training.exactness import repeatable
from denoizarr.training.learner import Learner
from denoizarr.training.normalisation import Normalisation
from denoizarr.training.options import TrainingOptions
from denoizarr.training.processes import Processes

CPU = Processes(torch.device("cpu"))
SMALL = TrainingOptions(patch_size=16, batch_size=4, features=4, mask_percentage=3, precision="float32")
RATE = 1e-3


def learner_of(options: TrainingOptions = SMALL, network: nn.Module | None = None) -> Learner:
    return Learner(options, network or build_network(options.network_shape, seed=options.seed), CPU)


def preparation_of(options: TrainingOptions = SMALL, channels: int = 1) -> Preparation:
    kernel = np.ones((1,) * len(options.patch_shape), np.bool_)
    plain = Normalisation((0.0,) * channels, (1.0,) * channels)
    return Preparation(options, kernel, plain, None, CPU.device)


def item_of(
    first: int = 0, n: int = 4, channels: int = 1, shape: tuple[int, ...] = (16, 16)
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(first)
    return {
        "patch": torch.randn(n, channels, *shape, generator=generator),
        "origin": torch.zeros(n, len(shape), dtype=torch.int64),
        "number": torch.arange(first, first + n),
    }


def batch_of(options: TrainingOptions = SMALL, first: int = 0) -> Batch:
    return preparation_of(options).batch(item_of(first, shape=options.patch_shape), 0)


def test_validation_always_has_the_same_masks_and_leaves_no_trace() -> None:
    learner, preparation = learner_of(), preparation_of(channels=2)

    def validate() -> float:
        batches = (preparation.batch(item_of(n, channels=2), VALIDATION_EPOCH) for n in (0, 4, 8))
        return learner.validate(batches)

    first = validate()
    state = {name: value.clone() for name, value in learner.state().items()}
    assert validate() == first
    assert all(torch.equal(value, state[name]) for name, value in learner.state().items())


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_average_follows_the_weights(norm: Any) -> None:
    options = replace(SMALL, norm=norm)
    learner = learner_of(options)
    name = "bottom.norm1.running_var" if norm == "batch" else "head.bias"
    expected = learner.averaged_weights()[name].double()
    for step in range(1, 21):
        learner.learn(batch_of(options, 4 * step), RATE)
        kept = min(SMALL.ema_decay, step / (9 + step))
        expected = kept * expected + (1 - kept) * learner.network.state_dict()[name].detach().double()
    torch.testing.assert_close(learner.averaged_weights()[name].double(), expected, rtol=1e-5, atol=1e-7)
    if norm == "batch":
        assert int(learner.averaged_weights()["bottom.norm1.num_batches_tracked"]) == 20


def plain_loss(learner: Learner, batch: Batch, loss: str) -> float:
    """The definition, voxel by voxel."""
    predicted = learner.network(batch.source.reshape(-1, 1, *batch.source.shape[2:])).detach()
    errors = []
    for index in np.ndindex(*batch.expected.shape):
        if batch.centres is None or bool(batch.centres[(index[0], 0, *index[2:])]):
            difference = predicted.reshape(batch.expected.shape)[index] - batch.expected[index]
            errors.append(float(difference) ** 2 if loss == "mse" else abs(float(difference)))
    return float(np.mean(errors))


@pytest.mark.parametrize("loss", ["mse", "mae"])
@pytest.mark.parametrize("shape", [(16, 16), (8, 8, 8)])
def test_the_loss_is_the_mean_error_over_the_voxels_that_count(loss: Any, shape: Any) -> None:
    options = replace(SMALL, loss=loss, patch_size=shape)
    learner, masked = learner_of(options), batch_of(options)
    whole = Batch(masked.source, masked.expected, None, masked.item)
    for batch in (masked, whole):
        expected = plain_loss(learner, batch, loss)
        assert learner.validate([batch]) == pytest.approx(expected, rel=1e-5)
    expected = plain_loss(learner, masked, loss)
    assert float(learner.learn(masked, RATE)) == pytest.approx(expected, rel=1e-5)


def test_a_step_changes_the_weights_by_its_rate() -> None:
    still, moving = learner_of(), learner_of()
    before = still.state()["network.head.bias"]
    still.learn(batch_of(), 0.0)
    moving.learn(batch_of(), 1e-2)
    assert torch.equal(still.state()["network.head.bias"], before)
    # Adam's first step is the rate, whatever the gradient.
    moved = (moving.state()["network.head.bias"] - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-2), rtol=1e-3, atol=0)


class Dropping(nn.Module):
    """An own network that draws at random."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Conv2d(1, 4, 3, padding=1), nn.Dropout(0.5)
        self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.second = nn.Conv2d(4, 1, 1)
        self.twice = self.second

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.twice(self.frozen(self.drop(self.first(x))))
        return answer


def test_a_network_of_ones_own_that_draws_repeats_itself_after_a_restart() -> None:
    torch.manual_seed(1)
    network = Dropping()
    states = []
    for stops in (False, True):
        learner = learner_of(network=Dropping())
        learner.network.load_state_dict(network.state_dict())
        learner.average.load_state_dict(network.state_dict())
        with repeatable(1, CPU.device):
            for step in range(6):
                if stops and step == 3:
                    state, learner = learner.state(), learner_of(network=Dropping())
                    torch.rand(5)
                    learner.restore(state, 3)
                learner.learn(batch_of(first=4 * step), RATE)
        states.append(learner.state())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert torch.equal(states[0]["network.frozen.weight"], network.frozen.weight)
    assert not torch.equal(states[0]["network.second.weight"], network.second.weight)


def test_a_checkpoint_that_lacks_a_tensor_is_refused() -> None:
    learner = learner_of()
    learner.learn(batch_of(), RATE)
    state = learner.state()
    for name in ("network.head.bias", "average.head.bias", "adam.exp_avg.head.bias"):
        with pytest.raises(ModelError, match="checkpoint"):
            learner.restore({k: v for k, v in state.items() if k != name}, 1)


class Poisoned(nn.Module):
    """Its answer is finite, the gradient of it is not."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.only(x)
        return answer + 0 * (answer - answer.detach()).abs().sqrt()


def test_a_gradient_that_is_not_finite_is_told_though_the_loss_is() -> None:
    learner = learner_of(network=Poisoned())
    assert np.isfinite(learner.validate([batch_of()]))
    assert np.isnan(float(learner.learn(batch_of(), RATE)))


def test_a_step_on_a_cpu_leaves_the_generators_of_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[Any] = []
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, seeded.append)
    learner_of().learn(batch_of(), RATE)
    assert seeded == []


def test_cuda_computes_exactly_while_training_and_as_before_afterwards() -> None:
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    def flags() -> tuple[bool, ...]:
        return cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic

    before = flags()
    with repeatable(1, torch.device("cuda")):
        assert flags() == (False, False, False, True)
    assert flags() == before
    with repeatable(1, torch.device("cpu")):
        assert flags() == before


def test_what_torch_draws_while_training_leaves_no_trace() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with repeatable(1, CPU.device):
        learner_of().learn(batch_of(), RATE)
    assert torch.equal(torch.rand(3), expected)


def test_where_torch_cannot_compile_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = torch._dynamo.exc.BackendCompilerFailed(torch.compile, RuntimeError("no compiler"), None)

    def failing(*_: Any) -> Tensor:
        raise failed

    monkeypatch.setattr(torch, "compile", lambda _: failing)
    with pytest.raises(BadRequest, match="compile=False"):
        learner_of(replace(SMALL, compile=True)).learn(batch_of(), RATE)
