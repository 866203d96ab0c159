"""The network: a plain U-Net whose reach into its input is computed from its own layers.

With depth 2 and ``f`` features (numbers are channels; each arrow is a 3-wide convolution, then ReLU)::

    1 -> f -> f ----------------------- skip ----------------------> 2f -> f -> f -> 1   level 0
           max pool |                                          | upsample
               f -> 2f -> 2f --------- skip --------> 4f -> 2f -> f                      level 1
                      max pool |                  | upsample
                          2f -> 4f ------------> 2f                                      bottom

N2V2 (Hoeck et al. 2022) leaves out the skip of level 0 and blurs after every max pooling: what is left of the
blind spots' own high frequencies, a checkerboard, has no way around the bottom.

The input is not added to the output: a network with such a residual could copy the pixel it is meant to
predict. Group and instance norms are not offered, because they make every output voxel depend on the whole
tile, and then tiles cannot equal the whole image.
"""

from __future__ import annotations

from collections.abc import Callable
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
_FUNCTIONAL_POOLS: dict[int, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    2: (functional.max_pool2d, functional.avg_pool2d),
    3: (functional.max_pool3d, functional.avg_pool3d),
}

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
    n2v2 : bool
        No skip at the finest level, and :class:`BlurPool` in place of max pooling.

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
    n2v2: bool = False

    def __post_init__(self) -> None:
        _check_range("ndim", self.ndim, 2, 3)
        _check_range("features", self.features, 1, _MOST_FEATURES)
        _check_range("depth", self.depth, 1, _MOST_LEVELS)
        for field, choices in (("norm", ("batch", "none")), ("upsampling", ("nearest", "transposed"))):
            if getattr(self, field) not in choices:
                got = repr(getattr(self, field))
                raise ConfigError("no such layer", where=field, got=got, expected=" or ".join(choices))
        if not isinstance(self.n2v2, bool):
            raise ConfigError(
                "a network is N2V2's or not", where="n2v2", got=repr(self.n2v2), expected="True or False"
            )

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


class VolumeReader(nn.Conv3d):
    """A convolution of volumes of one channel, by oneDNN on the CPU.

    torch takes it for too small, and its own way leaves the channels first: the next layer would copy all
    of them, in twenty times the time of this one (measured with torch 2.13, 1 to 32 channels).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, before, z, y, x) to (n, after, z, y, x)."""
        is_ours = x.device.type == "cpu" and x.dtype is torch.float32
        if not is_ours or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return super().forward(x)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        padding = cast("tuple[int, ...]", self.padding)
        return torch.mkldnn_convolution(
            x, self.weight, self.bias, padding, self.stride, self.dilation, self.groups
        )


