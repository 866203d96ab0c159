from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from denoizarr.kernels.residual import classify_windows, windows_of
from denoizarr.kernels.signal_loss import GOOD, REMOVED, band, signal_loss

SIZE = 320


def truth(seed=0):
    """Blobs and lines of many sizes in one half, nothing in the other; grey levels of some 100 to 250."""
    generator = np.random.default_rng(seed)
    image = np.zeros((SIZE, SIZE))
    for sigma, count in ((1.5, 350), (3.0, 100), (8.0, 16)):
        points = np.zeros_like(image)
        places = generator.integers(0, (SIZE, SIZE // 2), (count, 2))
        points[places[:, 0], places[:, 1]] = 1.0
        image += ndimage.gaussian_filter(points, sigma) * 6.28 * sigma**2
    return 100 + 80 * image


TRUTH = truth()


def noisy(seed, sigma=12.0):
    return TRUTH + np.random.default_rng(seed).normal(0, sigma, TRUTH.shape)


def lose(share):
    """Take a share of the structure away; the mean stays."""
    return TRUTH - share * (TRUTH - TRUTH.mean())


def measured(first, second=None, raw=None):
    raw = noisy(1) if raw is None else raw
    classes = classify_windows(raw, first)
    other = None if second is None else (noisy(2), second)
    return signal_loss(raw, first, classes, other=other)


@pytest.mark.parametrize("second", [False, True])
def test_noise_alone_reads_good(second):
    found = measured(TRUTH, TRUTH if second else None)
    assert found.reading == "good"
    assert abs(found.share) < 3 * found.standard_error + 0.005
    assert found.independent is second
    assert not second or found.null == 0


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_share_of_the_signal_is_measured(second, share):
    found = measured(lose(share), lose(share) if second else None)
    assert found.reading == "signal is being removed"
    assert found.share == pytest.approx(share, abs=0.015)
    known = np.isfinite(found.by_scale)
    assert found.by_scale[known] == pytest.approx(share, abs=4 * found.by_scale_error[known].max())


def test_a_share_between_good_and_bad_is_to_be_looked_at():
    share = 0.5 * (GOOD + REMOVED)
    assert measured(lose(share), lose(share)).reading == "look closer"


@pytest.mark.parametrize("second", [False, True])
def test_a_blurred_output_is_told_on(second):
    blurred = [ndimage.gaussian_filter(noisy(seed), 2.0) for seed in (1, 2)]
    found = measured(blurred[0], blurred[1] if second else None)
    assert found.reading == "signal is being removed"
    known = found.by_scale[np.isfinite(found.by_scale)]
    assert (np.diff(known) < 0).all()


def test_a_blur_loses_what_its_transfer_says():
    blurred = [ndimage.gaussian_filter(noisy(seed), 2.0) for seed in (1, 2)]
    found = measured(*blurred)
    clean = ndimage.gaussian_filter(TRUTH, 2.0)
    chosen = classify_windows(noisy(1), blurred[0]).signal
    for number, (fine, coarse) in enumerate(((1, 2), (2, 4), (4, 8)), start=1):
        whole, kept = (windows_of(band(image, fine, coarse), 32)[chosen] for image in (TRUTH, clean))
        # The reference is blurred too, so its band leans to coarser structure than the truth's.
        expected = 1 - (kept * kept).sum() / (whole * kept).sum()
        assert found.by_scale[number] == pytest.approx(expected, abs=4 * found.by_scale_error[number])


def test_noise_that_is_left_in_the_output_is_not_taken_for_signal():
    kept = [TRUTH + 0.5 * (noisy(seed) - TRUTH) for seed in (1, 2)]
    pair, alone = measured(*kept), measured(kept[0])
    assert pair.reading == alone.reading == "good"
    # With one plane it had to be subtracted.
    assert alone.null > 0.005
    assert abs(alone.share) < 0.02


def test_sharpened_structure_is_to_be_looked_at():
    found = measured(lose(-0.15), lose(-0.15))
    assert found.share == pytest.approx(-0.15, abs=0.02)
    assert found.reading == "look closer"


def test_the_best_linear_filter_is_wieners():
    found = measured(TRUTH, TRUTH)
    chosen = classify_windows(noisy(1), TRUTH).signal
    structure = (windows_of(band(TRUTH, 2, 4), 32)[chosen] ** 2).sum()
    noise = (windows_of(band(noisy(1) - TRUTH, 2, 4), 32)[chosen] ** 2).sum()
    assert found.floor_by_scale[2] == pytest.approx(noise / (noise + structure), abs=0.02)
    assert 0 < found.floor < found.floor_by_scale[0]
    assert np.isnan(measured(TRUTH).floor)


@pytest.mark.parametrize("second", [False, True])
def test_without_structure_nothing_can_be_told(second):
    raw = np.random.default_rng(5).normal(100, 10, TRUTH.shape)
    flat = [ndimage.gaussian_filter(np.random.default_rng(n).normal(100, 10, TRUTH.shape), 3) for n in (6, 7)]
    found = measured(flat[0], flat[1] if second else None, raw=raw)
    assert found.reading in ("cannot tell", "good")
    if second:
        assert found.reading == "cannot tell"


def test_a_plane_with_holes_is_measured_in_the_rest():
    raw = noisy(1)
    raw[100:130, 40:80] = np.nan
    found = measured(lose(0.1), lose(0.1), raw=raw)
    assert found.share == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    ("share", "error", "reading"),
    [
        (0.0, 0.01, "good"),
        (0.049, 0.001, "good"),
        (0.06, 0.001, "look closer"),
        (0.06, 0.03, "good"),
        (0.2, 0.01, "signal is being removed"),
        (0.2, 0.06, "signal is being removed"),
        (0.2, 0.2, "cannot tell"),
        (0.0, 0.04, "cannot tell"),
        (np.nan, np.nan, "cannot tell"),
        (np.nan, 0.01, "cannot tell"),
        (-0.2, 0.01, "look closer"),
    ],
)
def test_readings(share, error, reading):
    found = replace(measured(TRUTH, TRUTH), share=share, standard_error=error)
    assert found.reading == reading


def test_too_few_windows_are_no_sample():
    classes = classify_windows(noisy(1), TRUTH)
    assert signal_loss(noisy(1), TRUTH, replace(classes, signal=classes.signal[:1])) is None
