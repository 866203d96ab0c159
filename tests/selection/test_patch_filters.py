"""Lazy maps equal the kernels on whole planes, whatever the image comes from and however it is cut."""

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from denoizarr.errors import BadRequest, DegenerateData, NonFiniteData
from denoizarr.kernels.patch_scores import max_scores, mean_std_scores, shannon_scores
from denoizarr.selection import cells
from denoizarr.selection.filters import MaxPatchFilter, MeanStdPatchFilter, ShannonPatchFilter
from denoizarr.selection.thresholds import otsu_threshold

FILTERS = [MaxPatchFilter, MeanStdPatchFilter, ShannonPatchFilter]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few cells, so that halos matter; the default ones hold a whole test image."""
    monkeypatch.setattr(cells, "_BLOCK_BYTES", 1500)
    monkeypatch.setattr(cells, "_GROUP_BYTES", 1500)


def noise(shape, dtype="uint16", seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(200, 40, shape)
    values[..., : shape[-1] // 2] *= 0.3
    return values.astype(dtype)


def expected_map(image, patch, kind):
    planes = image.reshape(-1, *image.shape[-2:])
    if kind is MeanStdPatchFilter:
        maps = np.stack([mean_std_scores(p, patch) for p in planes], axis=1)
        return maps.reshape(2, *image.shape[:-2], *maps.shape[-2:])
    if kind is MaxPatchFilter:
        maps = np.stack([max_scores(p, patch) for p in planes])
    else:
        bounds = None
        if image.dtype.kind == "f":
            low, high = np.quantile(image.astype("f4"), [0.001, 0.999], method="inverted_cdf")
            bounds = (float(low), float(high))
        maps = np.stack([shannon_scores(p, patch, bounds) for p in planes])
    return maps.reshape(*image.shape[:-2], *maps.shape[-2:])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(5, 60), st.integers(5, 60)),
    chunks=st.tuples(st.integers(1, 2), st.integers(5, 40), st.integers(5, 40)),
    patch=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "float32"]),
    kind=st.sampled_from(FILTERS),
)
def test_map_does_not_depend_on_blocks_or_chunks(small_blocks, shape, chunks, patch, dtype, kind):
    image = noise(shape, dtype)
    found = kind.filter_map(da.from_array(image, chunks=chunks), patch)
    np.testing.assert_array_equal(found.values, expected_map(image, patch, kind))


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_every_kind_of_input_gives_the_same_map(small_blocks, tmp_path, kind, dtype):
    image = noise((3, 50, 44), dtype)
    path = str(tmp_path / "plain.zarr")
    stored = zarr.create_array(path, shape=image.shape, chunks=(2, 16, 16), dtype=image.dtype)
    stored[...] = image
    from denoizarr.stores.images import open_image

    inputs = [image, da.from_array(image, chunks=20), xr.DataArray(image, dims=("z", "y", "x")), stored]
    inputs.append(open_image(path, axes="zyx"))
    expected = expected_map(image, (8, 8), kind)
    for given_image in inputs:
        np.testing.assert_array_equal(kind.filter_map(given_image, 8).values, expected)
    assert kind.filter_map(inputs[-1], 8).data.npartitions > 4


def test_without_its_halo_a_block_would_score_otherwise(small_blocks, monkeypatch):
    """The control of the tests above: they can fail."""
    monkeypatch.setattr(cells.Cells, "with_halo", lambda _, box: box)
    monkeypatch.setattr("denoizarr.selection.scores._inside", lambda _: (slice(None), slice(None)))
    image = noise((1, 50, 50))
    found = MaxPatchFilter.filter_map(image, 8).values
    assert not np.array_equal(found, expected_map(image, (8, 8), MaxPatchFilter))


def test_one_task_reads_one_large_box(tmp_path):
    image = noise((6, 64, 64))
    stored = zarr.create_array(str(tmp_path / "a"), shape=image.shape, chunks=(1, 16, 16), dtype=image.dtype)
    stored[...] = image
    lazy = ShannonPatchFilter.filter_map(stored, 8)
    assert lazy.data.npartitions == 1, "six small planes are one block"
    (optimised,) = dask.optimize(lazy.data)
    assert len(dict(optimised.__dask_graph__())) <= 2


def test_nothing_is_read_before_it_is_asked_for():
    def explode(block):
        raise AssertionError("read")

    image = da.zeros((64, 64), dtype="uint16", chunks=32).map_blocks(
        explode, dtype="uint16", meta=np.empty((0, 0), "u2")
    )
    for kind in FILTERS:
        lazy = kind.filter_map(image, 8)
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
    assert found.dtype == np.float32
    one = MeanStdPatchFilter.filter_map(image, (8, 16), ref_channel=2)
    assert one.dims == ("statistic", "t", "z", "y", "x")
    np.testing.assert_array_equal(one.values, found.isel(c=2).values)


def test_channels_of_floats_have_their_own_bins():
    image = noise((2, 40, 40), "float32")
    image[1] *= 1000
    data = xr.DataArray(image, dims=("c", "y", "x"))
    both = ShannonPatchFilter.filter_map(data, 8).values
    for c in range(2):
        np.testing.assert_array_equal(both[c], ShannonPatchFilter.filter_map(image[c], 8).values)
        np.testing.assert_array_equal(both[c], ShannonPatchFilter.filter_map(data, 8, ref_channel=c).values)


@pytest.mark.parametrize("kind", FILTERS)
def test_expand_to_gives_every_voxel_its_cell(kind):
    image = noise((2, 21, 34))
    lazy = kind.filter_map(image, (8, 5))
    full = kind.expand_to(lazy, image)
    assert isinstance(full.data, da.Array)
    expected = np.repeat(np.repeat(lazy.values, 8, axis=-2), 5, axis=-1)[..., :21, :34]
    np.testing.assert_array_equal(full.values, expected)
    with pytest.raises(BadRequest, match="another image"):
        kind.expand_to(lazy, noise((2, 40, 34)))


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
    np.testing.assert_array_equal(MeanStdPatchFilter(100, 30).keep(pair).values, both.values)


def test_suggested_threshold_separates_signal_from_background():
    image = np.random.default_rng(0).poisson(5, (256, 256)).astype(np.uint16)
    image[64:192, 64:192] = np.random.default_rng(1).poisson(300, (128, 128))
    truth = np.zeros((16, 16), bool)
    truth[3:13, 3:13] = True  # a region that touches the signal holds some of it
    for kind in FILTERS:
        found = kind.filter_map(image, 16)
        keep = kind.apply_filter(found, kind.suggest_threshold(found)).values
        assert keep[5:11, 5:11].all(), kind.__name__
        assert not keep[~truth].any(), kind.__name__


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=40))
def test_otsu_is_its_definition(values):
    values = np.array(values, np.float32)
    chosen = otsu_threshold(values)

    def between(t):
        low, high = values[values < t], values[values >= t]
        return low.size * high.size * (low.mean() - high.mean()) ** 2 if low.size and high.size else 0.0

    best = max(between(t) for t in np.unique(values))
    assert between(chosen) == pytest.approx(best, rel=1e-6)
    if np.unique(values).size == 1:
        assert (values >= chosen).all()


def test_otsu_of_nothing_is_an_error():
    with pytest.raises(DegenerateData):
        otsu_threshold(np.array([np.nan]))


def test_requests_that_cannot_be_are_refused_by_name():
    image = noise((3, 32, 32))
    with pytest.raises(BadRequest, match="3D patches"):
        ShannonPatchFilter.filter_map(image, (4, 8, 8))
    with pytest.raises(BadRequest, match="coverage"):
        ShannonPatchFilter.filter_map(image, 8, coverage=0.5)
    with pytest.raises(BadRequest, match="coverage"):
        MaxPatchFilter.filter_map(image, 8, coverage=25)
    with pytest.raises(BadRequest, match="ref_channel"):
        ShannonPatchFilter.filter_map(image, 8, ref_channel=1)
    with pytest.raises(BadRequest, match="patch_size"):
        ShannonPatchFilter.filter_map(image, 1)
    with pytest.raises(BadRequest, match="threshold"):
        ShannonPatchFilter(float("nan"))
    with pytest.raises(BadRequest, match="no threshold"):
        ShannonPatchFilter().keep(ShannonPatchFilter.filter_map(image, 8))


@pytest.mark.parametrize("kind", FILTERS)
def test_nan_is_named_not_scored(kind):
    image = noise((2, 32, 32), "float32")
    image[1, 7, 9] = np.nan
    with pytest.raises(NonFiniteData, match="z=1, y=7, x=9"):
        kind.filter_map(image, 8).compute()


@pytest.mark.parametrize("kind", FILTERS)
def test_plot_shows_the_chosen_plane(kind):
    image = xr.DataArray(noise((2, 2, 3, 40, 70)), dims=("t", "c", "z", "y", "x"))
    found = kind.filter_map(image, (10, 8), ref_channel=1)
    figure = kind.plot_filter_map(image, found, threshold=100.0, t_idx=1, z_idx=2)
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(np.asarray(shown), image.values[1, 1, 2])
    with pytest.raises(BadRequest, match="no such plane"):
        kind.plot_filter_map(image, found, z_idx=3)
