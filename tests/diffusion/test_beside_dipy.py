"""Equal to DIPY's version 1 on integers (its way with floats is wrong in 1.12.1), on its wheel's series."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from denoizarr import patch2self

from .phantom import defined, phantom

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from dipy.data import get_fnames
    from dipy.denoise.patch2self import patch2self as dipy_patch2self
    from dipy.io.image import load_nifti_data


def series(name):
    if name == "synthetic":
        data, _, bvals = phantom((12, 11, 10), 20, n_b0=4)
        return np.rint(data * 8).astype(np.int16), bvals
    files = get_fnames(name=name)
    return np.asarray(load_nifti_data(files[0])), np.loadtxt(files[1]).reshape(-1)


def theirs(data, bvals, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dipy_patch2self(
            data, bvals, version=1, out_dtype=np.float64, shift_intensity=False, verbose=False, **how
        )


def ours(data, bvals, **how):
    return patch2self(data, bvals, out_dtype=np.float64, shift_intensity=False, **how)


def groups_of(bvals):
    b0, weighted = np.flatnonzero(bvals <= 50), np.flatnonzero(bvals > 50)
    copied = tuple(b0) if len(b0) == 1 else ()
    return [g for g in ((() if copied else tuple(b0)), tuple(weighted)) if g], copied


def relative(found, expected):
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", ["small_25", "small_64D", "small_101D", "synthetic"])
@pytest.mark.parametrize("radius", [0, 1])
@pytest.mark.parametrize("model", ["ols", "ridge"])
def test_as_dipy_on_integers(name, radius, model):
    data, bvals = series(name)
    assert data.dtype.kind in "iu"
    if radius:
        # The definition itself, volume by volume, takes an hour of all.
        data, bvals = data[..., :12], bvals[:12]
    # 160 voxels of small_25 for 648 variables: the series itself is fitted, by whatever weights.
    is_fitted = (data.shape[3] - 2) * (2 * radius + 1) ** 3 > np.prod(data.shape[:3])
    how = {"patch_radius": (radius,) * 3, "model": model, "alpha": 1.0}
    found = ours(data, bvals, **how)
    groups, copied = groups_of(bvals)
    exact = defined(
        data, groups, radius=(radius,) * 3, copied=copied, penalty=1.0 if model == "ridge" else 0.0
    )
    assert relative(found, exact) <= (1e-6 if is_fitted else 1e-12)
    assert relative(found, theirs(data, bvals, **how)) <= 1e-6


@pytest.mark.parametrize("name", ["small_25", "synthetic"])
def test_lasso_as_dipy(name):
    data, bvals = series(name)
    how = {"patch_radius": (0, 0, 0), "model": "lasso", "alpha": 1.0}
    assert relative(ours(data, bvals, **how), theirs(data, bvals, **how)) <= 1e-4
