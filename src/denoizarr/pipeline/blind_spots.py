"""Which kernel stage 2 hides and how many pixels it predicts: what fits the patch, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from denoizarr.errors import BadRequest, PatchTooLarge
from denoizarr.kernels.blindspot import check_blind_spot, largest_percentage
from denoizarr.training.noise_kernel import NoiseKernel
from denoizarr.training.options import TrainingOptions


@dataclass(frozen=True, slots=True)
class BlindSpots:
    """What stage 2 is trained with.

    Attributes
    ----------
    mask : (odd, odd) array of bool
        (y, x); with 3D patches it is hidden in the plane of the predicted voxel.
    options : TrainingOptions
    warnings : tuple of str
        What was changed to make it fit, in sentences.
    """

    mask: NDArray[np.bool_]
    options: TrainingOptions
    warnings: tuple[str, ...] = ()


def fitting_blind_spots(kernel: NoiseKernel, options: TrainingOptions) -> BlindSpots:
    """Fit a measured kernel into stage 2's patches.

    A measured kernel must not end a job that has come as far as stage 2: where it is wider than the patch it
    is cut at the patch's border, and where it would hide over half of a patch fewer pixels are predicted.
    """
    mask, warnings = _cut_to(kernel.mask, options.patch_shape[-2:]), []
    if mask.shape != kernel.mask.shape:
        sizes = (" x ".join(map(str, m.shape)) for m in (kernel.mask, mask))
        warnings.append(
            "The measured kernel of {} pixels was cut to {}, the largest that a patch holds: "
            "choose a larger patch_size for stage 2.".format(*sizes)
        )
    percentage = min(options.mask_percentage, largest_percentage(mask))
    if percentage < options.mask_percentage:
        warnings.append(
            f"Stage 2 predicted {percentage:.3g} % of the pixels, not {options.mask_percentage:.3g} %: "
            f"the kernel has {int(mask.sum())} pixels, and more would hide over half of a patch."
        )
        options = replace(options, mask_percentage=percentage)
    return BlindSpots(mask, options, tuple(warnings))


def check_one_pixel(options: TrainingOptions, stage: str) -> None:
    """Refuse a stage that could not predict one pixel of a patch, whatever its kernel.

    Parameters
    ----------
    options : TrainingOptions
    stage : str
        "stage1" or "stage2", for the message.

    Raises
    ------
    BadRequest
    """
    pixel = np.ones((1,) * len(options.patch_shape), bool)
    with naming(stage):
        check_blind_spot(pixel, options.patch_shape, options.mask_percentage)


@contextmanager
def naming(stage: str) -> Iterator[None]:
    """Put a stage before the key that a refusal names: "mask_percentage" becomes "stage1.mask_percentage"."""
    try:
        yield
    except BadRequest as error:
        raise type(error)(
            error.what,
            where=f"{stage}.{error.where}",
            got=error.got,
            expected=error.expected,
            remedy=error.remedy,
        ) from error


def check_kernel_file(kernel: NoiseKernel, options: TrainingOptions, where: str) -> None:
    """Refuse a kernel from a file that does not fit stage 2's patches: someone chose it, so it is not cut.

    Raises
    ------
    PatchTooLarge
        It is wider than the patch.
    BadRequest
    """
    patch = options.patch_shape[-2:]
    if any(k > p for k, p in zip(kernel.mask.shape, patch, strict=True)):
        raise PatchTooLarge(
            "the kernel is wider than the patch",
            where=f"stage2.mask_file_path, {where}",
            got=" x ".join(map(str, kernel.mask.shape)),
            expected=f"at most {' x '.join(map(str, patch))} (y, x)",
            remedy="choose a larger stage2.patch_size",
        )
    mask = kernel.mask.reshape((1,) * (len(options.patch_shape) - 2) + kernel.mask.shape)
    with naming("stage2"):
        check_blind_spot(mask, options.patch_shape, min(options.mask_percentage, largest_percentage(mask)))


def kernel_in_words(kernel: NoiseKernel) -> str:
    """Return what the log says of a kernel; a single pixel may mean that noise could not be measured."""
    if kernel.is_single_pixel:
        return f"a single pixel: {kernel.note or 'no structured noise'}"
    return "{} x {} (y, x)".format(*kernel.mask.shape)


def _cut_to(mask: NDArray[np.bool_], patch: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the middle of a mask that is no wider than a patch, its extents odd."""
    kept = [min(k, p - 1 + p % 2) for k, p in zip(mask.shape, patch, strict=True)]
    return mask[tuple(slice((k - n) // 2, (k + n) // 2) for k, n in zip(mask.shape, kept, strict=True))]
