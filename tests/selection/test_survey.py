from __future__ import annotations

import gc
import shutil
import tempfile

import numpy as np
import pytest
import xarray as xr
import zarr

from denoizarr.engine.ledger import Ledger
from denoizarr.errors import (
    BadRequest,
    BlockFailed,
    DegenerateData,
    IncompleteOutput,
    NonFiniteData,
    OutputExists,
)
from denoizarr.kernels.statistics import Moments, moments_of
from denoizarr.selection import survey as module
from denoizarr.selection.filters import MaxPatchFilter, MeanStdPatchFilter, ShannonPatchFilter
from denoizarr.selection.image_statistics import ImageStatistics
from denoizarr.selection.region_arrays import open_cells
from denoizarr.selection.survey import survey
from denoizarr.stores import locations
from denoizarr.stores.images import open_image

NAMES = ("shannon", "mean_std", "max")
KINDS = (MaxPatchFilter, MeanStdPatchFilter, ShannonPatchFilter)
PATCHES = [8, (2, 8, 8)]


@pytest.fixture(autouse=True)
def small_blocks(small_sweeps, monkeypatch):
    """Many blocks, in many batches."""
    monkeypatch.setattr(module, "_MOST_BLOCKS_PER_BATCH", 2)


def noise(shape, dtype="uint16", seed=0):
    return np.random.default_rng(seed).normal(200, 40, shape).astype(dtype)


def objects(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run(image, **settings):
    return survey(image, **{"patch_size": 8, "names": NAMES, "progress": False, **settings})


def assert_statistics(found, values, exact):
    values = values.astype(np.longdouble)
    assert (found.count, found.minimum, found.maximum) == (values.size, values.min(), values.max())
    assert found.mean == pytest.approx(float(values.mean()), rel=1e-14 if exact else 1e-12)
    assert found.std == pytest.approx(float(values.std()), rel=1e-12)


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">i2", "int32", "float32", "float64"])
def test_survey_equals_the_lazy_maps_and_numpy(dtype, patch):
    image = xr.DataArray(noise((2, 3, 37, 45), dtype), dims=("c", "z", "y", "x"))
    found = run(image, threads=2, patch_size=patch)
    for kind in KINDS:
        expected = kind.filter_map(image, patch)
        got = found.maps[kind.score_name]
        assert got.dims == expected.dims
        assert got.attrs == expected.attrs
        np.testing.assert_array_equal(got.values, expected.values)
        for dim in "zyx":
            np.testing.assert_array_equal(got[dim], expected[dim])
    for c, channel in enumerate(found.statistics.channels):
        assert_statistics(channel, image.values[c], exact=np.dtype(dtype).itemsize <= 2)
        if np.dtype(dtype).itemsize <= 2:
            offset = int(np.iinfo(dtype).min)
            counts = np.bincount(image.values[c].astype(int).ravel() - offset, minlength=65536)
            np.testing.assert_array_equal(channel.moments.histogram, counts)


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize(
    "layout", [{"chunks": (3, 13, 17)}, {"chunks": (1, 8, 8), "shards": (2, 24, 16)}], ids=["odd", "sharded"]
)
def test_a_stored_slice_is_surveyed_like_the_array_it_holds(tmp_path, patch, dtype, layout):
    image = noise((7, 40, 37), dtype)
    zarr.create_array(str(tmp_path / "a"), shape=image.shape, dtype=dtype, **layout)[...] = image
    part = open_image(str(tmp_path / "a"), axes="zyx").isel(z=slice(2, None), y=slice(5, 39), x=slice(0, 31))
    found = run(part, patch_size=patch, threads=2)
    inside = image[2:, 5:39, :31]
    for kind in KINDS:
        np.testing.assert_array_equal(
            found.maps[kind.score_name].values, kind.filter_map(inside, patch).values
        )
    assert_statistics(found.statistics.channels[0], inside, exact=dtype == "uint16")


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_dims_of_every_kind_are_surveyed(dtype):
    image = xr.DataArray(noise((2, 2, 5, 21, 18), dtype), dims=("t", "c", "z", "y", "x"))
    for patch in PATCHES:
        found = run(image, patch_size=patch)
        for kind in KINDS:
            np.testing.assert_array_equal(
                found.maps[kind.score_name].values, kind.filter_map(image, patch).values
            )
        for c, channel in enumerate(found.statistics.channels):
            assert_statistics(channel, image.values[:, c], exact=dtype == "uint16")


