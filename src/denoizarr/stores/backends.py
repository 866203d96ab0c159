"""Object stores as obstore opens them: from a root such as ``s3://bucket``, the options, and the environment.

Credentials are looked up here, on whichever machine asks, and are in no object that travels: a profile where
one is named, or where the environment has no key but a shared credentials file lies there; else obstore's own
chain (environment, web identity, container, the machine's role).
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from datetime import timedelta
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

from denoizarr.errors import BadRequest, PermissionDenied

from .store_options import StoreOptions, check_endpoint_text
from .urls import redact

RemoteStore = S3Store | GCSStore | AzureStore | HTTPStore
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "az": ("AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL", "STORAGE_EMULATOR_HOST"),
}
_NO_REGION = "us-east-1"


def endpoint_of(root: str, options: StoreOptions) -> str | None:
    """Return the URL of the service that a root is asked from; None for the cloud's own."""
    scheme, _, host = root.partition("://")
    if scheme in ("http", "https"):
        return f"{scheme}://{host}"
    found = (os.environ.get(name) for name in _ENDPOINTS[scheme])
    return options.endpoint or next((url for url in found if url), None)


@lru_cache(maxsize=64)
def open_store(root: str, options: StoreOptions, *, bulk_delete: bool = False) -> RemoteStore:
    """Open the store of a root; once per process for the same options.

    With ``bulk_delete`` objects are deleted a thousand a request where the service can: S3 can, and some that
    speak its language cannot, or ask for other rights.

    Raises
    ------
    BadRequest
        The endpoint is a link-local address, or another machine's without TLS.
    PermissionDenied
        There are no credentials of the named profile.
    """
    scheme, _, name = root.partition("://")
    endpoint = endpoint_of(root, options)
    plain = False
    if endpoint is not None:
        plain = _check_endpoint(endpoint, options)
    settings: dict[str, Any] = {
        "client_options": {
            "timeout": timedelta(seconds=options.request_seconds),
            "connect_timeout": timedelta(seconds=options.connect_seconds),
            "pool_max_idle_per_host": str(options.concurrency),
            "user_agent": f"denoizarr/{version('denoizarr')}",
            "allow_http": plain,
        },
        # Tries are ours: counted, and told from an answer that was lost on its way.
        "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=options.total_seconds)},
    }
    if scheme == "s3":
        return _s3(name, endpoint, options, settings, bulk_delete=bulk_delete)
    if scheme == "gs":
        return GCSStore(
            name,
            config={
                **({"base_url": endpoint} if endpoint else {}),
                **({"skip_signature": True} if options.anonymous else {}),
            },
            **settings,
        )
    if scheme == "az":
        return AzureStore(
            name,
            config={
                **({"endpoint": endpoint} if endpoint else {}),
                **({"skip_signature": True} if options.anonymous else {}),
            },
            **settings,
        )
    return HTTPStore.from_url(root, **settings)


def _s3(
    bucket: str, endpoint: str | None, options: StoreOptions, settings: dict[str, Any], *, bulk_delete: bool
) -> S3Store:
    region = options.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    config: Any = {"region": region or _NO_REGION, "disable_bulk_delete": not bulk_delete}
    if endpoint is not None:
        # Of one's own services few answer to bucket.host.
        config |= {"endpoint": endpoint, "virtual_hosted_style_request": False}
    if options.anonymous:
        config["skip_signature"] = True
    if options.requester_pays:
        config["request_payer"] = True
    if options.encryption == "customer":
        config |= {"server_side_encryption": "sse-c", "sse_customer_key_base64": _customer_key(options)}
    elif options.encryption is not None:
        config["server_side_encryption"] = options.encryption
        if options.kms_key is not None:
            config["sse_kms_key_id"] = options.kms_key
    return S3Store(bucket, config=config, credential_provider=_profile_of(options), **settings)


def _customer_key(options: StoreOptions) -> str:
    name = options.customer_key_variable or ""
    key = os.environ.get(name)
    if not key:
        raise PermissionDenied(
            "the key that objects are encrypted with is not at hand",
            where=name,
            remedy="set this environment variable on every machine of the job",
        )
    return key


def _profile_of(options: StoreOptions) -> Any:
    """Return what yields a profile's credentials, refreshed as they expire; None where obstore finds them."""
    if options.anonymous:
        return None
    named = options.profile or os.environ.get("AWS_PROFILE")
    if named is None:
        file = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
        if os.environ.get("AWS_ACCESS_KEY_ID") or not file.is_file():
            return None
    try:
        import boto3
        import botocore.exceptions
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        if named is None:
            return None
        raise BadRequest(
            "profiles of S3 need boto3",
            where=f"profile {named}",
            remedy="pip install 'denoizarr[aws]', or set the environment's AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY",
        ) from error
    try:
        return Boto3CredentialProvider(boto3.Session(profile_name=named))
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise PermissionDenied(
            "no credentials of this profile", where=named or "default", got=type(error).__name__
        ) from None  # what lies in the file is nobody's to read in a log


def _check_endpoint(endpoint: str, options: StoreOptions) -> bool:
    """Refuse endpoints that are no service's; tell whether this one is asked without TLS."""
    shown = redact(endpoint)
    check_endpoint_text(endpoint)
    parts = urlsplit(endpoint)
    assert parts.hostname, "just checked"
    addresses = _addresses_of(parts.hostname)
    if any(address.is_link_local or address.is_unspecified for address in addresses):
        raise BadRequest(
            "the endpoint is a link-local address, where machines keep their own credentials",
            where=shown,
            expected="a store's address",
        )
    here = bool(addresses) and all(address.is_loopback for address in addresses)
    if parts.scheme == "https" or here:
        return parts.scheme == "http"
    if not (options.allow_http or os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")):
        raise BadRequest(
            "a store of another machine without TLS",
            where=shown,
            expected="https://",
            remedy="set storage.allow_http if the network between them is your own",
        )
    return True


def _addresses_of(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    if re.fullmatch(r"[0-9a-fx.]+", host.lower()):
        # 2852039166 and 0xa9fea9fe are addresses too, to whoever opens the connection.
        try:
            return [ipaddress.ip_address(socket.inet_aton(host))]
        except OSError:
            pass
    try:
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return []  # whoever asks will say that it cannot be found
    addresses = [ipaddress.ip_address(text) for text in sorted(found)]
    return [getattr(address, "ipv4_mapped", None) or address for address in addresses]
