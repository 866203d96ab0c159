"""The whole job from Python: files in, a denoised OME-Zarr and a report out.

python examples/quickstart.py slices/*.tif out/
"""

from __future__ import annotations

import sys
from pathlib import Path

import denoizarr


def main(sources: list[str], out: Path, **stage: int) -> None:
    """Denoise a stack of planes; ``stage`` overrides the training of both stages."""
    stack = out / "stack.ome.zarr"
    denoizarr.convert(sources, stack, axes="zyx" if len(sources) > 1 else None)

    image = denoizarr.open_image(stack)  # lazy: an xarray.DataArray over Dask
    print(image.sizes, image.dtype)

    job = {
        "input": {"url": str(stack)},
        "output": {"url": str(out / "run")},
        "stage1": stage,
        "stage2": stage,
    }
    print(denoizarr.plan(job))  # the dry run: blocks, bytes, memory, and why it would be refused
    summary = denoizarr.run_pipeline(job)  # run again to resume

    denoised = denoizarr.open_image(summary.destination)
    print("noise removed, standard deviation:", float((image.astype("f4") - denoised).std()))
    print("report:", out / "run" / "report.html")


if __name__ == "__main__":  # the cluster's worker processes import this file
    main(sys.argv[1:-1], Path(sys.argv[-1]))
