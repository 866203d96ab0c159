"""Grids: every voxel in exactly one box, and a number names a box."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import Grid, batch_of, ceil_div, round_up

sizes = st.integers(1, 97)


@st.composite
def grids(draw: st.DrawFn, most: int = 97, smallest_step: int = 1) -> Grid:
    ndim = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, most)) for _ in range(ndim))
    return Grid(shape, tuple(draw(st.integers(smallest_step, most + 3)) for _ in range(ndim)))


@given(sizes, sizes)
def test_ceil_div_and_round_up_are_exact(n: int, step: int) -> None:
    assert ceil_div(n, step) == int(np.ceil(n / step))
    assert round_up(n, step) % step == 0
    assert 0 <= round_up(n, step) - n < step


@settings(max_examples=60)
@given(grids(smallest_step=9))
def test_boxes_cover_every_voxel_exactly_once(grid: Grid) -> None:
    seen = np.zeros(grid.shape, np.uint8)
    for box in grid:
        assert box.size > 0
        seen[box.slices] += 1
    assert (seen == 1).all()
    assert len(list(grid)) == len(grid)


@settings(max_examples=60)
@given(grids(), st.data())
def test_a_number_names_a_box(grid: Grid, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(grid) - 1))
    assert grid.number(grid.index(number)) == number
    assert grid.index(number) == tuple(np.unravel_index(number, grid.counts))


@settings(max_examples=100)
@given(grids(most=12), st.data())
def test_covering_yields_just_the_boxes_that_share_a_voxel(grid: Grid, data: st.DataObject) -> None:
    bounds = [sorted(data.draw(st.tuples(st.integers(-4, 20), st.integers(-4, 20)))) for _ in grid.shape]
    box = Box(tuple(b[0] for b in bounds), tuple(b[1] for b in bounds))
    assert list(grid.covering(box)) == [i for i, other in enumerate(grid) if other.overlaps(box)]


@given(st.integers(0, 60), st.integers(1, 9))
def test_batches_partition_the_blocks(n_blocks: int, per_batch: int) -> None:
    batches = [batch_of(b, n_blocks, per_batch) for b in range(ceil_div(n_blocks, per_batch))]
    assert [block for batch in batches for block in batch] == list(range(n_blocks))


def test_an_impossible_grid_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        Grid((3, 4), (1,))
    with pytest.raises(AssertionError):
        Grid((3,), (0,))
    with pytest.raises(AssertionError):
        Grid((3,), (1,)).box(3)
