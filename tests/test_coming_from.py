"""docs/coming-from.md: one test for every row of its tables, and its code runs."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter, sobel
from scipy.signal import fftconvolve
from skimage.exposure import equalize_adapthist

import denoizarr
from denoizarr import (
    BadRequest,
    ConfigError,
    Criterion,
    EmptyIndex,
    JobConfig,
    MaskPatchFilter,
    MaxPatchFilter,
    MeanStdPatchFilter,
    MisalignedGrid,
    Quantile,
    RegionOfInterest,
    ShannonPatchFilter,
    StructuralNoiseExtractor,
    TrainingOptions,
    build_index,
    find_roi_patches,
)
from denoizarr.images.save import save_image
from denoizarr.kernels.blind_spot_rules import strategy_named
from denoizarr.kernels.blindspot import draw_blind_spots
from denoizarr.kernels.symmetries import symmetries_of
from denoizarr.pipeline.blind_spots import fitting_blind_spots
from denoizarr.pipeline.checked_job import check_job, options_of
from denoizarr.pipeline.run import run_pipeline
from denoizarr.pipeline.where_to_look import places_of, settings_of
from denoizarr.stores.images import as_image
from denoizarr.training.rings import RingsSettings, find_rings
from tests.end_to_end.jobs import scan_noise

PAGE = Path(__file__).parents[1] / "docs/coming-from.md"
# what | there | here, and why | to have it as there | test
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text().splitlines()
    if re.search(r"\| `test_\w+` \|$", line)
]


def planes(shape=(4, 256, 256), seed=0):
    """Camera noise with a bright square of structure on every plane, uint16."""
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 4, shape)
    y, x = np.mgrid[0 : shape[-2] // 2, 0 : shape[-1] // 2]
    image[..., : shape[-2] // 2, : shape[-1] // 2] += 200 + 80 * np.sin(x / 5) * np.cos(y / 7)
    return image.round().astype(np.uint16)


def box_means(plane, factor):
    """The coarse level of a plane whose sides are multiples of the factor."""
    height, width = plane.shape
    return plane.reshape(height // factor, factor, width // factor, factor).mean((1, 3))


def scaled(values):
    return (values - values.min()) / np.ptp(values)


# ---- the document


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[-1].strip("`"))
def test_every_row_is_whole_and_names_its_test(row):
    assert len(row) == 5
    assert all(row)
    assert callable(globals().get(row[-1].strip("`")))
    # There is a way back, or a reason why there is none.
    assert "`" in row[3] or row[3].startswith("none: ")


def test_every_test_belongs_to_one_row():
    named = [row[-1].strip("`") for row in ROWS]
    others = {test_every_row_is_whole_and_names_its_test, test_every_test_belongs_to_one_row}
    others |= {test_the_code_runs}
    own = {name for name, value in globals().items() if name.startswith("test_") and value not in others}
    assert sorted(named) == sorted(own)


def sections():
    """Yield (heading, code) of the parts of the document that have blocks called "Here"."""
    for part in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^Here:\n\n```python\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
        if blocks:
            yield part.splitlines()[0], "\n".join(blocks)


@pytest.mark.parametrize(("heading", "code"), list(sections()))
def test_the_code_runs(heading, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = planes()
    denoizarr.save_image(image, "stack.ome.zarr")
    # The page trains for ten epochs of all patches.
    assert ("num_epochs=10" in code) == ("denoizarr.train(" in code)
    for long, short in (
        ("num_epochs=10", "num_epochs=1, patches_per_epoch=16"),
        ("batch_size=64", "batch_size=8"),
        ("as_there = {", 'as_there = {"num_epochs": 1, "features": 4, '),
        ('"patches_per_image": 100', '"patches_per_image": 16'),
        ('"patches_per_image": 200', '"patches_per_image": 16'),
    ):
        code = code.replace(long, short)
    np.save("mask.npy", np.ones((1, 9), bool))
    data, bvals = series()
    names = {"mask_data": (image > 150).astype(np.uint8), "data": data, "bvals": bvals}
    exec(compile(code, "the code of the page", "exec"), names)  # noqa: S102  # our own document
    if "careamics" in heading.lower():
        assert (tmp_path / "map.png").stat().st_size
        assert names["keep"].dims == ("z", "y", "x")
        assert 0 < names["covered"].n_patches < names["masked"].n_patches < names["index"].n_cells
        assert names["denoiser"].denoise(image[0]).shape == image[0].shape
    elif "DIPY" in heading:
        assert names["denoised"].shape == data.shape
    elif "two stages" in heading:
        assert denoizarr.open_image("run/denoised.ome.zarr").shape == image.shape
        stage1 = denoizarr.Denoiser.load("run/stage1/model.safetensors").training["options"]
        assert (stage1["patch_size"], stage1["mask_percentage"], stage1["masking_strategy"]) == (32, 15.0, 0)
    elif "structural masks" in heading:
        assert names["extractor"].method == "rings"
        assert names["mask"].tolist() == np.load("custom_mask.npy").tolist() == [[True]]  # white noise
        assert names["kernel"].is_single_pixel
        assert all((tmp_path / f"{name}.png").stat().st_size for name in ("rings", "compared"))
    else:
        assert (tmp_path / "roi.png").stat().st_size
        assert len(names["origins"]) == 100
        assert 0 < names["advice"] < 1
        assert 0 < names["index"].n_patches < names["index"].n_cells
        everywhere = 4 * 15 * 15
        assert 0 < len(names["textured"]) < everywhere
        assert 0 < len(names["edges"]) < everywhere


# ---- CAREamics: patch filtering


def test_borders_are_cropped():
    constant = np.full((100, 100), 100, np.uint16)
    mean, std = MeanStdPatchFilter.filter_map(constant, 64).values
    assert (mean == 100).all()
    assert (std == 0).all()
    # As there, with zeros to the next whole region: a constant becomes darker, and varied.
    padded = np.pad(constant, (0, 28))
    mean, std = MeanStdPatchFilter.filter_map(padded, 64).values
    assert (mean < 66).all()
    assert (std > 40).all()


def test_one_value_per_cell():
    image = planes((2, 100, 90))
    scores = ShannonPatchFilter.filter_map(image, (32, 48))
    assert scores.shape == (2, 4, 2)
    whole = ShannonPatchFilter.expand_to(scores, image)
    expected = np.repeat(np.repeat(scores.values, 32, axis=1), 48, axis=2)[:, :100, :90]
    np.testing.assert_array_equal(whole.values, expected)


def test_a_score_at_the_threshold_is_kept():
    scores = MaxPatchFilter.filter_map(planes(), 64)
    threshold = float(scores.max())
    assert MaxPatchFilter.apply_filter(scores, threshold).any()
    assert not (scores > threshold).any()


def test_maps_are_lazy_and_labelled():
    scores = MeanStdPatchFilter.filter_map(planes(), 64)
    assert isinstance(scores.data, da.Array)
    assert scores.dims == ("statistic", "z", "y", "x")
    assert list(scores.coords["statistic"].values) == ["mean", "std"]
    assert scores.coords["y"].values.tolist() == [31.5, 95.5, 159.5, 223.5]
    assert isinstance(scores.values, np.ndarray)


def test_entropy_of_floats_has_256_bins():
    image = planes().astype(np.float32) + np.random.default_rng(1).random((4, 256, 256), np.float32)
    # Over distinct values all cells have nearly log2 of the number of voxels, empty or not.
    _, counts = np.unique(image[0, 128:, 128:], return_counts=True)
    p = counts / counts.sum()
    assert -(p * np.log2(p)).sum() > 0.95 * np.log2(128 * 128)
    scores = ShannonPatchFilter.filter_map(image, 64)
    assert scores.max() <= 8
    assert float(scores.min()) < 0.7 * float(scores.max())
    rounded = image.round().astype(np.uint16)
    _, counts = np.unique(rounded[0, :128, :128], return_counts=True)
    p = counts / counts.sum()
    found = ShannonPatchFilter.filter_map(rounded[0, :128, :128], 64)
    np.testing.assert_allclose(found, -(p * np.log2(p)).sum(), atol=1e-10)


def test_scores_keep_the_images_precision():
    image = np.full((64, 64), 2**24 + 1, np.uint32)
    image[0, 0] += 1
    mean = MeanStdPatchFilter.filter_map(image, 32).sel(statistic="mean").values
    np.testing.assert_allclose(mean, image.mean(dtype=np.float64), rtol=1e-15)
    assert np.float32(image[1, 1]) != image[1, 1]
    assert float(MaxPatchFilter.filter_map(image, 32).max()) == 2**24 + 1


def test_a_threshold_may_be_left_out():
    image = planes()
    suggested = ShannonPatchFilter.suggest_threshold(ShannonPatchFilter.filter_map(image, 32))
    assert build_index(image, 32, patch_filter=ShannonPatchFilter()).settings["threshold"] == suggested
    told = build_index(image, 32, patch_filter=ShannonPatchFilter(threshold=5.5)).settings
    assert told["threshold"] == 5.5


def test_filter_and_its_configuration_are_one():
    patch_filter = MaxPatchFilter(threshold=150, ref_channel=0, coverage=0.5)
    index = build_index(planes(), 32, patch_filter=patch_filter, filtered_patch_prob=0.2)
    expected = {"name": "max", "threshold": 150, "coverage": 0.5, "filtered_patch_prob": 0.2}
    assert expected.items() <= index.settings.items()
    assert build_index(planes(), 32).settings["filtered_patch_prob"] == 0.1


def test_the_number_of_patches_is_a_sum_of_weights():
    # The page's own log: a tenth of 6345 regions of background, drawn by chance.
    assert round(20224 - 0.9 * 6345) != 14553
    index = build_index(planes(), 32, patch_filter=ShannonPatchFilter(threshold=5.5))
    background = int((index.weights.values < 1).sum())
    assert 0 < background < index.n_cells
    assert index.n_patches == round(index.n_cells - 0.9 * background)
    assert index.summary() == (
        f"Found {background} background regions. "
        f"Number of patches has been reduced to {index.n_patches} from {index.n_cells}."
    )


def test_validation_respects_the_filter():
    index = build_index(planes((10, 256, 256)), 32, patch_filter=ShannonPatchFilter(threshold=5.5))
    training, validation = index.split(0.2)
    whole, held, kept = (i.weights.values for i in (index, validation, training))
    assert validation.n_patches
    assert set(np.unique(held)) <= {0, np.float32(0.1), 1}
    np.testing.assert_array_equal(held[held > 0], whole[held > 0])
    assert not (kept[held > 0] > 0).any()


def test_a_mask_is_aligned_with_its_image():
    image = planes()
    mask = (image > 150).astype(np.uint8)

    def weights(of_mask):
        return build_index(image, 32, mask=of_mask).weights.values

    same = weights(mask)
    covered = MaskPatchFilter.apply_filter(MaskPatchFilter.filter_map(mask, 32), 0.25).values
    np.testing.assert_array_equal(same == 1, covered)
    # At half the size, it lies over the whole image all the same; any number but 0 counts.
    np.testing.assert_array_equal(weights(200 * mask[:, ::2, ::2]), same)
    with pytest.raises(MisalignedGrid):
        weights(mask[:, :200])


def test_a_pair_is_applied_plane_by_plane():
    image = planes((6, 128, 128))
    assert MaxPatchFilter.filter_map(image, (64, 64)).shape == (6, 2, 2)
    assert MaxPatchFilter.filter_map(image, (3, 64, 64)).shape == (2, 2, 2)
    for patch in ((64, 64), (3, 64, 64)):
        stream = denoizarr.PatchStream(image, build_index(image, patch), patches_per_epoch=1)
        assert next(iter(stream))["patch"].shape == (1, *patch)
    assert TrainingOptions(patch_size=(4, 64, 64), num_layers=1).network_shape.ndim == 3
    assert TrainingOptions(patch_size=(64, 64)).network_shape.ndim == 2


def test_samples_are_time_points_or_planes():
    image = planes((3, 128, 128))
    alone = [ShannonPatchFilter.filter_map(plane, 32).values for plane in image]
    for dims in ("zyx", "tyx"):
        together = ShannonPatchFilter.filter_map(xr.DataArray(image, dims=list(dims)), 32)
        np.testing.assert_array_equal(together, np.stack(alone))
    assert build_index(list(image), 32).n_cells == build_index(image, 32).n_cells


def test_channels_stay_in_a_map():
    image = xr.DataArray(planes((2, 128, 128)), dims=["c", "y", "x"])
    assert MaxPatchFilter.filter_map(image, 32).dims == ("c", "y", "x")
    second = MaxPatchFilter.filter_map(image, 32, ref_channel=1)
    assert second.dims == ("y", "x")
    np.testing.assert_array_equal(second, MaxPatchFilter.filter_map(image[1], 32))
    with pytest.raises(BadRequest, match="no such channel"):
        build_index(image, 32, patch_filter=MaxPatchFilter(threshold=1, ref_channel=2))


def test_plots_are_figures_of_planes():
    image = planes((6, 128, 128))
    scores = MeanStdPatchFilter.filter_map(image, (3, 32, 32))
    figure = MeanStdPatchFilter.plot_filter_map(image, scores, threshold=120, std_threshold=5, z_idx=5)
    assert isinstance(figure, Figure)
    titles = {axes.get_title(loc="left") for axes in figure.axes}
    assert any(title.startswith("Kept") for title in titles)
    plain = MeanStdPatchFilter.plot_filter_map(image, scores, z_idx=5)
    assert not any(axes.get_title(loc="left").startswith("Kept") for axes in plain.axes)
    assert any("z = 5" in axes.get_title(loc="left") + axes.get_title() for axes in figure.axes)


# ---- autoStructN2V: regions of interest


def test_regions_of_interest_are_off():
    job = JobConfig.load({"input": "in", "output": "out"})
    assert (job.stage1.use_roi, job.stage2.use_roi) == (False, False)
    assert (job.stage1.select_background, job.stage2.select_background) == (True, False)
    assert (job.stage1.roi_threshold, job.stage1.scale_factor) == (0.5, 0.25)
    page = {"input": "in", "output": "out", "stage1": {"use_roi": True}}
    assert JobConfig.load(page).stage1.use_roi


def test_the_filter_works_inside_regions():
    image, patch_filter = planes(), ShannonPatchFilter(threshold=5.5)
    structure = RegionOfInterest(sigma=8, threshold=0.6)
    alone = build_index(image, 32, roi=structure).weights.values
    both = build_index(image, 32, roi=structure, patch_filter=patch_filter).weights.values
    filtered = build_index(image, 32, patch_filter=patch_filter).weights.values
    np.testing.assert_array_equal(both, np.where(alone > 0, filtered, 0))
    background = RegionOfInterest(sigma=8, select_background=True)
    np.testing.assert_array_equal(
        build_index(image, 32, roi=background, patch_filter=patch_filter).weights,
        build_index(image, 32, roi=background).weights,
    )
    mask = np.zeros(image.shape, np.uint8)
    mask[..., 128:] = 1
    masked = build_index(image, 32, roi=background, mask=mask).weights.values
    assert set(np.unique(masked)) == {0, np.float32(0.1), 1}


def test_the_level_is_made_of_box_means():
    plane = planes((128, 128))
    level = RegionOfInterest(sigma=0, equalize="none").preprocess(plane).values
    np.testing.assert_allclose(level, scaled(box_means(plane, 4)), atol=1e-12)


def test_sigma_is_in_pixels_of_the_image():
    plane = planes((256, 256))
    small = box_means(plane, 4)
    # The page's 3 pixels of the reduced image are 12 of the image.
    roi = RegionOfInterest(sigma=3 / 0.25, scale_factor=0.25, equalize="none")
    blurred = gaussian_filter(small, 3.0, mode="constant") / gaussian_filter(
        np.ones_like(small), 3.0, mode="constant"
    )
    np.testing.assert_allclose(roi.preprocess(plane), scaled(blurred), atol=1e-9)


def test_nothing_is_mirrored_at_the_border():
    plane = planes((256, 256))
    small = box_means(plane, 4)
    mirrored = gaussian_filter(small, 3.0)
    weights = gaussian_filter(np.ones_like(small), 3.0, mode="constant")
    cropped = gaussian_filter(small, 3.0, mode="constant") / weights
    inner = np.s_[12:-12, 12:-12]
    np.testing.assert_allclose(mirrored[inner], cropped[inner])
    assert np.abs(mirrored - cropped).max() > 1
    level = RegionOfInterest(sigma=12, equalize="none").preprocess(plane).values
    np.testing.assert_allclose(level, scaled(cropped), atol=1e-9)


def test_a_large_blur_is_bounded():
    plane = planes((512, 512))
    roi = RegionOfInterest(sigma=100, equalize="none")
    level = roi.preprocess(plane)
    small = box_means(plane, 4)
    weights = gaussian_filter(np.ones_like(small), 25.0, mode="constant")
    true = gaussian_filter(small, 25.0, mode="constant") / weights
    bound = level.attrs["bound"]
    assert 0 < bound <= 0.01 * np.ptp(small)
    # Back from 0..1 to intensities: both ends may be off by the bound.
    assert np.abs(level.values - scaled(true)).max() * np.ptp(true) <= 3 * bound


def test_equalisation_is_global():
    plane = planes((256, 256))
    blurred = RegionOfInterest(sigma=12, equalize="none").preprocess(plane).values
    ranks = RegionOfInterest(sigma=12).preprocess(plane).values
    position = np.argsort(np.argsort(blurred.ravel())) / (blurred.size - 1)
    np.testing.assert_allclose(ranks.ravel(), position, atol=0.01)
    adaptive = RegionOfInterest(sigma=12, equalize="adaptive").preprocess(plane).values
    np.testing.assert_allclose(adaptive, equalize_adapthist(blurred), atol=1e-6)
    assert np.abs(adaptive - ranks).max() > 0.1


def test_planes_are_equalised_together():
    image = planes((2, 128, 128))
    image[1] += 1000
    roi = RegionOfInterest(sigma=0)
    together = roi.preprocess(image).values
    assert together[1].min() > together[0].max()
    alone = [roi.preprocess(plane).values for plane in image]
    assert alone[0].max() == alone[1].max() == 1


def test_background_is_dark():
    plane = planes((256, 256))  # bright in the first quarter
    roi = RegionOfInterest(sigma=8, threshold=0.5, select_background=True)
    dark = find_roi_patches(plane, 32, roi)
    assert not (dark < 64).all(axis=1).any()
    bright = find_roi_patches(
        plane, 32, RegionOfInterest(sigma=8, threshold=0.5, select_background=True, background="bright")
    )
    assert (bright < 64).all(axis=1).any()


def page_windows(enhanced, side, threshold, above):
    """The page's sliding window, where the window lies inside the level."""
    stride = side // 2
    found = []
    for y in range(0, enhanced.shape[0] - side + 1, stride):
        for x in range(0, enhanced.shape[1] - side + 1, stride):
            mean = np.mean(enhanced[y : y + side, x : x + side])
            if (above and mean > threshold) or (not above and mean < threshold):
                found.append((4 * y, 4 * x))
    return found


