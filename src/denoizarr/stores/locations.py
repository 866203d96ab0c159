"""Where bytes live: one URL, one store, the few operations that the rest is built from.

Disks and buckets alike go through obstore: its puts replace an object whole or not at all, its
``mode="create"`` is a true put-if-absent, and its keys cannot climb out of their store. Here is what is done
on disks; of buckets and web servers :mod:`denoizarr.stores.buckets` does the same.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import obstore
import zarr
from obstore.store import LocalStore
from zarr.storage import ObjectStore

from denoizarr.errors import DenoizarrError, ImageNotFound, NotOmeZarr

from . import buckets
from .store_errors import translated as translated
from .urls import absolute as absolute
from .urls import distinct as distinct
from .urls import is_read_only
from .urls import is_remote as is_remote
from .urls import join as join
from .urls import local_path as local_path
from .urls import name_of as name_of
from .urls import overlap as overlap
from .urls import parent_of as parent_of
from .urls import redact as redact
from .urls import split_remote as split_remote
from .zarr_stores import BucketStore, DiskStore, lacks_links

# What network shares and mounted buckets say to being asked for a folder's safety.
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF})
_NAMES_AT_ONCE, _CALLS_AT_ONCE = 256, 16


@lru_cache(maxsize=256)
def _store(folder: str, create: bool) -> LocalStore:
    return LocalStore(folder, mkdir=create)


def _disk(url: str | Path, *, create: bool = False) -> LocalStore:
    """Return the object store rooted at a folder; ``create`` makes it where it is missing."""
    path = local_path(url)
    with translated(url):
        if create:
            # Not from the cache: the folder may have been deleted since it was opened.
            path.mkdir(parents=True, exist_ok=True)
        return _store(str(path), create=False)


def zarr_store(url: str | Path, *, create: bool = False) -> ObjectStore[Any]:
    """Return ``url`` as a Zarr store."""
    if is_remote(url):
        if create:
            buckets.refuse_read_only(str(url))
        return BucketStore(str(url), read_only=not create)
    return DiskStore(_disk(url, create=create), read_only=not create)


def open_group(
    url: str | Path, mode: Literal["r", "a", "w"] = "r", *, zarr_format: Literal[2, 3] = 3
) -> zarr.Group:
    """Open the Zarr group at ``url``: read it, add to it, or begin anew.

    Raises
    ------
    ImageNotFound, NotOmeZarr, PermissionDenied, StoreUnavailable
        ``NotOmeZarr`` where something lies that is no Zarr group.
    """
    with translated(url):
        if mode == "r":
            if is_file(url):
                raise _no_group(url)
            try:
                return zarr.open_group(zarr_store(url), mode="r")
            except (
                FileNotFoundError,
                ValueError,
                KeyError,
                ZeroDivisionError,
                RecursionError,
                TypeError,
            ) as error:
                raise _no_group(url) from error
        store = zarr_store(url, create=True)
        return zarr.open_group(store, mode=mode, zarr_format=zarr_format)


def _no_group(url: str | Path) -> DenoizarrError:
    if not exists(url):
        return ImageNotFound("nothing lies here", where=redact(str(url)), remedy="check the path")
    return NotOmeZarr(
        "no Zarr group here",
        where=redact(str(url)),
        remedy="make one with `denoizarr convert SRC DST.ome.zarr`",
    )


def refuse_read_only(url: str | Path) -> None:
    """Refuse a destination on a web server before any work."""
    if is_remote(url):
        buckets.refuse_read_only(str(url))


def _split(url: str | Path) -> tuple[Path, str]:
    path = local_path(url)
    return path.parent, path.name


def get(url: str | Path) -> bytes:
    """Return the object's bytes; ``ImageNotFound`` where there is none."""
    if is_remote(url):
        return buckets.get(str(url))
    folder, name = _split(url)
    with translated(url):
        return bytes(obstore.get(_disk(folder), name).bytes())


