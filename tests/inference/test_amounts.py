"""What a cut costs is what its blocks and tiles cost, each looked at by itself."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import Grid
from denoizarr.geometry.tiling import tile_for, tiles_of
from denoizarr.inference.amounts import Cut, amounts_of, tile_sides


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    """Shapes 1 to 97, odd and uneven; the first axis is one that the network does not know."""
    ndim = draw(st.integers(1, 2))
    stride = tuple(2 ** draw(st.integers(0, 4)) for _ in range(ndim))
    tile = tuple(s * draw(st.integers(1, 5)) for s in stride)
    chunks = tuple(draw(st.integers(9, 60)) for _ in range(ndim))
    return Cut(
        (draw(st.integers(1, 5)), *(draw(st.integers(1, 97)) for _ in range(ndim))),
        (draw(st.integers(1, 3)), *(draw(st.integers(7, 70)) for _ in range(ndim))),
        (1, *tile),
        (0, *(draw(st.integers(0, 30)) for _ in range(ndim))),
        (1, *stride),
        (draw(st.integers(1, 4)), *chunks),
        (0, *(draw(st.integers(0, c - 1)) for c in chunks)),
    )


@settings(max_examples=60)
@given(cuts())
def test_sums_along_axes_are_sums_over_blocks_and_tiles(cut: Cut) -> None:
    found = amounts_of(cut)
    blocks = list(Grid(cut.shape, cut.block))
    reads = [tile_for(b, cut.shape, cut.halo, cut.stride).inside(cut.shape) for b in blocks]
    tiles = [t for b in blocks for t in tiles_of(b, cut.tile, cut.shape, cut.halo, cut.stride)]
    # Chunks by hand: those of a grid that began ``offset`` voxels before the image.
    stored = Grid(tuple(n + o for n, o in zip(cut.shape, cut.offset, strict=True)), cut.chunks)
    touched = [len(list(stored.covering(box.shift(cut.offset)))) for box in reads]
    assert found.blocks == len(blocks)
    assert found.tiles == len(tiles)
    assert found.computed_voxels == sum(t.read.size for t in tiles)
    assert found.read_voxels == sum(box.size for box in reads)
    assert found.decoded_chunks == sum(touched)
    assert found.tile_voxels == max(t.read.size for t in tiles)
    assert found.block_voxels == max(box.size for box in reads)
    assert found.block_chunks == max(touched)
    assert found.recompute_factor == pytest.approx(found.computed_voxels / prod(cut.shape))
    whole = len(list(stored.covering(Box.whole(cut.shape).shift(cut.offset))))
    assert found.read_amplification == pytest.approx(sum(touched) / whole)


def test_sides_cut_an_extent_into_equal_parts() -> None:
    assert tile_sides(100, 4, 8)[:4] == [100, 52, 36, 28]
    assert tile_sides(3, 4, 8) == [4]
    assert min(tile_sides(4096, 4, 8)) >= 8
    assert all(side % 16 == 0 for side in tile_sides(97, 16, 8))
    assert np.all(np.diff(tile_sides(2048, 4, 8)) < 0)
