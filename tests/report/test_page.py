from __future__ import annotations

import base64
import html
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml

from denoizarr.errors import BadRequest, ImageNotFound, NoSpace
from denoizarr.figures.canvas import new_canvas
from denoizarr.report import page as page_module
from denoizarr.report import sections
from denoizarr.report.image_pairs import image_pairs
from denoizarr.report.page import write_report
from denoizarr.report.patch_planes import origins_near
from denoizarr.report.planes import read_planes
from denoizarr.selection.patch_index import PatchIndex
from denoizarr.stores import locations
from denoizarr.stores.records import read_json, write_json

PATCH = 16
RESIDUAL = {"residual", "signal_loss", "residual_by_intensity"}
KERNEL = {"noise_kernel", "noise_z_scores"}
FIGURES = {"comparison", "patches", "filter_map", "training"} | KERNEL | RESIDUAL


@pytest.fixture(autouse=True)
def drawn(request, monkeypatch):
    """Pictures take seconds to render; only tests marked so look at real ones."""
    if "real_pictures" not in request.fixturenames:
        titles = lambda figure: b"\x89PNG" + figure.get_suptitle().encode()  # noqa: E731
        monkeypatch.setattr(sections, "png_of", titles)
        # Each has tests of its own, and is drawn in full where pictures are real.
        for name in ("residual_figure", "signal_loss_figure", "intensity_profile_figure", "z_score_figure"):
            monkeypatch.setattr(sections, name, lambda *_, name=name, **__: new_canvas(name, ""))


@pytest.fixture
def real_pictures():
    pass


