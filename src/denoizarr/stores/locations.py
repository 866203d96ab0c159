"""Where bytes live: one URL, one object store, the few operations that the rest is built from.

Everything goes through obstore, local disks included: its puts replace an object whole or not at all, its
``mode="create"`` is a true put-if-absent, and its keys cannot climb out of their store.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import obstore
import zarr
from obstore.store import LocalStore
from zarr.core.buffer import Buffer
from zarr.storage import ObjectStore

from denoizarr.errors import (
    DenoizarrError,
    ImageNotFound,
    NoSpace,
    NotOmeZarr,
    PermissionDenied,
    StoreUnavailable,
    UnsupportedStore,
)

# One slash is enough: Path("s3://...") folds two into one, and its password must not end up in a message.
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/+")
# What file systems without hard links say: exFAT, many network shares, buckets that are mounted.
_NO_LINK = re.compile(r"Unable to rename file: .*\(os error (\d+)\)")
_NO_LINKS_HERE = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})
# What network shares and mounted buckets say to being asked for a folder's safety.
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF})
_NAMES_AT_ONCE, _CALLS_AT_ONCE = 256, 16


def redact(url: str) -> str:
    """Return the URL without user, password, query and fragment, fit for a log or an attribute."""
    scheme = _SCHEME.match(url)
    if scheme is None or scheme[1].lower() == "file":
        return url
    rest = url[scheme.end() :]
    # By hand: a secret key may hold "/", "?" or "#", where a URL parser would end the host.
    host, _, _ = rest.partition("/")
    port = host.rpartition("]:")[2] if host.startswith("[") else host.partition(":")[2]
    if "@" in host or (":" in host and not port.isdecimal()):
        rest = rest.rpartition("@")[2] if "@" in rest else host.partition(":")[0]
    return f"{scheme[1]}://{re.split('[?#]', rest)[0]}"


def local_path(url: str | Path) -> Path:
    """Return the absolute path that a path or ``file://`` URL names.

    Raises
    ------
    UnsupportedStore
        The URL has another scheme; object stores are not read or written by this version.
    """
    text = str(url)
    scheme = _SCHEME.match(text)
    if scheme is None:
        return Path(text).expanduser().absolute()
    if scheme[1].lower() != "file":
        raise UnsupportedStore(
            "this kind of store is not supported in this version",
            where=redact(text),
            got=f"{scheme[1]}://",
            expected="a path or file:// URL",
            remedy="copy the image to a local or network disk",
        )
    return Path(unquote(urlsplit(text).path)).absolute()


def join(url: str | Path, *parts: str) -> str:
    """Return the path of something below ``url``, with forward slashes, no scheme for local paths."""
    return str(local_path(url).joinpath(*parts))


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names, numbered where several are the same, for what lies in one folder."""
    taken: list[str] = []
    for name in names:
        candidates = (name if n == 1 else f"{name}-{n}" for n in count(1))
        taken.append(next(candidate for candidate in candidates if candidate not in taken))
    return tuple(taken)


@contextmanager
def translated(url: str | Path) -> Iterator[None]:
    """Turn what a store raises into this package's errors; ours pass through."""
    where = redact(str(url))
    try:
        yield
    except DenoizarrError:
        raise
    except (FileNotFoundError, NotADirectoryError, obstore.exceptions.NotFoundError) as error:
        raise ImageNotFound("nothing lies here", where=where, remedy="check the path") from error
    except (
        PermissionError,
        obstore.exceptions.PermissionDeniedError,
        obstore.exceptions.UnauthenticatedError,
    ) as error:
        raise PermissionDenied(
            "the store refuses access", where=where, remedy="check the owner and mode"
        ) from error
    except OSError as error:
        raise _from_os_error(error, where) from error
    except obstore.exceptions.BaseError as error:
        raise _from_message(str(error), where) from error


def _from_os_error(error: OSError, where: str) -> DenoizarrError:
    if error.errno == errno.EROFS:
        return PermissionDenied(
            "the store refuses access",
            where=where,
            got="a read-only disk",
            remedy="choose another destination",
        )
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpace(
            "the disk or quota is full", where=where, remedy="free some space and run the same job again"
        )
    if error.errno == errno.EROFS:
        return PermissionDenied("the disk is read-only", where=where, remedy="check how it is mounted")
    return StoreUnavailable("the store failed", where=where, got=str(error).splitlines()[0])


def _from_message(message: str, where: str) -> DenoizarrError:
    # obstore wraps the operating system's error in text only.
    # Not any quota: servers say it of too many requests as well, and those pass.
    if "No space left" in message or "quota exceeded (os error" in message:
        return NoSpace(
            "the disk or quota is full", where=where, remedy="free some space and run the same job again"
        )
    if "Permission denied" in message or "Read-only file system" in message:
        return PermissionDenied("the store refuses access", where=where, remedy="check the owner and mode")
    if "No such file" in message:
        return ImageNotFound("nothing lies here", where=where, remedy="check the path")
    return StoreUnavailable("the store failed", where=where, got=(message.splitlines() or [message])[0])


@lru_cache(maxsize=256)
def _store(folder: str, create: bool) -> LocalStore:
    return LocalStore(folder, mkdir=create)


