"""Certificates for connections to and within a cluster, from files or made for one run."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from distributed import Security

from denoizarr.errors import BadRequest

from .cluster_addresses import split
from .cluster_settings import ClusterSettings, TLSFiles

_LOG = logging.getLogger(__name__)


def security_of(files: TLSFiles) -> Security:
    """Return what Dask needs to use the files, in whatever role this process and its workers have.

    Raises
    ------
    BadRequest
        A file is not there, may not be read, or is not what it should be. Its content is not repeated.
    """
    for name in ("ca", "certificate", "key"):
        path = getattr(files, name)
        if not os.access(path, os.R_OK):
            raise BadRequest(
                "a file that cannot be read" if os.path.exists(path) else "no such file",  # noqa: PTH110
                where=f"cluster.tls.{name}",
                got=path,
            )
    if os.stat(files.key).st_mode & 0o077:  # noqa: PTH116
        _LOG.warning("the key %s can be read by others than its owner: chmod 600 it", files.key)
    security = Security(
        require_encryption=True,
        tls_ca_file=files.ca,
        **{f"tls_{role}_cert": files.certificate for role in ("client", "scheduler", "worker")},
        **{f"tls_{role}_key": files.key for role in ("client", "scheduler", "worker")},
    )
    _loaded(security, "cluster.tls", f"{files.ca}, {files.certificate}, {files.key}")
    return security


def security_for_address(settings: ClusterSettings) -> Security | None:
    """Return what a client needs for the settings' address; None where that has no TLS.

    Without files in the settings, they are those that Dask's own configuration names.
    """
    assert settings.address is not None, "checked"
    if split(settings.address)[0] not in ("tls", "wss"):
        return None
    if settings.tls is not None:
        return security_of(settings.tls)
    security = Security(require_encryption=True)
    has = security.get_tls_config_for_role("client")
    if has["ca_file"] is None or has["cert"] is None:
        raise BadRequest(
            "an address with TLS needs certificates",
            where="cluster.tls",
            expected="ca, certificate and key, here or in Dask's configuration (distributed.comm.tls)",
        )
    _loaded(security, "distributed.comm.tls", "what Dask's configuration names")
    return security


@contextmanager
def temporary_files(folder: str) -> Iterator[TLSFiles]:
    """Make an authority for one run, and yield its files in a folder of its own that only its owner enters.

    Deleted with the block. Were this process killed, they stay, of use to nobody: only its own scheduler and
    workers ever took them for proof.

    Parameters
    ----------
    folder : str
        That all workers see.

    Raises
    ------
    BadRequest
        The package that makes them is not installed, or nothing can be written there.
    """
    try:
        made = Security.temporary().get_tls_config_for_role("scheduler")
    except ImportError as error:
        raise BadRequest(
            "a certificate for this run cannot be made without the package cryptography",
            remedy="pip install 'denoizarr[slurm]', or name certificates in cluster.tls",
        ) from error
    try:
        own = TemporaryDirectory(prefix=".denoizarr-tls-", dir=folder)
    except OSError as error:
        raise BadRequest(
            "a certificate for this run cannot be written", where=folder, got=error.strerror
        ) from error
    with own as place:
        paths = {name: os.path.join(place, f"{name}.pem") for name in ("ca_file", "cert", "key")}  # noqa: PTH118
        for name, path in paths.items():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(made[name])
        yield TLSFiles(paths["ca_file"], paths["cert"], paths["key"])


def _loaded(security: Any, where: str, what: str) -> None:
    """Load the files once, so that a bad one is refused here and by name."""
    try:
        security.get_connection_args("client")
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise BadRequest(
            "certificates that cannot be used",
            where=where,
            got=f"{reason} in {what}",
            expected="PEM files that fit",
        ) from error
