"""Which kernel stage 2 hides and how many pixels it predicts: what fits the patch, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from denoizarr.errors import BadRequest, PatchTooLarge
from denoizarr.kernels.blindspot import check_blind_spot, largest_percentage
from denoizarr.kernels.unet import halo_of
from denoizarr.training.noise_kernel import NoiseKernel
from denoizarr.training.noise_sample import SMALLEST_SIDE
from denoizarr.training.noise_windows import WINDOW
from denoizarr.training.options import TrainingOptions
from denoizarr.training.structure import StructuralNoiseExtractor

Mask = NDArray[np.bool_]

_MOST_OF_THE_CONTEXT = 0.5
_MOST_PLANES = 8


@dataclass(frozen=True, slots=True)
class BlindSpots:
    """What stage 2 is trained with.

    Attributes
    ----------
    mask : bool array of odd sides, (y, x) or (z, y, x)
        One of (y, x) is, with 3D patches, hidden in the plane of the predicted voxel.
    options : TrainingOptions
    warnings : tuple of str
        What was changed to make it fit, in sentences.
    """

    mask: Mask
    options: TrainingOptions
    warnings: tuple[str, ...] = ()

    @property
    def is_single_pixel(self) -> bool:
        """Whether nothing but the predicted pixel is hidden, so that stage 2 has nothing to add."""
        return int(self.mask.sum()) == 1


def fitting_blind_spots(kernel: NoiseKernel, options: TrainingOptions) -> BlindSpots:
    """Fit a measured kernel into stage 2's patches.

    A measured kernel must not end a job that has come as far as stage 2: where it is wider than the patch, or
    hides over half of it, it is cut; where it would hide over half of a patch at the percentage asked, fewer
    pixels are predicted.

    Parameters
    ----------
    kernel : NoiseKernel
        One of (z, y, x) counts, with patches of planes, by its middle plane: the network sees no other.
    options : TrainingOptions
        Of stage 2. Where the kernel hides more than half of what its network sees, a warning says so.
    """
    mask, warnings = _seen_by(kernel.hidden, options), []
    cut = _cut_to(mask, options.patch_shape)
    if cut.shape != mask.shape:
        warnings.append(
            f"The measured kernel of {_size(mask)} pixels was cut to {_size(cut)}, the largest that a patch "
            "holds: choose a larger patch_size for stage 2."
        )
    asked = options.percentage_of(cut)
    percentage = min(asked, largest_percentage(cut))
    if percentage < asked:
        warnings.append(
            f"Stage 2 predicted {percentage:.3g} % of the pixels, not {asked:.3g} %: "
            f"the kernel has {int(cut.sum())} pixels, and more would hide over half of a patch."
        )
        options = replace(options, mask_percentage=percentage)
    share = _hidden_share(cut, options)
    if share > _MOST_OF_THE_CONTEXT:
        warnings.append(
            f"The kernel of {_size(cut)} pixels hides {share:.0%} of what stage 2's network sees around a "
            "voxel, which leaves it little to predict from: raise num_layers for stage 2."
        )
    return BlindSpots(cut, options, tuple(warnings))


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
        check_blind_spot(pixel, options.patch_shape, options.percentage_of(pixel))


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
    """Refuse a kernel from a file that does not fit stage 2: someone chose it, so it is not cut.

    Parameters
    ----------
    kernel : NoiseKernel
    options : TrainingOptions
    where : str
        The file, for the message.

    Raises
    ------
    PatchTooLarge
        It is wider than the patch.
    BadRequest
        It hides more than half of a patch at once, or all that the network sees; it spans planes, and the
        patches do not; not one pixel a patch would be predicted.
    """
    place, patch = f"stage2.mask_file_path, {where}", options.patch_shape
    hidden = mask = kernel.hidden
    if mask.ndim > len(patch):
        raise BadRequest(
            "a kernel over (z, y, x) is for patches of volumes",
            where=place,
            got=f"patches of {_size(patch)} (y, x)",
            expected="a kernel over (y, x), or stage2.patch_size with z",
        )
    mask = mask.reshape((1,) * (len(patch) - mask.ndim) + mask.shape)
    if any(k > p for k, p in zip(mask.shape, patch, strict=True)):
        axes = ", ".join("zyx"[-hidden.ndim :])
        raise PatchTooLarge(
            "the kernel is wider than the patch",
            where=place,
            got=_size(hidden),
            expected=f"at most {_size(patch[-hidden.ndim :])} ({axes})",
            remedy="choose a larger stage2.patch_size",
        )
    if mask.sum() > prod(patch) / 2:
        raise BadRequest(
            "the kernel hides more than half of a patch",
            where=place,
            got=f"{int(mask.sum())} of {prod(patch)} pixels",
            expected=f"at most {prod(patch) // 2}",
            remedy="choose a larger stage2.patch_size, or a smaller kernel",
        )
    if _hidden_share(mask, options) == 1:
        raise BadRequest(
            "the kernel hides all that the network sees",
            where=place,
            got=_size(hidden),
            expected=f"less than {2 * halo_of(options.network_shape) + 1} pixels along an axis",
            remedy="raise stage2.num_layers, or choose a smaller kernel",
        )
    with naming("stage2"):
        check_blind_spot(mask, patch, min(options.percentage_of(mask), largest_percentage(mask)))


def kernel_in_words(kernel: NoiseKernel) -> str:
    """Return what the log says of a kernel; a single pixel may mean that noise could not be measured."""
    if kernel.is_single_pixel:
        return f"a single pixel: {kernel.note or 'no structured noise'}"
    return f"{_size(kernel.mask)} ({', '.join('zyx'[-kernel.mask.ndim :])})"


def check_center_size(extractor: StructuralNoiseExtractor, images: Sequence[xr.DataArray]) -> None:
    """Refuse lags that the windows of these images do not hold.

    Raises
    ------
    BadRequest
    """
    side = min(WINDOW, *(int(image.sizes[dim]) for image in images for dim in ("y", "x")))
    size = extractor.settings.center_size
    largest = 2 * (side // 2) + 1 if extractor.method == "significance" else 2 * side - 1
    if size is not None and size > largest and side >= SMALLEST_SIDE:
        raise BadRequest(
            "center_size is larger than the windows",
            where="extractor.center_size",
            got=size,
            expected=f"up to {largest}, for windows of {side} pixels",
        )


def planes_of(patch_shape: tuple[int, ...]) -> int:
    """Return how many planes noise is measured over: as many as a patch has, to a bound, for time's sake."""
    return min(patch_shape[0], _MOST_PLANES) if len(patch_shape) == 3 else 1


