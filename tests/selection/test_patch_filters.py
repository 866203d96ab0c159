"""Lazy maps equal the scores of whole planes or volumes, wherever the image is from, however it is cut."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from denoizarr.errors import BadRequest, DegenerateData, NonFiniteData
from denoizarr.kernels.patch_scores import coverage_regions, max_regions, mean_std_regions, shannon_regions
from denoizarr.kernels.regions import cell_counts, cells_from_regions
from denoizarr.selection import filter_maps, sweeps
from denoizarr.selection.filters import (
    MaskPatchFilter,
    MaxPatchFilter,
    MeanStdPatchFilter,
    ShannonPatchFilter,
)
from denoizarr.stores.images import open_image
from tests.plain_scores import (
    binned,
    by_cell,
    by_region,
    entropy,
    mean_of,
    percentiles,
    reached,
    std_of,
)

FILTERS = [MaxPatchFilter, MeanStdPatchFilter, ShannonPatchFilter]
ALL_FILTERS = [*FILTERS, MaskPatchFilter]


def noise(shape, dtype="uint16", seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(200, 40, shape)
    values[..., : shape[-1] // 2] *= 0.3
    return values.astype(dtype)


def mask_like(shape, seed=0):
    return (np.random.default_rng(seed).random(shape) < 0.2).astype(np.uint8)


def score_of(kind, volume, patch, bounds, coverage):
    """The regions of one volume (z, y, x), with a leading axis of values."""
    if kind is MeanStdPatchFilter:
        return mean_std_regions(volume, patch)
    if kind is MaxPatchFilter:
        return max_regions(volume, patch, coverage)[np.newaxis]
    if kind is MaskPatchFilter:
        return coverage_regions(volume, patch)[np.newaxis]
    return shannon_regions(volume, patch, bounds)[np.newaxis]


def expected_map(image, patch, kind, *, coverage=None):
    """Every plane (2D patches) or volume scored in one piece; the bins of floats are the whole image's."""
    n = len(patch)
    coverage = (0.25 if n == 2 else 0.125) if coverage is None else coverage
    bounds = percentiles(image) if image.dtype.kind == "f" else None
    maps = []
    for index in np.ndindex(image.shape[:-n]):
        volume = image[index] if n == 3 else image[index][np.newaxis]
        step = patch if n == 3 else (1, *patch)
        regions = score_of(kind, volume, step, bounds, coverage)
        counts = cell_counts(volume.shape, step)
        maps.append(cells_from_regions(regions, counts).reshape(-1, *counts[3 - n :]))
    # To (statistic, leading dims, cells).
    stacked = np.moveaxis(np.stack(maps), 0, 1)
    shaped = stacked.reshape(stacked.shape[0], *image.shape[:-n], *stacked.shape[2:])
    return shaped if kind is MeanStdPatchFilter else shaped[0]


DTYPES = st.sampled_from(["uint8", "uint16", "int16", ">u2", "int32", "float16", "float32", "float64"])
PATCHES = st.one_of(
    st.tuples(st.integers(2, 9), st.integers(2, 9)),
    st.tuples(st.integers(1, 4), st.integers(2, 7), st.integers(2, 7)),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(5, 40), st.integers(5, 40)),
    chunks=st.tuples(st.integers(1, 5), st.integers(5, 25), st.integers(5, 25)),
    patch=PATCHES,
    dtype=DTYPES,
    kind=st.sampled_from(FILTERS),
    room=st.sampled_from([1000, 4000, 10**9]),
)
def test_map_does_not_depend_on_blocks_or_chunks(set_sweeps, shape, chunks, patch, dtype, kind, room):
    set_sweeps(plane=room, volume=2 * room, block=3 * room, group=room)
    image = noise(shape, dtype)
    found = kind.filter_map(da.from_array(image, chunks=chunks), patch)
    np.testing.assert_array_equal(found.values, expected_map(image, patch, kind))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(2, 12), st.integers(8, 40), st.integers(8, 40)),
    chunks=st.tuples(st.integers(1, 5), st.integers(3, 25), st.integers(3, 25)),
    corner=st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 7)),
    patch=PATCHES,
    dtype=st.sampled_from(["uint16", "float32"]),
    kind=st.sampled_from(FILTERS),
    room=st.sampled_from([1000, 4000, 10**9]),
)
def test_a_stored_slice_has_the_map_of_its_own_voxels(
    set_sweeps, tmp_path_factory, shape, chunks, corner, patch, dtype, kind, room
):
    """Its box begins inside a chunk: blocks and slabs are counted from there."""
    set_sweeps(plane=room, volume=2 * room, block=3 * room, group=room)
    image = noise(shape, dtype)
    path = str(tmp_path_factory.mktemp("sliced") / "a")
    zarr.create_array(path, shape=shape, chunks=chunks, dtype=dtype)[...] = image
    index = [slice(min(c, n - 1), None) for c, n in zip(corner, shape, strict=True)]
    part = open_image(path, axes="zyx").isel(dict(zip("zyx", index, strict=True)))
    found = kind.filter_map(part, patch)
    np.testing.assert_array_equal(found.values, expected_map(image[tuple(index)], patch, kind))


