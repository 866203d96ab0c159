"""Which blind-spot kernels, percentages and masking strategies there are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from denoizarr.errors import BadRequest, PatchTooLarge

STRATEGIES = ("uniform", "median", "mean", "zero", "random")
_SEED_PAGE_NUMBERS = {0: "mean", 1: "zero", 2: "random"}

# Per cent of a patch, both measured on real images (docs/decisions/017-predicted-pixels.md).
_HIDDEN = 8.0
_FEWEST_PREDICTED = 1.5


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


def check_kernel(kernel: NDArray[np.bool_], ndim: int | None = None) -> None:
    """Check that a blind-spot kernel is a boolean array of odd extents whose centre is True.

    Parameters
    ----------
    kernel : ndarray
        Over (y, x) or (z, y, x).
    ndim : int, optional
        How many axes it must have; None: 2 or 3.

    Raises
    ------
    BadRequest
        It is not.
    """
    if kernel.dtype != np.bool_ or kernel.ndim not in (2, 3) or 0 in kernel.shape:
        raise BadRequest(
            "a blind-spot kernel is a 2D or 3D boolean array",
            where="blind_spot",
            got=f"{kernel.dtype} of shape {kernel.shape}",
        )
    if ndim is not None and kernel.ndim != ndim:
        raise BadRequest(
            "the blind-spot kernel has another number of axes than the patches",
            where="blind_spot",
            got=f"shape {kernel.shape}",
            expected=f"{ndim} axes",
            remedy="a kernel (y, x) of 3D patches is kernel[None]" if kernel.ndim < ndim else None,
        )
    if any(n % 2 == 0 for n in kernel.shape):
        raise BadRequest(
            "a blind-spot kernel has a centre pixel, so its extents are odd",
            where="blind_spot",
            got=f"shape {kernel.shape}",
            remedy="pad it with a row or column of False",
        )
    if not kernel[tuple(n // 2 for n in kernel.shape)]:
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
    kernel : ndarray of bool, odd extents ([z,] y, x)
        True = hidden; the centre is True.
    patch_size : sequence of int
        ([z,] y, x) in pixels.
    percentage : float
        Predicted pixels (centres), per cent of the patch.

    Raises
    ------
    PatchTooLarge
        The kernel is wider than the patch.
    BadRequest
        The kernel is not valid or has other axes than the patch, no centre would be drawn, or more than half
        of the patch would be hidden.
    """
    check_kernel(kernel, len(patch_size))
    if any(k > p for k, p in zip(kernel.shape, patch_size, strict=True)):
        raise PatchTooLarge(
            "the blind-spot kernel is wider than the patch",
            where="blind_spot",
            got=f"{kernel.shape} in patches of {tuple(patch_size)}",
            remedy="use a larger patch_size",
        )
    pixels = math.prod(patch_size)
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


def usual_percentage(kernel: NDArray[np.bool_], patch_size: Sequence[int]) -> float:
    """Return the percentage of centres that serves a kernel well in patches of this size.

    They hide 8 % of the pixels, but are at least 1.5 %, at least one pixel, and never hide more than half.
    """
    served = min(max(_HIDDEN / int(kernel.sum()), _FEWEST_PREDICTED), largest_percentage(kernel))
    one_pixel = math.ceil(1e6 / math.prod(patch_size)) / 1e4  # rounded up, for the product must reach 100
    return max(served, one_pixel)


def largest_percentage(kernel: NDArray[np.bool_]) -> float:
    """Return the largest percentage of centres that hides at most half of a patch."""
    return 50.0 / int(kernel.sum())
