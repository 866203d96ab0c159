"""Fixtures that tests of object stores share; ``tests/conftest.py`` names them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .azure import AzureServer, azurite_program, azurite_server
from .canary import LOOPBACK_ONLY
from .fault_proxy import FaultProxy
from .s3 import Bucket, S3Server, guarded_server, ministack_program, ministack_server, moto_server

_SERVERS = ["moto", pytest.param("ministack", marks=pytest.mark.slow)]


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """moto's S3 server, started by the first test that asks, shared by all: buckets have fresh names."""
    pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[server]'")
    with moto_server(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def guarded_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A second moto that checks signatures and policies; ``with_policy`` makes users."""
    pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[server]'")
    with guarded_server(tmp_path_factory.mktemp("guarded")) as server:
        yield server


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A second S3 server, of other authors; for tests marked slow."""
    if ministack_program() is None:
        pytest.skip(
            "ministack is not installed: make it an environment of its own, name it in DENOIZARR_MINISTACK"
        )
    with ministack_server(tmp_path_factory.mktemp("ministack")) as server:
        yield server


@pytest.fixture(scope="session", params=_SERVERS)
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Every S3 server in turn; all but the first only where slow tests are run."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture
def bucket(s3_server: S3Server) -> Iterator[Bucket]:
    """A fresh bucket on each server in turn, emptied afterwards."""
    made = s3_server.make_bucket()
    yield made
    made.delete_all()


@pytest.fixture
def fault_proxy(bucket: Bucket) -> Iterator[FaultProxy]:
    """A proxy in front of the bucket's server, without faults until it is told."""
    with FaultProxy(bucket.server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def s3_environment(
    fault_proxy: FaultProxy, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The environment, this process's and its children's: canary keys, and the proxy as the endpoint."""
    found = bucket.server.environment(fault_proxy.endpoint)
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, and none to be asked for beyond loopback."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)
    for name, value in LOOPBACK_ONLY.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    """Azure's blob storage emulator; for tests marked slow."""
    if azurite_program() is None:
        pytest.skip("azurite is not installed: npm install azurite, name azurite-blob in DENOIZARR_AZURITE")
    with azurite_server(tmp_path_factory.mktemp("azurite")) as server:
        yield server
