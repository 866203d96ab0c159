"""Azure's blob storage emulator, and the few requests that its administrator needs."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .canary import AZURE_KEY, LOOPBACK_ONLY
from .processes import running

ACCOUNT = "canaryaccount"
_VERSION = "2021-12-02"


@dataclass(frozen=True, slots=True)
class AzureServer:
    """An account of the emulator; a path of it begins with the account, then the container."""

    endpoint: str

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """Return what a client finds in its environment: account, key, endpoint (a proxy's, if given)."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
            "AZURE_STORAGE_ENDPOINT": f"{endpoint or self.endpoint}/{ACCOUNT}",
            "AZURE_ALLOW_HTTP": "true",
            **LOOPBACK_ONLY,
        }

    def make_container(self) -> str:
        """Make a container of a fresh name; return it."""
        name = f"container-{uuid.uuid4().hex[:12]}"
        date = formatdate(usegmt=True)
        # What is signed: "Authorize with Shared Key" of the Blob service's reference, eleven empty headers.
        headers = f"x-ms-date:{date}\nx-ms-version:{_VERSION}"
        text = "PUT" + "\n" * 12 + f"{headers}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        digest = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
        signature = base64.b64encode(digest).decode()
        connection = http.client.HTTPConnection(urlsplit(self.endpoint).netloc, timeout=30)
        try:
            connection.request(
                "PUT",
                f"/{ACCOUNT}/{name}?restype=container",
                headers={
                    "x-ms-date": date,
                    "x-ms-version": _VERSION,
                    "Content-Length": "0",
                    "Authorization": f"SharedKey {ACCOUNT}:{signature}",
                },
            )
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        if answer.status != 201:
            raise OSError(f"the emulator made no container: {answer.status} {said[:300]!r}")
        return name

    def store(self, container: str, endpoint: str | None = None, **settings: Any) -> Any:
        """Return obstore's own store of a container; ``settings`` as obstore takes them."""
        from obstore.store import AzureStore

        options: Any = {"allow_http": True, **settings.pop("client_options", {})}
        given = {
            "account_name": ACCOUNT,
            "account_key": AZURE_KEY,
            "endpoint": f"{endpoint or self.endpoint}/{ACCOUNT}",
        }
        return AzureStore(container, client_options=options, **{**given, **settings})


def azurite_program() -> str | None:
    """Return the emulator's program: what DENOIZARR_AZURITE names, else ``azurite-blob`` on the path."""
    return shutil.which(os.environ.get("DENOIZARR_AZURITE", "azurite-blob"))


@contextmanager
def azurite_server(folder: Path) -> Iterator[AzureServer]:
    """Run the emulator: in memory, signatures checked, and no word to its makers."""
    program = azurite_program()
    assert program is not None, "ask azurite_program() first"

    command = [program, "--blobHost", "127.0.0.1", "--blobPort", "{port}"]
    options = ["--disableTelemetry", "--inMemoryPersistence", "--skipApiVersionCheck", "--silent"]
    accounts = {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{AZURE_KEY}"}
    with running([*command, *options], folder, accounts) as endpoint:
        yield AzureServer(endpoint)
