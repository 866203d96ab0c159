"""The network: a plain U-Net whose reach into its input is computed from its own layers.

With depth 2 and ``f`` features (numbers are channels; each arrow is a 3-wide convolution, then ReLU)::

    1 -> f -> f ----------------------- skip ----------------------> 2f -> f -> f -> 1   level 0
           max pool |                                          | upsample
               f -> 2f -> 2f --------- skip --------> 4f -> 2f -> f                      level 1
                      max pool |                  | upsample
                          2f -> 4f ------------> 2f                                      bottom

The input is not added to the output: a network with such a residual could copy the pixel it is meant to
predict. Group and instance norms are not offered, because they make every output voxel depend on the whole
tile, and then tiles cannot equal the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from denoizarr.errors import ConfigError

Norm = Literal["batch", "none"]
Upsampling = Literal["nearest", "transposed"]

_CONVOLUTIONS: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.ConvTranspose2d | nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_NORMS: dict[int, type[nn.BatchNorm2d | nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOLS: dict[int, type[nn.MaxPool2d | nn.MaxPool3d]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}

# Far above any useful network; a damaged or hostile model file must not make us allocate a terabyte.
_MOST_FEATURES = 1024
_MOST_LEVELS = 6


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """What decides the layers of a network.

    Attributes
    ----------
    ndim : int
        Spatial axes, 2 or 3.
    features : int
        Channels of the finest level; every level below has twice as many.
    depth : int
        How often the network halves its input; the stride is ``2 ** depth`` voxels.
    norm : {"batch", "none"}
        Batch normalisation after every convolution, folded away for inference, or nothing.
    upsampling : {"nearest", "transposed"}
        Repeat every voxel, or a learned transposed convolution of width 2.

    Raises
    ------
    ConfigError
        A value is out of range; the message names the field.
    """

    ndim: int = 2
    features: int = 32
    depth: int = 2
    norm: Norm = "batch"
    upsampling: Upsampling = "nearest"

    def __post_init__(self) -> None:
        _check_range("ndim", self.ndim, 2, 3)
        _check_range("features", self.features, 1, _MOST_FEATURES)
        _check_range("depth", self.depth, 1, _MOST_LEVELS)
        for field, choices in (("norm", ("batch", "none")), ("upsampling", ("nearest", "transposed"))):
            if getattr(self, field) not in choices:
                got = repr(getattr(self, field))
                raise ConfigError("no such layer", where=field, got=got, expected=" or ".join(choices))

    @property
    def stride(self) -> int:
        """Voxels per axis that every tile's origin and extent must be a multiple of."""
        return int(2**self.depth)


