"""What real noisy images must give without training: statistics, maps, the shape of their noise."""

from __future__ import annotations

import numpy as np

from denoizarr.images.convert import convert
from denoizarr.selection.survey import survey
from denoizarr.stores.images import open_image
from denoizarr.training.noise_kernel import extract_noise_kernel


def test_scanning_electron_microscopy_has_horizontal_noise(data_dir, tmp_path):
    convert(data_dir / "sem-shale", tmp_path / "shale.ome.zarr", axes="zyx")
    image = open_image(tmp_path / "shale.ome.zarr")
    found = survey(image, patch_size=64, progress=False)
    assert image.shape == (7, 1104, 1720)
    assert found.statistics.channels[0].maximum == image.values.max()
    mask = extract_noise_kernel(image).mask
    assert mask.shape[0] == 1 < mask.shape[1]


def test_resampled_light_sheet_noise_is_no_single_pixel(data_dir, tmp_path):
    convert(data_dir / "lightsheet-brain", tmp_path / "brain.ome.zarr", axes="zyx")
    image = open_image(tmp_path / "brain.ome.zarr")
    mask = extract_noise_kernel(image).mask
    assert np.array_equal(mask, mask[::-1, ::-1])
    assert min(mask.shape) >= 3, "its correlation is .75 at lag 1 along both axes"
