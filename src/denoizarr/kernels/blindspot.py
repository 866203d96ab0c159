"""Blind spots: which pixels a network must predict without seeing them, and what stands in their place.

For every predicted pixel (a centre, C) the pixels whose noise is correlated with its own are hidden (#),
and each hidden pixel gets the value of a nearby pixel (v) that is neither hidden nor inside the kernel as
seen from the pixel to be filled, because noise inside the kernel is the same noise::

    . . . v . . . . . . .
    . # # # # C # # # # .      kernel 1 x 9: noise correlated along x
    . . . . . . . . v . .

Source of the idea: Krull et al. 2019 (Noise2Void), Broaddus et al. 2020 (structN2V), Hoeck et al. 2022
(N2V2, the median). Everything is drawn by an integer hash of (seed, epoch, patch number, pixel), so that a
draw does not depend on the batch it is made in, nor on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .blind_spot_centres import draw_centres
from .blind_spot_fill import values_for
from .blind_spot_layout import hide, layout_of
from .blind_spot_rules import (
    STRATEGIES,
    check_blind_spot,
    check_kernel,
    largest_percentage,
    strategy_named,
    usual_percentage,
)
from .hashed_draws import keys_of, on_host
from .separate_centres import separate_percentages, thin_out
from .symmetries import Symmetry, symmetries_of, turn_patches

__all__ = [
    "STRATEGIES",
    "Symmetry",
    "check_blind_spot",
    "check_kernel",
    "draw_blind_spots",
    "largest_percentage",
    "reached_percentage",
    "strategy_named",
    "symmetries_of",
    "turn_patches",
    "usual_percentage",
]


def draw_blind_spots(
    patches: Tensor,
    kernel: NDArray[np.bool_],
    percentage: float,
    strategy: str | int = "uniform",
    *,
    seed: int,
    epoch: int,
    numbers: Tensor,
    separate: bool = False,
) -> tuple[Tensor, Tensor]:
    """Hide pixels of every patch of a batch, on the patches' own device, which the host need not wait for.

    Centres are stratified: a grid of square boxes (cubes in 3D) of ``100 / percentage`` pixels, shifted at
    random for every patch, has one centre in each box, uniform within it; all pixels are equally likely to be
    centres (with ``separate`` those at a patch's border are likelier, by an eighth at 10 %). Centres of
    neighbouring boxes may fall on one pixel: of 10 % asked, 9.9 are there, of 50 %, 45.

    Parameters
    ----------
    patches : Tensor of shape (n, c, [z,] y, x), floating
        Normalised intensities; the channels of a patch share its blind spots.
    kernel : ndarray of bool, odd extents ([z,] y, x)
        True = hidden around every centre; a single pixel is Noise2Void. Checked by :func:`check_blind_spot`.
    percentage : float
        Centres, per cent of the pixels.
    strategy : {"uniform", "median", "mean", "zero", "random"} or 0, 1, 2 (mean, zero, random)
        What a hidden pixel becomes: one of the usable pixels nearby, their median (the lower of two) or mean;
        zero, which is the image's mean where patches are normalised; any visible pixel of the patch.
        Usable are the visible ones among the 120 (in 3D 124) nearest pixels outside the kernel, which for one
        pixel is a window of 11 x 11 (5 x 5 x 5); where none is visible, the mean of the patch's visible
        pixels stands in.
    seed, epoch : int
    numbers : Tensor of int64, shape (n,)
        The patches' numbers within the epoch; with seed and epoch they decide every draw.
    separate : bool
        Draw more centres and keep those whose kernels neither overlap nor touch, not even by a corner: a
        maximal subset of those drawn. :func:`reached_percentage` says how many are left.

    Returns
    -------
    hidden : Tensor of shape (n, c, [z,] y, x)
        The patches with every hidden pixel replaced. No value in it depends on a hidden pixel's.
    centres : Tensor of bool, shape (n, 1, [z,] y, x)
        The pixels to predict.

    Raises
    ------
    BadRequest
        No such strategy, or the kernel has other axes than the patches.
    """
    strategy = strategy_named(strategy)
    size, device = tuple(patches.shape[2:]), patches.device
    check_kernel(kernel, len(size))
    keys = keys_of(seed, epoch, numbers.to(device, non_blocking=True), purpose=1)
    drawn = separate_percentages(kernel, size, percentage)[0] if separate else percentage
    position, exists = draw_centres(keys, size, drawn)
    if separate:
        exists = thin_out(position, exists, keys, kernel, size, drawn)
    layout = layout_of(kernel, size, device)
    centre = torch.full_like(position[0], layout.first_place)
    for axis, stride in zip(position, layout.map_strides, strict=True):
        centre += axis * stride
    hidden = hide(*_listed(centre, exists), layout, len(patches))

    row = functional.pad(patches.flatten(2), (0, 1)).transpose(0, 1).flatten(1)
    filled = row.clone()
    if strategy == "zero":
        filled.index_fill_(1, hidden.target, 0)
    else:
        filled.index_copy_(1, hidden.target, values_for(hidden, row, patches, layout, keys, strategy))
    filled = filled.view(patches.shape[1], len(patches), -1)[..., :-1].transpose(0, 1)
    middle = hidden.target.view(-1, len(layout.kernel_in_map))[:, layout.centre]
    centres = torch.zeros(len(patches) * (layout.pixels + 1), dtype=torch.bool, device=device)
    centres = centres.index_fill_(0, middle, True).view(len(patches), -1)[:, :-1]
    return filled.reshape(patches.shape).contiguous(), centres.reshape(-1, 1, *size).contiguous()


def reached_percentage(
    kernel: NDArray[np.bool_], patch_size: Sequence[int], percentage: float, *, separate: bool = False
) -> float:
    """Return the percentage of centres that :func:`draw_blind_spots` reaches, to one per cent of itself.

    Less than ``percentage`` where footprints must be ``separate`` and the patch has no room for so many.
    """
    if not separate:
        return percentage
    return separate_percentages(kernel, tuple(patch_size), percentage)[1]


def _listed(centre: Tensor, exists: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return patch and place of every centre, and which of these exist: on the host only those are listed."""
    if on_host(centre):
        return torch.nonzero(exists)[:, 0], centre[exists], None
    patch = torch.arange(len(centre), device=centre.device)[:, None].expand_as(centre)
    return patch.reshape(-1), centre.reshape(-1), exists.reshape(-1)
