import logging
from itertools import pairwise

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import exposure

from denoizarr.engine.ledger import Ledger
from denoizarr.errors import (
    BadRequest,
    BlockFailed,
    DegenerateData,
    EmptyIndex,
    IncompleteOutput,
    NonFiniteData,
    OutputExists,
    PatchTooLarge,
)
from denoizarr.selection import roi_level, roi_passes, roi_work
from denoizarr.selection import roi_windows as windows_module
from denoizarr.selection.cells import Cells
from denoizarr.selection.regions_of_interest import (
    Criterion,
    Quantile,
    RegionOfInterest,
    find_roi_patches,
    hash_positions,
    plot_roi_patches,
    roi_windows,
)
from denoizarr.stores.images import as_image

from . import roi_scores

# A blur that is small enough to be exact.
SMALL = {"sigma": 12.0}


@pytest.fixture
def small_blocks(monkeypatch):
    """Many blocks, chunks and reads on an image of a few thousand voxels."""
    monkeypatch.setattr(roi_level, "BLOCK_SIDE", {2: 10, 3: 9})
    monkeypatch.setattr(roi_passes, "BLOCK_SIDE", {2: 10, 3: 9})
    monkeypatch.setattr(roi_level, "_CHUNK_SIDE", {"boxes": {2: 9, 3: 8}, "knots": {2: 8, 3: 7}})
    monkeypatch.setattr(roi_level, "_SLAB", {2: 6, 3: 5})
    monkeypatch.setattr(roi_level, "_READ_BYTES", 5000)
    monkeypatch.setattr(roi_work, "_BLOCKS_PER_BATCH", 2)


