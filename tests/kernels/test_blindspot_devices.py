"""Other devices than the host draw the same, by other means, and the host never waits for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from denoizarr.kernels import blind_spot_fill, blindspot, separate_centres
from denoizarr.kernels.blindspot import STRATEGIES, draw_blind_spots, symmetries_of, turn_patches

CASES = {
    "pixel": (np.ones((1, 1), np.bool_), (40, 48), 1.5),
    "square": (np.ones((5, 5), np.bool_), (40, 48), 2.0),
    "all hidden": (np.ones((7, 7), np.bool_), (9, 9), 60.0),
    "cube": (np.ones((3, 3, 3), np.bool_), (10, 16, 20), 1.0),
}
Case = tuple[np.ndarray, tuple[int, ...], float]


def drawn(
    case: Case, strategy: str, separate: bool, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    kernel, size, percentage = case
    patches = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(0)).to(device)
    arguments = {"seed": 1, "epoch": 2, "numbers": torch.arange(3), "separate": separate}
    return draw_blind_spots(patches, kernel, percentage, strategy, **arguments)


@pytest.mark.parametrize("separate", [False, True], ids=["any", "separate"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_hosts_way_and_the_devices_way_draw_the_same(
    case: Case, strategy: str, separate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled, centres = drawn(case, strategy, separate)
    assert filled.is_contiguous()
    assert centres.is_contiguous()
    for module in (blind_spot_fill, blindspot, separate_centres):
        monkeypatch.setattr(module, "on_host", lambda _: False)
    monkeypatch.setattr(blind_spot_fill, "_MOST_TABLE_ENTRIES", 10_000)
    other_filled, other_centres = drawn(case, strategy, separate)
    assert torch.equal(other_centres, centres)
    assert torch.equal(other_filled, filled)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_nothing_is_read_back_from_a_device(case: Case, strategy: str) -> None:
    # A meta tensor has no values: whatever would make the host wait for them fails.
    filled, centres = drawn(case, strategy, separate=False, device="meta")
    assert filled.shape == (3, 2, *case[1])
    assert centres.shape == (3, 1, *case[1])
    turned = turn_patches(filled, symmetries_of(case[0]), seed=0, epoch=0, numbers=torch.arange(3))
    assert turned.shape == filled.shape


def test_a_value_read_back_is_seen() -> None:
    # Separate centres ask once, after more rounds than nearly any draw needs.
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        drawn(CASES["pixel"], "zero", separate=True, device="meta")


def test_what_is_drawn_under_inference_serves_training_too() -> None:
    case = (np.ones((1, 7), np.bool_), (20, 28), 1.5)
    with torch.inference_mode():
        expected = drawn(case, "uniform", separate=False)[0]
        turn_patches(expected, symmetries_of(case[0]), seed=0, epoch=0, numbers=torch.arange(3))
    kernel, size, percentage = case
    patches = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    numbers = torch.arange(3)
    filled, _ = draw_blind_spots(patches, kernel, percentage, seed=1, epoch=2, numbers=numbers)
    assert torch.equal(filled, expected)
    turn_patches(filled, symmetries_of(kernel), seed=0, epoch=0, numbers=numbers).sum().backward()
    assert patches.grad is not None


@pytest.mark.parametrize("separate", [False, True], ids=["any", "separate"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_patch_without_a_centre_stays_as_it_is(strategy: str, separate: bool) -> None:
    # On average one centre a patch: some have none, and so has a batch of one of them.
    kernel, n = np.ones((3, 3), np.bool_), 0
    for number in range(12):
        patch = torch.randn(1, 1, 12, 12)
        filled, centres = draw_blind_spots(
            patch,
            kernel,
            100 / 144,
            strategy,
            seed=0,
            epoch=0,
            numbers=torch.tensor([number]),
            separate=separate,
        )
        if not centres.any():
            n += 1
            assert torch.equal(filled, patch)
    assert n


def test_other_types_of_pixels_are_filled_too() -> None:
    kernel, size, percentage = CASES["square"]
    patches = torch.randn(2, 1, *size).to(torch.bfloat16)
    for strategy in STRATEGIES:
        filled, centres = draw_blind_spots(
            patches, kernel, percentage, strategy, seed=1, epoch=2, numbers=torch.arange(2)
        )
        assert filled.dtype == torch.bfloat16
        assert bool((filled != patches)[centres].any())
