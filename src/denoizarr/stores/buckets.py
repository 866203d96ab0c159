"""Objects in buckets and on web servers: what ``locations`` does on disks, done remotely.

There are no folders: a name is taken for one where keys begin with it. What was put is seen at once by
whoever asks for it by its name; a listing is believed only where nothing is lost by it.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import obstore

from denoizarr.errors import ImageNotFound, PermissionDenied, StoreUnavailable, UnsupportedStore

from .attempts import attempt
from .backends import RemoteStore, open_store
from .store_errors import ShortAnswerError, is_no_bucket
from .store_options import StoreOptions, options_of
from .urls import is_read_only, join, redact, split_remote

# A web server cannot say what lies below a URL; a Zarr hierarchy has one of these.
_HIERARCHY = ("zarr.json", ".zgroup", ".zarray")
# In one request up to here: parts of their own cost two more, and help only where one put takes long.
WHOLE_BYTES = 64 * 2**20
_DELETED_AT_ONCE = 1000


class _Place:
    """A URL, taken apart and opened."""

    def __init__(self, url: str) -> None:
        self.url = redact(url)
        self.root, self.key = split_remote(url)
        self.options: StoreOptions = options_of(self.root)
        self.store: RemoteStore = open_store(self.root, self.options)

    def ask(self, call: Any) -> Any:
        """Make a request of it."""
        return attempt(self.url, self.options, call)


def refuse_read_only(url: str) -> None:
    """Refuse to write to a web server before anything is done."""
    if is_read_only(url):
        raise UnsupportedStore(
            "web servers are read only",
            where=redact(url),
            expected="a path, s3://, gs:// or az://",
            remedy="choose another destination",
        )


def get(url: str, start: int | None = None, length: int = 0) -> bytes:
    """Return an object's bytes, or some of them."""
    place = _Place(url)
    if start is None:
        return bytes(place.ask(lambda: _whole_body(obstore.get(place.store, place.key))))
    if not length:
        return b""

    def some() -> bytes:
        found = bytes(obstore.get_range(place.store, place.key, start=start, length=length))
        if len(found) < length:
            raise ShortAnswerError(f"{len(found)} of {length} bytes")
        return found

    return bytes(place.ask(some))


def _whole_body(found: Any) -> Any:
    """Return the body of an answer once it is all there."""
    body = found.bytes()
    start, stop = found.range
    if len(body) != stop - start:
        raise ShortAnswerError(f"{len(body)} of {stop - start} bytes")
    return body


def put(url: str, data: bytes) -> None:
    """Write an object, replacing it whole."""
    refuse_read_only(url)
    place = _Place(url)
    parts = None if len(data) > WHOLE_BYTES else False
    place.ask(lambda: obstore.put(place.store, place.key, data, use_multipart=parts))


def create(url: str, data: bytes) -> bool:
    """Write an object if it is absent; tell whether this call wrote it.

    Where an answer was lost the next try finds the object there: it is this call's if it has its bytes, which
    is why whoever must know the winner writes who it is.
    """
    refuse_read_only(url)
    place, tries = _Place(url), 0

    def try_once() -> bool:
        nonlocal tries
        tries += 1
        try:
            obstore.put(place.store, place.key, data, mode="create", use_multipart=False)
        except (FileExistsError, obstore.exceptions.AlreadyExistsError):
            return False
        return True

    if place.ask(try_once):
        return True
    return tries > 1 and get(url) == data


def keeps_first(url: str) -> bool:
    """Tell whether the store refuses to put an object once more that is to be put if absent.

    Some services answer to S3's requests and ignore its conditions.
    """
    data, place = get(url), _Place(url)

    def try_once() -> bool:
        try:
            obstore.put(place.store, place.key, data, mode="create", use_multipart=False)
        except (FileExistsError, obstore.exceptions.AlreadyExistsError):
            return True
        return False

    return bool(place.ask(try_once))


def replace(url: str, old: bytes, new: bytes) -> bool:
    """Write an object in place of what it was; tell whether it is now what this call would have it be.

    Nothing is written where it is another by now.
    """
    refuse_read_only(url)
    place = _Place(url)
    body, mark = place.ask(lambda: _body_and_mark(place))
    if body != old:
        return bool(body == new)
    if not mark:  # an emulator without generations: only what was just read stands against another driver
        put(url, new)
        return True

    def try_once() -> bool:
        try:
            obstore.put(place.store, place.key, new, mode=mark, use_multipart=False)
        except obstore.exceptions.PreconditionError:
            return False
        return True

    # Refused after an answer that was lost, it may be this very call that has changed it.
    return bool(place.ask(try_once)) or get(url) == new


def _body_and_mark(place: _Place) -> tuple[bytes, Any]:
    """Return an object's bytes, and what its store tells its states apart by: Google by a generation."""
    found = obstore.get(place.store, place.key)
    kinds = ("version",) if place.root.startswith("gs://") else ("e_tag",)
    mark = {kind: found.meta[kind] for kind in kinds if found.meta[kind]}  # type: ignore[literal-required]
    return bytes(_whole_body(found)), mark


def size(url: str) -> int | None:
    """Return an object's size in bytes; None where there is none."""
    place = _Place(url)
    if not place.key:
        return None
    try:
        return int(place.ask(lambda: obstore.head(place.store, place.key))["size"])
    except ImageNotFound:
        return None


