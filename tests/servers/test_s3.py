"""The servers themselves: they start, answer on loopback alone, and are gone afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from urllib.parse import quote, urlsplit

import obstore
import psutil
import pytest

from .azure import AzureServer
from .canary import AZURE_KEY, SECRET, SECRETS, TOKEN, secrets_in
from .processes import answers, running
from .s3 import Bucket, S3Server, moto_server

# Serves on the port that it is given, but only once somebody has tried before.
SHY = """
import http.server, pathlib, sys
tried = pathlib.Path("tried")
if not tried.exists():
    tried.touch()
    sys.exit("port taken")
address = ("127.0.0.1", int(sys.argv[1]))
http.server.ThreadingHTTPServer(address, http.server.BaseHTTPRequestHandler).serve_forever()
"""
CHILD = """
import json, obstore
from obstore.store import S3Store
import sys
store = S3Store(sys.argv[1])
obstore.put(store, "from/child", b"bytes", mode="create")
print(json.dumps([repr(store), bytes(obstore.get(store, "from/child").bytes()).decode()]))
"""


def listeners(endpoint: str) -> set[str]:
    """Return every address that the process behind an endpoint, or a child of it, listens on."""
    port = urlsplit(endpoint).port
    mine = [psutil.Process(), *psutil.Process().children(recursive=True)]
    sockets = {p.pid: p.net_connections("inet") for p in mine}
    server = next(
        pid for pid, found in sockets.items() for c in found if c.laddr.port == port and c.status == "LISTEN"
    )
    family = [server, *(child.pid for child in psutil.Process(server).children(recursive=True))]
    return {c.laddr.ip for pid in family for c in sockets.get(pid, []) if c.status == "LISTEN"}


def test_a_bucket_holds_what_is_put_and_is_listed_whole(bucket: Bucket) -> None:
    assert bucket.keys() == []
    names = [f"a/{n:04}" for n in range(30)]
    for name in names:
        bucket.put(name, name.encode())
    bucket.put("b", b"12345")
    assert bucket.keys("a/") == names
    assert bucket.sizes("b") == {"b": 5}
    assert bucket.contents("a/") == {name: name.encode() for name in names}
    bucket.delete("b")
    assert bucket.keys() == names
    bucket.delete_all("a/000")
    assert bucket.keys() == names[10:]
    assert bucket.url == f"s3://{bucket.name}"


def test_an_upload_that_was_left_is_seen(bucket: Bucket) -> None:
    begun = bucket.client.create_multipart_upload(Bucket=bucket.name, Key="left")
    assert bucket.uploads() == ["left"]
    bucket.client.abort_multipart_upload(Bucket=bucket.name, Key="left", UploadId=begun["UploadId"])
    assert bucket.uploads() == []


def test_its_environment_is_all_that_a_child_needs(bucket: Bucket, s3_environment: dict[str, str]) -> None:
    assert all(os.environ[name] == value for name, value in s3_environment.items())
    done = subprocess.run(
        [sys.executable, "-c", CHILD, bucket.name], check=True, capture_output=True, text=True, timeout=60
    )
    assert json.loads(done.stdout) == [f'S3Store(bucket="{bucket.name}")', "bytes"]
    assert secrets_in(done.stdout + done.stderr) == []
    assert bucket.contents() == {"from/child": b"bytes"}


def test_servers_listen_on_loopback_alone(s3_server: S3Server) -> None:
    assert listeners(s3_server.endpoint) == {"127.0.0.1"}


@pytest.mark.slow
def test_azurite_listens_on_loopback_alone(azurite: AzureServer) -> None:
    assert listeners(azurite.endpoint) == {"127.0.0.1"}


def test_a_server_is_reset_and_gone_when_it_is_left(tmp_path: Path) -> None:
    with moto_server(tmp_path) as server:
        server.make_bucket().put("x", b"1")
        server.make_bucket("named")
        assert len(server.buckets()) == 2
        server.reset()
        assert server.buckets() == []
        port = urlsplit(server.endpoint).port
        assert port is not None
        assert answers(port)
    assert not answers(port)


def test_a_taken_port_is_tried_again_elsewhere(tmp_path: Path) -> None:
    with running([sys.executable, "-c", SHY, "{port}"], tmp_path) as endpoint:
        port = urlsplit(endpoint).port
        assert port is not None
        assert answers(port)
    assert not answers(port)


def test_a_program_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="no luck today"),
        running([sys.executable, "-c", "raise SystemExit('no luck today')"], tmp_path),
    ):
        pass


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_found_in_every_form(secret: str) -> None:
    forms = [secret, quote(secret), quote(secret, safe=""), json.dumps({"k": secret})]
    encoded = [b64encode(f"{'x' * n}{secret}{'y' * n}".encode()).decode() for n in range(4)]
    for form in (*forms, *encoded, f"https://user:{quote(secret, safe='')}@host/x"):
        assert secrets_in(f"before {form} after") == [secret]
        assert secrets_in(f"before {form} after".encode()) == [secret]
    assert secrets_in("nothing of the kind, not even a canary") == []


def test_the_canaries_are_what_a_store_would_give_away(bucket: Bucket) -> None:
    # The negative control of all tests that look for them: a store that was given its keys holds them.
    assert set(secrets_in(json.dumps(bucket.store().config))) == {SECRET, TOKEN}
    assert AZURE_KEY not in secrets_in(json.dumps(bucket.store().config))


def test_obstore_reads_the_bucket(bucket: Bucket) -> None:
    bucket.put("k", b"bytes")
    assert bytes(obstore.get(bucket.store(), "k").bytes()) == b"bytes"
