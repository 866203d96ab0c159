"""Converting: foreign files in, an OME-Zarr pyramid out, bounded in memory, with units that are true."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from denoizarr.errors import BadRequest, DenoizarrError, ImageNotFound, LedgerMismatch
from denoizarr.geometry.boxes import Box
from denoizarr.images import conversion as module
from denoizarr.images import save
from denoizarr.images.convert import convert
from denoizarr.stores.describe import info
from denoizarr.stores.foreign import open_foreign
from denoizarr.stores.images import open_image
from denoizarr.stores.sources import ImageReader

VALUES = np.random.default_rng(0).integers(0, 60000, (5, 70, 90), dtype=np.uint16)


def _tiff(path: Path, values: np.ndarray[Any, Any] = VALUES) -> Path:
    tifffile.imwrite(path, values, photometric="minisblack")
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_folder_of_planes(tmp_path: Path, version: str) -> None:
    (tmp_path / "planes").mkdir()
    for z in range(5):
        _tiff(tmp_path / "planes" / f"p{z + 8}.tif", VALUES[z])
    convert(
        tmp_path / "planes", tmp_path / "a.ome.zarr", ome_version=version, scale=(2.0, 0.5, 0.5), levels=2
    )
    image = open_image(tmp_path / "a.ome.zarr")
    assert np.array_equal(image.values, VALUES)
    assert image.coords["z"].values[:2].tolist() == [0.0, 2.0]
    assert {image.coords[d].attrs["units"] for d in "zyx"} == {"micrometer"}
    assert info(tmp_path / "a.ome.zarr")["version"] == version


def test_axes_scale_and_units_by_name_and_in_stored_order(tmp_path: Path) -> None:
    source = _tiff(tmp_path / "a.tif")
    convert(
        source, tmp_path / "a.ome.zarr", axes="xyz", scale=(0.1, 0.2, 3.0), units={"z": "nanometer"}, levels=1
    )
    image = open_image(tmp_path / "a.ome.zarr")
    assert image.dims == ("z", "y", "x")
    assert np.array_equal(image.values, VALUES.T)
    assert [image.coords[d].attrs["spacing"] for d in "zyx"] == [3.0, 0.2, 0.1]
    assert [image.coords[d].attrs["units"] for d in "zyx"] == ["nanometer", "micrometer", "micrometer"]


def test_what_the_files_say_is_kept_and_what_is_asked_wins(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.ome.tif", VALUES, photometric="minisblack", ome=True,
        metadata={"axes": "ZYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 800,
                  "PhysicalSizeZUnit": "nm"},
    )  # fmt: skip
    convert(tmp_path / "a.ome.tif", tmp_path / "a.ome.zarr", scale={"y": 0.5}, levels=1)
    image = open_image(tmp_path / "a.ome.zarr")
    assert [image.coords[d].attrs["spacing"] for d in "zyx"] == [800, 0.5, 0.25]
    assert [image.coords[d].attrs["units"] for d in "zyx"] == ["nanometer", "micrometer", "micrometer"]


def test_a_plain_zarr_and_an_ome_zarr(
    tmp_path: Path, write_store: Callable[..., str], store_kind: Any
) -> None:
    url = write_store(
        tmp_path / "a.zarr", VALUES.transpose(1, 0, 2), "yzx", store_kind, chunks=(16, 1, 16),
        scale=(0.5, 2.0, 0.5), translation=(0.0, 9.0, 0.0),
    )  # fmt: skip
    convert(url, tmp_path / "b.ome.zarr", axes=None if store_kind.ome_version else "yzx", levels=1)
    image = open_image(tmp_path / "b.ome.zarr")
    assert np.array_equal(image.values, VALUES)
    if store_kind.ome_version:
        assert image.coords["z"].values[:2].tolist() == [9.0, 11.0]
        assert image.coords["y"].attrs["units"] == "micrometer"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scale": (1.0, 1.0)}, "one value per axis"),
        ({"scale": {"t": 1.0}}, "axes that the image lacks"),
        ({"scale": (0.0, 1.0, 1.0)}, "positive"),
        ({"scale": (float("nan"), 1.0, 1.0)}, "positive"),
        ({"units": ["micrometer"]}, "one value per axis"),
        ({"units": {"q": "micrometer"}}, "axes that the image lacks"),
        ({"axes": "zy"}, "disagree"),
        ({"chunks": (1, 2)}, "one positive int per dim"),
    ],
)
def test_wrong_requests_leave_nothing(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    source = _tiff(tmp_path / "a.tif")
    with pytest.raises(BadRequest, match=says):
        convert(source, tmp_path / "a.ome.zarr", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_nothing_to_convert(tmp_path: Path) -> None:
    for source in ("no.tif", "no.ome.zarr", "no*.tif"):
        with pytest.raises(ImageNotFound):
            convert(tmp_path / source, tmp_path / "a.ome.zarr")
    with pytest.raises(BadRequest):
        convert([], tmp_path / "a.ome.zarr")
    assert list(tmp_path.iterdir()) == []


def test_never_more_than_one_write_unit_is_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planes").mkdir()
    for z in range(5):
        _tiff(tmp_path / "planes" / f"p{z}.tif", VALUES[z])
    asked: list[tuple[int, ...]] = []
    opener = open_foreign

    def spy(source: Any) -> ImageReader:
        reader = opener(source)
        original = reader._fetch

        def fetch(box: Box) -> Any:
            asked.append(box.shape)
            return original(box)

        reader._fetch = fetch
        return reader

    monkeypatch.setattr(module, "open_foreign", spy)
    convert(tmp_path / "planes", tmp_path / "a.ome.zarr", chunks=(1, 16, 16), shards=(2, 32, 32), levels=1)
    assert len(asked) == 3 * 3 * 3
    assert max(np.prod(shape) for shape in asked) <= 2 * 32 * 32
    opener.cache_clear()


def test_another_source_is_another_job(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        _tiff(tmp_path / name / "p.tif", VALUES if name == "a" else VALUES[::-1])
    convert(tmp_path / "a", tmp_path / "x.ome.zarr", levels=1)
    with pytest.raises(LedgerMismatch, match="input"):
        convert(tmp_path / "b", tmp_path / "x.ome.zarr", levels=1)
    with pytest.raises(LedgerMismatch, match="scale"):
        convert(tmp_path / "a", tmp_path / "x.ome.zarr", levels=1, scale=(9.0, 1.0, 1.0))
    assert convert(tmp_path / "a", tmp_path / "x.ome.zarr", levels=1).blocks_done == 0


def test_a_source_is_never_overwritten(tmp_path: Path) -> None:
    source = _tiff(tmp_path / "a.tif")
    before = source.read_bytes()
    for destination in (source, tmp_path):
        with pytest.raises(BadRequest):
            convert(source, destination, overwrite=True)
    assert source.read_bytes() == before


def test_of_many_files_a_task_gets_where_they_are_listed(
    tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planes").mkdir()
    for z in range(5):
        _tiff(tmp_path / "planes" / f"p{z}.tif", VALUES[z])
    monkeypatch.setattr(module, "_FEW_FILES", 3)
    out = tmp_path / "a.ome.zarr"
    convert(tmp_path / "planes", out, levels=1, client=client)
    assert np.array_equal(open_image(out).values, VALUES)
    assert (tmp_path / "a.ome.zarr.ledger" / "files.json").exists()
    assert convert(tmp_path / "planes", out, levels=1).blocks_done == 0, "the same job without a cluster"


@pytest.mark.parametrize("kind", ["planes", "bigtiff"])
def test_a_conversion_that_died_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    source = tmp_path / "planes"
    source.mkdir()
    if kind == "planes":
        for z in range(5):
            _tiff(source / f"p{z}.tif", VALUES[z])
    else:
        source = source / "all.tif"
        tifffile.imwrite(source, VALUES, photometric="minisblack", bigtiff=True, compression="lzw")
    monkeypatch.setattr("denoizarr.images.save.BATCH_VOXELS", 1)
    options: dict[str, Any] = {"chunks": (1, 32, 32), "shards": (1, 64, 64), "levels": 2}
    convert(source, tmp_path / "whole" / "a.ome.zarr", **options)
    out = tmp_path / "died" / "a.ome.zarr"
    calls: list[int] = []

    def dies(spec: Any, block: int, copy: Any = save.copy_block) -> Any:
        calls.append(block)
        if len(calls) > 8:
            raise KeyboardInterrupt
        return copy(spec, block)

    with monkeypatch.context() as patch:
        patch.setattr(save, "copy_block", dies)
        with pytest.raises(BaseException):  # noqa: B017  # whatever ends the process
            convert(source, out, threads=1, **options)
    summary = convert(source, out, **options)
    assert summary.blocks_skipped >= 8
    trees = [
        {p.relative_to(tree): p.read_bytes() for p in tree.rglob("*") if p.is_file()}
        for tree in (tmp_path / "whole" / "a.ome.zarr", out)
    ]
    assert trees[0] == trees[1]


def test_each_source_becomes_an_image_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for n, shape in enumerate([(5, 70, 90), (70, 90), (3, 20, 20)]):
        _tiff(tmp_path / "in" / f"f{n}.tif", VALUES.ravel()[: int(np.prod(shape))].reshape(shape))
    summary = convert(str(tmp_path / "in" / "*.tif"), tmp_path / "out", each=".ome.zarr", levels=1)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.zarr")) == [f"f{n}.ome.zarr" for n in range(3)]
    assert summary.blocks_total == summary.blocks_done
    again = convert(
        [tmp_path / "out" / f"f{n}.ome.zarr" for n in range(3)], tmp_path / "tiffs", each=".ome.tif"
    )
    assert again.blocks_total == 5 + 1 + 3
    for n in range(3):
        assert np.array_equal(
            tifffile.imread(tmp_path / "tiffs" / f"f{n}.ome.tif"),
            tifffile.imread(tmp_path / "in" / f"f{n}.tif"),
        )


@pytest.mark.parametrize("bad", ["short", "complex", "there"])
def test_one_bad_image_is_refused_before_any_is_begun(tmp_path: Path, bad: str) -> None:
    (tmp_path / "in").mkdir()
    for n in range(3):
        _tiff(tmp_path / "in" / f"f{n}.tif")
    victim = tmp_path / "in" / "f2.tif"
    if bad == "short":
        victim.write_bytes(victim.read_bytes()[:50_000])
    elif bad == "complex":
        tifffile.imwrite(victim, VALUES.astype("c8"))
    else:
        (tmp_path / "out" / "f2.ome.zarr").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DenoizarrError, match="f2"):
        convert(str(tmp_path / "in" / "*.tif"), tmp_path / "out", each=".ome.zarr")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("where", [0, 2, 4])
@pytest.mark.parametrize("wrong", ["shape", "dtype", "short"])
def test_a_plane_that_does_not_fit_is_named_before_any_work(tmp_path: Path, where: int, wrong: str) -> None:
    (tmp_path / "in").mkdir()
    for z in range(5):
        _tiff(tmp_path / "in" / f"p{z}.tif", VALUES[z])
    victim = tmp_path / "in" / f"p{where}.tif"
    if wrong == "short":
        victim.write_bytes(victim.read_bytes()[:-2])
    else:
        _tiff(victim, VALUES[0, :69] if wrong == "shape" else VALUES[0].astype("u1"))
    # Of the first it is the second that differs from it.
    named = "p1" if where == 0 and wrong != "short" else f"p{where}"
    with pytest.raises(DenoizarrError, match=named):
        convert(tmp_path / "in", tmp_path / "a.ome.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_channels_and_windows_of_the_files_survive(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.ome.tif", VALUES[:4].reshape(2, 2, 70, 90), photometric="minisblack", ome=True,
        metadata={"axes": "ZCYX", "TimeIncrement": 2.0, "Channel": {"Name": ["DAPI", "GFP"]}},
    )  # fmt: skip
    tifffile.imwrite(
        tmp_path / "b.tif", VALUES[:4].reshape(2, 2, 70, 90), imagej=True,
        metadata={"axes": "ZCYX", "Ranges": (5.0, 500.0, 0.0, 9000.0)},
    )  # fmt: skip
    convert(tmp_path / "a.ome.tif", tmp_path / "a.ome.zarr")
    convert(tmp_path / "b.tif", tmp_path / "b.ome.zarr")
    channels = open_image(tmp_path / "a.ome.zarr").attrs["ome"]["omero"]["channels"]
    assert [channel["label"] for channel in channels] == ["DAPI", "GFP"]
    channels = open_image(tmp_path / "b.ome.zarr").attrs["ome"]["omero"]["channels"]
    assert [(c["window"]["start"], c["window"]["end"]) for c in channels] == [(5, 500), (0, 9000)]


def test_threads_and_a_cluster_write_the_same(tmp_path: Path, client: Any) -> None:
    source = _tiff(tmp_path / "a.tif")
    for name, options in (("one", {}), ("two", {"threads": 2}), ("dask", {"client": client})):
        convert(source, tmp_path / f"{name}.ome.zarr", chunks=(1, 32, 32), levels=2, **options)
    trees = [
        {
            p.relative_to(tree): p.read_bytes()
            for p in tree.rglob("*")
            if p.is_file() and p.name != "zarr.json"
        }
        for tree in (tmp_path / f"{n}.ome.zarr" for n in ("one", "two", "dask"))
    ]
    assert trees[0] == trees[1] == trees[2]
    assert len(trees[0]) == 3 + 3, "shards of two planes, and one above each"
