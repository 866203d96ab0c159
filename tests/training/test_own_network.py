"""A network of one's own is measured right, or refused; what it is made of travels without its weights."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from denoizarr.errors import BadRequest, ModelError
from denoizarr.kernels.unet import NetworkShape, build_network, halo_of
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.normalisation import Normalisation
from denoizarr.training.own_network import OwnNetwork, measure_network
from denoizarr.training.tensor_files import read_tensors, write_tensors
from tests.own_networks import (
    Answers,
    Attention,
    AveragePooled,
    Counting,
    Double,
    Faint,
    Padding,
    Plain,
    Residual,
    SqueezeExcite,
    Standardised,
    Switching,
    Unweighted,
    Wrapped,
    convolution,
)

SWITCHES = (
    "greatest",
    "far greatest",
    "least",
    "mean",
    "long",
    "as long as a prediction's tile",
    "high",
)
NORMALISATION = Normalisation((100.0,), (20.0,))


def own_denoiser(module: nn.Module, ndim: int = 2, **options: object) -> Denoiser:
    network = measure_network(module, ndim)
    return Denoiser(network, module.state_dict(), NORMALISATION, patch_size=(16,) * ndim, **options)  # type: ignore[arg-type]


def test_importing_it_does_not_change_torch() -> None:
    torch.manual_seed(7)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(7)
    module = Plain().train()
    torch.manual_seed(7)
    before = copy.deepcopy(module.state_dict())
    measure_network(module, 2)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
@pytest.mark.parametrize("n2v2", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_is_measured_is_what_our_layers_say(depth: int, n2v2: bool, upsampling: str, norm: str) -> None:
    shape = NetworkShape(features=2, depth=depth, n2v2=n2v2, upsampling=upsampling, norm=norm)  # type: ignore[arg-type]
    found = measure_network(build_network(shape), 2)
    assert (found.stride, found.halo) == ((shape.stride,) * 2, (halo_of(shape),) * 2)


def test_a_deep_network_and_a_volume() -> None:
    deep = NetworkShape(features=1, depth=4)
    assert measure_network(build_network(deep), 2).halo == (96, 96)
    volume = NetworkShape(ndim=3, features=1, depth=1)
    found = measure_network(build_network(volume), 3)
    assert (found.stride, found.halo) == ((2, 2, 2), (8, 8, 8))


@pytest.mark.parametrize(
    ("module", "ndim", "stride", "halo"),
    [
        (Plain(), 2, (1, 1), (3, 3)),
        (Plain(3), 3, (1, 1, 1), (3, 3, 3)),
        (nn.Sequential(nn.Conv2d(1, 1, (1, 5), padding=(0, 2))), 2, (1, 1), (0, 2)),
        (nn.Sequential(convolution(3, 1, 1, (1, 3, 3), padding=(0, 1, 1))), 3, (1, 1, 1), (0, 1, 1)),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3, padding=8, dilation=8), nn.Tanh(), nn.Conv2d(2, 1, 1)),
            2,
            (1, 1),
            (8, 8),
        ),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(3, 1, 1)), 2, (1, 1), (2, 2)),
        (nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.PixelShuffle(2)), 2, (2, 2), (2, 2)),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3, stride=3), nn.ConvTranspose2d(2, 1, 3, stride=3)),
            2,
            (3, 3),
            (0, 0),
        ),
        (AveragePooled(), 2, (2, 2), (6, 6)),
        (Residual(), 2, (1, 1), (3, 3)),
        (Padding(), 2, (8, 8), (8, 8)),
        (Faint(), 2, (2, 2), (4, 4)),
        (Standardised().body, 2, (1, 1), (3, 3)),
    ],
)
def test_networks_that_see_a_neighbourhood_are_accepted(
    module: nn.Module, ndim: int, stride: tuple[int, ...], halo: tuple[int, ...]
) -> None:
    found = measure_network(module, ndim)
    assert (found.stride, found.halo) == (stride, halo)
    assert type(module).__name__ in found.description


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.InstanceNorm2d(2), nn.Conv2d(2, 1, 1)),
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Conv2d(4, 1, 1)),
        SqueezeExcite(),
        Standardised(),
        Attention(),
        Wrapped(),
        *map(Switching, SWITCHES),
    ],
    ids=["instance", "group", "squeeze", "standardised", "attention", "wrapped", *SWITCHES],
)
def test_networks_that_see_the_whole_tile_are_refused(module: nn.Module) -> None:
    with pytest.raises(BadRequest, match=r"whole tile.*normalisation per tile"):
        measure_network(module, 2)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Answers("smaller"), "shape"),
        (Answers("two channels"), "shape"),
        (Answers("float32"), "type"),
        (Answers("pair"), "tensor"),
        (Answers("noise"), "otherwise"),
        (Answers("batch"), "mixes"),
        (Answers("nan"), "finite"),
        (Answers("nothing"), "depend"),
        (Unweighted(), "weights"),
        (Double(), "type"),
        (nn.Conv2d(3, 1, 3, padding=1), "one channel"),
        (nn.Conv3d(1, 1, 3, padding=1), "one channel"),
        (nn.LazyConv2d(1, 3, padding=1), "first run"),
        (nn.ReLU(), "weights"),
        ("a path", "Module"),
    ],
)
def test_what_is_no_network_for_images_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        measure_network(module, 2)


@pytest.mark.parametrize(("ndim", "depth", "most"), [(2, 4, 5e5), (3, 1, 8e5)])
def test_measuring_costs_seconds_for_large_networks(
    ndim: int, depth: int, most: float, caplog: pytest.LogCaptureFixture
) -> None:
    """The classic U-Net of 64 features costs 10 microseconds of a CPU per voxel."""
    Counting.cost = 0.0
    with caplog.at_level("INFO"):
        found = measure_network(Counting(build_network(NetworkShape(ndim, 1, depth))), ndim)
    assert found.stride == (2**depth,) * ndim
    assert 0 < Counting.cost < most
    assert "reaches" in caplog.records[0].message


def test_only_two_or_three_axes() -> None:
    with pytest.raises(BadRequest, match="axes"):
        measure_network(Plain(), 1)


def test_a_structure_is_small_and_takes_weights_back() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 256, 3, padding=1), nn.BatchNorm2d(256), nn.Conv2d(256, 1, 3, padding=1)
    )
    module.eval()
    network = OwnNetwork(module, 2, (2, 2), (1, 1), "some")
    sent = pickle.dumps(network.structure())
    assert len(sent) < len(pickle.dumps(network)) / 2
    back: OwnNetwork = pickle.loads(sent)  # noqa: S301
    assert back == network
    tile = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(back.with_weights(module.state_dict())(tile), module(tile))


def test_tied_weights_and_buffers_outside_the_state_travel_too() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(1, 1, 3, padding=1)
            self.two = self.one
            self.register_buffer("blur", torch.ones(1, 1, 3, 3) / 9, persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(nn.functional.conv2d(self.one(x), self.blur, padding=1))  # type: ignore[arg-type]

    module = Tied()
    denoiser = own_denoiser(module)
    assert denoiser.halo == (3, 3)
    tile = np.random.default_rng(0).normal(100, 20, (12, 12))
    with torch.no_grad():
        expected = module.double()(torch.from_numpy((tile - 100) / 20)[None, None])[0, 0].numpy() * 20 + 100
    np.testing.assert_allclose(denoiser.to(precision="float64").run_tile(tile), expected)


@pytest.mark.parametrize("ndim", [2, 3])
def test_tiles_of_ones_own_network_equal_the_whole(ndim: int) -> None:
    denoiser = own_denoiser(Plain(ndim), ndim).to(precision="float64")
    image = np.random.default_rng(0).normal(100, 20, (66, 20, 70) if ndim == 3 else (600, 530))
    whole = denoiser.run_tile(image)
    assert np.abs(denoiser.denoise(image) - whole).max() <= 1e-12 * image.std()


def test_a_file_needs_the_same_network(tmp_path: Path) -> None:
    one = own_denoiser(Plain())
    path = one.save(tmp_path / "model")
    two = Denoiser.load(path, network=Plain())
    assert two.digest == one.digest
    assert Denoiser.load(path, network=one.network).digest == one.digest  # type: ignore[arg-type]
    image = np.random.default_rng(0).normal(100, 20, (20, 21))
    np.testing.assert_array_equal(two.denoise(image), one.denoise(image))
    with pytest.raises(ModelError, match=r"network=module"):
        Denoiser.load(path)
    with pytest.raises(ModelError, match="example"):
        Denoiser.load(path, network=Plain(activation=nn.Tanh()))  # same weights by name and shape
    dilated = Plain()
    dilated.layers[1] = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
    with pytest.raises(ModelError, match="halo"):
        Denoiser.load(path, network=dilated)
    wider = Plain()
    wider.layers[0], wider.layers[1] = nn.Conv2d(1, 5, 3, padding=1), nn.Conv2d(5, 4, 3, padding=1)
    with pytest.raises(ModelError, match=r"layers\.0"):
        Denoiser.load(path, network=wider)


def test_a_file_is_proven_without_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own_denoiser(AveragePooled()).save(tmp_path / "model")
    plain = own_denoiser(Plain()).save(tmp_path / "plain")

    def refused(*_: object) -> None:
        raise AssertionError("a search")

    monkeypatch.setattr("denoizarr.training.own_network.measured_reach", refused)
    assert Denoiser.load(path, network=AveragePooled().requires_grad_(False)).stride == (2, 2)
    with pytest.raises(ModelError, match="halo"):
        Denoiser.load(plain, network=Switching("far greatest"))
    for other in (AveragePooled(), Double(), "a path"):
        with pytest.raises(ModelError, match="network"):
            Denoiser.load(plain, network=other)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), [("halo", [60000, 60000]), ("stride", [60000, 60000])])
def test_a_vast_reach_in_a_file_costs_nothing(tmp_path: Path, name: str, value: list[int]) -> None:
    path = own_denoiser(Plain()).save(tmp_path / "model")
    header, tensors = read_tensors(path)
    write_tensors(path, header | {name: value}, tensors)
    with pytest.raises(ModelError, match=f"{name}.*at most"):
        Denoiser.load(path, network=Plain())


def test_our_own_files_take_no_network(tmp_path: Path) -> None:
    shape = NetworkShape(features=2, depth=1)
    ours = Denoiser(shape, build_network(shape).state_dict(), NORMALISATION)
    with pytest.raises(ModelError, match="without network="):
        Denoiser.load(ours.save(tmp_path / "ours"), network=Plain())


@pytest.mark.parametrize("example", [None, [], ["a"], [float(n) for n in range(16)]])
def test_a_spoilt_example_is_refused(tmp_path: Path, example: object) -> None:
    path = own_denoiser(Plain()).save(tmp_path / "model")
    header, tensors = read_tensors(path)
    write_tensors(path, header | {"example": example}, tensors)
    with pytest.raises(ModelError, match=r"example|digest"):
        Denoiser.load(path, network=Plain())


def test_memory_is_projected_from_a_run() -> None:
    small, large = (
        own_denoiser(Plain()),
        own_denoiser(nn.Sequential(nn.Conv2d(1, 64, 1), nn.Conv2d(64, 1, 1))),
    )
    assert 4 * 4 * 2 < small.bytes_per_voxel < large.bytes_per_voxel
    assert 64 * 4 < large.bytes_per_voxel < 3 * 64 * 4
    assert large.to(precision="float64").bytes_per_voxel > 2 * large.bytes_per_voxel


class WithTable(nn.Module):
    """Makes something large in every run that has nothing to do with the size of its input."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.body, self.values = Plain(), values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = torch.zeros(self.values)
        return self.body(x) + table[0]


def test_what_does_not_grow_with_the_tile_is_not_counted_for_every_voxel() -> None:
    plain, table = own_denoiser(Plain()), own_denoiser(WithTable(10**6))
    assert plain.bytes_per_voxel <= table.bytes_per_voxel <= 1.5 * plain.bytes_per_voxel


@pytest.mark.parametrize("stride", [(1, 1), (4, 4), (3, 5), (16, 64)])
def test_memory_is_projected_whatever_the_stride(stride: tuple[int, int]) -> None:
    from denoizarr.training.own_network import peak_bytes_per_voxel

    wide = nn.Sequential(nn.Conv2d(1, 64, 1), nn.Conv2d(64, 1, 1))
    assert 64 * 4 < peak_bytes_per_voxel(wide, stride, torch.float32) < 3 * 64 * 4
