"""A network's prediction at a centre has no gradient to a hidden pixel, through the fill and the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from denoizarr.kernels.blindspot import STRATEGIES, draw_blind_spots
from denoizarr.kernels.unet import NetworkShape, UNet, build_network

KERNELS = {
    "pixel": np.ones((1, 1), np.bool_),
    "row": np.ones((1, 9), np.bool_),
    "square": np.ones((5, 5), np.bool_),
    "voxel": np.ones((1, 1, 1), np.bool_),
    "cross": ndimage.generate_binary_structure(3, 1),
}


def network_for(kernel: np.ndarray, n2v2: bool = False) -> UNet:
    shape = NetworkShape(ndim=kernel.ndim, features=3, depth=2, n2v2=n2v2)
    return build_network(shape, seed=1).double()


def patches_for(kernel: np.ndarray) -> torch.Tensor:
    size = (24, 32) if kernel.ndim == 2 else (8, 12, 16)
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 1, *size, generator=generator, dtype=torch.float64, requires_grad=True)


def gradient_of(predicted: torch.Tensor, where: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a random mixture of predictions: what one of them reads, the mixture reads."""
    weights = torch.randn(predicted.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return torch.autograd.grad((predicted * weights * where).sum(), patches, retain_graph=True)[0]


def hidden_by(centres: torch.Tensor, kernel: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([ndimage.binary_dilation(c[0].numpy(), kernel) for c in centres]))[
        :, None
    ]


@pytest.mark.parametrize("n2v2", [False, True], ids=["plain", "n2v2"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_no_prediction_has_a_gradient_to_a_hidden_pixel(
    kernel: np.ndarray, strategy: str, n2v2: bool
) -> None:
    patches, network = patches_for(kernel), network_for(kernel, n2v2)
    numbers = torch.arange(2)
    filled, centres = draw_blind_spots(patches, kernel, 1.5, strategy, seed=1, epoch=0, numbers=numbers)
    hidden = hidden_by(centres, kernel)
    predicted = network(filled)
    gradient = gradient_of(predicted, centres, patches)
    assert float(gradient[hidden].abs().max()) == 0
    assert float(gradient[~hidden].abs().mean()) > 0
    one = torch.zeros_like(centres)
    one.view(-1)[int(torch.nonzero(centres.view(-1))[0, 0])] = True
    assert float(gradient_of(predicted, one, patches)[hidden].abs().max()) == 0


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_the_gradient_sees_a_pixel_left_open_and_a_fill_from_hidden_pixels(kernel: np.ndarray) -> None:
    patches, network = patches_for(kernel), network_for(kernel)
    filled, centres = draw_blind_spots(patches, kernel, 1.5, seed=1, epoch=0, numbers=torch.arange(2))
    hidden = hidden_by(centres, kernel)
    open_to_see = gradient_of(network(patches), centres, patches)
    assert float(open_to_see[centres].abs().min()) > 0
    # A fill that blurs over the hidden pixels, as local means do that count them in.
    blurred = torch.where(hidden, 0.5 * (filled + patches.roll(1, -1)), filled)
    blurred = torch.where(hidden, 0.5 * (blurred + patches.roll(-1, -1)), blurred)
    leaking = gradient_of(network(blurred), centres, patches)
    seen = float(leaking[hidden].abs().max())
    assert (seen > 0) == (kernel.size > 1)
