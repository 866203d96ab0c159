"""How a process computes: with so many threads, on cuda in full float32, the same way every time."""

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


@contextmanager
def repeatable(threads: int, device: torch.device) -> Iterator[None]:
    """Compute alike inside the block: with this many threads, which decide the last bits of the weights.

    On cuda as :func:`exact_cuda` says. What torch draws at random inside leaves no trace outside.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    forked = [device] if device.type == "cuda" and torch.cuda.is_available() else []
    try:
        with exact_on(device), torch.random.fork_rng(devices=forked):
            yield
    finally:
        torch.set_num_threads(before)


def _set(matmul_tf32: bool, convolution_tf32: bool, benchmark: bool, deterministic: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = matmul_tf32
    torch.backends.cudnn.allow_tf32 = convolution_tf32
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.deterministic = deterministic


def step_precision(asked: str, device: torch.device) -> str:
    """Return the precision that steps are computed in on a device: "float32" or "bfloat16".

    Parameters
    ----------
    asked : {"auto", "float32", "bfloat16"}
        "auto" is bfloat16 where the device multiplies it in hardware, and else slower than float32.
    """
    if asked != "auto":
        return asked
    if device.type == "cuda":
        with torch.cuda.device(device):
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return "bfloat16" if fast else "float32"


def multiplies_bfloat16() -> bool:
    """Tell whether this processor does so in hardware; without, bfloat16 is slower than float32."""
    # Intel's, AMD's and Arm's instructions for it all have it in their names.
    return any(has for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)
