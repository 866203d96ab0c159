"""TIFF, PNG and npy: voxels, axes and physical sizes as their own readers give them."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from denoizarr.errors import BadRequest, CorruptChunk, ImageNotFound, MetadataError, UnsupportedStore
from denoizarr.geometry.boxes import Box
from denoizarr.stores.foreign import describe_foreign, is_foreign, natural_order, open_foreign
from denoizarr.stores.tiff import TiffImage

VALUES = np.random.default_rng(0).integers(0, 60000, (12, 33, 47), dtype=np.uint16)


def _read(*sources: Any, axes: str | None = None) -> tuple[tuple[str, ...], np.ndarray[Any, Any], Any]:
    source, metadata = describe_foreign(sources, axes)
    reader = open_foreign(source)
    return reader.dims, reader.read(Box.whole(reader.shape)), metadata


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib"},
        {"compression": "zlib", "tile": (16, 16)},
        {"compression": "zlib", "rowsperstrip": 5},
        {"bigtiff": True},
        {"byteorder": ">"},
    ],
)
@pytest.mark.parametrize("shape", [(33, 47), (12, 33, 47)])
def test_tiff(tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    values = VALUES if len(shape) == 3 else VALUES[0]
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", **options)
    dims, read, _ = _read(tmp_path / "a.tif")
    assert dims == ("z", "y", "x")[-len(shape) :]
    assert np.array_equal(read, values)
    reader = open_foreign(describe_foreign([tmp_path / "a.tif"])[0])
    box = Box((5, 7), (20, 31)) if len(shape) == 2 else Box((2, 5, 7), (7, 20, 31))
    assert np.array_equal(reader.read(box), values[box.slices])
    assert all(c <= n for c, n in zip(reader.chunks, reader.shape, strict=True))


@settings(max_examples=40)
@given(
    st.sampled_from([None, "zlib", "lzw"]),
    st.sampled_from([None, (16, 16), (32, 16)]),
    st.sampled_from([None, 1, 5, 33]),
    st.sampled_from(["<", ">"]),
    st.sampled_from(["u1", "u2", "i2", "f4"]),
    st.sampled_from(["stack", "rgb", "planar", "separate pages"]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_any_box_of_any_tiff(
    compression: Any, tile: Any, rows: Any, order: str, dtype: str, kind: str, predictor: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = {"rgb": (33, 47, 3), "planar": (3, 33, 47)}.get(kind, (4, 33, 47))
    values = rng.integers(0, 100, shape).astype(dtype)
    options: dict[str, Any] = {"compression": compression, "byteorder": order}
    options |= {"tile": tile} if tile else {"rowsperstrip": rows} if rows else {}
    options |= {"predictor": True} if predictor and compression else {}
    planar = {"rgb": "contig", "planar": "separate"}.get(kind)
    options |= {"photometric": "rgb", "planarconfig": planar} if planar else {"photometric": "minisblack"}
    with TemporaryDirectory() as name:
        path = Path(name) / "a.tif"
        if kind == "separate pages":
            with tifffile.TiffWriter(path, byteorder=options.pop("byteorder")) as file:
                for plane in values:
                    file.write(plane, contiguous=False, metadata=None, **options)
        else:
            tifffile.imwrite(path, values, **options)
        with tifffile.TiffFile(path) as file:
            expected = file.series[0].asarray()
        image = TiffImage(str(path))
        assert image.shape == expected.shape
        for _ in range(4):
            corners = np.sort([rng.choice(n + 1, 2, replace=False) for n in expected.shape], axis=1)
            box = tuple(slice(int(a), int(b)) for a, b in corners)
            found = image.read(box)
            assert found.dtype == expected.dtype.newbyteorder("=")
            assert np.array_equal(found, expected[box])


def test_a_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    for n in range(2):
        tifffile.imwrite(tmp_path / "a.tif", VALUES[n])
        os.utime(tmp_path / "a.tif", ns=(n, n))
        assert np.array_equal(_read(tmp_path / "a.tif")[1], VALUES[n])


def test_files_that_are_open_stay_few(tmp_path: Path) -> None:
    for z in range(40):
        tifffile.imwrite(tmp_path / f"p{z}.tif", VALUES[0])
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert np.array_equal(_read(tmp_path)[1], np.stack([VALUES[0]] * 40))
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2 * 16


def test_a_folder_of_planes_in_natural_order(tmp_path: Path) -> None:
    for z in range(12):
        tifffile.imwrite(tmp_path / f"plane{z}.tif", VALUES[z])
    (tmp_path / "notes.txt").write_text("not an image")
    assert is_foreign(tmp_path)
    for source in (tmp_path, str(tmp_path / "plane*.tif")):
        dims, read, _ = _read(source)
        assert dims == ("z", "y", "x")
        assert np.array_equal(read, VALUES)
    assert np.array_equal(_read(tmp_path, axes="tyx")[1], VALUES)
    assert _read(tmp_path, axes="tyx")[0] == ("t", "y", "x")
    given = _read(tmp_path / "plane3.tif", tmp_path / "plane1.tif")[1]
    assert np.array_equal(given, VALUES[[3, 1]]), "named one by one, the caller's order stays"


def test_natural_order_is_a_total_order() -> None:
    names = ["a10", "a2", "a1", "a01", "b", "a", "1²3", "٣", "10"]
    ordered = sorted(sorted(names), key=natural_order)
    assert ordered == sorted(sorted(set(names)), key=natural_order)
    assert ordered.index("a2") < ordered.index("a10")


def test_equal_keys_do_not_depend_on_the_order_of_the_folder(tmp_path: Path) -> None:
    for name in ("p1", "p01", "p001"):
        np.save(tmp_path / f"{name}.npy", VALUES[len(name)])
    source, _ = describe_foreign([tmp_path])
    assert [Path(p).stem for p in source.paths] == ["p001", "p01", "p1"]


def test_ome_tiff_with_physical_sizes(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.ome.tif", VALUES.reshape(2, 3, 2, 33, 47), photometric="minisblack", ome=True,
        metadata={"axes": "TCZYX", "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 500.0,
                  "PhysicalSizeYUnit": "nm", "PhysicalSizeZ": 2.0},
    )  # fmt: skip
    dims, read, metadata = _read(tmp_path / "a.ome.tif")
    assert dims == ("t", "c", "z", "y", "x")
    assert np.array_equal(read, VALUES.reshape(2, 3, 2, 33, 47))
    assert metadata.scale == {"x": 0.25, "y": 500.0, "z": 2.0}
    assert metadata.units == {"x": "micrometer", "y": "nanometer", "z": "micrometer"}


@pytest.mark.parametrize("unit", ["um", "micron", "\\u00B5m"])
def test_imagej(tmp_path: Path, unit: str) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", VALUES.reshape(6, 2, 33, 47), imagej=True, resolution=(4.0, 2.0),
        metadata={"axes": "ZCYX", "spacing": 3.0, "unit": unit},
    )  # fmt: skip
    dims, read, metadata = _read(tmp_path / "a.tif")
    assert dims == ("c", "z", "y", "x")
    assert np.array_equal(read, VALUES.reshape(6, 2, 33, 47).transpose(1, 0, 2, 3))
    assert metadata.scale == {"x": 0.25, "y": 0.5, "z": 3.0}
    assert set(metadata.units.values()) == {"micrometer"}


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_rgb_tiff(tmp_path: Path, planar: str) -> None:
    rgb = VALUES[:3].transpose(1, 2, 0).astype("u1")
    stored = rgb if planar == "contig" else rgb.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
    dims, read, _ = _read(tmp_path / "a.tif")
    assert dims == ("c", "y", "x")
    assert np.array_equal(read, rgb.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("values", "dims"),
    [
        (VALUES[0].astype("u1"), ("y", "x")),
        (VALUES[0], ("y", "x")),
        (VALUES[:3].transpose(1, 2, 0).astype("u1"), ("c", "y", "x")),
        (VALUES[:4].transpose(1, 2, 0).astype("u1"), ("c", "y", "x")),
    ],
)
def test_png(tmp_path: Path, values: np.ndarray[Any, Any], dims: tuple[str, ...]) -> None:
    Image.fromarray(values).save(tmp_path / "a.png")
    found, read, _ = _read(tmp_path / "a.png")
    assert found == dims
    assert read.dtype == values.dtype
    assert np.array_equal(read, values if values.ndim == 2 else values.transpose(2, 0, 1))


def test_palettes_and_bitmaps_decode(tmp_path: Path) -> None:
    Image.fromarray(VALUES[0].astype("u1")).convert("P").save(tmp_path / "p.png")
    assert _read(tmp_path / "p.png")[1].shape == (3, 33, 47)
    Image.fromarray(VALUES[0] > 30000).save(tmp_path / "b.png")
    assert np.array_equal(_read(tmp_path / "b.png")[1] > 0, VALUES[0] > 30000)


def test_png_of_16_bit_colour_is_refused_rather_than_cut_to_8(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + b"\x12\x34" * 6 for _ in range(2)))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    with pytest.raises(UnsupportedStore, match="16-bit"):
        describe_foreign([tmp_path / "a.png"])


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VALUES)
    assert np.array_equal(_read(tmp_path / "a.npy")[1], VALUES)
    np.save(tmp_path / "f.npy", np.asfortranarray(VALUES.astype(">f4")))
    dims, read, _ = _read(tmp_path / "f.npy", axes="xyz")
    assert dims == ("z", "y", "x")
    assert np.array_equal(read, VALUES.transpose())


def test_a_pickled_npy_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": print}], dtype=object), allow_pickle=True)
    with pytest.raises(MetadataError):
        describe_foreign([tmp_path / "a.npy"])


def test_stacks_that_do_not_fit(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a1.tif", VALUES[0])
    tifffile.imwrite(tmp_path / "a2.tif", VALUES[1, :-1])
    with pytest.raises(BadRequest, match=r"a2\.tif.*differ|differ.*a2\.tif"):
        describe_foreign([tmp_path])
    tifffile.imwrite(tmp_path / "a2.tif", VALUES[1].astype("u1"))
    with pytest.raises(BadRequest, match="uint8"):
        describe_foreign([tmp_path])
    tifffile.imwrite(tmp_path / "a2.tif", VALUES[1])
    Image.fromarray(VALUES[0]).save(tmp_path / "b.png")
    with pytest.raises(BadRequest, match="several kinds"):
        describe_foreign([tmp_path])


@pytest.mark.parametrize("axes", ["yx", "zzx", "zyq", "zcx", "tczyx", ""])
def test_wrong_axes_are_refused(tmp_path: Path, axes: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VALUES, photometric="minisblack")
    with pytest.raises(BadRequest, match="axes and files disagree"):
        describe_foreign([tmp_path / "a.tif"], axes)


def test_what_is_absent_or_unknown(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "no.tif", tmp_path / "no*.tif"):
        with pytest.raises(ImageNotFound):
            describe_foreign([source])
    (tmp_path / "a.czi").write_bytes(b"x")
    with pytest.raises(UnsupportedStore, match=r"\.czi"):
        describe_foreign([tmp_path / "a.czi"])
    assert not is_foreign(tmp_path / "a.czi")


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.npy"])
@pytest.mark.parametrize("body", [b"", b"not an image at all, but long enough to look like something" * 3])
def test_what_is_not_what_its_name_says(tmp_path: Path, name: str, body: bytes) -> None:
    (tmp_path / name).write_bytes(body)
    with pytest.raises(MetadataError):
        describe_foreign([tmp_path / name])


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"compression": "zlib", "tile": (16, 16)}, {"tile": (16, 16)}]
)
def test_a_truncated_tiff_is_never_read_as_something_else(tmp_path: Path, options: dict[str, Any]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VALUES[0], **options)
    whole = (tmp_path / "a.tif").read_bytes()
    for length in (len(whole) // 4, len(whole) // 2, len(whole) - 3):
        (tmp_path / "a.tif").write_bytes(whole[:length])
        with pytest.raises((MetadataError, CorruptChunk)):
            _read(tmp_path / "a.tif")


def test_a_compression_that_cannot_be_undone_is_refused_at_once(tmp_path: Path, monkeypatch: Any) -> None:
    Image.fromarray(VALUES[0]).save(tmp_path / "a.tif", compression="tiff_lzw")
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", {1: None})  # as where imagecodecs is not installed
    with pytest.raises(UnsupportedStore, match="imagecodecs"):
        describe_foreign([tmp_path / "a.tif"])


@pytest.mark.parametrize("name", ["a.png", "a.npy"])
def test_a_truncated_png_or_npy(tmp_path: Path, name: str) -> None:
    Image.fromarray(VALUES[0]).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", VALUES[0])
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises((MetadataError, CorruptChunk)):
        _read(tmp_path / name)


def test_files_that_change_or_vanish_while_they_are_read(tmp_path: Path) -> None:
    for z in range(2):
        tifffile.imwrite(tmp_path / f"a{z}.tif", VALUES[z])
    reader = open_foreign(describe_foreign([tmp_path])[0])
    (tmp_path / "a1.tif").unlink()
    with pytest.raises(ImageNotFound, match=r"a1\.tif"):
        reader.read(Box.whole(reader.shape))


def test_equal_names_in_two_folders_are_two_images(tmp_path: Path) -> None:
    identities: list[dict[str, Any]] = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "p.tif", VALUES[len(identities)])
        identities.append(open_foreign(describe_foreign([tmp_path / folder])[0]).identity)
    assert identities[0] != identities[1], (
        "or a conversion of b would be taken for the one of a that was begun"
    )


def test_real_planes(data_dir: Path) -> None:
    tiffs = sorted(data_dir.rglob("*.tif*"))
    if not tiffs:
        pytest.skip("no TIFF among the real images")
    source, _ = describe_foreign([tiffs[0]])
    reader = open_foreign(source)
    order = [source.axes.index(d) for d in reader.dims]
    expected = tifffile.imread(tiffs[0]).reshape(source.shape).transpose(order)
    assert np.array_equal(reader.read(Box.whole(reader.shape)), expected)
