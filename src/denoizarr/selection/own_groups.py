"""Zarr groups of our own: begun, told from other people's, and deleted so that a kill leaves no dead end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zarr

from denoizarr.errors import ImageNotFound, NotOmeZarr
from denoizarr.stores import locations

ROOT = "zarr.json"


def begin(url: str, attributes: dict[str, Any]) -> zarr.Group:
    """Make a new group where nothing is; its attributes come with the put that creates it, in one."""
    with locations.translated(url):
        store = locations.zarr_store(url, create=True)
        return zarr.open_group(store, mode="w", zarr_format=3, attributes=attributes)


def attributes_at(url: str) -> dict[str, Any] | None:
    """Return the attributes of the group, or None where there is something that is no group."""
    try:
        return dict(locations.open_group(url, "r").attrs)
    except (NotOmeZarr, ImageNotFound):
        return None


def is_remains(url: str, ours: Callable[[str], bool]) -> bool:
    """Tell whether nothing lies at ``url`` but what a writer or a deletion that was killed leaves behind.

    Parameters
    ----------
    url : str
    ours : callable
        Tells whether a name right below is one that the writer gives to its arrays.
    """
    names = locations.list_names(url)
    if not all(name == ROOT or ours(name) for name in names):
        return False
    # A root that can be read and has attributes was made by somebody for something.
    return ROOT not in names or attributes_at(url) == {}


def delete(url: str) -> None:
    """Delete a group, its root last: until then what is left says whose it is."""
    for name in locations.list_names(url):
        if name != ROOT:
            locations.delete_prefix(locations.join(url, name))
    locations.delete_prefix(url)
