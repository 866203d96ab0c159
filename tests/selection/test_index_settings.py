"""What cannot become an index is refused before anything is read, each by its own class and text."""

from __future__ import annotations

import json

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from denoizarr.errors import BadRequest, MisalignedGrid, NonFiniteData, PatchTooLarge
from denoizarr.selection.filters import (
    MaskPatchFilter,
    MaxPatchFilter,
    MeanStdPatchFilter,
    ShannonPatchFilter,
)
from denoizarr.selection.index_builder import build_index
from denoizarr.selection.index_settings import checked_settings
from denoizarr.selection.regions_of_interest import RegionOfInterest
from denoizarr.stores.images import as_image


def never(block):
    raise AssertionError("read")


def unread(shape=(6, 40, 50), dtype="uint16"):
    """An image that fails when a voxel of it is read."""
    zeros = da.zeros(shape, dtype=dtype, chunks=20)
    return zeros.map_blocks(never, dtype=dtype, meta=np.empty((0,) * len(shape), dtype))


def checked(image, patch=(8, 8), **options):
    plain = {"patch_filter": None, "mask": None, "roi": None, "filtered_patch_prob": 0.1, "seed": 0}
    return checked_settings([as_image(image)], patch, **{**plain, **options})


@pytest.mark.parametrize(
    ("patch", "options", "kind", "message"),
    [
        (
            (41, 8),
            {},
            PatchTooLarge,
            r"larger than the image at image 0.*patch 41 x 8, expected at most 40 x 50",
        ),
        ((7, 8, 8), {}, PatchTooLarge, r"patch 7 x 8 x 8, expected at most 6 x 40 x 50 \(z, y, x\)"),
        (
            (8, 8),
            {"patch_filter": MaxPatchFilter(5, ref_channel=1)},
            BadRequest,
            "no such channel at ref_channel: got 1, expected 0: the image has no c",
        ),
        ((8, 8), {"roi": RegionOfInterest(ref_channel=2)}, BadRequest, "no such channel.*got 2"),
        ((8, 8), {"patch_filter": MaskPatchFilter()}, BadRequest, "MaskPatchFilter without a mask"),
        (
            (8, 8),
            {"filtered_patch_prob": 1.5},
            BadRequest,
            "not a probability at filtered_patch_prob: got 1.5",
        ),
        ((8, 8), {"filtered_patch_prob": float("nan")}, BadRequest, "not a probability"),
        (
            (8, 8),
            {"patch_filter": [MaxPatchFilter(), ShannonPatchFilter()]},
            BadRequest,
            "too many patch filters.*MaxPatchFilter.*ShannonPatchFilter",
        ),
        (
            (8, 8),
            {"patch_filter": [MaskPatchFilter(), MaskPatchFilter()], "mask": np.zeros((6, 40, 50), bool)},
            BadRequest,
            "too many patch filters",
        ),
        ((8, 8), {"mask": np.zeros((6, 41, 50), bool)}, MisalignedGrid, "."),
        ((8, 8), {"mask": [np.zeros((6, 40, 50), bool)] * 2}, BadRequest, "2 masks, expected 1"),
    ],
)
def test_bad_requests_are_refused_before_any_voxel_is_read(patch, options, kind, message):
    with pytest.raises(kind, match=message) as caught:
        checked(unread(), patch, **options)
    assert type(caught.value) is kind


def test_a_patch_with_z_needs_an_image_with_z():
    with pytest.raises(BadRequest, match="3D patches need an image with z"):
        checked(unread((40, 50)), (2, 8, 8))


@pytest.mark.parametrize("channel", [2, -1])
def test_a_channel_is_one_of_those_there_are(channel):
    image = xr.DataArray(unread((2, 40, 50)), dims=("c", "y", "x"))
    with pytest.raises(BadRequest, match=f"ref_channel: got {channel}, expected 0 to 1"):
        checked(image, patch_filter=ShannonPatchFilter(ref_channel=channel))


@pytest.mark.parametrize("patch", [8, (2, 8, 8)])
def test_nan_is_found_when_the_image_is_read(patch):
    image = np.random.default_rng(0).normal(100, 5, (4, 40, 50))
    image[1, 20, 30] = np.nan
    with pytest.raises(NonFiniteData, match="z=1, y=20, x=30"):
        build_index(image, patch, patch_filter=MeanStdPatchFilter())
    mask = np.zeros(image.shape)
    mask[2, 3, 4] = np.nan
    with pytest.raises(NonFiniteData):
        build_index(np.nan_to_num(image), patch, mask=mask)


def test_what_an_index_records_is_plain_and_complete():
    found = checked(
        np.zeros((6, 40, 50), np.uint16),
        patch_filter=[MaxPatchFilter(5), MaskPatchFilter(0.4)],
        mask=np.ones((6, 40, 50), bool),
        roi=RegionOfInterest(threshold=0.3),
        seed=7,
    )
    described = found.described()
    assert json.loads(json.dumps(described)) == described
    assert described["seed"] == 7
    assert described["mask"]["coverage"] == 0.4
    assert described["roi"]["threshold"] == 0.3
    assert found.score_filter == MaxPatchFilter(5)
    assert found.applied_filter == MaxPatchFilter(5)
    background = checked(
        np.zeros((6, 40, 50)), patch_filter=MaxPatchFilter(5), roi=RegionOfInterest(select_background=True)
    )
    assert background.applied_filter is None


def test_a_mask_alone_has_the_default_coverage():
    found = checked(np.zeros((6, 40, 50)), mask=np.ones((6, 40, 50), bool))
    assert found.mask_filter == MaskPatchFilter()
    assert len(found.masks) == 1
