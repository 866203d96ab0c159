"""Small JSON objects: statistics, kernels, ledger records. Canonical text: equal data hash equally."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from denoizarr.errors import MetadataError

from . import locations


def canonical(data: Any) -> str:
    """Return the one JSON text of ``data``: sorted keys, no blanks, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest(data: Any) -> str:
    """Return 32 hex digits that name ``data`` by its content (BLAKE2b of the canonical text)."""
    return hashlib.blake2b(canonical(data).encode(), digest_size=16).hexdigest()


def _encode(data: Any) -> bytes:
    return (json.dumps(data, indent=1, sort_keys=False, allow_nan=False, ensure_ascii=False) + "\n").encode()


def write_json(url: str | Path, data: Any) -> None:
    """Write ``data`` for people to read too, replacing the object whole."""
    locations.put(url, _encode(data))


def create_json(url: str | Path, data: Any) -> bool:
    """Write ``data`` if nothing lies there yet; tell whether this call wrote it."""
    return locations.create(url, _encode(data))


def create_compact_json(url: str | Path, data: Any) -> bool:
    """Write ``data`` as :func:`create_json` does, in as few bytes as its text can have."""
    return locations.create(url, canonical(data).encode())


def read_json(url: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    ImageNotFound
        Nothing lies there.
    MetadataError
        It is not the text of a JSON object.
    """
    text = locations.get(url)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MetadataError(
            "not readable as JSON", where=locations.redact(str(url)), got=str(error)
        ) from error
    if not isinstance(data, dict):
        raise MetadataError("not a JSON object", where=locations.redact(str(url)), got=type(data).__name__)
    return data
