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
from denoizarr.selection import cells
from denoizarr.selection import survey as module
from denoizarr.selection.filters import MaxPatchFilter, MeanStdPatchFilter, ShannonPatchFilter
from denoizarr.selection.image_statistics import ImageStatistics
from denoizarr.selection.survey import survey
from denoizarr.stores import locations

NAMES = ("shannon", "mean_std", "max")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(cells, "_BLOCK_BYTES", 1200)
    monkeypatch.setattr(cells, "_GROUP_BYTES", 1200)


def noise(shape, dtype="uint16", seed=0):
    return np.random.default_rng(seed).normal(200, 40, shape).astype(dtype)


def objects(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run(image, **settings):
    return survey(image, **{"patch_size": 8, "names": NAMES, "progress": False, **settings})


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
def test_survey_equals_the_lazy_maps_and_numpy(dtype):
    image = xr.DataArray(noise((2, 3, 37, 45), dtype), dims=("c", "z", "y", "x"))
    found = run(image, threads=2)
    for kind in (MaxPatchFilter, MeanStdPatchFilter, ShannonPatchFilter):
        expected = kind.filter_map(image, 8)
        got = found.maps[kind.score_name]
        assert got.dims == expected.dims
        np.testing.assert_array_equal(got.values, expected.values)
        np.testing.assert_array_equal(got.y, expected.y)
    for c, channel in enumerate(found.statistics.channels):
        values = image.values[c].astype(np.float64)
        assert (channel.count, channel.minimum, channel.maximum) == (values.size, values.min(), values.max())
        assert channel.mean == pytest.approx(values.mean(), rel=1e-12)
        assert channel.std == pytest.approx(values.std(), rel=1e-9)


def test_statistics_of_several_images_merge():
    first, second = noise((30, 30)), noise((20, 50), seed=1)
    merged = ImageStatistics.merged([run(i, names=()).statistics for i in (first, second)])
    both = np.concatenate([first.ravel(), second.ravel()])
    assert merged.channels[0].mean == both.mean(dtype=np.float64)
    assert merged.quantile(0.5) == np.quantile(both, 0.5, method="inverted_cdf")


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_killed_survey_resumes_to_the_same_bytes(tmp_path, monkeypatch, dtype):
    image = noise((9, 40, 40), dtype)

    def settings(name):
        ledger = Ledger.claim(str(tmp_path / f"{name}.ledger"), {"test": 1})
        return {"destination": str(tmp_path / name), "ledger": ledger}

    whole = run(image, **settings("whole"))
    original, calls = module._survey_block, []

    def dies(work, block):
        calls.append(block)
        if len(calls) == 15:
            raise OSError("killed")
        return original(work, block)

    monkeypatch.setattr(module, "_survey_block", dies)
    with pytest.raises(BlockFailed):
        run(image, **settings("killed"))
    monkeypatch.setattr(
        module, "_survey_block", lambda work, block: calls.append(block) or original(work, block)
    )
    done = len(calls)
    resumed = run(image, threads=2, **settings("killed"))
    repeated = len(calls) - done
    assert 0 < repeated < done + 15, "what was done is not done again"
    assert objects(tmp_path / "killed") == objects(tmp_path / "whole")
    assert resumed.statistics.to_json() == whole.statistics.to_json()
    calls.clear()
    run(image, **settings("killed"))
    assert not calls


def test_threads_do_not_change_a_byte(tmp_path):
    image = noise((7, 40, 40), "float32")
    found = [run(image, destination=str(tmp_path / f"{n}"), threads=n) for n in (1, 3)]
    assert objects(tmp_path / "1") == objects(tmp_path / "3")
    assert found[0].statistics.to_json() == found[1].statistics.to_json()


def test_another_image_is_surveyed_anew(tmp_path):
    where, ledger = str(tmp_path / "map"), Ledger.claim(str(tmp_path / "ledger"), {})
    run(noise((3, 40, 40)), destination=where, ledger=ledger)
    other = noise((3, 40, 40), seed=1)
    found = run(other, destination=where, ledger=ledger)
    np.testing.assert_array_equal(found.maps["max"].values, MaxPatchFilter.filter_map(other, 8).values)
    assert found.statistics.channels[0].mean == other.mean(dtype=np.float64)


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