def test_a_window_is_one_patch_large():
    plane = planes((256, 256))
    roi = RegionOfInterest(sigma=8, threshold=0.4)
    enhanced = roi.preprocess(plane).values
    # A patch of 32 pixels is a window of 8; the page's window of 32 is four patches wide.
    assert [tuple(o) for o in find_roi_patches(plane, 32, roi)] == page_windows(enhanced, 8, 0.4, True)
    assert [tuple(o) for o in find_roi_patches(plane, 32 * 4, roi)] == page_windows(enhanced, 32, 0.4, True)


def test_the_last_window_is_whole():
    plane = planes((250, 230))
    everything = find_roi_patches(plane, 32, RegionOfInterest(sigma=8, threshold=-1.0))
    assert everything.min(0).tolist() == [0, 0]
    assert everything.max(0).tolist() == [250 - 32, 230 - 32]


def test_a_coarse_pixel_is_whole_pixels():
    with pytest.raises(BadRequest, match=r"0\.25 \(1 / 4\) or 0\.333333 \(1 / 3\)"):
        RegionOfInterest(scale_factor=0.3)
    with pytest.raises(BadRequest, match=r"at least 0\.5"):
        find_roi_patches(planes((64, 64)), 4, RegionOfInterest(sigma=0))


def test_a_cap_takes_patches_everywhere():
    plane = planes((256, 256))
    roi = RegionOfInterest(sigma=8, threshold=-1.0)
    everything = find_roi_patches(plane, 32, roi)
    first, capped = everything[:40], find_roi_patches(plane, 32, roi, max_patches=40)
    assert len(capped) == 40
    assert first[:, 0].max() < 64
    assert capped[:, 0].max() > 128
    assert {tuple(o) for o in capped} <= {tuple(o) for o in everything}
    other = find_roi_patches(plane, 32, roi, max_patches=40, seed=1)
    assert {tuple(o) for o in other} != {tuple(o) for o in capped}


