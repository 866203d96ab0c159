from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.errors import BadRequest, DegenerateData
from denoizarr.selection.thresholds import check_threshold, suggest_threshold


def suggest(*pieces):
    return suggest_threshold(lambda: pieces)


def normal(mean, width, size, seed=0):
    return np.random.default_rng(seed).normal(mean, width, size)


def sparse_signal(size=4000, share=0.1, seed=0):
    """Empty cells of one level, and signal over a range a hundred times as wide that begins close above."""
    rng = np.random.default_rng(seed)
    signal = 100 + rng.exponential(60, int(share * size)) + 6
    return np.concatenate([rng.normal(100, 1, size - signal.size), signal]), signal


def test_two_modes_are_parted_between_them():
    found = suggest(normal(10, 1, 3000), normal(30, 2, 3000, seed=1))
    assert found.method == "valley"
    assert 14 < found.threshold < 22
    assert found.separability > 0.95
    assert found.kept == pytest.approx(0.5)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.6])
def test_faint_signal_beside_strong_signal_is_kept(share):
    scores, signal = sparse_signal(share=share)
    found = suggest(scores)
    assert found.method == "valley"
    assert (signal >= found.threshold).mean() > 0.95
    assert found.kept == pytest.approx(share, abs=0.02)


def test_otsu_loses_faint_signal_where_the_valley_does_not():
    # The negative control of the test above, and the reason why Otsu is not the suggestion.
    from skimage.filters import threshold_otsu

    scores, signal = sparse_signal()
    assert (signal >= threshold_otsu(scores)).mean() < 0.6


@pytest.mark.parametrize(
    "scores",
    [
        normal(7, 0.3, 5000),
        np.random.default_rng(1).uniform(0, 9, 5000),
        np.random.default_rng(2).exponential(5, 5000),
        np.random.default_rng(3).lognormal(0, 1, 5000),
        np.random.default_rng(4).standard_t(3, 5000),
        np.random.default_rng(5).poisson(30, 5000),
        np.random.default_rng(5).poisson(2, 5000),
        # Flat and rough grains without a gap between them.
        np.concatenate([normal(18, 0.6, 3000), 18 + np.random.default_rng(6).exponential(5, 3000)]),
    ],
    ids=["normal", "uniform", "exponential", "lognormal", "heavy", "counts", "few counts", "grains"],
)
def test_scores_of_one_mode_are_all_kept(scores):
    found = suggest(scores)
    assert found.method == "none"
    assert found.threshold == scores.min()
    assert found.kept == 1
    assert found.separability < 0.5
    assert "no background was found" in found.sentence()


def test_one_mode_is_rarely_taken_for_two_even_in_small_maps():
    wrong = sum(suggest(normal(0, 1, 60, seed=seed)).method == "valley" for seed in range(60))
    assert wrong <= 1


@pytest.mark.parametrize("scores", [[3.5], [2, 2, 2], [1, 2], [0, 0, 0, 9], np.full((4, 5), -1.25)])
def test_too_few_or_equal_scores_are_all_kept(scores):
    scores = np.asarray(scores, dtype=float)
    found = suggest(scores)
    assert found.threshold == scores.min()
    assert found.method == "none"
    assert found.kept == 1
    assert found.cells == scores.size


def test_a_few_odd_cells_are_no_signal():
    assert suggest(normal(5, 1, 5000), np.full(10, 40.0)).method == "none"


def test_a_large_constant_border_is_background():
    found = suggest(np.zeros(2000), normal(50, 5, 2000))
    assert found.method == "valley"
    assert 0 < found.threshold < 40
    assert found.kept == pytest.approx(0.5)


def test_integers_have_gaps_that_are_no_valleys():
    rng = np.random.default_rng(0)
    found = suggest(rng.poisson(4, 2000), rng.poisson(60, 2000))
    assert found.method == "valley"
    assert 12 < found.threshold < 35


def test_the_sentence_says_how_many_are_kept():
    found = suggest(normal(10, 1, 3000), normal(30, 2, 1000, seed=1))
    assert "keeps 25.0 %" in found.sentence()
    assert "4,000 cells" in found.sentence()


def test_nan_and_infinity_are_left_out():
    scores, _ = sparse_signal()
    dirty = np.concatenate([scores, [np.nan, np.inf, -np.inf]])
    assert suggest(dirty) == suggest(scores)


@pytest.mark.parametrize("pieces", [(), (np.array([np.nan]),), (np.empty(0),)])
def test_nothing_to_choose_from_is_an_error(pieces):
    with pytest.raises(DegenerateData, match="no finite score"):
        suggest(*pieces)


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(0, 5), st.booleans())
def test_pieces_and_their_order_change_nothing(parts, seed, single):
    scores = sparse_signal(600, seed=seed)[0].astype(np.float32 if single else np.float64)
    shuffled = np.random.default_rng(seed).permutation(scores)
    assert suggest(*np.array_split(shuffled, parts)) == suggest(scores)


@settings(max_examples=20)
@given(st.floats(0.01, 1e4), st.floats(-1e4, 1e4), st.integers(0, 20))
def test_units_and_offsets_of_the_scores_change_nothing(scale, offset, seed):
    scores, _ = sparse_signal(1000, seed=seed)
    plain, moved = suggest(scores), suggest(scores * scale + offset)
    assert moved.method == plain.method
    assert moved.threshold == pytest.approx(plain.threshold * scale + offset, abs=0.5 * scale)


@settings(max_examples=30)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=80))
def test_kept_is_what_the_threshold_keeps(values):
    values = np.array(values, np.float32)
    found = suggest(values)
    assert found.kept == (values >= found.threshold).mean()
    assert found.lowest <= found.threshold <= found.highest
    assert 0 <= found.separability <= 1


@settings(max_examples=15)
@given(st.integers(0, 100), st.floats(0.05, 0.3))
def test_kept_is_exact_where_a_valley_is_found(seed, share):
    scores, _ = sparse_signal(4000, share, seed)
    found = suggest(scores)
    assert found.method == "valley"
    assert found.kept == (scores >= found.threshold).mean()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_threshold_is_a_finite_number(value):
    with pytest.raises(BadRequest, match="mean_threshold"):
        check_threshold(value, "mean_threshold")
    check_threshold(None, "mean_threshold")
    check_threshold(0.0, "mean_threshold")