def exists(url: str) -> bool:
    """Tell whether an object lies there, or anything below."""
    if is_read_only(url):
        return any(size(join(url, name)) is not None for name in _HIERARCHY) or size(url) is not None
    # By name first: what is there is not left to a listing.
    asked = (url, *(join(url, name) for name in _HIERARCHY[:2]))
    return any(size(name) is not None for name in asked) or _has_entries(url)


def is_file(url: str) -> bool:
    """Tell whether a single object lies there."""
    if is_read_only(url) and any(size(join(url, name)) is not None for name in _HIERARCHY):
        return False  # servers answer for folders too
    return size(url) is not None


def sizes_of(url: str, names: Sequence[str]) -> list[int]:
    """Return the sizes of objects right below a URL; 0 for none. Each is asked for by its name."""
    place = _Place(url)
    with ThreadPoolExecutor(place.options.concurrency) as pool:
        return list(pool.map(lambda name: size(join(url, name)) or 0, names))


def _has_entries(url: str) -> bool:
    place = _Place(url)
    prefix = f"{place.key}/" if place.key else None
    return bool(place.ask(lambda: next(iter(obstore.list(place.store, prefix, chunk_size=1)), [])))


def _refuse_listing(url: str) -> None:
    if is_read_only(url):
        raise UnsupportedStore("web servers do not list what they have", where=redact(url))


def listed(url: str) -> list[dict[str, Any]]:
    """Return path below the URL, size, and time of all objects below it."""
    _refuse_listing(url)
    place = _Place(url)
    cut = len(place.key) + 1 if place.key else 0

    def whole() -> list[dict[str, Any]]:
        # From its beginning after a failure: a listing cannot be gone on with.
        prefix = f"{place.key}/" if place.key else None
        return [
            {**entry, "path": entry["path"][cut:]}
            for batch in obstore.list(place.store, prefix)
            for entry in batch
        ]

    return list(place.ask(whole))


def metadata_stamp(url: str) -> str:
    """Return a digest of the metadata of a hierarchy on a web server, and of when it says that was written.

    A server lists nothing, so this is what is known of the whole: it stays as it is where chunks alone are
    written anew, and differs between servers that tell other times. "" where there is no metadata.
    """
    for name in _HIERARCHY:
        place = _Place(join(url, name))
        try:
            body, written = place.ask(lambda place=place: _body_and_time(place))
        except ImageNotFound:
            continue
        return hashlib.blake2b(body + written, digest_size=8).hexdigest()
    return ""


def _body_and_time(place: _Place) -> tuple[bytes, bytes]:
    found = obstore.get(place.store, place.key)
    return bytes(_whole_body(found)), str(found.meta["last_modified"]).encode()


def list_names(url: str) -> list[str]:
    """Return the names right below a URL, sorted."""
    objects, folders = _right_below(url)
    return sorted([*(name for name, _ in objects), *folders])


def _right_below(url: str) -> tuple[list[tuple[str, Any]], list[str]]:
    _refuse_listing(url)
    place = _Place(url)
    prefix = f"{place.key}/" if place.key else None
    found = place.ask(lambda: obstore.list_with_delimiter(place.store, prefix))
    cut = len(place.key) + 1 if place.key else 0
    objects = [(entry["path"][cut:], entry) for entry in found["objects"]]
    return objects, [prefix[cut:].rstrip("/") for prefix in found["common_prefixes"]]


def written_at(url: str) -> dict[str, float]:
    """Return when each object right below a URL was written, in seconds since 1970."""
    return {name: entry["last_modified"].timestamp() for name, entry in _right_below(url)[0]}


def delete(url: str) -> None:
    """Delete one object; nothing happens where there is none."""
    refuse_read_only(url)
    place = _Place(url)

    def try_once() -> None:
        try:
            obstore.delete(place.store, place.key)
        except FileNotFoundError as error:
            if is_no_bucket(error):
                raise

    place.ask(try_once)


def delete_prefix(url: str) -> None:
    """Delete an object and all below it."""
    refuse_read_only(url)
    place = _Place(url)
    if not place.key:
        raise PermissionDenied(
            "a whole bucket is not ours to delete", where=place.url, remedy="choose a prefix in it"
        )
    delete(url)
    keys = [f"{place.key}/{entry['path']}" for entry in listed(url)]
    for first in range(0, len(keys), _DELETED_AT_ONCE):
        _delete_together(place, keys[first : first + _DELETED_AT_ONCE])


def _delete_together(place: _Place, keys: list[str]) -> None:
    """Delete many objects in one request, one by one where the service has none such, or refuses it."""
    store = open_store(place.root, place.options, bulk_delete=True)
    try:
        place.ask(lambda: obstore.delete(store, keys))
    except (PermissionDenied, StoreUnavailable):
        with ThreadPoolExecutor(place.options.concurrency) as pool:
            list(pool.map(lambda key: delete(f"{place.root}/{key}"), keys))


def matching(pattern: str) -> list[str]:
    """Return what a URL with ``*``, ``?`` or ``[...]`` in its key stands for, sorted."""
    root, key = split_remote(pattern)
    found = [root]
    for part in key.split("/"):
        if any(sign in part for sign in "*?["):
            below = ((url, list_names(url)) for url in found)
            found = list(
                chain.from_iterable(
                    (join(url, name) for name in names if fnmatch.fnmatchcase(name, part))
                    for url, names in below
                )
            )
        else:
            found = [join(url, part) for url in found]
    return sorted(found)
