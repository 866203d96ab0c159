"""Where the centres of blind spots lie: one in every box of a grid that shifts from patch to patch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .hashed_draws import mix

FRACTION_BITS = 16
# Keeps the draws along z apart from those along y and x, which share the halves of one 32-bit hash.
_ALONG_Z = 0x5BD1E995


@dataclass(frozen=True, slots=True)
class BoxGrid:
    """The boxes that every patch of one size is divided into, some of them beyond its border.

    Attributes
    ----------
    step : int
        Extent of a box in pixels, in fixed point.
    boxes : tuple of int
        How many there are along each axis.
    number : Tensor of int64, shape (boxes,)
    corner : tuple of Tensor of int64, shape (boxes,)
        Place in the grid along each axis, in fixed point.
    """

    step: int
    boxes: tuple[int, ...]
    number: Tensor
    corner: tuple[Tensor, ...]


@lru_cache(maxsize=16)
def box_grid(size: tuple[int, ...], percentage: float, device: torch.device) -> BoxGrid:
    """Return the boxes of patches of this size, one for every centre asked for and those at the border."""
    volume = 100.0 / percentage
    step = round((math.sqrt(volume) if len(size) == 2 else math.cbrt(volume)) * 2**FRACTION_BITS)
    boxes = tuple((n << FRACTION_BITS) // step + 2 for n in size)
    places = np.unravel_index(np.arange(math.prod(boxes)), boxes)
    corner = tuple(torch.from_numpy(place << FRACTION_BITS).to(device) for place in places)
    return BoxGrid(step, boxes, torch.arange(math.prod(boxes), device=device), corner)


def draw_centres(keys: Tensor, size: tuple[int, ...], percentage: float) -> tuple[list[Tensor], Tensor]:
    """Draw one centre in each box of ``100 / percentage`` pixels, uniform within it.

    In fixed point with 16 fractional bits: a centre lies at (box + uniform - shift) x step on every axis.

    Parameters
    ----------
    keys : Tensor of int64, shape (n,)
        One 32-bit key per patch.
    size : tuple of int
        ([z,] y, x) of a patch in pixels.
    percentage : float
        Centres, per cent of the pixels.

    Returns
    -------
    position : list of Tensor of int64, shape (n, boxes)
        The centres' pixels, one tensor per axis; beyond the patch's border too.
    exists : Tensor of bool, shape (n, boxes)
        Which of them lie in the patch. Two of a patch may share a pixel: rarely, where few are asked for.
    """
    grid = box_grid(size, percentage, keys.device)
    drawn = mix(mix(keys + 1)[:, None] ^ grid.number)
    shift = mix(keys + 2)[:, None]
    parts = [(drawn & 0xFFFF, shift & 0xFFFF), (drawn >> 16, shift >> 16)]
    if len(size) == 3:
        parts.insert(0, (mix(drawn ^ _ALONG_Z) & 0xFFFF, mix(shift ^ _ALONG_Z) & 0xFFFF))
    position = [
        ((corner - moved + uniform) * grid.step) >> (2 * FRACTION_BITS)
        for corner, (uniform, moved) in zip(grid.corner, parts, strict=True)
    ]
    exists = torch.ones_like(drawn, dtype=torch.bool)
    for axis, n in zip(position, size, strict=True):
        exists &= (axis >= 0) & (axis < n)
    return position, exists
