"""Names of places: paths, ``file://``, and URLs of object stores. Text in, text out; nothing is opened here.

::

    s3://bucket/data/stack.ome.zarr
    |    |      |
    |    |      key below the bucket
    |    bucket (s3, gs), container (az) or server (http, https): the root
    scheme
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from urllib.parse import unquote, urlsplit

from denoizarr.errors import BadRequest, UnsupportedStore

# One slash is enough: Path("s3://...") folds two into one, and its password must not end up in a message.
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/+")
BUCKETS = frozenset({"s3", "gs", "az"})
SERVERS = frozenset({"http", "https"})
_REMOTE = BUCKETS | SERVERS


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


def is_remote(url: str | Path) -> bool:
    """Tell whether a URL is that of an object store or a web server, and no path."""
    scheme = _SCHEME.match(str(url))
    return scheme is not None and scheme[1].lower() in _REMOTE


def is_read_only(url: str | Path) -> bool:
    """Tell whether nothing can be written there, whoever asks: to web servers."""
    return scheme_of(url) in SERVERS


def scheme_of(url: str | Path) -> str:
    """Return the scheme in lower case; "file" for a path."""
    scheme = _SCHEME.match(str(url))
    return "file" if scheme is None else scheme[1].lower()


def local_path(url: str | Path) -> Path:
    """Return the absolute path that a path or ``file://`` URL names.

    Raises
    ------
    UnsupportedStore
        It is no place on a disk.
    """
    text = str(url)
    scheme = _SCHEME.match(text)
    if scheme is None:
        return Path(text).expanduser().absolute()
    if scheme[1].lower() == "file":
        return Path(unquote(urlsplit(text).path)).absolute()
    known = scheme[1].lower() in _REMOTE
    raise UnsupportedStore(
        "this is read and written on disks only" if known else "this kind of store is not supported",
        where=redact(text),
        got=f"{scheme[1]}://",
        expected="a path or file:// URL" + ("" if known else ", s3://, gs://, az://, http:// or https://"),
        remedy="copy it to a local or network disk",
    )


def split_remote(url: str | Path) -> tuple[str, str]:
    """Return the root of a remote URL, such as ``s3://bucket``, and the key below it, which may be empty.

    Raises
    ------
    BadRequest
        It carries a user, a password or a query; a part of it is "." or ".."; it names no bucket.
    """
    text = str(url)
    scheme = _SCHEME.match(text)
    assert scheme is not None, "a remote URL"
    rest = text[scheme.end() :]
    shown = redact(text)
    host, _, key = rest.partition("/")
    if (
        "@" in host
        or (":" in host and scheme[1].lower() in BUCKETS)
        or shown.rstrip("/") != (f"{scheme[1]}://{rest}".rstrip("/"))
    ):
        raise BadRequest(
            "a URL that carries a user, a password or a query",
            where=shown,
            remedy="leave them out: credentials come from the environment, a profile or the machine's role",
        )
    if not host:
        raise BadRequest("a URL without a bucket or server", where=shown)
    if scheme[1].lower() in SERVERS:
        key = unquote(key)  # as a browser shows it: whoever asks escapes it again
    parts = [part for part in key.split("/") if part]
    if any(part in (".", "..") for part in parts):
        raise BadRequest('a URL with "." or ".." in it', where=shown, remedy="write the key out")
    return f"{scheme[1].lower()}://{host}", "/".join(parts)


def join(url: str | Path, *parts: str) -> str:
    """Return the name of something below ``url``, with forward slashes, no scheme for local paths."""
    if not is_remote(url):
        return str(local_path(url).joinpath(*parts))
    root, key = split_remote(url)
    below = [part for name in (key, *parts) for part in name.split("/") if part]
    if any(part in (".", "..") for part in below):
        raise BadRequest('a key with "." or ".." in it', where=root, got="/".join(below))
    return "/".join((root, *below))


def name_of(url: str | Path) -> str:
    """Return the last part of a path or URL."""
    return join(url).rpartition("/")[2] if is_remote(url) else local_path(url).name


def parent_of(url: str | Path) -> str:
    """Return the folder, or the prefix, that something lies in; the root of a bucket is its own."""
    if not is_remote(url):
        return str(local_path(url).parent)
    root, key = split_remote(url)
    return join(root, key.rpartition("/")[0])


def overlap(one: str | Path, other: str | Path) -> bool:
    """Tell whether two places are the same, or one lies in the other; links on disks are followed."""
    if is_remote(one) != is_remote(other):
        return False
    if not is_remote(one):
        here, there = local_path(one).resolve(), local_path(other).resolve()
        return here == there or here in there.parents or there in here.parents
    here_url, there_url = f"{join(one)}/", f"{join(other)}/"
    return here_url.startswith(there_url) or there_url.startswith(here_url)


def absolute(url: str, base: str | Path) -> str:
    """Return a URL as it is, and a path as counted from the folder or prefix ``base``."""
    if _SCHEME.match(url) or (is_remote(base) and Path(url).is_absolute()):
        return url
    if not is_remote(base):
        return str((local_path(base) / Path(url).expanduser()).absolute())
    while url.startswith("../"):
        url, base = url.removeprefix("../"), parent_of(base)
    return join(base, url)


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names, numbered where several are the same, for what lies in one folder."""
    taken: list[str] = []
    for name in names:
        candidates = (name if n == 1 else f"{name}-{n}" for n in count(1))
        taken.append(next(candidate for candidate in candidates if candidate not in taken))
    return tuple(taken)