def test_blocks_of_other_sizes_give_the_same_maps_and_histograms(set_sweeps):
    image = noise((6, 40, 45), "float32")
    found = []
    for room in (700, 5000, 10**9):
        set_sweeps(plane=room, volume=room, block=2 * room, group=room)
        found += [run(image, patch_size=patch, coverage=0.3) for patch in PATCHES]
    for first, others in ((found[0], found[2::2]), (found[1], found[3::2])):
        for other in others:
            for name in NAMES:
                np.testing.assert_array_equal(first.maps[name].values, other.maps[name].values)
    histograms = [f.statistics.channels[0].moments.histogram for f in found]
    for other in histograms[1:]:
        np.testing.assert_array_equal(histograms[0], other)
    assert found[0].maps["max"].attrs["coverage"] == 0.3


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_cluster_gives_the_same_maps_with_and_without_a_destination(tmp_path, client, dtype, patch):
    image = noise((5, 40, 37), dtype)
    zarr.create_array(str(tmp_path / "a"), shape=image.shape, chunks=(2, 13, 17), dtype=dtype)[...] = image
    stored = open_image(str(tmp_path / "a"), axes="zyx")
    ledger = Ledger.claim(str(tmp_path / "kept.ledger"), {})
    found = [
        run(stored, patch_size=patch, client=client),
        run(stored, patch_size=patch, client=client, destination=tmp_path / "kept", ledger=ledger),
        run(stored, patch_size=patch, destination=tmp_path / "alone"),
    ]
    for kind in KINDS:
        expected = kind.filter_map(image, patch).values
        for one in found:
            np.testing.assert_array_equal(one.maps[kind.score_name].values, expected)
    assert objects(tmp_path / "kept") == objects(tmp_path / "alone")
    statistics = [one.statistics.to_json() for one in found]
    assert statistics[0] == statistics[1] == statistics[2]


def test_a_cluster_is_not_sent_an_image_that_only_this_process_has(client):
    with pytest.raises(BadRequest, match="save it first"):
        run(noise((3, 40, 40)), client=client)


