"""The documented ring algorithm: against a plain definition, its settings one by one, the page's presets."""

from __future__ import annotations

import logging
from dataclasses import asdict, fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.errors import BadRequest, EmptyIndex
from denoizarr.training.rings import RingsSettings, find_rings, measure_rings
from denoizarr.training.structure import StructuralNoiseExtractor
from tests.training.test_structure import cut, noise

# The page's presets, word for word.
PRESETS: dict[str, dict[str, object]] = {
    "fine": {"center_size": 7, "base_percentile": 60, "max_true_pixels": 15},
    "coarse": {"center_size": 21, "base_percentile": 40, "max_true_pixels": 40},
    "weak": {"base_percentile": 30, "center_ratio_threshold": 0.1, "use_center_proximity": False},
    "strong": {"base_percentile": 70, "center_ratio_threshold": 0.5, "max_true_pixels": 20},
}
DOCUMENTED = {
    "norm_autocorr": True, "log_autocorr": True, "crop_autocorr": True, "adapt_autocorr": True,
    "adapt_CB": 50.0, "adapt_DF": 0.95, "center_size": 10, "base_percentile": 50, "percentile_decay": 1.15,
    "center_ratio_threshold": 0.3, "use_center_proximity": True, "center_proximity_threshold": 0.95,
    "keep_center_component_only": True, "max_true_pixels": 25,
}  # fmt: skip
ROW, COLUMN = np.ones((1, 9)), np.ones((9, 1))


def windows(kernel: np.ndarray, white: float = 0.0, side: int = 64) -> np.ndarray:
    image = noise((512, 512), kernel) + white * noise((512, 512), np.ones((1, 1)), 1)
    return cut(100 + 10 * image, side)


def row(length: int) -> np.ndarray:
    return np.ones((1, length), bool)


# ---- a plain definition, lag by lag and pixel by pixel


def plain_correlation(patch: np.ndarray, dy: int, dx: int) -> float:
    values = patch - patch.mean()
    height, width = values.shape
    products = [
        values[y, x] * values[y + dy, x + dx]
        for y in range(max(0, -dy), min(height, height - dy))
        for x in range(max(0, -dx), min(width, width - dx))
    ]
    return float(np.mean(products))


def plain_rings(patches: np.ndarray, chosen: RingsSettings) -> tuple[np.ndarray, np.ndarray]:
    reach = chosen.center_size // 2
    side = 2 * reach + 1
    total = np.zeros((side, side))
    for patch in patches:
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                value = plain_correlation(patch, dy, dx)
                if chosen.norm_autocorr:
                    value /= plain_correlation(patch, 0, 0)
                if chosen.log_autocorr:
                    value = np.copysign(np.log(1 + abs(value)), value)
                total[reach + dy, reach + dx] += value / len(patches)
    centre = np.zeros((side, side))
    ring_of = np.zeros((side, side), int)
    for y, x in np.ndindex(side, side):
        ring_of[y, x] = d = max(abs(y - reach), abs(x - reach))
        share = max(total[y, x] / total[reach, reach], 0.0)
        least = chosen.adapt_CB / 100 / (1 + chosen.adapt_DF * d) if chosen.adapt_autocorr else -1.0
        centre[y, x] = share if share > least else 0.0
    mask = np.zeros((side, side), bool)
    mask[reach, reach] = True
    for ring in range(1, reach + 1):
        values = centre[ring_of == ring]
        threshold = np.percentile(values, min(100, chosen.base_percentile * chosen.percentile_decay**ring))
        for y, x in np.argwhere(ring_of == ring):
            value = centre[y, x]
            keep = value > 0 and value >= threshold - 1e-9
            keep &= values.max() > chosen.center_ratio_threshold
            if chosen.use_center_proximity:
                keep &= value >= chosen.center_proximity_threshold * values.max() - 1e-9
            mask[y, x] = keep
    return mask, centre


