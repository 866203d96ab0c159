"""Patch2Self of arrays: what it is, what DIPY's own tests ask of it, and what it refuses."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import denoizarr.diffusion.patch2self as denoising
import denoizarr.diffusion.plan as planning
import denoizarr.diffusion.regressions as regressions
import denoizarr.diffusion.voxel_boxes as voxel_boxes
from denoizarr import patch2self
from denoizarr.errors import BadRequest, DegenerateData, MemoryLimitTooSmall, NonFiniteData

from .phantom import defined, phantom, psnr

BVALS = np.array([0.0] * 3 + [1000.0] * 9)
GROUPS = (tuple(range(3)), tuple(range(3, 12)))


@pytest.fixture(autouse=True)
def _in_parts(monkeypatch):
    """Let small arrays have parts, as large ones do."""
    monkeypatch.setattr(denoising, "_PART_VALUES", 360)


def small(seed=0, shape=(7, 6, 5)):
    data, *_ = phantom(shape, 12, n_b0=3, seed=seed)
    return np.rint(data * 4).astype(np.int16)


@pytest.mark.parametrize("radius", [0, 1, (1, 0, 2)])
@pytest.mark.parametrize("model", ["ols", "ridge"])
def test_what_is_computed_is_what_is_defined(radius, model):
    data = small(shape=(13, 12, 11))
    each = (radius,) * 3 if isinstance(radius, int) else radius
    expected = defined(data, GROUPS, radius=each, penalty=50.0 if model == "ridge" else 0.0)
    how = {"patch_radius": radius, "model": model, "alpha": 50.0, "out_dtype": np.float64}
    found = patch2self(data, BVALS, shift_intensity=False, **how)
    assert found.shape == data.shape
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


def test_a_shift_makes_every_minimum_the_input_s():
    data = small()
    plain = patch2self(data, BVALS, shift_intensity=False, out_dtype=np.float64)
    shifted = patch2self(data, BVALS, out_dtype=np.float64)
    np.testing.assert_allclose(shifted.min((0, 1, 2)), data.min((0, 1, 2)), rtol=1e-12, atol=1e-10)
    apart = (shifted - plain).reshape(-1, 12)
    np.testing.assert_allclose(apart, np.broadcast_to(apart[0], apart.shape), atol=1e-10)


def test_clipping_goes_before_shifting(caplog):
    data = small() - 200
    with caplog.at_level(logging.WARNING):
        found = patch2self(data, BVALS, clip_negative_vals=True, out_dtype=np.float64)
    assert "nothing is shifted" in caplog.text
    plain = patch2self(data, BVALS, shift_intensity=False, out_dtype=np.float64)
    assert plain.min() < 0
    np.testing.assert_allclose(found, plain.clip(0), atol=1e-10)


@pytest.mark.parametrize("dtype", [">i2", ">u2", ">f4", ">f8", "float16", "int32"])
@pytest.mark.parametrize("out_dtype", [np.float32, np.float64])
def test_any_kind_of_numbers_and_order_of_bytes(dtype, out_dtype):
    data = np.abs(small())  # as kinds without a sign have it
    expected = patch2self(data, BVALS, out_dtype=np.float64)
    found = patch2self(data.astype(dtype), BVALS, out_dtype=out_dtype)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6 * np.abs(expected).max())


def test_integers_are_rounded_and_clipped():
    data = np.clip(small(), 0, 255).astype(np.uint8)
    exact = patch2self(data, BVALS, shift_intensity=False, out_dtype=np.float64)
    found = patch2self(data, BVALS, shift_intensity=False)
    assert found.dtype == np.uint8
    assert (exact < 0).any() or (exact > 255).any()
    assert np.array_equal(found, np.clip(np.rint(exact), 0, 255))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_dtypes_are_the_input_s_or_as_asked(dtype):
    data = np.clip(small(), 0, 250).astype(dtype)
    assert patch2self(data, BVALS).dtype == dtype
    assert patch2self(data, BVALS, out_dtype=np.float32).dtype == np.float32


def test_the_array_itself_is_left_alone():
    data = small()
    before = data.copy()
    patch2self(data, BVALS, patch_radius=1)
    assert np.array_equal(data, before)


@settings(max_examples=10)
@given(st.permutations(range(12)))
def test_the_order_of_volumes_does_not_matter(order):
    data, order = small(), np.array(order)
    expected = patch2self(data, BVALS, out_dtype=np.float64)
    found = patch2self(data[..., order], BVALS[order], out_dtype=np.float64)
    np.testing.assert_allclose(found, expected[..., order], rtol=1e-11, atol=1e-9)


def test_intensities_in_other_units():
    data = small().astype(np.float64)
    expected = patch2self(data, BVALS)
    np.testing.assert_allclose(patch2self(data * 1e-5, BVALS) * 1e5, expected, rtol=1e-7, atol=1e-5)
    np.testing.assert_allclose(patch2self(data * 1024, BVALS) / 1024, expected, rtol=1e-10, atol=1e-8)
    np.testing.assert_allclose(patch2self(data + 1e4, BVALS) - 1e4, expected, rtol=1e-8, atol=1e-7)


@pytest.mark.parametrize("radius", [0, 1])
def test_the_cut_into_slabs_does_not_matter(monkeypatch, radius):
    data = small(shape=(9, 12, 11))
    expected = patch2self(data, BVALS, patch_radius=radius, out_dtype=np.float64)
    monkeypatch.setattr(voxel_boxes, "_SLAB_BYTES", 1)
    monkeypatch.setattr(voxel_boxes, "_FEWEST_VOXELS", 17)
    found = patch2self(data, BVALS, patch_radius=radius, out_dtype=np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16])
def test_sums_that_are_kept_make_no_difference(order, dtype):
    noisy, _, bvals = phantom((13, 11, 17), 60, n_b0=6)
    data = np.asarray(np.rint(noisy * 4).astype(np.int16), order=order)
    how = {"mask": data.mean(-1) > np.median(data), "out_dtype": dtype}
    # The matrices just fit, the sums do not.
    tight = planning.matrix_bytes(60, 1)
    assert 4 * data.size > tight
    assert np.array_equal(patch2self(data, bvals, memory_limit=tight, **how), patch2self(data, bvals, **how))


def amplified(seed=0):
    """Return a series of which one volume is the tiny difference of two others, far larger."""
    rng = np.random.default_rng(seed)
    shape = (12, 12, 12)
    base, tiny = rng.normal(1000, 100, shape), rng.normal(0, 0.02, shape)
    volumes = [rng.normal(1000, 100, shape) for _ in range(9)] + [base, base + tiny, 1000 + 5000 * tiny]
    return np.stack(volumes, -1), np.full(12, 1000.0)


@pytest.mark.parametrize("offset", [0, 10**5, 10**7])
def test_float32_sums_lose_nothing_of_large_means(offset):
    noisy, _, bvals = phantom((13, 11, 17), 60, n_b0=6)
    data = np.rint(noisy * 4).astype(np.int32) + offset
    exact = patch2self(data, bvals, out_dtype=np.float64)
    found = patch2self(data, bvals, out_dtype=np.float32)
    # The intercept's rounding and the result's, and a part of the noise that is none.
    rounding = np.spacing(np.float32(np.abs(exact).max()))
    assert np.abs(found - exact).max() <= rounding + 2e-6 * data.std()


@pytest.mark.parametrize("radius", [0, 1])
def test_float32_is_summed_in_float32_where_that_is_as_good(radius):
    data = small(shape=(9, 12, 11))
    exact = patch2self(data, BVALS, patch_radius=radius, out_dtype=np.float64)
    found = patch2self(data, BVALS, patch_radius=radius, out_dtype=np.float32)
    assert np.abs(found - exact).max() <= 1e-6 * data.max()
    # It was float32 that summed, or this test would say nothing.
    assert not np.array_equal(found, exact.astype(np.float32))


def test_sums_of_far_larger_terms_are_made_in_float64(monkeypatch):
    data, bvals = amplified()
    how = {"shift_intensity": False, "out_dtype": np.float32}
    exact = patch2self(data, bvals, **how | {"out_dtype": np.float64})
    scale = np.abs(data).max()
    assert np.array_equal(patch2self(data, bvals, **how), exact.astype(np.float32))
    monkeypatch.setattr(regressions, "_MOST_TERMS", np.inf)
    assert np.abs(patch2self(data, bvals, **how) - exact).max() > 1e-5 * scale


def test_two_calls_give_the_same_bytes():
    data = small()
    assert np.array_equal(
        patch2self(data, BVALS, out_dtype=np.float64), patch2self(data, BVALS, out_dtype=np.float64)
    )


@pytest.mark.parametrize("order", ["C", "F"])
def test_any_order_of_memory(order):
    data = np.asarray(small(), order=order)
    expected = patch2self(small(), BVALS, out_dtype=np.float64)
    np.testing.assert_allclose(patch2self(data, BVALS, out_dtype=np.float64), expected, atol=1e-10)


# ---- what it is for


def test_noise_of_a_phantom_falls_and_means_stay():
    data, truth, bvals = phantom((24, 24, 20), 40, n_b0=4, noise=6.0)
    found = patch2self(data, bvals, shift_intensity=False)
    assert psnr(found, truth) > psnr(data, truth) + 5
    np.testing.assert_allclose(found.mean((0, 1, 2)), data.mean((0, 1, 2)), rtol=1e-10)
    assert (found.std((0, 1, 2)) < data.std((0, 1, 2))).all()


def test_as_much_noise_goes_as_the_method_can_take():
    data, truth, bvals = phantom((32, 32, 24), 60, n_b0=6, noise=5.367)
    # A shift to the input's minimum, which is one voxel's noise, would count as an error of every voxel.
    found = patch2self(data, bvals, shift_intensity=False)
    assert psnr(data, truth) == pytest.approx(28.0, abs=0.05)
    assert psnr(found, truth) >= 34.3


def test_neighbours_tell_more():
    data, truth, bvals = phantom((20, 20, 16), 12, n_b0=3, noise=8.0)
    alone = patch2self(data, bvals, shift_intensity=False)
    together = patch2self(data, bvals, shift_intensity=False, patch_radius=1)
    assert psnr(together, truth) > psnr(alone, truth)


def test_pure_noise_becomes_its_mean():
    rng = np.random.default_rng(0)
    data = rng.normal(100, 10, (20, 20, 20, 12))
    found = patch2self(data, np.full(12, 1000.0), shift_intensity=False)
    assert found.std() < 0.1 * data.std()


def test_a_lone_b0_is_the_input():
    data, _, bvals = phantom(n=12, n_b0=1)
    found = patch2self(data, bvals)
    assert np.array_equal(found[..., 0], data[..., 0])
    kept = patch2self(phantom(n=12, n_b0=3)[0], phantom(n=12, n_b0=3)[2], b0_denoising=False)
    assert np.array_equal(kept[..., :3], phantom(n=12, n_b0=3)[0][..., :3])


def test_shells_apart():
    data, _, _ = phantom(n=12, n_b0=0)
    bvals = np.array([1000, 3000] * 6)
    found = patch2self(data, bvals, group_by_shell=True, shift_intensity=False)
    expected = defined(data, (tuple(range(0, 12, 2)), tuple(range(1, 12, 2))))
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-9)


# ---- masks


def test_a_mask_says_what_counts():
    data, _, bvals = phantom((10, 9, 8), 12, n_b0=3)
    mask = np.random.default_rng(1).random(data.shape[:3]) < 0.6
    groups = (tuple(range(3)), tuple(range(3, 12)))
    for radius in ((0, 0, 0), (1, 1, 1)):
        found = patch2self(data, bvals, mask=mask, shift_intensity=False, patch_radius=radius)
        expected = defined(data, groups, mask=mask, radius=radius)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-7)
    assert np.array_equal(found[~mask], data[~mask])


def test_nan_outside_the_mask_stays_and_is_counted(caplog):
    data, _, bvals = phantom((10, 9, 8), 12, n_b0=3)
    mask = np.ones(data.shape[:3], bool)
    mask[:2] = False
    damaged = data.copy()
    damaged[0, 0, :3, 5] = np.nan
    with caplog.at_level(logging.INFO):
        found = patch2self(damaged, bvals, mask=mask, patch_radius=1)
    assert "3 values outside the mask are not finite" in caplog.text
    assert np.isnan(found[0, 0, :3, 5]).all()
    assert np.isfinite(found).sum() == found.size - 3
    np.testing.assert_allclose(found[2:], patch2self(data, bvals, mask=mask, patch_radius=1)[2:], atol=1e-9)


def test_what_a_mask_leaves_out_does_not_wrap():
    data, _, bvals = phantom((10, 9, 8), 12, n_b0=3)
    mask = np.ones(data.shape[:3], bool)
    mask[0] = False
    data[0, 0, :4, 5] = 300.7, -5, 12.5, np.nan
    found = patch2self(data, bvals, mask=mask, out_dtype=np.uint8)
    assert found[0, 0, :4, 5].tolist() == [255, 0, 12, 0]


# ---- what is said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("nothing", None),
        ("constant", "volumes without variance become their mean: 5"),
        ("copy", "volumes that are one another's copies keep their noise: 4 and 7"),
        ("few", "only 8 volumes"),
        ("thin", "the regressions fit the noise itself"),
    ],
)
def test_warnings_name_the_volumes(change, said, caplog):
    data, bvals = small().astype(np.float64), BVALS
    if change == "constant":
        data[..., 5] = 12
    elif change == "copy":
        data[..., 7] = data[..., 4]
    elif change == "thin":
        data = data[:3, :1, :2]
    elif change == "few":
        data, bvals = data[..., 3:11], bvals[3:11]
    else:
        data, bvals = phantom(n=24, n_b0=12)[::2]
    with caplog.at_level(logging.WARNING):
        found = patch2self(data, bvals, shift_intensity=False)
    assert np.isfinite(found).all()
    assert (said in caplog.text) if said else not caplog.text
    if change == "constant":
        np.testing.assert_allclose(found[..., 5], 12, rtol=1e-12)


def test_version_3_is_the_same_and_says_why(caplog):
    data = small()
    with caplog.at_level(logging.INFO):
        found = patch2self(data, BVALS, version=3, tmp_dir="/nowhere")
    assert "sketch" in caplog.text
    assert np.array_equal(found, patch2self(data, BVALS))


def test_parts_are_of_some_size_and_no_more_than_sixty_four(monkeypatch):
    monkeypatch.setattr(denoising, "_PART_VALUES", 2**21)
    for space, n, parts in (
        ((7, 6, 5), 12, 1),
        ((64, 64, 32), 60, 4),
        ((256, 256, 256), 100, 64),
        ((3, 9, 9), 2**21, 3),
    ):
        boxes = list(denoising._parts_of(space, n, 100))
        assert len(boxes) == parts
        assert sum(box.size for box in boxes) == np.prod(space)
    assert len(list(denoising._parts_of((256, 256, 256), 100, 16))) == 16, (
        "large matrices wait for one another"
    )


def test_verbose_shows_both_passes(caplog):
    with caplog.at_level(logging.INFO):
        patch2self(small(), BVALS, verbose=True, shift_intensity=False)
    assert "Patch2Self: 14 of 14" in caplog.text


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"bvals": BVALS[:-1]}, BadRequest, "got 11 b-values, expected 12"),
        ({"bvals": np.append(BVALS, 0)}, BadRequest, "got 13 b-values, expected 12"),
        ({"bvals": np.where(np.arange(12) == 4, np.nan, BVALS)}, BadRequest, "volume 4"),
        ({"data": np.zeros((5, 5, 5))}, BadRequest, "4D"),
        ({"data": np.zeros((5, 5, 5, 12), complex)}, BadRequest, "integers or floats"),
        ({"model": "forest"}, BadRequest, "ols, ridge or lasso"),
        ({"patch_radius": (0, 0, 5)}, BadRequest, "farther than the volumes"),
        ({"patch_radius": -1}, BadRequest, "patch radius"),
        ({"patch_radius": (1, 1)}, BadRequest, "patch radius"),
        ({"patch_radius": 0.5}, BadRequest, "patch radius"),
        ({"alpha": -1.0}, BadRequest, "penalty"),
        ({"version": 2}, BadRequest, "version"),
        ({"out_dtype": "complex64"}, BadRequest, "integers or floats"),
        ({"mask": np.ones((2, 2, 2))}, BadRequest, "mask"),
        ({"mask": np.zeros((7, 6, 5))}, DegenerateData, "no voxel is left"),
        ({"destination": "x.zarr"}, BadRequest, "in memory"),
        ({"memory_limit": "1KB"}, MemoryLimitTooSmall, "12 volumes with 1 voxels each"),
        ({"patch_radius": 2, "memory_limit": "64MiB"}, MemoryLimitTooSmall, "got 64 MiB, expected 137 MiB"),
    ],
)
def test_bad_requests_are_refused(change, kind, said):
    request = {"data": small(), "bvals": BVALS} | change
    with pytest.raises(kind, match=said):
        patch2self(request.pop("data"), request.pop("bvals"), **request)


def test_nan_is_an_error_that_says_where():
    data = small().astype(np.float32)
    data[3, 2, 1, 7] = np.nan
    with pytest.raises(NonFiniteData, match=r"volume 7, voxel \(3, 2, 1\).*pass a mask"):
        patch2self(data, BVALS)
