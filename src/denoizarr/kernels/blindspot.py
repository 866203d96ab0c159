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
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from denoizarr.errors import BadRequest, PatchTooLarge

STRATEGIES = ("uniform", "median", "mean", "zero", "random")
_SEED_PAGE_NUMBERS = {0: "mean", 1: "zero", 2: "random"}

# As many pixels as Noise2Void's window of 11 x 11 has around its centre.
_WINDOW_PIXELS = 120
_TRIES = 4
# Entries (hidden pixel, window offset) of a table that are made at once: about 100 MB.
_MOST_TABLE_ENTRIES = 4_000_000
_LOW_32 = 0xFFFFFFFF

Symmetry = tuple[int, bool]
"""Quarter turns (0 to 3) after a flip along x, or none."""


def strategy_named(strategy: str | int) -> str:
    """Return the name of a masking strategy given by name or by the number 0, 1, 2 (mean, zero, random).

    Raises
    ------
    BadRequest
        There is no such strategy; the message lists those there are.
    """
    name = _SEED_PAGE_NUMBERS.get(strategy) if type(strategy) is int else strategy
    if name not in STRATEGIES:
        raise BadRequest(
            "no such masking strategy",
            where="masking_strategy",
            got=repr(strategy),
            expected=f"{', '.join(STRATEGIES)}, or 0, 1, 2 for mean, zero, random",
        )
    return str(name)