def scene(shape, dtype="uint16", seed=0):
    """Noise over a bright blob and a slope, so that every plane differs."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*[np.linspace(0, 1, n) for n in shape], indexing="ij")
    blob = 300 * np.exp(-sum((g - 0.6) ** 2 for g in grid[-2:]) / 0.05)
    return (rng.poisson(100 + blob + 60 * sum(grid))).astype(dtype)


def true_level(volume, f, sigmas):
    """Box means and Gaussian matrices over a whole plane or volume."""
    level = np.asarray(volume, float)
    for axis, sigma in enumerate(sigmas):
        n = level.shape[axis]
        starts = np.arange(0, n, f)
        counts = np.minimum(starts + f, n) - starts
        level = np.moveaxis(np.add.reduceat(level, starts, axis=axis), axis, -1) / counts
        if sigma:
            distance = np.abs(starts[:, None] - starts) // f
            weights = np.exp(-0.5 * (distance / sigma) ** 2) * (distance <= int(4 * sigma + 0.5))
            level = level @ (weights / weights.sum(1, keepdims=True)).T
        level = np.moveaxis(level, -1, axis)
    return level


def true_means(level, axes):
    found = np.empty([a.count for a in axes])
    for index in np.ndindex(*found.shape):
        starts = [a.coarse_origins(i, i + 1)[0] for a, i in zip(axes, index, strict=True)]
        found[index] = level[tuple(slice(s, s + a.width) for s, a in zip(starts, axes, strict=True))].mean()
    return found


def run(image, patch=(16, 16), roi=None, **options):
    return roi_windows(as_image(image), patch, roi or RegionOfInterest(**SMALL), progress=False, **options)


def refuse(*_, **__):
    raise AssertionError("nothing is computed again")


def objects(folder, *, but=()):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in but
    }


@pytest.mark.parametrize("equalize", ["global", "adaptive", "none"])
@pytest.mark.parametrize("case", ["2d", "planes", "volume", "t", "c"])
def test_means_equal_a_plain_definition(small_blocks, equalize, case):
    dims, shape = {
        "2d": ("yx", (90, 101)),
        "planes": ("zyx", (3, 70, 61)),
        "volume": ("zyx", (21, 40, 46)),
        "t": ("tzyx", (2, 2, 45, 50)),
        "c": ("cyx", (2, 70, 61)),
    }[case]
    volume = scene(shape)
    image = xr.DataArray(
        volume, dims=tuple(dims), coords={"z": np.arange(shape[-3]) * 2.0} if "z" in dims else {}
    )
    patch = (8, 16, 16) if case == "volume" else (16, 16)
    roi = RegionOfInterest(equalize=equalize, ref_channel=1 if case == "c" else 0, **SMALL)
    found = run(image, patch, roi)
    if case == "c":
        volume = volume[1]
    lead = volume.shape[: volume.ndim - len(patch)]
    # z is twice as coarse as y: a blur that is round in space is half as many planes wide.
    sigmas = (1.5, 3.0, 3.0) if case == "volume" else (3.0, 3.0)
    level = np.stack([true_level(volume[i], 4, sigmas) for i in np.ndindex(*lead)])
    scaled = (level - level.min()) / np.ptp(level)
    expected = {
        "none": lambda: scaled,
        "global": lambda: exposure.equalize_hist(level.reshape(1, -1), 1 << 16).reshape(level.shape),
        "adaptive": lambda: np.stack([exposure.equalize_adapthist(part) for part in scaled]),
    }[equalize]()
    tolerance = {"none": 1e-11, "global": 2.1 / level.size, "adaptive": 2e-3}[equalize]
    prepared = roi.preprocess(image, volumetric=case == "volume").values.reshape(level.shape)
    np.testing.assert_allclose(prepared, expected, atol=tolerance)
    means = np.stack([true_means(part, found.axes) for part in prepared])
    np.testing.assert_allclose(found.means.reshape(means.shape), means, rtol=1e-12)
    assert found.bound == 0


@pytest.mark.parametrize("n_axes", [2, 3])
@pytest.mark.parametrize("equalize", ["global", "adaptive"])
def test_equalisation_is_scikit_images_on_the_same_blurred_level(small_blocks, equalize, n_axes):
    image = scene((17, 66, 59))
    volumetric = n_axes == 3
    blurred = RegionOfInterest(equalize="none", **SMALL).preprocess(image, volumetric=volumetric).values
    roi = RegionOfInterest(equalize=equalize, **SMALL)
    found = roi.preprocess(image, volumetric=volumetric).values
    if equalize == "adaptive":
        parts = [blurred] if volumetric else list(blurred)
        expected = np.stack([exposure.equalize_adapthist(part) for part in parts]).reshape(found.shape)
        np.testing.assert_allclose(found, expected, atol=1e-12)
    else:
        ranks = exposure.equalize_hist(blurred, 1 << 16)
        # Scaling moves values across the edges of bins by rounding only.
        np.testing.assert_allclose(found, ranks, atol=2.1 / blurred.size)


def test_global_equalisation_is_exact_on_the_level_before_it_is_scaled(small_blocks):
    image = scene((3, 66, 59))
    level = np.stack([true_level(plane, 4, (0, 0)) for plane in image])
    found = RegionOfInterest(sigma=0).preprocess(image).values
    np.testing.assert_allclose(found, exposure.equalize_hist(level, 1 << 16), atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "equalize"),
    [("uint8", "none"), ("uint16", "global"), ("float32", "adaptive"), ("float64", "global")],
)
def test_the_bits_do_not_depend_on_the_chunks(small_blocks, tmp_path, dtype, equalize):
    image = scene((5, 70, 61)).clip(0, 255).astype(dtype)
    if dtype.startswith("float"):
        image = image / np.array(7, dtype)
    stored = zarr.create_array(
        str(tmp_path / "image.zarr"), shape=image.shape, chunks=(3, 32, 20), dtype=dtype
    )
    stored[:] = image
    roi = RegionOfInterest(equalize=equalize, sigma=100)
    kinds = (
        image,
        da.from_array(image, chunks=(2, 13, 50)),
        da.from_array(image, chunks=(5, 70, 61)),
        stored,
    )
    for number, kind in enumerate(kinds):
        run(kind, roi=roi, destination=str(tmp_path / str(number)), threads=1 + number % 2)
    whole = [objects(tmp_path / str(n)) for n in range(len(kinds))]
    for other in whole[1:]:
        assert other.keys() == whole[0].keys()
        assert all(other[name] == whole[0][name] for name in other if name != "zarr.json")


@pytest.mark.parametrize("equalize", ["global", "adaptive", "none"])
def test_the_bits_do_not_depend_on_the_blocks_of_work(monkeypatch, request, equalize):
    image = scene((3, 90, 101))
    roi = RegionOfInterest(equalize=equalize, sigma=100, threshold=Quantile(0.3))
    before = run(image, roi=roi)
    request.getfixturevalue("small_blocks")
    after = run(image, roi=roi)
    np.testing.assert_array_equal(before.means, after.means)
    assert before.quantiles == after.quantiles


def test_a_large_sigma_is_within_its_bound(small_blocks, caplog):
    image = scene((300, 410))
    with caplog.at_level(logging.INFO):
        found = RegionOfInterest(equalize="none").preprocess(image)
        blurred = run(image, (64, 64), RegionOfInterest())
    coarse = true_level(image, 4, (0, 0))
    true = true_level(image, 4, (75, 75))
    assert 0 < found.attrs["bound"] <= 0.01 * np.ptp(coarse)
    assert blurred.bound == found.attrs["bound"]
    assert "within" in caplog.text
    scale = np.ptp(true)
    difference = np.abs(found.values - (true - true.min()) / scale).max() * scale
    assert difference <= 2 * found.attrs["bound"], "of the value, and of the extremes it is scaled by"


def test_windows_and_their_places():
    found = run(scene((90, 101)), (18, 16))
    assert [a.width for a in found.axes] == [4, 4]
    for axis, n, p in zip(found.axes, (90, 101), (18, 16), strict=True):
        origins = axis.origins
        coarse = axis.coarse_origins(0, axis.count)
        assert coarse[-1] + axis.width == axis.coarse_size, "the last window ends with the level"
        assert set(np.diff(coarse[:-1])) == {2}
        assert origins[0] == 0
        assert origins[-1] == n - p
        np.testing.assert_array_equal(origins[:-1], coarse[:-1] * 4)


@given(st.integers(2, 60), st.integers(1, 6), st.integers(0, 150), st.floats(0, 0.95))
@settings(max_examples=60)
def test_windows_cover_the_level_and_their_patches_fit(patch, factor, more, overlap):
    from denoizarr.selection.roi_window_axes import WindowAxis

    if patch // factor < 2:
        return
    axis = WindowAxis(patch + more, patch, factor, overlap)
    coarse = axis.coarse_origins(0, axis.count)
    assert coarse[0] == 0
    assert coarse[-1] == axis.coarse_size - axis.width
    assert all(0 < b - a <= axis.stride for a, b in pairwise(coarse))
    origins = axis.origins
    assert origins.min() >= 0
    assert origins.max() + patch <= axis.size
    voxels = np.arange(axis.size)
    first, stop = axis.holding(voxels)
    for voxel, a, b in zip(voxels, first, stop, strict=True):
        inside = np.flatnonzero((origins <= voxel) & (voxel < origins + patch))
        assert list(range(a, b)) == list(inside)


def test_background_structure_and_bright_background():
    image = scene((90, 101))
    settings_of = {
        (background, bright): RegionOfInterest(
            select_background=background, background="bright" if bright else "dark", threshold=0.4, **SMALL
        )
        for background in (False, True)
        for bright in (False, True)
    }
    windows = run(image)
    chosen = {key: windows.selected(roi) for key, roi in settings_of.items()}
    np.testing.assert_array_equal(chosen[False, False], windows.means > 0.4)
    np.testing.assert_array_equal(chosen[True, False], windows.means < 0.4)
    np.testing.assert_array_equal(chosen[False, True], chosen[True, False])
    np.testing.assert_array_equal(chosen[True, True], chosen[False, False])


@pytest.mark.parametrize(
    ("equalize", "q"), [("global", 0.37), ("adaptive", 0.37), ("none", 0.0), ("none", 1.0)]
)
def test_a_quantile_threshold_is_the_exact_rank(small_blocks, equalize, q):
    image = scene((2, 66, 59))
    roi = RegionOfInterest(threshold=Quantile(q), equalize=equalize, **SMALL)
    windows = run(image, roi=roi)
    level = roi.preprocess(image).values.astype(np.float32)
    expected = np.quantile(level, q, method="inverted_cdf")
    assert windows.threshold_of(roi) == expected
    np.testing.assert_array_equal(windows.selected(roi), windows.means > expected)
    with pytest.raises(BadRequest, match="Quantile"):
        windows.selected(RegionOfInterest(threshold=Quantile(0.123)))


def test_cells_are_in_where_their_centre_lies_in_a_selected_window():
    image, patch = scene((2, 90, 101)), (16, 20)
    windows = run(image, patch)
    roi = RegionOfInterest(threshold=0.55, **SMALL)
    cells = Cells(("z", "y", "x"), image.shape, patch)
    found = windows.cells(cells, roi)
    assert found.shape == cells.counts
    selected = windows.selected(roi)
    for z, i, j in np.ndindex(*cells.counts):
        centre = [
            (k * p + min((k + 1) * p, n)) // 2 for k, p, n in zip((i, j), patch, (90, 101), strict=True)
        ]
        inside = [(o <= c) & (c < o + p) for o, c, p in zip(windows.origins, centre, patch, strict=True)]
        assert found[z, i, j] == selected[z][np.ix_(*inside)].any()
    assert 0 < found.mean() < 1
    with pytest.raises(BadRequest, match="another image"):
        windows.cells(Cells(("z", "y", "x"), (2, 90, 99), patch), roi)


def test_found_patches_are_the_selected_windows_in_raster_order():
    image = scene((2, 3, 60, 70))
    roi = RegionOfInterest(**SMALL)
    found = find_roi_patches(as_image(image, axes="tzyx"), 16, roi)
    assert found.dtype == np.int64
    windows = run(as_image(image, axes="tzyx"))
    t, z, i, j = np.nonzero(windows.selected(roi))
    expected = np.stack([t, z, windows.origins[0][i], windows.origins[1][j]], 1)
    np.testing.assert_array_equal(found, expected)
    assert (found[:, 2:] + 16 <= (60, 70)).all()
    volumes = find_roi_patches(scene((21, 40, 46)), (8, 16, 16), roi)
    assert volumes.shape[1] == 3


def test_fewer_patches_are_a_subset_that_depends_on_the_seed_alone():
    image = scene((3, 90, 101))
    roi = RegionOfInterest(**SMALL)
    everything = {tuple(o) for o in find_roi_patches(image, 16, roi)}
    few = find_roi_patches(image, 16, roi, max_patches=20, seed=3)
    assert len(few) == 20
    assert {tuple(o) for o in few} <= everything
    assert [tuple(o) for o in few] == sorted(map(tuple, few))
    again = find_roi_patches(da.from_array(image, chunks=(2, 33, 17)), 16, roi, max_patches=20, seed=3)
    np.testing.assert_array_equal(few, again)
    other = find_roi_patches(image, 16, roi, max_patches=20, seed=4)
    assert not np.array_equal(few, other)
    # Fewer are among more: the lowest hashes.
    ten = {tuple(o) for o in find_roi_patches(image, 16, roi, max_patches=10, seed=3)}
    assert ten < {tuple(o) for o in few}
    assert len(find_roi_patches(image, 16, roi, max_patches=10**6)) == len(everything)
    # Not the top of the image, as raster order would give.
    assert len({o[0] for o in few}) == 3


def test_hashes_are_even():
    hashes = hash_positions(np.arange(100_000), 7) >> np.uint64(60)
    counts = np.bincount(hashes.astype(int), minlength=16)
    assert ((counts - 6250) ** 2 / 6250).sum() < 40  # chi-square of 15 degrees of freedom: p = 5e-4
    assert hash_positions(np.array([5]), 0) != hash_positions(np.array([5]), 1)


def test_nothing_selected_shows_the_scores_and_the_threshold_that_would_do():
    image = scene((90, 101))
    with pytest.raises(EmptyIndex, match=r"means from 0\.\d+ \|.*█.*\| to .*threshold below") as caught:
        find_roi_patches(image, 16, RegionOfInterest(threshold=1.0, **SMALL))
    middle = float(str(caught.value).split("middle one, ")[1].split(",")[0])
    found = find_roi_patches(image, 16, RegionOfInterest(threshold=middle, **SMALL))
    assert len(found) == pytest.approx(run(image).means.size / 2, abs=2)
    with pytest.raises(EmptyIndex, match="threshold above"):
        find_roi_patches(image, 16, RegionOfInterest(threshold=0.0, select_background=True, **SMALL))


def test_preprocess_is_lazy_and_in_physical_units(small_blocks):
    image = as_image(scene((3, 66, 59)))
    image = image.assign_coords(y=xr.Variable("y", 10 + np.arange(66) * 0.5, {"units": "micrometer"}))
    found = RegionOfInterest(**SMALL).preprocess(image)
    assert isinstance(found.data, da.Array)
    assert found.shape == (3, 17, 15)
    assert found.y.attrs == {"units": "micrometer", "spacing": 2.0}
    assert found.y.values[0] == 10 + 1.5 * 0.5
    assert found.y.values[-1] == 10 + 64.5 * 0.5, "the last pixel has two lines"
    np.testing.assert_array_equal(found[1, 3:9, ::2].values, found.values[1, 3:9, ::2])


def test_suggested_thresholds():
    rng = np.random.default_rng(0)
    image = rng.normal(100, 3, (256, 256))
    image[:, 192:] += 400
    roi = RegionOfInterest(sigma=8)
    # Three quarters are dark: the ranks of the rest are above.
    assert roi.suggest_threshold(image) == pytest.approx(0.75, abs=0.06)
    assert RegionOfInterest(sigma=8, equalize="none").suggest_threshold(image) == pytest.approx(0.5, abs=0.15)
    even = np.cumsum(np.ones((256, 256)), axis=1) + rng.normal(0, 1, (256, 256))
    assert roi.suggest_threshold(even) == 0.5
    level = RegionOfInterest(sigma=8, equalize="none").preprocess(even).values
    suggested = RegionOfInterest(sigma=8, equalize="none").suggest_threshold(even)
    assert suggested == pytest.approx(np.median(level), abs=0.01)


# Kept results.


@pytest.mark.parametrize(
    ("dies_in", "equalize"),
    [
        ("make_boxes", "global"),
        ("make_knots", "global"),
        ("count_block", "global"),
        ("window_block", "global"),
        ("tile_block", "adaptive"),
    ],
)
def test_killed_and_run_again_gives_the_same_bytes(small_blocks, tmp_path, monkeypatch, dies_in, equalize):
    image = da.from_array(scene((4, 70, 61)), chunks=(1, 64, 64))
    roi = RegionOfInterest(equalize=equalize, sigma=100)

    def options(name):
        ledger = Ledger.claim(str(tmp_path / f"{name}.ledger"), {"test": 1})
        return {"destination": str(tmp_path / name), "ledger": ledger, "roi": roi}

    whole = run(image, **options("whole"))
    module = {"window_block": windows_module, "make_boxes": roi_work, "make_knots": roi_work}.get(
        dies_in, roi_passes
    )
    original, calls = getattr(module, dies_in), []

    def dies(spec, block):
        calls.append(block)
        if len(calls) == 4:
            raise OSError("killed")
        return original(spec, block)

    with monkeypatch.context() as patch:
        patch.setattr(module, dies_in, dies)
        with pytest.raises(BlockFailed):
            run(image, **options("killed"))
    resumed = run(image, threads=2, **options("killed"))
    np.testing.assert_array_equal(resumed.means, whole.means)
    assert objects(tmp_path / "killed") == objects(tmp_path / "whole")


def test_both_stages_share_what_is_kept(tmp_path, monkeypatch):
    image, where = scene((3, 90, 101)), str(tmp_path / "roi")
    first = run(image, destination=where)
    monkeypatch.setattr(roi_work, "run_step", refuse)
    background = RegionOfInterest(select_background=True, threshold=0.2, background="bright", **SMALL)
    again = run(image, roi=background, destination=where)
    np.testing.assert_array_equal(first.means, again.means)


def test_a_new_quantile_reads_no_voxel_again(tmp_path, monkeypatch):
    image, where = scene((3, 90, 101)), str(tmp_path / "roi")
    run(image, destination=where)
    monkeypatch.setattr(roi_work, "make_boxes", refuse)
    roi = RegionOfInterest(threshold=Quantile(0.3), **SMALL)
    value = run(image, roi=roi, destination=where).threshold_of(roi)
    expected = np.quantile(_level(image), 0.3, method="inverted_cdf")
    assert value == expected
    monkeypatch.setattr(roi_work, "run_step", refuse)
    assert run(image, roi=roi, destination=where).threshold_of(roi) == expected


def _level(image):
    level = np.stack([true_level(plane, 4, (3, 3)) for plane in image])
    return exposure.equalize_hist(level, 1 << 16).astype(np.float32)


def test_another_image_or_setting_begins_anew(tmp_path):
    where = str(tmp_path / "roi")
    run(scene((90, 101)), destination=where)
    other = scene((90, 101), seed=1)
    np.testing.assert_array_equal(run(other, destination=where).means, run(other).means)
    roi = RegionOfInterest(sigma=4)
    np.testing.assert_array_equal(run(other, roi=roi, destination=where).means, run(other, roi=roi).means)


def test_foreign_data_are_never_replaced(tmp_path):
    group = zarr.open_group(str(tmp_path / "mine"), mode="w", attributes={"title": "precious"})
    group.create_array("means", shape=(3,), dtype="u1")
    for ledger in (None, Ledger.claim(str(tmp_path / "ledger"), {})):
        with pytest.raises(OutputExists):
            run(scene((90, 101)), destination=str(tmp_path / "mine"), ledger=ledger)


def test_means_that_were_lost_are_noticed(tmp_path):
    where = tmp_path / "roi"
    windows = run(scene((90, 101)), destination=str(where))
    (where / "means" / "c" / "0" / "0").unlink()
    with pytest.raises(IncompleteOutput, match="means"):
        _ = windows.means


# Bad requests and bad data.


def test_the_patch_must_fit():
    with pytest.raises(PatchTooLarge):
        find_roi_patches(scene((20, 90)), 32, RegionOfInterest())
    with pytest.raises(BadRequest, match=r"at least 0\.333333 \(1 / 3\)"):
        find_roi_patches(scene((90, 90)), 7, RegionOfInterest())
    with pytest.raises(BadRequest, match="without z"):
        find_roi_patches(scene((90, 90)), (8, 8, 8), RegionOfInterest())


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"scale_factor": 0.3}, r"0\.25 \(1 / 4\) or 0\.333333 \(1 / 3\)"),
        ({"scale_factor": 2.0}, "scale_factor"),
        ({"scale_factor": 0.0}, "scale_factor"),
        ({"sigma": -1.0}, "sigma"),
        ({"sigma": float("nan")}, "sigma"),
        ({"overlap": 1.0}, "overlap"),
        ({"equalize": "clahe"}, "equalize"),
        ({"background": "grey"}, "background"),
        ({"threshold": float("nan")}, "threshold"),
        ({"score": 3}, "score"),
    ],
)
def test_settings_are_checked(setting, says):
    with pytest.raises(BadRequest, match=says):
        RegionOfInterest(**setting)


def test_a_third_is_a_scale():
    assert RegionOfInterest(scale_factor=1 / 3).factor == 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_voxels_are_named(small_blocks, value):
    image = scene((3, 60, 60), "float32")
    image[1, 33, 2] = value
    with pytest.raises(NonFiniteData, match="z=1, y=33, x=2"):
        find_roi_patches(image, 16, RegionOfInterest())


def test_a_constant_image_and_a_missing_channel():
    with pytest.raises(DegenerateData, match="constant"):
        find_roi_patches(np.full((60, 60), 7, np.uint8), 16, RegionOfInterest())
    with pytest.raises(BadRequest, match="ref_channel"):
        find_roi_patches(scene((60, 60)), 16, RegionOfInterest(ref_channel=1))


def test_the_picture_shows_the_plane_with_the_most_patches():
    image = scene((3, 60, 70))
    origins = np.array([(0, 0, 0), (2, 4, 8), (2, 20, 8), (1, 0, 0)])
    figure = plot_roi_patches(image, origins, 16)
    assert "n = 4" in figure.get_suptitle()
    assert len(figure.axes[1].collections[0].get_segments()) == 2
    assert "z = 2" in figure.axes[0].get_title(loc="left")
    volumes = plot_roi_patches(image, np.array([(0, 0, 0), (1, 4, 8)]), (2, 16, 16))
    assert len(volumes.axes[1].collections[0].get_segments()) == 2, "both reach the plane z = 1"
    with pytest.raises(BadRequest, match="one column for each of z, y, x"):
        plot_roi_patches(image, origins[:, 1:], 16)


# Scores of one's own.


def page_texture(image):
    return roi_scores.texture(image)


def test_the_pages_custom_function():
    """Advanced usage, "Custom ROI Function": texture above its 75th percentile."""
    image = scene((120, 130)).clip(0, 255).astype(np.uint8)
    image[:60, :60] = (image[:60, :60] // 8) * 8
    roi = RegionOfInterest(
        scale_factor=1.0, score=Criterion(roi_scores.texture, above=Quantile(0.75), halo=24), threshold=0.5
    )
    found = run(image, (32, 32), roi)
    scaled = (image - float(image.min())) / np.ptp(image)
    texture = roi_scores.texture(scaled).astype(np.float32)
    mask = texture > np.quantile(texture, 0.75, method="inverted_cdf")
    np.testing.assert_allclose(found.means, true_means(mask, found.axes), rtol=1e-12)
    origins = find_roi_patches(image, 32, roi)
    assert 0 < len(origins) < found.means.size


def test_the_pages_several_criteria(small_blocks):
    """Advanced usage, "Multi-Criterion Selection": a range of intensities, and edges."""
    image = scene((60, 70))
    mid_grey = Criterion(above=0.3, below=0.7)
    edges = Criterion(roi_scores.gradient, above=Quantile(0.25), halo=1)
    roi = RegionOfInterest(scale_factor=1.0, score=mid_grey & edges, threshold=0.3)
    found = run(image, (16, 16), roi)
    scaled = (image - float(image.min())) / np.ptp(image)
    gradient = roi_scores.gradient(scaled).astype(np.float32)
    in_range = (scaled > 0.3) & (scaled < 0.7)
    steep = gradient > np.quantile(gradient, 0.25, method="inverted_cdf")
    np.testing.assert_allclose(found.means, true_means(in_range & steep, found.axes), rtol=1e-12)
    assert found.selected(roi).any()
    either = run(image, (16, 16), RegionOfInterest(scale_factor=1.0, score=mid_grey | edges))
    np.testing.assert_allclose(either.means, true_means(in_range | steep, either.axes), rtol=1e-12)
    both = run(image, (16, 16), RegionOfInterest(scale_factor=1.0, score=[mid_grey, edges]))
    np.testing.assert_array_equal(both.means, found.means)


def test_a_plain_function_is_its_own_map_and_a_boolean_one_a_fraction(small_blocks):
    image = scene((60, 70))
    coarse = true_level(image, 4, (0, 0))
    scaled = (coarse - coarse.min()) / np.ptp(coarse)
    found = run(image, (16, 16), RegionOfInterest(score=roi_scores.gradient))
    np.testing.assert_allclose(found.means, true_means(roi_scores.gradient(scaled), found.axes), rtol=1e-9)
    shade = run(image, (16, 16), RegionOfInterest(score=roi_scores.shadows))
    np.testing.assert_allclose(shade.means, true_means(scaled < 0.5, shade.axes), rtol=1e-12)
    roi = RegionOfInterest(score=roi_scores.gradient, threshold=Quantile(0.5))
    windows = run(image, (16, 16), roi)
    level = roi.preprocess(image).values.astype(np.float32)
    assert windows.threshold_of(roi) == np.quantile(level, 0.5, method="inverted_cdf")


def test_scores_do_not_depend_on_blocks_where_the_halo_is_enough(monkeypatch, request):
    image = scene((90, 101))
    enough = RegionOfInterest(score=Criterion(roi_scores.texture, halo=24), scale_factor=0.5)
    short = RegionOfInterest(score=Criterion(roi_scores.texture, halo=0), scale_factor=0.5)
    before = [run(image, roi=roi).means for roi in (enough, short)]
    request.getfixturevalue("small_blocks")
    after = [run(image, roi=roi).means for roi in (enough, short)]
    np.testing.assert_allclose(after[0], before[0], rtol=1e-12)
    assert not np.allclose(after[1], before[1]), "without a halo they would"


@pytest.mark.parametrize(
    ("score", "error", "says"),
    [
        (roi_scores.wrong_shape, BadRequest, "another shape"),
        (roi_scores.undefined, NonFiniteData, "undefined"),
    ],
)
def test_scores_that_cannot_be_used(score, error, says):
    with pytest.raises(error, match=says):
        run(scene((60, 70)), roi=RegionOfInterest(score=score))


def test_a_score_that_only_this_process_knows_is_not_kept(tmp_path):
    roi = RegionOfInterest(score=lambda level: level)
    assert run(scene((60, 70)), roi=roi).means.size
    with pytest.raises(BadRequest, match="module"):
        run(scene((60, 70)), roi=roi, destination=str(tmp_path / "roi"))


def test_identities_tell_scores_apart():
    from functools import partial

    kinds = [
        RegionOfInterest(),
        RegionOfInterest(score=roi_scores.gradient),
        RegionOfInterest(score=Criterion(roi_scores.gradient, halo=1)),
        RegionOfInterest(score=Criterion(roi_scores.gradient, above=0.1)),
        RegionOfInterest(score=Criterion(roi_scores.gradient, above=Quantile(0.1))),
        RegionOfInterest(score=partial(np.power, 2)),
        RegionOfInterest(score=partial(np.power, 3)),
        RegionOfInterest(score=Criterion(above=0.3) & Criterion(below=0.7)),
        RegionOfInterest(score=Criterion(above=0.3) | Criterion(below=0.7)),
    ]
    assert len({repr(roi.level_identity()) for roi in kinds}) == len(kinds)
    assert RegionOfInterest(threshold=Quantile(0.3)).settings()["threshold"] == {"quantile": 0.3}


def test_on_a_cluster(client, tmp_path):
    image = scene((4, 120, 130))
    stored = zarr.create_array(
        str(tmp_path / "image.zarr"), shape=image.shape, chunks=(2, 64, 64), dtype="u2"
    )
    stored[:] = image
    roi = RegionOfInterest(**SMALL)
    ledger = Ledger.claim(str(tmp_path / "ledger"), {})
    found = run(stored, roi=roi, destination=str(tmp_path / "roi"), ledger=ledger, client=client)
    np.testing.assert_array_equal(found.means, run(image, roi=roi).means)
    scored = RegionOfInterest(score=Criterion(np.square, above=Quantile(0.3)) & Criterion(below=0.8))
    there = run(stored, roi=scored, destination=str(tmp_path / "scored"), client=client)
    np.testing.assert_array_equal(there.means, run(image, roi=scored).means)
    with pytest.raises(BadRequest, match="destination"):
        run(stored, roi=roi, client=client)
