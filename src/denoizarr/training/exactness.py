"""How cuda computes: in full float32, and the same way every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def exact_cuda() -> None:
    """Let this process use no TensorFloat-32 (10 bits of mantissa), and choose algorithms without a race."""
    _set(matmul_tf32=False, convolution_tf32=False, benchmark=False, deterministic=True)


@contextmanager
def exact_on(device: torch.device) -> Iterator[None]:
    """Do so inside the block where the device is a cuda one; afterwards all is as it was."""
    if device.type != "cuda":
        yield
        return
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic)
    exact_cuda()
    try:
        yield
    finally:
        _set(*before)


def _set(matmul_tf32: bool, convolution_tf32: bool, benchmark: bool, deterministic: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = matmul_tf32
    torch.backends.cudnn.allow_tf32 = convolution_tf32
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.deterministic = deterministic
