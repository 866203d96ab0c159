"""Tiles equal the whole, the reach computed from the layers is the true one, folding changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from denoizarr.errors import ConfigError
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.tiling import tiles_of
from denoizarr.kernels import unet
from denoizarr.kernels.unet import (
    BlurPool,
    ConvolutionPair,
    NetworkShape,
    UNet,
    build_network,
    fold_batch_norm,
    halo_of,
)

SHAPES = [
    NetworkShape(features=4, depth=depth, norm=norm, upsampling=upsampling, n2v2=n2v2)
    for depth, norm, upsampling, n2v2 in [
        (1, "batch", "nearest", False),
        (2, "batch", "nearest", False),
        (2, "none", "transposed", False),
        (3, "none", "nearest", False),
        (1, "none", "transposed", True),
        (2, "batch", "nearest", True),
        (2, "none", "transposed", True),
        (3, "none", "nearest", True),
    ]
]
VOLUME_SHAPES = [
    NetworkShape(ndim=3, features=4, depth=1, norm=norm, upsampling=upsampling, n2v2=n2v2)
    for norm, upsampling, n2v2 in [
        ("batch", "nearest", False),
        ("none", "transposed", False),
        ("batch", "transposed", True),
        ("none", "nearest", True),
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


@pytest.mark.parametrize("shape", VOLUME_SHAPES, ids=str)
def test_tiles_of_volumes_equal_the_whole(shape: NetworkShape) -> None:
    net = trained(shape)
    assert worst_tile(net, (20, 22, 40), halo_of(shape), tile=8) < 1e-12
    assert worst_tile(net, (20, 22, 40), halo_of(shape) - shape.stride, tile=8) > 1e-9


def test_a_deep_network_of_volumes_has_the_halo_of_one_of_planes() -> None:
    for depth, n2v2 in ((1, False), (2, True), (3, False)):
        flat, deep = (NetworkShape(ndim=ndim, depth=depth, n2v2=n2v2) for ndim in (2, 3))
        assert halo_of(flat) == halo_of(deep)


def test_halos_of_the_usual_depths() -> None:
    assert [halo_of(NetworkShape(depth=depth)) for depth in (2, 3, 4)] == [24, 48, 96]
    assert [halo_of(NetworkShape(depth=depth, n2v2=True)) for depth in (2, 3, 4)] == [28, 56, 112]


def support_of(net: UNet, voxel: int, width: int) -> tuple[int, int]:
    """Return the first and last input voxel along x that an output voxel in the middle has a gradient to."""
    stride, ndim = net.shape.stride, net.shape.ndim
    image = torch.ones(1, 1, *(stride,) * (ndim - 1), width, dtype=torch.float64, requires_grad=True)
    net(image)[(0, 0, *(0,) * (ndim - 1), voxel)].backward()
    seen = torch.nonzero(image.grad.reshape(-1, width).sum(0))[:, 0]
    return int(seen.min()), int(seen.max())


@pytest.mark.parametrize("n2v2", [False, True], ids=["plain", "n2v2"])
@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
@pytest.mark.parametrize(("ndim", "depth"), [(2, 1), (2, 2), (2, 3), (3, 1), (3, 2)])
def test_reach_equals_the_support_of_the_gradient(
    ndim: int,
    depth: int,
    upsampling: Literal["nearest", "transposed"],
    n2v2: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Positive weights and means in place of maxima: no path from input to output can cancel or lose one.
    shape = NetworkShape(ndim=ndim, features=1, depth=depth, norm="none", upsampling=upsampling, n2v2=n2v2)
    net = build_network(shape).double()
    for parameter in net.parameters():
        parameter.data.fill_(0.1)
    mean = {2: functional.avg_pool2d, 3: functional.avg_pool3d}[ndim]
    monkeypatch.setitem(unet._FUNCTIONAL_POOLS, ndim, (mean, mean))
    if not n2v2:
        net.pool = {2: nn.AvgPool2d, 3: nn.AvgPool3d}[ndim](2)  # type: ignore[assignment]
    middle = (16 if ndim == 2 else 8) * shape.stride
    for voxel in range(middle, middle + shape.stride):
        assert support_of(net, voxel, 2 * middle) == net.reach_of(voxel)


@pytest.mark.parametrize("ndim", [2, 3])
def test_blur_pooling_is_a_maximum_of_two_then_weights_1_2_1(ndim: int) -> None:
    image = np.random.default_rng(0).normal(size=(6, 8, 10)[-ndim:])
    expected = np.pad(image, 1, mode="edge")
    for axis in range(ndim):
        left, right = (np.delete(expected, end, axis) for end in (-1, 0))
        expected = np.maximum(left, right)
    for axis in range(ndim):
        first, second, third = (
            np.take(expected, range(start, expected.shape[axis] - 2 + start, 2), axis) for start in range(3)
        )
        expected = (first + 2 * second + third) / 4
    pooled = BlurPool(ndim)(torch.from_numpy(image)[None, None])[0, 0].numpy()
    assert pooled.shape == tuple(n // 2 for n in image.shape)
    np.testing.assert_allclose(pooled, expected, rtol=1e-13)


@pytest.mark.parametrize("n2v2", [False, True], ids=["plain", "n2v2"])
def test_n2v2_knows_no_way_around_the_bottom_at_the_finest_level(n2v2: bool) -> None:
    net = build_network(NetworkShape(features=2, depth=1, n2v2=n2v2), seed=0)
    for parameter in net.bottom.parameters():
        parameter.data.zero_()
    one, other = net(torch.randn(2, 1, 16, 16))
    assert torch.equal(one, other) == n2v2


@pytest.mark.parametrize("shape", [*SHAPES, *VOLUME_SHAPES], ids=str)
def test_folding_the_norm_changes_nothing(shape: NetworkShape) -> None:
    net = trained(shape)
    folded = fold_batch_norm(net)
    assert folded.shape == replace(shape, norm="none")
    image = np.random.default_rng(0).normal(size=(8, 32, 40)[-shape.ndim :])
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
    [
        ("ndim", 1),
        ("features", 0),
        ("features", 10**9),
        ("depth", 0),
        ("depth", True),
        ("norm", "group"),
        ("n2v2", 1),
    ],
)
def test_an_impossible_shape_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        NetworkShape(**{field: value})  # type: ignore[arg-type]


def plainly(net: UNet, x: torch.Tensor) -> torch.Tensor:
    """The module's picture, layer by layer as torch has them: parts put together first, then convolved."""
    convolve = functional.conv2d if net.shape.ndim == 2 else functional.conv3d

    def pair(block: ConvolutionPair, x: torch.Tensor) -> torch.Tensor:
        for layer, norm in ((block.convolution1, block.norm1), (block.convolution2, block.norm2)):
            x = torch.relu(norm(convolve(x, layer.weight, layer.bias, padding=1)))
        return x

    skips = []
    for level, encoder in enumerate(net.encoders):
        x = pair(encoder, x)
        skips.append(x if net.skips_across(level) else None)
        x = net.pool(x)
    x = pair(net.bottom, x)
    for upsampler, decoder in zip(reversed(net.upsamplers), reversed(net.decoders), strict=True):
        x, skip = upsampler(x), skips.pop()
        x = pair(decoder, x if skip is None else torch.cat((x, skip), 1))
    return convolve(x, net.head.weight, net.head.bias)


@pytest.mark.parametrize("n2v2", [False, True])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(("ndim", "dtype"), [(2, torch.float32), (3, torch.float32), (3, torch.float64)])
def test_the_quick_ways_round_torch_change_nothing(
    ndim: int, dtype: torch.dtype, norm: str, n2v2: bool
) -> None:
    shape = NetworkShape(ndim=ndim, features=8, depth=2, norm=norm, n2v2=n2v2)  # type: ignore[arg-type]
    net = build_network(shape, seed=1).eval().to(dtype)
    inputs = torch.randn(2, 1, *(16,) * ndim, generator=torch.Generator().manual_seed(0), dtype=dtype)
    formats = (torch.contiguous_format, torch.channels_last if ndim == 2 else torch.channels_last_3d)
    for memory_format in formats:
        net = net.to(memory_format=memory_format)
        x = inputs.clone(memory_format=memory_format).requires_grad_()
        y = inputs.clone().requires_grad_()
        found, expected = net(x), plainly(net, y)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-13
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)
        gradient = torch.autograd.grad(found.square().sum(), x)[0]
        plain = torch.autograd.grad(expected.square().sum(), y)[0]
        torch.testing.assert_close(gradient, plain, rtol=0, atol=10 * tolerance * float(plain.abs().max()))
