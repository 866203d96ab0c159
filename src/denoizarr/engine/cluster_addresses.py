"""Addresses of schedulers: which may be used without TLS, and which not.

A scheduler runs what its clients send. Whoever can connect to one without a certificate is its owner's equal,
so plain connections are for this machine only, unless somebody says otherwise.
"""

from __future__ import annotations

import ipaddress
import socket

from denoizarr.errors import BadRequest

_PLAIN, _ENCRYPTED = ("tcp", "ws"), ("tls", "wss")


def check_address(address: str, *, has_files: bool, insecure: bool) -> None:
    """Refuse an address that would be reached without TLS from another machine.

    Parameters
    ----------
    address : str
        Without a scheme it is ``tcp://``, as Dask has it.
    has_files : bool
        Whether certificates are configured.
    insecure : bool
        Whether it may be all the same.

    Raises
    ------
    BadRequest
    """
    scheme, host = split(address)
    if scheme in _ENCRYPTED:
        if insecure:
            raise BadRequest(
                "this address has TLS, nothing insecure", where=address, remedy="leave insecure out"
            )
        return
    if has_files:
        raise BadRequest(
            "certificates for an address without TLS",
            where=address,
            expected=f"tls://{address.split('://')[-1]}",
        )
    if not (insecure or is_loopback(host)):
        raise BadRequest(
            "a scheduler on another machine without TLS: whoever reaches it can run programs as you",
            where=address,
            expected=f"tls://{address.split('://')[-1]}",
            remedy="give it certificates (deploy/certificates), or allow it with insecure",
        )


def split(address: str) -> tuple[str, str]:
    """Return scheme and host of a scheduler's address.

    Raises
    ------
    BadRequest
        It is none, or has something before an @, which is not repeated: Dask has no passwords there.
    """
    if "@" in address:
        raise BadRequest(
            "an address with something before the @", where="cluster.address", expected="scheme://host:port"
        )
    scheme, _, rest = address.rpartition("://")
    scheme = scheme or "tcp"
    host, colon, port = rest.rstrip("/").rpartition(":")
    if scheme not in (*_PLAIN, *_ENCRYPTED) or not colon or not host or not port.isdecimal():
        raise BadRequest(
            "not an address of a scheduler",
            where="cluster.address",
            got=repr(address),
            expected="tls://host:port",
        )
    return scheme, host.strip("[]")


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine's own loopback, by every address that its name has."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(each.split("%")[0]).is_loopback for each in found)