def test_origins_are_whole_numbers_of_every_dim():
    found = find_roi_patches(planes(), 32, RegionOfInterest(sigma=8))
    assert found.dtype == np.int64
    assert found.shape[1] == 3
    assert set(found[:, 0]) == {0, 1, 2, 3}
    assert find_roi_patches(planes((256, 256)), 32, RegionOfInterest(sigma=8)).shape[1] == 2


def test_a_threshold_counts_on_the_level():
    plane = planes((256, 256))
    roi = RegionOfInterest(sigma=8)
    # The image's own median says nothing of its ranks.
    assert np.median(scaled(plane.astype(float))) < 0.1
    # A quarter is bright: three quarters of the ranks are dark.
    assert roi.suggest_threshold(plane) == pytest.approx(0.75, abs=0.08)
    even = np.random.default_rng(0).normal(100, 5, (256, 256))
    assert roi.suggest_threshold(even) == 0.5
    quantile = RegionOfInterest(sigma=8, equalize="none", threshold=Quantile(0.5))
    assert len(find_roi_patches(plane, 32, quantile))


def test_nothing_selected_is_an_error():
    with pytest.raises(EmptyIndex, match="selects half of the windows"):
        find_roi_patches(planes((256, 256)), 32, RegionOfInterest(sigma=8, threshold=1.0))


