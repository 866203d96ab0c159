"""How object stores are reached: never a secret, so that it may lie in a job file and travel with a task."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from denoizarr.errors import BadRequest

from .urls import is_remote, redact, split_remote

_LARGEST = 1e6
_SECRET_WORDS = ("secret", "password", "token", "access_key", "account_key", "credential", "sas", "private")


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Where and how a bucket is asked. Credentials are not among it: it may name where they are.

    Attributes
    ----------
    endpoint : str, optional
        URL of the service, where it is not the cloud's own. Without: ``AWS_ENDPOINT_URL`` of the environment.
    region : str, optional
    anonymous : bool
        Requests are not signed: for public buckets.
    requester_pays : bool
        Whoever asks agrees to pay (S3).
    profile : str, optional
        Of the shared credentials file (S3); needs the extra ``aws``.
    encryption : {"AES256", "aws:kms", "aws:kms:dsse", "customer"}, optional
        What the server encrypts new objects with (S3).
    kms_key : str, optional
        Name of the key, for ``aws:kms``.
    customer_key_variable : str, optional
        Environment variable that holds the 256-bit key in base64, for "customer"; it has to be there on
        every machine.
    allow_http : bool
        Plain HTTP to other machines. To this one it is always allowed.
    connect_seconds, request_seconds : float
        Until a request is given up, and tried again.
    tries : int
        Of one request, the first included.
    first_wait_seconds : float
        The wait before the second try is drawn from zero to twice this; each further one from twice as much,
        up to 10 s.
    total_seconds : float
        Between the first failure of a request and its last try.
    concurrency : int
        Requests of one kind in flight from one process, such as the chunks of a read.
    """

    endpoint: str | None = None
    region: str | None = None
    anonymous: bool = False
    requester_pays: bool = False
    profile: str | None = None
    encryption: str | None = None
    kms_key: str | None = None
    customer_key_variable: str | None = None
    allow_http: bool = False
    connect_seconds: float = 10.0
    request_seconds: float = 120.0
    tries: int = 8
    first_wait_seconds: float = 0.1
    total_seconds: float = 180.0
    concurrency: int = 32

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_type(field.name, str(field.type), getattr(self, field.name))
        if self.endpoint is not None:
            check_endpoint_text(self.endpoint)
        kinds = (None, "AES256", "aws:kms", "aws:kms:dsse", "customer")
        if self.encryption not in kinds:
            expected = ", ".join(str(kind) for kind in kinds[1:])
            raise BadRequest(
                "unknown encryption", where="storage.encryption", got=self.encryption, expected=expected
            )
        if (self.encryption == "customer") != (self.customer_key_variable is not None):
            raise BadRequest(
                "encryption: customer and customer_key_variable go together", where="storage.encryption"
            )
        if self.kms_key is not None and not str(self.encryption).startswith("aws:kms"):
            raise BadRequest("kms_key needs encryption: aws:kms", where="storage.kms_key")
        if self.anonymous and self.profile is not None:
            raise BadRequest("anonymous requests have no profile", where="storage.profile")


def _check_type(name: str, kind: str, value: Any) -> None:
    where = f"storage.{name}"
    if kind == "bool" and not isinstance(value, bool):
        raise BadRequest("not true or false", where=where, got=repr(value))
    if kind.startswith("str") and not (value is None or (isinstance(value, str) and value)):
        raise BadRequest("not a text", where=where, got=type(value).__name__)
    if kind in ("int", "float"):
        number = not isinstance(value, bool) and isinstance(value, int if kind == "int" else int | float)
        if not number or not 0 < value < _LARGEST:
            raise BadRequest("out of range", where=where, got=repr(value), expected="a number above 0")


def check_endpoint_text(endpoint: str) -> None:
    """Refuse what is no service's URL, or carries a secret."""
    shown, parts = redact(endpoint), urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadRequest(
            "the endpoint of a store is no URL", where=shown, expected="https://host or http://host:port"
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise BadRequest(
            "an endpoint that carries a user, a password or a query",
            where=shown,
            remedy="leave them out: credentials come from the environment, a profile or the machine's role",
        )


DEFAULT = StoreOptions()
# By root, such as "s3://bucket"; "" is for all others. Replaced, never changed: other threads look things up.
_used: dict[str, StoreOptions] = {}


def options_from(values: Mapping[str, Any], where: str = "storage_options") -> StoreOptions:
    """Return options from a mapping, such as a user's.

    Raises
    ------
    BadRequest
        A name is unknown, or that of a secret: those are refused by name, and their values never shown.
    """
    known = [field.name for field in fields(StoreOptions)]
    for name in values:
        if name in known:
            continue
        if any(word in str(name).lower() for word in _SECRET_WORDS) or str(name).lower() in ("key", "user"):
            raise BadRequest(
                "a secret is not an option",
                where=f"{where}.{name}",
                remedy="set it in the environment, or name a profile that holds it",
            )
        near = difflib.get_close_matches(str(name), known, 1)
        raise BadRequest(
            "unknown option of a store",
            where=f"{where}.{name}",
            expected=near[0] if near else ", ".join(known),
        )
    return StoreOptions(**values)


def use(url: str | None, options: StoreOptions) -> None:
    """Reach the bucket of a URL so from now on, in this process; without a URL, every bucket."""
    if url is not None and not is_remote(url):
        raise BadRequest("options are for object stores", where=redact(url), expected="s3://, gs://, ...")
    global _used
    _used = {**_used, "" if url is None else split_remote(url)[0]: options}


def options_of(root: str) -> StoreOptions:
    """Return how the bucket of this root is reached."""
    used = _used
    return used.get(root) or used.get("") or DEFAULT


InUse = tuple[tuple[str, StoreOptions], ...]


def in_use() -> InUse:
    """Return what was set in this process, for a task to take along."""
    return tuple(sorted(_used.items(), key=lambda item: item[0]))


def take(brought: InUse) -> None:
    """Reach buckets as a task brought it along, and no longer as an earlier job had it."""
    global _used
    if in_use() != brought:
        _used = dict(brought)
