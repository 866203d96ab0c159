"""Every setting is checked at once, and the message says what would do."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from denoizarr import train
from denoizarr.errors import ConfigError
from denoizarr.kernels.blindspot import check_blind_spot
from denoizarr.kernels.unet import NetworkShape
from denoizarr.training.options import TrainingOptions

Kernel = NDArray[np.bool_]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 50}, "expected 52"),
        ({"patch_size": (64, 30)}, r"expected \(64, 32\)"),
        ({"patch_size": 4}, "expected 8"),
        ({"patch_size": 60, "num_layers": 3}, "expected 64"),
        ({"patch_size": (6, 64, 64)}, r"expected \(8, 64, 64\)"),
        ({"patch_size": (4, 64, 64)}, r"expected \(8, 64, 64\)"),
        ({"patch_size": (8, 8, 64, 64)}, r"an int, \(y, x\) or \(z, y, x\)"),
        ({"patch_size": (64,)}, r"an int, \(y, x\) or \(z, y, x\)"),
        ({"patch_size": True}, "patch_size"),
        ({"patch_size": "64"}, "patch_size"),
        ({"mask_percentage": 0}, "mask_percentage"),
        ({"mask_percentage": 51}, "at most 50"),
        ({"mask_percentage": float("nan")}, "mask_percentage"),
        ({"masking_strategy": "gaussian"}, "uniform, median, mean, zero, random"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_epochs": 1.5}, "num_epochs"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"precision": "float16"}, "float32 or bfloat16"),
        ({"norm": "group"}, "batch or none"),
        ({"device": "tpu"}, "device"),
        ({"seed": -1}, "seed"),
        ({"validation_fraction": 0.9}, "validation_fraction"),
        ({"early_stopping": 0}, "early_stopping"),
        ({"schedule": "linear"}, "cosine or plateau or constant"),
        ({"loss": "huber"}, "mse or mae"),
        ({"compile": "yes"}, "compile.*True or False"),
        ({"n2v2": 1}, "n2v2"),
        ({"separate_masks": None}, "separate_masks"),
        ({"augment": 1}, "augment"),
        ({"norm": ["batch"]}, "batch or none"),
        ({"checkpoint_minutes": -1}, "checkpoint_minutes"),
        ({"early_stopping": 3, "validation_fraction": 0.0}, "early_stopping, validation_fraction: got 3, 0"),
        ({"batch_size": np.float64(4)}, "batch_size"),
        ({"batch_size": np.bool_(True)}, "batch_size"),
        ({"patch_size": np.ones((2, 2))}, "patch_size"),
    ],
)
def test_options_out_of_range_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingOptions(**change)


def test_a_pair_may_be_a_list() -> None:
    assert TrainingOptions(patch_size=[64, 32]).patch_shape == (64, 32)  # type: ignore[arg-type]


def test_numpys_integers_are_as_good_as_any() -> None:
    options = TrainingOptions(
        patch_size=tuple(np.array([64, 32])),
        batch_size=np.int64(4),  # type: ignore[arg-type]
        seed=np.uint8(3),  # type: ignore[arg-type]
    )
    assert options == TrainingOptions(patch_size=(64, 32), batch_size=4, seed=3)
    assert json.loads(json.dumps(asdict(options)))["batch_size"] == 4
    assert type(TrainingOptions(patch_size=np.int32(64)).patch_size) is int  # type: ignore[arg-type]


def test_an_epoch_is_neither_tiny_nor_endless() -> None:
    assert [TrainingOptions().epoch_size(n) for n in (1, 2000, 10**9)] == [1024, 2000, 4096]
    assert TrainingOptions(patches_per_epoch=7).epoch_size(10**9) == 7


def test_the_patch_decides_whether_the_network_is_3d() -> None:
    assert (
        TrainingOptions().network_shape.ndim == TrainingOptions(patch_size=(32, 64)).network_shape.ndim == 2
    )
    options = TrainingOptions(patch_size=(16, 32, 64), n2v2=True, norm="batch", num_layers=3)
    assert options.patch_shape == (16, 32, 64)
    assert options.network_shape == NetworkShape(ndim=3, depth=3, norm="batch", n2v2=True)
    assert TrainingOptions(patch_size=[8, 16, 32]).patch_shape == (8, 16, 32)  # type: ignore[arg-type]


@given(
    side=st.integers(2, 24).map(lambda n: 4 * n),
    kernel=st.tuples(st.integers(0, 8), st.integers(0, 8)).map(
        lambda reach: np.ones((2 * reach[0] + 1, 2 * reach[1] + 1), np.bool_)
    ),
)
def test_what_is_left_out_always_fits_a_kernel_that_fits(side: int, kernel: Kernel) -> None:
    options = TrainingOptions(patch_size=side)
    percentage = options.percentage_of(kernel)
    assert replace(options, mask_percentage=3.0).percentage_of(kernel) == 3.0
    if kernel.sum() <= side**2 / 2 and max(kernel.shape) <= side:
        check_blind_spot(kernel, options.patch_shape, percentage)
    hidden = percentage * int(kernel.sum())
    if side**2 > 100 / 1.5 and kernel.sum() <= 33:
        assert hidden == pytest.approx(max(8, 1.5 * int(kernel.sum())))


def test_a_model_says_what_percentage_it_was_trained_with() -> None:
    noisy = np.random.default_rng(0).integers(0, 200, (64, 64), dtype=np.uint8)
    options = TrainingOptions(patch_size=16, num_epochs=1, patches_per_epoch=8, features=4, device="cpu")
    for kernel, expected in ((None, 8), (np.ones((1, 3), bool), 8 / 3)):
        trained = train(noisy, blind_spot=kernel, options=options, progress=False)
        assert trained.training["options"]["mask_percentage"] == pytest.approx(expected)
