"""Blind spots leak nothing, are drawn evenly, and depend on nothing but (seed, epoch, patch number)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from denoizarr.errors import BadRequest, PatchTooLarge
from denoizarr.kernels.blind_spot_centres import draw_centres
from denoizarr.kernels.blindspot import (
    STRATEGIES,
    check_blind_spot,
    draw_blind_spots,
    largest_percentage,
    symmetries_of,
    turn_patches,
)
from denoizarr.kernels.hashed_draws import keys_of

SINGLE = np.ones((1, 1), np.bool_)
ROW = np.ones((1, 9), np.bool_)
SQUARE = np.ones((5, 5), np.bool_)
ONE_SIDED = np.array([[False, False, True, True, True]])
KERNELS = {"single": SINGLE, "row": ROW, "square": SQUARE, "one-sided": ONE_SIDED}
CROSS = ndimage.generate_binary_structure(3, 1)
VOLUMES = {"voxel": np.ones((1, 1, 1), np.bool_), "row along x": np.ones((1, 1, 5), np.bool_), "cross": CROSS}


def noise(n: int = 4, channels: int = 1, size: tuple[int, ...] = (40, 48), seed: int = 0) -> torch.Tensor:
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
@pytest.mark.parametrize("kernel", [*KERNELS.values(), *VOLUMES.values()], ids=[*KERNELS, *VOLUMES])
def test_only_hidden_pixels_change_and_nothing_hidden_leaks(kernel: np.ndarray, strategy: str) -> None:
    size = (40, 48) if kernel.ndim == 2 else (12, 20, 24)
    patches = noise(channels=2, size=size)
    filled, centres = drawn(patches, kernel, strategy=strategy)
    hidden = torch.from_numpy(hidden_by(centres, kernel))[:, None].expand_as(patches)
    assert torch.equal(filled[~hidden], patches[~hidden])
    # Whatever lies under the hidden pixels, the input of the network is the same: that is what blind means.
    other = torch.where(hidden, noise(channels=2, size=size, seed=9), patches)
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


@pytest.mark.parametrize("kernel", VOLUMES.values(), ids=VOLUMES)
def test_uniform_fills_volumes_from_nearby_voxels_outside_the_kernel(kernel: np.ndarray) -> None:
    size = (12, 20, 24)
    patches = torch.arange(2 * 12 * 20 * 24, dtype=torch.float64).reshape(2, 1, *size)
    filled, centres = drawn(patches, kernel)
    hidden = hidden_by(centres, kernel)
    for number, *here in zip(*np.nonzero(hidden), strict=True):
        number_of_source, *there = np.unravel_index(int(filled[number, 0, *here]), (2, *size))
        step = np.array(there) - here
        assert number_of_source == number
        assert not hidden[number, *there]
        assert np.abs(step).max() <= 3
        for offset in (step, -step):
            place = offset + np.array(kernel.shape) // 2
            inside = all(0 <= a < n for a, n in zip(place, kernel.shape, strict=True))
            assert not (inside and kernel[*place])


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


def test_mean_and_median_of_volumes_are_those_of_the_visible_window() -> None:
    patches = noise(n=2, size=(9, 12, 14))
    for strategy, definition in (("mean", np.mean), ("median", lambda v: np.sort(v)[(len(v) - 1) // 2])):
        filled, centres = drawn(patches, VOLUMES["voxel"], strategy=strategy)
        for number, _, *here in torch.nonzero(centres).tolist():
            window = (number, 0, *(slice(max(a - 2, 0), a + 3) for a in here))
            visible = patches[window].numpy()[~centres[window].numpy()]
            assert float(filled[number, 0, *here]) == pytest.approx(definition(visible), abs=1e-6)


def integers(n: int, channels: int, *size: int) -> torch.Tensor:
    """Return patches whose sums are exact in float32, so that no order of summation matters."""
    number = torch.arange(n * channels * int(np.prod(size)))
    return ((number * 2654435761) % 4093).float().reshape(n, channels, *size)


def digest_of_draws(draw: Callable[..., Any], strategy: str) -> str:
    digest = hashlib.sha256()
    for kernel in KERNELS.values():
        for size, channels, percentage in (((40, 48), 2, 1.5), ((64, 64), 1, 0.7), ((9, 9), 1, 60)):
            numbers = torch.tensor([0, 7, 2**35, 3, 1])
            patches = integers(5, channels, *size)
            for part in draw(patches, kernel, percentage, strategy, seed=2**33 + 5, epoch=3, numbers=numbers):
                digest.update(part.numpy().tobytes())
    return digest.hexdigest()[:16]


def digest_of_turns(symmetries: Callable[..., Any], turn: Callable[..., Any]) -> str:
    digest = hashlib.sha256()
    for kernel in KERNELS.values():
        turned = turn(integers(16, 2, 8, 8), symmetries(kernel), seed=5, epoch=1, numbers=torch.arange(16))
        digest.update(turned.numpy().tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("uniform", "10f3432ac97d6684"),
        ("median", "a36093176a454af1"),
        ("mean", "78d3a0c023c3b3d7"),
        ("zero", "78b7274c4b638e07"),
        ("random", "4dfdf361856468fc"),
    ],
)
def test_draws_in_planes_are_those_of_the_first_release(strategy: str, expected: str) -> None:
    # Another draw is another training: whoever repeats one with the same seed must get the same model.
    assert digest_of_draws(draw_blind_spots, strategy) == expected


def test_turns_of_planes_are_those_of_the_first_release() -> None:
    assert digest_of_turns(symmetries_of, turn_patches) == "83d5cba7b7e2fa97"


@settings(max_examples=25)
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


@settings(max_examples=15)
@given(
    percentage=st.floats(0.5, 10),
    size=st.tuples(st.integers(4, 12), st.integers(8, 24), st.integers(8, 24)),
    seed=st.integers(0, 2**40),
)
def test_as_many_centres_in_volumes_as_asked(
    percentage: float, size: tuple[int, int, int], seed: int
) -> None:
    patches = torch.zeros(64, 1, *size)
    _, centres = drawn(patches, VOLUMES["voxel"], percentage=percentage, seed=seed)
    expected = percentage / 100 * np.prod(size)
    # Boxes cut at the six sides: the mean of 64 patches strays a little more than in a plane.
    assert float(centres.sum()) / 64 == pytest.approx(expected, abs=0.8 * np.sqrt(expected) + 0.1)


def unevenness(counts: torch.Tensor) -> float:
    """Return by how many standard deviations the chi-square of even counts is exceeded."""
    even = counts.mean()
    return float((((counts - even) ** 2 / even).sum() - counts.numel()) / (2 * counts.numel()) ** 0.5)


def test_every_voxel_is_as_likely_a_centre() -> None:
    centres = drawn(torch.zeros(4000, 1, 6, 9, 10), VOLUMES["voxel"], percentage=4)[1]
    counts = centres.sum((0, 1)).double()
    assert float(counts.mean()) == pytest.approx(160, rel=0.01)
    assert unevenness(counts) < 5
    for axis in range(3):
        for end in (0, -1):
            assert float(counts.select(axis, end).mean()) == pytest.approx(160, rel=0.08)
    # The same statistic sees one plane in six that is drawn a third less often.
    counts[0] *= 2 / 3
    assert unevenness(counts) > 5


@pytest.mark.parametrize("size", [(24, 24), (8, 12, 16)])
def test_patches_and_epochs_draw_independently(size: tuple[int, ...]) -> None:
    n, kernel = 400, np.ones((1,) * len(size), np.bool_)
    first, second = (
        drawn(torch.zeros(n, 1, *size), kernel, 4.0, epoch=epoch)[1].flatten(1).double() for epoch in (0, 1)
    )

    def surplus(one: torch.Tensor, other: torch.Tensor) -> float:
        """Return how many more centres than by chance fall together, in standard deviations."""
        expected = float((one.mean(1) * other.mean(1)).sum()) * one.shape[1]
        return (float((one * other).sum()) - expected) / expected**0.5

    assert abs(surplus(first, second)) < 4
    assert abs(surplus(first[:-1], first[1:])) < 4
    # What is told from chance: one mask in ten that is drawn again, as of a generator that workers share.
    second[::10] = first[::10]
    assert surplus(first, second) > 10


def test_the_places_of_a_centre_along_the_axes_are_independent() -> None:
    keys = keys_of(1, 0, torch.arange(20_000), purpose=1)
    for size in ((30, 30), (30, 30, 30)):
        position, _ = draw_centres(keys, size, 0.1)
        middle = position[0].shape[1] // 2
        places = torch.stack([axis[:, middle] for axis in position]).double()
        correlation = torch.corrcoef(places) - torch.eye(len(size))
        assert float(correlation.abs().max()) < 4 / 20_000**0.5


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


def turned_volume(volume: np.ndarray, turns: int, flip_x: bool, flip_z: bool) -> np.ndarray:
    volume = volume[:, :, ::-1] if flip_x else volume
    volume = volume[::-1] if flip_z else volume
    return np.rot90(volume, turns, (1, 2))


ALONG_Z = np.ones((3, 1, 1), np.bool_)
CORNER = np.zeros((3, 3, 3), np.bool_)
CORNER[1:, 1, 1] = CORNER[1, 1:, 1] = True


@pytest.mark.parametrize(
    ("kernel", "count"),
    [(VOLUMES["voxel"], 16), (CROSS, 16), (ALONG_Z, 16), (VOLUMES["row along x"], 8), (CORNER, 2)],
)
def test_symmetries_of_volumes_keep_z_and_leave_the_kernel_unchanged(kernel: np.ndarray, count: int) -> None:
    symmetries = symmetries_of(kernel)
    assert symmetries[0] == (0, False, False)
    assert len(set(symmetries)) == count
    for symmetry in symmetries:
        np.testing.assert_array_equal(turned_volume(kernel, *symmetry), kernel)


@pytest.mark.parametrize("kernel", [*VOLUMES.values(), CORNER])
def test_volumes_are_turned_by_the_allowed_symmetries_only(kernel: np.ndarray) -> None:
    patches = noise(n=200, size=(4, 6, 6))
    allowed = symmetries_of(kernel)
    turned = turn_patches(patches, allowed, seed=0, epoch=0, numbers=torch.arange(200))
    used = set()
    for before, after in zip(patches[:, 0].numpy(), turned[:, 0].numpy(), strict=True):
        every = symmetries_of(VOLUMES["voxel"])
        matches = [s for s in every if np.array_equal(turned_volume(before, *s), after)]
        assert len(matches) == 1
        used.add(matches[0])
    assert used == set(allowed)


@pytest.mark.parametrize("size", [(8, 8), (8, 16), (4, 8, 8)])
def test_a_target_is_turned_like_its_patch(size: tuple[int, ...]) -> None:
    patches, numbers = noise(n=32, size=size), torch.arange(32) + 5
    symmetries = symmetries_of(np.ones((1,) * len(size), np.bool_))
    drawn_by = {"seed": 3, "epoch": 1}
    turned = turn_patches(patches, symmetries, numbers=numbers, **drawn_by)
    target = turn_patches(2 * patches + 1, symmetries, numbers=numbers, **drawn_by)
    assert torch.equal(target, 2 * turned + 1)
    assert not torch.equal(turned, patches)
    other = turn_patches(patches, symmetries, numbers=numbers + 1, **drawn_by)
    assert not torch.equal(other, turned)


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
        (SINGLE, (16, 64, 64), 1.5, BadRequest, r"kernel\[None\]"),
        (VOLUMES["voxel"], (64, 64), 1.5, BadRequest, "2 axes"),
        (np.ones((1, 1, 1, 1), np.bool_), (8, 8, 8, 8), 1.5, BadRequest, "2D or 3D"),
        (np.ones((9, 1, 1), np.bool_), (8, 64, 64), 1.5, PatchTooLarge, "patch_size"),
        (np.ones((3, 3, 3), np.bool_), (8, 64, 64), 2, BadRequest, "mask_percentage"),
    ],
)
def test_impossible_blind_spots_are_refused(
    kernel: np.ndarray, patch_size: tuple[int, int], percentage: float, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_blind_spot(kernel, patch_size, percentage)


def test_a_kernel_of_other_axes_than_the_patches_is_refused() -> None:
    with pytest.raises(BadRequest, match="axes"):
        drawn(noise(), VOLUMES["voxel"])


def test_half_a_patch_may_be_hidden() -> None:
    check_blind_spot(SQUARE, (64, 64), largest_percentage(SQUARE))


def test_an_unknown_strategy_is_refused_with_those_there_are() -> None:
    for strategy in ("gaussian", 3, True):
        with pytest.raises(BadRequest, match="uniform, median, mean, zero, random"):
            drawn(noise(), strategy=strategy)
