import json

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.errors import BadRequest, EmptyIndex, IncompleteOutput, ModelError, OutputExists, PatchTooLarge
from denoizarr.selection import index_builder
from denoizarr.selection.filters import MaxPatchFilter, MeanStdPatchFilter, ShannonPatchFilter
from denoizarr.selection.index_builder import build_index, index_from_maps
from denoizarr.selection.patch_index import PatchIndex
from denoizarr.selection.weighted import RUN


def half_bright(shape=(2, 100, 128), seed=0):
    """Background in the left half."""
    rng = np.random.default_rng(seed)
    image = rng.poisson(5, shape).astype(np.uint16)
    image[..., shape[-1] // 2 :] += rng.poisson(300, image[..., shape[-1] // 2 :].shape).astype(np.uint16)
    return image


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
    maps = [MaxPatchFilter.filter_map(image, 16)]
    for channel in range(2):
        chosen = MaxPatchFilter(150, ref_channel=channel)
        direct = build_index(image, 16, patch_filter=chosen)
        made = index_from_maps([image], maps, 16, patch_filter=chosen)
        assert direct.dims == ("z", "y", "x")
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
    for cell in np.argwhere(cells):
        spans = []
        for axis, patch in ((1, index.patch_size[0]), (2, index.patch_size[1])):
            size, start = index.shapes[image][axis], cell[axis] * patch
            first = min(max(start - jitter * (patch // 2), 0), size - patch)
            last = min(start + jitter * (patch - patch // 2 - 1), size - patch)
            spans.append(slice(first, last + patch))
        covered[(cell[0], *spans)] = True
    return covered


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.sampled_from([1, 2, 5, 22]), st.integers(6, 70), st.integers(6, 70)),
    st.tuples(st.integers(3, 6), st.integers(3, 6)),
    st.sampled_from([0.05, 0.1, 0.3]),
    st.integers(0, 5),
)
def test_no_validation_voxel_lies_in_any_training_patch(shape, patch, fraction, seed):
    index = build_index(np.zeros(shape, np.uint8), patch)
    index.classes[0][..., : index.classes[0].shape[-1] // 2] = 0
    training, validation = index.split(fraction, seed)
    trained = reach(training.weights.values > 0, training, 0, 1)
    held = reach(validation.weights.values > 0, validation, 0, 0)
    assert not (trained & held).any()
    assert training.total_weight >= 0.5 * index.total_weight
    if fraction <= 0.1 and (fraction * shape[0] >= 2 or min(index.classes[0].shape[1:]) >= 12):
        assert validation.total_weight >= 0.8 * fraction * index.total_weight
    if validation.n_patches:
        origins = validation.sample(20, 0)
        assert (origins[:, 1:] % patch == 0).all(), "on the cells exactly"


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

    with monkeypatch.context() as patch:
        patch.setattr(zarr.Group, "create_array", dies)
        with pytest.raises(KeyboardInterrupt):
            filtered(half_bright()).save(tmp_path / "index")
    with pytest.raises(IncompleteOutput):
        PatchIndex.open(tmp_path / "index")
    filtered(half_bright()).save(tmp_path / "index")


@pytest.mark.parametrize("channel", [1, -1])
def test_a_channel_that_the_image_lacks_is_refused_before_any_work(monkeypatch, channel):
    image = xr.DataArray(half_bright(), dims=("z", "y", "x"))
    chosen = MaxPatchFilter(150, ref_channel=channel)
    maps = [MaxPatchFilter.filter_map(image, 16)]
    monkeypatch.setattr(index_builder, "lazy_map", None)
    with pytest.raises(BadRequest, match="no such channel at ref_channel"):
        build_index(image, 16, patch_filter=chosen)
    with pytest.raises(BadRequest, match="no such channel at ref_channel"):
        index_from_maps([image], maps, 16, patch_filter=chosen)
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
    monkeypatch.setattr(index_builder, "lazy_map", None)
    with pytest.raises(BadRequest, match=message):
        build_index([half_bright(), second], 16, patch_filter=MaxPatchFilter(150))
