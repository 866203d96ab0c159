"""The example in the README's tree runs as it stands."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import tifffile

import denoizarr

from .jobs import scan_noise

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart.py"


def test_quickstart(tmp_path, capsys):
    assert len(EXAMPLE.read_text().splitlines()) < 40
    files = []
    for number, plane in enumerate(scan_noise((2, 128, 128))):
        files.append(str(tmp_path / f"plane{number}.tif"))
        tifffile.imwrite(files[-1], plane)
    specification = importlib.util.spec_from_file_location("quickstart", EXAMPLE)
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    example.main(files, tmp_path / "out", features=4, num_epochs=1, patches_per_epoch=32, patch_size=32)
    assert denoizarr.open_image(tmp_path / "out/run/denoised.ome.zarr").shape == (2, 128, 128)
    assert "report:" in capsys.readouterr().out
