from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from denoizarr.report.diagnostics import diagnose
from denoizarr.report.findings import findings_of, in_plane
from denoizarr.report.planes import Planes
from denoizarr.report.verdicts import (
    bias_sentence,
    correlation_sentences,
    diagnostic_doubts,
    is_notable,
    left_sentence,
    loss_sentence,
    tells,
)

ROW = np.ones((1, 5), bool)
SINGLE = np.ones((1, 1), bool)
SHAPE = (320, 320)
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]]
TRUTH = 100 + 80.0 * (((X // 9) % 3 == 0) & ((Y // 13) % 2 == 0)) * (X > 160)


def rows(seed):
    return ndimage.uniform_filter1d(np.random.default_rng(seed).normal(0, 17, SHAPE), 3, axis=1)


def planes_of(raw, denoised, neighbours=()):
    return Planes(
        raw,
        denoised,
        None,
        ("y", "x"),
        SHAPE,
        "uint16",
        "uint16",
        {},
        (0, 0),
        None,
        neighbours=tuple(neighbours),
    )


def test_a_good_result_has_nothing_against_it():
    planes = planes_of(TRUTH + rows(1), TRUTH, [(TRUTH + rows(2), TRUTH)])
    found = diagnose(planes, ROW)
    assert found.gap == 1
    assert not found.background.marked.any()
    assert not found.signal.marked.any()
    assert found.loss.reading == "good"
    assert not is_notable(found.left)
    text = " ".join([*correlation_sentences(found), loss_sentence(found.loss, 1), left_sentence(found.left)])
    assert text.count("nothing that was removed is correlated where it should not be") == 2
    assert "hardly any is left" in text
    assert diagnostic_doubts(found, None) == []


def test_a_bad_result_is_told_on():
    lost = [TRUTH - 0.3 * (TRUTH - 100) + 0.4 * rows(seed) for seed in (1, 2)]
    planes = planes_of(TRUTH + rows(1), lost[0], [(TRUTH + rows(2), lost[1])])
    found = diagnose(planes, ROW)
    assert found.loss.reading == "signal is being removed"
    assert found.signal.marked.any()
    assert is_notable(found.left)
    text = " ".join(correlation_sentences(found))
    assert "On signal, what was removed is correlated at" in text
    assert "structure that was removed" in text
    doubts = diagnostic_doubts(found, None)
    assert [doubt[:6] for doubt in doubts] == ["Signal", "The ou"]
    assert "Longer training" in doubts[0]


def test_a_loss_that_no_linear_filter_could_spare_brings_no_advice_to_train_longer():
    lost = [TRUTH - 0.3 * (TRUTH - 100) for _ in (1, 2)]
    found = diagnose(planes_of(TRUTH + rows(1), lost[0], [(TRUTH + rows(2), lost[1])]), ROW)
    faint = replace(found, loss=replace(found.loss, floor=0.6))
    (doubt,) = diagnostic_doubts(faint, None)
    assert "The best linear filter for this noise would lose 60 %" in doubt
    assert "Longer training" not in doubt


def test_the_first_independent_neighbour_is_taken():
    shared = rows(9)
    noise = [rows(1) + shared, rows(2) + shared, rows(3)]
    planes = planes_of(TRUTH + noise[0], TRUTH, [(TRUTH + n, TRUTH) for n in noise[1:]])
    found = diagnose(planes, ROW)
    assert found.gap == 2
    assert "the plane 2 further on" in loss_sentence(found.loss, found.gap)


def test_neighbours_that_share_noise_are_no_reference():
    noise = rows(1)
    planes = planes_of(TRUTH + noise, TRUTH, [(TRUTH + noise, TRUTH)])
    found = diagnose(planes, ROW)
    assert found.gap is None
    assert not found.loss.independent


@pytest.mark.parametrize("denoised", [None, TRUTH, np.full(SHAPE, np.nan)])
def test_what_cannot_be_measured_is_none(denoised):
    assert diagnose(planes_of(TRUTH, denoised), SINGLE) is None


def test_a_kernel_of_volumes_counts_in_its_middle_plane():
    mask = np.zeros((3, 1, 5), bool)
    mask[1] = True
    mask[0, 0, 2] = mask[2, 0, 2] = True
    np.testing.assert_array_equal(in_plane(mask), np.ones((1, 5), bool))
    found = findings_of(planes_of(TRUTH + rows(1), TRUTH), mask)
    assert not found.diagnostics.background.marked.any()


def test_a_target_is_not_diagnosed():
    assert findings_of(planes_of(TRUTH + rows(1), TRUTH), None).diagnostics is None


def test_noise_of_a_direction_that_nobody_looked_for_is_told():
    found = diagnose(planes_of(TRUTH + rows(1), TRUTH), SINGLE)
    assert tells(found.left, None)
    white = TRUTH + np.random.default_rng(4).normal(0, 10, SHAPE)
    assert not tells(diagnose(planes_of(white, TRUTH), SINGLE).left, None)
    assert not tells(None, None)


def test_too_little_structure_is_said_to_be_too_little():
    found = diagnose(planes_of(TRUTH + rows(1), TRUTH), ROW)
    assert "cannot be told" in loss_sentence(replace(found.loss, share=np.nan), None)


def test_a_bias_is_told_with_its_sign():
    from denoizarr.figures.intensity_bias import bias_by_intensity

    text = bias_sentence(bias_by_intensity(TRUTH, 0.9 * TRUTH + 10))
    assert "10 % of the truth's range (too dark)" in text
    assert "small bright structures" in text
    assert "0.5 % of the truth's range (too bright)" in bias_sentence(bias_by_intensity(TRUTH, TRUTH + 0.4))
