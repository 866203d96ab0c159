from __future__ import annotations

import numpy as np
import pytest

from denoizarr.errors import BadRequest
from denoizarr.images.save import save_image
from denoizarr.report import planes as planes_module
from denoizarr.report import words
from denoizarr.report.image_pairs import ImagePair, image_pairs, short_name
from denoizarr.report.planes import read_neighbours, read_planes, read_truth
from denoizarr.stores.sources import ImageReader


def pair_of(tmp_path, array):
    for name in ("raw", "denoised"):
        save_image(array, tmp_path / f"{name}.ome.zarr")
    return ImagePair(
        "raw", str(tmp_path / "raw.ome.zarr"), str(tmp_path / "denoised.ome.zarr"), None, 0, None
    )


def test_one_plane_of_a_stack_is_read(tmp_path, monkeypatch):
    boxes = []
    real = ImageReader.read
    monkeypatch.setattr(ImageReader, "read", lambda self, box: boxes.append(box) or real(self, box))
    stack = np.arange(5 * 40 * 50, dtype=np.uint16).reshape(5, 40, 50)
    pair = pair_of(tmp_path, stack)
    boxes.clear()
    planes = read_planes(pair)
    np.testing.assert_array_equal(planes.raw, stack[2])
    assert {box.shape for box in boxes} == {(1, 40, 50)}
    assert planes.where() == "plane z = 2 of 5"
    assert planes.whole


def test_of_a_large_plane_the_middle_is_read_from_a_cell_on(tmp_path, monkeypatch):
    monkeypatch.setattr(planes_module, "LARGEST_SIDE", 32)
    stack = np.arange(100 * 90, dtype=np.uint16).reshape(100, 90)
    planes = read_planes(pair_of(tmp_path, stack), align=(8, 8))
    assert planes.corner == (32, 24)
    np.testing.assert_array_equal(planes.raw, stack[32:64, 24:56])
    np.testing.assert_array_equal(planes.denoised, planes.raw)
    assert planes.where() == "the middle 32 × 32 pixels of the image"


def test_a_result_of_another_shape_is_a_problem_not_a_picture(tmp_path):
    pair = pair_of(tmp_path, np.arange(2000, dtype=np.uint16).reshape(40, 50))
    save_image(np.ones((40, 51), np.uint16), tmp_path / "denoised.ome.zarr", overwrite=True)
    planes = read_planes(pair)
    assert planes.denoised is None
    assert "another shape" in planes.problems[0]


def test_globs_and_lists_are_resolved(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.ome.zarr").mkdir()
    pairs = image_pairs("/run", {"input": {"url": str(tmp_path / "*.ome.zarr"), "level": 1}}, {})
    assert [pair.name for pair in pairs] == ["a", "b"]
    assert [pair.denoised for pair in pairs] == ["/run/denoised/a.ome.zarr", "/run/denoised/b.ome.zarr"]
    assert {pair.level for pair in pairs} == {1}


def test_one_image_lies_at_the_top_of_the_run():
    (pair,) = image_pairs("/run", {"input": "/in/a.ome.zarr"}, {})
    assert (pair.name, pair.source, pair.denoised, pair.stage1) == (
        "a",
        "/in/a.ome.zarr",
        "/run/denoised.ome.zarr",
        None,
    )


@pytest.mark.parametrize(("url", "name"), [("/a/b.ome.zarr", "b"), ("s3://x/c.zarr/", "c"), ("d", "d")])
def test_short_names(url, name):
    assert short_name(url) == name


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (words.number(1234.5), "1,234"),
        (words.number(-0.0181, 2), "−0.018"),
        (words.number(0), "0"),
        (words.percent(0.0214), "2.1 %"),
        (words.percent(0.5), "50 %"),
        (words.duration(61.5), "61.5 s"),
        (words.duration(600), "10 min"),
        (words.duration(3 * 3600), "3.0 h"),
        (words.byte_size(5.7e6), "5.7 MB"),
        (words.byte_size(2e12), "2 TB"),
        (words.sizes("tczyx", (2, 1, 26, 10, 20)), "2 time points × 26 planes of 10 × 20 pixels (y × x)"),
        (words.plural(1, "chunk"), "1 chunk"),
    ],
)
def test_numbers_read_as_people_say_them(made, text):
    assert made == text


def test_the_middle_of_neighbours_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(planes_module, "LARGEST_NEIGHBOUR", 16)
    stack = np.arange(9 * 40 * 50, dtype=np.uint16).reshape(9, 40, 50)
    pair = pair_of(tmp_path, stack)
    planes = read_neighbours(pair, read_planes(pair))
    assert planes.core == (slice(12, 28), slice(17, 33))
    assert len(planes.neighbours) == 3
    for gap, (raw, denoised) in enumerate(planes.neighbours, start=1):
        np.testing.assert_array_equal(raw, stack[(4 + gap, *planes.core)])
        np.testing.assert_array_equal(denoised, raw)


@pytest.mark.parametrize(("depth", "numbers"), [(1, []), (2, [0]), (3, [2]), (5, [3, 4])])
def test_at_the_end_of_a_stack_neighbours_are_those_that_there_are(tmp_path, depth, numbers):
    stack = np.arange(depth * 40 * 50, dtype=np.uint16).reshape(depth, 40, 50)
    pair = pair_of(tmp_path, stack)
    planes = read_neighbours(pair, read_planes(pair))
    assert len(planes.neighbours) == len(numbers)
    for number, (raw, _) in zip(numbers, planes.neighbours, strict=True):
        np.testing.assert_array_equal(raw, stack[number])


def test_a_truth_is_read_at_the_place_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(planes_module, "LARGEST_SIDE", 32)
    stack = np.arange(3 * 100 * 90, dtype=np.uint16).reshape(3, 100, 90)
    pair = pair_of(tmp_path, stack)
    planes = read_planes(pair, align=(8, 8))
    np.testing.assert_array_equal(read_truth(pair.denoised, planes), planes.raw)
    save_image(np.ones((3, 100, 91), np.uint16), tmp_path / "other.ome.zarr")
    with pytest.raises(BadRequest, match="another shape"):
        read_truth(str(tmp_path / "other.ome.zarr"), planes)
