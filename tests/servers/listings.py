"""Listings that lie: an answer of ListObjectsV2 (or of Azure's) from which entries are missing."""

from __future__ import annotations

import re
from collections.abc import Callable

# S3 and GCS name objects <Contents> and folders <CommonPrefixes>; Azure <Blob> and <BlobPrefix>.
_ENTRY = re.compile(rb"<(Contents|CommonPrefixes|Blob|BlobPrefix)>(.*?)</\1>", re.DOTALL)
_NAME = re.compile(rb"<(?:Key|Prefix|Name)>(.*?)</", re.DOTALL)
_COUNT = re.compile(rb"<KeyCount>\d+</KeyCount>")


def names_in(body: bytes) -> list[str]:
    """Return the names of all entries of a listing, in its order."""
    return [_name(entry) for entry in _ENTRY.finditer(body)]


def _name(entry: re.Match[bytes]) -> str:
    found = _NAME.search(entry[2])
    return found[1].decode() if found else ""


def without(body: bytes, uniform: Callable[[str], float]) -> bytes:
    """Return the listing without about half of its entries: those with a number below 0.5, at least one."""
    names = names_in(body)
    if not names:
        return body
    dropped = {name for name in names if uniform(name) < 0.5} or {min(names, key=uniform)}
    left = _ENTRY.sub(lambda entry: b"" if _name(entry) in dropped else entry[0], body)
    return _COUNT.sub(b"<KeyCount>%d</KeyCount>" % sum(n not in dropped for n in names), left)
