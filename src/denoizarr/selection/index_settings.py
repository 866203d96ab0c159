"""What a patch index is built from: filter, masks, regions of interest; checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from denoizarr.errors import BadRequest, PatchTooLarge
from denoizarr.stores.images import ImageLike, reader_of
from denoizarr.stores.sources import ImageReader

from .cells import Cells, Patch
from .filter_maps import one_channel
from .filters import MaskPatchFilter, PatchFilter, ScoreFilter
from .masks import aligned_mask
from .regions_of_interest import RegionOfInterest
from .roi_window_axes import WindowAxis


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """How the cells of some images are weighed.

    Attributes
    ----------
    patch : (y, x) or (z, y, x)
        In voxels.
    score_filter : MaxPatchFilter, MeanStdPatchFilter, ShannonPatchFilter or None
    mask_filter : MaskPatchFilter or None
    masks : tuple of ImageReader
        One per image, aligned with it; none without a mask.
    roi : RegionOfInterest or None
    filtered_patch_prob : float
        Weight of the cells that filter or mask do not keep.
    seed : int
        Kept in the index; it draws nothing itself.
    """

    patch: Patch
    score_filter: ScoreFilter | None = None
    mask_filter: MaskPatchFilter | None = None
    masks: tuple[ImageReader, ...] = field(default=(), repr=False)
    roi: RegionOfInterest | None = None
    filtered_patch_prob: float = 0.1
    seed: int = 0

    @property
    def applied_filter(self) -> ScoreFilter | None:
        """The filter, unless background is looked for: the two together would leave nothing."""
        return None if self.roi is not None and self.roi.select_background else self.score_filter

    def described(self) -> dict[str, Any]:
        """Return what an index records of its making, JSON-able, before thresholds are chosen."""
        found: dict[str, Any] = {"filtered_patch_prob": self.filtered_patch_prob, "seed": self.seed}
        if self.mask_filter is not None:
            found["mask"] = {**self.mask_filter.settings(), "of": [m.identity for m in self.masks]}
        if self.roi is not None:
            found["roi"] = self.roi.settings()
        return found


def checked_settings(
    images: Sequence[xr.DataArray],
    patch: Patch,
    *,
    patch_filter: PatchFilter | Sequence[PatchFilter] | None,
    mask: ImageLike | Sequence[ImageLike] | None,
    roi: RegionOfInterest | None,
    filtered_patch_prob: float,
    seed: int,
) -> IndexSettings:
    """Return the settings of an index, or refuse what cannot become one; nothing is computed.

    Raises
    ------
    PatchTooLarge
    BadRequest
    MisalignedGrid
        A mask has another extent than its image.
    """
    filters = [] if patch_filter is None else _listed(patch_filter)
    if not all(isinstance(f, PatchFilter) for f in filters):
        raise BadRequest(
            "not a patch filter",
            where="patch_filter",
            got=repr(filters),
            expected="such as ShannonPatchFilter()",
        )
    if roi is not None and not isinstance(roi, RegionOfInterest):
        raise BadRequest(
            "not a region of interest", where="roi", got=repr(roi), expected="RegionOfInterest(...)"
        )
    of_mask = [f for f in filters if isinstance(f, MaskPatchFilter)]
    of_score = [f for f in filters if not isinstance(f, MaskPatchFilter)]
    if len(of_mask) > 1 or len(of_score) > 1:
        raise BadRequest(
            "too many patch filters",
            where="patch_filter",
            got=[type(f).__name__ for f in filters],
            expected="one filter, and a MaskPatchFilter beside it",
        )
    if of_mask and mask is None:
        raise BadRequest("MaskPatchFilter without a mask", where="mask", remedy="pass mask=")
    if not 0 <= filtered_patch_prob <= 1:
        raise BadRequest(
            "not a probability", where="filtered_patch_prob", got=filtered_patch_prob, expected="0 to 1"
        )
    if seed < 0:
        raise BadRequest("not a seed", where="seed", got=seed, expected="0 or more")
    score_filter = of_score[0] if of_score else None
    _check_images(images, patch, score_filter, roi)
    mask_filter = None if mask is None else (of_mask[0] if of_mask else MaskPatchFilter())
    return IndexSettings(
        patch,
        score_filter,
        mask_filter,
        () if mask_filter is None else _aligned(mask, images, mask_filter),
        roi,
        float(filtered_patch_prob),
        int(seed),
    )


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _aligned(
    mask: Any, images: Sequence[xr.DataArray], mask_filter: MaskPatchFilter
) -> tuple[ImageReader, ...]:
    masks = _listed(mask)
    if len(masks) != len(images):
        raise BadRequest(
            "one mask for each image", where="mask", got=f"{len(masks)} masks", expected=f"{len(images)}"
        )
    return tuple(
        aligned_mask(m, i, ref_channel=mask_filter.ref_channel, missing=mask_filter.missing)
        for m, i in zip(masks, images, strict=True)
    )


def _check_images(
    images: Sequence[xr.DataArray],
    patch: Patch,
    score_filter: ScoreFilter | None,
    roi: RegionOfInterest | None,
) -> None:
    dims, dtype = images[0].dims, np.dtype(images[0].dtype).newbyteorder("=")
    for number, image in enumerate(images):
        where = f"image {number}, {reader_of(image).name}"
        if image.dims != dims:
            raise BadRequest("images of different dims", where=where, got=image.dims, expected=dims)
        if np.dtype(image.dtype).newbyteorder("=") != dtype:
            raise BadRequest("images of different dtypes", where=where, got=image.dtype, expected=dtype)
        for chosen in (score_filter, roi):
            if chosen is not None:
                one_channel(image, chosen.ref_channel)
        Cells.of_image(image, patch)
        names = ("z", "y", "x")[-len(patch) :]
        extent = tuple(int(image.sizes[d]) for d in names)
        if any(n < p for n, p in zip(extent, patch, strict=True)):
            raise PatchTooLarge(
                "the patch is larger than the image",
                where=where,
                got=f"patch {' x '.join(map(str, patch))}",
                expected=f"at most {' x '.join(map(str, extent))} ({', '.join(names)})",
                remedy="choose a smaller patch_size",
            )
        if roi is not None:
            for size, step in zip(extent, patch, strict=True):
                # Refuses a window of less than two coarse pixels.
                WindowAxis(size, step, roi.factor, roi.overlap)
