from __future__ import annotations

import json
import re

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from denoizarr.errors import (
    BadRequest,
    EmptyIndex,
    IncompleteOutput,
    ModelError,
    OutputExists,
    PatchTooLarge,
)
from denoizarr.selection import index_builder
from denoizarr.selection.filters import (
    MaskPatchFilter,
    MaxPatchFilter,
    MeanStdPatchFilter,
    ShannonPatchFilter,
)
from denoizarr.selection.image_scores import ScorePlaces, score_image
from denoizarr.selection.index_builder import build_index, index_of
from denoizarr.selection.index_settings import checked_settings
from denoizarr.selection.patch_index import PatchIndex
from denoizarr.selection.regions_of_interest import RegionOfInterest
from denoizarr.selection.weighted import RUN
from denoizarr.stores.images import as_image


def half_bright(shape=(2, 100, 128), seed=0):
    """Background in the left half."""
    rng = np.random.default_rng(seed)
    image = rng.poisson(5, shape).astype(np.uint16)
    image[..., shape[-1] // 2 :] += rng.poisson(300, image[..., shape[-1] // 2 :].shape).astype(np.uint16)
    return image


def measured(image, patch, places=None, **options):
    """Settings and scores of one image, a step at a time, as a pipeline does it."""
    plain = {"patch_filter": None, "mask": None, "roi": None, "filtered_patch_prob": 0.1, "seed": 0}
    settings = checked_settings([as_image(image)], patch, **{**plain, **options})
    return settings, [score_image(as_image(image), settings, places=places, progress=False)]


def fields_of(index):
    names = ("patch_size", "dims", "shapes", "classes", "table", "images", "axes", "settings", "jitter")
    return {name: getattr(index, name) for name in names}


def with_classes(index, *classes, **fields):
    """An index of the same images with other classes."""
    return PatchIndex(**{**fields_of(index), "classes": [np.asarray(c) for c in classes], **fields})


def filtered(image, **settings):
    return build_index(image, 16, patch_filter=MaxPatchFilter(150), **settings)


def test_weights_are_one_or_the_probability_of_background():
    image = half_bright()
    index = filtered(image, filtered_patch_prob=0.25)
    keep = MaxPatchFilter.apply_filter(MaxPatchFilter.filter_map(image, 16), 150).values
    assert index.weights.dims == ("z", "y", "x")
    assert index.weights.dtype == np.float32
    np.testing.assert_array_equal(index.weights.values, np.where(keep, 1, 0.25))
    np.testing.assert_array_equal(index.weights.y, MaxPatchFilter.filter_map(image, 16).y)
    background = int((~keep).sum())
    assert index.n_cells == keep.size == 2 * 7 * 8
    assert index.n_patches == round(keep.sum() + 0.25 * background)
    assert index.summary() == (
        f"Found {background} background regions. "
        f"Number of patches has been reduced to {index.n_patches} from {index.n_cells}."
    )


def test_where_nothing_is_filtered_nothing_is_said_to_be_reduced():
    image = half_bright()
    index = build_index(image, 16)
    assert index.summary() == f"{index.n_cells} patches."
    for more in ({"patch_filter": MaxPatchFilter(0)}, {"mask": np.ones(image.shape, bool)}):
        assert build_index(image, 16, **more).summary().startswith("Found 0 background regions. Number of")


def test_a_filter_without_threshold_chooses_it_from_the_map():
    image = half_bright()
    found = ShannonPatchFilter.filter_map(image, 16)
    index = build_index(image, 16, patch_filter=ShannonPatchFilter())
    assert index.settings["threshold"] == ShannonPatchFilter.suggest_threshold(found)
    assert index.settings["name"] == "shannon"
    pair = build_index(image, 16, patch_filter=MeanStdPatchFilter())
    assert pair.settings["mean_threshold"] == MeanStdPatchFilter.suggest_threshold(
        MeanStdPatchFilter.filter_map(image, 16)
    )


def test_a_map_with_channels_is_indexed_by_the_reference_channel():
    image = xr.DataArray(np.stack([half_bright(), half_bright()[..., ::-1]]), dims=("c", "z", "y", "x"))
    for channel in range(2):
        chosen = MaxPatchFilter(150, ref_channel=channel)
        direct = build_index(image, 16, patch_filter=chosen)
        settings, scores = measured(image, (16, 16), patch_filter=chosen)
        made = index_of(scores, settings)
        assert direct.dims == ("z", "y", "x")
        one = build_index(image.isel(c=channel), 16, patch_filter=MaxPatchFilter(150))
        np.testing.assert_array_equal(direct.classes[0], one.classes[0])
        np.testing.assert_array_equal(direct.classes[0], made.classes[0])
    assert direct.classes[0][..., 0].all()
    assert not direct.classes[0][..., -1].any()


def test_samples_lie_within_half_a_patch_of_their_cell_and_in_the_image():
    image = half_bright((3, 70, 91))
    index = build_index(image, (16, 10))
    origins = index.sample(5000, seed=3)
    assert origins.dtype == np.int64
    assert origins.shape == (5000, 3)
    assert (origins >= 0).all()
    assert (origins <= np.array([2, 70 - 16, 91 - 10])).all()
    assert set(np.unique(origins[:, 1])) == set(range(55)), "every position is reached"
    assert set(np.unique(origins[:, 2])) == set(range(82))
    np.testing.assert_array_equal(origins, index.sample(5000, seed=3))
    assert not np.array_equal(origins, index.sample(5000, seed=4))


def test_background_is_drawn_at_its_rate():
    image = half_bright((4, 128, 128))
    index = filtered(image, filtered_patch_prob=0.2)
    sure = build_index(image, 16)
    assert sure.n_background == 0
    origins = index.sample(40_000, seed=0)
    # Origins well inside either half; both ranges have the same number of positions.
    left, right = (origins[:, 2] < 24).sum(), (origins[:, 2] >= 128 - 16 - 23).sum()
    assert left / right == pytest.approx(0.2, rel=0.06)
    everywhere = sure.sample(40_000, seed=0)
    assert (everywhere[:, 2] < 24).sum() / (everywhere[:, 2] >= 89).sum() == pytest.approx(1, rel=0.06)


def test_large_indices_are_drawn_exactly_by_weight():
    """Several runs of cells, of several classes, one of them zero."""
    rng = np.random.default_rng(0)
    classes = rng.choice(3, (1, 40, 500), p=[0.5, 0.3, 0.2]).astype(np.uint8)
    assert classes.size > 4 * RUN
    table = np.array([0, 0.1, 1], np.float32)
    index = PatchIndex(
        patch_size=(2, 2),
        dims=("z", "y", "x"),
        shapes=[(1, 80, 1000)],
        classes=[classes],
        table=table,
        images=[{}],
        axes=[{d: {"first": 0.0, "spacing": 1.0, "attrs": {}} for d in "zyx"}],
        settings={},
        jitter=False,
    )
    drawn = index.sample(200_000, seed=1)
    cells = np.ravel_multi_index((drawn // [1, 2, 2]).T, classes.shape)
    counts = np.bincount(table[classes.ravel()[cells]].astype("f8") > 0.5, minlength=2)
    weight = [0.1 * (classes == 1).sum(), (classes == 2).sum()]
    assert not (classes.ravel()[cells] == 0).any()
    assert counts[0] / counts[1] == pytest.approx(weight[0] / weight[1], rel=0.03)
    assert np.unique(cells // RUN).size == -(-classes.size // RUN)


def test_an_index_costs_a_byte_a_cell():
    index = build_index(np.zeros((50, 640, 640), np.uint8), 4)
    held = sum(v.nbytes for v in [*index.classes, index._run_sums, index._first_run, index.table])
    assert held < 1.01 * index.n_cells


def test_several_images_of_unequal_sizes():
    images = [half_bright((2, 100, 128)), half_bright((1, 40, 33))]
    index = filtered(images)
    assert [w.shape for w in index.weights] == [(2, 7, 8), (1, 3, 3)]
    drawn = index.sample(2000, seed=0)
    assert drawn.shape == (2000, 4)
    for number, shape in enumerate(index.shapes):
        mine = drawn[drawn[:, 0] == number, 1:]
        assert len(mine)
        assert (mine + np.array([1, 16, 16]) <= shape).all()
    share = index.weights[1].values.sum() / (index.weights[0].values.sum() + index.weights[1].values.sum())
    assert (drawn[:, 0] == 1).mean() == pytest.approx(share, abs=0.03)


def test_save_and_open_bring_back_the_same_index(tmp_path):
    images = [half_bright((2, 100, 128)), half_bright((1, 40, 33))]
    for index in (filtered(images), filtered(images).split(0.1)[1]):
        where = str(tmp_path / "index.zarr")
        index.save(where)
        back = PatchIndex.open(where)
        for name in ("patch_size", "dims", "shapes", "images", "axes", "settings", "jitter", "n_patches"):
            assert getattr(back, name) == getattr(index, name)
        np.testing.assert_array_equal(back.table, index.table)
        for one, two in zip(back.classes, index.classes, strict=True):
            np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(back.sample(50, 1), index.sample(50, 1))


def filtered_3d(image, **settings):
    return build_index(image, (4, 8, 8), patch_filter=MaxPatchFilter(150), **settings)


def damaged_headers():
    return [
        ("table", [2.0]),
        ("table", []),
        ("patch_size", [0, 4]),
        ("shapes", [[2, 100]]),
        ("shapes", [[2, 1000, 128]]),
        ("dims", ["c", "y", "x"]),
        ("images", []),
        ("version", 99),
        ("axes", "none"),
        ("patch_size", [2, 16, 16]),
        ("patch_size", [2, 2, 16, 16]),
        ("settings", None),
    ]


@pytest.mark.parametrize(("field", "value"), damaged_headers())
def test_a_damaged_index_is_refused_by_field(tmp_path, field, value):
    where = tmp_path / "index.zarr"
    filtered(half_bright()).save(str(where))
    text = json.loads((where / "zarr.json").read_text())
    text["attributes"]["denoizarr.index"][field] = value
    (where / "zarr.json").write_text(json.dumps(text))
    with pytest.raises(ModelError):
        PatchIndex.open(str(where))


def test_an_unfinished_index_is_not_read(tmp_path):
    where = tmp_path / "index.zarr"
    filtered(half_bright()).save(str(where))
    text = json.loads((where / "zarr.json").read_text())
    text["attributes"]["denoizarr.state"] = "incomplete"
    (where / "zarr.json").write_text(json.dumps(text))
    with pytest.raises(IncompleteOutput):
        PatchIndex.open(str(where))


def test_saving_replaces_an_index_and_nothing_else(tmp_path):
    filtered(half_bright()).save(str(tmp_path / "index"))
    build_index(half_bright(), 32).save(str(tmp_path / "index"))
    assert PatchIndex.open(str(tmp_path / "index")).patch_size == (32, 32)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(OutputExists):
        filtered(half_bright()).save(str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_an_index_is_never_of_another_image():
    image = half_bright()
    index = filtered(image)
    index.check_image(image)
    for other in (image + 1, image[:1], image.astype("int32"), [image, image]):
        with pytest.raises(BadRequest, match=r"other image|another image"):
            index.check_image(other)


def test_a_threshold_that_keeps_nothing_names_one_that_would_do():
    image = half_bright()
    largest = float(MaxPatchFilter.filter_map(image, 16).max())
    with pytest.raises(EmptyIndex, match=f"{largest:g}"):
        build_index(image, 16, patch_filter=MaxPatchFilter(1e6))
    assert build_index(image, 16, patch_filter=MaxPatchFilter(largest)).n_patches > 0
    with pytest.raises(EmptyIndex, match="mean_threshold"):
        build_index(image, 16, patch_filter=MeanStdPatchFilter(100, 1e6))


def test_a_patch_larger_than_the_image_is_refused_with_both_sizes():
    with pytest.raises(PatchTooLarge, match=r"128 x 64.*100 x 128"):
        build_index(half_bright(), (128, 64))
    with pytest.raises(BadRequest, match="filtered_patch_prob"):
        filtered(half_bright(), filtered_patch_prob=1.5)


def reach(cells, index, image, jitter):
    """Every voxel that a patch drawn from these cells can cover."""
    covered = np.zeros(index.shapes[image], bool)
    lead = covered.ndim - len(index.patch_size)
    for cell in np.argwhere(cells):
        spans = []
        for axis, patch in enumerate(index.patch_size, start=lead):
            size, start = index.shapes[image][axis], cell[axis] * patch
            first = min(max(start - jitter * (patch // 2), 0), size - patch)
            last = min(start + jitter * (patch - patch // 2 - 1), size - patch)
            spans.append(slice(first, last + patch))
        covered[(*cell[:lead], *spans)] = True
    return covered


@settings(max_examples=40)
@given(
    st.tuples(st.sampled_from([1, 2, 5, 22]), st.integers(6, 70), st.integers(6, 70)),
    st.tuples(st.integers(3, 6), st.integers(3, 6)),
    st.sampled_from([0.05, 0.1, 0.3]),
    st.integers(0, 5),
)
def test_no_validation_voxel_lies_in_any_training_patch(shape, patch, fraction, seed):
    index = build_index(np.zeros(shape, np.uint8), patch)
    classes = np.array(index.classes[0])
    classes[..., : classes.shape[-1] // 2] = 0
    index = with_classes(index, classes)
    training, validation = index.split(fraction, seed)
    trained = reach(training.weights.values > 0, training, 0, 1)
    held = reach(validation.weights.values > 0, validation, 0, 0)
    assert not (trained & held).any()
    assert training.total_weight >= 0.5 * index.total_weight
    # A short last cell is never held out: where those have most of the weight, less can be.
    whole = float(index.weights[:, : shape[1] // patch[0], : shape[2] // patch[1]].sum())
    enough = whole >= 0.5 * index.total_weight
    if enough and fraction <= 0.1 and (fraction * shape[0] >= 2 or min(index.classes[0].shape[1:]) >= 12):
        assert validation.total_weight >= 0.8 * fraction * index.total_weight
    if validation.n_patches:
        origins = validation.sample(20, 0)
        assert (origins[:, 1:] % patch == 0).all(), "on the cells exactly"


@settings(max_examples=60)
@given(
    st.sampled_from([(), (1,), (3,), (22,)]),
    st.tuples(st.integers(2, 14), st.integers(6, 40), st.integers(6, 40)),
    st.tuples(st.integers(1, 3), st.integers(2, 5), st.integers(2, 5)),
    st.permutations(range(3)),
    st.sampled_from([0.05, 0.1, 0.3]),
    st.integers(0, 5),
)
def test_no_validation_voxel_lies_in_any_training_patch_in_3d(times, shape, patch, turn, fraction, seed):
    """Whichever axis is the short one."""
    shape, patch = tuple(shape[a] for a in turn), tuple(patch[a] for a in turn)
    assume(min(patch[1:]) >= 2 and all(p <= n for p, n in zip(patch, shape, strict=True)))
    image = xr.DataArray(np.zeros(times + shape, np.uint8), dims=("t",) * len(times) + ("z", "y", "x"))
    index = build_index(image, patch)
    classes = np.array(index.classes[0])
    classes[..., : classes.shape[-1] // 2] = 0
    index = with_classes(index, classes)
    training, validation = index.split(fraction, seed)
    held = reach(validation.weights.values > 0, validation, 0, 0)
    assert not (reach(training.weights.values > 0, training, 0, 1) & held).any()
    assert training.total_weight >= 0.5 * index.total_weight
    if validation.n_patches:
        drawn = validation.sample(20, 0)
        assert held[tuple(drawn.T)].all()
        last = np.array(index.shapes[0])[-3:] - patch
        assert ((drawn[:, -3:] % patch == 0) | (drawn[:, -3:] == last)).all(), "on the cells exactly"


def test_a_volume_has_a_validation_part():
    """The control of the test above, which an empty one would pass."""
    index = filtered_3d(half_bright((16, 128, 160)))
    training, validation = index.split(0.1, seed=1)
    assert 0.08 <= validation.total_weight / index.total_weight < 0.2
    assert training.total_weight > 0.5 * index.total_weight
    bright = (validation.weights.values == 1).sum() / (validation.weights.values > 0).sum()
    assert bright > 0.6, "it respects the filter"


def test_the_split_holds_out_signal_and_is_a_function_of_its_seed():
    index = filtered(half_bright((2, 512, 512)))
    training, validation = index.split(0.1, seed=1)
    again = index.split(0.1, seed=1)[1]
    np.testing.assert_array_equal(validation.classes[0], again.classes[0])
    assert not np.array_equal(validation.classes[0], index.split(0.1, seed=2)[1].classes[0])
    bright = (validation.weights.values == 1).sum() / (validation.weights.values > 0).sum()
    assert bright > 0.7
    assert 0.1 <= validation.total_weight / index.total_weight < 0.13
    assert training.total_weight > 0.65 * index.total_weight


def test_an_image_too_small_to_hold_anything_out_trains_on_all_of_it():
    index = build_index(half_bright((1, 32, 48)), 16)
    training, validation = index.split(0.1)
    assert validation.n_patches == 0
    assert training.n_patches == index.n_patches
    with pytest.raises(EmptyIndex):
        validation.sample(1, 0)
    with pytest.raises(BadRequest, match="fraction"):
        index.split(1.0)
    assert index.split(0.0)[1].n_patches == 0


@pytest.mark.parametrize("state", ["incomplete", "damaged", "no root", "no metadata", "empty group"])
def test_saving_replaces_an_index_in_any_state(tmp_path, state):
    where, index = tmp_path / "index", filtered(half_bright())
    index.save(where)
    root = where / "zarr.json"
    if state == "incomplete":
        root.write_text(root.read_text().replace('"complete"', '"incomplete"'))
        (where / "0" / "zarr.json").unlink()
    elif state == "damaged":
        (where / "0" / "zarr.json").write_text("{")
    elif state == "empty group":
        zarr.open_group(str(where), mode="w")
    else:
        root.unlink()
        if state == "no metadata":
            (where / "0" / "zarr.json").unlink()
    index.save(where)
    np.testing.assert_array_equal(PatchIndex.open(where).classes[0], index.classes[0])


@pytest.mark.parametrize("foreign", ["image", "image without root", "older format", "titled"])
def test_the_levels_of_an_image_are_not_taken_for_an_index(tmp_path, foreign):
    where = tmp_path / "mine"
    attributes = {} if foreign == "image" else {"title": "precious"}
    group = zarr.open_group(
        str(where), mode="w", attributes=attributes, zarr_format=2 if foreign == "older format" else 3
    )
    if foreign != "titled":
        group.create_array("0", shape=(3,), dtype="u1")
    if foreign == "image without root":
        (where / "zarr.json").unlink()
    if foreign == "older format":
        (where / ".zgroup").unlink()
        (where / ".zattrs").unlink()
    before = sorted(where.rglob("*"))
    with pytest.raises(OutputExists):
        filtered(half_bright()).save(where)
    assert sorted(where.rglob("*")) == before


def test_the_header_comes_with_the_group(tmp_path, monkeypatch):
    def dies(*_, **__):
        raise KeyboardInterrupt

    index = filtered(half_bright())
    with monkeypatch.context() as patch:
        patch.setattr(zarr.Group, "create_array", dies)
        with pytest.raises(KeyboardInterrupt):
            index.save(tmp_path / "index")
    with pytest.raises(IncompleteOutput):
        PatchIndex.open(tmp_path / "index")
    filtered(half_bright()).save(tmp_path / "index")


@pytest.mark.parametrize("channel", [1, -1])
def test_a_channel_that_the_image_lacks_is_refused_before_any_work(monkeypatch, channel):
    image = xr.DataArray(half_bright(), dims=("z", "y", "x"))
    chosen = MaxPatchFilter(150, ref_channel=channel)
    monkeypatch.setattr(index_builder, "score_image", None)
    with pytest.raises(BadRequest, match="no such channel at ref_channel"):
        build_index(image, 16, patch_filter=chosen)
    with pytest.raises(BadRequest, match="no such channel at ref_channel"):
        measured(image, (16, 16), patch_filter=chosen)
    with pytest.raises(BadRequest, match="no such channel at ref_channel"):
        build_index(image, 16, roi=RegionOfInterest(ref_channel=channel))
    several = image[:1].rename(z="c")
    with pytest.raises(BadRequest, match="expected 0 to 0"):
        build_index(several, 16, patch_filter=chosen)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (half_bright().astype("float32"), r"different dtypes at image 1.*got float32, expected uint16"),
        (half_bright()[0], r"different dims at image 1"),
    ],
)
def test_images_that_do_not_belong_together_are_refused_before_any_work(monkeypatch, second, message):
    monkeypatch.setattr(index_builder, "score_image", None)
    with pytest.raises(BadRequest, match=message):
        build_index([half_bright(), second], 16, patch_filter=MaxPatchFilter(150))


def test_measuring_and_weighing_in_two_steps_is_the_same_index(tmp_path):
    """Also when it is run again, where nothing is measured twice."""
    image = half_bright((5, 100, 128))
    for patch, name in (((16, 16), "2d"), ((4, 16, 16), "3d")):
        options = {
            "patch_filter": [MeanStdPatchFilter(50), MaskPatchFilter(0.3)],
            "mask": image > 100,
            "roi": RegionOfInterest(sigma=4.0, scale_factor=0.5, threshold=0.4),
        }
        direct = build_index(image, patch, **options)
        for _ in range(2):
            places = ScorePlaces(*(str(tmp_path / name / part) for part in ("map", "mask", "roi")))
            settings, scores = measured(image, patch, places=places, **options)
            found = index_of(scores, settings)
            np.testing.assert_array_equal(found.classes[0], direct.classes[0])
            assert found.settings == direct.settings
            assert found.statistics[0].to_json() == direct.statistics[0].to_json()


@pytest.mark.parametrize("patch", [(16, 16), (4, 9, 11)])
def test_cells_in_3d_are_weighed_by_their_map(patch):
    image = half_bright((9, 70, 85))
    index = build_index(image, patch, patch_filter=MaxPatchFilter(150), filtered_patch_prob=0.25)
    keep = MaxPatchFilter.apply_filter(MaxPatchFilter.filter_map(image, patch), 150).values
    np.testing.assert_array_equal(index.weights.values, np.where(keep, 1, 0.25))
    assert index.patch_size == patch


@pytest.mark.parametrize(
    ("shape", "patch"), [((3, 70, 91), (16, 10)), ((11, 37, 61), (4, 9, 7)), ((7, 16, 83), (7, 16, 6))]
)
def test_background_is_drawn_at_its_probability_within_three_standard_errors(shape, patch):
    """Cell by cell: without jitter an origin names its cell; odd shapes, a short last cell included."""
    image = half_bright(shape)
    index = build_index(image, patch, patch_filter=MaxPatchFilter(150), filtered_patch_prob=0.2)
    assert 0.2 * index.n_cells < index.n_background < 0.8 * index.n_cells
    weights = index.weights.values.astype(np.float64).ravel()
    numbered = with_classes(index, index.classes[0], jitter=False)
    n = 60_000
    cells = cells_drawn(numbered, n)
    background = weights[cells] < 1
    share = 0.2 * index.n_background / weights.sum()
    assert abs(background.mean() - share) < 3 * np.sqrt(share * (1 - share) / n)
    expected = n * weights / weights.sum()
    counts = np.bincount(cells, minlength=weights.size)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = weights.size - 1
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def cells_drawn(index, n):
    """The numbers of the cells whose origins were drawn; the last of an axis is clipped into the image."""
    (shape,), (classes,) = index.shapes, index.classes
    lead = len(shape) - len(index.patch_size)
    step = (1,) * lead + tuple(index.patch_size)
    origins = index.sample(n, seed=11)
    last = np.array([size - s for size, s in zip(shape, step, strict=True)])
    assert ((origins >= 0) & (origins <= last)).all()
    # The short last cell begins where its patch fits: the only origin that is no multiple of the step, or
    # the same as the cell before where the two coincide.
    cells = -(-origins // np.array(step))
    assert (np.minimum(cells * step, last) == origins).all()
    return np.ravel_multi_index(cells.T, classes.shape)


@pytest.mark.parametrize("patch", [(3, 16, 10), (1, 8, 8), (7, 35, 91)])
def test_samples_in_3d_lie_within_half_a_patch_of_their_cell_and_in_the_image(patch):
    shape = (7, 70, 91)
    index = build_index(half_bright(shape), patch)
    origins = index.sample(6000, seed=3)
    last = np.array(shape) - patch
    assert ((origins >= 0) & (origins <= last)).all()
    for axis in range(3):
        assert set(np.unique(origins[:, axis])) == set(range(last[axis] + 1)), "every position is reached"
    cell = tuple(n // 2 for n in index.classes[0].shape)
    only = np.zeros(index.classes[0].shape, np.uint8)
    only[cell] = 1
    drawn = with_classes(index, only, table=np.array([0, 1], np.float32)).sample(500, 0)
    start = np.minimum(np.array(cell) * patch, last)
    assert (np.abs(drawn - start) <= np.array(patch)).all()


def mask_of_blobs(shape, seed=0):
    rng = np.random.default_rng(seed)
    return np.kron(rng.random([n // 8 + 1 for n in shape]) < 0.3, np.ones((8,) * len(shape)))[
        tuple(slice(n) for n in shape)
    ].astype(np.uint8)


@pytest.mark.parametrize("patch", [(16, 16), (4, 16, 16)])
def test_filter_mask_and_roi_are_combined_cell_by_cell(patch):
    image = half_bright((8, 100, 128))
    mask = mask_of_blobs(image.shape)
    roi = RegionOfInterest(sigma=4.0, scale_factor=0.5, threshold=0.6)
    bright = MaxPatchFilter.apply_filter(MaxPatchFilter.filter_map(image, patch), 150).values
    covered = MaskPatchFilter.filter_map(mask, patch).values
    inside = build_index(image, patch, roi=roi).weights.values > 0
    assert 0 < inside.mean() < 1
    only_mask = build_index(image, patch, mask=mask)
    coverage = 0.125 if len(patch) == 3 else 0.25
    np.testing.assert_array_equal(only_mask.weights.values == 1, covered >= coverage)
    assert only_mask.settings["mask"]["coverage"] == coverage
    both = build_index(
        image, patch, patch_filter=[MaxPatchFilter(150), MaskPatchFilter(0.4)], mask=mask, roi=roi
    )
    expected = np.where(bright & (covered >= 0.4), np.float32(1), np.float32(0.1))
    np.testing.assert_array_equal(both.weights.values, np.where(inside, expected, 0))


@pytest.mark.parametrize("patch", [(16, 16), (4, 16, 16)])
def test_a_roi_that_selects_background_switches_the_filter_off(patch):
    image = half_bright((4, 100, 128))
    roi = RegionOfInterest(sigma=4.0, scale_factor=0.5, threshold=0.4, select_background=True)
    alone = build_index(image, patch, roi=roi)
    together = build_index(image, patch, roi=roi, patch_filter=MaxPatchFilter(150))
    np.testing.assert_array_equal(together.weights.values, alone.weights.values)
    assert set(np.unique(together.weights.values)) == {0.0, 1.0}
    # A mask is no judgement of brightness: it stays.
    mask = mask_of_blobs(image.shape)
    masked = build_index(image, patch, roi=roi, patch_filter=MaxPatchFilter(150), mask=mask)
    assert masked.n_background > 0
    assert (masked.weights.values <= alone.weights.values).all()


def test_several_images_have_a_mask_each():
    images = [half_bright((2, 100, 128)), half_bright((1, 40, 33))]
    masks = [mask_of_blobs(i.shape, seed=k) for k, i in enumerate(images)]
    index = build_index(images, 8, mask=masks, patch_filter=MaskPatchFilter(0.5))
    for image, mask, weights in zip(images, masks, index.weights, strict=True):
        alone = build_index(image, 8, mask=mask, patch_filter=MaskPatchFilter(0.5))
        np.testing.assert_array_equal(weights.values, alone.weights.values)
    with pytest.raises(BadRequest, match=r"one mask for each image.*1 masks, expected 2"):
        build_index(images, 8, mask=masks[0])


@pytest.mark.parametrize("patch", [(16, 16), (2, 16, 16)])
def test_save_and_open_bring_back_the_statistics(tmp_path, patch):
    images = [half_bright((2, 100, 128)), half_bright((3, 40, 33))]
    index = build_index(images, patch, patch_filter=MeanStdPatchFilter(50))
    index.save(tmp_path / "index")
    back = PatchIndex.open(tmp_path / "index")
    assert back.patch_size == patch
    assert [s.to_json() for s in back.statistics] == [s.to_json() for s in index.statistics]
    for image, found in zip(images, back.statistics, strict=True):
        assert found.channels[0].mean == image.mean(dtype=np.float64)
        np.testing.assert_array_equal(
            found.channels[0].moments.histogram, np.bincount(image.ravel(), minlength=65536)
        )
    np.testing.assert_array_equal(back.sample(50, 1), index.sample(50, 1))
    training, _ = index.split(0.1)
    assert training.statistics[0].to_json() == index.statistics[0].to_json()
    build_index(images, patch).save(tmp_path / "index")
    assert PatchIndex.open(tmp_path / "index").statistics is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda images: images.pop(),
        lambda images: images[0].pop("channels"),
        lambda images: images[0]["channels"][0].update(histogram={"first": 0}),
        lambda images: images[0]["channels"][0]["histogram"].update(data="AAAA"),
        lambda images: images[0]["channels"][0]["histogram"].update(first=65_530),
        lambda images: images[0]["channels"][0].update(count="many"),
        lambda images: images.__setitem__(0, "text"),
    ],
    ids=["an image less", "no channels", "no histogram", "data", "first", "count", "text"],
)
def test_damaged_statistics_are_refused(tmp_path, damage):
    where = tmp_path / "index.zarr"
    filtered([half_bright(), half_bright((1, 40, 33))]).save(where)
    text = json.loads((where / "zarr.json").read_text())
    damage(text["attributes"]["denoizarr.statistics"])
    (where / "zarr.json").write_text(json.dumps(text))
    with pytest.raises(ModelError, match="statistics"):
        PatchIndex.open(where)


def suggested(error, name):
    return float(re.search(rf"\b{name}=([-+.e\d]+)", str(error)).group(1))


@pytest.mark.parametrize("patch", [(16, 16), (2, 16, 16)])
@pytest.mark.parametrize("scale", [1, 7.3210987e-5, 123.456789])
def test_the_threshold_that_an_empty_index_names_really_works(patch, scale):
    image = (half_bright((4, 100, 128)) * scale).astype(np.float64)
    for chosen, name in (
        (MaxPatchFilter(1e9), "threshold"),
        (ShannonPatchFilter(1e9), "threshold"),
        (MeanStdPatchFilter(1e9), "mean_threshold"),
    ):
        with pytest.raises(
            EmptyIndex, match=r"threshold 1e\+09 on scores from .* \|[^|]{24}\| to "
        ) as caught:
            build_index(image, patch, patch_filter=chosen)
        better = type(chosen)(**{name: suggested(caught.value, name)})
        index = build_index(image, patch, patch_filter=better)
        assert index.n_cells - index.n_background > 0


@pytest.mark.parametrize("value", [1234567.8, 100.12386, 0.30000004])
def test_the_threshold_named_for_equal_scores_is_not_above_them(value):
    """Six digits may round up to what no cell reaches."""
    image = np.full((1, 64, 64), value)
    image[0, 0, 0] = value * (1 - 1e-9)
    with pytest.raises(EmptyIndex) as caught:
        build_index(image, 16, patch_filter=MaxPatchFilter(1e9))
    for text in re.findall(r"at most ([-+.e\d]+)", str(caught.value)):
        assert build_index(image, 16, patch_filter=MaxPatchFilter(float(text))).n_background == 0
    better = MaxPatchFilter(suggested(caught.value, "threshold"))
    assert build_index(image, 16, patch_filter=better).n_background == 0


def test_the_coverage_named_for_a_thin_mask_really_works():
    image, mask = half_bright(), np.zeros((2, 100, 128), np.uint8)
    mask[0, 50, 60] = 1
    with pytest.raises(EmptyIndex, match="MaskPatchFilter") as caught:
        build_index(image, 16, mask=mask)
    better = MaskPatchFilter(suggested(caught.value, "coverage"))
    index = build_index(image, 16, mask=mask, patch_filter=better)
    assert 0 < index.n_cells - index.n_background < index.n_cells


@pytest.mark.parametrize(("mean", "std"), [(50, 1e6), (1e6, 30), (1e6, 1e6)])
def test_the_pair_of_thresholds_that_an_empty_index_names_really_works(mean, std):
    with pytest.raises(EmptyIndex, match="std_threshold") as caught:
        build_index(half_bright(), 16, patch_filter=MeanStdPatchFilter(mean, std))
    better = {name: suggested(caught.value, name) for name in ("mean_threshold", "std_threshold")}
    index = build_index(half_bright(), 16, patch_filter=MeanStdPatchFilter(**better))
    assert index.n_cells - index.n_background > 0


def test_filter_and_mask_that_exclude_each_other_are_named():
    image = half_bright()
    with pytest.raises(EmptyIndex, match="MaxPatchFilter and MaskPatchFilter"):
        build_index(image, 16, patch_filter=MaxPatchFilter(150), mask=np.arange(128) + 0 * image < 30)


def test_a_region_of_interest_without_a_window_says_so():
    with pytest.raises(EmptyIndex, match="no window is selected"):
        build_index(half_bright(), 16, roi=RegionOfInterest(threshold=2.0, sigma=4.0, scale_factor=0.5))


def test_an_index_whose_weights_are_all_zero_is_empty():
    """The filter keeps what lies outside of the region of interest, and background has no chance at all."""
    image = half_bright((2, 96, 128))
    roi = RegionOfInterest(threshold=0.4, sigma=4.0, scale_factor=0.5, background="bright")
    kept = build_index(image, 16, roi=roi).weights.values > 0
    assert not kept[..., -1].any()
    with pytest.raises(EmptyIndex):
        build_index(
            image,
            16,
            roi=roi,
            mask=(np.arange(128) + 0 * image.astype(int) >= 112),
            filtered_patch_prob=0.0,
        )
