"""Networks as users write them, importable on worker processes: fit for tiles, and not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def convolution(ndim: int, *args: int, **kwargs: object) -> nn.Module:
    return (nn.Conv2d if ndim == 2 else nn.Conv3d)(*args, **kwargs)  # type: ignore[arg-type]


class Plain(nn.Module):
    """Three convolutions, 3 wide: a halo of 3, no stride."""

    def __init__(self, ndim: int = 2, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            convolution(ndim, a, b, 3, padding=1) for a, b in ((1, 4), (4, 4), (4, 1))
        )
        self.activation = activation or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class AveragePooled(nn.Module):
    """A small U-Net with mean pooling by 2, bilinear upsampling and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU())
        self.deep = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GELU())
        self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        deep = self.deep(functional.avg_pool2d(skip, 2))
        raised = functional.interpolate(deep, scale_factor=2, mode="bilinear", align_corners=False)
        return self.last(torch.cat((raised, skip), 1))


class Residual(nn.Module):
    """The input is added back, and the last weights begin as zeros, as some authors have it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Plain()
        nn.init.zeros_(self.body.layers[-1].weight)
        nn.init.zeros_(self.body.layers[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        return self.last(x * torch.sigmoid(self.gate(x.mean((-2, -1), keepdim=True))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.last = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        q = self.query(x).flatten(2).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(q, q, q)
        return self.last(mixed.transpose(1, 2).reshape(x.shape[0], 2, *x.shape[2:]))


class Standardised(nn.Module):
    """Plain, but each tile is first brought to zero mean and unit variance."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Plain()

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - x.mean()) / x.std())


class Answers(nn.Module):
    """Answers with what it was told to, to be refused."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.layer = what, nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> object:
        y = self.layer(x)
        return {
            "smaller": y[..., 1:],
            "two channels": torch.cat((y, y), 1),
            "float32": y.float(),
            "pair": (y, y),
            "noise": y + torch.rand_like(y),
            "batch": y + x.mean(0, keepdim=True),
            "nan": y / 0,
            "nothing": y * 0,
        }[self.what]


class Switching(nn.Module):
    """Two layers whose activation depends on what the tile holds, or how large it is."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        switched = {
            "greatest": bool(x.max() > 3),
            "far greatest": bool(x.max() > 100),
            "least": bool(x.min() < -100),
            "mean": bool(x.mean() > 0.3),
            "long": x.shape[-1] > 100,
            "as long as a prediction's tile": x.shape[-1] > 600,
            "high": x.shape[-2] > 600,
        }[self.what]
        hidden = self.first(x)
        return self.last(hidden if switched else functional.relu(hidden))


class Wrapped(Plain):
    """Plain, but its borders are the opposite ones."""

    def __init__(self) -> None:
        super().__init__()
        for layer in self.layers:
            layer.padding_mode = "circular"
            layer._reversed_padding_repeated_twice = [1, 1, 1, 1]


class Padding(Plain):
    """Plain on cells of 8, for any extent: pads at the far end and crops."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = functional.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
        pooled = functional.interpolate(functional.avg_pool2d(x, 8), scale_factor=8)
        return super().forward(pooled)[..., :height, :width]


class Faint(Plain):
    """Plain, and so little of a coarser grid that float32 does not show it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-7 * functional.interpolate(functional.avg_pool2d(x, 2), scale_factor=2)


class Unweighted(Plain):
    """Has weights and does not use them."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Double(Plain):
    """A constant in float64, outside of its state, makes its answers float64."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.ones(1, 1, 1, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain


class InPlace(Plain):
    """Works in the place of its input."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2).add_(1)
        return super().forward(x)


class Counting(nn.Module):
    """Counts what it is asked to compute: voxels, twice as dear in float64 and thrice with a gradient."""

    cost = 0.0

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        dear = (2 if x.dtype == torch.float64 else 1) * (3 if torch.is_grad_enabled() else 1)
        Counting.cost += dear * x.numel()
        return self.network(x)
