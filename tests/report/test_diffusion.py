"""The page of a series that Patch2Self denoised."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest
import xarray as xr

from denoizarr import patch2self, save_image
from denoizarr.errors import BadRequest
from denoizarr.report.diffusion import outliers_of, write_diffusion_report
from tests.diffusion.phantom import phantom

BVALS = [0.0] * 3 + [1000.0] * 13


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    data, *_ = phantom((20, 18, 9), 16, n_b0=3)
    data[..., 7] = np.random.default_rng(0).normal(50, 20, data.shape[:3])  # a volume of something else
    image = xr.DataArray(np.ascontiguousarray(data.T), dims=("t", "z", "y", "x"))
    save_image(image, folder / "in.ome.zarr")
    patch2self(folder / "in.ome.zarr", BVALS, destination=folder / "out.ome.zarr")
    return folder


def test_the_page_needs_nothing_but_itself(series):
    page = write_diffusion_report(
        series / "in.ome.zarr", series / "out.ome.zarr", series / "report.html", bvals=BVALS
    )
    text = (series / "report.html").read_text()
    assert page.endswith("report.html")
    assert len(re.findall(r"<img src=\"data:image/png;base64,", text)) == 3
    for encoded in re.findall(r"base64,([^\"]+)", text):
        assert base64.b64decode(encoded)[:8] == b"\x89PNG\r\n\x1a\n"
    assert "16 of 16" in text
    assert "do not predict as well as the rest: 7" in text
    assert "Rician" in text
    assert 'src="http' not in text


def test_a_volume_and_a_slice_are_chosen(series):
    write_diffusion_report(
        series / "in.ome.zarr", series / "out.ome.zarr", series / "other.html", bvals=BVALS, volume=1, z=2
    )
    assert "volume 1 (b = 0 s/mm²), slice z = 2" in (series / "other.html").read_text()
    with pytest.raises(BadRequest, match=r"volume.*got 16, expected 0 to 15"):
        write_diffusion_report(series / "in.ome.zarr", series / "out.ome.zarr", series / "x.html", volume=16)


def test_only_outputs_of_patch2self_have_one(series):
    with pytest.raises(BadRequest, match="not an output of Patch2Self"):
        write_diffusion_report(series / "in.ome.zarr", series / "in.ome.zarr", series / "x.html")


def test_outliers_are_those_of_their_group():
    r_squared = np.array([0.5, 0.51, 0.52, 0.95, 0.96, 0.94, 0.95, 0.6, np.nan])
    assert outliers_of(r_squared, [[0, 1, 2], [3, 4, 5, 6, 7]]) == (7,)
    assert outliers_of(r_squared, [list(range(3)), [3, 4, 5, 6]]) == ()
