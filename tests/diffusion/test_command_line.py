"""`denoizarr patch2self`, as a diffusion researcher runs it."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from denoizarr import convert, open_image, patch2self
from denoizarr.cli.app import app

from .phantom import phantom

BVALS = [0.0] * 3 + [1000.0] * 9
AFFINE = np.diag([-2.0, 2.0, 2.5, 1])


@pytest.fixture
def series(tmp_path):
    data, *_ = phantom((11, 13, 9), 12, n_b0=3)
    values = np.rint(data * 4).astype(np.int16)
    nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "dwi.nii.gz")
    (tmp_path / "values.txt").write_text("\n".join(map(str, BVALS)))
    return values


def run(*arguments):
    done = CliRunner().invoke(app, ["patch2self", *map(str, arguments)])
    return done.exit_code, done.output, done.exception


def test_from_nifti_to_nifti_in_one_command(series, tmp_path):
    out = tmp_path / "out" / "denoised.nii.gz"
    code, said, error = run(tmp_path / "dwi.nii.gz", out, "--bvals", tmp_path / "values.txt", "--json")
    assert code == 0, (said, error)
    assert json.loads(said.splitlines()[-1])["destination"].endswith("denoised.nii.gz")
    found = nib.load(out)
    assert found.get_data_dtype() == np.float32
    assert np.array_equal(found.affine, AFFINE)
    expected = patch2self(series, BVALS, out_dtype=np.float32)
    np.testing.assert_allclose(np.asarray(found.dataobj), expected, rtol=1e-6)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["denoised.nii.gz"], "nothing else is left"


def test_b_values_come_with_the_series(series, tmp_path):
    (tmp_path / "dwi.bval").write_text(" ".join(map(str, BVALS)))
    code, said, error = run(tmp_path / "dwi.nii.gz", tmp_path / "denoised.ome.zarr", "--dtype", "int16")
    assert code == 0, (said, error)
    image = open_image(tmp_path / "denoised.ome.zarr")
    assert image.dtype == np.int16
    assert np.array_equal(np.asarray(image).T, patch2self(series, BVALS))
    convert(tmp_path / "denoised.ome.zarr", tmp_path / "back.nii.gz")
    assert np.loadtxt(tmp_path / "back.bval").tolist() == BVALS


@pytest.mark.parametrize("source", ["dwi.nii.gz", "dwi.ome.zarr"])
@pytest.mark.parametrize("output", ["out.nii.gz", "out.ome.zarr"])
def test_a_page_of_the_result(series, tmp_path, source, output):
    if source == "dwi.ome.zarr":
        convert(tmp_path / "dwi.nii.gz", tmp_path / source)
    page = tmp_path / "report.html"
    code, said, error = run(
        tmp_path / source, tmp_path / output, "--bvals", tmp_path / "values.txt",
        "--report", page, "--report-volume", "5", "--report-slice", "2",
    )  # fmt: skip
    assert code == 0, (said, error)
    assert str(page) in said
    text = page.read_text()
    assert "volume 5 (b = " in text
    assert "slice z = 2" in text
    assert output in text
    assert page.stat().st_size > 50_000
    assert (tmp_path / output).exists()
    assert not (tmp_path / f"{output}.work").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dwi.nii.gz", "out.nii.gz"], "b-values are needed"),
        (["none.nii.gz", "out.nii.gz", "--bvals", "values.txt"], "no NIfTI file"),
        (["dwi.nii.gz", "out.nii.gz", "--bvals", "none.txt"], "no file of b-values"),
        (["dwi.nii.gz", "dwi.nii.gz", "--bvals", "values.txt"], "something lies at the destination"),
        (["dwi.nii.gz", "out.nii.gz", "--bvals", "values.txt", "--model", "forest"], "no such model"),
        (
            ["dwi.nii.gz", "out.nii.gz", "--bvals", "values.txt", "--report", "r", "--report-volume", "99"],
            "99 is not one of",
        ),
        (["dwi.nii.gz", "out.nii.gz", "--bvals", "values.txt", "--report-slice", "1"], "goes with --report"),
        (
            ["dwi.nii.gz", "out.nii.gz", "--bvals", "values.txt", "--patch-radius", "9"],
            "farther than the volumes",
        ),
    ],
)
def test_bad_requests_are_refused(series, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    before = (tmp_path / "dwi.nii.gz").read_bytes()
    code, output, error = run(*arguments)
    assert code != 0
    assert said in f"{output} {error}"
    assert not (tmp_path / "out.nii.gz").exists()
    assert (tmp_path / "dwi.nii.gz").read_bytes() == before


def test_the_scan_is_never_its_own_output(series, tmp_path):
    before = (tmp_path / "dwi.nii.gz").read_bytes()
    code, _, error = run(
        tmp_path / "dwi.nii.gz", tmp_path / "dwi.nii.gz", "--bvals", tmp_path / "values.txt", "--overwrite"
    )
    assert code != 0
    assert "overlaps the input" in str(error)
    assert (tmp_path / "dwi.nii.gz").read_bytes() == before


def test_a_mended_file_is_read_again(series, tmp_path):
    values = series.astype(np.float32)
    values[1, 2, 3, 4] = np.nan
    nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "f.nii")
    arguments = tmp_path / "f.nii", tmp_path / "out.nii", "--bvals", tmp_path / "values.txt"
    code, _, error = run(*arguments)
    assert code != 0
    assert "NaN" in str(error)
    nib.save(nib.Nifti1Image(series.astype(np.float32), AFFINE), tmp_path / "f.nii")
    code, said, error = run(*arguments)
    assert code == 0, (said, error)
    np.testing.assert_allclose(
        np.asarray(nib.load(tmp_path / "out.nii").dataobj),
        patch2self(series.astype(np.float32), BVALS),
        rtol=1e-6,
    )


def test_a_mask_may_be_a_nifti_file(series, tmp_path):
    mask = np.zeros(series.shape[:3], np.uint8)
    mask[2:9, 2:11, 1:8] = 1
    nib.save(nib.Nifti1Image(mask, AFFINE), tmp_path / "mask.nii.gz")
    code, said, error = run(
        tmp_path / "dwi.nii.gz", tmp_path / "out.nii.gz", "--bvals", tmp_path / "values.txt",
        "--mask", tmp_path / "mask.nii.gz",
    )  # fmt: skip
    assert code == 0, (said, error)
    expected = patch2self(series, BVALS, mask=mask, out_dtype=np.float32)
    np.testing.assert_allclose(np.asarray(nib.load(tmp_path / "out.nii.gz").dataobj), expected, rtol=1e-6)
