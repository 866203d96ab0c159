"""Where a kernel comes from (the raw image, stage 1's output, a file), and what its file holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.errors import BadRequest, ImageNotFound, MetadataError, ModelError
from denoizarr.pipeline.blind_spots import fitting_blind_spots
from denoizarr.training.kernel_file import as_mask
from denoizarr.training.noise_kernel import NoiseKernel, extract_noise_kernel
from denoizarr.training.options import TrainingOptions
from denoizarr.training.structure import StructuralNoiseExtractor
from tests.training.test_structure import noise, true_kernel

ROW = np.ones((1, 5))


def network(
    change: Callable[[np.ndarray], np.ndarray], axes: int = 2, halo: int = 24
) -> tuple[SimpleNamespace, list[tuple[int, ...]]]:
    """Return what looks like a denoiser, and the shapes of the tiles it is given."""
    tiles: list[tuple[int, ...]] = []

    def run_tile(tile: np.ndarray, channel: int = 0) -> np.ndarray:
        assert tile.dtype == np.float32
        tiles.append(tile.shape)
        return change(tile)

    found = SimpleNamespace(
        axes="zyx"[-axes:], halo=(halo,) * axes, stride=(4,) * axes, channels=1, run_tile=run_tile
    )
    found.with_centre = lambda _: found
    return found, tiles


def dense_scene() -> np.ndarray:
    scene = scipy.ndimage.gaussian_filter(np.random.default_rng(9).standard_normal((512, 512)), 2)
    return np.asarray(20 * np.exp(1.5 * scene / scene.std()))


# ---- sources


def test_auto_takes_the_raw_image_where_that_says_enough() -> None:
    denoiser, tiles = network(lambda tile: tile)
    kernel = extract_noise_kernel(noise((512, 512), ROW), denoiser=denoiser)  # type: ignore[arg-type]
    assert kernel.source == "extractor"
    assert not tiles
    np.testing.assert_array_equal(kernel.mask, true_kernel(ROW))


def test_auto_asks_stage_1_where_the_raw_image_cannot_tell() -> None:
    scene, rows = dense_scene(), 10 * noise((512, 512), ROW, 1)
    assert extract_noise_kernel(scene + rows).note

    # A network that removes what structure there is: what it leaves is the noise that pixels share.
    denoiser, tiles = network(lambda tile: tile)
    denoiser.run_tile = lambda tile, _: noise(tile.shape, ROW, int(tile.sum()) % 9999)
    kernel = extract_noise_kernel(scene + rows, denoiser=denoiser)  # type: ignore[arg-type]
    assert kernel.source == "stage1"
    assert not kernel.note
    np.testing.assert_array_equal(kernel.mask, true_kernel(ROW))
    assert not tiles

    # Where neither tells, the raw image's reason counts; "extractor" never asks.
    same, _ = network(lambda tile: tile)
    neither = extract_noise_kernel(scene + rows, denoiser=same)  # type: ignore[arg-type]
    assert (neither.source, bool(neither.note)) == ("extractor", True)
    raw = extract_noise_kernel(scene + rows, mask_source="extractor", denoiser=denoiser)  # type: ignore[arg-type]
    assert raw.is_single_pixel


def test_stage_1_is_measured_without_what_it_keeps_of_a_voxel_itself() -> None:
    image = noise((320, 320), ROW)
    denoiser, tiles = network(lambda tile: tile)
    kept, of_kept = network(lambda tile: tile)
    kept.with_centre = lambda centre: denoiser if centre is None else kept
    extract_noise_kernel(image, mask_source="stage1", denoiser=kept)  # type: ignore[arg-type]
    assert tiles
    assert not of_kept


def test_a_model_of_other_axes_or_channels_is_refused() -> None:
    volumes, _ = network(lambda tile: tile, axes=3)
    with pytest.raises(ModelError, match="axes yx"):
        extract_noise_kernel(noise((320, 320), ROW), denoiser=volumes)  # type: ignore[arg-type]
    planes, _ = network(lambda tile: tile)
    planes.channels = 2
    with pytest.raises(ModelError, match="channels"):
        extract_noise_kernel(noise((320, 320), ROW), mask_source="stage1", denoiser=planes)  # type: ignore[arg-type]


def test_a_network_of_volumes_is_asked_for_few_columns() -> None:
    image = np.stack([noise((320, 320), ROW, seed) for seed in range(40)])
    denoiser, tiles = network(lambda tile: tile + 1, axes=3)
    kernel = extract_noise_kernel(image, mask_source="stage1", denoiser=denoiser)  # type: ignore[arg-type]
    np.testing.assert_array_equal(kernel.mask, true_kernel(ROW))
    assert kernel.windows >= 20
    assert 0 < sum(int(np.prod(tile)) for tile in tiles) < 2**25
    assert max(np.prod(tile) for tile in tiles) < 2**20
    # No voxel is a window's twice: columns of 16 planes, four windows each.
    assert kernel.windows_drawn == 4 * len(tiles)


def test_a_thin_volume_and_a_wide_halo_still_give_a_sample() -> None:
    image = np.stack([noise((384, 384), ROW, seed) for seed in range(5)])
    denoiser, tiles = network(lambda tile: tile, axes=3, halo=96)
    kernel = extract_noise_kernel(image, mask_source="stage1", denoiser=denoiser)  # type: ignore[arg-type]
    assert len(tiles) >= 8
    assert kernel.windows >= 16
    assert all(tile[0] % 4 == 0 for tile in tiles)


def test_volumes_have_lags_along_z_and_planes_stand_in_for_them() -> None:
    white = np.random.default_rng(0).standard_normal((12, 300, 300))
    shared = scipy.ndimage.uniform_filter1d(white, 3, axis=0)
    kernel = extract_noise_kernel(shared, planes=8)
    assert kernel.mask.shape == (5, 1, 1)
    assert kernel.autocorrelation.shape == kernel.z_scores.shape
    assert kernel.autocorrelation.ndim == 3
    assert 20 <= kernel.windows <= kernel.windows_drawn
    assert extract_noise_kernel(shared).mask.shape == (1, 1)
    # Two planes are no volume, rings are of planes, and an image without z has none.
    for image, extractor in (
        (shared[:2], None), (shared, StructuralNoiseExtractor("rings")), (shared[0], None)
    ):  # fmt: skip
        assert extract_noise_kernel(image, planes=8, extractor=extractor).mask.ndim == 2


def test_rings_measure_an_image_too() -> None:
    extractor = StructuralNoiseExtractor("rings", base_percentile=40)
    kernel = extract_noise_kernel(noise((512, 512), np.ones((1, 3))), extractor=extractor)
    np.testing.assert_array_equal(kernel.mask, true_kernel(np.ones((1, 3))))
    assert (kernel.method, kernel.settings) == ("rings", {"base_percentile": 40})
    assert kernel.windows == kernel.windows_drawn == 64
    assert kernel.autocorrelation.shape == (11, 11)
    assert kernel.autocorrelation[5, 6] == pytest.approx(2 / 3, abs=0.03)
    assert not kernel.z_scores.any()


# ---- what is hidden in training


def test_noise_along_rows_is_hidden_as_it_was_found() -> None:
    kernel = extract_noise_kernel(noise((512, 512), ROW))
    assert kernel.hidden is kernel.mask
    assert "training hides" not in kernel.in_words()


def test_noise_blurred_all_round_hides_more_than_its_kernel_and_says_so(tmp_path: Path) -> None:
    # The correlation of a wide-field image's noise, of lags 0 to 3 along y and x.
    quarter = np.array(
        [[1, 0.58, 0.09, -0.03], [0.57, 0.33, 0, -0.04], [0.08, 0, -0.085, -0.02], [-0.03, -0.045, -0.02, 0]]
    )
    correlation = np.zeros((512, 512))
    for y in range(-3, 4):
        for x in range(-3, 4):
            correlation[y, x] = quarter[abs(y), abs(x)]
    spectrum = np.fft.fft2(correlation).real.clip(0)
    white = np.fft.fft2(np.random.default_rng(3).standard_normal((512, 512)))
    kernel = extract_noise_kernel(np.fft.ifft2(white * np.sqrt(spectrum)).real)
    hidden = kernel.hidden
    assert hidden.sum() > kernel.mask.sum() > 1
    margins = [(a - b) // 2 for a, b in zip(hidden.shape, kernel.mask.shape, strict=True)]
    assert hidden[tuple(slice(m, n - m) for m, n in zip(margins, hidden.shape, strict=True))][
        kernel.mask
    ].all()
    np.testing.assert_array_equal(hidden, hidden[::-1, ::-1])
    assert f"training hides {hidden.shape[0]} x {hidden.shape[1]}, {hidden.sum()} pixels" in kernel.in_words()
    kernel.save(tmp_path / "kernel.json")
    np.testing.assert_array_equal(NoiseKernel.load(tmp_path / "kernel.json").hidden, hidden)
    fitting = fitting_blind_spots(kernel, TrainingOptions())
    np.testing.assert_array_equal(fitting.mask, hidden)


@given(st.integers(0, 99), st.sampled_from([(1, 1), (3, 3), (1, 5), (3, 3, 3)]))
@settings(max_examples=20)
def test_a_mask_from_elsewhere_is_hidden_as_it_is(seed: int, shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(seed).random(shape) < 0.5
    mask[tuple(n // 2 for n in shape)] = True
    kernel = NoiseKernel.from_mask(mask)
    assert kernel.hidden is kernel.mask


# ---- the file


def test_version_2_holds_what_was_measured_and_how(tmp_path: Path) -> None:
    extractor = StructuralNoiseExtractor(floor=0.05)
    kernel = extract_noise_kernel(noise((512, 512), ROW), extractor=extractor)
    kernel.save(tmp_path / "kernel.json")
    data = json.loads((tmp_path / "kernel.json").read_text())
    assert data["version"] == 2
    assert data["axes"] == ["y", "x"]
    assert data["settings"] == {"floor": 0.05}
    assert 20 <= data["windows"] <= data["windows_drawn"] == 64
    assert data["mask"] == [[1] * 9]
    assert len(data["autocorrelation"]) == len(data["z_scores"]) == 49
    loaded = NoiseKernel.load(tmp_path / "kernel.json")
    assert loaded.facts() == kernel.facts()
    assert loaded.in_words() == kernel.in_words()


def test_version_1_is_read(tmp_path: Path) -> None:
    one = np.ones((1, 3))
    NoiseKernel(one.astype(bool), one, 0 * one, windows=30, window_size=64).save(tmp_path / "kernel.json")
    data = json.loads((tmp_path / "kernel.json").read_text())
    for name in ("axes", "settings", "windows_drawn"):
        del data[name]
    (tmp_path / "kernel.json").write_text(json.dumps({**data, "version": 1}))
    kernel = NoiseKernel.load(tmp_path / "kernel.json")
    assert (kernel.windows, kernel.windows_drawn, kernel.settings) == (30, 0, {})


def test_a_number_beyond_all_bounds_is_refused(tmp_path: Path) -> None:
    NoiseKernel.from_mask([[1]]).save(tmp_path / "kernel.json")
    data = json.loads((tmp_path / "kernel.json").read_text())
    (tmp_path / "kernel.json").write_text(json.dumps({**data, "windows": float("inf")}))
    with pytest.raises(BadRequest, match=r"not valid at .*kernel\.json"):
        NoiseKernel.load(tmp_path / "kernel.json")


def test_a_volume_survives_its_file(tmp_path: Path) -> None:
    kernel = NoiseKernel.from_mask(np.ones((3, 1, 5), np.uint8))
    for name in ("kernel.json", "kernel.npy"):
        kernel.save(tmp_path / name)
        loaded = NoiseKernel.load(tmp_path / name)
        np.testing.assert_array_equal(loaded.mask, kernel.mask)
        assert loaded.source == "file"
    assert "3 x 1 x 5 (z, y, x), 15 pixels hidden" in kernel.in_words()


@pytest.mark.parametrize("text", ["[[0,1,0],[1,1,1],[0,1,0]]", '{"mask": [[false,true,false]], "by": "me"}'])
def test_masks_in_json_from_elsewhere_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "mask.json").write_text(text)
    kernel = NoiseKernel.load(tmp_path / "mask.json")
    assert kernel.source == "file"
    assert kernel.mask.shape[1] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[1,1]]", r"1 x 2, expected odd sides; pad it"),
        ("[[1,0,1]]", "False in the centre"),
        ("[[1,2,1]]", "holds 0 and 1"),
        ("[[1],[1,1]]", "differ in length"),
        ("[1,1,1]", "2D or 3D"),
        ("{}", "no mask in it"),
        ("3", "no mask in it"),
        ('{"format": "other", "mask": [[1]]}', "version 1 or 2"),
    ],
)
def test_masks_that_cannot_be_used_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mask.json"
    path.write_text(text)
    with pytest.raises(BadRequest, match=message) as caught:
        NoiseKernel.load(path)
    assert "\n" not in str(caught.value)
    assert "mask.json" in str(caught.value)


def test_what_is_not_json_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mask.json").write_text("[[1")
    with pytest.raises(MetadataError):
        NoiseKernel.load(tmp_path / "mask.json")
    with pytest.raises(ImageNotFound):
        NoiseKernel.load(tmp_path / "none.json")


def test_arrays_have_the_masks_axes() -> None:
    with pytest.raises(BadRequest, match="z_scores"):
        NoiseKernel(np.ones((1, 3), bool), np.ones((1, 3)), np.ones(3))
    assert as_mask([[1]]).dtype == np.bool_


def test_the_heat_map_is_saved_on_demand(tmp_path: Path) -> None:
    patches = noise((512, 512), ROW).reshape(8, 64, 8, 64).swapaxes(1, 2).reshape(-1, 64, 64)
    for name in ("significance", "rings"):
        StructuralNoiseExtractor(name).extract_mask(patches, plot=tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    volume = NoiseKernel.from_mask(np.ones((3, 3, 3)))
    assert "3 planes along z" in " ".join(volume.plot().get_supxlabel().split())


def test_rings_cut_the_windows_of_a_small_image_in_four() -> None:
    rings = StructuralNoiseExtractor("rings")
    kernel = extract_noise_kernel(noise((256, 256), np.ones((1, 3))), extractor=rings)
    assert kernel.window_size == 32
    assert kernel.windows == kernel.windows_drawn == 64
    assert kernel.mask.shape == (1, 5)
