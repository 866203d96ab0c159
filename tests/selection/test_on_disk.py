"""What is kept beside an index: taken again where it is still true, and never where it is not."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import numpy as np
import pytest

from denoizarr import (
    MaskPatchFilter,
    MaxPatchFilter,
    PatchIndex,
    RegionOfInterest,
    ShannonPatchFilter,
    build_index,
    open_filter_map,
    open_image,
)
from denoizarr.engine.driver_lock import only_driver
from denoizarr.errors import BadRequest, CorruptChunk, IncompleteOutput, MissingChunk, OutputLocked
from denoizarr.images.save import save_image
from denoizarr.selection.on_disk import write_filter_map, write_index
from denoizarr.stores.images import as_image, reader_of

PATCH = 16


def half_bright(side="left", shape=(2, 64, 96)):
    values = np.random.default_rng(0).normal(100, 2, shape)
    half = slice(None, shape[-1] // 2) if side == "left" else slice(shape[-1] // 2, None)
    values[..., half] += np.random.default_rng(1).gamma(1, 80, (*shape[:-1], shape[-1] // 2))
    return values.round().astype(np.uint16)


@pytest.fixture
def image(tmp_path):
    url = tmp_path / "in.ome.zarr"
    save_image(half_bright(), url, levels=1, chunks=(1, 32, 32), shards=(1, 32, 32))
    return str(url)


def index_at(image, tmp_path, **settings):
    chosen = {"patch_filter": ShannonPatchFilter(5.5), **settings}
    return write_index(image, tmp_path / "index.zarr", PATCH, progress=False, **chosen)


def test_an_image_written_anew_is_measured_anew(image, tmp_path):
    before = index_at(image, tmp_path).weights.values
    save_image(half_bright("right"), image, levels=1, overwrite=True, chunks=(1, 32, 32), shards=(1, 32, 32))
    after = index_at(image, tmp_path)
    direct = build_index(image, PATCH, patch_filter=ShannonPatchFilter(5.5))
    np.testing.assert_array_equal(after.weights.values, direct.weights.values)
    assert not np.array_equal(after.weights.values, before)


def test_a_mask_painted_over_is_measured_anew(image, tmp_path):
    mask = np.zeros((2, 64, 96), np.uint8)
    mask[..., :48] = 1
    save_image(mask, tmp_path / "mask.ome.zarr", levels=1)
    settings = {"patch_filter": None, "mask": str(tmp_path / "mask.ome.zarr")}
    before = index_at(image, tmp_path, **settings).weights.values
    save_image(mask[..., ::-1], tmp_path / "mask.ome.zarr", levels=1, overwrite=True)
    after = index_at(image, tmp_path, **settings).weights.values
    np.testing.assert_array_equal(after, before[..., ::-1])


def test_scores_made_with_absent_chunks_filled_do_not_serve_where_they_are_an_error(image, tmp_path):
    shutil.rmtree(Path(image) / "0" / "c" / "0" / "1")
    index_at(open_image(image, missing="fill"), tmp_path)
    with pytest.raises(MissingChunk):
        index_at(open_image(image), tmp_path)


@pytest.mark.parametrize("lost", ["", "means", "boxes", "knots"])
def test_lost_regions_of_interest_are_computed_again(image, tmp_path, lost):
    roi = RegionOfInterest(sigma=200)
    expected = index_at(image, tmp_path, roi=roi)
    (group,) = (tmp_path / "index.zarr.ledger" / "0").glob("roi-*.zarr")
    if lost and not (group / lost).exists():
        pytest.skip(f"no array {lost} with these settings")
    shutil.rmtree(group / lost)
    again = index_at(image, tmp_path, roi=roi)
    np.testing.assert_array_equal(again.weights.values, expected.weights.values)


@pytest.mark.parametrize("kind", ["filter_map", "roi"])
def test_the_remedy_for_damaged_measurements_is_true(image, tmp_path, kind):
    expected = index_at(image, tmp_path, roi=RegionOfInterest(sigma=200))
    (group,) = (tmp_path / "index.zarr.ledger" / "0").glob(f"{kind}-*.zarr")
    array = group / ("shannon" if kind == "filter_map" else "means")
    chunk = next(p for p in array.rglob("*") if p.is_file() and p.name != "zarr.json")
    chunk.unlink()
    with pytest.raises(IncompleteOutput) as found:
        index_at(image, tmp_path, roi=RegionOfInterest(sigma=200))
    assert f"delete {group} and {group}.ledger" in str(found.value)
    shutil.rmtree(group)
    shutil.rmtree(f"{group}.ledger")
    again = index_at(image, tmp_path, roi=RegionOfInterest(sigma=200))
    np.testing.assert_array_equal(again.weights.values, expected.weights.values)


def test_a_flipped_bit_in_kept_scores_has_a_name(image, tmp_path):
    index_at(image, tmp_path)
    (group,) = (tmp_path / "index.zarr.ledger" / "0").glob("filter_map-*.zarr")
    chunk = next(p for p in (group / "shannon" / "c").rglob("*") if p.is_file())
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(CorruptChunk, match="kept scores cannot be decoded"):
        index_at(image, tmp_path)


def test_a_second_driver_is_refused(image, tmp_path):
    where = tmp_path / "index.zarr"
    with (
        only_driver(f"{where}.ledger"),
        ThreadPoolExecutor(1) as pool,
        pytest.raises(OutputLocked, match="another thread"),
    ):
        pool.submit(index_at, image, tmp_path).result()


def test_a_saved_map_of_two_values_comes_back_whole(image, tmp_path):
    from denoizarr import MeanStdPatchFilter

    saved = write_filter_map(image, tmp_path / "map.zarr", PATCH, MeanStdPatchFilter(), progress=False)
    direct = MeanStdPatchFilter.filter_map(image, PATCH).compute()
    np.testing.assert_array_equal(saved.values, direct.values)
    assert list(saved.coords["statistic"].values) == ["mean", "std"]
    assert saved.attrs == direct.attrs
    again = write_filter_map(image, tmp_path / "map.zarr", PATCH, MaxPatchFilter(), progress=False)
    assert again.name == "max"
    assert open_filter_map(tmp_path / "map.zarr").dims == ("z", "y", "x")


def test_a_map_of_a_mask_needs_the_filter_mask(image, tmp_path):
    mask = np.ones((2, 64, 96), bool)
    with pytest.raises(BadRequest, match="a mask has a map of its own"):
        write_filter_map(image, tmp_path / "m.zarr", PATCH, ShannonPatchFilter(), mask=mask)
    found = write_filter_map(image, tmp_path / "m.zarr", PATCH, MaskPatchFilter(), mask=mask, progress=False)
    assert (found == 1).all()


def test_maps_of_a_channel_kept_and_dropped_do_not_share_a_name():
    image = as_image(np.random.default_rng(0).integers(0, 99, (2, 64, 64)).astype(np.uint16), "cyx")
    kept = MaxPatchFilter.filter_map(image.isel(c=slice(0, 1)), PATCH)
    dropped = MaxPatchFilter.filter_map(image.isel(c=0), PATCH)
    one, two = dask.compute(kept, dropped)
    np.testing.assert_array_equal(one.values[0], two.values)


def test_an_array_is_known_by_its_content(tmp_path):
    values = half_bright()
    index = build_index(values, PATCH)
    index.check_image(np.asfortranarray(values))
    np.save(tmp_path / "v.npy", values)
    index.check_image(np.load(tmp_path / "v.npy", mmap_mode="r"))
    with pytest.raises(BadRequest, match="another image"):
        index.check_image(values + np.uint16(1))


def test_an_index_of_an_array_in_a_store_of_this_process_is_an_index_of_it():
    import zarr

    array = zarr.create_array({}, shape=(64, 64), chunks=(32, 32), dtype="uint16")
    array[:] = half_bright()[0, :, :64]
    build_index(array, PATCH).check_image(array)
    other = zarr.create_array({}, shape=(64, 64), chunks=(32, 32), dtype="uint16")
    other[:] = array[:]
    with pytest.raises(BadRequest, match="another image"):
        build_index(array, PATCH).check_image(other)


def test_a_threshold_is_suggested_in_one_pass_over_a_lazy_map(monkeypatch):
    image = as_image(half_bright(shape=(8, 64, 96)).astype(np.float32))
    reader = reader_of(image)
    boxes = []
    fetch = reader._fetch
    monkeypatch.setattr(reader, "_fetch", lambda box: boxes.append(box.size) or fetch(box))
    lazy = ShannonPatchFilter.filter_map(image, PATCH)
    ShannonPatchFilter.suggest_threshold(lazy)
    # Twice for the percentiles of floats, once for the scores.
    assert sum(boxes) <= 3.5 * image.size


@pytest.mark.parametrize("call", [lambda i: i.sample(3, -1), lambda i: i.sample(-1)])
def test_negative_draws_are_refused(call):
    with pytest.raises(BadRequest, match="not a draw"):
        call(build_index(half_bright(), PATCH))


def test_no_origin_is_much_likelier_than_others():
    index = build_index(np.zeros((1100, 620), np.uint16) + np.arange(620, dtype=np.uint16), 64)
    origins = index.sample(200_000, 0)
    for axis, size in ((0, 1100), (1, 620)):
        share = np.bincount(origins[:, axis], minlength=size - 63) / len(origins)
        # Twice at the near border; at the far one a short last cell has few positions of its own.
        assert share.max() < 8 / (size - 63)
        assert (share > 0).all()


def test_lazy_maps_of_arrays_work_beside_a_default_client(tmp_path):
    from dask.distributed import Client, LocalCluster

    values = half_bright()
    expected = ShannonPatchFilter.filter_map(values, PATCH).compute(scheduler="threads")
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster),
    ):
        lazy = ShannonPatchFilter.filter_map(values, PATCH)
        np.testing.assert_array_equal(lazy.compute().values, expected.values)
        assert ShannonPatchFilter.suggest_threshold(lazy) == ShannonPatchFilter.suggest_threshold(expected)
        ShannonPatchFilter.plot_filter_map(values, lazy)
        index = build_index(values, PATCH, patch_filter=ShannonPatchFilter(5.5))
    assert isinstance(index, PatchIndex)
