"""Tiles equal the whole, the reach computed from the layers is the true one, folding changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from denoizarr.errors import ConfigError
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.tiling import tiles_of
from denoizarr.kernels.unet import NetworkShape, UNet, build_network, fold_batch_norm, halo_of

SHAPES = [
    NetworkShape(features=4, depth=depth, norm=norm, upsampling=upsampling)
    for depth, norm, upsampling in [
        (1, "batch", "nearest"),
        (2, "batch", "nearest"),
        (2, "none", "transposed"),
        (3, "none", "nearest"),
    ]
]


def trained(shape: NetworkShape, seed: int = 0) -> UNet:
    """Return a network whose weights and running statistics all matter, in float64."""
    net = build_network(shape, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            for value in (module.running_mean, module.weight, module.bias):
                value.data.normal_(generator=generator)
            module.running_var.data.uniform_(0.5, 2, generator=generator)
    return net.double().eval()


def run(net: UNet, array: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return net(torch.from_numpy(array)[None, None])[0, 0].numpy()


def worst_tile(net: UNet, shape: tuple[int, ...], halo: int, shift: int = 0, tile: int = 24) -> float:
    """Return the largest difference between tiles and the whole, in standard deviations of the whole."""
    image = np.random.default_rng(0).normal(size=shape)
    whole = run(net, image)
    worst = 0.0
    ndim, stride = net.shape.ndim, net.shape.stride
    for part in tiles_of(Box.whole(shape), (tile,) * ndim, shape, (halo,) * ndim, (stride,) * ndim):
        start = tuple(max(a - shift, 0) for a in part.read.start)
        # A shifted origin shifts the end, too, for the extent to stay a multiple of the stride.
        extent = tuple((b - a) // stride * stride for a, b in zip(start, part.read.stop, strict=True))
        read = Box(start, tuple(a + n for a, n in zip(start, extent, strict=True)))
        valid = part.valid.clip(read.stop)
        got = run(net, np.ascontiguousarray(image[read.slices]))[valid.relative_to(read.start).slices]
        worst = max(worst, float(np.abs(got - whole[valid.slices]).max()))
    return worst / float(whole.std())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_on_the_grid_equal_the_whole(shape: NetworkShape) -> None:
    assert worst_tile(trained(shape), (136, 152), halo_of(shape)) < 1e-12


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_halo_one_stride_short_is_seen(shape: NetworkShape) -> None:
    assert worst_tile(trained(shape), (136, 152), halo_of(shape) - shape.stride) > 1e-9


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_origin_off_the_grid_is_seen(shape: NetworkShape) -> None:
    assert worst_tile(trained(shape), (136, 152), halo_of(shape) + shape.stride, shift=1) > 1e-4


def test_tiles_in_three_dimensions_equal_the_whole() -> None:
    shape = NetworkShape(ndim=3, features=1, depth=1)
    assert worst_tile(trained(shape), (20, 22, 40), halo_of(shape), tile=8) < 1e-12


def test_halos_of_the_usual_depths() -> None:
    assert [halo_of(NetworkShape(depth=depth)) for depth in (2, 3, 4)] == [24, 48, 96]


@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_reach_equals_the_support_of_the_gradient(depth: int, upsampling: str) -> None:
    # Positive weights and mean pooling: no path from input to output can cancel or lose a maximum.
    shape = NetworkShape(features=1, depth=depth, norm="none", upsampling=upsampling)  # type: ignore[arg-type]
    net = build_network(shape).double()
    for parameter in net.parameters():
        parameter.data.fill_(0.1)
    net.pool = nn.AvgPool2d(2)  # type: ignore[assignment]
    middle = 16 * shape.stride
    for voxel in range(middle, middle + shape.stride):
        image = torch.ones(1, 1, shape.stride, 2 * middle, dtype=torch.float64, requires_grad=True)
        net(image)[0, 0, 0, voxel].backward()
        seen = torch.nonzero(image.grad[0, 0].sum(0))[:, 0]
        assert (int(seen.min()), int(seen.max())) == net.reach_of(voxel)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_folding_the_norm_changes_nothing(shape: NetworkShape) -> None:
    net = trained(shape)
    folded = fold_batch_norm(net)
    assert folded.shape == replace(shape, norm="none")
    image = np.random.default_rng(0).normal(size=(32, 40))
    expected = run(net, image)
    np.testing.assert_allclose(run(folded, image), expected, atol=1e-12 * np.abs(expected).max())


def test_weights_are_a_function_of_the_seed_alone() -> None:
    shape = NetworkShape(features=2)
    torch.manual_seed(1)
    one = build_network(shape, seed=5).state_dict()
    torch.manual_seed(2)
    two, other = build_network(shape, seed=5).state_dict(), build_network(shape, seed=6).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
    before = torch.get_rng_state()
    fold_batch_norm(build_network(shape, seed=5))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("field", "value"),
    [("ndim", 1), ("features", 0), ("features", 10**9), ("depth", 0), ("depth", True), ("norm", "group")],
)
def test_an_impossible_shape_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        NetworkShape(**{field: value})  # type: ignore[arg-type]
