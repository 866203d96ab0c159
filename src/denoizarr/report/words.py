"""Numbers as people say them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def number(value: float, digits: int = 3) -> str:
    """Write a number with a few significant digits and no exponent where none is needed."""
    if not np.isfinite(value):
        return "not a number"
    if value == 0:
        return "0"
    if value < 0:
        return f"−{number(-value, digits)}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{digits}g}"


def percent(share: float) -> str:
    """Write a share of one as per cent."""
    return f"{100 * share:.1f} %" if 0 < abs(share) < 0.0995 else f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    """Write seconds in the unit that suits them."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def byte_size(count: float) -> str:
    """Write bytes in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    return ""


def sizes(dims: Sequence[str], shape: Sequence[int]) -> str:
    """Write an image's size: "26 planes of 1,116 × 627 pixels"."""
    names = {"t": "time points", "c": "channels", "z": "planes"}
    leading = [
        f"{size:,} {names.get(dim, dim) if size != 1 else names.get(dim, dim).removesuffix('s')}"
        for dim, size in zip(dims[:-2], shape[:-2], strict=True)
        if size != 1
    ]
    plane = f"{shape[-2]:,} × {shape[-1]:,} pixels (y × x)"
    return f"{' × '.join(leading)} of {plane}" if leading else plane


def plural(count: int, noun: str) -> str:
    """Write a count with its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
