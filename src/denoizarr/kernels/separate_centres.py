"""Centres of blind spots whose kernels neither overlap nor touch: a maximal subset of those drawn."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .blind_spot_centres import FRACTION_BITS, box_grid, draw_centres
from .compiled import compiled
from .hashed_draws import mix, on_host

# Rounds of thinning that end nearly every draw; to ask whether one is needed makes the host wait for cuda.
_ROUNDS_UNASKED = 8
# What a trial of separate centres counts, and how often it halves the range of what to draw.
_CENTRES_TRIED, _HALVINGS = 10_000, 7


def separate_percentages(
    kernel: NDArray[np.bool_], size: tuple[int, ...], percentage: float
) -> tuple[float, float]:
    """Return how many centres to draw for ``percentage`` to be left by :func:`thin_out`, and how many are.

    Found by trial on patches of this size, to about one per cent of itself; at most four times as many are
    drawn, beyond which hardly more would be left.

    Returns
    -------
    drawn, left : float
        Per cent of the pixels. ``left`` falls short of ``percentage`` where there is no room for more.
    """
    return _separate_percentages(kernel.tobytes(), kernel.shape, size, percentage)


@lru_cache(maxsize=16)
def _separate_percentages(
    kernel_bytes: bytes, extents: tuple[int, ...], size: tuple[int, ...], percentage: float
) -> tuple[float, float]:
    kernel = np.frombuffer(kernel_bytes, np.bool_).reshape(extents)
    pixels = math.prod(size)
    n_patches = math.ceil(_CENTRES_TRIED / (pixels * percentage / 100))
    keys = mix(torch.arange(n_patches))

    def left_of(drawn: float) -> float:
        position, exists = draw_centres(keys, size, drawn)
        kept = thin_out(position, exists, keys, kernel, size, drawn)
        return 100.0 * int(kept.sum()) / (pixels * n_patches)

    low, high = percentage, min(4 * percentage, 100.0)
    if left_of(high) <= percentage:
        return high, left_of(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if left_of(middle) < percentage else (low, middle)
    return high, left_of(high)


def thin_out(
    position: list[Tensor],
    exists: Tensor,
    keys: Tensor,
    kernel: NDArray[np.bool_],
    size: tuple[int, ...],
    percentage: float,
) -> Tensor:
    """Keep centres whose footprints neither overlap nor touch, not even by a corner; no more could be kept.

    Every centre has a priority from the hash, and in its order each is kept that no kept one rules out. A
    footprint is the kernel, cut by no border.

    Parameters
    ----------
    position, exists
        As :func:`draw_centres` returns them for these ``size`` and ``percentage``.
    keys : Tensor of int64, shape (n,)
    kernel : ndarray of bool, odd extents ([z,] y, x)

    Returns
    -------
    Tensor of bool, shape (n, boxes)
        Which centres are kept, a maximal subset of those that exist.
    """
    number = torch.arange(exists.shape[1], device=exists.device)
    # Boxes come last, so that no two priorities are alike.
    priority = (mix(mix(keys + 3)[:, None] ^ number) << 24) | number
    rivals = _rivals_of(kernel.tobytes(), kernel.shape, exists.device)
    if on_host(exists):
        return _thin_out_in_order(position, exists, priority, rivals, size)
    return _thin_out_in_rounds(position, exists, priority, rivals, size, percentage)


@lru_cache(maxsize=16)
def _rivals_of(kernel_bytes: bytes, extents: tuple[int, ...], device: torch.device) -> Tensor:
    """Return which steps between two centres make them rivals, a map that reaches one extent to either side.

    Footprints touch where a step between two of the kernel's pixels comes within one pixel, along every axis,
    of the step between their centres.
    """
    pixels = np.argwhere(np.frombuffer(kernel_bytes, np.bool_).reshape(extents))
    rivals = np.zeros([2 * n + 3 for n in extents], np.bool_)
    rivals[tuple((pixels[:, None] - pixels + np.array(extents) + 1).reshape(-1, len(extents)).T)] = True
    for axis in range(len(extents)):
        rivals = rivals | np.roll(rivals, 1, axis) | np.roll(rivals, -1, axis)
    rivals = rivals[(slice(1, -1),) * len(extents)]
    return torch.from_numpy(np.ascontiguousarray(rivals)).to(device)


# ---- on the host: one centre after another


def _thin_out_in_order(
    position: list[Tensor], exists: Tensor, priority: Tensor, rivals: Tensor, size: tuple[int, ...]
) -> Tensor:
    margin = [n // 2 for n in rivals.shape]
    wide = [n + 2 * m for n, m in zip(size, margin, strict=True)]
    strides = [math.prod(wide[axis + 1 :]) for axis in range(len(wide))]
    patch, box = torch.nonzero(exists, as_tuple=True)
    place = patch * math.prod(wide)
    for axis, m, stride in zip(position, margin, strides, strict=True):
        place += (axis[patch, box] + m) * stride
    order = torch.argsort(priority[patch, box], descending=True)
    taken = np.zeros(len(exists) * math.prod(wide), np.bool_)
    kept = torch.zeros(len(place), dtype=torch.bool)
    steps = (np.argwhere(rivals.numpy()) - margin) @ strides
    _keep_in_order(order.numpy(), place.numpy(), steps, taken, kept.numpy())
    return torch.zeros_like(exists).index_put_((patch, box), kept)


@compiled
def _keep_in_order(
    order: NDArray[np.int64],
    place: NDArray[np.int64],
    steps: NDArray[np.int64],
    taken: NDArray[np.bool_],
    kept: NDArray[np.bool_],
) -> None:
    for i in order:
        if not taken[place[i]]:
            kept[i] = True
            for step in steps:
                taken[place[i] + step] = True


# ---- on other devices: all at once, in rounds


def _thin_out_in_rounds(
    position: list[Tensor],
    exists: Tensor,
    priority: Tensor,
    rivals: Tensor,
    size: tuple[int, ...],
    percentage: float,
) -> Tensor:
    """In every round, keep those that come before all their rivals, and drop these (Luby 1986)."""
    extents = tuple(n // 2 for n in rivals.shape)
    neighbour = _neighbours(extents, size, percentage, exists.device)
    # A last place for the boxes that a box at the border lacks.
    there = functional.pad(exists, (0, 1))
    rival = there[:, neighbour] & exists[..., None]
    where = torch.zeros_like(neighbour)
    for axis, extent in zip(position, extents, strict=True):
        away = functional.pad(axis, (0, 1))[:, neighbour] - axis[..., None]
        rival &= away.abs() <= extent
        where = where * (2 * extent + 1) + away.clamp(-extent, extent) + extent
    rival &= rivals.view(-1)[where]
    kept, waiting = torch.zeros_like(exists), exists
    rounds = 0
    while rounds < _ROUNDS_UNASKED or bool(waiting.any()):
        rank = functional.pad(torch.where(waiting, priority, -1), (0, 1), value=-1)
        best = torch.where(rival, rank[:, neighbour], -1).amax(-1)
        won = waiting & (priority > best)
        kept = kept | won
        lost = (rival & functional.pad(won, (0, 1))[:, neighbour]).any(-1)
        waiting = waiting & ~won & ~lost
        rounds += 1
    return kept


@lru_cache(maxsize=16)
def _neighbours(
    extents: tuple[int, ...], size: tuple[int, ...], percentage: float, device: torch.device
) -> Tensor:
    """Return the boxes that may hold rivals of every box's centre, (boxes, near)."""
    grid = box_grid(size, percentage, device)
    # Centres of boxes k apart are more than (k - 1) steps apart, less the pixel that rounding down costs.
    reach = [((n + 1) << FRACTION_BITS) // grid.step + 1 for n in extents]
    offsets = np.argwhere(np.ones([2 * r + 1 for r in reach], np.bool_)) - reach
    offsets = offsets[offsets.any(1)]
    box = np.argwhere(np.ones(grid.boxes, np.bool_))
    near = box[:, None] + offsets
    inside = ((near >= 0) & (near < np.array(grid.boxes))).all(-1)
    strides = np.array([math.prod(grid.boxes[axis + 1 :]) for axis in range(len(extents))])
    return torch.from_numpy(np.where(inside, near @ strides, len(box))).to(device)