@pytest.mark.parametrize("patch", [(8, 8), (2, 8, 8)])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_every_kind_of_input_gives_the_same_map(small_sweeps, tmp_path, patch, dtype):
    image = noise((5, 34, 29), dtype)
    stores = []
    for name, layout in {
        "plain": {"chunks": (2, 16, 16)},
        "odd": {"chunks": (3, 13, 17)},
        "sharded": {"chunks": (1, 8, 8), "shards": (2, 24, 16)},
    }.items():
        stores.append(str(tmp_path / name))
        zarr.create_array(stores[-1], shape=image.shape, dtype=image.dtype, **layout)[...] = image
    inputs = [image, da.from_array(image, chunks=(3, 11, 20)), xr.DataArray(image, dims=("z", "y", "x"))]
    inputs += [zarr.open_array(path, mode="r") for path in stores]
    inputs += [open_image(path, axes="zyx") for path in stores]
    for kind in FILTERS:
        expected = expected_map(image, patch, kind)
        for given_image in inputs:
            np.testing.assert_array_equal(kind.filter_map(given_image, patch).values, expected)
        assert kind.filter_map(inputs[-1], patch).data.npartitions > 4


@pytest.mark.parametrize("patch", [(8, 8), (2, 8, 8)])
@pytest.mark.parametrize("dims", ["tzyx", "czyx", "tczyx"])
def test_times_and_channels_are_scored_one_by_one(small_sweeps, dims, patch):
    shape = {"t": 2, "c": 3, "z": 5, "y": 21, "x": 26}
    image = noise([shape[d] for d in dims])
    found = MeanStdPatchFilter.filter_map(xr.DataArray(image, dims=tuple(dims)), patch)
    assert found.dims == ("statistic", *dims)
    np.testing.assert_array_equal(found.values, expected_map(image, patch, MeanStdPatchFilter))
    lead = len(dims) - 3
    for index in np.ndindex(image.shape[:lead]):
        one = MeanStdPatchFilter.filter_map(image[index], patch)
        np.testing.assert_array_equal(found.values[(slice(None), *index)], one.values)


@pytest.mark.parametrize("patch", [(9, 7), (2, 9, 7)])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_map_is_its_plain_definition(small_sweeps, patch, dtype):
    """From voxels to cells with nothing of this package in between."""
    image = noise((4, 30, 25), dtype)
    step = patch if len(patch) == 3 else (1, *patch)
    volumes = [image] if len(patch) == 3 else [plane[np.newaxis] for plane in image]
    bounds = percentiles(image)

    def plain(score):
        maps = [by_cell(v.shape, step, by_region(v, step, score)) for v in volumes]
        return np.concatenate(maps)

    coverage = 0.125 if len(patch) == 3 else 0.25
    binned_entropy = entropy if dtype == "uint16" else lambda region: entropy(binned(region, bounds))
    np.testing.assert_array_equal(
        MaxPatchFilter.filter_map(image, patch).values, plain(lambda region: reached(region, step, coverage))
    )
    np.testing.assert_allclose(
        MeanStdPatchFilter.filter_map(image, patch).values, [plain(mean_of), plain(std_of)], rtol=1e-12
    )
    np.testing.assert_allclose(
        ShannonPatchFilter.filter_map(image, patch).values, plain(binned_entropy), rtol=0, atol=1e-10
    )
    mask = mask_like(image.shape)
    volumes = [mask] if len(patch) == 3 else [plane[np.newaxis] for plane in mask]
    np.testing.assert_allclose(MaskPatchFilter.filter_map(mask, patch).values, plain(np.mean), rtol=1e-15)


