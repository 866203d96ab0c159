"""A mask read at the image's voxels equals a plain definition, whatever it lies in and at whatever level."""

import json
import pickle
from fractions import Fraction
from math import ceil

import dask.array as da
import numpy as np
import pytest
import tifffile
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from denoizarr.errors import BadRequest, ImageNotFound, MisalignedGrid, MissingChunk, NonFiniteData
from denoizarr.geometry.boxes import Box
from denoizarr.selection import masks as module
from denoizarr.selection.mask_alignment import AxisGrid, axis_rules
from denoizarr.selection.masks import aligned_mask
from denoizarr.stores.images import as_image, open_image, reader_of


def noise(shape, seed=0):
    return np.random.default_rng(seed).random(shape) < 0.4


def whole(reader):
    values = reader.read(Box.whole(reader.shape))
    assert values.dtype == reader.dtype == np.uint8
    assert values.shape == reader.shape
    return values


def plain(values, dims="zyx"):
    """An image without world coordinates."""
    return as_image(np.zeros(values, "uint16"), axes=dims)


def repeated(mask, shape, factor):
    """Spread a mask by the definition: image voxel i lies in mask voxel i // factor."""
    index = np.ix_(
        *(np.minimum(np.arange(n) // factor, m - 1) for n, m in zip(shape, mask.shape, strict=True))
    )
    return mask[index].astype(np.uint8)


@pytest.fixture
def stored(tmp_path, write_store, store_kinds):
    """``stored(name, values, dims, ...)``: an OME-Zarr written by zarr alone, by its URL."""

    def write(name, values, dims="zyx", **options):
        kind = store_kinds[options.pop("kind", "ome-0.5")]
        options.setdefault("chunks", tuple(min(n, 5) for n in values.shape))
        return write_store(tmp_path / name, values, dims, kind, **options)

    return write


@pytest.fixture
def image(stored):
    """13 x 21 x 27 voxels of 0.1 micrometers, away from the world's origin."""
    values = np.zeros((13, 21, 27), "uint16")
    return open_image(stored("image", values, scale=(0.1,) * 3, translation=(3.3, 0.7, 0.1)))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "float32"])
def test_same_grid_in_other_chunks_and_dtypes(stored, image, dtype):
    mask = noise(image.shape)
    url = stored("mask", mask.astype(dtype), chunks=(4, 9, 2), scale=(0.1,) * 3, translation=(3.3, 0.7, 0.1))
    reader = aligned_mask(url, image)
    assert (reader.dims, reader.chunks) == (("z", "y", "x"), (5, 5, 5))
    np.testing.assert_array_equal(whole(reader), mask)
    assert reader.urls == (url,)
    json.dumps(reader.identity)


