"""Flips and quarter turns that leave a blind-spot kernel unchanged, and patches turned by them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .hashed_draws import keys_of, mix

Symmetry = tuple[int, bool] | tuple[int, bool, bool]
"""Quarter turns (0 to 3) from y to x after a flip along x, or none; with three axes also a flip along z."""


def symmetries_of(kernel: NDArray[np.bool_]) -> tuple[Symmetry, ...]:
    """Return the flips and quarter turns that leave the kernel unchanged; the first is the identity.

    Training may turn a patch only by these: any other would turn the noise and not the kernel. Quarter turns
    keep z, which is another physical axis than y and x.

    Parameters
    ----------
    kernel : ndarray of bool, odd extents ([z,] y, x)
        A 2D kernel has up to 8 symmetries, a 3D one up to 16.
    """
    side = max(kernel.shape[-2:])
    margins = [((side - n) // 2,) * 2 for n in kernel.shape[-2:]]
    square = np.pad(kernel, [(0, 0)] * (kernel.ndim - 2) + margins)
    flips = list(product((False, True), repeat=kernel.ndim - 1))
    # The flip along x varies slowest and that along z within it: pairs come in the order of two axes.
    every = [cast("Symmetry", (turns, *flip)) for flip in flips for turns in range(4)]
    return tuple(s for s in every if np.array_equal(_turned(square, s), square))


def turn_patches(
    patches: Tensor, symmetries: Sequence[Symmetry], *, seed: int, epoch: int, numbers: Tensor
) -> Tensor:
    """Turn every patch by one of the symmetries, drawn from (seed, epoch, patch number).

    Two tensors of patches of one size are turned alike where these are the same: patches and their targets.

    Parameters
    ----------
    patches : Tensor of shape (n, c, [z,] y, x)
        Quarter turns are left out where y and x differ.
    symmetries : sequence of Symmetry
        From :func:`symmetries_of`, of a kernel with as many axes.
    numbers : Tensor of int64, shape (n,)
        The patches' numbers within the epoch.

    Returns
    -------
    Tensor
        Same shape and dtype.
    """
    usable = tuple(s for s in symmetries if s[0] % 2 == 0 or patches.shape[-1] == patches.shape[-2])
    if len(usable) < 2:
        return patches
    keys = keys_of(seed, epoch, numbers.to(patches.device, non_blocking=True), purpose=3)
    steps = _steps_of(usable, patches.device)
    chosen = steps[:, mix(keys) % len(usable)].reshape(len(steps), -1, *(1,) * (patches.ndim - 1))
    # Every patch takes part in every step and keeps the outcome or not: nothing waits for the device.
    if any(turns % 2 for turns, *_ in usable):
        patches = torch.where(chosen[0], patches.transpose(-2, -1), patches)
    for axis in range(1, len(steps)):
        patches = torch.where(chosen[axis], patches.flip(-axis), patches)
    return patches


def _turned(array: NDArray[np.bool_], symmetry: Symmetry) -> NDArray[np.bool_]:
    turns, flip_x, *flip_z = symmetry
    array = array[..., ::-1] if flip_x else array
    array = array[..., ::-1, :, :] if any(flip_z) else array
    return np.rot90(array, turns, (-2, -1))


@lru_cache(maxsize=16)
def _steps_of(symmetries: tuple[Symmetry, ...], device: torch.device) -> Tensor:
    """Return what they are made of, bool (steps, symmetries): y and x swapped, then x, y [, z] flipped."""
    corner = np.arange(4).reshape(2, 2)
    rows = []
    for turns, flip_x, *flip_z in symmetries:
        wanted = np.rot90(corner[:, ::-1] if flip_x else corner, turns)
        for swap, along_x, along_y in product((False, True), repeat=3):
            made = corner.T if swap else corner
            made = made[:, ::-1] if along_x else made
            made = made[::-1] if along_y else made
            if np.array_equal(made, wanted):
                rows.append((swap, along_x, along_y, *flip_z))
    return torch.tensor(rows, dtype=torch.bool).T.contiguous().to(device)
