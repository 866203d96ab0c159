"""Boxes: the algebra that everything above stands on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.geometry.boxes import Box

SHAPE = (7, 9)


@st.composite
def boxes(draw: st.DrawFn, low: int = -4, high: int = 13) -> Box:
    bounds = [sorted(draw(st.tuples(st.integers(low, high), st.integers(low, high)))) for _ in SHAPE]
    return Box(tuple(b[0] for b in bounds), tuple(b[1] for b in bounds))


def mask_of(box: Box) -> np.ndarray[Any, Any]:
    """The box as a mask over -10 .. 19, by definition rather than by its own methods."""
    axes = np.meshgrid(*[np.arange(-10, 20)] * len(SHAPE), indexing="ij")
    inside: np.ndarray[Any, Any] = np.all(
        [(a <= i) & (i < b) for a, b, i in zip(box.start, box.stop, axes, strict=True)], axis=0
    )
    return inside


@given(boxes())
def test_size_and_shape_count_voxels(box: Box) -> None:
    assert box.size == mask_of(box).sum()
    assert box.shape == tuple(b - a for a, b in zip(box.start, box.stop, strict=True))


@given(boxes(), boxes())
def test_overlaps_and_contains_are_those_of_voxel_sets(a: Box, b: Box) -> None:
    assert a.overlaps(b) == bool((mask_of(a) & mask_of(b)).any()) == b.overlaps(a)
    if b.size:
        assert a.contains(b) == bool((mask_of(b) <= mask_of(a)).all())


@given(boxes())
def test_clip_is_the_intersection_with_the_image(box: Box) -> None:
    clipped = box.clip(SHAPE)
    assert np.array_equal(mask_of(clipped), mask_of(box) & mask_of(Box.whole(SHAPE)))
    assert all(0 <= a <= b <= n for a, b, n in zip(clipped.start, clipped.stop, SHAPE, strict=True))
    assert clipped.clip(SHAPE) == clipped


@settings(max_examples=50)
@given(boxes(low=0, high=6), st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_grow_shift_and_relative_to(box: Box, margin: tuple[int, int]) -> None:
    grown = box.grow(margin)
    assert grown.contains(box)
    assert grown.shape == tuple(n + 2 * m for n, m in zip(box.shape, margin, strict=True))
    assert box.shift(margin).relative_to(margin) == box
    # Cutting the box out of its grown surroundings gives what cutting it out of the whole gives.
    image = np.arange(400).reshape(20, 20)
    whole = Box((5, 5), (5, 5)).shift((0, 0))
    moved = box.shift((5, 5))
    around = moved.grow(margin)
    assert whole.size == 0
    assert np.array_equal(image[around.slices][moved.relative_to(around.start).slices], image[moved.slices])


def test_whole_takes_numpy_integers_and_gives_plain_ones() -> None:
    box = Box.whole(tuple(np.array([3, 4])))
    assert box == Box((0, 0), (3, 4))
    assert {type(n) for n in box.stop} == {int}


@pytest.mark.parametrize(("start", "stop"), [((0,), (1, 2)), ((3,), (2,))])
def test_an_impossible_box_is_our_own_mistake(start: tuple[int, ...], stop: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        Box(start, stop)