def test_a_plane_and_a_volume_of_one_plane_have_the_same_scores():
    image = noise((1, 40, 33))
    for kind in FILTERS:
        settings_of_max = {"coverage": 0.25} if kind is MaxPatchFilter else {}
        deep = kind.filter_map(image, (1, 8, 8), **settings_of_max).values
        np.testing.assert_array_equal(deep, kind.filter_map(image, 8).values)


def test_a_map_cut_without_overlap_would_score_otherwise():
    """The control of the tests above: they can fail."""
    image = noise((1, 48, 50))
    whole = MaxPatchFilter.filter_map(image, 8).values
    halves = [MaxPatchFilter.filter_map(part, 8).values for part in (image[:, :24], image[:, 24:])]
    assert np.concatenate(halves, axis=1).shape == whole.shape
    assert not np.array_equal(np.concatenate(halves, axis=1), whole)


def test_what_a_sweep_keeps_of_the_last_slab_is_needed(small_sweeps, monkeypatch, tmp_path):
    """Another control: the same seam, inside a block."""
    image = noise((1, 64, 20))
    path = str(tmp_path / "a")
    zarr.create_array(path, shape=image.shape, chunks=(1, 8, 8), dtype=image.dtype)[...] = image
    stored = open_image(path, axes="zyx")
    expected = expected_map(image, (8, 8), MeanStdPatchFilter)
    np.testing.assert_array_equal(MeanStdPatchFilter.filter_map(stored, 8).values, expected)
    slabs = sweeps.Sweep.slabs

    def forgetful(sweep, reader, block):
        for slab in slabs(sweep, reader, block):
            blank = slab.voxels.copy()
            blank[:, : -slab.read.shape[1]] = 0
            yield sweeps.Slab(slab.regions, blank, slab.box, slab.read)

    monkeypatch.setattr(sweeps.Sweep, "slabs", forgetful)
    assert not np.array_equal(MeanStdPatchFilter.filter_map(stored, 8).values, expected)


def test_one_task_reads_one_large_box(tmp_path):
    image = noise((6, 64, 64))
    stored = zarr.create_array(str(tmp_path / "a"), shape=image.shape, chunks=(1, 16, 16), dtype=image.dtype)
    stored[...] = image
    for patch in (8, (2, 8, 8)):
        lazy = ShannonPatchFilter.filter_map(stored, patch)
        assert lazy.data.npartitions == 1, "six small planes are one block"
        (optimised,) = dask.optimize(lazy.data)
        assert len(dict(optimised.__dask_graph__())) <= 3


def test_nothing_is_read_before_it_is_asked_for():
    def explode(block):
        raise AssertionError("read")

    image = da.zeros((4, 64, 64), dtype="float32", chunks=32).map_blocks(
        explode, dtype="float32", meta=np.empty((0, 0, 0), "f4")
    )
    for kind in ALL_FILTERS:
        for patch in (8, (2, 8, 8)):
            lazy = kind.filter_map(image, patch)
            kind.expand_to(lazy, image)


def test_dims_and_coordinates_are_those_of_cell_centres():
    image = xr.DataArray(
        noise((2, 3, 2, 20, 33)),
        dims=("t", "c", "z", "y", "x"),
        coords={
            "z": ("z", [5.0, 7.0], {"units": "micrometer"}),
            "y": ("y", 10 + 0.5 * np.arange(20), {"units": "micrometer"}),
        },
    )
    found = MeanStdPatchFilter.filter_map(image, (8, 16))
    assert found.dims == ("statistic", "t", "c", "z", "y", "x")
    assert found.shape == (2, 2, 3, 2, 3, 3)
    assert list(found.statistic.values) == ["mean", "std"]
    np.testing.assert_allclose(found.y, [11.75, 15.75, 18.75])  # the last cell is 4 voxels short
    np.testing.assert_allclose(found.x, [7.5, 23.5, 32.0])
    np.testing.assert_allclose(found.z, [5, 7])
    assert found.y.attrs["units"] == "micrometer"
    assert found.dtype == np.float64
    one = MeanStdPatchFilter.filter_map(image, (8, 16), ref_channel=2)
    assert one.dims == ("statistic", "t", "z", "y", "x")
    np.testing.assert_array_equal(one.values, found.isel(c=2).values)
    deep = MaxPatchFilter.filter_map(image, (2, 8, 16))
    assert deep.shape == (2, 3, 1, 3, 3)
    np.testing.assert_allclose(deep.z, [6])
    assert deep.attrs["patch_size"] == [2, 8, 16]


