"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from denoizarr.errors import BadRequest


def parse_bytes(text: str | int, where: str = "memory_limit") -> int:
    """Return a number of bytes from 2147483648, "2GiB" or "500 MB"."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise BadRequest("not an amount of memory", where=where, got=repr(text), expected='such as "2GiB"')
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))
