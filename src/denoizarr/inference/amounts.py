"""What a cut of an image into blocks and tiles costs: voxels computed, voxels read, chunks decoded.

What a tile or block reads is a product of intervals, one along every axis, so a sum over all of them is a
product of sums along the axes: a petabyte is counted as quickly, and as exactly, as a thumbnail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from denoizarr.geometry.grids import ceil_div, round_up

Integers = NDArray[np.int64]
# Parts that a block is cut into along an axis: all small numbers, then some.
_PARTS = (*range(1, 17), 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True, slots=True)
class AxisAmounts:
    """Sums along one axis; all in voxels but those that count.

    Attributes
    ----------
    computed : int
        Read by all tiles, the padding of the far end included.
    read : int
        Read by all blocks.
    decoded : int
        Chunks that all blocks touch, each counted by every block that does.
    chunks, tiles, blocks : int
        Numbers of them.
    widest_tile, widest_block : int
        The most that one of them reads.
    most_touched : int
        The most chunks that one block touches.
    """

    computed: int
    read: int
    decoded: int
    chunks: int
    tiles: int
    blocks: int
    widest_tile: int
    widest_block: int
    most_touched: int


@dataclass(frozen=True, slots=True)
class Cut:
    """How an image is cut, along all its dims; along those that the network does not know tiles are 1.

    Attributes
    ----------
    shape, block, tile, halo, stride : tuple of int
    chunks, offset : tuple of int
        Of the input: the unit of decoding, and where the image begins in its first one.
    """

    shape: tuple[int, ...]
    block: tuple[int, ...]
    tile: tuple[int, ...]
    halo: tuple[int, ...]
    stride: tuple[int, ...]
    chunks: tuple[int, ...]
    offset: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Amounts:
    """What a cut costs.

    Attributes
    ----------
    blocks, tiles : int
    computed_voxels : int
        That the network computes.
    read_voxels : int
        That blocks read, halos included.
    decoded_chunks : int
        That blocks decode, halos included.
    recompute_factor : float
        Voxels computed over voxels of the image.
    read_amplification : float
        Chunks decoded over chunks of the image.
    tile_voxels, block_voxels : int
        The most that one tile, or one block, reads.
    block_chunks : int
        The most chunks that one block touches.
    """

    blocks: int
    tiles: int
    computed_voxels: int
    read_voxels: int
    decoded_chunks: int
    recompute_factor: float
    read_amplification: float
    tile_voxels: int
    block_voxels: int
    block_chunks: int


def amounts_of(cut: Cut) -> Amounts:
    """Return what a cut costs, counted over all its blocks and tiles."""
    axes = [
        along_axis(*numbers)
        for numbers in zip(
            cut.shape, cut.block, cut.tile, cut.halo, cut.stride, cut.chunks, cut.offset, strict=True
        )
    ]
    computed, decoded = prod(a.computed for a in axes), prod(a.decoded for a in axes)
    return Amounts(
        prod(a.blocks for a in axes),
        prod(a.tiles for a in axes),
        computed,
        prod(a.read for a in axes),
        decoded,
        computed / prod(cut.shape),
        decoded / prod(a.chunks for a in axes),
        prod(a.widest_tile for a in axes),
        prod(a.widest_block for a in axes),
        prod(a.most_touched for a in axes),
    )


@lru_cache(maxsize=16384)
def along_axis(
    extent: int, block: int, tile: int, halo: int, stride: int, chunk: int, offset: int
) -> AxisAmounts:
    """Return the sums along one axis, by the rules of :mod:`denoizarr.geometry.tiling`."""
    padded = round_up(extent, stride)
    starts = np.arange(0, extent, block, dtype=np.int64)
    stops = np.minimum(starts + block, extent)
    firsts = (starts[:, None] + np.arange(0, min(block, extent), tile, dtype=np.int64)).ravel()
    ends = np.repeat(stops, len(firsts) // len(starts))
    inside = firsts < ends
    firsts, ends = firsts[inside], np.minimum(firsts[inside] + tile, ends[inside])
    tile_reads = _read_stop(ends, halo, stride, padded) - _read_start(firsts, halo, stride)
    begin = _read_start(starts, halo, stride)
    end = np.minimum(_read_stop(stops, halo, stride, padded), extent)
    touched = (end - 1 + offset) // chunk - (begin + offset) // chunk + 1
    return AxisAmounts(
        int(tile_reads.sum()),
        int((end - begin).sum()),
        int(touched.sum()),
        ceil_div(extent + offset, chunk),
        len(firsts),
        len(starts),
        int(tile_reads.max()),
        int((end - begin).max()),
        int(touched.max()),
    )


def _read_start(start: Integers, halo: int, stride: int) -> Integers:
    return np.maximum((start - halo) // stride * stride, 0)


def _read_stop(stop: Integers, halo: int, stride: int, padded: int) -> Integers:
    return np.minimum(-(-(stop + halo) // stride) * stride, padded)


def tile_sides(extent: int, stride: int, smallest: int) -> Sequence[int]:
    """Return sides of tiles, largest first, that cut an extent into 1, 2, 3, ... nearly equal parts.

    Parameters
    ----------
    extent : int
        Of a block, in voxels.
    stride, smallest : int
        Sides are multiples of ``stride``, and no smaller than ``smallest`` but where the extent is.
    """
    sides: list[int] = []
    for parts in _PARTS:
        side = round_up(ceil_div(extent, parts), stride)
        if side < smallest and sides:
            break
        if side not in sides:
            sides.append(side)
    return sides