def test_both_stages_share_what_is_kept():
    stages = {f"stage{n}": {"patch_size": 32, "use_roi": True} for n in (1, 2)}
    job = JobConfig.load({"input": "in", "output": "out", **stages})
    images = [as_image(planes())]
    first, second = (settings_of(job, images, stage) for stage in (job.stage1, job.stage2))
    assert first.roi.select_background
    assert not second.roi.select_background
    place = places_of(job, ["a"], "a", first, first).roi
    assert place.startswith(job.output.url)
    assert places_of(job, ["a"], "a", second, first).roi == place
    # Another blur is another measurement.
    other = JobConfig.load(job.model_dump() | {"stage2": {**stages["stage2"], "roi_sigma": 20}})
    blurred = settings_of(other, images, other.stage2)
    assert places_of(other, ["a"], "a", blurred, first).roi != place


def test_training_patches_begin_anywhere():
    plane = planes((256, 256))
    roi = RegionOfInterest(sigma=8, threshold=0.6)
    windows = find_roi_patches(plane, 32, roi)
    index = build_index(plane, 32, roi=roi)
    assert set(np.unique(index.weights)) == {0, 1}
    drawn = index.sample(500)
    assert len({tuple(o) for o in drawn}) > 5 * len(windows)
    # A cell's centre lies in a window, and the patch is at most half a patch off its cell.
    distance = np.abs(drawn[:, None] - windows[None]).max(axis=2).min(axis=1)
    assert distance.max() <= 32