def get_range(url: str | Path, start: int, length: int) -> bytes:
    """Return some of an object's bytes; ``ImageNotFound`` where there is no object."""
    if is_remote(url):
        return buckets.get(str(url), start, length)
    folder, name = _split(url)
    with translated(url):
        return bytes(obstore.get_range(_disk(folder), name, start=start, length=length)) if length else b""


def size(url: str | Path) -> int:
    """Return an object's size in bytes; ``ImageNotFound`` where there is none."""
    if is_remote(url):
        found = buckets.size(str(url))
        if found is None:
            raise ImageNotFound("nothing lies here", where=redact(str(url)), remedy="check the URL")
        return found
    folder, name = _split(url)
    with translated(url):
        return int(obstore.head(_disk(folder), name)["size"])


def put(url: str | Path, data: bytes) -> None:
    """Write the object, replacing it whole: a reader sees the old bytes or the new, never a mixture."""
    if is_remote(url):
        buckets.put(str(url), data)
        return
    folder, name = _split(url)
    with translated(url):
        obstore.put(_disk(folder, create=True), name, data)


def create(url: str | Path, data: bytes) -> bool:
    """Write the object if it is absent; tell whether this call wrote it. Safe between machines."""
    if is_remote(url):
        return buckets.create(str(url), data)
    folder, name = _split(url)
    with translated(url):
        try:
            try:
                obstore.put(_disk(folder, create=True), name, data, mode="create")
            except obstore.exceptions.GenericError as error:
                if not lacks_links(error):
                    raise
                _create_without_links(folder / name, data)
        except (FileExistsError, obstore.exceptions.AlreadyExistsError):
            return False
    return True


def _create_without_links(path: Path, data: bytes) -> None:
    """Write a file if it is absent, where obstore cannot: it links one that is whole to its name.

    Here a kill between two calls leaves it empty or short, which no reader takes for a record.
    """
    with path.open("xb", buffering=0) as file:
        file.write(data)


def keeps_first(url: str | Path) -> bool:
    """Tell whether the store really refuses a second put-if-absent of an object that is there."""
    return not is_remote(url) or buckets.keeps_first(str(url))


def replace(url: str | Path, old: bytes, new: bytes) -> bool:
    """Write an object in place of what it was; tell whether it now is what this call would have it be.

    In a bucket nothing is written where it is another by now; on a disk two writers may pass each other.
    """
    if is_remote(url):
        return buckets.replace(str(url), old, new)
    found = get(url)
    if found == old:
        put(url, new)
    return found in (old, new)


def exists(url: str | Path) -> bool:
    """Tell whether an object or a folder lies at ``url``."""
    if is_remote(url):
        return buckets.exists(str(url))
    with translated(url):
        return local_path(url).exists()


def is_file(url: str | Path) -> bool:
    """Tell whether a single object lies at ``url``."""
    if is_remote(url):
        return buckets.is_file(str(url))
    with translated(url):
        return local_path(url).is_file()


def sizes_of(url: str | Path, names: Sequence[str]) -> list[int]:
    """Return the sizes of objects right below ``url`` in bytes, in the order of their names; 0 for none.

    Asked for one by one, each by its name, many at a time: a listing may be minutes old on a network disk.
    """
    if is_remote(url):
        return buckets.sizes_of(str(url), names)
    folder = str(local_path(url))

    def sizes(some: Sequence[str]) -> list[int]:
        return [_size(f"{folder}/{name}") for name in some]

    with translated(url):
        if len(names) <= _NAMES_AT_ONCE:
            return sizes(names)
        parts = [names[k : k + _NAMES_AT_ONCE] for k in range(0, len(names), _NAMES_AT_ONCE)]
        with ThreadPoolExecutor(_CALLS_AT_ONCE) as pool:
            return [size for found in pool.map(sizes, parts) for size in found]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116  # a hundred thousand times, and a Path costs more
    except (FileNotFoundError, NotADirectoryError):
        return 0


