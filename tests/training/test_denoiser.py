"""A model runs tiles that equal the whole, survives its file, and refuses damaged ones."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.errors import BadRequest, ConfigError, ImageNotFound, ModelError
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.tiling import padded_shape, tiles_of
from denoizarr.kernels.unet import NetworkShape, build_network
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.normalisation import Normalisation
from denoizarr.training.tensor_files import read_tensors, write_tensors

KERNEL = np.array([[True, True, True, False, True]]) | np.array([[False, False, True, False, False]])


def model(depth: int = 2, norm: str = "batch", channels: int = 1, seed: int = 0) -> Denoiser:
    shape = NetworkShape(features=4, depth=depth, norm=norm)  # type: ignore[arg-type]
    net = build_network(shape, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if "running_var" in name:
            value.uniform_(0.5, 2, generator=generator)
        elif "running_mean" in name or (".norm" in name and value.is_floating_point()):
            value.normal_(1, 0.5, generator=generator)
    means = tuple(100.0 + 50 * c for c in range(channels))
    return Denoiser(
        shape,
        net.state_dict(),
        Normalisation(means, tuple(m / 5 for m in means)),
        blind_spot=KERNEL,
        patch_size=(32, 64),
        training={"epochs": 3},
    )


def image(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, shape)


def whole_of(denoiser: Denoiser, plane: np.ndarray) -> np.ndarray:
    """Return the network run over the whole padded image at once, by definition."""
    padded = padded_shape(plane.shape, denoiser.stride)
    far = [(0, p - n) for p, n in zip(padded, plane.shape, strict=True)]
    return denoiser.run_tile(np.pad(plane, far, mode="edge"))[: plane.shape[0], : plane.shape[1]]


def in_tiles(
    denoiser: Denoiser, plane: np.ndarray, tile: tuple[int, int], halo: tuple[int, ...]
) -> np.ndarray:
    result = np.empty(plane.shape)
    for part in tiles_of(Box.whole(plane.shape), tile, plane.shape, halo, denoiser.stride):
        read = np.pad(plane[part.inside(plane.shape).slices], part.padding(plane.shape), mode="edge")
        result[part.valid.slices] = denoiser.run_tile(read)[part.valid.relative_to(part.read.start).slices]
    return result


@settings(max_examples=12)
@given(
    shape=st.tuples(st.integers(1, 150), st.integers(60, 150)),
    tile=st.tuples(st.integers(7, 60), st.integers(7, 60)),
    depth=st.sampled_from([1, 2, 3]),
    norm=st.sampled_from(["batch", "none"]),
)
def test_tiles_equal_the_whole_padded_image(
    shape: tuple[int, int], tile: tuple[int, int], depth: int, norm: str
) -> None:
    denoiser, plane = model(depth, norm).to(precision="float64"), image(shape)
    whole = whole_of(denoiser, plane)
    tiled = in_tiles(denoiser, plane, tile, denoiser.halo)
    assert np.abs(tiled - whole).max() <= 1e-12 * plane.std()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_halo_one_stride_short_does_not(depth: int) -> None:
    denoiser, plane = model(depth).to(precision="float64"), image((160, 160))
    short = tuple(h - s for h, s in zip(denoiser.halo, denoiser.stride, strict=True))
    tiled = in_tiles(denoiser, plane, (40, 40), short)
    assert np.abs(tiled - whole_of(denoiser, plane)).max() > 1e-9 * plane.std()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_origin_off_the_grid_does_not(depth: int) -> None:
    denoiser, plane = model(depth).to(precision="float64"), image((200, 200))
    halo = denoiser.halo[0]
    for origin, differs in ((denoiser.stride[0], False), (1, True)):
        answer = denoiser.run_tile(plane[origin : origin + 184])[halo:-halo]
        whole = whole_of(denoiser, plane)[origin : origin + 184][halo:-halo]
        assert (np.abs(answer - whole).max() > 1e-4 * plane.std()) == differs


def test_float32_tiles_equal_the_whole_to_rounding() -> None:
    denoiser, plane = model(), image((150, 170)).astype(np.float32)
    difference = in_tiles(denoiser, plane, (48, 50), denoiser.halo) - whole_of(denoiser, plane)
    assert np.abs(difference).max() <= 5e-5 * plane.std()


def test_denoise_cuts_large_planes_into_tiles_that_equal_the_whole() -> None:
    denoiser, plane = model(depth=1).to(precision="float64"), image((70, 1100))
    assert np.abs(denoiser.denoise(plane) - whole_of(denoiser, plane)).max() <= 1e-12 * plane.std()


def test_leading_axes_are_looped_and_integers_taken() -> None:
    denoiser = model()
    stack = image((2, 3, 30, 41)).astype(np.uint16)
    result = denoiser.denoise(stack)
    assert (result.shape, result.dtype) == (stack.shape, np.float32)
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(result[index], denoiser.denoise(stack[index]))
    assert denoiser.to(precision="float64").denoise(stack).dtype == np.float64


def test_each_channel_has_its_own_mean_and_std() -> None:
    two, one = model(channels=2), model(channels=1)
    plane = image((32, 32)).astype(np.float32)
    # The second channel is the first, brighter by half: so is its mean and its std, and so is the answer.
    result = two.denoise(np.stack([plane, plane * 1.5]))
    np.testing.assert_allclose(result[0], one.denoise(plane), rtol=1e-6)
    np.testing.assert_allclose(result[1], result[0] * 1.5, rtol=1e-4)
    assert two.denoise(np.zeros((5, 2, 8, 8))).shape == (5, 2, 8, 8)


def test_a_file_gives_back_the_same_model(tmp_path: Path) -> None:
    one = model(channels=2)
    path = one.save(tmp_path / "model")
    assert Path(path).name == "model.safetensors"
    for name in (path, str(tmp_path / "model")):
        two = Denoiser.load(name)
        assert (two.digest, two.network, two.halo, two.stride) == (
            one.digest,
            one.network,
            one.halo,
            one.stride,
        )
        assert (two.normalisation, two.training, two.patch_size) == (
            one.normalisation,
            {"epochs": 3},
            (32, 64),
        )
        np.testing.assert_array_equal(two.blind_spot, KERNEL)
        stack = image((2, 24, 28))
        np.testing.assert_array_equal(two.denoise(stack), one.denoise(stack))


def test_a_file_keeps_all_that_a_model_knows(tmp_path: Path) -> None:
    shape = NetworkShape(ndim=3, features=2, depth=1, n2v2=True)
    one = Denoiser(
        shape,
        build_network(shape, seed=0).state_dict(),
        Normalisation((100.0,), (20.0,)),
        target_normalisation=Normalisation((5.0,), (0.1,)),
        blind_spot=np.ones((1, 1, 3), np.bool_),
        patch_size=(16, 16),
        pixel_size={"z": {"value": 2.0, "unit": "micrometer"}, "x": {"value": 0.1, "unit": None}},
        training={"epochs": 3, "of": [1, None]},
        provenance={"who": "é"},
    )
    two = Denoiser.load(one.save(tmp_path / "model.safetensors"))
    names = ("network", "normalisation", "target_normalisation", "patch_size", "pixel_size", "training")
    for name in (*names, "provenance", "axes", "halo", "stride", "digest"):
        assert getattr(two, name) == getattr(one, name), name
    assert (one.axes, one.patch_size) == ("zyx", (1, 16, 16))
    np.testing.assert_array_equal(two.blind_spot, one.blind_spot)
    assert "torch" in model().provenance["software"]


def test_the_output_is_in_the_targets_intensities() -> None:
    one = model()
    target = Normalisation((-3.0,), (0.5,))
    weights = dict(one.module.state_dict())
    shape = NetworkShape(features=4, norm="none")  # the folded network's
    two = Denoiser(shape, weights, one.normalisation, target_normalisation=target)
    plane = image((32, 32))
    expected = (one.denoise(plane) - 100) / 20 * 0.5 - 3
    np.testing.assert_allclose(two.denoise(plane), expected, rtol=1e-4, atol=1e-4)
    assert two.digest != Denoiser(shape, weights, one.normalisation).digest
    with pytest.raises(ConfigError, match="target_normalisation"):
        Denoiser(shape, weights, one.normalisation, target_normalisation=Normalisation((0, 0), (1, 1)))


@pytest.mark.parametrize(
    "size", [{"t": {"value": 1.0, "unit": None}}, {"x": {"value": -1.0, "unit": None}}, {"x": 0.1}]
)
def test_a_pixel_size_has_a_form(size: dict[str, object]) -> None:
    shape = NetworkShape(features=2, depth=1)
    weights = build_network(shape).state_dict()
    with pytest.raises(ConfigError):
        Denoiser(shape, weights, Normalisation((0.0,), (1.0,)), pixel_size=size)  # type: ignore[arg-type]


def test_the_digest_names_what_decides_the_output() -> None:
    one, other = model(), model(seed=1)
    assert one.digest != other.digest
    assert one.digest != model(channels=2).digest
    weights = build_network(one.network, seed=0).state_dict()
    same = [Denoiser(one.network, weights, one.normalisation, training={"n": n}).digest for n in (1, 2)]
    assert same[0] == same[1]


def test_a_model_travels_by_pickle_between_our_own_processes() -> None:
    one = model()
    two = pickle.loads(pickle.dumps(one))  # noqa: S301
    np.testing.assert_array_equal(two.denoise(image((16, 16))), one.denoise(image((16, 16))))


def test_the_projected_memory_is_near_what_was_measured() -> None:
    shape = NetworkShape(features=32)
    weights = build_network(shape).state_dict()
    denoiser = Denoiser(shape, weights, Normalisation((0.0,), (1.0,)))
    # 545 to 720 bytes per voxel were measured in float32 and 5,520 in float64.
    assert 720 < denoiser.bytes_per_voxel < 2 * 545
    assert 5520 < denoiser.to(precision="float64").bytes_per_voxel < 2 * 5520


def spoilt(path: str, **changes: object) -> None:
    header, tensors = read_tensors(path)
    write_tensors(path, header | changes, tensors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "format"),
        ({"version": 99}, "version"),
        ({"network": {"features": 10**12}}, "features"),
        ({"network": {"features": 4, "depth": 2, "extra": 1}}, "extra"),
        ({"network": asdict(NetworkShape(features=8))}, "tensor"),
        ({"normalisation": {"mean": [0.0], "std": [0.0]}}, "std"),
        ({"normalisation": {"mean": ["nan"], "std": [1.0]}}, "mean"),
        ({"normalisation": {"mean": [0.0]}}, "std"),
        ({"blind_spot": [[0, 1]]}, "blind_spot.*odd"),
        ({"blind_spot": [[[1]]]}, "blind_spot"),
        ({"blind_spot": [[1], [1, 0]]}, "blind_spot"),
        ({"blind_spot": "1"}, "blind_spot"),
        ({"blind_spot": [[0, 7, 0]]}, "blind_spot"),
        ({"patch_size": [64]}, "patch_size"),
        ({"patch_size": None}, "patch_size"),
        ({"patch_size": [64, 0]}, "patch_size"),
        ({"version": 1}, "version"),
        ({"network": {"own": ""}}, "network"),
        ({"network": {"own": "some.Class"}}, "example"),
        ({"network": asdict(NetworkShape(features=4)) | {"ndim": 3}}, "network.*ndim"),
        ({"network": []}, "network"),
        ({"network": asdict(NetworkShape(features=1024, depth=6))}, "tensor"),
        ({"axes": "xy"}, "axes"),
        ({"axes": "zyx"}, "network"),
        ({"axes": ["yx"]}, "axes"),
        ({"halo": [16, 16]}, "halo"),
        ({"halo": [24.0, 24]}, "halo"),
        ({"halo": [24]}, "halo"),
        ({"halo": [10**9, 24]}, "halo"),
        ({"stride": [2, 2]}, "stride"),
        ({"stride": "44"}, "stride"),
        ({"normalisation": [0, 1]}, "normalisation"),
        ({"normalisation": {"mean": [10**400], "std": [1.0]}}, "normalisation"),
        ({"target_normalisation": {"mean": [0.0, 1.0], "std": [1.0, 1.0]}}, "target_normalisation"),
        ({"target_normalisation": {"mean": [0.0], "std": [-1.0]}}, "target_normalisation"),
        ({"pixel_size": {"z": {"value": 1.0, "unit": None}}}, "pixel_size"),
        ({"pixel_size": {"x": {"value": 0, "unit": None}}}, "pixel_size"),
        ({"pixel_size": {"x": {"value": 1.0, "unit": 3}}}, "pixel_size"),
        ({"pixel_size": {"x": 1.0}}, "pixel_size"),
        ({"example": [0.0]}, "example"),
        ({"training": None}, "training"),
        ({"training": {"epochs": 4}}, "digest"),
        ({"provenance": "me"}, "provenance"),
        ({"more": 1}, "more"),
        ({"digest": None}, "digest"),
        ({"digest": ""}, "digest"),
        ({"digest": "0"}, "digest"),
    ],
)
def test_a_spoilt_header_is_refused_by_the_fields_name(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = model().save(tmp_path / "model")
    spoilt(path, **changes)
    with pytest.raises(ModelError, match=message):
        Denoiser.load(path)


def test_a_missing_field_is_refused_by_name(tmp_path: Path) -> None:
    path = model().save(tmp_path / "model")
    header, tensors = read_tensors(path)
    assert set(header) == {
        "format", "version", "network", "axes", "halo", "stride", "normalisation", "target_normalisation",
        "blind_spot", "patch_size", "pixel_size", "example", "training", "provenance", "digest",
    }  # fmt: skip
    for field in header:
        write_tensors(path, {k: v for k, v in header.items() if k != field}, tensors)
        with pytest.raises(ModelError, match=field):
            Denoiser.load(path)


def test_spoilt_tensors_are_refused_by_name(tmp_path: Path) -> None:
    path = model().save(tmp_path / "model")
    header, tensors = read_tensors(path)
    nan = tensors | {"head.bias": torch.full((1,), torch.nan)}
    double = tensors | {"head.bias": tensors["head.bias"].double()}
    short = {name: value for name, value in tensors.items() if name != "head.bias"}
    for wrong in (nan, double, short, tensors | {"head.more": torch.zeros(1)}):
        write_tensors(path, header, wrong)
        with pytest.raises(ModelError, match=r"head\.(bias|more)"):
            Denoiser.load(path)
    write_tensors(path, header, tensors | {"head.bias": tensors["head.bias"] + 1})
    with pytest.raises(ModelError, match="digest"):
        Denoiser.load(path)


@settings(max_examples=20)
@given(data=st.data())
def test_torn_and_foreign_files_are_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("models")
    whole = Path(model().save(folder / "model")).read_bytes()
    end = data.draw(st.integers(0, len(whole) - 1))
    (folder / "torn.safetensors").write_bytes(whole[:end])
    with pytest.raises(ModelError):
        Denoiser.load(folder / "torn")


class Executed:
    """Would make a folder if it were ever unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("executed",)