def test_the_coverage_of_the_max_filter_is_a_quarter_and_an_eighth_unless_told():
    image = noise((6, 40, 40))
    for patch, usual in (((8, 8), 0.25), ((2, 8, 8), 0.125)):
        found = MaxPatchFilter.filter_map(image, patch)
        assert found.attrs["coverage"] == usual
        told = MaxPatchFilter.filter_map(image, patch, coverage=usual)
        np.testing.assert_array_equal(found.values, told.values)
        other = MaxPatchFilter.filter_map(image, patch, coverage=0.75)
        np.testing.assert_array_equal(other.values, expected_map(image, patch, MaxPatchFilter, coverage=0.75))
        assert (other.values < found.values).any()


@pytest.mark.parametrize("patch", [8, (2, 8, 8)])
def test_channels_of_floats_have_their_own_bins(patch):
    image = noise((2, 4, 40, 40), "float32")
    image[1] *= 1000
    data = xr.DataArray(image, dims=("c", "z", "y", "x"))
    both = ShannonPatchFilter.filter_map(data, patch).values
    for c in range(2):
        np.testing.assert_array_equal(both[c], ShannonPatchFilter.filter_map(image[c], patch).values)
        np.testing.assert_array_equal(
            both[c], ShannonPatchFilter.filter_map(data, patch, ref_channel=c).values
        )


@pytest.mark.parametrize("kind", ALL_FILTERS)
@pytest.mark.parametrize("patch", [(8, 5), (2, 8, 5)])
def test_expand_to_gives_every_voxel_its_cell(kind, patch):
    image = noise((3, 21, 34))
    lazy = kind.filter_map(image, patch)
    full = kind.expand_to(lazy, image)
    assert isinstance(full.data, da.Array)
    expected = np.repeat(np.repeat(lazy.values, 8, axis=-2), 5, axis=-1)[..., :21, :34]
    if len(patch) == 3:
        expected = np.repeat(expected, 2, axis=-3)[..., :3, :, :]
    np.testing.assert_array_equal(full.values, expected)
    with pytest.raises(BadRequest, match="another image"):
        kind.expand_to(lazy, noise((3, 40, 34)))
    with pytest.raises(BadRequest, match="not a filter map"):
        kind.expand_to(xr.DataArray(np.zeros((3, 3, 7)), dims=("z", "y", "x")), image)


def test_apply_filter_keeps_values_at_the_threshold():
    image = noise((32, 32))
    found = MaxPatchFilter.filter_map(image, 8)
    threshold = float(found.values[1, 1])
    np.testing.assert_array_equal(
        MaxPatchFilter.apply_filter(found, threshold).values, found.values >= threshold
    )
    pair = MeanStdPatchFilter.filter_map(image, 8)
    mean, std = pair.values
    np.testing.assert_array_equal(MeanStdPatchFilter.apply_filter(pair, 100).values, mean >= 100)
    both = MeanStdPatchFilter.apply_filter(pair, 100, std_threshold=30)
    np.testing.assert_array_equal(both.values, (mean >= 100) & (std >= 30))
    chosen = MeanStdPatchFilter(100, 30)
    np.testing.assert_array_equal(chosen.keeps(pair.values, chosen.thresholds), both.values)
    single = MaxPatchFilter(threshold)
    np.testing.assert_array_equal(single.keeps(found.values, single.thresholds), found.values >= threshold)


@pytest.mark.parametrize("patch", [16, (4, 16, 16)])
def test_suggested_threshold_separates_signal_from_background(patch):
    image = np.random.default_rng(0).poisson(5, (4, 256, 256)).astype(np.uint16)
    image[:, 64:192, 64:192] = np.random.default_rng(1).poisson(300, (4, 128, 128))
    truth = np.zeros((16, 16), bool)
    truth[3:13, 3:13] = True  # a region that touches the signal holds some of it
    for kind in FILTERS:
        found = kind.filter_map(image, patch)
        keep = kind.apply_filter(found, kind.suggest_threshold(found)).values
        assert keep[:, 5:11, 5:11].all(), kind.__name__
        assert not keep[:, ~truth].any(), kind.__name__


def test_where_there_is_no_background_all_is_kept():
    image = np.random.default_rng(0).poisson(300, (256, 256)).astype(np.uint16)
    for kind in FILTERS:
        found = kind.filter_map(image, 16)
        assert kind.apply_filter(found, kind.suggest_threshold(found)).values.all(), kind.__name__


