"""Separate blind spots neither overlap nor touch, could not be more, and are as many as asked if they fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from denoizarr.kernels.blind_spot_centres import draw_centres
from denoizarr.kernels.blindspot import draw_blind_spots, reached_percentage
from denoizarr.kernels.hashed_draws import keys_of
from denoizarr.kernels.separate_centres import separate_percentages

CASES = {
    "pixel": (np.ones((1, 1), np.bool_), (40, 44), 10.0),
    "row": (np.ones((1, 9), np.bool_), (40, 44), 1.5),
    "square": (np.ones((5, 5), np.bool_), (40, 44), 1.2),
    "diagonal": (np.eye(5, dtype=np.bool_), (40, 44), 2.0),
    "one-sided": (np.array([[False, False, True, True, True]]), (40, 44), 2.0),
    "two dots": (np.array([[True, False, False, True, False, False, True]]), (40, 44), 3.0),
    "cube": (np.ones((3, 3, 3), np.bool_), (10, 18, 20), 0.5),
    "along x": (np.ones((1, 1, 5), np.bool_), (10, 18, 20), 1.5),
}
Case = tuple[np.ndarray, tuple[int, ...], float]


def centres_of(case: Case, n: int = 3, seed: int = 1, **more: bool) -> torch.Tensor:
    kernel, size, percentage = case
    patches = torch.zeros(n, 1, *size)
    arguments = {"separate": True} | more
    return draw_blind_spots(
        patches, kernel, percentage, seed=seed, epoch=0, numbers=torch.arange(n), **arguments
    )[1]


def rivals(one: tuple[int, ...], other: tuple[int, ...], kernel: np.ndarray) -> bool:
    """Return whether two footprints overlap or touch, by painting both on a canvas without borders."""
    canvas = [abs(a - b) + 2 * n + 4 for a, b, n in zip(one, other, kernel.shape, strict=True)]
    painted = []
    for place in (one, other):
        corner = [p - min(a, b) + 2 for p, a, b in zip(place, one, other, strict=True)]
        image = np.zeros(canvas, np.bool_)
        image[tuple(slice(c, c + n) for c, n in zip(corner, kernel.shape, strict=True))] = kernel
        painted.append(image)
    everywhere = np.ones((3,) * kernel.ndim, np.bool_)
    return bool((ndimage.binary_dilation(painted[0], everywhere) & painted[1]).any())


def any_rivals(places: list[tuple[int, ...]], kernel: np.ndarray) -> bool:
    def near(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
        return all(abs(a - b) <= n for a, b, n in zip(one, other, kernel.shape, strict=True))

    return any(
        near(one, other) and rivals(one, other, kernel)
        for i, one in enumerate(places)
        for other in places[:i]
    )


def places_in(centres: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(place) for place in torch.nonzero(centres).tolist()]


def drawn_for(case: Case, number: int, seed: int = 1) -> list[tuple[int, ...]]:
    """Return all the centres that were drawn for a patch, before any was dropped."""
    kernel, size, percentage = case
    keys = keys_of(seed, 0, torch.tensor([number]), purpose=1)
    position, exists = draw_centres(keys, size, separate_percentages(kernel, size, percentage)[0])
    return sorted({tuple(p) for p in torch.stack([axis[exists] for axis in position], 1).tolist()})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_footprints_neither_overlap_nor_touch_and_no_more_would_fit(case: Case) -> None:
    for number, centres in enumerate(centres_of(case)):
        kept, drawn = places_in(centres[0]), drawn_for(case, number)
        assert set(kept) <= set(drawn)
        assert len(kept) < len(drawn)
        assert not any_rivals(kept, case[0])
        for dropped in set(drawn) - set(kept):
            assert any(rivals(dropped, place, case[0]) for place in kept)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_not_thinned_out_touches_and_what_is_thinned_too_much_has_room(case: Case) -> None:
    kernel = case[0]
    assert any(any_rivals(places_in(c[0]), kernel) for c in centres_of(case, n=12, separate=False))
    kept = places_in(centres_of(case, n=1)[0, 0])
    dropped, *rest = kept
    assert not any(rivals(dropped, place, kernel) for place in rest)


@settings(max_examples=10)
@given(
    bits=st.lists(st.booleans(), min_size=15, max_size=15),
    size=st.tuples(st.integers(8, 30), st.integers(8, 30)),
    percentage=st.floats(1, 3),
    seed=st.integers(0, 2**40),
)
def test_any_kernel_is_kept_apart(
    bits: list[bool], size: tuple[int, int], percentage: float, seed: int
) -> None:
    kernel = np.array(bits).reshape(3, 5)
    kernel[1, 2] = True
    assert not any_rivals(places_in(centres_of((kernel, size, percentage), n=1, seed=seed)[0, 0]), kernel)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_as_many_are_left_as_asked_for(case: Case) -> None:
    kernel, size, percentage = case
    reached = reached_percentage(kernel, size, percentage, separate=True)
    assert reached == pytest.approx(percentage, rel=0.04)
    left = 100 * float(centres_of(case, n=200).float().mean())
    assert left == pytest.approx(percentage, rel=0.05)


def test_where_so_many_do_not_fit_the_percentage_reached_is_told() -> None:
    case = (np.ones((3, 3, 3), np.bool_), (10, 18, 20), 1.5)
    reached = reached_percentage(*case, separate=True)
    assert 0.6 < reached < 1.1
    assert 100 * float(centres_of(case, n=100).float().mean()) == pytest.approx(reached, rel=0.05)
    assert reached_percentage(*case) == 1.5


def test_every_pixel_away_from_the_border_is_as_likely() -> None:
    case = (np.ones((1, 3), np.bool_), (24, 24), 4.0)
    counts = centres_of(case, n=3000).sum((0, 1))[6:-6, 6:-6].double()
    even = counts.mean()
    # Kept centres shun each other, so that counts stray no more than a Poisson's; a third too few would show.
    assert float(((counts - even) ** 2 / even).sum()) < counts.numel() + 5 * (2 * counts.numel()) ** 0.5
    counts[0] *= 2 / 3
    assert float(((counts - even) ** 2 / even).sum()) > counts.numel() + 5 * (2 * counts.numel()) ** 0.5


def test_a_patch_keeps_the_same_centres_in_any_batch() -> None:
    kernel, size, percentage = CASES["square"]
    whole = centres_of(CASES["square"], n=8)
    for number in (0, 5):
        alone = draw_blind_spots(
            torch.zeros(1, 1, *size),
            kernel,
            percentage,
            seed=1,
            epoch=0,
            numbers=torch.tensor([number]),
            separate=True,
        )[1]
        assert torch.equal(alone[0], whole[number])