def make_durable(url: str | Path) -> None:
    """Wait until the object is safe from a power cut, where the file system has a way to say so."""
    if is_remote(url):
        return  # a put has ended once it is
    path = local_path(url)
    with translated(url):
        for part in (path, path.parent):
            descriptor = os.open(part, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno not in _NO_SYNC:
                    raise
            finally:
                os.close(descriptor)


def list_names(url: str | Path) -> list[str]:
    """Return the names of the objects and folders right below ``url``, sorted; empty where it is absent."""
    if is_remote(url):
        return buckets.list_names(str(url))
    if not exists(url):
        return []
    with translated(url):
        listing = obstore.list_with_delimiter(_disk(url))
        return sorted([entry["path"] for entry in listing["objects"]] + list(listing["common_prefixes"]))


def delete(url: str | Path) -> None:
    """Delete one object; nothing happens where there is none, or where another is faster."""
    if is_remote(url):
        buckets.delete(str(url))
        return
    folder, name = _split(url)
    with translated(url), suppress(FileNotFoundError, obstore.exceptions.NotFoundError):
        if exists(url):
            obstore.delete(_disk(folder), name)


def delete_prefix(url: str | Path) -> None:
    """Delete all objects below ``url``. A symbolic link is deleted, never what it points to."""
    if is_remote(url):
        buckets.delete_prefix(str(url))
        return
    root = local_path(url)
    with translated(url):
        if not root.is_dir():
            delete(url)
            return
        # Not through the object store: it follows links, and does not list the remains of a torn write.
        for entry in list(root.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        if not root.is_symlink():
            root.rmdir()


def delete_if_empty(url: str | Path) -> None:
    """Delete a folder in which nothing lies."""
    if is_remote(url):
        return  # there are no folders
    with suppress(OSError):
        local_path(url).rmdir()


def listing_stamp(url: str | Path) -> str:
    """Return a digest of names, sizes and times of all objects below ``url``: another once one was written.

    A listing costs about a second for 100,000 objects; no object is read. A web server has none: there its
    metadata is read, and told by its time.
    """
    if is_read_only(url):
        return buckets.metadata_stamp(str(url))
    total, number = 0, 0
    for entry in _listed(url):
        text = f"{entry['path']} {entry['size']} {entry['last_modified'].timestamp()!r}"
        # Added up: a listing has no promised order.
        total += int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
        number += 1
    return f"{number}-{total % 2**64:016x}" if number or exists(url) else ""


def last_write(url: str | Path, *, apart_from: str) -> float:
    """Return when the last object right below ``url`` was written, in seconds since 1970; 0 where none was.

    For people to read: a listing of a network disk may be minutes old.
    """
    if is_remote(url):
        times = [time for name, time in buckets.written_at(str(url)).items() if name != apart_from]
        return max(times, default=0.0)
    if not exists(url):
        return 0.0
    with translated(url):
        found = obstore.list_with_delimiter(_disk(url))["objects"]
        times = [entry["last_modified"].timestamp() for entry in found if entry["path"] != apart_from]
    return max(times, default=0.0)


def stored_bytes(url: str | Path) -> int:
    """Return the size of all objects below ``url``, in bytes."""
    return sum(entry["size"] for entry in _listed(url))


def _listed(url: str | Path) -> Iterator[Any]:
    """Yield what a listing says of every object below ``url``."""
    if is_remote(url):
        yield from buckets.listed(str(url))
    elif exists(url):
        with translated(url):
            for batch in obstore.list(_disk(url)):
                yield from batch


def matching(pattern: str | Path) -> list[str]:
    """Return the places that a name with ``*``, ``?`` or ``[...]`` in it stands for, sorted."""
    if is_remote(pattern):
        return buckets.matching(str(pattern))
    return sorted(glob.glob(str(local_path(pattern))))  # noqa: PTH207  # an absolute pattern
