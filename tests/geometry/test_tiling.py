"""Tiles: what is kept covers the image once; what is read is enough for it and lies on the stride's grid."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.geometry.boxes import Box
from denoizarr.geometry.tiling import padded_shape, tile_for, tiles_of


@st.composite
def problems(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    ndim = draw(st.integers(1, 2))
    shape = tuple(draw(st.integers(1, 97)) for _ in range(ndim))
    tile = tuple(draw(st.integers(7, 60)) for _ in range(ndim))
    stride = tuple(2 ** draw(st.integers(0, 4)) for _ in range(ndim))
    return shape, tile, tuple(draw(st.integers(0, 24)) for _ in range(ndim)), stride


@settings(max_examples=150)
@given(problems(), st.data())
def test_tiles_are_exact(problem: tuple[tuple[int, ...], ...], data: st.DataObject) -> None:
    shape, tile_shape, halo, stride = problem
    cuts = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    block = Box(tuple(c[0] for c in cuts), tuple(c[1] for c in cuts))
    if block.size == 0:
        block = Box.whole(shape)
    padded = padded_shape(shape, stride)
    assert all(0 <= p - n < s and p % s == 0 for p, n, s in zip(padded, shape, stride, strict=True))
    seen = np.zeros(shape, np.uint8)
    for tile in tiles_of(block, tile_shape, shape, halo, stride):
        seen[tile.valid.slices] += 1
        assert all(n <= t for n, t in zip(tile.valid.shape, tile_shape, strict=True))
        assert Box.whole(padded).contains(tile.read)
        assert tile.read.contains(tile.valid.grow(halo).clip(padded)), (
            "the halo is read wherever there is one"
        )
        for a, b, s in zip(tile.read.start, tile.read.stop, stride, strict=True):
            assert a % s == 0
            assert b % s == 0
        # Widened to the grid, by less than a step: reading more would cost and change nothing.
        need = tile.valid.grow(halo).clip(padded)
        assert all(a - b < s for a, b, s in zip(need.start, tile.read.start, stride, strict=True))
        assert all(a - b < s for a, b, s in zip(tile.read.stop, need.stop, stride, strict=True))
        inside = tile.inside(shape)
        padding = tile.padding(shape)
        assert all(before == 0 <= after for before, after in padding)
        total = [n + after for n, (_, after) in zip(inside.shape, padding, strict=True)]
        assert tuple(total) == tile.read.shape
        assert all(
            after == 0 or stop == n for (_, after), stop, n in zip(padding, inside.stop, shape, strict=True)
        )
    expected = np.zeros(shape, np.uint8)
    expected[block.slices] = 1
    assert np.array_equal(seen, expected), "valid parts are disjoint and cover the block"


def test_one_tile_over_everything_reads_the_padded_image() -> None:
    tile = tile_for(Box.whole((10, 13)), (10, 13), (24, 24), (4, 4))
    assert tile.read == Box.whole((12, 16))
    assert tile.padding((10, 13)) == ((0, 2), (0, 3))