def texture(level):
    """The seed page's kind of score: how much a pixel's surroundings vary."""
    return gaussian_filter(np.hypot(sobel(level, axis=0), sobel(level, axis=1)), 3)


def test_a_custom_function_is_a_score():
    plane = planes((256, 256))
    roi = RegionOfInterest(score=Criterion(texture, above=Quantile(0.75), halo=16), scale_factor=1.0)
    level = roi.preprocess(plane).values
    values = texture(scaled(plane.astype(float))).astype(np.float32)
    expected = values > np.quantile(values, 0.75, method="inverted_cdf")
    np.testing.assert_array_equal(level, expected)
    assert 0 < len(find_roi_patches(plane, 32, roi)) < 15 * 15


def test_several_criteria_are_a_fraction_of_the_window():
    plane = planes((256, 256))
    edges = Criterion(texture, above=Quantile(0.25), halo=16)
    roi = RegionOfInterest(score=Criterion(above=0.3, below=0.7) & edges, scale_factor=1.0, threshold=0.1)
    image = scaled(plane.astype(float))
    values = texture(image).astype(np.float32)
    mask = (image > 0.3) & (image < 0.7) & (values > np.quantile(values, 0.25, method="inverted_cdf"))
    means = {
        (y, x): mask[y : y + 32, x : x + 32].mean() for y in range(0, 225, 16) for x in range(0, 225, 16)
    }
    found = {tuple(int(v) for v in o) for o in find_roi_patches(plane, 32, roi)}
    assert found == {o for o, mean in means.items() if mean > 0.1}
    assert found


# ---- autoStructN2V: structural masks


def noise_of(kernel, seed=0, n=64, side=64):
    """Windows of noise, correlated as a kernel has it, around 100."""
    white = np.random.default_rng(seed).standard_normal((n, side + 24, side + 24))
    shared = fftconvolve(white, np.asarray(kernel, float)[None], mode="same", axes=(1, 2))
    return 100 + 10 * shared[:, 12:-12, 12:-12] / np.sqrt(np.square(kernel).sum())


def rings(patches, **settings):
    """The mask of the rings, and all that they saw."""
    return find_rings(patches, RingsSettings(**settings))


def test_rings_are_one_of_two_methods():
    assert StructuralNoiseExtractor().method == "significance"
    assert (
        StructuralNoiseExtractor(adapt_DF=0.95).method == StructuralNoiseExtractor("rings").method == "rings"
    )
    job = {"input": "in", "output": "out"}
    assert JobConfig.load(job).extractor.method == "significance"
    assert JobConfig.load({**job, "extractor": {"percentile_decay": 1.2}}).extractor.method == "rings"
    patches = noise_of(np.ones((1, 9)))
    assert StructuralNoiseExtractor().extract_mask(patches)[0].shape == (1, 17)
    assert StructuralNoiseExtractor("rings").extract_mask(patches)[0].shape == (1, 11)


def test_brightness_does_not_correlate():
    dark, bright = noise_of([[1]]), noise_of([[1]]) + 1e5
    np.testing.assert_allclose(rings(dark)[1], rings(bright)[1], atol=1e-5)
    assert rings(bright)[0].tolist() == [[True]]


def test_lags_are_signed_means_of_pairs():
    lines = np.random.default_rng(0).standard_normal((64, 64, 1)) * np.ones((1, 1, 64))
    assert rings(lines)[1][5].min() > 0.999  # not falling off, whatever the distance
    opposite = noise_of([[1, -1]])
    assert StructuralNoiseExtractor("rings").analyse(opposite).autocorrelation[5, 6] < -0.45
    assert rings(opposite, adapt_autocorr=False)[1][5, 6] == 0


def test_a_square_of_lags_has_a_centre():
    assert rings(noise_of([[1]]))[1].shape == rings(noise_of([[1]]), center_size=11)[1].shape == (11, 11)
    with pytest.raises(BadRequest, match="odd"):
        StructuralNoiseExtractor("significance", center_size=10)


def test_the_adaptive_threshold_is_in_per_cent():
    patches = noise_of(np.ones((5, 5)))
    distance = np.abs(np.mgrid[-5:6, -5:6]).max(axis=0)
    whole, adapted = (rings(patches, adapt_autocorr=adapt)[1] for adapt in (False, True))
    np.testing.assert_allclose(adapted, np.where(whole > 0.5 / (1 + 0.95 * distance), whole, 0))
    assert 1 < (adapted > 0).sum() < (whole > 0).sum()


def test_uncorrelated_stays_zero():
    _, centre = rings(noise_of([[1, 0, -1]]), adapt_autocorr=False)  # strongly opposite two pixels off
    assert centre[5, 7] == 0
    assert centre[0].max() < 0.05


def test_outer_rings_keep_their_strongest_pixels():
    patches = noise_of(np.ones((1, 15)))
    assert rings(patches, center_size=17)[0].shape[1] > 11
    flat = rings(patches, center_size=17, percentile_decay=1.0)[0]
    assert flat.shape == rings(patches, center_size=17)[0].shape


def test_proximity_removes_within_a_ring():
    patches = noise_of(np.ones((3, 3)))
    near, all_of_it = (
        rings(patches, base_percentile=10, use_center_proximity=near)[0] for near in (True, False)
    )
    assert 1 < near.sum() < all_of_it.sum()
    row = noise_of(np.ones((1, 9)))
    assert rings(row)[0].sum() == 11
    assert rings(row, center_ratio_threshold=0.95)[0].tolist() == [[True]]


def test_a_diagonal_is_connected():
    mask, _ = rings(noise_of(np.eye(5)))
    assert len(mask) > 3
    np.testing.assert_array_equal(mask, np.eye(len(mask), dtype=bool))