def _seen_by(mask: Mask, options: TrainingOptions) -> Mask:
    """Return what of a kernel lies in the patches' axes."""
    if mask.ndim == 3 and len(options.patch_shape) == 2:
        return _cropped(mask[len(mask) // 2])
    return mask


def _cropped(mask: Mask) -> Mask:
    reach = np.abs(np.argwhere(mask) - np.array(mask.shape) // 2).max(axis=0)
    return mask[tuple(slice(n // 2 - r, n // 2 + r + 1) for n, r in zip(mask.shape, reach, strict=True))]


def _cut_to(mask: Mask, patch: tuple[int, ...]) -> Mask:
    """Return the middle of a mask that is no wider than a patch and leaves half of it, its extents odd."""
    sides = patch[-mask.ndim :]
    kept = [min(k, p - 1 + p % 2) for k, p in zip(mask.shape, sides, strict=True)]
    cut = _middle(mask, kept)
    while cut.sum() > prod(patch) / 2:
        # The widest axis first: what is farthest is correlated least.
        kept[int(np.argmax(kept))] -= 2
        cut = _middle(mask, kept)
    return cut


def _middle(mask: Mask, sides: Sequence[int]) -> Mask:
    return mask[tuple(slice((k - n) // 2, (k + n) // 2) for k, n in zip(mask.shape, sides, strict=True))]


def _hidden_share(mask: Mask, options: TrainingOptions) -> float:
    """Return which share of what stage 2's network sees around a voxel is hidden."""
    seen = 2 * halo_of(options.network_shape) + 1
    hidden = int(_middle(mask, [min(n, seen) for n in mask.shape]).sum())
    return hidden / float(seen ** len(options.patch_shape))


def _size(of: Mask | Sequence[int]) -> str:
    return " x ".join(map(str, of.shape if isinstance(of, np.ndarray) else of))
