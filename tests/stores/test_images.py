"""Opening images: every kind of store gives the same voxels, and a slice is reopened where it is proven."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

from denoizarr.errors import (
    BadRequest,
    CorruptChunk,
    DegenerateData,
    DenoizarrError,
    ImageNotFound,
    MetadataError,
    NotOmeZarr,
    UnsupportedStore,
)
from denoizarr.geometry.boxes import Box
from denoizarr.stores.images import as_image, as_images, open_image, reader_of, source_of

Write = Callable[..., str]
VALUES = np.random.default_rng(0).integers(0, 60000, (5, 30, 41), dtype=np.uint16)


@pytest.fixture
def url(tmp_path: Path, write_store: Write, store_kinds: dict[str, Any]) -> str:
    return write_store(
        tmp_path / "a.ome.zarr", VALUES, "zyx", store_kinds["ome-0.5-sharded"], chunks=(1, 8, 16),
        scale=(2.0, 0.5, 0.25), translation=(10.0, 1.0, 2.0),
    )  # fmt: skip


def test_every_kind_of_store_gives_the_same_image(
    tmp_path: Path, write_store: Write, store_kind: Any
) -> None:
    url = write_store(tmp_path / "a.zarr", VALUES, "zyx", store_kind, chunks=(1, 8, 16))
    image = open_image(url, axes=None if store_kind.ome_version else "zyx")
    assert image.dims == ("z", "y", "x")
    assert image.dtype == np.uint16
    assert isinstance(image.data, da.Array)
    assert np.array_equal(image.values, VALUES)
    assert np.array_equal(reader_of(image).read(Box((1, 3, 5), (4, 30, 17))), VALUES[1:4, 3:30, 5:17])
    assert reader_of(image).chunks == (1, 8, 16)


@pytest.mark.parametrize("stored", ["zyx", "yxz", "xyz", "xzy"])
@pytest.mark.parametrize("name", ["ome-0.4", "ome-0.5", "plain-v3"])
def test_stored_axes_in_another_order(
    tmp_path: Path, write_store: Write, store_kinds: dict[str, Any], name: str, stored: str
) -> None:
    kind = store_kinds[name]
    turned = VALUES.transpose(["zyx".index(d) for d in stored])
    chunk, spacing = {"z": 2, "y": 7, "x": 16}, {"z": 3.0, "y": 0.5, "x": 0.25}
    url = write_store(
        tmp_path / "a.zarr", turned, stored, kind, chunks=[chunk[d] for d in stored],
        scale=[spacing[d] for d in stored],
    )  # fmt: skip
    image = open_image(url, axes=None if kind.ome_version else stored)
    assert image.dims == ("z", "y", "x")
    assert np.array_equal(image.values, VALUES)
    for part in (image, image.isel(y=slice(3, 20)), image.isel(z=2)):
        reader = reader_of(part)
        assert source_of(part) is not None
        assert np.array_equal(reader.read(Box.whole(reader.shape)), part.values)
    if kind.ome_version:
        assert image.coords["z"].values[:2].tolist() == [0.0, 3.0]
        assert image.coords["x"].values[1] == 0.25


def test_five_axes_come_in_the_order_tczyx(
    tmp_path: Path, write_store: Write, store_kinds: dict[str, Any]
) -> None:
    values = np.arange(2 * 3 * 2 * 4 * 5, dtype="f4").reshape(2, 3, 2, 4, 5)
    url = write_store(tmp_path / "a.zarr", values, "tczyx", store_kinds["ome-0.4"], chunks=(1, 1, 1, 4, 5))
    assert open_image(url).dims == ("t", "c", "z", "y", "x")
    plain = write_store(tmp_path / "b.zarr", values, "", store_kinds["plain-v2"], chunks=(1, 1, 1, 4, 5))
    assert open_image(plain, axes="ctzyx").sizes == {"t": 3, "c": 2, "z": 2, "y": 4, "x": 5}


def test_world_coordinates(url: str) -> None:
    image = open_image(url)
    assert image.coords["z"].values.tolist() == [10, 12, 14, 16, 18]
    assert image.coords["y"].values[:3].tolist() == [1.0, 1.5, 2.0]
    assert {image.coords[d].attrs["units"] for d in "zyx"} == {"micrometer"}
    assert image.attrs["url"] == url
    assert image.attrs["level"] == 0


def test_scale_over_all_levels_is_applied_after_each_levels_own(url: str) -> None:
    group = zarr.open_group(url, mode="a")
    ome: Any = group.attrs["ome"]
    ome["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [2.0, 2.0, 2.0]}]
    group.attrs["ome"] = ome
    assert open_image(url).coords["z"].values[:2].tolist() == [20.0, 24.0]


# The rule of reopening: name, what is done to the image, whether the store may be read instead.
PARTS: list[tuple[str, Callable[[xr.DataArray], xr.DataArray], bool]] = [
    ("whole", lambda i: i, True),
    ("slice", lambda i: i.isel(z=slice(1, 4), x=slice(3, 20)), True),
    ("int", lambda i: i.isel(z=3), True),
    ("int-and-slice", lambda i: i.isel(x=7, y=slice(4, 9)), True),
    ("negative-int", lambda i: i.isel(z=-1), True),
    ("by-label", lambda i: i.sel(z=14.0), True),
    ("one-plane-slice", lambda i: i.isel(z=slice(2, 3)), True),
    ("doubled", lambda i: i * 2, False),
    ("added", lambda i: i + i, False),
    ("astype", lambda i: i.astype("f4"), False),
    ("where", lambda i: i.where(i > 30000, 0), False),
    ("chained", lambda i: i.isel(z=slice(1, 4)).isel(z=slice(1, 3)), False),
    ("chained-int", lambda i: i.isel(z=slice(1, 4)).isel(z=1), False),
    ("step", lambda i: i.isel(z=slice(None, None, 2), x=slice(1, 30, 3)), False),
    ("reversed", lambda i: i.isel(y=slice(None, None, -1)), False),
    ("reversed-int", lambda i: i.isel(y=slice(None, None, -1), z=2), False),
    ("list", lambda i: i.isel(x=[5, 1, 30]), False),
    ("transposed", lambda i: i.transpose("x", "z", "y"), False),
    ("doubled-slice", lambda i: (i * 2).isel(z=slice(1, 3)), False),
    ("slice-doubled", lambda i: i.isel(z=slice(1, 3)) * 2, False),
    ("new-axis", lambda i: i.isel(z=1).expand_dims("c"), False),
    ("renamed", lambda i: i.rename(z="t"), False),
    ("lying-coordinates", lambda i: i.isel(z=slice(2, 4)).assign_coords(z=[10.0, 12.0]), False),
    ("rolled", lambda i: i.roll(z=1), False),
]


@pytest.mark.parametrize(("change", "from_store"), [p[1:] for p in PARTS], ids=[p[0] for p in PARTS])
def test_an_image_is_read_from_its_store_only_where_it_is_proven(
    url: str, change: Callable[[xr.DataArray], xr.DataArray], from_store: bool
) -> None:
    image = open_image(url)
    part = change(image)
    expected = change(image.compute()).values
    assert (source_of(part) is not None) == from_store
    reader = reader_of(part)
    assert reader.shape == expected.shape
    assert np.array_equal(reader.read(Box.whole(reader.shape)), expected)
    assert np.array_equal(part.values, expected), "and Dask computes the same"
    if not from_store:
        with pytest.raises(BadRequest, match="save it first"):
            pickle.dumps(reader)
    else:
        assert np.array_equal(pickle.loads(pickle.dumps(reader)).read(Box.whole(reader.shape)), expected)  # noqa: S301


def test_attributes_that_survive_do_not_fool_it(url: str, tmp_path: Path) -> None:
    image = open_image(url)
    changed = image.astype("uint16") + np.uint16(1)
    changed.attrs.update(image.attrs)
    assert source_of(changed) is None
    assert np.array_equal(reader_of(changed).read(Box.whole(VALUES.shape)), VALUES + np.uint16(1))
    stranger = as_image(VALUES[::-1].copy()).assign_attrs(image.attrs).assign_coords(image.coords)
    assert source_of(stranger) is None
    assert np.array_equal(reader_of(stranger).read(Box.whole(VALUES.shape)), VALUES[::-1])


def test_unpickled_in_another_process(url: str, tmp_path: Path) -> None:
    image = open_image(url)
    parts = [image.isel(z=slice(1, 3)), image * 2, image.isel(z=3, y=slice(None, None, 3))]
    (tmp_path / "parts").write_bytes(pickle.dumps(parts))
    program = (
        "import pickle, sys, numpy as np\n"
        "from denoizarr.geometry.boxes import Box\n"
        "from denoizarr.stores.images import reader_of\n"
        "for part in pickle.load(open(sys.argv[1], 'rb')):\n"
        "    reader = reader_of(part)\n"
        "    for values in (reader.read(Box.whole(reader.shape)), part.values):\n"
        "        print(int(values.astype(np.int64).sum()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "parts")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    sums = [int(part.values.astype(np.int64).sum()) for part in parts]
    assert done.stdout.split() == [str(s) for s in sums for _ in range(2)]


def test_a_store_written_anew_is_not_read_with_old_metadata(
    tmp_path: Path, write_store: Write, store_kinds: dict[str, Any]
) -> None:
    kind = store_kinds["plain-v3"]
    url = write_store(tmp_path / "a.zarr", VALUES, "zyx", kind, chunks=(1, 8, 16))
    sent = pickle.dumps(reader_of(open_image(url, axes="zyx")))
    zarr.create_array(url, shape=(2, 3, 4), dtype="f4", overwrite=True)
    assert open_image(url, axes="zyx").shape == (2, 3, 4)
    with pytest.raises(MetadataError, match="open it again"):
        pickle.loads(sent)  # noqa: S301


def test_a_box_outside_the_image_is_refused(url: str) -> None:
    reader = reader_of(open_image(url).isel(z=slice(1, 3)))
    with pytest.raises(BadRequest, match="outside"):
        reader.read(Box((0, 0, 0), (3, 30, 41)))
    with pytest.raises(BadRequest, match="outside"):
        reader.read(Box((0, 0), (3, 30)))


def test_the_identity_tells_images_apart(url: str) -> None:
    image = open_image(url)
    same, part = reader_of(open_image(url)), reader_of(image.isel(z=slice(1, 3)))
    assert reader_of(image).identity == same.identity != part.identity
    json.dumps(part.identity)
    assert reader_of(image * 2).identity != reader_of(image * 3).identity


# Any kind of image.


@pytest.mark.parametrize(
    ("values", "axes", "dims"),
    [
        (np.zeros((3, 4), "u1"), None, ("y", "x")),
        (np.zeros((2, 3, 4), "f4"), None, ("z", "y", "x")),
        (np.zeros((2, 3, 4), "i2"), "yxc", ("c", "y", "x")),
        (np.zeros((2, 2, 3, 4), "u2"), "tcyx", ("t", "c", "y", "x")),
    ],
)
def test_arrays(values: np.ndarray[Any, Any], axes: str | None, dims: tuple[str, ...]) -> None:
    for data in (values, da.from_array(values)):
        image = as_image(data, axes)
        assert image.dims == dims
        assert isinstance(image.data, da.Array)
        assert np.array_equal(
            image.values, values.transpose([(axes or "".join(dims)).index(d) for d in dims])
        )


def test_zarr_arrays_on_disk_and_in_memory(tmp_path: Path) -> None:
    on_disk = zarr.create_array(str(tmp_path / "a.zarr"), data=VALUES, chunks=(1, 8, 16))
    image = as_image(on_disk)
    assert source_of(image) is not None
    assert np.array_equal(image.values, VALUES)
    in_memory = [
        zarr.create_array(zarr.storage.MemoryStore(), data=VALUES + n, chunks=(1, 8, 16)) for n in (0, 1)
    ]
    images = [as_image(array) for array in in_memory]
    assert [source_of(i) for i in images] == [None, None]
    assert images[0].data.name != images[1].data.name
    assert np.array_equal(images[1].values, VALUES + 1)


def test_lists_and_globs(tmp_path: Path, write_store: Write, store_kinds: dict[str, Any]) -> None:
    for name in ("b", "a"):
        write_store(
            tmp_path / f"{name}.ome.zarr", VALUES[:2], "zyx", store_kinds["ome-0.5"], chunks=(1, 8, 16)
        )
    assert [i.name for i in as_images(str(tmp_path / "*.ome.zarr"))] == ["a", "b"]
    assert [i.name for i in as_images([tmp_path / "b.ome.zarr", tmp_path / "a.ome.zarr"])] == ["b", "a"]
    assert len(as_images(VALUES)) == 1
    assert [i.shape for i in as_images([VALUES, VALUES[:2]])] == [VALUES.shape, (2, 30, 41)]
    with pytest.raises(ImageNotFound, match="no image matches"):
        as_images(str(tmp_path / "*.nothing"))
    with pytest.raises(ImageNotFound, match="empty list"):
        as_images([])


# What cannot be opened, each by its own name.


@pytest.mark.parametrize(
    ("data", "axes", "error"),
    [
        (np.zeros((2, 2, 2, 2)), None, BadRequest),
        (np.zeros((2, 2)), "zyx", BadRequest),
        (np.zeros((2, 2)), "yy", BadRequest),
        (np.zeros((2, 2)), "zx", BadRequest),
        (np.zeros((2, 2)), "yq", BadRequest),
        (np.zeros((2, 2), complex), None, DegenerateData),
        (np.array([["a"]]), None, DegenerateData),
        (np.zeros((0, 2)), None, DegenerateData),
        (xr.DataArray(np.zeros((2, 2), complex), dims=("y", "x")), None, DegenerateData),
        (xr.DataArray(np.zeros((2, 2)), dims=("row", "column")), None, BadRequest),
        (3, None, BadRequest),
    ],
)
def test_what_is_no_image_is_refused(data: Any, axes: str | None, error: type[DenoizarrError]) -> None:
    with pytest.raises(error):
        as_image(data, axes)


def test_errors_of_the_path(tmp_path: Path, url: str) -> None:
    with pytest.raises(ImageNotFound, match="check the path"):
        open_image(tmp_path / "nothing.zarr")
    zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    with pytest.raises(NotOmeZarr, match="multiscales"):
        open_image(tmp_path / "g.zarr")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.zarr").write_text("no")
    for name in ("folder", "file.zarr"):
        with pytest.raises(NotOmeZarr):
            open_image(tmp_path / name)
        with pytest.raises(NotOmeZarr):
            open_image(tmp_path / name, axes="yx")
    with pytest.raises(BadRequest, match="no such level"):
        open_image(url, level=3)
    with pytest.raises(BadRequest, match="missing"):
        open_image(url, missing="ignore")  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match=r"secret is not an option at storage_options\.key;"):
        open_image("s3://bucket/a.zarr", storage_options={"key": "hunter2"})
    with pytest.raises(BadRequest, match="for object stores"):
        open_image(url, storage_options={"region": "eu"})


@pytest.mark.parametrize("scheme", ["http", "https", "s3", "gs", "abfs"])
@pytest.mark.parametrize("as_path", [False, True])
def test_urls_with_a_password_are_refused_without_it(scheme: str, as_path: bool) -> None:
    asked = f"{scheme}://someone:hunt/er2@host:80/a.zarr?token=abc"
    with pytest.raises(BadRequest) as caught:
        open_image(Path(asked) if as_path else asked)
    assert isinstance(caught.value, UnsupportedStore) == (scheme == "abfs")
    assert "hunt" not in str(caught.value)
    assert "er2" not in str(caught.value)
    assert "abc" not in str(caught.value)
    assert scheme in str(caught.value)


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def _deep(text: str) -> str:
    return text[:-1] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}"


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    "attack", ["chunk-zero", "negative-shape", "string", "deep", "not-json", "no-shape", "codec", "no-voxels"]
)
def test_hostile_metadata_of_an_array(tmp_path: Path, zarr_format: int, attack: str) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), data=VALUES, chunks=(1, 8, 16), zarr_format=zarr_format)  # type: ignore[arg-type]
    path = tmp_path / "a.zarr" / ("zarr.json" if zarr_format == 3 else ".zarray")

    def change(data: dict[str, Any]) -> None:
        if attack == "chunk-zero":
            chunks = [0, 8, 16]
            data.get("chunk_grid", {}).get("configuration", {}).update(chunk_shape=chunks)
            data.update({"chunks": chunks} if zarr_format == 2 else {})
        elif attack == "negative-shape":
            data["shape"] = [-5, 30, 41]
        elif attack == "no-voxels":
            data["shape"] = [0, 30, 41]
        elif attack == "string":
            data.update({"dtype": "<U4"} if zarr_format == 2 else {"data_type": "bytes"})
        elif attack == "no-shape":
            del data["shape"]
        else:
            data.update(
                {"compressor": {"id": "evil"}} if zarr_format == 2 else {"codecs": [{"name": "evil"}]}
            )

    if attack == "deep":
        path.write_text(_deep(path.read_text()))
    elif attack == "not-json":
        path.write_text("{")
    else:
        _edit(path, change)
    with pytest.raises((MetadataError, NotOmeZarr, CorruptChunk)):
        open_image(tmp_path / "a.zarr", axes="zyx").values  # noqa: B018


@pytest.mark.parametrize(
    "attack",
    [
        lambda m: m["datasets"][0].update(path="../../elsewhere"),
        lambda m: m["datasets"][0].update(path="/etc"),
        lambda m: m["datasets"][0].update(path="absent"),
        lambda m: m["datasets"][0]["coordinateTransformations"][0].update(scale=[1.0]),
        lambda m: m.update(coordinateTransformations=[{"type": "scale", "scale": [1.0]}]),
        lambda m: m.update(datasets=[]),
        lambda m: m["axes"].pop(),
        lambda m: m["axes"][0].update(name="y"),
        lambda m: m["axes"][0].update(name="q"),
        lambda m: m.update(axes="zyx"),
    ],
)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_hostile_metadata_of_an_image(
    tmp_path: Path,
    write_store: Write,
    store_kinds: dict[str, Any],
    version: str,
    attack: Callable[[Any], None],
) -> None:
    url = write_store(
        tmp_path / "a.zarr", VALUES, "zyx", store_kinds[f"ome-{version}"], chunks=(1, 8, 16),
        translation=(0, 0, 1),
    )  # fmt: skip
    path = Path(url) / ("zarr.json" if version == "0.5" else ".zattrs")
    _edit(path, lambda d: attack((d["attributes"]["ome"] if version == "0.5" else d)["multiscales"][0]))
    with pytest.raises((MetadataError, ImageNotFound)):
        open_image(url)


def test_numpy_strings_in_attributes_do_not_matter(url: str) -> None:
    group = zarr.open_group(url, mode="a")
    group.attrs["anything"] = {"deep": [1, 2, {"é": None}]}
    assert np.array_equal(open_image(url).values, VALUES)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_fill_value_of_nan(tmp_path: Path, zarr_format: Any) -> None:
    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=(4, 4), chunks=(2, 2), dtype="f4", fill_value=np.nan,
        zarr_format=zarr_format,
    )  # fmt: skip
    array[:2] = 1
    filled = open_image(tmp_path / "a.zarr", axes="yx", missing="fill").values
    assert (filled[:2] == 1).all()
    assert np.isnan(filled[2:]).all()
