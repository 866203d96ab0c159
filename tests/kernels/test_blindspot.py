"""Blind spots leak nothing, are drawn evenly, and depend on nothing but (seed, epoch, patch number)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from denoizarr.errors import BadRequest, PatchTooLarge
from denoizarr.kernels.blindspot import (
    STRATEGIES,
    check_blind_spot,
    draw_blind_spots,
    largest_percentage,
    symmetries_of,
    turn_patches,
)

SINGLE = np.ones((1, 1), np.bool_)
ROW = np.ones((1, 9), np.bool_)
SQUARE = np.ones((5, 5), np.bool_)
ONE_SIDED = np.array([[False, False, True, True, True]])
KERNELS = {"single": SINGLE, "row": ROW, "square": SQUARE, "one-sided": ONE_SIDED}


def noise(n: int = 4, channels: int = 1, size: tuple[int, int] = (40, 48), seed: int = 0) -> torch.Tensor:
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(seed))


def drawn(
    patches: torch.Tensor,
    kernel: np.ndarray = SINGLE,
    percentage: float = 1.5,
    strategy: str | int = "uniform",
    **more: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    arguments = {"seed": 1, "epoch": 2} | more
    return draw_blind_spots(
        patches, kernel, percentage, strategy, numbers=torch.arange(len(patches)), **arguments
    )


def hidden_by(centres: torch.Tensor, kernel: np.ndarray) -> np.ndarray:
    """Return the hidden pixels by scipy's definition of a dilation."""
    return np.stack([ndimage.binary_dilation(c[0].numpy(), kernel) for c in centres])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_only_hidden_pixels_change_and_nothing_hidden_leaks(kernel: np.ndarray, strategy: str) -> None:
    patches = noise(channels=2)
    filled, centres = drawn(patches, kernel, strategy=strategy)
    hidden = torch.from_numpy(hidden_by(centres, kernel))[:, None].expand_as(patches)
    assert torch.equal(filled[~hidden], patches[~hidden])
    # Whatever lies under the hidden pixels, the input of the network is the same: that is what blind means.
    other = torch.where(hidden, noise(channels=2, seed=9), patches)
    again, centres_again = drawn(other, kernel, strategy=strategy)
    assert torch.equal(again, filled)
    assert torch.equal(centres_again, centres)
    assert bool((filled != patches)[hidden].all())


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_uniform_fills_from_nearby_pixels_outside_the_kernel(kernel: np.ndarray) -> None:
    patches = torch.arange(4 * 40 * 48, dtype=torch.float64).reshape(4, 1, 40, 48)
    filled, centres = drawn(patches, kernel)
    hidden = hidden_by(centres, kernel)
    for number, row, column in zip(*np.nonzero(hidden), strict=True):
        source = int(filled[number, 0, row, column]) - number * 40 * 48
        step = np.array([source // 48 - row, source % 48 - column])
        assert not hidden[number, source // 48, source % 48]
        assert np.abs(step).max() <= 6
        for offset in (step, -step):
            y, x = offset + np.array(kernel.shape) // 2
            inside = 0 <= y < kernel.shape[0] and 0 <= x < kernel.shape[1]
            assert not (inside and kernel[y, x])


def test_mean_and_median_are_those_of_the_visible_window() -> None:
    patches = noise(n=2)
    for strategy, definition in (("mean", np.mean), ("median", lambda v: np.sort(v)[(len(v) - 1) // 2])):
        filled, centres = drawn(patches, strategy=strategy)
        for number, _, row, column in torch.nonzero(centres).tolist():
            window = (number, 0, slice(max(row - 5, 0), row + 6), slice(max(column - 5, 0), column + 6))
            visible = patches[window].numpy()[~centres[window].numpy()]
            assert float(filled[number, 0, row, column]) == pytest.approx(definition(visible), abs=1e-6)


def test_the_seed_pages_numbers_are_mean_zero_random() -> None:
    patches = noise()
    for number, name in enumerate(("mean", "zero", "random")):
        assert torch.equal(drawn(patches, ROW, strategy=number)[0], drawn(patches, ROW, strategy=name)[0])


@settings(max_examples=25, deadline=None)
@given(
    percentage=st.floats(0.5, 10),
    height=st.integers(16, 70),
    width=st.integers(16, 70),
    seed=st.integers(0, 2**40),
)
def test_as_many_centres_as_asked(percentage: float, height: int, width: int, seed: int) -> None:
    patches = torch.zeros(64, 1, height, width)
    _, centres = drawn(patches, percentage=percentage, seed=seed)
    expected = percentage / 100 * height * width
    # Stratified: each patch strays by boxes cut at its border only, so the mean of 64 strays little.
    assert float(centres.sum()) / 64 == pytest.approx(expected, abs=0.6 * np.sqrt(expected) + 0.1)


def test_every_pixel_is_as_likely_a_centre_and_centres_spread() -> None:
    patches = torch.zeros(4000, 1, 20, 24)
    _, centres = drawn(patches, percentage=4)
    counts = centres.sum((0, 1)).double()
    # 160 expected a pixel; chi-square of 480 pixels has standard deviation 31.
    assert float(((counts - 160) ** 2 / 160).sum()) < 480 + 5 * 31
    for part in (counts[0], counts[-1], counts[:, 0], counts[:, -1]):
        assert float(part.mean()) == pytest.approx(160, rel=0.08)
    # Stratified: boxes of 25 pixels hold one centre each, so counts stray far less than a Poisson's 4.4.
    assert float(centres.sum((1, 2, 3)).double().std()) < 2.5


def test_every_pixel_of_the_window_is_as_likely_a_source() -> None:
    patches = torch.arange(21 * 21, dtype=torch.float64).reshape(1, 1, 21, 21).repeat(6000, 1, 1, 1)
    filled, centres = drawn(patches, percentage=2)
    middle = centres[:, 0, 10, 10]
    sources = filled[middle, 0, 10, 10].long()
    rows, columns = sources // 21 - 10, sources % 21 - 10
    assert len(sources) > 80
    assert int(rows.abs().max()) == int(columns.abs().max()) == 5
    assert abs(float(rows.double().mean())) < 1
    assert float(rows.double().std()) == pytest.approx(3.2, abs=0.6)


def test_a_patch_draws_the_same_in_any_batch() -> None:
    patches = noise(n=8)
    whole, centres = drawn(patches, ROW)
    for number in (0, 5):
        part, centre = draw_blind_spots(
            patches[number : number + 1], ROW, 1.5, seed=1, epoch=2, numbers=torch.tensor([number])
        )
        assert torch.equal(part[0], whole[number])
        assert torch.equal(centre[0], centres[number])


@pytest.mark.parametrize("change", [{"seed": 3}, {"seed": 1 + 2**32}, {"epoch": 3}, {"epoch": -1}])
def test_other_seeds_and_epochs_draw_otherwise(change: dict[str, int]) -> None:
    patches = noise()
    assert not torch.equal(drawn(patches)[1], drawn(patches, **change)[1])
    assert not torch.equal(drawn(patches)[1][0], drawn(patches)[1][1])


def test_nothing_visible_nearby_still_fills_with_a_finite_value() -> None:
    # Three of four pixels are centres: windows at corners may be all hidden; check_blind_spot refuses this.
    for strategy in STRATEGIES:
        filled, _ = drawn(noise(size=(9, 9)), np.ones((7, 7), np.bool_), 60, strategy)
        assert bool(torch.isfinite(filled).all())


def transformed(kernel: np.ndarray, turns: int, flip: bool) -> np.ndarray:
    return np.rot90(kernel[:, ::-1] if flip else kernel, turns)


@pytest.mark.parametrize(
    ("kernel", "count"),
    [(SINGLE, 8), (SQUARE, 8), (ROW, 4), (ONE_SIDED, 2), (np.eye(3, dtype=np.bool_), 4)],
)
def test_symmetries_leave_the_kernel_unchanged(kernel: np.ndarray, count: int) -> None:
    symmetries = symmetries_of(kernel)
    assert symmetries[0] == (0, False)
    assert len(set(symmetries)) == count
    for turns, flip in symmetries:
        np.testing.assert_array_equal(transformed(kernel, turns, flip), kernel)


def test_patches_are_turned_by_the_allowed_symmetries_only() -> None:
    patches = noise(n=64, size=(8, 8))
    allowed = symmetries_of(ROW)
    turned = turn_patches(patches, allowed, seed=0, epoch=0, numbers=torch.arange(64))
    used = set()
    for before, after in zip(patches[:, 0].numpy(), turned[:, 0].numpy(), strict=True):
        matches = [s for s in symmetries_of(SINGLE) if np.array_equal(transformed(before, *s), after)]
        assert len(matches) == 1
        used.add(matches[0])
    assert used == set(allowed)


def test_oblong_patches_are_not_turned_by_a_quarter() -> None:
    patches = noise(n=64, size=(8, 16))
    turned = turn_patches(patches, symmetries_of(SINGLE), seed=0, epoch=0, numbers=torch.arange(64))
    assert turned.shape == patches.shape
    assert not torch.equal(turned, patches)


@pytest.mark.parametrize(
    ("kernel", "patch_size", "percentage", "error", "message"),
    [
        (np.ones((2, 3), np.bool_), (16, 16), 1.5, BadRequest, "odd"),
        (np.array([[True, False, True]]), (16, 16), 1.5, BadRequest, "centre"),
        (np.ones((1, 3), np.uint8), (16, 16), 1.5, BadRequest, "boolean"),
        (np.ones((1, 17), np.bool_), (64, 16), 1.5, PatchTooLarge, "patch_size"),
        (SQUARE, (64, 64), 2.1, BadRequest, "mask_percentage"),
        (SINGLE, (64, 64), 0.01, BadRequest, "mask_percentage"),
        (SINGLE, (64, 64), float("nan"), BadRequest, "mask_percentage"),
    ],
)
def test_impossible_blind_spots_are_refused(
    kernel: np.ndarray, patch_size: tuple[int, int], percentage: float, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_blind_spot(kernel, patch_size, percentage)


def test_half_a_patch_may_be_hidden() -> None:
    check_blind_spot(SQUARE, (64, 64), largest_percentage(SQUARE))


def test_an_unknown_strategy_is_refused_with_those_there_are() -> None:
    for strategy in ("gaussian", 3, True):
        with pytest.raises(BadRequest, match="uniform, median, mean, zero, random"):
            drawn(noise(), strategy=strategy)
