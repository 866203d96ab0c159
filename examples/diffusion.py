"""Diffusion MRI: a NIfTI series in, a denoised one out, and a page to look at.

pip install 'denoizarr[nifti]' dipy
python examples/diffusion.py out/                        # a small series that DIPY's wheel has
python examples/diffusion.py out/ dwi.nii.gz dwi.bval    # your own
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import denoizarr
from denoizarr.report.diffusion import write_diffusion_report


def main(out: Path, series: str | None = None, bvals: str | None = None) -> None:
    """Convert, denoise, look, and convert back."""
    if series is None or bvals is None:
        from dipy.data import get_fnames

        series, bvals, _ = get_fnames(name="small_64D")
    noisy, denoised = out / "series.ome.zarr", out / "denoised.ome.zarr"
    denoizarr.convert(series, noisy)  # affine and header go along
    b = np.loadtxt(bvals).reshape(-1)

    # Floats: rounded to whole numbers, predictions would have noise of their own.
    summary = denoizarr.patch2self(noisy, b, destination=denoised, out_dtype="float32")
    print(summary.destination, f"{summary.seconds:.1f} s")

    print("report:", write_diffusion_report(noisy, denoised, out / "report.html", bvals=list(b)))
    denoizarr.convert(denoised, out / "denoised.nii.gz")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