class VoxelHead(nn.Conv3d):
    """A 1-wide convolution of volumes as what it is, a product of matrices.

    torch's own copies the volume, channels first, in forty times the time (32 channels to one).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, before, z, y, x) to (n, after, z, y, x)."""
        return functional.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class ConvolutionPair(nn.Module):
    """Two 3-wide convolutions, each followed by its norm, if there is one, and ReLU."""

    def __init__(self, shape: NetworkShape, before: int, between: int, after: int) -> None:
        super().__init__()
        convolution, normalised = _CONVOLUTIONS[shape.ndim], shape.norm == "batch"
        reader = VolumeReader if shape.ndim == 3 and before == 1 else convolution
        self.convolution1 = reader(before, between, 3, padding=1, bias=not normalised)
        self.norm1 = _NORMS[shape.ndim](between) if normalised else nn.Identity()
        self.convolution2 = convolution(between, after, 3, padding=1, bias=not normalised)
        self.norm2 = _NORMS[shape.ndim](after) if normalised else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, before, ...) to (n, after, ...)."""
        return self.finish(self.convolution1(x))

    def joined(self, parts: list[Tensor]) -> Tensor:
        """Map the channels of several tensors as if they were one behind the other; empties the list.

        Each is convolved by itself and given up: put together first they would be copied, and what they are
        put into would be half of the memory at the peak.
        """
        convolve = functional.conv2d if parts[0].ndim == 4 else functional.conv3d
        weight, bias, begin = self.convolution1.weight, self.convolution1.bias, 0
        x: Tensor | None = None
        while parts:
            end = begin + parts[0].shape[1]
            y = convolve(parts.pop(0), weight[:, begin:end], bias if x is None else None, padding=1)
            x, begin = y if x is None else x.add_(y), end
            del y
        assert x is not None, "something to join"
        return self.finish(x)

    def finish(self, x: Tensor) -> Tensor:
        """Map what the first convolution gave, (n, between, ...), to (n, after, ...)."""
        x = functional.relu_(self.norm1(x))
        return functional.relu_(self.norm2(self.convolution2(x)))

    def widen(self, first: int, last: int) -> tuple[int, int]:
        """Return the voxels of the input that the output voxels ``first..last`` read."""
        reach = sum(int(c.kernel_size[0]) // 2 for c in (self.convolution1, self.convolution2))
        return first - reach, last + reach


class BlurPool(nn.Module):
    """Max pooling with less aliasing: the largest of 2 at every voxel, then a 1-2-1 mean at every other one.

    Along each axis output ``j`` reads voxels ``2j - 1`` to ``2j + 2``, edge values beyond the border::

        voxels      2j-1    2j   2j+1   2j+2
        largest       |--1--|--2--|--1--|       weights, over 4

    Source: Zhang 2019, "Making convolutional networks shift-invariant again"; Hoeck et al. 2022 for N2V2.
    """

    def __init__(self, ndim: int) -> None:
        super().__init__()
        self.ndim = ndim

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, [z,] y, x) to half the extents, which are even."""
        largest, mean = _FUNCTIONAL_POOLS[self.ndim]
        x = largest(functional.pad(x, (1, 1) * self.ndim, mode="replicate"), 2, 1)
        # Two means of 2, one upon the other, are the weights 1-2-1.
        return mean(mean(x, 2, 1), 2, 2)


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
            ConvolutionPair(
                shape,
                width[level] * (2 if self.skips_across(level) else 1),
                width[level],
                width[max(level - 1, 0)],
            )
            for level in range(shape.depth)
        )
        self.upsamplers = nn.ModuleList(_upsampler(shape, width[level]) for level in range(shape.depth))
        self.pool = BlurPool(shape.ndim) if shape.n2v2 else _POOLS[shape.ndim](2)
        self.head = (nn.Conv2d if shape.ndim == 2 else VoxelHead)(shape.features, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, 1, [z,] y, x) to the same shape; extents are multiples of the stride."""
        skips = []
        for level, encoder in enumerate(self.encoders):
            x = encoder(x)
            skips.append(x if self.skips_across(level) else None)
            x = self.pool(x)
        x = self.bottom(x)
        decoders = cast("list[ConvolutionPair]", list(self.decoders))
        for upsampler, decoder in zip(reversed(self.upsamplers), reversed(decoders), strict=True):
            # Whatever had a name here would live on: three times the features at most, where it would be six.
            parts, skip = [upsampler(x)], skips.pop()
            parts += [] if skip is None else [skip]
            del skip
            x = decoder.joined(parts)
        return cast("Tensor", self.head(x))

    def skips_across(self, level: int) -> bool:
        """Return whether the decoder of this level (0 is the finest) also reads what its encoder wrote."""
        return level > 0 or not self.shape.n2v2

    def reach_of(self, voxel: int) -> tuple[int, int]:
        """Return the first and last input voxel, along one axis, that output ``voxel`` can depend on.

        Walks the layers from the output to the input with the interval of voxels read so far: a convolution
        widens it by half its kernel, upsampling halves it, pooling doubles it (and blurring adds one voxel).
        """
        first, last, skipped = voxel, voxel, []
        blur = int(self.shape.n2v2)
        for decoder in cast("list[ConvolutionPair]", list(self.decoders)):
            first, last = decoder.widen(first, last)
            skipped.append((first, last))
            first, last = first // 2, last // 2
        first, last = self.bottom.widen(first, last)
        for level, encoder in reversed(list(enumerate(cast("list[ConvolutionPair]", list(self.encoders))))):
            first, last = 2 * first - blur, 2 * last + 1 + blur
            across = skipped.pop()
            if self.skips_across(level):
                first, last = min(first, across[0]), max(last, across[1])
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
        Voxels, a multiple of the stride: 24, 48, 96 for depth 2, 3, 4; with N2V2's pooling 28, 56, 112.
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