def test_a_suggestion_does_not_depend_on_the_maps_chunks():
    image = noise((3, 90, 80))
    found = MeanStdPatchFilter.filter_map(image, 8)
    expected = MeanStdPatchFilter.suggest_threshold(found.compute())
    assert MeanStdPatchFilter.suggest_threshold(found.chunk(dict.fromkeys("zyx", 3))) == expected
    parts = found.isel(z=slice(0, 1)), found.isel(z=slice(1, None))
    assert MeanStdPatchFilter.suggestion(*parts).threshold == expected


def test_the_suggested_coverage_of_a_mask_is_the_default():
    mask = mask_like((4, 32, 32))
    assert MaskPatchFilter.suggest_threshold(MaskPatchFilter.filter_map(mask, 8)) == 0.25
    assert MaskPatchFilter.suggest_threshold(MaskPatchFilter.filter_map(mask, (2, 8, 8))) == 0.125


def test_a_map_without_a_finite_score_suggests_nothing():
    found = MaxPatchFilter.filter_map(noise((32, 32)), 8) * np.nan
    with pytest.raises(DegenerateData, match="no finite score"):
        MaxPatchFilter.suggest_threshold(found)


def test_requests_that_cannot_be_are_refused_by_name():
    image = noise((3, 32, 32))
    with pytest.raises(BadRequest, match=r"3D patches need an image with z.*\(4, 8, 8\)"):
        ShannonPatchFilter.filter_map(image[0], (4, 8, 8))
    with pytest.raises(BadRequest, match="coverage"):
        ShannonPatchFilter.filter_map(image, 8, coverage=0.5)
    with pytest.raises(BadRequest, match="coverage"):
        MaskPatchFilter.filter_map(image, 8, coverage=0.5)
    for coverage in (25, -0.1, float("nan")):
        with pytest.raises(BadRequest, match="coverage"):
            MaxPatchFilter.filter_map(image, 8, coverage=coverage)
        with pytest.raises(BadRequest, match="coverage"):
            MaxPatchFilter(5, coverage=coverage)
        with pytest.raises(BadRequest, match="coverage"):
            MaskPatchFilter(coverage)
    with pytest.raises(BadRequest, match="ref_channel"):
        ShannonPatchFilter.filter_map(image, 8, ref_channel=1)
    several = xr.DataArray(image, dims=("c", "y", "x"))
    for channel in (3, -1):
        with pytest.raises(BadRequest, match=rf"ref_channel: got {channel}, expected 0 to 2"):
            ShannonPatchFilter.filter_map(several, 8, ref_channel=channel)
    for size in (1, (8,), (1, 8), (0, 8, 8), (2, 8, 1), (2, 2, 8, 8), 8.5, (4000, 4000)):
        with pytest.raises(BadRequest, match="patch_size"):
            ShannonPatchFilter.filter_map(image, size)
    with pytest.raises(BadRequest, match="threshold"):
        ShannonPatchFilter(float("nan"))
    with pytest.raises(BadRequest, match="no threshold"):
        ShannonPatchFilter().main_threshold()


@pytest.mark.parametrize("patch", [8, (2, 8, 8)])
@pytest.mark.parametrize("kind", ALL_FILTERS)
def test_nan_is_named_not_scored(small_sweeps, tmp_path, kind, patch):
    image = noise((4, 32, 32), "float32")
    image[1, 7, 9] = np.nan
    path = str(tmp_path / "a")
    zarr.create_array(path, shape=image.shape, chunks=(1, 8, 8), dtype=image.dtype)[...] = image
    for given_image in (image, path):
        opened = given_image if given_image is image else open_image(path, axes="zyx")
        with pytest.raises(NonFiniteData, match="z=1, y=7, x=9"):
            kind.filter_map(opened, patch).compute(scheduler="synchronous")


def test_pieces_of_a_map_are_all_of_it():
    found = MeanStdPatchFilter.filter_map(noise((3, 90, 80)), 8)
    for filter_map in (found.compute(), found.chunk({"z": 1, "y": 5})):
        pieces = list(filter_maps.pieces_of(filter_map))
        assert sum(piece.size for piece in pieces) == found.size
        assert np.sort(np.concatenate([p.ravel() for p in pieces])).tolist() == sorted(
            found.values.ravel().tolist()
        )
