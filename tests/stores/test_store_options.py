"""How buckets are reached: what may be said of it, what may not, and where it is checked."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from denoizarr.errors import BadRequest, ConfigError, PermissionDenied
from denoizarr.pipeline.config import JobConfig
from denoizarr.pipeline.config_machines import BucketSettings
from denoizarr.stores import backends, sources, store_options
from denoizarr.stores.store_options import StoreOptions, options_from


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(store_options, "_used", {})
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ALLOW_HTTP", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "name")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    backends.open_store.cache_clear()
    yield
    backends.open_store.cache_clear()


@pytest.mark.parametrize(
    "name",
    [
        *("secret_access_key", "aws_secret_access_key", "access_key_id", "session_token", "password", "key"),
        *("account_key", "sas_token", "credentials", "user"),
    ],
)
def test_secrets_are_refused_by_name_and_not_shown(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        options_from({name: "hunter2"})
    assert name in str(caught.value)
    assert "hunter2" not in str(caught.value)
    job = {"input": "s3://b/a", "output": "s3://b/run", "storage": {name: "hunter2"}}
    with pytest.raises(ConfigError) as refused:
        JobConfig.load(job)
    assert "hunter2" not in str(refused.value)
    assert name in str(refused.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"endpont": "http://x"}, "expected endpoint"),
        ({"tries": 0}, "out of range at storage.tries"),
        ({"tries": 2.5}, "out of range at storage.tries"),
        ({"concurrency": True}, "out of range"),
        ({"anonymous": "yes"}, "not true or false"),
        ({"region": 3}, "not a text"),
        ({"encryption": "rot13"}, "unknown encryption"),
        ({"kms_key": "k"}, "needs encryption: aws:kms"),
        ({"encryption": "customer"}, "go together"),
        ({"anonymous": True, "profile": "lab"}, "no profile"),
        ({"request_seconds": float("nan")}, "out of range"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        options_from(values)


def test_the_job_file_knows_every_option_with_the_same_default() -> None:
    assert BucketSettings().options() == StoreOptions()
    assert set(BucketSettings.model_fields) == {field.name for field in fields(StoreOptions)}


def test_buckets_of_a_job_are_reached_each_in_its_way() -> None:
    job = JobConfig.load(
        {
            "input": "s3://raw/a.ome.zarr",
            "output": "s3://mine/run",
            "storage": {
                "region": "eu-central-1",
                "buckets": {"s3://raw": {"anonymous": True, "endpoint": "https://open.example"}},
            },
        }
    )
    job.reach_stores()
    assert store_options.options_of("s3://raw") == StoreOptions(
        anonymous=True, endpoint="https://open.example", region="eu-central-1"
    )
    assert store_options.options_of("s3://mine") == StoreOptions(region="eu-central-1")
    assert "storage" not in job.identity()
    # What a task takes along is all there is to it, and it holds nothing of the environment.
    brought = pickle.dumps(store_options.in_use())
    assert b"hunter2" not in brought
    store_options._used.clear()
    store_options.take(pickle.loads(brought))  # noqa: S301  # just made
    assert store_options.options_of("s3://mine").region == "eu-central-1"
    with pytest.raises(ConfigError, match="is no bucket"):
        JobConfig.load(
            {"input": "s3://b/a", "output": "s3://b/r", "storage": {"buckets": {"raw": {"region": "eu"}}}}
        )


def test_a_job_on_disks_leaves_other_jobs_options_alone() -> None:
    store_options.use(None, StoreOptions(region="eu"))
    JobConfig.load({"input": "a.zarr", "output": "run"}).reach_stores()
    assert store_options.options_of("s3://b").region == "eu"


LINK_LOCAL = ["http://169.254.169.254", "http://2852039166", "http://0xa9fea9fe", "http://[fe80::1]:80"]


@pytest.mark.parametrize("endpoint", [*LINK_LOCAL, "http://0.0.0.0:9000"])
@pytest.mark.parametrize("by_environment", [False, True])
def test_a_link_local_endpoint_is_refused(
    endpoint: str, by_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_environment:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    options = StoreOptions(endpoint=None if by_environment else endpoint, allow_http=True)
    with pytest.raises(BadRequest, match="link-local"):
        backends.open_store("s3://bucket", options)
    with pytest.raises(BadRequest, match="link-local"):
        backends.open_store(endpoint, StoreOptions(allow_http=True))


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_another_machine_is_asked_with_tls_or_on_demand(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setattr(backends.socket, "getaddrinfo", lambda *_: [(0, 0, 0, "", ("192.0.2.1", 0))])
    with pytest.raises(BadRequest, match="without TLS"):
        backends.open_store(
            f"{scheme}://bucket", StoreOptions(endpoint="http://store.example", anonymous=True)
        )
    for options in (
        StoreOptions(endpoint="http://store.example", allow_http=True, anonymous=True),
        StoreOptions(endpoint="https://store.example", anonymous=True),
        StoreOptions(endpoint="http://127.0.0.1:9", anonymous=True),
    ):
        backends.open_store(f"{scheme}://bucket", options)


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("store.example", "is no URL"),
        ("ftp://store.example", "is no URL"),
        ("https://me:hunter2@store.example", "carries a user"),
        ("https://store.example?sig=hunter2", "carries a user"),
    ],
)
def test_endpoints_that_are_none(endpoint: str, said: str) -> None:
    with pytest.raises(BadRequest, match=said) as caught:
        backends.open_store("s3://bucket", StoreOptions(endpoint=endpoint))
    assert "hunter2" not in str(caught.value)


def test_options_reach_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    store = backends.open_store(
        "s3://bucket",
        StoreOptions(
            endpoint="http://127.0.0.1:9",
            region="eu-north-1",
            requester_pays=True,
            encryption="aws:kms",
            kms_key="key/1",
        ),
    )
    config: dict[str, Any] = dict(store.config)  # type: ignore[arg-type]
    assert config["region"] == "eu-north-1"
    assert str(config["request_payer"]).lower() == "true"
    assert config["server_side_encryption"] == "aws:kms"
    assert "hunter2" not in repr(store)
    assert b"hunter2" not in pickle.dumps(store)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(PermissionDenied, match="NO_SUCH_KEY"):
        backends.open_store(
            "s3://bucket", StoreOptions(encryption="customer", customer_key_variable="NO_SUCH_KEY")
        )


def test_a_profile_that_is_not_there(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "credentials"
    file.write_text("[lab]\naws_access_key_id = name\naws_secret_access_key = hunter2\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    pytest.importorskip("boto3")
    with pytest.raises(PermissionDenied, match="no credentials of this profile at other") as caught:
        backends.open_store("s3://bucket", StoreOptions(profile="other"))
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(backends.open_store("s3://bucket", StoreOptions(profile="lab")))


def test_options_arrive_before_a_store_is_opened(tmp_path: Any) -> None:
    """A worker opens what it was sent while it unpickles it: with the job's endpoint, not its own."""
    from denoizarr.images.save import save_image
    from denoizarr.stores.images import open_image, reader_of

    save_image(np.zeros((2, 8, 8), np.uint8), tmp_path / "a.ome.zarr", levels=1)
    reader = reader_of(open_image(tmp_path / "a.ome.zarr"))
    store_options.use(None, StoreOptions(region="eu"))
    sent = pickle.dumps(reader)
    store_options.use(None, StoreOptions(region="us"))
    store_options.use("s3://old", StoreOptions(region="us"))
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        opened = sources.open_array

        def watched(*arguments: Any) -> Any:
            seen.append(store_options.in_use())
            return opened(*arguments)

        patch.setattr(sources, "open_array", watched)
        sources.open_source.cache_clear()
        pickle.loads(sent)  # noqa: S301  # just made
    assert seen == [(("", StoreOptions(region="eu")),)], "and nothing of an earlier job's is left"