@settings(max_examples=12)
@given(
    seed=st.integers(0, 99),
    norm=st.booleans(),
    log=st.booleans(),
    adapt=st.booleans(),
    proximity=st.booleans(),
    percentile=st.integers(10, 80),
)
def test_rings_equal_their_plain_definition(
    seed: int, norm: bool, log: bool, adapt: bool, proximity: bool, percentile: int
) -> None:
    chosen = RingsSettings(
        norm_autocorr=norm, log_autocorr=log, adapt_autocorr=adapt, use_center_proximity=proximity,
        base_percentile=percentile, center_size=6, center_ratio_threshold=0.2, max_true_pixels=99,
        keep_center_component_only=False, minimum_windows=1,
    )  # fmt: skip
    patches = 100 + 10 * cut(noise((48, 48), np.ones((2, 3)), seed), 24)
    expected, centre = plain_rings(patches, chosen)
    found = measure_rings(patches, chosen)
    np.testing.assert_allclose(found.centre, centre, atol=1e-9)
    whole = np.zeros_like(expected)
    size = found.noise.mask.shape
    inside = tuple(slice((n - k) // 2, (n + k) // 2) for n, k in zip(expected.shape, size, strict=True))
    whole[inside] = found.noise.mask
    # Opposite lags are averaged here, so that a pair cannot be split by rounding.
    np.testing.assert_array_equal(whole, expected | expected[::-1, ::-1])


# ---- settings


def test_the_fourteen_settings_have_the_documented_defaults() -> None:
    assert {f.name for f in fields(RingsSettings)} - {"minimum_windows"} == set(DOCUMENTED)
    assert {
        name: value for name, value in asdict(RingsSettings()).items() if name in DOCUMENTED
    } == DOCUMENTED


@pytest.mark.parametrize("name", sorted(DOCUMENTED.keys() - {"center_size", "max_true_pixels"}))
def test_a_setting_of_rings_alone_chooses_rings_or_is_refused(name: str) -> None:
    extractor = StructuralNoiseExtractor(**{name: DOCUMENTED[name]})  # type: ignore[arg-type]
    assert extractor.method == "rings"
    with pytest.raises(BadRequest, match=name):
        StructuralNoiseExtractor("significance", **{name: DOCUMENTED[name]})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"center_size": 5.5}, {"max_true_pixels": 2.5}, {"minimum_windows": 20.5}, {"adapt_DF": np.inf}]
)
def test_what_is_counted_is_a_whole_number(wrong: dict[str, float]) -> None:
    with pytest.raises(BadRequest, match=next(iter(wrong))):
        RingsSettings(**wrong)  # type: ignore[arg-type]


def test_shared_settings_choose_nothing() -> None:
    assert StructuralNoiseExtractor(center_size=11, max_true_pixels=5).method == "significance"
    assert StructuralNoiseExtractor("rings", max_true_pixels=5).settings.max_true_pixels == 5


def test_an_even_size_is_one_larger() -> None:
    patches = windows(ROW)
    for size in (10, 11):
        assert find_rings(patches, RingsSettings(center_size=size))[1].shape == (11, 11)
    assert find_rings(patches, RingsSettings(crop_autocorr=False))[1].shape == (127, 127)
    with pytest.raises(BadRequest, match="larger than the windows"):
        find_rings(patches, RingsSettings(center_size=129))


def test_brightness_is_not_correlation() -> None:
    patches = windows(np.ones((1, 1)))
    assert find_rings(patches + 1e4)[0].tolist() == [[True]]
    np.testing.assert_allclose(find_rings(patches + 1e4)[1], find_rings(patches)[1], atol=1e-6)


def test_long_lines_do_not_fall_off_towards_the_border() -> None:
    lines = np.random.default_rng(0).standard_normal((512, 1)) * np.ones((1, 512))
    _, centre = find_rings(cut(lines + 0.01 * noise((512, 512), np.ones((1, 1)))))
    assert centre[5].min() > 0.99