def test_foreign_files_are_refused_and_nothing_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    deep = json.dumps({"__metadata__": {"denoizarr": "[" * 100_000}}).encode()
    others = [
        pickle.dumps(Executed()),
        safetensors.torch.save({"a": torch.zeros(1)}),
        safetensors.torch.save({"a": torch.zeros(1)}, metadata={"denoizarr": "[]"}),
        safetensors.torch.save({"a": torch.zeros(1)}, metadata={"denoizarr": "{"}),
        len(deep).to_bytes(8, "little") + deep,
    ]
    for content in others:
        (tmp_path / "other.safetensors").write_bytes(content)
        with pytest.raises(ModelError):
            Denoiser.load(tmp_path / "other")
    assert not (tmp_path / "executed").exists()
    with pytest.raises(ImageNotFound):
        Denoiser.load(tmp_path / "absent")


def test_impossible_requests_are_refused() -> None:
    denoiser = model()
    for shape in ((30, 32), (32,), (1, 32, 32), (0, 32)):
        with pytest.raises(BadRequest, match="stride"):
            denoiser.run_tile(np.zeros(shape, np.float32))
    for array in (np.zeros(8), np.zeros((4, 4), complex), np.zeros((0, 4))):
        with pytest.raises(BadRequest, match="image"):
            denoiser.denoise(array)
    with pytest.raises(BadRequest, match="channels"):
        model(channels=2).denoise(np.zeros((3, 8, 8)))
    with pytest.raises(BadRequest, match="precision"):
        denoiser.to(precision="float16")  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        Normalisation((0.0,), (0.0,))


