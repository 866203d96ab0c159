"""OME-TIFF out and in again: equal voxels, equal metadata, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import denoizarr.cli  # noqa: F401  # its verbs
from denoizarr.cli.app import app
from denoizarr.errors import BadRequest, MissingChunk, NoSpace, OutputExists
from denoizarr.images import tiff_export, whole_file
from denoizarr.images.convert import convert
from denoizarr.images.save import save_image
from denoizarr.kernels.pooling import mean_pool
from denoizarr.stores.images import as_image, open_image
from denoizarr.stores.tiff import TiffImage

RNG = np.random.default_rng(0)
VALUES = RNG.integers(0, 60000, (5, 70, 90), dtype=np.uint16)
CHANNELS = [
    {
        "label": "DAPI <&> µ",
        "color": "0000FF",
        "window": {"start": 3.0, "end": 90.5, "min": 0.0, "max": 4095.0},
        "active": True,
    },
    {"label": "GFP", "color": "00FF00", "active": False},
]


def image_of(values: Any, dims: str, scale: list[float], start: list[float], units: list[str | None]) -> Any:
    image = as_image(values, dims)
    coords = {d: np.arange(n) * s + a for d, n, s, a in zip(dims, values.shape, scale, start, strict=True)}
    image = image.assign_coords(coords)
    for d, unit, s in zip(dims, units, scale, strict=True):
        image.coords[d].attrs["spacing"] = s
        if unit is not None:
            image.coords[d].attrs["units"] = unit
    return image


@settings(max_examples=12)
@given(
    st.sampled_from(["yx", "zyx", "cyx", "tyx", "czyx", "tzyx", "tczyx"]),
    st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"]),
    st.tuples(
        st.integers(1, 3), st.integers(1, 2), st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)
    ),
    st.sampled_from(["micrometer", "nanometer", "furlong", None]),
    st.sampled_from([0.25, -0.5, 1e-7, 3.0]),
    st.sampled_from([0.0, -7.5]),
    st.booleans(),
)
def test_what_comes_back_is_what_went_out(
    dims: str, dtype: str, sizes: Any, unit: Any, step: float, start: float, tiled: bool
) -> None:
    shape = sizes[-len(dims) :] if dims[0] != "t" or len(dims) > 3 else (sizes[0], *sizes[3:])
    rng = np.random.default_rng(list(shape))
    values = (rng.normal(size=shape) * 100).astype(dtype)
    units: list[str | None] = [{"t": "second", "c": None}.get(d, unit) for d in dims]
    image = image_of(values, dims, [step if d in "zyx" else 1.0 for d in dims], [start] * len(dims), units)
    if "c" in dims:
        image = image.assign_attrs(ome={"omero": {"channels": CHANNELS[: image.sizes["c"]]}})
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        if tiled:
            patch.setattr(tiff_export, "_LARGEST_PAGE", 0)
            patch.setattr(tiff_export, "_TILE", 16)
            patch.setattr(tiff_export, "_PIECE_BYTES", 2000)
        folder = Path(name)
        save_image(image, folder / "a.ome.zarr", chunks=[1] * (len(dims) - 2) + [8, 8], levels=1)
        convert(folder / "a.ome.zarr", folder / "b.ome.tif")
        assert sorted(p.name for p in folder.iterdir()) == ["a.ome.zarr", "a.ome.zarr.ledger", "b.ome.tif"]
        assert np.array_equal(tifffile.imread(folder / "b.ome.tif").reshape(shape), values)
        convert(folder / "b.ome.tif", folder / "c.ome.zarr", levels=1)
        before, after = open_image(folder / "a.ome.zarr"), open_image(folder / "c.ome.zarr")
    assert after.dims == before.dims
    assert after.dtype == before.dtype
    for d in dims:
        assert np.array_equal(after.coords[d].values, before.coords[d].values)
        assert after.coords[d].attrs == before.coords[d].attrs
    assert after.attrs["ome"]["omero"] == before.attrs["ome"]["omero"]


def test_tifffile_reads_axes_sizes_and_channels(tmp_path: Path) -> None:
    values = VALUES[:4].reshape(2, 2, 70, 90)
    image = image_of(
        values, "czyx", [1, 2.5, 0.5, 250], [0] * 4, [None, "micrometer", "micrometer", "nanometer"]
    )
    image = image.assign_attrs(ome={"omero": {"channels": CHANNELS}})
    save_image(image, tmp_path / "a.ome.zarr")
    summary = convert(tmp_path / "a.ome.zarr", tmp_path / "a.ome.tif")
    assert summary.changes == ("only denoizarr reads back from the file: display windows",)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        assert file.is_ome
        assert (file.series[0].axes, file.series[0].shape) == ("CZYX", values.shape)
        assert np.array_equal(file.series[0].asarray(), values)
        found = tifffile.xml2dict(file.ome_metadata or "")["OME"]["Image"]["Pixels"]
    assert [found[f"PhysicalSize{d}"] for d in "ZYX"] == [2.5, 0.5, 250]
    assert found["PhysicalSizeXUnit"] == "nm"
    assert [channel["Name"] for channel in found["Channel"]] == ["DAPI <&> µ", "GFP"]


def test_levels_are_subifds(tmp_path: Path) -> None:
    save_image(VALUES, tmp_path / "a.ome.zarr")
    convert(tmp_path / "a.ome.zarr", tmp_path / "a.ome.tif", levels=3)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        levels = [level.asarray() for level in file.series[0].levels]
    expected = VALUES
    for level in levels:
        assert np.array_equal(level, expected)
        expected = mean_pool(expected, (1, 2, 2))
    assert len(levels) == 3
    convert(tmp_path / "a.ome.tif", tmp_path / "b.ome.zarr", levels=1)
    assert np.array_equal(open_image(tmp_path / "b.ome.zarr").values, VALUES)


def test_large_pages_are_tiles_and_a_large_file_is_a_bigtiff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = RNG.integers(0, 99, (2, 700, 2100), dtype=np.uint8)
    monkeypatch.setattr(tiff_export, "_CLASSIC_BYTES", 10**6)
    monkeypatch.setattr(tiff_export, "_PIECE_BYTES", 10**6)
    convert(save_image(values, tmp_path / "a.ome.zarr").destination, tmp_path / "a.tif", levels=2, threads=3)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff
        assert file.pages.first.tile == (512, 512)
        assert np.array_equal(file.series[0].asarray(), values)
        assert np.array_equal(file.series[0].levels[1].asarray(), mean_pool(values, (1, 2, 2)))


@pytest.mark.parametrize("name", ["a.tif", "a.btf"])
def test_a_name_decides(tmp_path: Path, name: str) -> None:
    save_image(VALUES, tmp_path / "a.ome.zarr")
    convert(tmp_path / "a.ome.zarr", tmp_path / name)
    with tifffile.TiffFile(tmp_path / name) as file:
        assert file.is_bigtiff == (name == "a.btf")


def test_memory_does_not_grow_with_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(VALUES, tmp_path / "a.ome.zarr", chunks=(5, 32, 32))
    largest, at_once, read = [0], [0], tiff_export._read

    def counted(job: Any, box: Any, level: int) -> Any:
        largest[0] = max(largest[0], box.size)
        at_once[0] += 1
        return read(job, box, level)

    monkeypatch.setattr(tiff_export, "_read", counted)
    for limit, expected in ((10**6, VALUES.size), (20_000, 70 * 90)):
        largest[0] = 0
        monkeypatch.setattr(tiff_export, "_PIECE_BYTES", limit)
        convert(tmp_path / "a.ome.zarr", tmp_path / f"{limit}.tif")
        assert largest[0] == expected, "planes that share chunks together, while they are few enough"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"chunks": (1, 8, 8)}, BadRequest, "chunks"),
        ({"share": (1, 2)}, BadRequest, "share"),
        ({"levels": 0}, BadRequest, "level"),
    ],
)
def test_what_a_tiff_does_not_have_is_refused(tmp_path: Path, options: Any, error: Any, says: str) -> None:
    save_image(VALUES, tmp_path / "a.ome.zarr")
    with pytest.raises(error, match=says):
        convert(tmp_path / "a.ome.zarr", tmp_path / "a.tif", **options)
    assert not list(tmp_path.glob("*.tif*"))


@pytest.mark.parametrize("dtype", ["u8", "i8", "f2", "bool"])
def test_voxels_that_ome_does_not_know_are_refused(tmp_path: Path, dtype: str) -> None:
    save_image(VALUES.astype(dtype), tmp_path / "a.ome.zarr", levels=1)
    with pytest.raises(BadRequest, match="no such voxels"):
        convert(tmp_path / "a.ome.zarr", tmp_path / "a.tif")


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    save_image(VALUES, tmp_path / "a.ome.zarr")
    (tmp_path / "a.tif").write_text("years of work")
    with pytest.raises(OutputExists):
        convert(tmp_path / "a.ome.zarr", tmp_path / "a.tif")
    assert (tmp_path / "a.tif").read_text() == "years of work"
    convert(tmp_path / "a.ome.zarr", tmp_path / "a.tif", overwrite=True)
    assert np.array_equal(tifffile.imread(tmp_path / "a.tif"), VALUES)
    with pytest.raises(BadRequest, match="overlaps"):
        convert(tmp_path / "a.tif", tmp_path / "a.tif", overwrite=True)


def test_a_full_disk_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(VALUES, tmp_path / "a.ome.zarr")

    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(whole_file.os, "statvfs", lambda _: Full)
    with pytest.raises(NoSpace, match=r"0\.0 GiB free"):
        convert(tmp_path / "a.ome.zarr", tmp_path / "a.tif")


def test_nothing_half_made_is_left(tmp_path: Path) -> None:
    save_image(VALUES, tmp_path / "a.ome.zarr", chunks=(1, 32, 32), shards=(1, 32, 32), levels=1)
    (tmp_path / "a.ome.zarr" / "0" / "c" / "4" / "0" / "0").unlink()
    with pytest.raises(MissingChunk):
        convert(tmp_path / "a.ome.zarr", tmp_path / "out" / "a.tif")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_annotation_of_someone_elses_making_is_not_believed(tmp_path: Path) -> None:
    for value in ("{", '{"dims": ["q"]}', '{"dims": 3}', "[" * 5000):
        tifffile.imwrite(
            tmp_path / "a.ome.tif", VALUES, photometric="minisblack", ome=True,
            metadata={"axes": "ZYX", "CommentAnnotation": {"Namespace": "denoizarr/1", "Value": value}},
        )  # fmt: skip
        image = TiffImage(str(tmp_path / "a.ome.tif"))
        assert (image.dims, image.shape) == (("z", "y", "x"), VALUES.shape)


def test_on_the_command_line(tmp_path: Path) -> None:
    save_image(VALUES, tmp_path / "a.ome.zarr")
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "a.ome.zarr"), str(tmp_path / "a.ome.tif")])
    assert done.exit_code == 0, done.output
    assert "5 of 5" in done.output
    assert np.array_equal(tifffile.imread(tmp_path / "a.ome.tif"), VALUES)