def check_kernel(kernel: NDArray[np.bool_]) -> None:
    """Check that a blind-spot kernel is a 2D boolean array of odd extents whose centre is True.

    Raises
    ------
    BadRequest
        It is not.
    """
    if kernel.dtype != np.bool_ or kernel.ndim != 2 or 0 in kernel.shape:
        raise BadRequest(
            "a blind-spot kernel is a 2D boolean array",
            where="blind_spot",
            got=f"{kernel.dtype} of shape {kernel.shape}",
        )
    if any(n % 2 == 0 for n in kernel.shape):
        raise BadRequest(
            "a blind-spot kernel has a centre pixel, so its extents are odd",
            where="blind_spot",
            got=f"shape {kernel.shape}",
            remedy="pad it with a row or column of False",
        )
    if not kernel[kernel.shape[0] // 2, kernel.shape[1] // 2]:
        raise BadRequest(
            "the centre of a blind-spot kernel is the predicted pixel, which must be hidden",
            where="blind_spot",
            got="False",
            expected="True",
        )


def check_blind_spot(kernel: NDArray[np.bool_], patch_size: Sequence[int], percentage: float) -> None:
    """Check that blind spots of this kernel can be drawn in patches of this size.

    Parameters
    ----------
    kernel : ndarray of bool, odd extents (y, x)
        True = hidden; the centre is True.
    patch_size : sequence of int
        (y, x) in pixels.
    percentage : float
        Predicted pixels (centres), per cent of the patch.

    Raises
    ------
    PatchTooLarge
        The kernel is wider than the patch.
    BadRequest
        The kernel is not valid, no centre would be drawn, or more than half of the patch would be hidden.
    """
    check_kernel(kernel)
    if any(k > p for k, p in zip(kernel.shape, patch_size, strict=True)):
        raise PatchTooLarge(
            "the blind-spot kernel is wider than the patch",
            where="blind_spot",
            got=f"{kernel.shape} in patches of {tuple(patch_size)}",
            remedy="use a larger patch_size",
        )
    pixels = patch_size[0] * patch_size[1]
    if not percentage * pixels >= 100:
        raise BadRequest(
            "not one pixel a patch would be predicted",
            where="mask_percentage",
            got=percentage,
            expected=f"at least {100 / pixels:.3g} for patches of {tuple(patch_size)}",
        )
    if not percentage <= largest_percentage(kernel):
        raise BadRequest(
            "more than half of every patch would be hidden",
            where="mask_percentage",
            got=f"{percentage} % centres, each hiding {int(kernel.sum())} pixels",
            expected=f"at most {largest_percentage(kernel):.3g} with this kernel",
            remedy="lower mask_percentage, which counts the predicted pixels only",
        )


def largest_percentage(kernel: NDArray[np.bool_]) -> float:
    """Return the largest percentage of centres that hides at most half of a patch."""
    return 50.0 / int(kernel.sum())


def symmetries_of(kernel: NDArray[np.bool_]) -> tuple[Symmetry, ...]:
    """Return the flips and quarter turns that leave the kernel unchanged; the first is the identity.

    Training may turn a patch only by these: any other would turn the noise and not the kernel.
    """
    side = max(kernel.shape)
    square = np.zeros((side, side), np.bool_)
    corner = [(side - n) // 2 for n in kernel.shape]
    square[corner[0] : corner[0] + kernel.shape[0], corner[1] : corner[1] + kernel.shape[1]] = kernel
    every = [(turns, flip) for flip in (False, True) for turns in range(4)]
    return tuple(
        (turns, flip)
        for turns, flip in every
        if np.array_equal(np.rot90(square[:, ::-1] if flip else square, turns), square)
    )


def turn_patches(
    patches: Tensor, symmetries: Sequence[Symmetry], *, seed: int, epoch: int, numbers: Tensor
) -> Tensor:
    """Turn every patch by one of the symmetries, drawn from (seed, epoch, patch number).

    Parameters
    ----------
    patches : Tensor of shape (n, c, y, x)
        Quarter turns are left out where y and x differ.
    symmetries : sequence of (quarter turns, flip)
        From :func:`symmetries_of`.
    numbers : Tensor of int64, shape (n,)
        The patches' numbers within the epoch.

    Returns
    -------
    Tensor
        Same shape and dtype.
    """
    usable = [s for s in symmetries if s[0] % 2 == 0 or patches.shape[-1] == patches.shape[-2]]
    if len(usable) < 2:
        return patches
    choice = _mix(_keys(seed, epoch, numbers.to(patches.device), purpose=3)) % len(usable)
    turned = patches.clone()
    for i, (turns, flip) in enumerate(usable):
        chosen = choice == i
        part = patches[chosen]
        turned[chosen] = torch.rot90(part.flip(-1) if flip else part, turns, (-2, -1))
    return turned


def draw_blind_spots(
    patches: Tensor,
    kernel: NDArray[np.bool_],
    percentage: float,
    strategy: str | int = "uniform",
    *,
    seed: int,
    epoch: int,
    numbers: Tensor,
) -> tuple[Tensor, Tensor]:
    """Hide pixels of every patch of a batch, on the patches' own device.

    Centres are stratified: a grid of square boxes of ``100 / percentage`` pixels, shifted at random for every
    patch, has one centre in each box, uniform within it; all pixels are equally likely to be centres.

    Parameters
    ----------
    patches : Tensor of shape (n, c, y, x), floating
        Normalised intensities; the channels of a patch share its blind spots.
    kernel : ndarray of bool, odd extents (y, x)
        True = hidden around every centre; ``[[True]]`` is Noise2Void. Checked by :func:`check_blind_spot`.
    percentage : float
        Centres, per cent of the pixels.
    strategy : {"uniform", "median", "mean", "zero", "random"} or 0, 1, 2 (mean, zero, random)
        What a hidden pixel becomes: one of the usable pixels nearby, their median (the lower of two) or mean;
        zero, which is the image's mean where patches are normalised; any visible pixel of the patch.
        Usable are the visible ones among the 120 nearest pixels outside the kernel, which for one pixel is a
        window of 11 x 11; where none is visible, the mean of the patch's visible pixels stands in.
    seed, epoch : int
    numbers : Tensor of int64, shape (n,)
        The patches' numbers within the epoch; with seed and epoch they decide every draw.

    Returns
    -------
    hidden : Tensor of shape (n, c, y, x)
        The patches with every hidden pixel replaced. No value in it depends on a hidden pixel's.
    centres : Tensor of bool, shape (n, 1, y, x)
        The pixels to predict.
    """
    strategy = strategy_named(strategy)
    keys = _keys(seed, epoch, numbers.to(patches.device), purpose=1)
    height, width = patches.shape[-2:]
    row, column, exists = _draw_centres(keys, (height, width), percentage)
    layout = _Layout.around(kernel, (height, width), patches.device)
    hidden = layout.hide(row, column, exists)
    filled = patches.clone(memory_format=torch.contiguous_format).flatten(2)
    if strategy in ("zero", "random"):
        inside = layout.inside(hidden)
        patch, flat = torch.nonzero(inside, as_tuple=True)
        values = torch.zeros(len(patch), patches.shape[1], dtype=patches.dtype, device=patches.device)
        if strategy == "random":
            values = _draw_visible(patches.flatten(2), inside, patch, flat, keys)
    else:
        patch, flat, values = _fill_from_nearby(patches, hidden, layout, keys, strategy)
    filled[patch, :, flat] = values
    centres = torch.zeros(len(patches), height * width, dtype=torch.bool, device=patches.device)
    number = torch.arange(len(patches), device=patches.device).unsqueeze(1).expand_as(exists)
    centres[number[exists], (row * width + column)[exists]] = True
    return filled.reshape(patches.shape), centres.reshape(-1, 1, height, width)


# ---- integer draws: 32-bit arithmetic in int64, the same on every device


def _mix(x: Tensor) -> Tensor:
    """Scramble integers in [0, 2**32); "lowbias32" of Wellons 2018, https://nullprogram.com/blog/2018/07/31.

    The second factor is 0x846ca68b less 2**32: the low 32 bits are the same and int64 never overflows.
    """
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _LOW_32
    x = x ^ (x >> 15)
    x = (x * (0x846CA68B - 2**32)) & _LOW_32
    return x ^ (x >> 16)


def _keys(seed: int, epoch: int, numbers: Tensor, *, purpose: int) -> Tensor:
    """Return one 32-bit key per patch."""
    key = torch.zeros_like(numbers)
    for word in (purpose, seed & _LOW_32, (seed >> 32) & _LOW_32, epoch & _LOW_32):
        key = _mix(key ^ word)
    for words in (numbers & _LOW_32, (numbers >> 32) & _LOW_32):
        key = _mix(key ^ words)
    return key


def _draw_centres(keys: Tensor, size: tuple[int, int], percentage: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, column and whether it lies in the patch, each (n, boxes), for one centre per box.

    In fixed point with 16 fractional bits: a centre lies at (box + uniform - shift) x step on either axis.
    """
    step = round(np.sqrt(100.0 / percentage) * 2**16)
    boxes = [(n << 16) // step + 2 for n in size]
    index = torch.arange(boxes[0] * boxes[1], device=keys.device)
    box = (index // boxes[1], index % boxes[1])
    drawn = _mix(_mix(keys + 1)[:, None] ^ index)
    shift = _mix(keys + 2)
    parts = ((drawn & 0xFFFF, shift & 0xFFFF), (drawn >> 16, shift >> 16))
    position = [
        (((box[axis] << 16) + uniform - moved[:, None]) * step) >> 32
        for axis, (uniform, moved) in enumerate(parts)
    ]
    row, column = position
    exists = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
    return row, column, exists


def _draw_visible(pixels: Tensor, hidden: Tensor, patch: Tensor, flat: Tensor, keys: Tensor) -> Tensor:
    """Return, for every hidden pixel, a visible value from anywhere in its patch, (m, c), or 0."""
    count = (~hidden).sum(1)
    # Visible pixels of all patches in a row; a patch's own begin where those of the patches before it end.
    visible = torch.nonzero(functional.pad(~hidden, (0, 1), value=True))[:, 1]
    start = torch.cumsum(count + 1, 0) - (count + 1)
    rank = _mix(keys[patch] ^ _mix(flat)) % count[patch].clamp(min=1)
    source = visible[start[patch] + rank]
    return functional.pad(pixels, (0, 1))[patch, :, source]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Offsets of the kernel and of the window around a hidden pixel, as steps along flattened patches.

    The hidden map has a margin all round that counts as hidden, so that nothing has to test for the border.
    """

    size: tuple[int, int]
    margin: tuple[int, int]
    kernel_in_map: Tensor
    window_in_map: Tensor
    window_in_patch: Tensor

    @classmethod
    def around(cls, kernel: NDArray[np.bool_], size: tuple[int, int], device: torch.device) -> _Layout:
        half = np.array(kernel.shape) // 2
        stencil = np.argwhere(kernel) - half
        window = _window_around(kernel)
        reach = np.maximum(half, np.abs(window).max(0))
        map_width = size[1] + 2 * int(reach[1])
        in_map, in_patch = np.array([map_width, 1]), np.array([size[1], 1])
        return cls(
            size,
            (int(reach[0]), int(reach[1])),
            torch.from_numpy(stencil @ in_map).to(device),
            torch.from_numpy(window @ in_map).to(device),
            torch.from_numpy(window @ in_patch).to(device),
        )

    def hide(self, row: Tensor, column: Tensor, exists: Tensor) -> Tensor:
        """Return the hidden map with its margin, bool (n, y + margins, x + margins)."""
        (height, width), (above, left) = self.size, self.margin
        hidden = torch.ones(
            len(row), height + 2 * above, width + 2 * left, dtype=torch.bool, device=row.device
        )
        hidden[:, above : above + height, left : left + width] = False
        number = torch.arange(len(row), device=row.device).unsqueeze(1).expand_as(exists)[exists]
        centre = self.in_map(number, row[exists], column[exists])
        hidden.view(-1)[(centre[:, None] + self.kernel_in_map).reshape(-1)] = True
        return hidden

    def inside(self, hidden: Tensor) -> Tensor:
        """Return the hidden map without its margin, flattened: bool (n, y * x)."""
        (height, width), (above, left) = self.size, self.margin
        return hidden[:, above : above + height, left : left + width].flatten(1)

    def in_map(self, patch: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Return where pixels of the patches lie in the flattened hidden map."""
        (height, width), (above, left) = self.size, self.margin
        return (patch * (height + 2 * above) + row + above) * (width + 2 * left) + column + left


def _window_around(kernel: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the offsets (y, x) of the nearest pixels outside the kernel, in square rings."""
    half = np.array(kernel.shape) // 2
    # Correlation knows no direction: what the kernel spares on one side is the same noise on the other.
    correlated = np.pad(kernel | kernel[::-1, ::-1], 6)
    free = np.argwhere(~correlated) - half - 6
    ring = np.abs(free).max(1)
    nearest: NDArray[np.int64] = free[np.lexsort((free[:, 1], free[:, 0], (free**2).sum(1), ring))]
    return nearest[:_WINDOW_PIXELS]


def _draw_nearby(hidden: Tensor, here: Tensor, layout: _Layout, hashes: Tensor) -> Tensor:
    """Return, for every hidden pixel, an offset into its window that is visible, uniform among those; or -1.

    Parameters
    ----------
    hidden : Tensor of bool
        The hidden map with its margin.
    here, hashes : Tensor of int64, shape (m,)
        Where the hidden pixels lie in the flattened map, and a hash of each.
    """
    visible, window = ~hidden.view(-1), layout.window_in_map
    chosen = torch.full_like(here, -1)
    # Rejection: a try succeeds more often than not, so that few pixels need the whole window looked at.
    for attempt in range(_TRIES):
        drawn = _mix(hashes ^ attempt) % len(window)
        chosen = torch.where((chosen < 0) & visible[here + window[drawn]], drawn, chosen)
    left = torch.nonzero(chosen < 0)[:, 0]
    if len(left):
        counted = torch.cumsum(visible[here[left, None] + window], 1)
        rank = _mix(hashes[left] ^ _TRIES) % counted[:, -1].clamp(min=1)
        first = torch.searchsorted(counted, rank[:, None], right=True)[:, 0]
        chosen[left] = torch.where(counted[:, -1] > 0, first, -1)
    return chosen


def _fill_from_nearby(
    patches: Tensor, hidden: Tensor, layout: _Layout, keys: Tensor, strategy: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return number of the patch, flat position and values (m, c) of every hidden pixel."""
    inside = layout.inside(hidden)
    patch, flat = torch.nonzero(inside, as_tuple=True)
    here = layout.in_map(patch, flat // layout.size[1], flat % layout.size[1])
    pixels = patches.flatten(2)
    if strategy == "uniform":
        chosen = _draw_nearby(hidden, here, layout, _mix(keys[patch] ^ _mix(flat)))
        found = chosen >= 0
        source = torch.where(found, flat + layout.window_in_patch[chosen.clamp(min=0)], 0)
        values = pixels[patch, :, source]
    else:
        rows = max(_MOST_TABLE_ENTRIES // max(len(layout.window_in_map), 1), 1)
        summarise = _mean_nearby if strategy == "mean" else _median_nearby
        parts = [
            summarise(pixels, ~hidden.view(-1), p, f, h, layout)
            for p, f, h in zip(*(torch.split(part, rows) for part in (patch, flat, here)), strict=True)
        ]
        values = torch.cat(parts)
        found = torch.isfinite(values).all(1)
    if not bool(found.all()):
        visible = ~inside.unsqueeze(1)
        mean = (pixels * visible).sum(2) / visible.sum(2).clamp(min=1)
        values = torch.where(found[:, None], values, mean[patch])
    return patch, flat, values


def _mean_nearby(
    pixels: Tensor, visible: Tensor, patch: Tensor, flat: Tensor, here: Tensor, layout: _Layout
) -> Tensor:
    """Return the mean of every hidden pixel's usable window, (m, c); NaN where it is empty."""
    usable = visible[here[:, None] + layout.window_in_map]
    source = torch.where(usable, flat[:, None] + layout.window_in_patch, 0)
    count = usable.sum(1).to(pixels.dtype)
    sums = [
        torch.where(usable, channel[patch[:, None], source], 0).sum(1) / count for channel in pixels.unbind(1)
    ]
    return torch.stack(sums, 1)


def _median_nearby(
    pixels: Tensor, visible: Tensor, patch: Tensor, flat: Tensor, here: Tensor, layout: _Layout
) -> Tensor:
    """Return the (lower) median of every hidden pixel's usable window, (m, c); NaN where it is empty."""
    usable = visible[here[:, None] + layout.window_in_map]
    source = torch.where(usable, flat[:, None] + layout.window_in_patch, 0)
    medians = [
        torch.where(usable, channel[patch[:, None], source], torch.nan).nanmedian(1).values
        for channel in pixels.unbind(1)
    ]
    return torch.stack(medians, 1)