def _check_range(field: str, value: object, lowest: int, highest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise ConfigError(
            "a network of this shape cannot be built",
            where=field,
            got=repr(value),
            expected=f"an integer from {lowest} to {highest}",
        )


class ConvolutionPair(nn.Module):
    """Two 3-wide convolutions, each followed by its norm, if there is one, and ReLU."""

    def __init__(self, shape: NetworkShape, before: int, between: int, after: int) -> None:
        super().__init__()
        convolution, normalised = _CONVOLUTIONS[shape.ndim], shape.norm == "batch"
        self.convolution1 = convolution(before, between, 3, padding=1, bias=not normalised)
        self.norm1 = _NORMS[shape.ndim](between) if normalised else nn.Identity()
        self.convolution2 = convolution(between, after, 3, padding=1, bias=not normalised)
        self.norm2 = _NORMS[shape.ndim](after) if normalised else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, before, ...) to (n, after, ...)."""
        x = functional.relu_(self.norm1(self.convolution1(x)))
        return functional.relu_(self.norm2(self.convolution2(x)))

    def widen(self, first: int, last: int) -> tuple[int, int]:
        """Return the voxels of the input that the output voxels ``first..last`` read."""
        reach = sum(int(c.kernel_size[0]) // 2 for c in (self.convolution1, self.convolution2))
        return first - reach, last + reach


class UNet(nn.Module):
    """The network of the module's picture; build it with :func:`build_network`."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        width = [shape.features * 2**level for level in range(shape.depth + 1)]
        self.encoders = nn.ModuleList(
            ConvolutionPair(shape, width[level - 1] if level else 1, width[level], width[level])
            for level in range(shape.depth)
        )
        self.bottom = ConvolutionPair(shape, width[-2], width[-1], width[-2])
        self.decoders = nn.ModuleList(
            ConvolutionPair(shape, 2 * width[level], width[level], width[max(level - 1, 0)])
            for level in range(shape.depth)
        )
        self.upsamplers = nn.ModuleList(_upsampler(shape, width[level]) for level in range(shape.depth))
        self.pool = _POOLS[shape.ndim](2)
        self.head = _CONVOLUTIONS[shape.ndim](shape.features, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, 1, [z,] y, x) to the same shape; extents are multiples of the stride."""
        skips = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for upsampler, decoder in zip(reversed(self.upsamplers), reversed(self.decoders), strict=True):
            x = torch.cat((upsampler(x), skips.pop()), 1)
            x = decoder(x)
        return cast("Tensor", self.head(x))

    def reach_of(self, voxel: int) -> tuple[int, int]:
        """Return the first and last input voxel, along one axis, that output ``voxel`` can depend on.

        Walks the layers from the output to the input with the interval of voxels read so far: a convolution
        widens it by half its kernel, upsampling halves it, pooling doubles it.
        """
        first, last, skipped = voxel, voxel, []
        for decoder in cast("list[ConvolutionPair]", list(self.decoders)):
            first, last = decoder.widen(first, last)
            skipped.append((first, last))
            first, last = first // 2, last // 2
        first, last = self.bottom.widen(first, last)
        for encoder in cast("list[ConvolutionPair]", list(reversed(self.encoders))):
            across = skipped.pop()
            first, last = min(2 * first, across[0]), max(2 * last + 1, across[1])
            first, last = encoder.widen(first, last)
        return first, last


def _upsampler(shape: NetworkShape, channels: int) -> nn.Module:
    if shape.upsampling == "transposed":
        return _TRANSPOSED[shape.ndim](channels, channels, 2, stride=2)
    return nn.Upsample(scale_factor=2, mode="nearest")


def build_network(shape: NetworkShape, *, seed: int | None = None) -> UNet:
    """Return a network of this shape.

    Parameters
    ----------
    shape : NetworkShape
        What to build.
    seed : int, optional
        Draw the weights (He et al. 2015, normal, fan in) from a generator of their own, so that they are a
        function of the seed alone; None leaves torch's initialisation from its global generator.

    Returns
    -------
    UNet
        float32, on the CPU, in training mode; maps (n, 1, [z,] y, x) to the same shape.
    """
    if seed is None:
        return UNet(shape)
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator
        net = UNet(shape)
        generator = torch.Generator().manual_seed(seed)
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                last = module is net.head
                nn.init.kaiming_normal_(
                    module.weight, nonlinearity="linear" if last else "relu", generator=generator
                )
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return net


def halo_of(shape: NetworkShape) -> int:
    """Return how many voxels around a tile the network must read on every side, along every axis.

    Tiles begin and end on the grid of the stride, so the halo counts from the border of the stride's cell
    that holds the voxel (at depth 3 a voxel reaches up to 50 voxels far, but no more than 46 from its cell)::

        first                    cell of one stride                    last
        |<------ halo ------>|-----------voxel------|<------ halo ------>|

    Returns
    -------
    int
        Voxels, a multiple of the stride: 24, 48, 96 for depth 2, 3, 4.
    """
    with torch.device("meta"):
        net = UNet(shape)
    reaches = [net.reach_of(voxel) for voxel in range(shape.stride)]
    widest = max(max(-first, last - (shape.stride - 1)) for first, last in reaches)
    return -(-widest // shape.stride) * shape.stride


def fold_batch_norm(net: UNet) -> UNet:
    """Return the network for inference: every norm folded into the convolution before it.

    Exact up to rounding, also at the image's border, because the zeros of a convolution's padding lie before
    both. In the precision of ``net``; evaluation mode, without gradients, a copy in any case.
    """
    with torch.device("meta"):
        folded = UNet(replace(net.shape, norm="none"))
    state = {name: value.detach().clone() for name, value in net.state_dict().items() if ".norm" not in name}
    if net.shape.norm == "batch":
        for name, module in net.named_modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                _fold_into(state, name.replace("norm", "convolution"), module)
    folded.load_state_dict(state, assign=True)
    return folded.eval().requires_grad_(False)


def _fold_into(state: dict[str, Tensor], convolution: str, norm: nn.BatchNorm2d | nn.BatchNorm3d) -> None:
    # BatchNorm's own eps keeps the root away from zero; running statistics exist for every norm we build.
    mean, variance = cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)
    factor = norm.weight.detach() / torch.sqrt(variance + norm.eps)
    weight = state[f"{convolution}.weight"]
    state[f"{convolution}.weight"] = weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))
    state[f"{convolution}.bias"] = norm.bias.detach() - mean * factor
