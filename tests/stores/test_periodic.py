"""An image less its waves: any box of it, on any path, equals that part of the whole."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.errors import BadRequest
from denoizarr.geometry.boxes import Box
from denoizarr.images.save import save_image
from denoizarr.kernels.waves import Wave
from denoizarr.stores.images import as_image, corrected_image, open_image, reader_of, source_of
from denoizarr.stores.periodic import WaveTable

FREQUENCIES = ((0.0, 0.125), (0.061, 0.083))
SHAPE = (3, 2, 60, 90)


def voxels(dtype="uint16"):
    return np.random.default_rng(0).normal(500, 50, SHAPE).astype(dtype)


def table(leading=SHAPE[:-2], absent=()):
    random = np.random.default_rng(1)
    planes = [
        [
            Wave((fy, fx + 1e-5 * random.normal()), 0.0 if at in absent else 20.0, 3 * random.normal())
            for fy, fx in FREQUENCIES
        ]
        for at in np.ndindex(*leading)
    ]
    return WaveTable.of(FREQUENCIES, leading, planes)


def expected(values, waves_of):
    y, x = np.mgrid[: SHAPE[-2], : SHAPE[-1]]
    result = values.astype(np.float64)
    for at in np.ndindex(*SHAPE[:-2]):
        for wave in waves_of.waves(at):
            theta = 2 * np.pi * (wave.frequency[0] * y + wave.frequency[1] * x)
            result[at] -= wave.amplitude * np.cos(theta + wave.phase)
    return result


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    url = tmp_path_factory.mktemp("periodic") / "image.ome.zarr"
    save_image(xr.DataArray(voxels(), dims=tuple("tzyx")), url, chunks=(1, 2, 32, 32))
    return open_image(url)


@pytest.fixture(params=["stored", "in memory", "computed"])
def any_image(request, image):
    if request.param == "stored":
        return image
    return as_image(voxels(), "tzyx") if request.param == "in memory" else image + 0


def test_every_plane_loses_its_own_waves(any_image) -> None:
    corrected = corrected_image(any_image, table(absent={(1, 0)}))
    values = corrected.values
    assert values.dtype == corrected.dtype == np.float32
    np.testing.assert_allclose(values, expected(voxels(), table(absent={(1, 0)})), atol=1e-3)
    assert np.array_equal(values[1, 0], voxels()[1, 0])
    assert np.abs(values[1, 1] - voxels()[1, 1]).max() > 10
    assert corrected.dims == any_image.dims
    assert corrected.attrs == any_image.attrs
    assert all(np.array_equal(corrected.coords[d], any_image.coords[d]) for d in any_image.coords)


@settings(max_examples=25)
@given(st.data())
def test_any_box_is_the_same_bytes_as_the_whole(image, data) -> None:
    reader = reader_of(corrected_image(image, table()))
    whole = reader.read(Box.whole(SHAPE))
    start = tuple(data.draw(st.integers(0, n - 1)) for n in SHAPE)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, SHAPE, strict=True))
    box = Box(start, stop)
    assert reader.read(box).tobytes() == whole[box.slices].tobytes()


def test_slices_keep_their_place(any_image) -> None:
    corrected = corrected_image(any_image, table())
    whole = corrected.values
    part = corrected.isel(z=1, y=slice(7, 51), x=slice(33, 80))
    reader = reader_of(part)
    assert reader.read(Box.whole(reader.shape)).tobytes() == whole[:, 1, 7:51, 33:80].tobytes()
    assert reader.uncorrected is not None
    assert reader.stored_dtype == np.uint16
    assert reader.periodic == FREQUENCIES


def test_it_travels_as_its_source_and_table(image) -> None:
    for corrected in (
        corrected_image(image, table()),
        corrected_image(image, table()).isel(t=2, x=slice(5, 70)),
    ):
        reader = reader_of(corrected)
        sent = pickle.dumps(reader)
        assert len(sent) < 5000
        arrived = pickle.loads(sent)  # noqa: S301  (our own bytes)
        assert arrived.identity == reader.identity
        box = Box.whole(reader.shape)
        assert arrived.read(box).tobytes() == reader.read(box).tobytes()
        assert arrived.absent_in(box) == []
    assert source_of(corrected) is None  # a store holds other voxels
    local = reader_of(corrected_image(as_image(voxels(), "tzyx"), table()))
    with pytest.raises(BadRequest, match="save it first"):
        pickle.dumps(local)


def test_it_is_another_image_than_the_stored_one(image) -> None:
    first, second = (reader_of(corrected_image(image, t)) for t in (table(), table(absent={(0, 0)})))
    assert len({json.dumps(r.identity, sort_keys=True) for r in (first, second, reader_of(image))}) == 3
    assert first.urls == reader_of(image).urls
    assert first.stored_dtype == np.uint16
    assert corrected_image(image, table()).data.name == corrected_image(image, table()).data.name


def test_without_waves_it_is_the_image_itself(image) -> None:
    none = table(absent=set(np.ndindex(*SHAPE[:-2])))
    assert none.is_empty
    assert corrected_image(image, none) is image
    assert corrected_image(image, WaveTable(FREQUENCIES, SHAPE[:-2], b"")) is image
    assert corrected_image(image, WaveTable((), SHAPE[:-2], b"")) is image
    with pytest.raises(BadRequest, match="another image"):
        corrected_image(image, table((3, 1)))


def test_a_table_survives_json_to_the_last_bit() -> None:
    for given_table in (table(), WaveTable(FREQUENCIES, (3,), b""), table((), ())):
        assert WaveTable.from_json(json.loads(json.dumps(given_table.to_json()))) == given_table
    assert table().digest != table(absent={(0, 0)}).digest
    assert table().largest == (20.0, 20.0)
    good = table().to_json()
    for spoilt in (
        {"waves": good["waves"][1:]},
        {"waves": [float("nan"), *good["waves"][1:]]},
        {"leading": None},
    ):
        with pytest.raises((ValueError, TypeError, KeyError)):
            WaveTable.from_json(good | spoilt)


def test_a_chunk_that_is_filled_stays_as_it_was_filled(tmp_path) -> None:
    url = tmp_path / "holed.ome.zarr"
    save_image(xr.DataArray(voxels(), dims=tuple("tcyx")), url, chunks=(1, 1, 16, 32), shards=None, levels=1)
    whole = corrected_image(open_image(url), table()).values
    absent = sorted((url / "0" / "c" / "1" / "0").rglob("*"))
    assert absent
    for path in absent:
        if path.is_file():
            path.unlink()
    for image in (open_image(url, missing="fill"), open_image(url, missing="fill")[:, :, 3:, 5:]):
        corrected = corrected_image(image, table())
        expected = whole[:, :, -corrected.shape[2] :, -corrected.shape[3] :].copy()
        found = corrected.values
        np.testing.assert_array_equal(found[1, 0], 0)
        if image.shape[2:] == SHAPE[2:]:
            expected[1, 0] = 0
            np.testing.assert_array_equal(found, expected)
        part = reader_of(corrected).read(Box((1, 0, 7, 9), (2, 2, 50, 60)))
        np.testing.assert_array_equal(part, found[1:2, :, 7:50, 9:60])
