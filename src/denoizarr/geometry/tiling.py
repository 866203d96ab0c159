"""Tiles of a network: what to read so that what is kept equals the network run over the whole image.

Along one axis, with halo ``h`` and stride ``s`` (the network halves its input log2(s) times)::

    image  |0 ........................................................ n|    padded far end
           |--------|--------|--------|--------|--------|--------|------|......|   grid of s
                    :        [====== valid ======]      :
                    [== h' ==|====================|= h ==]    read: valid grown by h,
                    start on the grid of s                    widened to the grid, cut at
                                                              the padded image's two ends

The near and far ends of the *padded* image are the only borders that the network pads with zeros itself,
in a tile as in the whole image, so a tile that ends there ends there in both. The far end is padded once,
with edge values, to a multiple of the stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .boxes import Box
from .grids import Grid, round_up


@dataclass(frozen=True, slots=True)
class Tile:
    """One run of the network.

    Attributes
    ----------
    valid : Box
        Voxels of the image that this tile computes exactly.
    read : Box
        Voxels of the padded image that it needs; contains ``valid``, starts and ends on the stride grid.
    """

    valid: Box
    read: Box

    def inside(self, shape: Sequence[int]) -> Box:
        """Return the part of ``read`` that the image holds; the rest is padded with edge values."""
        return self.read.clip(shape)

    def padding(self, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Return the edge padding per axis, (before, after) in voxels; only after is ever positive."""
        inside = self.inside(shape)
        return tuple((0, b - d) for b, d in zip(self.read.stop, inside.stop, strict=True))


def padded_shape(shape: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of the virtual whole image: each axis rounded up to the stride."""
    return tuple(round_up(n, s) for n, s in zip(shape, stride, strict=True))


def tile_for(valid: Box, shape: Sequence[int], halo: Sequence[int], stride: Sequence[int]) -> Tile:
    """Return the tile that computes ``valid`` exactly.

    Parameters
    ----------
    valid : Box
        Wanted voxels, inside the image; need not lie on the stride grid.
    shape, halo, stride : sequence of int
        The image's shape and the network's halo and stride, one per axis, in voxels.
    """
    padded = padded_shape(shape, stride)
    start = tuple(max((a - h) // s * s, 0) for a, h, s in zip(valid.start, halo, stride, strict=True))
    stop = tuple(
        min(round_up(b + h, s), n) for b, h, s, n in zip(valid.stop, halo, stride, padded, strict=True)
    )
    return Tile(valid, Box(start, stop))


def tiles_of(
    box: Box, tile_shape: Sequence[int], shape: Sequence[int], halo: Sequence[int], stride: Sequence[int]
) -> list[Tile]:
    """Return the tiles that cover ``box`` once, their valid parts at most ``tile_shape``, in C order."""
    grid = Grid(box.shape, tuple(min(t, n) for t, n in zip(tile_shape, box.shape, strict=True)))
    return [tile_for(part.shift(box.start), shape, halo, stride) for part in grid]
