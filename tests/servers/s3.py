"""S3 servers on this machine, and what tests do to their buckets behind the back of what they test."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .canary import KEY_ID, LOOPBACK_ONLY, SECRET, TOKEN
from .processes import running

REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class Keys:
    """Who asks."""

    key_id: str = KEY_ID
    secret: str = field(default=SECRET, repr=False)
    token: str | None = field(default=TOKEN, repr=False)


@lru_cache(maxsize=64)
def _client(service: str, endpoint: str, keys: Keys) -> Any:
    # Kept: making one costs 50 ms or more, sending a request a few.
    import boto3
    from botocore.config import Config

    return boto3.client(
        service,
        endpoint_url=endpoint,
        aws_access_key_id=keys.key_id,
        aws_secret_access_key=keys.secret,
        aws_session_token=keys.token,
        region_name=REGION,
        config=Config(proxies={}, s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


@dataclass(frozen=True, slots=True)
class S3Server:
    """A server as seen with somebody's keys: everything here goes straight to it, past any proxy."""

    name: str
    endpoint: str
    keys: Keys = Keys()

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """Return what a client finds in its environment: keys, endpoint (a proxy's, if given)."""
        token = {"AWS_SESSION_TOKEN": self.keys.token} if self.keys.token else {}
        return {
            **token,
            "AWS_ACCESS_KEY_ID": self.keys.key_id,
            "AWS_SECRET_ACCESS_KEY": self.keys.secret,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            **LOOPBACK_ONLY,
        }

    def client(self, service: str = "s3", endpoint: str | None = None) -> Any:
        """Return a boto3 client; straight to the server, or through a proxy."""
        return _client(service, endpoint or self.endpoint, self.keys)

    def make_bucket(self, name: str | None = None) -> Bucket:
        """Make a bucket, of a fresh name by default."""
        bucket = Bucket(self, name or f"bucket-{uuid.uuid4().hex[:12]}")
        bucket.client.create_bucket(Bucket=bucket.name)
        return bucket

    def buckets(self) -> list[Bucket]:
        """Return all buckets."""
        return [Bucket(self, found["Name"]) for found in self.client().list_buckets()["Buckets"]]

    def with_policy(self, policy: Mapping[str, Any]) -> S3Server:
        """Return the server as seen by a new user who may do what an IAM policy says, and nothing else."""
        client, name = self.client("iam"), f"user-{uuid.uuid4().hex[:12]}"
        client.create_user(UserName=name)
        client.put_user_policy(UserName=name, PolicyName="only", PolicyDocument=json.dumps(policy))
        made = client.create_access_key(UserName=name)["AccessKey"]
        return replace(self, keys=Keys(made["AccessKeyId"], made["SecretAccessKey"], None))

    def reset(self) -> None:
        """Delete all buckets with what is in them."""
        for bucket in self.buckets():
            bucket.delete_all()
            bucket.client.delete_bucket(Bucket=bucket.name)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket as its administrator sees it: objects as bytes."""

    server: S3Server
    name: str

    @property
    def url(self) -> str:
        """``s3://name``."""
        return f"s3://{self.name}"

    @property
    def client(self) -> Any:
        """A boto3 client of the server."""
        return self.server.client()

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return all keys that begin so, sorted, with the sizes of their objects in bytes."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", [])}

    def keys(self, prefix: str = "") -> list[str]:
        """Return all keys that begin so, sorted."""
        return list(self.sizes(prefix))

    def get(self, key: str) -> bytes:
        """Return an object's bytes."""
        return bytes(self.client.get_object(Bucket=self.name, Key=key)["Body"].read())

    def contents(self, prefix: str = "") -> dict[str, bytes]:
        """Return all objects whose keys begin so: two buckets hold the same where these are equal."""
        return {key: self.get(key) for key in self.keys(prefix)}

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def delete(self, key: str) -> None:
        """Delete an object."""
        self.client.delete_object(Bucket=self.name, Key=key)

    def delete_all(self, prefix: str = "") -> None:
        """Delete all objects whose keys begin so."""
        for key in self.keys(prefix):
            self.delete(key)

    def uploads(self) -> list[str]:
        """Return the keys of uploads that were begun, not finished, not given up: they cost money unseen."""
        found = self.client.list_multipart_uploads(Bucket=self.name)
        return [upload["Key"] for upload in found.get("Uploads", [])]

    def store(self, endpoint: str | None = None, **settings: Any) -> Any:
        """Return obstore's own store of the bucket, straight or through a proxy; settings are obstore's."""
        from obstore.store import S3Store

        options: Any = {"allow_http": True, **settings.pop("client_options", {})}
        given = {
            "access_key_id": self.server.keys.key_id,
            "secret_access_key": self.server.keys.secret,
            **({"session_token": self.server.keys.token} if self.server.keys.token else {}),
            "region": REGION,
            "endpoint": endpoint or self.server.endpoint,
        }
        return S3Store(self.name, client_options=options, **{**given, **settings})


@contextmanager
def moto_server(folder: Path) -> Iterator[S3Server]:
    """Run moto's server: in memory, signatures not checked."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "{port}"]
    with running(command, folder) as endpoint:
        yield S3Server("moto", endpoint)


@contextmanager
def guarded_server(folder: Path) -> Iterator[S3Server]:
    """Run moto's server, signatures and policies checked; the keys are those of one who may do anything."""
    with moto_server(folder) as server:
        allowed = {"Effect": "Allow", "Action": "*", "Resource": "*"}
        found = server.with_policy({"Version": "2012-10-17", "Statement": [allowed]})
        connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc, timeout=30)
        try:
            # So many requests more go unchecked.
            connection.request("POST", "/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise OSError(f"the server does not check who asks: {answer.status} {said[:300]!r}")
        yield replace(found, name="guarded moto")


def ministack_program() -> str | None:
    """Return the program of the second server: what DENOIZARR_MINISTACK names, else the one on the path."""
    return shutil.which(os.environ.get("DENOIZARR_MINISTACK", "ministack"))


@contextmanager
def ministack_server(folder: Path) -> Iterator[S3Server]:
    """Run ministack, of other authors than moto: in memory; key ids are checked, secrets are not."""
    program = ministack_program()
    assert program is not None, "ask ministack_program() first"
    environment = {
        **LOOPBACK_ONLY,
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": "{port}",
        "SERVICES": "s3",
        "AUTH": "true",
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": TOKEN,
        "TMPDIR": str(folder),
        "DOCKER_HOST": "unix:///dev/null",
    }
    with running([program], folder, environment) as endpoint:
        yield S3Server("ministack", endpoint)