class Tags(HTMLParser):
    """All tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def read(url):
    with open(url, encoding="utf-8") as file:  # noqa: PTH123
        return file.read()


def words_of(text):
    return " ".join(" ".join(Tags(text).words).split())


def written(run):
    return {path.stem for path in (run / "figures").glob("*.png")}


def test_a_whole_run_has_every_figure_and_section(make_run, real_pictures):
    run = make_run()
    url = write_report(run)
    assert url == str(run / "report.html")
    text = read(url)
    assert written(run) == FIGURES
    sections = [attrs["id"] for tag, attrs in Tags(text).tags if tag == "section"]
    assert sections == [
        "outcome", "comparison", "patches", "training", "kernel", "residual",
        "steps", "settings", "provenance",
    ]  # fmt: skip
    assert "left out" not in words_of(text)
    assert "Look at this" not in text


def test_the_page_needs_nothing_but_itself(make_run):
    text = read(write_report(make_run()))
    tags = Tags(text).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "embed", "base"}
    links = [
        value
        for _, attrs in tags
        for key, value in attrs.items()
        if key in ("src", "href", "srcset", "action")
    ]
    assert links
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert not re.search(r"https?://|@import|url\(", text)


def test_the_pictures_in_the_page_are_the_files(make_run):
    run = make_run()
    text = read(write_report(run))
    embedded = {
        base64.b64decode(part) for part in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", text)
    }
    assert embedded == {path.read_bytes() for path in (run / "figures").glob("*.png")}


def test_the_first_paragraph_says_what_came_out(make_run):
    text = words_of(read(write_report(make_run())))
    assert "3 planes of 90 × 120 pixels (y × x), uint16" in text
    assert "written as uint16" in text
    assert "up to 2 pixels along x: to predict a pixel, stage 2 hides 4 pixels around it" in text
    before = re.search(
        r"levels varied by ([\d.]+) \(one standard deviation\) before and vary by ([\d.]+) after", text
    )
    assert float(before[1]) == pytest.approx(10, rel=0.15)
    assert float(before[2]) == 0
    assert "The whole job took 61.5 s" in text


def test_steps_settings_and_provenance_are_listed(make_run):
    text = words_of(read(write_report(make_run())))
    assert "inference 61.5 s yes 4 of 9 blocks" in text
    assert "run_stage1: true" in text
    assert "packages.denoizarr 1.2.3" in text


def test_a_run_without_stage_2_says_so(make_run):
    run = make_run(stages=("stage1",), kernel=(1, 1))
    text = words_of(read(write_report(run)))
    assert "the kernel is a single pixel" in text
    assert "stage 2 was skipped" in text
    assert written(run) == FIGURES


def test_noise_that_cannot_be_told_from_structure_is_not_called_random(make_run):
    run = make_run(stages=("stage1",), kernel=(1, 1))
    kernel = read_json(run / "noise_kernel.json")
    write_json(run / "noise_kernel.json", {**kernel, "note": "structure everywhere"})
    text = words_of(read(write_report(run)))
    assert "could be told from the image (structure everywhere)" in text
    assert "random from pixel to pixel" not in text


def test_a_mask_from_a_file_is_not_called_measured(make_run, monkeypatch):
    run = make_run()
    kernel = read_json(run / "noise_kernel.json")
    write_json(run / "noise_kernel.json", {**kernel, "source": "file"})
    assert "By the mask given in a file" in words_of(read(write_report(run)))
    assert "noise_z_scores" not in written(run)


def test_a_run_that_asked_for_stage_1_only_says_so(make_run):
    run = make_run(stages=("stage1",), kernel=None)
    text = words_of(read(write_report(run)))
    assert "Stage 2 was not asked for" in text
    assert "the run had no second stage" in text
    assert written(run) == FIGURES - KERNEL


def test_a_run_of_stage_2_only_says_so(make_run):
    text = words_of(read(write_report(make_run(stages=("stage2",)))))
    assert "Stage 1 was not run" in text


def test_without_a_patch_filter_the_page_says_so(make_run):
    run = make_run(patch_filter=False)
    assert "No patch filter was used" in words_of(read(write_report(run)))
    assert "filter_map" not in written(run)


@pytest.mark.parametrize("dims", ["yx", "cyx", "tczyx", "tyx"])
def test_images_of_any_dims_are_shown(make_run, dims):
    run = make_run(dims=dims)
    text = words_of(read(write_report(run)))
    assert written(run) == FIGURES
    assert "left out" not in text


def test_of_several_images_the_first_is_shown_and_the_rest_listed(make_run):
    run = make_run(names=("first", "second", "third"))
    text = words_of(read(write_report(run)))
    assert "Denoising report: first and 2 more images" in text
    assert "second denoised/second.ome.zarr third denoised/third.ome.zarr" in text
    assert written(run) == FIGURES


def test_the_kept_first_stage_is_shown(make_run, monkeypatch):
    shown = []
    real = page_module.findings_of
    monkeypatch.setattr(
        page_module, "findings_of", lambda planes, mask: shown.append(planes) or real(planes, mask)
    )
    write_report(make_run(keep_stage1=True))
    assert shown[0].stage1 is not None


def test_a_run_that_stopped_before_inference_can_be_looked_at(make_run):
    run = make_run(denoised=False)
    text = words_of(read(write_report(run)))
    assert "has no finished result yet" in text
    assert "denoised has not been written" in text
    assert written(run) == FIGURES - RESIDUAL - {"comparison"}


@pytest.mark.parametrize(
    "piece",
    ["job.yaml", "summary.json", "provenance.json", "statistics.json", "noise_kernel.json",
     "stage1/train.csv", "stage1/index.zarr", "stage2/index.zarr", "stage1", "filter_map.zarr",
     "denoised.ome.zarr"],
)  # fmt: skip
def test_any_missing_piece_is_left_out(make_run, piece):
    run = make_run()
    path = run / piece
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = read(write_report(run))
    assert "</html>" in text
    assert "comparison" in written(run) or piece == "denoised.ome.zarr"


@pytest.mark.parametrize(
    "piece",
    [
        "summary.json",
        "provenance.json",
        "statistics.json",
        "noise_kernel.json",
        "stage1/index.zarr/zarr.json",
    ],
)
@pytest.mark.parametrize("content", [b"{", b"[1]", b"{}", b"\xff"])
def test_any_damaged_piece_is_left_out_and_named(make_run, piece, content):
    run = make_run()
    (run / piece).write_bytes(content)
    text = words_of(read(write_report(run)))
    if content != b"{}":
        assert "could not be read" in text


def test_hostile_records_do_not_break_the_page(make_run):
    run = make_run()
    write_json(
        run / "summary.json",
        {"steps": [3, None, {"seconds": "soon"}], "images": 7, "changes": "all", "warnings": {}},
    )
    write_json(run / "provenance.json", {"a": {"b": [{"c": [1, 2]}, None]}, "packages": []})
    write_json(run / "statistics.json", {"images": [[]], "channels": 3})
    (run / "stage1" / "train.csv").write_bytes(b"\x00,\xff\nepoch")
    assert "</html>" in read(write_report(run))


def test_everything_from_data_is_escaped(make_run):
    evil = "<script>alert('x')</script>\"'&<img src=x onerror=y>"
    run = make_run(summary={"warnings": [evil], "changes": [evil]})
    summary = read_json(run / "summary.json")
    summary["steps"] = [{"name": evil, "seconds": 1, "resumed": False, "note": evil}]
    summary["images"][0]["name"] = evil.replace("/", "")
    write_json(run / "summary.json", summary)
    write_json(run / "provenance.json", {evil: evil, "begun": evil, "packages": {"denoizarr": evil}})
    text = read(write_report(run))
    assert "<script" not in text
    assert not [attrs for tag, attrs in Tags(text).tags if tag == "img" and "onerror" in attrs]
    assert text.count(html.escape(evil, quote=False)[:20]) >= 6


def test_no_network_is_allowed_even_if_something_slipped_through(make_run):
    metas = [attrs for tag, attrs in Tags(read(write_report(make_run()))).tags if tag == "meta"]
    policy = next(attrs["content"] for attrs in metas if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_credentials_are_not_shown(make_run):
    run = make_run()
    with (run / "job.yaml").open("a") as file:
        file.write(
            "cluster: {address: 'tls://me:hunter2@host:8786', api_token: hunter3}\n"
            "extra: ['s3://k:hunter4@b/x?sig=hunter5']\n"
        )
    write_json(run / "provenance.json", {"secret_access_key": "hunter6"})
    text = read(write_report(run))
    assert "hunter" not in text
    assert "host:8786" in text


def test_warnings_of_the_run_are_on_top(make_run):
    run = make_run(
        summary={
            "warnings": ["mind the gap"],
            "missing_chunks": 3,
            "blocks_failed": 1,
            "changes": ["unit of t"],
        }
    )
    text = words_of(read(write_report(run)))
    for sentence in (
        "mind the gap",
        "3 chunks of the input",
        "1 block failed",
        "Not kept from the input: unit of t",
    ):
        assert sentence in text


def test_lost_signal_is_warned_of(make_run):
    run = make_run()
    array = locations.open_group(run / "denoised.ome.zarr", "a")["0"]
    array[...] = np.full(array.shape, 140, array.dtype)
    text = words_of(read(write_report(run)))
    assert "beyond the noise kernel: look for structure" in text


def test_nothing_removed_is_warned_of(make_run):
    run = make_run()
    shutil.rmtree(run / "denoised.ome.zarr")
    shutil.copytree(read_json(run / "summary.json")["images"][0]["url"], run / "denoised.ome.zarr")
    assert "Little noise was removed" in words_of(read(write_report(run)))


def test_the_page_is_replaced_whole_or_not_at_all(make_run, monkeypatch):
    run = make_run()
    first = read(write_report(run))
    real = locations.put

    def full_disk(url, data):
        if str(url).endswith(".html"):
            raise NoSpace("the disk is full")
        real(url, data)

    monkeypatch.setattr(page_module.locations, "put", full_disk)
    with pytest.raises(NoSpace):
        write_report(run)
    assert read(run / "report.html") == first
    assert [path.name for path in run.glob("report*")] == ["report.html"]


def test_the_page_is_written_in_one_put(make_run, monkeypatch):
    puts = []
    real = locations.put
    monkeypatch.setattr(
        page_module.locations, "put", lambda url, data: (puts.append(str(url)), real(url, data))
    )
    run = make_run()
    puts.clear()
    write_report(run)
    assert puts.count(str(run / "report.html")) == 1
    assert puts[-1] == str(run / "report.html")


def test_writing_it_again_gives_the_same_bytes(make_run, real_pictures):
    run = make_run()
    assert read(write_report(run)) == read(write_report(run))


def test_a_moved_run_folder_still_reports(make_run, tmp_path):
    run = make_run()
    moved = tmp_path / "elsewhere"
    run.rename(moved)
    assert "left out" not in words_of(read(write_report(moved)))


def test_nothing_there_and_something_else_there_are_refused(tmp_path):
    with pytest.raises(ImageNotFound):
        write_report(tmp_path / "nothing")
    with pytest.raises(BadRequest, match="not a run folder"):
        write_report(tmp_path)


def test_a_run_with_a_target_says_so(make_run):
    run = make_run(stages=("stage1",), kernel=None)
    job = yaml.safe_load((run / "job.yaml").read_text())
    (run / "job.yaml").write_text(yaml.safe_dump({**job, "target": {"url": "/somewhere/clean.ome.zarr"}}))
    text = words_of(read(write_report(run)))
    assert "The network was trained to predict the target image" in text
    assert "with a target" in text
    assert "Training with a target. " in text
    assert "a target was given" in text
    for wrong in ("Stage 2 was not asked for", "random noise", "Little noise was removed"):
        assert wrong not in text
    # The target may be on other grey levels: a ratio of noise, or raw minus result, would mean nothing.
    assert "What was removed is not checked" in text
    for wrong in ("Noise in flat parts", "(one standard deviation)"):
        assert wrong not in text
    assert written(run) == FIGURES - RESIDUAL - KERNEL


def test_the_result_of_a_target_is_not_drawn_at_the_raw_images_contrast(make_run, monkeypatch):
    asked = []
    real = sections.comparison_figure
    monkeypatch.setattr(
        sections, "comparison_figure", lambda *planes, **rest: asked.append(rest) or real(*planes, **rest)
    )
    for target in (False, True):
        run = make_run(stages=("stage1",), kernel=None)
        if target:
            job = yaml.safe_load((run / "job.yaml").read_text())
            (run / "job.yaml").write_text(yaml.safe_dump({**job, "target": {"url": "/clean.ome.zarr"}}))
        write_report(run)
        shutil.rmtree(run)
    assert [rest["other_grey_levels"] for rest in asked] == [False, True]


def test_sample_predictions_of_the_first_and_the_last_epoch_are_shown(make_run):
    run = make_run()
    for stage, epochs in (("stage1", (1, 2, 10)), ("stage2", (1,))):
        (run / stage / "samples").mkdir()
        for epoch in epochs:
            (run / stage / "samples" / f"epoch-{epoch:04d}.png").write_bytes(b"\x89PNG of %d" % epoch)
    write_report(run)
    shown = {path.stem: path.read_bytes() for path in (run / "figures").glob("samples_*.png")}
    assert shown == {
        "samples_stage1_epoch-0001": b"\x89PNG of 1",
        "samples_stage1_epoch-0010": b"\x89PNG of 10",
        "samples_stage2_epoch-0001": b"\x89PNG of 1",
    }
    assert base64.b64encode(b"\x89PNG of 10").decode() in (run / "report.html").read_text()


def test_volumes_as_patches_are_drawn_where_they_pass_through_the_plane(make_run):
    run = make_run(patch=(2, PATCH, PATCH))
    write_report(run)
    assert {"patches", "filter_map"} <= {path.stem for path in (run / "figures").glob("*.png")}
    planes = read_planes(image_pairs(str(run), yaml.safe_load((run / "job.yaml").read_text()), {})[0])
    index = PatchIndex.open(str(run / "stage1" / "index.zarr"))
    drawn = index.sample(40_000, 0)
    assert set(drawn[:, 0]) == {0, 1}
    for z, passing in ((0, {0}), (1, {0, 1}), (2, {1})):
        origins, _ = origins_near(index, replace(planes, position={"z": z}))
        expected = drawn[np.isin(drawn[:, 0], list(passing)), 1:] - planes.corner
        np.testing.assert_array_equal(origins, expected)


def test_how_the_kernel_was_measured_is_told(make_run):
    text = words_of(read(write_report(make_run())))
    assert "Measured in 200 windows" in text
    assert "of the raw image, by the method “significance”" in text
    assert "repeats every" not in text


def test_periods_are_told(make_run):
    run = make_run()
    kernel = read_json(run / "noise_kernel.json")
    write_json(run / "noise_kernel.json", {**kernel, "periods": [8.0, 3.5]})
    text = words_of(read(write_report(run)))
    assert "A pattern repeats every 8 and 3.5 pixels" in text
    assert "periodic: auto" in text


def test_lines_that_were_taken_away_are_no_residual(make_run):
    run = make_run()
    source = read_json(run / "summary.json")["images"][0]["url"]
    frequency, amplitude = (0.0, 0.125), 12.0
    lines = run.parent / "lines.ome.zarr"
    shutil.copytree(source, lines)
    array = locations.open_group(lines, "a")["0"]
    wave = amplitude * np.cos(2 * np.pi * frequency[1] * np.arange(array.shape[-1]))
    array[...] = (np.asarray(array[...]) + wave).round().astype(array.dtype)
    summary = read_json(run / "summary.json")
    summary["images"][0]["url"] = str(lines)
    write_json(run / "summary.json", summary)
    assert "where it should not be, most at" in words_of(read(write_report(run)))
    line = {
        "frequency": frequency,
        "period": 8.0,
        "harmonic": 1,
        "significance": 50.0,
        "amplitude": amplitude,
    }
    numbers = [*frequency, amplitude, 0.0] * array.shape[0]
    entry = {"name": "brain", "frequencies": [frequency], "leading": [array.shape[0]], "waves": numbers}
    write_json(run / "periodic.json", {"note": "found", "lines": [line], "images": [entry]})
    text = words_of(read(write_report(run)))
    assert "A pattern repeats every 8 pixels (amplitude 12 grey levels)" in text
    assert "where it should not be, most at" not in text


@pytest.mark.parametrize("record", [b"{", b"[]", b'{"images": [{}], "lines": 3}', b'{"lines": [3]}'])
def test_a_damaged_record_of_lines_does_not_break_the_page(make_run, record):
    run = make_run()
    (run / "periodic.json").write_bytes(record)
    assert "</html>" in read(write_report(run))


def test_the_gauge_and_the_noise_left_are_told(make_run):
    text = words_of(read(write_report(make_run())))
    assert "The gauge of signal loss reads “good”" in text
    assert "structure that the next plane, whose noise is independent, shows too" in text
    assert "Signal loss good" in text
    # The noise of the fixture is white, though its kernel is a row.
    assert "Correlation at 1 pixel along x, less that at 1 pixel along y" in text
    assert "hardly any is left" in text


def test_of_one_plane_the_gauge_says_that_it_is_rough(make_run):
    text = words_of(read(write_report(make_run(dims="yx"))))
    assert "There is no second plane of independent noise" in text


def test_signal_that_is_removed_is_warned_of(make_run):
    run = make_run()
    array = locations.open_group(run / "denoised.ome.zarr", "a")["0"]
    values = np.asarray(array[...]).astype(float)
    array[...] = (values.mean() + 0.7 * (values - values.mean())).round().astype(array.dtype)
    text = words_of(read(write_report(run)))
    assert re.search("Signal is being removed: (29|30|31) % of the local contrast", text)
    assert "reads “signal is being removed”" in text


def test_intensities_are_compared_with_a_known_truth(make_run):
    run = make_run()
    write_json(run / "truth.json", {"url": "denoised.ome.zarr"})
    text = read(write_report(run))
    assert "the largest mean error of any intensity is 0 %" in words_of(text)
    assert written(run) == FIGURES | {"intensity_bias"}
    assert [attrs["id"] for tag, attrs in Tags(text).tags if tag == "section"][5:7] == ["residual", "bias"]


@pytest.mark.parametrize("record", [{"url": "/nowhere.ome.zarr"}, {}, {"url": 3}])
def test_a_truth_that_cannot_be_read_is_left_out(make_run, record):
    run = make_run()
    write_json(run / "truth.json", record)
    text = words_of(read(write_report(run)))
    assert "The comparison with the truth is left out: it could not be read" in text
    assert ("nothing lies where truth.json says" in text) == ("url" in record)
    assert written(run) == FIGURES
