"""Credentials of no worth that are easy to find again: where one of them turns up, a real one would."""

from __future__ import annotations

import base64
from urllib.parse import quote

KEY_ID = "CANARYKEYID000000001"
# With signs that a URL must escape, so that an escaped form is a form of its own.
SECRET = "canary/Secret+that=MustNeverBeSeenAnywhere"  # noqa: S105  # of no worth
TOKEN = "canary/Token+that=MustNeverBeSeenAnywhere"  # noqa: S105  # of no worth
# Azure takes keys in base64 only; this one says "canary" inside.
AZURE_KEY = base64.b64encode(b"canary-azure-key-that-must-never-be-seen-anywhere".ljust(64, b"!")).decode()
SECRETS = (SECRET, TOKEN, AZURE_KEY)
# Nobody listens there: a client without keys is refused at once and asks no machine but this one.
NOBODY = "127.0.0.1:1"
# What keeps clients on loopback, whatever they are asked: no metadata service, no proxy, no profile.
LOOPBACK_ONLY = {
    "AWS_METADATA_ENDPOINT": f"http://{NOBODY}",
    "AWS_EC2_METADATA_DISABLED": "true",
    "GCE_METADATA_HOST": NOBODY,
    "AZURE_IDENTITY_ENDPOINT": f"http://{NOBODY}",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


def secrets_in(data: bytes | str) -> list[str]:
    """Return the secrets that the data hold, as they are, escaped for a URL, or in base64."""
    found = data.encode(errors="surrogateescape") if isinstance(data, str) else data
    return [secret for secret in SECRETS if any(form in found for form in _forms(secret))]


def _forms(secret: str) -> list[bytes]:
    forms = [secret, quote(secret), quote(secret, safe=""), repr(secret)[1:-1]]
    # Base64 of a text that has it anywhere: what is left of its three alignments without their edges.
    shifted = [base64.b64encode(b"\0" * k + secret.encode())[4:-4].decode() for k in range(3)]
    return [form.encode() for form in (*forms, *shifted)]