def test_scores_that_nobody_keeps_lie_in_memory_or_in_a_folder_that_goes(tmp_path, monkeypatch):
    from denoizarr.selection import region_arrays

    image = noise((3, 40, 40))
    in_memory = run(image, names=("max",)).maps["max"]
    monkeypatch.setattr(region_arrays, "_LARGEST_IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    on_disk = run(image, names=("max",)).maps["max"]
    np.testing.assert_array_equal(in_memory.values, on_disk.values)
    assert len(list(tmp_path.iterdir())) == 1
    del on_disk
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_statistics_of_several_images_merge():
    first, second = noise((30, 30)), noise((20, 50), seed=1)
    merged = ImageStatistics.merged([run(i, names=()).statistics for i in (first, second)])
    both = np.concatenate([first.ravel(), second.ravel()])
    assert merged.channels[0].mean == both.mean(dtype=np.float64)
    assert merged.quantile(0.5) == np.quantile(both, 0.5, method="inverted_cdf")


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_killed_survey_resumes_to_the_same_bytes(tmp_path, monkeypatch, dtype, patch):
    image = noise((9, 40, 40), dtype)

    def settings(name):
        ledger = Ledger.claim(str(tmp_path / f"{name}.ledger"), {"test": 1})
        return {"destination": str(tmp_path / name), "ledger": ledger, "patch_size": patch}

    original, calls = module._survey_block, []

    def counted(work, block):
        calls.append(block)
        return original(work, block)

    monkeypatch.setattr(module, "_survey_block", counted)
    whole = run(image, **settings("whole"))
    needed, limit = len(calls), len(calls) * 2 // 3
    calls.clear()

    def dies(work, block):
        if len(calls) == limit:
            raise OSError("killed")
        return counted(work, block)

    monkeypatch.setattr(module, "_survey_block", dies)
    with pytest.raises(BlockFailed):
        run(image, **settings("killed"))
    monkeypatch.setattr(module, "_survey_block", counted)
    calls.clear()
    resumed = run(image, threads=2, **settings("killed"))
    assert 0 < len(calls) < needed, "what was done is not done again"
    assert objects(tmp_path / "killed") == objects(tmp_path / "whole")
    assert resumed.statistics.to_json() == whole.statistics.to_json()
    calls.clear()
    run(image, **settings("killed"))
    assert not calls


@pytest.mark.parametrize("patch", PATCHES)
def test_threads_do_not_change_a_byte(tmp_path, patch):
    image = noise((7, 40, 40), "float32")
    found = [run(image, destination=str(tmp_path / f"{n}"), threads=n, patch_size=patch) for n in (1, 3)]
    assert objects(tmp_path / "1") == objects(tmp_path / "3")
    assert found[0].statistics.to_json() == found[1].statistics.to_json()


def test_another_image_is_surveyed_anew(tmp_path):
    where, ledger = str(tmp_path / "map"), Ledger.claim(str(tmp_path / "ledger"), {})
    run(noise((3, 40, 40)), destination=where, ledger=ledger)
    other = noise((3, 40, 40), seed=1)
    found = run(other, destination=where, ledger=ledger)
    np.testing.assert_array_equal(found.maps["max"].values, MaxPatchFilter.filter_map(other, 8).values)
    assert found.statistics.channels[0].mean == other.mean(dtype=np.float64)


@pytest.mark.parametrize("lost", ["all scores", "one score"])
def test_scores_that_were_deleted_are_computed_again(tmp_path, lost):
    image, where = noise((3, 40, 40), "float32"), tmp_path / "map"
    settings = {"destination": where, "ledger": Ledger.claim(str(tmp_path / "ledger"), {})}
    first = run(image, **settings)
    before = objects(where)
    shutil.rmtree(where if lost == "all scores" else where / "max-0.25")
    again = run(image, **settings)
    assert objects(where) == before
    assert again.statistics.to_json() == first.statistics.to_json()


def test_records_of_other_scores_are_never_taken_for_these(tmp_path):
    image = noise((3, 40, 40))
    settings = {"destination": tmp_path / "map", "ledger": Ledger.claim(str(tmp_path / "ledger"), {})}
    run(image, names=("max",), **settings)
    for names, coverage in ((("mean_std",), None), (("max",), 0.5), (("max", "shannon"), None)):
        found = run(image, names=names, coverage=coverage, **settings)
        for name in names:
            np.testing.assert_array_equal(
                found.maps[name].values, run(image, names=names, coverage=coverage).maps[name].values
            )


def test_stored_scores_are_opened_again_as_cells(tmp_path):
    image = noise((5, 40, 37))
    for patch in PATCHES:
        where = str(tmp_path / str(patch))
        found = run(image, patch_size=patch, destination=where)
        for name in NAMES:
            opened = open_cells(where, name)
            assert opened.shape == found.maps[name].shape
            whole = (slice(None),) * opened.ndim
            np.testing.assert_array_equal(opened[whole], found.maps[name].values)
    assert open_cells(where, "mask") is None


def test_scores_that_the_ledger_lost_are_noticed(tmp_path):
    image, where = noise((3, 40, 40)), str(tmp_path / "map")
    ledger = Ledger.claim(str(tmp_path / "ledger"), {})
    run(image, destination=where, ledger=ledger)
    next((tmp_path / "map" / "shannon").rglob("c/0/0/0")).unlink()
    with pytest.raises(IncompleteOutput, match="shannon"):
        run(image, destination=where, ledger=ledger)


@pytest.mark.parametrize("names", [NAMES, ()])
def test_non_finite_voxels_are_named(names):
    image = noise((3, 40, 40), "float32")
    image[1, 33, 2] = np.inf
    with pytest.raises(NonFiniteData, match="z=1, y=33, x=2"):
        run(image, names=names)


def test_a_constant_channel_is_named():
    image = noise((2, 40, 40))
    image[1] = 7
    with pytest.raises(DegenerateData, match="channel 1"):
        run(xr.DataArray(image, dims=("c", "y", "x")))
    with pytest.raises(DegenerateData, match="7 everywhere"):
        run(image[1])


def test_foreign_data_are_never_replaced(tmp_path):
    group = zarr.open_group(str(tmp_path / "mine"), mode="w")
    group.create_array("precious", shape=(3,), dtype="u1")
    with pytest.raises(OutputExists):
        run(noise((40, 40)), destination=str(tmp_path / "mine"))
    assert "precious" in zarr.open_group(str(tmp_path / "mine"), mode="r")


def test_a_resumable_survey_needs_a_destination(tmp_path):
    with pytest.raises(BadRequest, match="destination"):
        run(noise((40, 40)), ledger=Ledger.claim(str(tmp_path), {}))


@pytest.mark.parametrize("remains", ["no key", "no root", "no root, torn arrays", "empty folder"])
def test_what_a_kill_left_in_the_jobs_own_destination_is_begun_anew(tmp_path, remains):
    image, where = noise((3, 40, 40)), tmp_path / "map"
    expected = run(image, destination=tmp_path / "whole")
    if remains == "no key":
        zarr.open_group(str(where), mode="w")
    elif remains == "empty folder":
        where.mkdir()
    else:
        run(image, destination=where)
        (where / "zarr.json").unlink()
        if "torn" in remains:
            (where / "shannon" / "zarr.json").unlink()
    if remains != "empty folder":
        with pytest.raises(OutputExists):
            run(image, destination=where)
    run(image, destination=where, ledger=Ledger.claim(str(tmp_path / "ledger"), {}))
    assert objects(where) == objects(tmp_path / "whole")
    assert expected.maps.keys() == set(NAMES)


def test_a_ledger_is_no_leave_to_delete_what_is_foreign(tmp_path):
    ledger = Ledger.claim(str(tmp_path / "ledger"), {})
    group = zarr.open_group(str(tmp_path / "mine"), mode="w", attributes={"title": "precious"})
    group.create_array("max", shape=(3,), dtype="u1")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("keep")
    for name in ("mine", "notes"):
        with pytest.raises(OutputExists):
            run(noise((40, 40)), destination=tmp_path / name, ledger=ledger)
    assert (tmp_path / "notes" / "notes.txt").read_text() == "keep"


def test_a_kill_in_the_middle_of_a_deletion_leaves_the_key(tmp_path, monkeypatch):
    where, ledger = tmp_path / "map", Ledger.claim(str(tmp_path / "ledger"), {})
    run(noise((3, 40, 40)), destination=where, ledger=ledger)
    delete, deleted = locations.delete_prefix, []

    def dies(url):
        if deleted:
            raise KeyboardInterrupt
        deleted.append(url)
        delete(url)

    other = noise((3, 40, 40), seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(locations, "delete_prefix", dies)
        with pytest.raises(KeyboardInterrupt):
            run(other, destination=where, ledger=ledger)
    assert "denoizarr.survey" in (where / "zarr.json").read_text()
    run(other, destination=where, ledger=ledger)


def test_histograms_are_merged_one_at_a_time(monkeypatch):
    calls, decode, merge = [], Moments.from_json.__func__, Moments.merge
    monkeypatch.setattr(
        Moments, "from_json", classmethod(lambda c, r: calls.append("decode") or decode(c, r))
    )
    monkeypatch.setattr(Moments, "merge", lambda a, b: calls.append("merge") or merge(a, b))
    records = [{"moments": {"0": moments_of(noise((9, 9), seed=k)).to_json()}} for k in range(5)]
    merged = module._merged(records)[0]
    assert calls == ["decode"] + ["decode", "merge"] * 4
    assert merged.count == 5 * 81