def test_the_cap_keeps_pairs():
    mask, _ = rings(noise_of(np.ones((1, 9))), max_true_pixels=6)
    assert mask.tolist() == [[True] * 5]


def test_lobes_are_found_on_request():
    x = np.arange(64)
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, (64, 1, 1))
    lines = noise_of([[1]]) + 30 * (np.sin(2 * np.pi * x / 8 + phases) > 0.9)
    by_default, _ = rings(lines)
    assert by_default.shape[1] < 17
    apart = {"keep_center_component_only": False, "percentile_decay": 1.0, "max_true_pixels": 99}
    lobes, _ = rings(lines, center_size=21, **apart)
    middle = lobes.shape[1] // 2
    assert lobes[lobes.shape[0] // 2, middle + 8]
    assert lobes[lobes.shape[0] // 2, middle - 8]


def test_a_sample_has_twenty_windows():
    patches = noise_of(np.ones((1, 5)), n=4, side=32)
    for method in ("rings", "significance"):
        with pytest.raises(EmptyIndex, match="20 or more"):
            StructuralNoiseExtractor(method).extract_mask(patches)
    assert StructuralNoiseExtractor("rings", minimum_windows=1).extract_mask(patches)[0].size > 1
    patches = noise_of(np.ones((1, 5)), n=12, side=40)
    assert StructuralNoiseExtractor(minimum_windows=10).analyse(patches).windows >= 10


def test_stage_1_is_asked_without_turns():
    image = noise_of(np.ones((1, 5)), n=1, side=512)[0]
    seen = []

    def run_tile(tile, channel=0):
        seen.append(tile.copy())
        return tile

    denoiser = SimpleNamespace(axes="yx", halo=(8, 8), stride=(4, 4), channels=1, run_tile=run_tile)
    denoiser.with_centre = lambda _: denoiser
    kernel = denoizarr.extract_noise_kernel(image, mask_source="stage1", denoiser=denoiser)
    assert kernel.source == "stage1"
    assert kernel.mask.shape == (1, 9)
    single = image.astype(np.float32)
    assert all((single == tile[60, 60]).any() for tile in seen)
    y, x = np.argwhere(single == seen[0][60, 60])[0]
    np.testing.assert_array_equal(seen[0][50:60, 50:60], single[y - 10 : y, x - 10 : x])


def test_the_mask_is_cropped():
    patches = noise_of(np.ones((1, 3)))
    extractor = StructuralNoiseExtractor("rings")
    mask, centre = extractor.extract_mask(patches)
    assert mask.shape == centre.shape == (1, 5)
    assert extractor.analyse(patches).autocorrelation.shape == (11, 11)


def test_verbose_prints_and_plot_saves(tmp_path, capsys):
    extractor = StructuralNoiseExtractor("rings")
    extractor.extract_mask(noise_of(np.ones((1, 3))), verbose=True, plot=tmp_path / "rings.png")
    assert "ring 1: percentile 57.5, threshold" in capsys.readouterr().out
    assert (tmp_path / "rings.png").stat().st_size


def test_masks_are_files_of_two_kinds(tmp_path):
    kernel = denoizarr.NoiseKernel.from_mask(np.ones((1, 5)))
    for name in ("mask.npy", "mask.json"):
        kernel.save(tmp_path / name)
        assert denoizarr.NoiseKernel.load(tmp_path / name).mask.tolist() == [[True] * 5]
        stage2 = {"mask_source": "file", "mask_file_path": str(tmp_path / name)}
        job = JobConfig.load({"input": "in", "output": "out", "stage2": stage2})
        assert job.stage2.mask_file_path == str(tmp_path / name)


# ---- autoStructN2V: two stages

ROW = np.ones((1, 9), bool)
SMALL = {"features": 4, "num_epochs": 1, "patches_per_epoch": 16, "patch_size": 32}


def blind_spots(kernel, percentage, strategy="uniform", *, epoch=0, first=0, separate=False, size=64):
    """Patches of distinct values, what they become, and where the predicted pixels are."""
    patches = 1 + torch.rand(8, 1, size, size, generator=torch.Generator().manual_seed(0))
    numbers = first + torch.arange(8)
    hidden, centres = draw_blind_spots(
        patches, kernel, percentage, strategy, seed=0, epoch=epoch, numbers=numbers, separate=separate
    )
    return patches, hidden, centres.bool()


def copying_network():
    """A network that answers with its input, and cannot learn in a step of 1e-9."""
    network = torch.nn.Conv2d(1, 1, 1)
    torch.nn.init.ones_(network.weight)
    torch.nn.init.zeros_(network.bias)
    return network


def test_mask_percentage_counts_predicted_pixels():
    patches, hidden, centres = blind_spots(ROW, 1.5)
    assert float(centres.float().mean()) == pytest.approx(0.015, rel=0.05)
    assert float((hidden != patches).float().mean()) > 0.1
    # The page's 10 % of hidden pixels.
    _, _, centres = blind_spots(ROW, 10 / ROW.sum())
    assert float(centres.sum()) / 8 == pytest.approx(46, abs=3)
    patches, hidden, _ = blind_spots(np.ones((1, 1), bool), 15)
    assert float((hidden != patches).float().mean()) == pytest.approx(0.15, rel=0.05)


def test_no_more_than_half_of_a_patch_is_hidden():
    options = TrainingOptions(**SMALL, mask_percentage=10)
    with pytest.raises(BadRequest, match="half"):
        denoizarr.train(planes(), blind_spot=ROW, options=options, progress=False)
    kernel = denoizarr.NoiseKernel(ROW, np.ones((1, 9)), np.zeros((1, 9)))
    fitting = fitting_blind_spots(kernel, options)
    assert fitting.options.mask_percentage == pytest.approx(50 / 9)
    assert "hide over half of a patch" in fitting.warnings[0]


def test_stages_begin_with_the_same_defaults():
    job = JobConfig.load({"input": "in", "output": "out"})
    assert job.stage1.mask_percentage is job.stage2.mask_percentage is None
    options = options_of(job.stage2, "stage2", 1)
    shares = [options.percentage_of(np.ones((1, n), bool)) for n in (1, 3, 5, 7, 17)]
    assert shares == pytest.approx([8, 8 / 3, 8 / 5, 1.5, 1.5])
    differ = {key for key, value in job.stage1.model_dump().items() if getattr(job.stage2, key) != value}
    assert differ == {"select_background"}
    page = JobConfig.load({"input": "in", "output": "out", "stage1": {"mask_percentage": 15}})
    assert options_of(page.stage1, "stage1", 1).mask_percentage == 15


def test_strategies_have_the_pages_numbers():
    job = JobConfig.load({"input": "in", "output": "out", "stage1": {"masking_strategy": 0}})
    assert (job.stage1.masking_strategy, job.stage2.masking_strategy) == (0, "uniform")
    for number, name in ((0, "mean"), (1, "zero"), (2, "random")):
        assert strategy_named(number) == name
        _, by_number, _ = blind_spots(ROW, 1.5, number)
        _, by_name, _ = blind_spots(ROW, 1.5, name)
        assert torch.equal(by_number, by_name)
    patches, zero, _ = blind_spots(ROW, 1.5, 1)
    assert (zero[zero != patches] == 0).all()
    # A mean is nearer to the patch's own than one of its values is.
    patches, mean, _ = blind_spots(ROW, 1.5, 0)
    _, one, _ = blind_spots(ROW, 1.5)
    changed = mean != patches
    assert mean[changed].std() < 0.5 * one[changed].std()


def test_masks_can_be_kept_apart():
    around = torch.ones(1, 1, 3, 11)

    def most_neighbours(centres):
        counts = torch.nn.functional.conv2d(centres.float(), around, padding=(1, 5))
        return int(counts[centres].max())

    assert most_neighbours(blind_spots(ROW, 3)[2]) > 1
    assert most_neighbours(blind_spots(ROW, 3, separate=True)[2]) == 1
    job = JobConfig.load({"input": "in", "output": "out", "stage2": {"separate_masks": True}})
    assert not options_of(job.stage1, "stage1", 1).separate_masks
    assert options_of(job.stage2, "stage2", 1).separate_masks


def test_masks_are_drawn_anew():
    pixel = np.ones((1, 1), bool)
    _, _, centres = blind_spots(pixel, 1.5)
    assert torch.equal(blind_spots(pixel, 1.5)[2], centres)
    assert not torch.equal(blind_spots(pixel, 1.5, epoch=1)[2], centres)
    assert not torch.equal(blind_spots(pixel, 1.5, first=8)[2], centres)
    assert len({tuple(mask.flatten().tolist()) for mask in centres}) == len(centres)


def test_a_kernel_hides_where_it_is_true(tmp_path):
    kernel = np.zeros((3, 5), bool)
    kernel[1, 2] = kernel[0, 4] = kernel[1, 0] = True
    patches, hidden, centres = blind_spots(kernel, 0.1)
    changed = torch.zeros_like(centres)
    for n, _, y, x in centres.nonzero().tolist():
        for dy, dx in ((0, 0), (-1, 2), (0, -2)):
            if 0 <= y + dy < 64 and 0 <= x + dx < 64:
                changed[n, 0, y + dy, x + dx] = True
    assert torch.equal(hidden != patches, changed)
    np.save(tmp_path / "mask.npy", kernel)
    np.testing.assert_array_equal(denoizarr.NoiseKernel.load(tmp_path / "mask.npy").mask, kernel)
    np.save(tmp_path / "mask.npy", ~kernel)  # as the page draws stage 1's
    with pytest.raises(BadRequest, match="centre"):
        denoizarr.NoiseKernel.load(tmp_path / "mask.npy")


def test_the_kernel_is_measured_on_the_raw_image():
    job = JobConfig.load({"input": "in", "output": "out"})
    assert job.stage2.mask_source == "auto"
    image = scan_noise((3, 256, 256))
    kernel = denoizarr.extract_noise_kernel(image, mask_source="auto")
    assert kernel.source == "extractor"
    assert kernel.mask.shape[0] == 1 < kernel.mask.shape[1]
    with pytest.raises(BadRequest, match="denoiser of stage 1"):
        denoizarr.extract_noise_kernel(image, mask_source="stage1")


def test_a_single_pixel_needs_no_second_stage(tmp_path, client, monkeypatch):
    save_image(
        np.random.default_rng(0).normal(500, 20, (3, 128, 128)).astype(np.uint16), tmp_path / "in.ome.zarr"
    )
    job = {
        "input": str(tmp_path / "in.ome.zarr"),
        "stage1": SMALL,
        "stage2": SMALL,
        "cluster": {"kind": "address", "address": client.scheduler.address},
    }
    job["patch_filter"] = {"name": "none"}
    for name, more in (("both", {}), ("second", {"run_stage1": False})):
        run_pipeline({**job, **more, "output": str(tmp_path / name)}, progress=False)
        assert denoizarr.NoiseKernel.load(tmp_path / name / "noise_kernel.json").is_single_pixel
        monkeypatch.setattr("denoizarr.pipeline.run.write_report", str)  # one page is enough to read
    assert not (tmp_path / "both" / "stage2").exists()
    assert "stage 2 was skipped" in (tmp_path / "both" / "report.html").read_text().lower()
    alone = denoizarr.Denoiser.load(tmp_path / "second" / "stage2" / "model.safetensors")
    assert alone.blind_spot.tolist() == [[True]]


def test_a_patch_is_a_multiple_of_the_stride():
    for size in (32, 96):
        assert TrainingOptions(patch_size=size).patch_shape == (size, size)
    job = JobConfig.load({"input": "in", "output": "out", "stage1": {"patch_size": 50}})
    assert job.stage2.patch_size == 64
    with pytest.raises(ConfigError, match=r"stage1\.patch_size: got 50, expected 52"):
        options_of(job.stage1, "stage1", 1)


def test_patches_per_image_count_for_each_image(tmp_path):
    urls = [str(tmp_path / f"{name}.ome.zarr") for name in "ab"]
    for url in urls:
        save_image(planes((2, 96, 96)), url)
    job = {"input": {"urls": urls}, "output": str(tmp_path / "run"), "stage1": {"patches_per_image": 100}}
    checked = check_job(JobConfig.load(job))
    assert checked.stage1.patches_per_epoch == 200
    assert checked.stage2.patches_per_epoch == 2048


def test_the_learning_rate_has_a_schedule():
    def rates(**settings):
        found = []
        options = TrainingOptions(**{**SMALL, "num_epochs": 3}, **settings)
        image = planes((2, 96, 96))
        denoizarr.train(
            image, options=options, on_epoch=lambda e: found.append(e.learning_rate), progress=False
        )
        return found

    cosine = rates()
    assert 1e-3 > cosine[0] > cosine[1] > cosine[2] < 1e-4
    assert rates(schedule="constant", learning_rate=1e-4, ema_decay=0) == [1e-4] * 3
    job = JobConfig.load({"input": "in", "output": "out", "stage2": {"schedule": "plateau", "ema_decay": 0}})
    assert options_of(job.stage2, "stage2", 1).schedule == "plateau"


def test_validation_is_masked():
    noise = np.random.default_rng(0).normal(0, 1, (8, 128, 128)).astype(np.float32)
    found = []
    denoizarr.train(
        noise,
        options=TrainingOptions(**SMALL, learning_rate=1e-9, gradient_clip=1e-6),
        network=copying_network(),
        on_epoch=found.append,
        progress=False,
    )
    # A network that copies its input is right about every pixel that it sees: not masked, the loss is 0.
    assert found[0].validation_loss == pytest.approx(2, abs=0.3)
    assert found[0].train_loss == pytest.approx(2, abs=0.3)


def test_turns_leave_the_kernel_unchanged():
    assert len(symmetries_of(np.ones((1, 1), bool))) == 8
    assert len(symmetries_of(np.ones((5, 5), bool))) == 8
    row = symmetries_of(ROW)
    assert len(row) == 4
    corner = np.zeros((3, 3), bool)
    corner[1, 1] = corner[0, 1] = corner[1, 2] = True
    assert len(symmetries_of(corner)) < 8
    job = JobConfig.load({"input": "in", "output": "out", "stage1": {"augment": False}})
    assert (job.stage1.augment, job.stage2.augment) == (False, True)


def test_all_planes_of_a_stack_count():
    image = planes((4, 128, 128))
    stream = denoizarr.PatchStream(image, build_index(image, 32), patches_per_epoch=64)
    assert {int(item["origin"][0]) for item in stream} == {0, 1, 2, 3}


def test_the_first_row_is_not_black():
    image = planes((2, 128, 128)).astype(np.float32)
    denoiser = denoizarr.train(
        image,
        options=TrainingOptions(**SMALL, learning_rate=1e-9, gradient_clip=1e-6),
        network=copying_network(),
        progress=False,
    )
    np.testing.assert_allclose(denoiser.denoise(image), image, rtol=1e-4)


# ---- DIPY: Patch2Self


def series(n=10, seed=0):
    rng = np.random.default_rng(seed)
    structure = rng.normal(size=(8, 7, 6, 3)) @ rng.normal(size=(3, n))
    return np.rint(200 + 40 * structure + rng.normal(0, 6, (8, 7, 6, n))).astype(np.int16), np.full(n, 1000.0)


def test_patch2self_takes_settings_by_name():
    data, bvals = series()
    with pytest.raises(TypeError):
        denoizarr.patch2self(data, bvals, 0, "ols")


def test_patch2self_needs_no_sketch():
    data, bvals = series()
    first, second = (denoizarr.patch2self(data, bvals, version=3) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(first, denoizarr.patch2self(data, bvals, version=1))


def test_patch2self_shifts():
    data, bvals = series()
    shifted = denoizarr.patch2self(data, bvals, out_dtype=np.float64)
    np.testing.assert_allclose(shifted.min((0, 1, 2)), data.min((0, 1, 2)), atol=1e-9)
    plain = denoizarr.patch2self(data, bvals, out_dtype=np.float64, shift_intensity=False)
    assert np.abs(plain.min((0, 1, 2)) - data.min((0, 1, 2))).max() > 1


def test_patch2self_does_not_wrap():
    data, bvals = series()
    low = np.clip(data - data.min() - 50, 0, 65535).astype(np.uint16)
    exact = denoizarr.patch2self(low, bvals, out_dtype=np.float64, shift_intensity=False)
    found = denoizarr.patch2self(low, bvals, shift_intensity=False)
    assert exact.min() < -1
    assert found.max() < 2 * low.max()
    assert (found[exact < 0] == 0).all()


def test_patch2self_counts_b_values():
    data, bvals = series()
    with pytest.raises(BadRequest, match="got 9 b-values, expected 10"):
        denoizarr.patch2self(data, bvals[:-1])


def test_patch2self_keeps_b0_in_place():
    data, bvals = series()
    bvals[[2, 5]] = 0
    found = denoizarr.patch2self(data, bvals, b0_denoising=False)
    assert np.array_equal(found[..., [2, 5]], data[..., [2, 5]])
    assert not np.array_equal(found[..., 3], data[..., 3])


def test_patch2self_needs_three_volumes():
    data, bvals = series()
    bvals[[2, 5]] = 0
    with pytest.raises(BadRequest, match="b0_denoising=False"):
        denoizarr.patch2self(data, bvals)


def test_patch2self_knows_three_models():
    data, bvals = series()
    with pytest.raises(BadRequest, match="ols, ridge or lasso"):
        denoizarr.patch2self(data, bvals, model="forest")


def test_patch2self_takes_many_volumes():
    data, bvals = series(300)
    assert denoizarr.patch2self(data, bvals).shape == (8, 7, 6, 300)