def test_what_is_opposite_is_not_kept() -> None:
    difference = np.array([[1.0, -1.0]])
    found = measure_rings(windows(difference), RingsSettings(adapt_autocorr=False))
    assert found.noise.autocorrelation[5, 6] == pytest.approx(-0.5, abs=0.02)
    assert found.centre[5, 6] == 0
    hidden = {tuple(lag) for lag in np.argwhere(found.noise.mask) - np.array(found.noise.mask.shape) // 2}
    assert not hidden & {(0, 1), (0, -1)}


def test_a_diagonal_is_one_component() -> None:
    mask, _ = find_rings(windows(np.eye(5)))
    np.testing.assert_array_equal(mask, np.eye(len(mask), dtype=bool))
    assert len(mask) >= 7


def test_separate_lobes_stay_where_they_are_asked_for() -> None:
    lobes = np.zeros((1, 5))
    lobes[0, ::4] = 1
    patches = windows(lobes)
    assert find_rings(patches)[0].tolist() == [[True]]
    kept, _ = find_rings(patches, RingsSettings(keep_center_component_only=False))
    assert kept.tolist() == [[True, False, False, False, True, False, False, False, True]]


@pytest.mark.parametrize("pixels", [1, 2, 3, 8, 25])
def test_the_strongest_pairs_are_kept(pixels: int) -> None:
    mask, _ = find_rings(windows(ROW), RingsSettings(max_true_pixels=pixels))
    assert mask.sum() == min((pixels - 1) // 2 * 2 + 1, 11)
    assert np.array_equal(mask, mask[::-1, ::-1])


def test_adaptation_is_in_per_cent_of_the_centre() -> None:
    patches = windows(ROW)
    strict, _ = find_rings(patches, RingsSettings(adapt_CB=100, adapt_DF=0))
    assert strict.tolist() == [[True]]
    off, on = (
        find_rings(patches, RingsSettings(adapt_autocorr=adapt, max_true_pixels=999))[1]
        for adapt in (False, True)
    )
    threshold = 0.5 / (1 + 0.95 * np.maximum(*np.abs(np.mgrid[-5:6, -5:6])))
    np.testing.assert_allclose(on, np.where(off > threshold, off, 0))


# ---- the page's presets and advice


@pytest.mark.parametrize(
    ("preset", "length"), [("fine", 7), ("coarse", 13), ("weak", 11), ("strong", 11)], ids=list(PRESETS)
)
def test_the_presets_find_a_row_as_far_as_they_look(preset: str, length: int) -> None:
    mask, _ = StructuralNoiseExtractor(**PRESETS[preset]).extract_mask(windows(ROW))  # type: ignore[arg-type]
    # Of the row's 17 pixels: "coarse" looks far enough, but stops where a ring falls below .3 of the centre.
    np.testing.assert_array_equal(mask, row(length))


def test_a_preset_for_weak_noise_finds_what_the_defaults_miss() -> None:
    patches = windows(ROW, white=1.75)
    assert StructuralNoiseExtractor("rings").extract_mask(patches)[0].tolist() == [[True]]
    mask, _ = StructuralNoiseExtractor(**PRESETS["weak"]).extract_mask(patches)  # type: ignore[arg-type]
    assert mask.shape[0] == 1
    assert mask.sum() >= 3


@pytest.mark.parametrize("preset", [{}, *PRESETS.values()], ids=["default", *PRESETS])
def test_white_noise_gives_a_single_pixel(preset: dict[str, object]) -> None:
    extractor = StructuralNoiseExtractor("rings", **preset)  # type: ignore[arg-type]
    assert extractor.extract_mask(windows(np.ones((1, 1))))[0].tolist() == [[True]]


def test_columns_are_turned_rows() -> None:
    mask, centre = find_rings(windows(ROW))
    turned, other = find_rings(windows(ROW).swapaxes(1, 2))
    np.testing.assert_array_equal(mask, turned.T)
    np.testing.assert_allclose(centre, other.T)
    assert find_rings(windows(COLUMN))[0].shape[1] == 1


# ---- the sample, and what is said of it


def test_batches_in_a_stream_are_one_sample() -> None:
    patches = windows(ROW)
    whole = measure_rings(patches)
    parts = measure_rings(patches[n : n + 7] for n in range(0, len(patches), 7))
    np.testing.assert_allclose(parts.centre, whole.centre, rtol=1e-12)
    assert parts.noise.windows == whole.noise.windows == len(patches)


def test_windows_that_hold_nothing_are_left_out_and_too_few_are_refused() -> None:
    patches = windows(ROW)
    broken = patches[:2].copy()
    broken[:, 3, 3] = np.nan
    mixed = np.concatenate([np.zeros((9, 64, 64)), broken, patches])
    np.testing.assert_allclose(find_rings(mixed)[1], find_rings(patches)[1])
    for few in (patches[:19], np.zeros((30, 64, 64)), patches[:0]):
        with pytest.raises(EmptyIndex, match="20 or more"):
            find_rings(few)
    with pytest.raises(EmptyIndex, match=r"got 19 that vary, of 28.*lower minimum_windows"):
        find_rings(np.concatenate([patches[:19], np.zeros((9, 64, 64))]))
    assert find_rings(patches[:19], RingsSettings(minimum_windows=5))[0].shape == (1, 11)


def test_volumes_are_refused() -> None:
    with pytest.raises(BadRequest):
        find_rings(np.zeros((30, 8, 32, 32)))


def test_verbose_tells_each_ring(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    extractor = StructuralNoiseExtractor("rings")
    extractor.extract_mask(windows(ROW), verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:5]] == [f"ring {n}" for n in range(1, 6)]
    assert "threshold" in lines[0]
    assert "kept 2 of 8 pixels" in lines[0]
    assert "noise kernel 1 x 11, 11 pixels, from 64 windows" in lines[5]
    with caplog.at_level(logging.INFO, logger="denoizarr"):
        extractor.extract_mask(windows(ROW), verbose=True)
    assert len(caplog.messages) == 6
    assert not capsys.readouterr().out
    StructuralNoiseExtractor("rings").extract_mask(windows(ROW))
    assert not capsys.readouterr().out
