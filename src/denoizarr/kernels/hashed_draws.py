"""Integer draws by a hash of what they are for: 32-bit arithmetic in int64, the same on every device."""

from __future__ import annotations

from torch import Tensor

LOW_32 = 0xFFFFFFFF
# "lowbias32" of Wellons 2018, https://nullprogram.com/blog/2018/07/31. The second factor is 0x846ca68b less
# 2**32: the low 32 bits are the same and int64 never overflows.
_FACTORS = (0x7FEB352D, 0x846CA68B - 2**32)


def mix(x: Tensor) -> Tensor:
    """Scramble integers in [0, 2**32), one to one.

    Parameters
    ----------
    x : Tensor of int64

    Returns
    -------
    Tensor of int64
        A new tensor of the same shape.
    """
    x = x ^ (x >> 16)
    x.mul_(_FACTORS[0]).bitwise_and_(LOW_32)
    x.bitwise_xor_(x >> 15)
    x.mul_(_FACTORS[1]).bitwise_and_(LOW_32)
    return x.bitwise_xor_(x >> 16)


def keys_of(seed: int, epoch: int, numbers: Tensor, *, purpose: int) -> Tensor:
    """Return one 32-bit key per patch.

    Parameters
    ----------
    seed, epoch : int
        The low 64 and the low 32 bits count.
    numbers : Tensor of int64, shape (n,)
        The patches' numbers within the epoch; all 64 bits count.
    purpose : int
        Keeps draws for different purposes apart.

    Returns
    -------
    Tensor of int64, shape (n,)
        On the device of ``numbers``.
    """
    key = 0
    for word in (purpose, seed & LOW_32, (seed >> 32) & LOW_32, epoch & LOW_32):
        key = _mix_integer(key ^ word)
    return mix(mix((numbers & LOW_32) ^ key) ^ ((numbers >> 32) & LOW_32))


def _mix_integer(x: int) -> int:
    x ^= x >> 16
    x = (x * _FACTORS[0]) & LOW_32
    x ^= x >> 15
    x = (x * _FACTORS[1]) & LOW_32
    return x ^ (x >> 16)


def on_host(tensor: Tensor) -> bool:
    """Return whether to look at values costs no wait: on another device, the host runs ahead of the work."""
    return tensor.device.type == "cpu"
