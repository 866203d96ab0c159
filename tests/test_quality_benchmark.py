"""The benchmark of quality: its cases, its figures, its references, and that what is measured is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _importable():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def smooth(shape=(128, 128), seed=0):
    """An image of a few smooth blobs, from 0 to 255."""
    generator = np.random.default_rng(seed)
    y, x = np.indices(shape)
    image = sum(
        np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * s**2))
        for cy, cx, s in generator.uniform([0, 0, 8], [*shape, 20], (12, 3))
    )
    return (image - image.min()) * (255 / np.ptp(image))


# ---- cases


def test_boxed_noise_has_its_deviation_and_the_autocorrelation_of_a_box():
    from image_quality.cases import BOX, BOXED, boxed

    noise = boxed(np.random.default_rng(0), (512, 512))
    assert noise.std() == pytest.approx(BOXED)
    for lag in range(1, BOX + 2):
        found = np.mean(noise[:, :-lag] * noise[:, lag:]) / np.mean(noise**2)
        assert found == pytest.approx(max(1 - lag / BOX, 0), abs=0.02)
    assert np.mean(noise[:-1] * noise[1:]) / np.mean(noise**2) == pytest.approx(0, abs=0.02)


def test_the_true_kernel_is_where_the_boxed_noise_correlates_by_a_tenth():
    from image_quality.cases import BOX, BOXED_CASES, PAIRS

    lags = np.arange(-20, 21)
    reach = lags[1 - np.abs(lags) / BOX >= 0.1]
    kernel = BOXED_CASES[0].true_kernel
    assert kernel.shape == (1, reach.size) == (1, 17)
    assert kernel.all()
    assert PAIRS[0].true_kernel is None


def test_the_spectrum_that_bm3d_is_told_is_that_of_the_noise():
    from image_quality.cases import BOX, BOXED, BOXED_CASES, WHITE, noise_spectrum, with_noise

    shape = (64, 96)
    spectrum = noise_spectrum(shape)
    assert spectrum.mean() == pytest.approx((WHITE**2 + BOXED**2) * 64 * 96)
    noise = with_noise(BOXED_CASES[0], np.zeros((64 * 30, 96))).reshape(30, 64, 96)
    measured = np.mean(np.abs(np.fft.fft2(noise)) ** 2, axis=(0, 1))
    # A window's ends are not periodic, so neighbouring frequencies mix a little.
    assert np.corrcoef(measured, spectrum[0])[0, 1] > 0.99
    assert measured[0] == pytest.approx((BOXED**2 * BOX + WHITE**2) * 64 * 96, rel=0.15)


def test_the_noise_of_a_case_is_its_own_and_the_same_every_time():
    from image_quality.cases import BOXED_CASES, LINES, LINES_CASE, PERIOD, with_noise

    truth = np.zeros((64, 64), np.float32)
    first, second = (with_noise(case, truth) for case in BOXED_CASES[:2])
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, with_noise(BOXED_CASES[0], truth))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1
    rows = with_noise(LINES_CASE, np.zeros((2048, 64), np.float32)).mean(axis=0)
    np.testing.assert_allclose(rows, LINES * np.sin(2 * np.pi * np.arange(64) / PERIOD), atol=1)


@given(offset=st.integers(0, 60), extent=st.integers(30, 190))
def test_a_scaled_truth_spans_the_eight_bits(offset, extent):
    from image_quality.cases import scaled

    truth = np.array([[0, 1], [3, extent]]) + offset
    found = scaled(truth)
    assert (found.min(), found.max(), found.dtype) == (0, 255, np.float32)
    np.testing.assert_allclose(found / 255, (truth - offset) / extent, atol=1e-6)


def test_missing_images_are_named(monkeypatch):
    from image_quality.cases import data_folder

    monkeypatch.delenv("DENOIZARR_DATA", raising=False)
    with pytest.raises(SystemExit, match="DENOIZARR_DATA"):
        data_folder()


# ---- figures


@given(gain=st.floats(0.01, 100), offset=st.floats(-100, 100), seed=st.integers(0, 99))
def test_the_scale_invariant_psnr_is_that_of_the_best_gain_and_offset(gain, offset, seed):
    from image_quality.metrics import best_affine, psnr

    def scale_invariant(prediction):
        return psnr(truth, best_affine(truth, prediction))

    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 256, (12, 13)).astype(np.uint8)
    predicted = truth + generator.normal(0, 20, truth.shape)
    found = scale_invariant(predicted)
    assert scale_invariant(gain * predicted + offset) == pytest.approx(found)
    assert found >= psnr(truth, predicted)
    fitted = np.polyval(np.polyfit(predicted.ravel(), truth.ravel().astype(float), 1), predicted)
    assert found == pytest.approx(psnr(truth, fitted))
    for nearby in (0.99, 1.01):
        assert found >= psnr(truth, nearby * fitted)


def test_psnr_has_the_peak_of_eight_bits_and_its_distance_to_that_over_the_truths_range_is_known():
    from image_quality.metrics import above_own_range, psnr

    truth = np.array([[10, 60]], np.uint8)
    assert psnr(truth, truth + 25.5) == pytest.approx(20)
    assert psnr(truth, truth + 5.0) - above_own_range(truth) == pytest.approx(20)


def test_bias_is_of_a_bin_and_a_share_of_the_range_and_few_pixels_have_none():
    from image_quality.metrics import BIAS_BINS, BIN_PIXELS, bias

    truth = np.repeat(np.arange(0.0, 201.0), 40).reshape(-1, 40)
    found = bias(truth, np.where(truth > 150, truth - 10, truth))
    assert len(found) == BIAS_BINS
    assert [entry["bias"] for entry in found if entry["upper"] <= 150] == pytest.approx([0] * 12)
    assert [entry["bias"] for entry in found[-3:]] == pytest.approx([-5] * 3)
    truth[0, 0] = 1000
    truth = truth[:100]
    few = bias(truth, truth)
    assert all(entry["pixels"] >= BIN_PIXELS for entry in few)
    assert few[-1]["upper"] < 1000


def test_a_mean_given_the_output_is_unbiased_by_output_and_shrunk_by_truth():
    """The best guess of what is noisy: its values can be believed, though it loses some of every peak."""
    from image_quality.metrics import bias

    generator = np.random.default_rng(0)
    truth = generator.normal(100, 20, (400, 400))
    noisy = truth + generator.normal(0, 20, truth.shape)
    best_guess = (noisy + 100) / 2
    by_output = [entry["bias"] for entry in bias(truth, best_guess, by=best_guess)]
    by_truth = [entry["bias"] for entry in bias(truth, best_guess)]
    assert max(map(abs, by_output)) < 1
    assert by_truth[0] > 5
    assert by_truth[-1] < -5


@given(seed=st.integers(0, 50))
@settings(max_examples=5)
def test_rows_that_are_left_show_and_smoothness_does_not(seed):
    from image_quality.metrics import rows_left

    generator = np.random.default_rng(seed)
    truth = np.broadcast_to(smooth(), (4, 128, 128))
    white = generator.normal(0, 10, (4, 128, 129))
    rows = (white[:, :, 1:] + white[:, :, :-1]) / np.sqrt(2)  # .5 at x=1
    assert rows_left(truth + rows, truth + rows) == pytest.approx(0.5, abs=0.06)
    assert rows_left(truth + rows, truth) == pytest.approx(0, abs=0.06)
    assert rows_left(truth + white[:, :, 1:], truth + white[:, :, 1:]) == pytest.approx(0, abs=0.06)


# ---- what BM3D is told


def stabilised_noise(mean, gain, at_zero, generator, n=20000):
    counts = generator.poisson(mean / gain, n) * gain
    return counts + generator.normal(0, np.sqrt(at_zero), n)


@pytest.mark.parametrize("photons", [1.0, 3.0, 20.0])
def test_the_inverse_transform_is_unbiased_where_the_plain_one_is_not(photons):
    from image_quality.block_matching import anscombe, inverse

    gain, at_zero = 5.0, 20.0
    values = stabilised_noise(photons * gain, gain, at_zero, np.random.default_rng(0), 200_000)
    stabilised = anscombe(values, gain, at_zero).mean()
    assert inverse(stabilised, gain, at_zero) == pytest.approx(photons * gain, abs=0.2)
    plain = (stabilised**2 / 4 - 3 / 8 - at_zero / gain**2) * gain
    assert plain < photons * gain - 0.8


def test_gain_and_variance_at_zero_are_found_and_stabilise():
    from image_quality.block_matching import anscombe, noise_parameters

    generator = np.random.default_rng(1)
    truth = smooth((256, 256)) + 10
    noisy = stabilised_noise(truth, 4.0, 30.0, generator, truth.shape)
    gain, at_zero = noise_parameters(noisy)
    assert gain == pytest.approx(4, rel=0.1)
    assert at_zero == pytest.approx(30, abs=15)
    off = anscombe(noisy, gain, at_zero) - anscombe(truth, gain, at_zero)
    for part in np.array_split(np.argsort(truth.ravel()), 4):
        assert off.ravel()[part].std() == pytest.approx(1, abs=0.12)


def test_the_spectrum_of_flat_windows_is_that_of_the_noise():
    from image_quality.block_matching import flat_spectrum

    white = np.random.default_rng(2).normal(0, 3, (256, 260))
    rows = sum(white[:, k : k + 256] for k in range(4)) / 2
    spectrum = flat_spectrum(rows)
    assert spectrum.shape == (256, 256)
    assert spectrum.mean() / spectrum.size == pytest.approx(9, rel=0.2)
    low, high = spectrum[:, :20].mean(), spectrum[:, 120:136].mean()
    assert low > 10 * high
    flat = flat_spectrum(white[:, :256])
    assert flat[:, :20].mean() == pytest.approx(flat[:, 120:136].mean(), rel=0.25)


@given(period=st.floats(4, 12), amplitude=st.floats(10, 20), phase=st.floats(0, 6))
@settings(max_examples=8)
def test_a_sinusoid_is_found_with_its_period_and_taken_off(period, amplitude, phase):
    from image_quality.block_matching import sinusoid

    # As large as the images of the bench: in fewer columns structure shifts the peak.
    truth = smooth((512, 512))
    wave = amplitude * np.sin(2 * np.pi * np.arange(512) / period + phase)
    noisy = truth + wave + np.random.default_rng(3).normal(0, 10, truth.shape)
    line, found, height = sinusoid(noisy)
    assert found == pytest.approx(period, rel=0.02)
    assert height == pytest.approx(amplitude, rel=0.2)
    assert np.std(line[0] - wave) < 0.25 * amplitude


# ---- ours


@given(
    step=st.floats(0.05, 1),
    epoch=st.floats(0, 2),
    once=st.floats(0, 3),
    budget=st.floats(5, 500),
    most=st.integers(1, 30),
)
def test_a_training_fills_its_budget_and_does_not_pass_it(step, epoch, once, budget, most):
    from image_quality.our_networks import _PROBES, size

    def cost(epochs, steps):
        return once + epochs * (epoch + steps * step)

    epochs, steps = size(budget, most, {probe: cost(*probe) for probe in _PROBES})
    assert 1 <= epochs <= most
    assert steps >= 1
    if steps > 1:
        assert cost(epochs, steps) <= budget * 1.001
        assert cost(epochs, steps + 1) > budget * 0.999


@pytest.mark.parametrize(
    ("kernel", "found", "source"),
    [("found", np.ones((1, 1), bool), "stage1"), ("true", np.ones((1, 3), bool), "stage2")],
)
def test_a_kernel_that_changes_nothing_is_not_trained_again(tmp_path, monkeypatch, kernel, found, source):
    from image_quality import our_networks

    for number, name in enumerate(("noisy", "stage1", "stage2")):
        np.save(tmp_path / f"{name}.npy", np.full((4, 4), number))
    np.save(tmp_path / "kernel.npy", found)
    monkeypatch.setattr(our_networks, "_found", lambda *_: found)
    monkeypatch.setattr(our_networks, "_train", lambda *_: pytest.fail("trained"))
    told = {"kernel": kernel, "noisy": tmp_path / "noisy.npy", "true_kernel": tmp_path / "kernel.npy"}
    told |= {f"{stage}_array": tmp_path / f"{stage}.npy" for stage in ("stage1", "stage2")}
    told["found_kernel"] = found.astype(int).tolist() if kernel == "true" else None
    array, facts = our_networks.denoise(told)
    assert facts["same_as"] == {"stage1": "ours, stage 1", "stage2": "ours, stage 2"}[source]
    assert (array == {"stage1": 1, "stage2": 2}[source]).all()


# ---- what is kept


def a_case(scratch, noise=10.0):
    from image_quality.cases import Case

    case = Case("cells", "pair", "cells")
    truth = smooth((64, 64))
    case.noisy_path(scratch).parent.mkdir(parents=True)
    np.save(case.truth_path(scratch), truth)
    np.save(case.noisy_path(scratch), truth + np.random.default_rng(0).normal(0, noise, truth.shape))
    return case


def test_a_cell_runs_in_its_own_process_once_and_is_kept_whole(tmp_path):
    from harness import Place
    from image_quality.kept import Kept
    from image_quality.methods import BY_NAME, Cell
    from quality import run

    kept, case = Kept(tmp_path, 5), a_case(tmp_path)
    cells = [Cell(case, BY_NAME[name]) for name in ("raw", "gaussian")]
    assert kept.result(cells[0]) is None
    assert run(cells, kept, Place(tmp_path, tmp_path))
    raw, blurred = (kept.result(cell) for cell in cells)
    assert raw["psnr"] == pytest.approx(20 * np.log10(25.5), abs=0.2)
    assert blurred["psnr"] > raw["psnr"] + 5
    assert blurred["ssim"] > raw["ssim"]
    assert kept.array(cells[1]).shape == (64, 64)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.*")}
    assert sorted(path.suffix for path in written) == [".json", ".json", ".npy", ".npy"]
    assert run(cells, kept, Place(tmp_path, tmp_path))
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.*")}


def test_a_cell_that_fails_leaves_nothing_and_the_others_run(tmp_path, capsys):
    from harness import Place
    from image_quality.kept import Kept
    from image_quality.methods import BY_NAME, Cell, Method
    from quality import run

    kept, case = Kept(tmp_path, 5), a_case(tmp_path)
    broken = Method("broken", "broken", "filters", "no_such_function", trains=False)
    cells = [Cell(case, broken), Cell(case, BY_NAME["raw"])]
    assert not run(cells, kept, Place(tmp_path, tmp_path))
    assert "no_such_function" in capsys.readouterr().err
    assert kept.result(cells[0]) is None
    assert kept.result(cells[1]) is not None
    assert sorted(path.name for path in (tmp_path / "cells" / "cells").iterdir()) == ["raw.json", "raw.npy"]


def test_figures_of_an_older_definition_are_computed_again(tmp_path):
    from image_quality.kept import Kept
    from image_quality.methods import BY_NAME, Cell

    kept, cell = Kept(tmp_path, 5), Cell(a_case(tmp_path), BY_NAME["raw"])
    kept.path(cell, ".json").parent.mkdir(parents=True)
    np.save(kept.path(cell, ".npy"), np.load(cell.case.truth_path(tmp_path)) + 25.5)
    kept.path(cell, ".json").write_text(json.dumps({"psnr": 1.0, "version": 0, "steps": 7}))
    found = kept.result(cell)
    assert found["psnr"] == pytest.approx(20)
    assert found["steps"] == 7
    assert json.loads(kept.path(cell, ".json").read_text()) == found


def test_cells_of_another_budget_or_seed_lie_beside_and_those_without_training_have_neither(tmp_path):
    from image_quality.cases import PAIRS
    from image_quality.kept import Kept
    from image_quality.methods import BY_NAME, Cell

    def paths(name):
        method = BY_NAME[name]
        return {Kept(tmp_path, b).path(Cell(PAIRS[0], method, s), ".json") for b in (10, 240) for s in (0, 1)}

    assert len(paths("ours-stage1")) == 4
    assert len(paths("bm3d")) == 1


def test_a_cell_is_claimed_by_one_run_and_a_dead_run_claims_nothing(tmp_path):
    from image_quality.cases import PAIRS
    from image_quality.kept import Kept
    from image_quality.methods import BY_NAME, Cell

    kept, cell = Kept(tmp_path, 5), Cell(PAIRS[0], BY_NAME["raw"])
    with kept.claimed(cell) as first, kept.claimed(cell) as second:
        assert (first, second) == (True, False)
    with kept.claimed(cell) as again:
        assert again
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    kept.path(cell, ".claim").write_text(str(gone.pid))
    with kept.claimed(cell) as taken:
        assert taken
        assert kept.path(cell, ".claim").read_text() == str(os.getpid())


def test_what_a_cell_needs_comes_first_and_where_that_fails_it_is_not_tried(tmp_path, monkeypatch):
    import quality
    from image_quality.cases import BOXED_CASES
    from image_quality.kept import Kept
    from image_quality.methods import BY_NAME, Cell

    asked = []

    def measured(cell, *_):
        asked.append(cell.method.name)
        return cell.method.name != failing

    monkeypatch.setattr(quality, "_measure", measured)
    cell = Cell(BOXED_CASES[0], BY_NAME["ours-true"])
    failing = None
    assert quality.run([cell], Kept(tmp_path, 5), None)
    assert asked == ["ours-stage1", "ours-stage2", "ours-true"]
    asked.clear()
    failing = "ours-stage1"
    assert not quality.run([cell], Kept(tmp_path, 5), None)
    assert asked == ["ours-stage1"]


def test_only_the_gaussian_is_told_where_the_truth_is(tmp_path):
    from image_quality.cases import CASES
    from image_quality.kept import Kept
    from image_quality.methods import all_cells

    for case in CASES:
        case.noisy_path(tmp_path).parent.mkdir(exist_ok=True)
        np.save(case.noisy_path(tmp_path), np.zeros((8, 8)))
    for cell in all_cells((0,)):
        told = Kept(tmp_path, 5)._settings(cell, tmp_path / "model")
        assert ("truth.npy" in json.dumps(told)) == (cell.method.name == "gaussian" and cell.case.has_truth)


# ---- which cells


def test_words_choose_cases_and_methods():
    from image_quality.methods import all_cells
    from quality import chosen

    cells = all_cells((0, 1, 2))

    def names(*words, images=()):
        return {(c.case.name, c.method.name) for c in chosen(cells, list(words), list(images))}

    assert {case for case, _ in names("S_*")} == {c.case.name for c in cells if c.case.kind == "S"}
    assert {m for _, m in names("ours-*")} == {"ours-stage1", "ours-stage2", "ours-true"}
    assert names("careamics-n2v", "Confocal_MICE") == {("Confocal_MICE", "careamics-n2v")}
    of_image = {case for case, _ in names(images=["Confocal_MICE"])}
    assert of_image == {"Confocal_MICE", "S_Confocal_MICE", "L_Confocal_MICE"}
    with pytest.raises(ValueError, match="care-amics"):
        chosen(cells, ["care-amics"], [])


def test_seeds_beyond_the_first_are_for_what_trains_and_has_a_goal():
    from image_quality.methods import GOALS, all_cells

    cells = all_cells((0, 1, 2))
    later = [cell for cell in cells if cell.seed]
    assert {cell.case.name for cell in later} == {goal.case for goal in GOALS}
    assert all(cell.method.trains for cell in later)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert len({(c.case.name, c.method.name, c.seed) for c in cells}) == len(cells)


# ---- the page


def a_result(psnr, **more):
    bins = [{"lower": 0.0, "upper": 16.0, "pixels": 200, "bias": -0.5, "error": 0.1}]
    known = {"psnr": psnr, "si_psnr": psnr + 1, "ssim": 0.9, "si_ssim": 0.95, "bias": bins}
    from image_quality.metrics import VERSION

    return known | {"bias_by_output": bins, "cpu_seconds": 240.0, "version": VERSION} | more


def keep(kept, case, method, seed, result):
    from image_quality.cases import CASES
    from image_quality.methods import BY_NAME, Cell

    path = kept.path(Cell(next(c for c in CASES if c.name == case), BY_NAME[method], seed), ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))


def test_an_interval_covers_the_mean_it_is_of_95_times_in_100():
    from image_quality.comparison import interval

    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        mean, half = interval(list(generator.normal(3, 2, 8)))
        hits += abs(mean - 3) <= half
    assert 930 <= hits <= 970
    assert np.isnan(interval([1.0])[1])


def test_the_page_of_part_of_the_cells_says_what_is_there_and_what_is_not(tmp_path, monkeypatch):
    from image_quality import table
    from image_quality.cases import BOXED_CASES, PAIRS
    from image_quality.kept import Kept

    monkeypatch.setattr(table, "draw_all", lambda *_: None)
    kept = Kept(tmp_path / "scratch", 240)
    for number, case in enumerate(PAIRS):
        keep(kept, case.name, "ours-stage2", 0, a_result(38.0 + number, steps=900))
        keep(kept, case.name, "careamics-n2v", 0, a_result(37.5 + number - (number == 3), steps=900))
    keep(kept, "Confocal_MICE", "ours-stage2", 1, a_result(44.0, steps=900, cpu_seconds=260.0))
    same = {"same_as": "ours, stage 2", "kernel": np.ones((1, 17), int).tolist()}
    for case in BOXED_CASES[:2]:
        keep(kept, case.name, "ours-stage2", 0, a_result(34.0, kernel=same["kernel"], steps=900))
        keep(kept, case.name, "ours-true", 0, a_result(34.0, **same))
        keep(kept, case.name, "ours-stage1", 0, a_result(28.0, steps=900))
    out = tmp_path / "docs" / "quality.md"
    table.write(kept, (0, 1), out, "python benchmarks/quality.py")
    page = out.read_text()
    assert (out.parent / "quality-bias.png").stat().st_size > 1000
    assert "python benchmarks/quality.py" in page

    def row(beginning):
        # The last: the table of all cells comes after those of a kind.
        found = [line for line in page.splitlines() if line.startswith(f"| {beginning} |")][-1]
        return [part.strip() for part in found.strip("|").split("|")]

    # (42 + 44) / 2 for Confocal_MICE, two seeds.
    assert row("Confocal_MICE | PSNR")[2:6] == ["37.5", "43.00 (42.00 to 44.00)", "2", "yes"]
    assert row("L_Confocal_MICE | PSNR")[3:6] == ["–", "0", "–"]
    ahead = row("pairs, PSNR: ours less CAREamics N2V")
    assert ahead[1] == f"+{(8 * 0.5 + 1 + 1) / 8:.2f}"
    assert ahead[3:] == ["+0.50 (Confocal_BPAE_B)", "8 of 8", "each at least 0, mean at least 0.4", "yes"]
    cost = row("S: found less true kernel")
    assert cost[1:5] == ["+0.00", "+0.00 to +0.00", "+0.00 (S_Confocal_BPAE_B)", "2 of 8"]
    assert row("S: stage 2 less stage 1")[-1] == "yes, so far"
    assert row("pairs, PSNR: ours less BM3D")[1:] == ["–", "–", "–", "0 of 8", "mean at least −0.1", "–"]
    assert row("Confocal_MICE | ours, stage 2")[-1] == "**8 % over the budget**"
    remark = row("S_Confocal_BPAE_B | ours, true kernel")[-1]
    assert remark == "kernel 1 x 17; the same training as ours, stage 2"
    lacking = page[page.index("## Not measured") :]
    assert "- BM3D: all pairs, all S cases, L_Confocal_MICE, sem-shale" in lacking
    assert "ours, stage 1: all pairs (seed 0)" in lacking
    assert "nan" not in page


def test_a_goal_is_missed_by_the_least_of_the_images_too(tmp_path, monkeypatch):
    from image_quality import table
    from image_quality.cases import PAIRS
    from image_quality.kept import Kept

    monkeypatch.setattr(table, "draw_all", lambda *_: None)
    kept = Kept(tmp_path, 240)
    for number, case in enumerate(PAIRS):
        keep(kept, case.name, "ours-stage2", 0, a_result(38.0))
        keep(kept, case.name, "careamics-n2v", 0, a_result(38.1 if number == 0 else 35.0))
    table.write(kept, (0,), tmp_path / "quality.md", "")
    (row,) = [
        line
        for line in (tmp_path / "quality.md").read_text().splitlines()
        if line.startswith("| pairs, PSNR: ours less CAREamics")
    ]
    assert "−0.10 (Confocal_BPAE_B)" in row
    assert row.endswith("| **no** |")


@pytest.mark.slow
def test_both_stages_train_within_a_small_budget(tmp_path):
    from harness import Place
    from image_quality.cases import Case
    from image_quality.kept import Kept
    from image_quality.methods import BY_NAME, Cell
    from quality import run

    case = Case("S_cells", "S", "cells")
    from image_quality.cases import with_noise

    truth = smooth((256, 256)).astype(np.float32)
    case.noisy_path(tmp_path).parent.mkdir(parents=True)
    np.save(case.truth_path(tmp_path), truth)
    np.save(case.noisy_path(tmp_path), with_noise(case, truth))
    kept = Kept(tmp_path, 4)
    assert run([Cell(case, BY_NAME["ours-true"])], kept, Place(tmp_path, tmp_path))
    stage1, stage2 = (kept.result(Cell(case, BY_NAME[name])) for name in ("ours-stage1", "ours-stage2"))
    assert stage1["steps"] >= 1
    assert np.shape(stage2["kernel"])[1] > 9
