"""NIfTI in and out: voxels, affine, header, scaling, units, b-values and directions, as they were."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import zarr

from denoizarr import convert, open_image, save_image
from denoizarr.errors import (
    BadRequest,
    ImageNotFound,
    MetadataError,
    OutputExists,
    UnsupportedStore,
)

SHAPE = (11, 9, 7, 5)
AFFINE = np.array([[-2.0, 0.1, 0, 90], [0.1, 1.9, 0.3, -126], [0, -0.3, 2.5, -72], [0, 0, 0, 1]])


def written(path: Path, dtype="int16", shape=SHAPE, *, kind=nib.Nifti1Image, slope=None, gradients=True):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 200, shape).astype(dtype) if dtype != "float32" else rng.normal(size=shape)
    image = kind(values.astype(dtype), AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"a series"
    image.header["pixdim"][4] = 3.25
    if slope is not None:
        image.header.set_slope_inter(*slope)
    nib.save(image, path)
    stem = str(path).split(".nii")[0]
    if gradients and len(shape) == 4:
        Path(stem + ".bval").write_text(" ".join(str(1000.0 * (i > 0)) for i in range(shape[3])) + "\n")
        np.savetxt(stem + ".bvec", rng.normal(size=(3, shape[3])))
    return path


@pytest.mark.parametrize("name", ["series.nii", "series.nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_there_and_back(tmp_path, name, dtype):
    path = written(tmp_path / name, dtype)
    summary = convert(path, tmp_path / "series.ome.zarr")
    assert summary.changes == ()
    image = open_image(tmp_path / "series.ome.zarr")
    before = nib.load(path)
    assert image.dims == ("t", "z", "y", "x")
    assert image.dtype == dtype
    assert np.array_equal(np.asarray(image).T, np.asarray(before.dataobj))
    assert image.coords["z"].attrs["units"] == "millimeter"
    np.testing.assert_allclose(float(image.coords["x"][1]), before.header.get_zooms()[0], rtol=1e-6)
    convert(tmp_path / "series.ome.zarr", tmp_path / "back" / name)
    after = nib.load(tmp_path / "back" / name)
    assert np.array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj))
    assert after.get_data_dtype() == before.get_data_dtype()
    assert np.array_equal(after.affine, before.affine)
    for field in before.header:
        if field not in ("scl_slope", "scl_inter", "cal_min", "cal_max", "vox_offset"):
            assert np.array_equal(after.header[field], before.header[field]), field
    assert after.header.get_slope_inter() in ((1.0, 0.0), (None, None))
    for sidecar in ("series.bval", "series.bvec"):
        np.testing.assert_array_equal(np.loadtxt(tmp_path / "back" / sidecar), np.loadtxt(tmp_path / sidecar))


def test_nothing_is_reoriented(tmp_path):
    path = written(tmp_path / "series.nii")
    convert(path, tmp_path / "out.ome.zarr")
    attributes = zarr.open_group(tmp_path / "out.ome.zarr", mode="r").attrs
    carried = attributes["denoizarr.nifti"]
    assert np.array_equal(carried["affine"], AFFINE.astype(np.float32))
    assert carried["bvals"] == [0, 1000, 1000, 1000, 1000]
    assert np.array(carried["bvecs"]).shape == (3, 5)


def test_scaled_intensities_are_what_the_header_says(tmp_path):
    path = written(tmp_path / "scaled.nii", slope=(0.5, -10))
    summary = convert(path, tmp_path / "out.ome.zarr")
    assert "scaling" in summary.changes[0]
    image = open_image(tmp_path / "out.ome.zarr")
    assert image.dtype == np.float32
    np.testing.assert_allclose(np.asarray(image).T, nib.load(path).get_fdata(), rtol=1e-6)
    convert(tmp_path / "out.ome.zarr", tmp_path / "back.nii")
    np.testing.assert_allclose(
        nib.load(tmp_path / "back.nii").get_fdata(), nib.load(path).get_fdata(), rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(11, 9, 7), (11, 9, 7, 1), (11, 9, 1)])
def test_files_of_fewer_axes(tmp_path, shape):
    path = written(tmp_path / "v.nii", shape=shape)
    convert(path, tmp_path / "v.ome.zarr")
    image = open_image(tmp_path / "v.ome.zarr")
    assert image.dims == ("z", "y", "x")
    convert(tmp_path / "v.ome.zarr", tmp_path / "back.nii")
    assert np.array_equal(
        np.asarray(nib.load(tmp_path / "back.nii").dataobj).squeeze(),
        np.asarray(nib.load(path).dataobj).squeeze(),
    )


def test_nifti_2_and_big_endian(tmp_path):
    path = written(tmp_path / "two.nii", kind=nib.Nifti2Image)
    convert(path, tmp_path / "two.ome.zarr")
    convert(tmp_path / "two.ome.zarr", tmp_path / "two-back.nii")
    after = nib.load(tmp_path / "two-back.nii")
    assert isinstance(after, nib.Nifti2Image)
    assert np.array_equal(np.asarray(after.dataobj), np.asarray(nib.load(path).dataobj))
    header = nib.Nifti1Header(endianness=">")
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(">i2")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(values, AFFINE, header), tmp_path / "big.nii")
    convert(tmp_path / "big.nii", tmp_path / "big.ome.zarr")
    assert np.array_equal(np.asarray(open_image(tmp_path / "big.ome.zarr")).T, values)
    convert(tmp_path / "big.ome.zarr", tmp_path / "big-back.nii")
    assert np.array_equal(np.asarray(nib.load(tmp_path / "big-back.nii").dataobj), values)


def test_an_image_that_never_was_a_nifti_file(tmp_path):
    import xarray as xr

    values = np.random.default_rng(0).normal(size=(6, 8, 10)).astype(np.float32)
    image = xr.DataArray(
        values,
        dims=("z", "y", "x"),
        coords={
            d: ((d,), np.arange(n) * 0.5, {"units": "micrometer"})
            for d, n in zip("zyx", values.shape, strict=True)
        },
    )
    save_image(image, tmp_path / "in.ome.zarr")
    convert(tmp_path / "in.ome.zarr", tmp_path / "out.nii.gz")
    out = nib.load(tmp_path / "out.nii.gz")
    assert np.array_equal(np.asarray(out.dataobj).T, values)
    assert np.array_equal(np.diag(out.affine), [0.5, 0.5, 0.5, 1])
    assert out.header.get_xyzt_units()[0] == "micron"


def test_the_same_image_is_the_same_file(tmp_path):
    convert(written(tmp_path / "a.nii.gz"), tmp_path / "a.ome.zarr")
    for name in ("one", "two"):
        convert(tmp_path / "a.ome.zarr", tmp_path / name / "a.nii.gz")
    assert (tmp_path / "one/a.nii.gz").read_bytes() == (tmp_path / "two/a.nii.gz").read_bytes()
    assert gzip.decompress((tmp_path / "one/a.nii.gz").read_bytes())[:4] == (348).to_bytes(4, "little")


def test_all_volumes_of_a_box_lie_together(tmp_path):
    convert(written(tmp_path / "a.nii.gz"), tmp_path / "a.ome.zarr")
    array = zarr.open_array(tmp_path / "a.ome.zarr" / "0", mode="r")
    assert (array.chunks[0], array.shards[0]) == (1, 5)


@pytest.mark.parametrize(
    ("bval", "bvec", "said"),
    [("0 1000 1000", None, "bvals and volumes differ"), (None, "1 2\n3 4\n5 6\n", "bvecs and volumes differ"),
     ("0 1000 many 1 1", None, "not a table of numbers")],
)  # fmt: skip
def test_gradients_that_do_not_fit_are_refused(tmp_path, bval, bvec, said):
    path = written(tmp_path / "a.nii")
    if bval:
        (tmp_path / "a.bval").write_text(bval)
    if bvec:
        (tmp_path / "a.bvec").write_text(bvec)
    with pytest.raises(MetadataError, match=said):
        convert(path, tmp_path / "a.ome.zarr")
    assert not (tmp_path / "a.ome.zarr").exists()


def test_what_cannot_be_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ImageNotFound):
        convert(tmp_path / "none.nii", tmp_path / "out.ome.zarr")
    (tmp_path / "torn.nii").write_bytes(b"not a header")
    with pytest.raises(MetadataError):
        convert(tmp_path / "torn.nii", tmp_path / "out.ome.zarr")
    save_image(np.zeros((4, 8, 8), np.float16), tmp_path / "half.ome.zarr")
    with pytest.raises(BadRequest, match="NIfTI has no such voxels"):
        convert(tmp_path / "half.ome.zarr", tmp_path / "half.nii")
    path = written(tmp_path / "a.nii")
    convert(path, tmp_path / "a.ome.zarr")
    with pytest.raises(OutputExists):
        convert(tmp_path / "a.ome.zarr", path)
    with pytest.raises(BadRequest, match="a file is written by one process"):
        convert(tmp_path / "a.ome.zarr", tmp_path / "b.nii", share=(1, 2))
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    path = written(tmp_path / "another.nii")
    with pytest.raises(UnsupportedStore, match=r"denoizarr\[nifti\]"):
        convert(path, tmp_path / "c.ome.zarr")


def test_other_people_s_gradients_are_not_overwritten(tmp_path):
    convert(written(tmp_path / "a.nii.gz"), tmp_path / "a.ome.zarr")
    (tmp_path / "b.bval").write_text("mine")
    with pytest.raises(OutputExists, match="b-values or directions"):
        convert(tmp_path / "a.ome.zarr", tmp_path / "b.nii.gz")
    assert (tmp_path / "b.bval").read_text() == "mine"
    assert not (tmp_path / "b.nii.gz").exists()


def test_a_direction_of_nan_goes_there_and_back(tmp_path):
    path = written(tmp_path / "a.nii.gz")
    table = np.loadtxt(tmp_path / "a.bvec")
    table[:, 0] = np.nan
    np.savetxt(tmp_path / "a.bvec", table)
    (tmp_path / "a.bval").unlink()
    convert(path, tmp_path / "a.ome.zarr")
    convert(tmp_path / "a.ome.zarr", tmp_path / "back.nii.gz")
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "back.bvec"), table)
    assert not (tmp_path / "back.bval").exists()


def test_a_part_of_an_image_has_no_header_of_the_whole(tmp_path):
    convert(written(tmp_path / "a.nii.gz"), tmp_path / "a.ome.zarr")
    whole = open_image(tmp_path / "a.ome.zarr")
    for name, part in (("crop", whole.isel(x=slice(4, 8))), ("turned", whole.isel(t=slice(None, None, -1)))):
        save_image(part, tmp_path / f"{name}.ome.zarr")
        assert "denoizarr.nifti" not in zarr.open_group(tmp_path / f"{name}.ome.zarr", mode="r").attrs
    save_image(whole, tmp_path / "same.ome.zarr")
    assert "denoizarr.nifti" in zarr.open_group(tmp_path / "same.ome.zarr", mode="r").attrs
    summary = convert(tmp_path / "a.ome.zarr", tmp_path / "scaled.ome.zarr", scale={"x": 9.0})
    assert "header" in summary.changes[0]


def test_a_corrected_file_of_b_values_counts(tmp_path):
    path = written(tmp_path / "a.nii.gz")
    convert(path, tmp_path / "one.ome.zarr")
    (tmp_path / "a.bval").write_text("0 5 2000 2000 2000")
    convert(path, tmp_path / "two.ome.zarr")
    carried = zarr.open_group(tmp_path / "two.ome.zarr", mode="r").attrs["denoizarr.nifti"]
    assert carried["bvals"] == [0, 5, 2000, 2000, 2000]


def test_extensions_of_either_endianness_come_back(tmp_path):
    for endian in "<>":
        header = nib.Nifti1Header(endianness=endian)
        header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept"))
        header.set_data_dtype(np.dtype("i2").newbyteorder(endian))
        nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), "i2"), AFFINE, header), tmp_path / "e.nii")
        convert(tmp_path / "e.nii", tmp_path / "e.ome.zarr", overwrite=True)
        convert(tmp_path / "e.ome.zarr", tmp_path / "back.nii", overwrite=True)
        found = nib.load(tmp_path / "back.nii").header.extensions
        assert [e.get_content() for e in found] == [b"kept"] or b"kept" in found[0].get_content()