def test_what_float32_cannot_hold_is_no_normalisation() -> None:
    for mean, std in ((0.0, 1e-50), (1e39, 1.0), (-1e39, 1.0), (0.0, 1e39), (0.0, float("nan"))):
        with pytest.raises(ConfigError, match="mean and std"):
            Normalisation((mean,), (std,))
    assert Normalisation((3e38,), (1e-30,)).std == (1e-30,)


UNWRITABLE = {
    "nan": {"loss": float("nan")},
    "infinity": {"loss": [1.0, float("inf")]},
    "surrogate": {"who": "\ud800"},
    "key": {"\ud800": 1},
    "object": {"what": object()},
}


@pytest.mark.parametrize("record", UNWRITABLE.values(), ids=UNWRITABLE)
@pytest.mark.parametrize("name", ["training", "provenance"])
def test_records_that_json_cannot_hold_are_refused(
    name: str, record: dict[str, object], tmp_path: Path
) -> None:
    shape = NetworkShape(features=1, depth=1)
    weights = build_network(shape).state_dict()
    with pytest.raises(ConfigError, match=name):
        Denoiser(shape, weights, Normalisation((0.0,), (1.0,)), **{name: record})  # type: ignore[arg-type]
    denoiser = Denoiser(shape, weights, Normalisation((0.0,), (1.0,)))
    getattr(denoiser, name).update(record)
    with pytest.raises(ConfigError, match=name):
        denoiser.save(tmp_path / "model")
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("record", [r for n, r in UNWRITABLE.items() if n != "object"])
@pytest.mark.parametrize("name", ["training", "provenance", "pixel_size"])
def test_records_in_a_file_that_are_no_json_are_refused(
    name: str, record: dict[str, object], tmp_path: Path
) -> None:
    path = model().save(tmp_path / "model")
    header, tensors = read_tensors(path)
    text = json.dumps(header | {name: record})
    Path(path).write_bytes(safetensors.torch.save(tensors, metadata={"denoizarr": text}))
    with pytest.raises(ModelError, match=name):
        Denoiser.load(path)


def test_half_a_letter_as_a_unit_is_refused() -> None:
    shape = NetworkShape(features=1, depth=1)
    with pytest.raises(ConfigError, match="pixel"):
        Denoiser(
            shape,
            build_network(shape).state_dict(),
            Normalisation((0.0,), (1.0,)),
            pixel_size={"x": {"value": 1.0, "unit": "\udfff"}},
        )