def test_any_number_but_zero_counts():
    mask = np.array([[0, 1, -1, 255], [0.5, 0, -0.0, np.inf]])
    np.testing.assert_array_equal(
        whole(aligned_mask(mask, plain((2, 4), "yx"))), [[0, 1, 1, 1], [1, 0, 0, 1]]
    )


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("rounding", ["up", "down"])
@pytest.mark.parametrize("kind", ["ome-0.4", "ome-0.5-sharded"])
def test_a_coarser_level_lies_where_its_translation_says(stored, image, factor, rounding, kind):
    size = (lambda n: ceil(n / factor)) if rounding == "up" else (lambda n: max(n // factor, 1))
    mask = noise([size(n) for n in image.shape])
    half = 0.1 * (factor - 1) / 2
    url = stored(
        "mask",
        mask,
        kind=kind,
        scale=(0.1 * factor,) * 3,
        translation=(3.3 + half, 0.7 + half, 0.1 + half),
    )
    np.testing.assert_array_equal(whole(aligned_mask(url, image)), repeated(mask, image.shape, factor))


def test_a_level_without_its_half_voxel_is_taken_at_its_word(stored):
    """Centres on the border of two mask voxels go up, all of them: 0.1 * 3 and the like must not waver."""
    image = open_image(stored("image", np.zeros((20, 401), "uint8"), "yx", scale=(0.1, 0.1)))
    mask = noise((10, 201))
    url = stored("mask", mask, "yx", scale=(0.2, 0.2))
    index = np.ix_(np.minimum((np.arange(20) + 1) // 2, 9), (np.arange(401) + 1) // 2)
    np.testing.assert_array_equal(whole(aligned_mask(url, image)), mask[index])


def test_noise_of_decimal_scales_shifts_no_voxel(stored):
    image = open_image(
        stored("image", np.zeros((3, 5000), "uint8"), "yx", scale=(0.1, 0.1), chunks=(3, 5000))
    )
    mask = noise((3, 5000))
    options = {"dims": "yx", "chunks": (3, 700), "unit": "nanometer"}
    url = stored("mask", mask, scale=(100.00000000001,) * 2, **options)
    np.testing.assert_array_equal(whole(aligned_mask(url, image)), mask)


@pytest.mark.parametrize("factor", [2, 3])
def test_a_finer_mask_gives_the_voxel_at_the_centre(stored, image, factor):
    mask = noise([n * factor for n in image.shape])
    back = 0.1 * (factor - 1) / (2 * factor)
    url = stored(
        "mask",
        mask,
        scale=(0.1 / factor,) * 3,
        translation=(3.3 - back, 0.7 - back, 0.1 - back),
        chunks=(10, 10, 10),
    )
    np.testing.assert_array_equal(
        whole(aligned_mask(url, image)),
        mask[factor // 2 :: factor, factor // 2 :: factor, factor // 2 :: factor],
    )


def test_a_finer_mask_is_read_in_bounded_parts(stored, image, monkeypatch):
    mask = noise([n * 3 for n in image.shape])
    url = stored(
        "mask", mask, scale=(0.1 / 3,) * 3, translation=(3.3 - 0.1 / 3, 0.7 - 0.1 / 3, 0.1 - 0.1 / 3)
    )
    monkeypatch.setattr(module, "_READ_BYTES", 8000)
    reader, sizes = aligned_mask(url, image), []
    inner = module.ImageReader.read
    monkeypatch.setattr(
        module.ImageReader, "read", lambda self, box: (sizes.append(box.size), inner(self, box))[1]
    )
    np.testing.assert_array_equal(whole(reader), mask[1::3, 1::3, 1::3])
    assert len(sizes) > 20
    assert max(sizes[1:]) <= 8000


@pytest.mark.parametrize(
    ("unit", "per_micrometer"),
    [("nanometer", 1e3), ("millimeter", 1e-3), ("angstrom", 1e4), ("micrometre", 1), ("um", 1), (None, 1)],
)
def test_other_units_of_length(stored, image, unit, per_micrometer):
    mask = noise([ceil(n / 2) for n in image.shape])
    url = stored(
        "mask",
        mask,
        unit=unit,
        scale=(0.2 * per_micrometer,) * 3,
        translation=tuple((a + 0.05) * per_micrometer for a in (3.3, 0.7, 0.1)),
    )
    np.testing.assert_array_equal(whole(aligned_mask(url, image)), repeated(mask, image.shape, 2))


def test_a_coarser_level_of_a_pyramid_takes_the_finest_mask(stored):
    mask = noise((13, 27))
    url = stored("mask", mask, "yx", scale=(0.1, 0.1))
    coarse = open_image(stored("image", np.zeros((4, 7)), "yx", scale=(0.4, 0.4), translation=(0.15, 0.15)))
    index = np.ix_(np.minimum(4 * np.arange(4) + 2, 12), np.minimum(4 * np.arange(7) + 2, 26))
    np.testing.assert_array_equal(whole(aligned_mask(url, coarse)), mask[index])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_box_is_that_part_of_the_whole(data, monkeypatch):
    monkeypatch.setattr(module, "_READ_BYTES", 40)
    shape = tuple(data.draw(st.tuples(st.integers(1, 3), st.integers(10, 20), st.integers(10, 20))))
    factor = data.draw(st.sampled_from([1, 2, 3]))
    mask = noise([shape[0], *(ceil(n / factor) for n in shape[1:])]).astype("float64")
    reader = aligned_mask(mask, plain(shape))
    expected = mask[:, np.arange(shape[1]) // factor][..., np.arange(shape[2]) // factor]
    ends = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    box = Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
    np.testing.assert_array_equal(reader.read(box), expected[box.slices])


@settings(max_examples=150)
@given(
    size=st.integers(1, 300),
    step=st.sampled_from(["0.1", "0.325", "1", "0.0065", "7.3"]),
    ratio=st.sampled_from(["1", "2", "3", "4", "16", "1024", "3/2", "1/2", "1/3", "1/8"]),
    first=st.sampled_from(["0", "0.7", "-13.1", "4096.3"]),
    half=st.booleans(),
)
def test_index_vectors_equal_exact_fractions(size, step, ratio, first, half):
    """By the definition, in rational numbers: the mask voxel [edge + k * spacing, + spacing) of a centre."""
    step, ratio, first = Fraction(step), Fraction(ratio), Fraction(first)
    wide = step * ratio
    edge = first - step / 2 - (0 if half or ratio < 1 else (wide - step) / 2)
    count = ceil(size / ratio)
    centre = edge + wide / 2
    grids = (
        {"y": AxisGrid(count, float(centre), float(wide), "um", physical=True)},
        {"y": AxisGrid(size, float(first), float(step), "um", physical=True)},
    )
    rule = axis_rules(*grids, "here")["y"]
    places = [min((first + i * step - edge) // wide, count - 1) for i in range(size)]
    assert rule.indices(0, size).tolist() == places
    assert rule.indices(size // 3, size // 2 + 1).tolist() == places[size // 3 : size // 2 + 1]
    assert rule.indices(0, size).dtype == np.int64


def test_what_the_mask_lacks_it_is_the_same_for():
    image = plain((2, 3, 4, 9, 11), "tczyx")
    plane, volume = noise((9, 11)), noise((4, 9, 11))
    assert aligned_mask(plane, image).dims == ("t", "z", "y", "x")
    np.testing.assert_array_equal(whole(aligned_mask(plane, image)), np.broadcast_to(plane, (2, 4, 9, 11)))
    np.testing.assert_array_equal(whole(aligned_mask(volume, image)), [volume, volume])
    named = xr.DataArray(noise((9, 2, 11)), dims=("y", "t", "x"))
    expected = np.broadcast_to(named.values.transpose(1, 0, 2)[:, None], (2, 4, 9, 11))
    np.testing.assert_array_equal(whole(aligned_mask(named, image)), expected)
    once = noise((1, 4, 9, 11))
    np.testing.assert_array_equal(whole(aligned_mask(once, image)), [once[0], once[0]])


def test_time_points_go_by_number(stored):
    image = open_image(stored("image", np.zeros((3, 8, 9)), "tyx", scale=(30, 0.1, 0.1)))
    mask = noise((3, 8, 9))
    url = stored("mask", mask, "tyx", scale=(1, 0.1, 0.1))
    np.testing.assert_array_equal(whole(aligned_mask(url, image)), mask)
    with pytest.raises(MisalignedGrid, match=r"time points.*got 2, expected 3 or 1"):
        aligned_mask(noise((2, 8, 9)), image)


def test_channels():
    image = plain((3, 9, 11), "cyx")
    mask = noise((3, 9, 11))
    for channel in range(3):
        np.testing.assert_array_equal(whole(aligned_mask(mask, image, ref_channel=channel)), mask[channel])
    only = xr.DataArray(mask[:1], dims=("c", "y", "x"))
    np.testing.assert_array_equal(whole(aligned_mask(only, image, ref_channel=2)), mask[0])
    named = xr.DataArray(mask, dims=("c", "y", "x"))
    np.testing.assert_array_equal(whole(aligned_mask(named, image[0], ref_channel=1)), mask[1])
    for channel in (-1, 3):
        with pytest.raises(BadRequest, match=r"no such channel in the mask.*expected 0 to 2"):
            aligned_mask(mask, image, ref_channel=channel)


@pytest.mark.parametrize("wrap", [np.asarray, da.from_array, zarr.array], ids=["numpy", "dask", "zarr"])
def test_arrays_in_memory_and_their_reductions(wrap):
    image = plain((5, 33, 50))
    for shape, factor in (((5, 33, 50), 1), ((3, 17, 25), 2), ((2, 9, 13), 4)):
        mask = noise(shape)
        reader = aligned_mask(wrap(mask), image)
        np.testing.assert_array_equal(whole(reader), repeated(mask, image.shape, factor))
        with pytest.raises(BadRequest, match="only in this process"):
            pickle.dumps(reader)
    planes = noise((5, 9, 13))
    expected = planes[:, np.arange(33) // 4][..., np.arange(50) // 4]
    np.testing.assert_array_equal(whole(aligned_mask(wrap(planes), image)), expected)


def test_identities_tell_masks_apart():
    image = plain((8, 9), "yx")
    one, other = noise((8, 9)), noise((8, 9), seed=1)
    assert aligned_mask(one, image).identity == aligned_mask(one.copy(), image).identity
    assert aligned_mask(one, image).identity != aligned_mask(other, image).identity
    two = np.stack([one, other])
    channels = [
        aligned_mask(xr.DataArray(two, dims=("c", "y", "x")), image, ref_channel=c).identity for c in (0, 1)
    ]
    assert channels[0] != channels[1]


@pytest.mark.parametrize("whole_or_part", ["url", "array", "slice"])
def test_a_mask_with_a_path_travels(stored, whole_or_part):
    mask = noise((9, 20, 14))
    url = stored("mask", mask, scale=(0.2,) * 3, translation=(0.05,) * 3)
    image = open_image(stored("image", np.zeros((18, 39, 27)), scale=(0.1,) * 3))
    given = {"url": url, "array": zarr.open_array(f"{url}/s0", mode="r"), "slice": open_image(url)[2:]}
    image = image[4:] if whole_or_part == "slice" else image
    reader = aligned_mask(given[whole_or_part], image)
    again = pickle.loads(pickle.dumps(reader))  # noqa: S301
    assert len(pickle.dumps(reader)) < 3000
    assert (again.identity, again.dims, again.shape, again.chunks, again.offset) == (
        reader.identity,
        reader.dims,
        reader.shape,
        reader.chunks,
        reader_of(image).offset,
    )
    expected = repeated(mask, (18, 39, 27), 2)[18 - image.shape[0] :]
    np.testing.assert_array_equal(whole(again), expected)
    np.testing.assert_array_equal(whole(reader), expected)


def test_only_the_mask_chunks_under_a_box_are_read(stored):
    mask = noise((16, 16))
    url = stored("mask", mask, "yx", chunks=(4, 4), scale=(4, 4), translation=(1.5, 1.5))
    image = open_image(stored("image", np.zeros((64, 64), "uint8"), "yx", scale=(1, 1), chunks=(64, 64)))
    reader, boxes = aligned_mask(url, image), []
    inner = module.ImageReader.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.ImageReader, "read", lambda self, box: (boxes.append(box), inner(self, box))[1])
        reader.read(Box((15, 16), (33, 32)))
    assert boxes[1:] == [Box((3, 4), (9, 8))]


def test_a_plain_zarr_path(stored):
    mask = noise((9, 11))
    mask[-1] = mask[:, -1] = True  # a chunk of zeros would not be stored
    url = stored("mask", mask, "yx", kind="plain-v2")
    np.testing.assert_array_equal(whole(aligned_mask(url, plain((9, 11), "yx"))), mask)
    inside = stored("ome", mask, "yx", scale=(7, 7))
    np.testing.assert_array_equal(
        whole(aligned_mask(f"{inside}/s0", plain((17, 22), "yx"))), repeated(mask, (17, 22), 2)
    )


def test_absent_chunks_are_refused_or_filled(stored):
    mask = np.zeros((10, 10), bool)
    mask[:5, :5] = True
    url = stored("mask", mask, "yx")  # zarr leaves chunks of zeros out
    image = plain((10, 10), "yx")
    strict = aligned_mask(url, image)
    assert len(strict.absent_in(Box.whole(strict.shape))) == 3
    assert strict.absent_in(Box((0, 0), (5, 5))) == []
    with pytest.raises(MissingChunk):
        whole(strict)
    filled = aligned_mask(open_image(url, missing="fill"), image)
    np.testing.assert_array_equal(whole(filled), mask)
    for mask_given in (url, zarr.open_array(f"{url}/s0", mode="r")):
        np.testing.assert_array_equal(whole(aligned_mask(mask_given, image, missing="fill")), mask)
    with pytest.raises(BadRequest, match="missing chunks"):
        aligned_mask(url, image, missing="ignore")


def test_tiff_png_and_npy_files(tmp_path):
    mask = noise((4, 9, 11))
    image = plain((4, 9, 11))
    tifffile.imwrite(
        tmp_path / "mask.tif", mask.astype("uint8") * 255, metadata={"axes": "ZYX"}, photometric="minisblack"
    )
    np.save(tmp_path / "mask.npy", mask)
    (tmp_path / "planes").mkdir()
    for z, plane in enumerate(mask):
        Image.fromarray(plane.astype("uint8") * 255).save(tmp_path / "planes" / f"{z}.png")
    for name in ("mask.tif", "mask.npy", "planes", "planes/*.png"):
        reader = aligned_mask(tmp_path / name if "*" not in name else str(tmp_path / name), image)
        np.testing.assert_array_equal(whole(reader), mask)
        again = pickle.loads(pickle.dumps(reader))  # noqa: S301
        np.testing.assert_array_equal(whole(again), mask)
    flat = aligned_mask(str(tmp_path / "planes" / "2.png"), image)
    np.testing.assert_array_equal(whole(flat), np.broadcast_to(mask[2], mask.shape))
    with pytest.raises(ImageNotFound):
        aligned_mask(tmp_path / "none.tif", image)


def test_files_that_name_no_axes_take_those_of_the_image(tmp_path):
    mask = noise((3, 9, 11))
    tifffile.imwrite(tmp_path / "mask.tif", mask.astype("uint8"), photometric="minisblack")
    np.save(tmp_path / "mask.npy", mask)
    for name in ("mask.tif", "mask.npy"):
        np.testing.assert_array_equal(whole(aligned_mask(tmp_path / name, plain(mask.shape, "tyx"))), mask)
        channel = aligned_mask(tmp_path / name, plain(mask.shape, "cyx"), ref_channel=1)
        np.testing.assert_array_equal(whole(channel), mask[1])
    movie = noise((2, 3, 9, 11))
    tifffile.imwrite(tmp_path / "movie.tif", movie.astype("uint8"), photometric="minisblack")
    np.testing.assert_array_equal(
        whole(aligned_mask(tmp_path / "movie.tif", plain(movie.shape, "tzyx"))), movie
    )
    # Two readings of one shape that would both fit are not chosen between.
    square = noise((3, 3, 9, 11))
    tifffile.imwrite(tmp_path / "square.tif", square.astype("uint8"), photometric="minisblack")
    with pytest.raises(BadRequest, match="order of the mask's axes"):
        aligned_mask(tmp_path / "square.tif", plain(square.shape, "tzyx"))


def test_a_file_edited_in_place_is_another_mask(tmp_path):
    image = plain((9, 11), "yx")
    np.save(tmp_path / "mask.npy", noise((9, 11)))
    before = aligned_mask(tmp_path / "mask.npy", image).identity
    assert aligned_mask(tmp_path / "mask.npy", image).identity == before
    np.save(tmp_path / "mask.npy", noise((9, 11), seed=1))
    assert aligned_mask(tmp_path / "mask.npy", image).identity != before


def test_coordinates_that_are_only_indices_are_no_world(stored, image):
    mask = noise(image.shape)
    bare = xr.DataArray(mask, dims=("z", "y", "x"), coords={"y": np.arange(21) * 5.0})
    for mask_given in (mask, as_image(mask), bare):
        np.testing.assert_array_equal(whole(aligned_mask(mask_given, image)), mask)


def test_a_flipped_or_thinned_image_keeps_its_place(stored, image):
    mask = noise([ceil(n / 2) for n in image.shape])
    url = stored("mask", mask, scale=(0.2,) * 3, translation=(3.35, 0.75, 0.15))
    expected = repeated(mask, image.shape, 2)
    np.testing.assert_array_equal(whole(aligned_mask(url, image[:, ::-1])), expected[:, ::-1])
    np.testing.assert_array_equal(whole(aligned_mask(url, image[..., ::2])), expected[..., ::2])
    with pytest.raises(BadRequest, match="not evenly spaced"):
        aligned_mask(url, image[[0, 1, 5]])


def test_another_extent_is_refused_with_both(stored, image):
    place = {"scale": (0.1,) * 3, "translation": (3.3, 0.7, 0.1)}
    for shape in ((13, 20, 27), (13, 22, 27)):
        with pytest.raises(
            MisalignedGrid, match=r"axis y.*got 0\.65 to 2\.[68]5 micro.*expected 0\.65 to 2\.75"
        ):
            aligned_mask(stored(f"size-{shape[1]}", noise(shape), **place), image)
    for shift, fits in ((0.04, True), (0.06, False), (-0.06, False)):
        moved = stored(
            f"moved{shift}", noise(image.shape), scale=(0.1,) * 3, translation=(3.3, 0.7, 0.1 + shift)
        )
        if fits:
            np.testing.assert_array_equal(whole(aligned_mask(moved, image)), noise(image.shape))
        else:
            with pytest.raises(MisalignedGrid, match=r"axis x.*scale or translation"):
                aligned_mask(moved, image)
    with pytest.raises(MisalignedGrid, match="another extent"):
        aligned_mask(stored("unscaled", noise(image.shape), scale=(1,) * 3), image)
    with pytest.raises(MisalignedGrid, match="another extent"):
        aligned_mask(
            stored("short", noise((3, 4, 5)), scale=(0.4,) * 3, translation=(3.45, 0.85, 0.25)), image
        )


def test_units_that_cannot_be_converted_are_refused(stored, image):
    for unit in ("parsec", "inch", "second"):
        url = stored(unit, noise(image.shape), unit=unit, scale=(0.1,) * 3, translation=(3.3, 0.7, 0.1))
        with pytest.raises(BadRequest, match=f"cannot be converted.*'{unit}' for the mask.*'micrometer'"):
            aligned_mask(url, image)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((13, 21, 26), "axis x: got 26 voxels for 27"),
        ((13, 42, 54), "axis y: got 42 voxels for 21"),
        ((14, 21, 27), "axis z: got 14 voxels for 13"),
        ((13, 1, 27), "axis y: got 1 voxels for 21"),
        ((13, 10, 13), "axis y: got 10 voxels for 21"),
    ],
)
def test_a_shape_that_is_no_reduction_is_refused(image, shape, message):
    with pytest.raises(MisalignedGrid, match=f"another shape.*{message}"):
        aligned_mask(noise(shape), image)


def test_an_unclear_reduction_is_refused():
    # 9 voxels in 3 are a reduction by 3 or 4: the other axis may tell. 13 in 2 are one by 7 to 12: by 8.
    np.testing.assert_array_equal(
        whole(aligned_mask(noise((3, 11)), plain((9, 33), "yx"))), repeated(noise((3, 11)), (9, 33), 3)
    )
    np.testing.assert_array_equal(
        whole(aligned_mask(noise((2, 2)), plain((13, 13), "yx"))), repeated(noise((2, 2)), (13, 13), 8)
    )
    for size in (9, 16):
        with pytest.raises(MisalignedGrid, match="reduction is unclear"):
            aligned_mask(noise((3, 3)), plain((size, size), "yx"))


def test_axes_that_do_not_fit_are_refused():
    with pytest.raises(MisalignedGrid, match=r"axes that the image lacks.*z: 4"):
        aligned_mask(noise((4, 9, 11)), plain((9, 11), "yx"))
    with pytest.raises(MisalignedGrid, match="another number of axes"):
        aligned_mask(noise((2, 2, 4, 9, 11)), plain((9, 11), "yx"))
    one = noise((1, 9, 11))
    np.testing.assert_array_equal(whole(aligned_mask(one, plain((9, 11), "yx"))), one[0])
    with pytest.raises(BadRequest, match="not an image"):
        aligned_mask({"a": 1}, plain((9, 11), "yx"))


def test_nan_is_refused_where_it_is_read():
    mask = np.ones((8, 8))
    mask[6, 6] = np.nan
    reader = aligned_mask(mask, plain((16, 16), "yx"))
    assert reader.read(Box((0, 0), (12, 16))).all()
    with pytest.raises(NonFiniteData, match=r"the mask holds NaN.*got 1 voxels"):
        reader.read(Box((12, 12), (16, 16)))