def object_store(url: str | Path, *, create: bool = False) -> LocalStore:
    """Return the object store rooted at ``url``; ``create`` makes the folder where it is missing."""
    path = local_path(url)
    with translated(url):
        if create:
            # Not from the cache: the folder may have been deleted since it was opened.
            path.mkdir(parents=True, exist_ok=True)
        return _store(str(path), create=False)


class _ZarrStore(ObjectStore[LocalStore]):
    """Zarr's own, which can begin a group where there are no hard links too."""

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        try:
            await super().set_if_not_exists(key, value)
        except obstore.exceptions.GenericError as error:
            if not _lacks_links(error):
                raise
            if not await self.exists(key):
                await self.set(key, value)


def zarr_store(url: str | Path, *, create: bool = False) -> ObjectStore[LocalStore]:
    """Return ``url`` as a Zarr store."""
    return _ZarrStore(object_store(url, create=create), read_only=not create)


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
    if not local_path(url).exists():
        return ImageNotFound("nothing lies here", where=redact(str(url)), remedy="check the path")
    return NotOmeZarr(
        "no Zarr group here",
        where=redact(str(url)),
        remedy="make one with `denoizarr convert SRC DST.ome.zarr`",
    )


def _split(url: str | Path) -> tuple[Path, str]:
    path = local_path(url)
    return path.parent, path.name


def get(url: str | Path) -> bytes:
    """Return the object's bytes; ``ImageNotFound`` where there is none."""
    folder, name = _split(url)
    with translated(url):
        return bytes(obstore.get(object_store(folder), name).bytes())


def put(url: str | Path, data: bytes) -> None:
    """Write the object, replacing it whole: a reader sees the old bytes or the new, never a mixture."""
    folder, name = _split(url)
    with translated(url):
        obstore.put(object_store(folder, create=True), name, data)


def create(url: str | Path, data: bytes) -> bool:
    """Write the object if it is absent; tell whether this call wrote it. Safe between machines."""
    folder, name = _split(url)
    with translated(url):
        try:
            try:
                obstore.put(object_store(folder, create=True), name, data, mode="create")
            except obstore.exceptions.GenericError as error:
                if not _lacks_links(error):
                    raise
                _create_without_links(folder / name, data)
        except (FileExistsError, obstore.exceptions.AlreadyExistsError):
            return False
    return True


def _lacks_links(error: obstore.exceptions.BaseError) -> bool:
    found = _NO_LINK.search(str(error))
    return found is not None and int(found[1]) in _NO_LINKS_HERE


def _create_without_links(path: Path, data: bytes) -> None:
    """Write a file if it is absent, where obstore cannot: it links one that is whole to its name.

    Here a kill between two calls leaves it empty or short, which no reader takes for a record.
    """
    with path.open("xb", buffering=0) as file:
        file.write(data)


def exists(url: str | Path) -> bool:
    """Tell whether an object or a folder lies at ``url``."""
    with translated(url):
        return local_path(url).exists()


def is_file(url: str | Path) -> bool:
    """Tell whether a single object lies at ``url``."""
    with translated(url):
        return local_path(url).is_file()


def sizes_of(url: str | Path, names: Sequence[str]) -> list[int]:
    """Return the sizes of objects right below ``url`` in bytes, in the order of their names; 0 for none.

    Asked for one by one, each by its name, many at a time: a listing may be minutes old on a network disk.
    """
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
    if not exists(url):
        return []
    with translated(url):
        listing = obstore.list_with_delimiter(object_store(url))
        return sorted([entry["path"] for entry in listing["objects"]] + list(listing["common_prefixes"]))


def delete(url: str | Path) -> None:
    """Delete one object; nothing happens where there is none, or where another is faster."""
    folder, name = _split(url)
    with translated(url), suppress(FileNotFoundError, obstore.exceptions.NotFoundError):
        if exists(url):
            obstore.delete(object_store(folder), name)


def delete_prefix(url: str | Path) -> None:
    """Delete all objects below ``url``. A symbolic link is deleted, never what it points to."""
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
    with suppress(OSError):
        local_path(url).rmdir()


def listing_stamp(url: str | Path) -> str:
    """Return a digest of names, sizes and times of all objects below ``url``: another once one was written.

    A listing costs about a second for 100,000 objects; no object is read.
    """
    if not exists(url):
        return ""
    total, count = 0, 0
    with translated(url):
        for batch in obstore.list(object_store(url)):
            for entry in batch:
                text = f"{entry['path']} {entry['size']} {entry['last_modified'].timestamp()!r}"
                # Added up: a listing has no promised order.
                total += int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
                count += 1
    return f"{count}-{total % 2**64:016x}"


def last_write(url: str | Path, *, apart_from: str) -> float:
    """Return when the last object right below ``url`` was written, in seconds since 1970; 0 where none was.

    For people to read: a listing of a network disk may be minutes old.
    """
    if not exists(url):
        return 0.0
    with translated(url):
        found = obstore.list_with_delimiter(object_store(url))["objects"]
        times = [entry["last_modified"].timestamp() for entry in found if entry["path"] != apart_from]
    return max(times, default=0.0)


def stored_bytes(url: str | Path) -> int:
    """Return the size of all objects below ``url``, in bytes."""
    if not exists(url):
        return 0
    with translated(url):
        return sum(entry["size"] for batch in obstore.list(object_store(url)) for entry in batch)
