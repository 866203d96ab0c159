"""The proxy alters nothing until it is told, does every fault to a client, and counts right."""

from __future__ import annotations

import asyncio
import http.client
import io
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import obstore
import pytest
from obstore.exceptions import (
    AlreadyExistsError,
    GenericError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import GCSStore

from .azure import AzureServer
from .canary import TOKEN
from .fault_proxy import FaultProxy
from .faults import FAULTS, Weather
from .s3 import Bucket, S3Server

NO_RETRIES = {"max_retries": 0, "retry_timeout": timedelta(seconds=10)}
PATIENT = {
    "max_retries": 12,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {
        "init_backoff": timedelta(milliseconds=1),
        "max_backoff": timedelta(milliseconds=4),
        "base": 2,
    },
}
BYTES = os.urandom(300_000)
Call = Callable[[Any], Any]


def whole(store: Any) -> bytes:
    return bytes(obstore.get(store, "a/x").bytes())


def part(store: Any) -> bytes:
    return bytes(obstore.get_range(store, "a/x", start=1000, length=200_000))


def listed(store: Any) -> list[str]:
    return sorted(entry["path"] for entry in obstore.list(store, "a").collect())


def written(store: Any) -> Any:
    return obstore.put(store, "b/y", BYTES)["e_tag"]


def created(store: Any) -> Any:
    return obstore.put(store, "b/z", BYTES, mode="create")["e_tag"]


@pytest.fixture
def filled(bucket: Bucket) -> Bucket:
    for name in ("x", "x1", "x2", "x3"):
        bucket.put(f"a/{name}", BYTES)
    return bucket


def test_without_faults_nothing_is_altered(filled: Bucket, fault_proxy: FaultProxy) -> None:
    straight, through = filled.store(), filled.store(fault_proxy.endpoint)
    calls: list[Call] = [
        whole,
        part,
        listed,
        lambda store: bytes(obstore.get(store, "a/x", options={"range": {"suffix": 77}}).bytes()),
        lambda store: bytes(obstore.get(store, "a/x", options={"range": {"offset": 299_000}}).bytes()),
        lambda store: [bytes(b) for b in obstore.get_ranges(store, "a/x", starts=[0, 9], lengths=[5, 5])],
        lambda store: obstore.head(store, "a/x"),
        lambda store: obstore.list_with_delimiter(store)["common_prefixes"],
    ]
    for call in calls:
        assert call(through) == call(straight)
    assert whole(through) == BYTES
    assert not fault_proxy.log.faults()


def test_what_is_written_through_it_is_what_lies_there(bucket: Bucket, fault_proxy: FaultProxy) -> None:
    store = bucket.store(fault_proxy.endpoint)
    large = os.urandom(6 * 2**20)
    obstore.put(store, "a b/ü+%41", BYTES)
    obstore.put(store, "empty", b"")
    obstore.put(store, "large", large)
    obstore.put(store, "new", b"1", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "new", b"2", mode="create")
    assert bucket.contents() == {"a b/ü+%41": BYTES, "empty": b"", "large": large, "new": b"1"}
    assert bucket.uploads() == []
    assert [bytes(obstore.get(store, key).bytes()) for key in ("empty", "large")] == [b"", large]
    obstore.delete(store, ["a b/ü+%41", "new", "empty"])
    assert bucket.keys() == ["large"]
    # A put of several parts is four requests here: begin, two parts, end.
    assert [fault_proxy.log.count(method, "large") for method in ("POST", "PUT")] == [2, 2]


def test_boto3_works_through_it(bucket: Bucket, fault_proxy: FaultProxy) -> None:
    client = bucket.server.client(endpoint=fault_proxy.endpoint)
    client.put_object(Bucket=bucket.name, Key="k", Body=BYTES)  # Expect: 100-continue
    client.upload_fileobj(io.BytesIO(BYTES), bucket.name, "stream")
    assert client.get_object(Bucket=bucket.name, Key="k")["Body"].read() == BYTES
    assert bucket.contents() == {"k": BYTES, "stream": BYTES}


def test_a_body_in_chunks_and_a_connection_kept_alive(filled: Bucket, fault_proxy: FaultProxy) -> None:
    # Signed by its query, so that plain HTTP can ask.
    client = filled.server.client(endpoint=fault_proxy.endpoint)
    name = {"Bucket": filled.name, "Key": "chunked"}
    put, get = (client.generate_presigned_url(verb, Params=name) for verb in ("put_object", "get_object"))
    connection = http.client.HTTPConnection(urlsplit(fault_proxy.endpoint).netloc, timeout=30)
    pieces = iter([BYTES[:70_000], BYTES[70_000:]])
    connection.request("PUT", put.removeprefix(fault_proxy.endpoint), pieces, encode_chunked=True)
    connection.getresponse().read()
    kept = connection.sock
    connection.request("GET", get.removeprefix(fault_proxy.endpoint))
    assert connection.getresponse().read() == BYTES
    assert connection.sock is kept
    connection.close()
    assert fault_proxy.log.by_method() == {"PUT": 1, "GET": 1}


ANSWERED = [
    ("slow_down", GenericError, "503 Service Unavailable.*SlowDown"),
    ("internal_error", GenericError, "500 Internal Server Error.*InternalError"),
    ("too_many", GenericError, "429 Too Many Requests"),
    ("access_denied", PermissionDeniedError, "403 Forbidden.*AccessDenied"),
    ("expired_token", GenericError, "400 Bad Request.*ExpiredToken"),
    ("expired_forbidden", PermissionDeniedError, "403 Forbidden.*ExpiredToken"),
    ("wrong_signature", PermissionDeniedError, "SignatureDoesNotMatch"),
    ("unauthorized", UnauthenticatedError, "401 Unauthorized"),
]
INJURED: list[tuple[str, Call, str]] = [
    ("reset", whole, "body error"),
    ("reset", part, "body error"),
    ("cut", whole, "body error"),
    ("cut", part, "body error"),
    ("short_range", part, "Requested 1000..201000, got 1000..101000"),
    ("reset", listed, "body error"),
    ("lost_request", written, "error sending request"),
    ("lost_request", whole, "error sending request"),
    ("lost_response", written, "error sending request"),
    ("lost_response", created, "error sending request"),
    ("hang", whole, "error sending request"),
    ("hang", created, "error sending request"),
]


@pytest.mark.parametrize("call", [whole, part, written, created])
@pytest.mark.parametrize(("fault", "error", "says"), ANSWERED)
def test_an_answer_in_the_stores_place_is_seen_by_a_client_without_retries(
    filled: Bucket, fault_proxy: FaultProxy, fault: str, error: type[Exception], says: str, call: Call
) -> None:
    store = filled.store(fault_proxy.endpoint, retry_config=NO_RETRIES)
    before = filled.contents()
    fault_proxy.plan(fault)
    with pytest.raises(error, match=f"(?s){says}"):
        call(store)
    assert filled.contents() == before
    assert [(r.fault, r.status is None) for r in fault_proxy.log.requests] == [(fault, False)]
    call(store)


@pytest.mark.parametrize(("fault", "call", "says"), INJURED, ids=lambda v: getattr(v, "__name__", str(v)))
def test_an_injury_is_seen_by_a_client_without_retries(
    filled: Bucket, fault_proxy: FaultProxy, fault: str, call: Call, says: str
) -> None:
    options = {"timeout": "500ms"} if fault == "hang" else {}
    store = filled.store(fault_proxy.endpoint, retry_config=NO_RETRIES, client_options=options)
    fault_proxy.plan(fault)
    with pytest.raises(GenericError, match=f"(?s){says}"):
        call(store)
    assert [r.fault for r in fault_proxy.log.requests] == [fault]
    fault_proxy.calm()
    filled.delete("b/z")
    call(filled.store(fault_proxy.endpoint, retry_config=NO_RETRIES))


def test_every_fault_has_a_test() -> None:
    told = {fault for fault, *_ in (*ANSWERED, *INJURED)}
    assert set(FAULTS) - told == {"list_drops", "list_stale"}  # below


@pytest.mark.parametrize(("fault", "is_there"), [("lost_response", True), ("lost_request", False)])
def test_a_lost_response_and_a_lost_request_look_alike_and_are_not(
    bucket: Bucket, fault_proxy: FaultProxy, fault: str, is_there: bool
) -> None:
    fault_proxy.plan(fault, "PUT")
    with pytest.raises(GenericError, match="error sending request"):
        created(bucket.store(fault_proxy.endpoint))
    assert bucket.keys() == (["b/z"] if is_there else [])
    assert fault_proxy.log.count(status=200) == 0


def test_listings_lie_when_told(filled: Bucket, fault_proxy: FaultProxy) -> None:
    store = filled.store(fault_proxy.endpoint)
    true = listed(store)
    fault_proxy.plan("list_drops")
    dropped = listed(store)
    assert set(dropped) < set(true)
    filled.put("a/new", b"")
    filled.delete("a/x")
    fault_proxy.plan("list_stale")
    assert listed(store) == true
    assert listed(store) == sorted({*true, "a/new"} - {"a/x"})
    fault_proxy.restart(0)
    fault_proxy.plan("list_drops")
    filled.put("a/x", BYTES)
    filled.delete("a/new")
    assert listed(store) == dropped


def test_a_client_that_tries_again_gets_the_right_bytes_and_the_faults_are_counted(
    filled: Bucket, fault_proxy: FaultProxy
) -> None:
    store = filled.store(fault_proxy.endpoint, retry_config=PATIENT)
    fault_proxy.restart(1, Weather.mixed(0.5, "slow_down", "internal_error", "reset", "cut", "lost_request"))
    for _ in range(20):
        assert whole(store) == BYTES
    log = fault_proxy.log
    assert log.count(fault="any") == sum(log.faults().values()) > 10
    # A body that was broken off is asked for again from where it broke.
    assert log.count("GET", status=206) >= log.faults()["reset"] > 0
    assert log.count(status=503) == log.faults()["slow_down"] > 0


@pytest.mark.parametrize("threads", [2, 7])
def test_faults_are_those_of_the_seed_whatever_the_threads(
    filled: Bucket, fault_proxy: FaultProxy, threads: int
) -> None:
    store = filled.store(fault_proxy.endpoint, retry_config=PATIENT)
    weather = Weather.mixed(0.5, "slow_down", "reset", "lost_request", jitter_seconds=0.003)

    def faults_of(seed: int, at_once: int) -> list[tuple[str, str]]:
        fault_proxy.restart(seed, weather)
        starts = range(0, 40_000, 1000)
        with ThreadPoolExecutor(at_once) as pool:
            found = pool.map(lambda n: bytes(obstore.get_range(store, "a/x", start=n, length=1000)), starts)
            assert b"".join(found) == BYTES[:40_000]
        asked = [r for r in fault_proxy.log.requests if r.range is not None]
        return sorted((r.asked.identity, str(r.fault)) for r in asked)

    one = faults_of(1, 1)
    assert faults_of(1, threads) == one
    assert faults_of(2, threads) != one


def test_where_a_reset_comes_does_not_depend_on_how_fast_a_client_reads(
    bucket: Bucket, fault_proxy: FaultProxy
) -> None:
    large = os.urandom(5_000_000)
    bucket.put("a/x", large)
    fault_proxy.plan("reset", times=3)
    assert whole(bucket.store(fault_proxy.endpoint, retry_config=PATIENT)) == large
    halves = [None, "bytes=2500000-4999999", "bytes=3750000-4999999", "bytes=4375000-4999999"]
    assert [r.range for r in fault_proxy.log.requests] == halves


def test_requests_are_counted_by_what_they_ask(filled: Bucket, fault_proxy: FaultProxy) -> None:
    store, log = filled.store(fault_proxy.endpoint), fault_proxy.log
    whole(store)
    part(store)
    obstore.put(store, "c/0/0", b"12345")
    listed(store)
    assert log.by_method() == {"GET": 3, "PUT": 1}
    assert (log.count(), log.count("GET", "a/*"), log.count(key="c/*"), log.count(fault="any")) == (
        4,
        2,
        1,
        0,
    )
    assert log.count("GET", query="*list-type=2*") == 1
    [put] = log.matching("PUT")
    assert (put.key, put.bytes_in, put.bytes_out, put.status, put.asked.bucket) == (
        "c/0/0",
        5,
        0,
        200,
        filled.name,
    )
    assert [(r.range, r.bytes_out, r.status) for r in log.matching("GET", "a/x")] == [
        (None, 300_000, 200),
        ("bytes=1000-200999", 200_000, 206),
    ]
    assert put.headers["authorization"] == "AWS4-HMAC-SHA256"
    log.clear()
    assert log.requests == ()
    whole(store)
    assert (log.count(), log.peak_in_flight, log.in_flight) == (1, 1, 0)


def test_requests_in_flight_wait_side_by_side(filled: Bucket, fault_proxy: FaultProxy) -> None:
    fault_proxy.weather = Weather(latency_seconds=0.4)
    store, n = filled.store(fault_proxy.endpoint), 16

    async def all_at_once() -> list[Any]:
        calls = (obstore.get_range_async(store, "a/x", start=k, length=10) for k in range(n))
        return await asyncio.gather(*calls)

    started = time.perf_counter()
    found = asyncio.run(all_at_once())
    took = time.perf_counter() - started
    assert [bytes(piece) for piece in found] == [BYTES[k : k + 10] for k in range(n)]
    assert 0.4 < took < n * 0.4 / 2
    assert fault_proxy.log.peak_in_flight == n
    # One after the other, for comparison.
    fault_proxy.restart(0, Weather(latency_seconds=0.1))
    started = time.perf_counter()
    for _ in range(4):
        part(store)
    assert time.perf_counter() - started > 0.4
    assert fault_proxy.log.peak_in_flight == 1


def test_a_narrow_link_is_shared(filled: Bucket, fault_proxy: FaultProxy) -> None:
    fault_proxy.weather = Weather(bandwidth_bytes_per_second=2e6)
    store = filled.store(fault_proxy.endpoint)
    started = time.perf_counter()
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(whole, [store] * 3)) == [BYTES] * 3
    assert time.perf_counter() - started > 3 * len(BYTES) / 2e6 * 0.9


def test_a_change_of_weather_takes_hold_at_once(filled: Bucket, fault_proxy: FaultProxy) -> None:
    store = filled.store(fault_proxy.endpoint, retry_config=NO_RETRIES)
    fault_proxy.plan("expired_token", after=2, times=None)
    assert [whole(store), whole(store)] == [BYTES] * 2
    for _ in range(3):
        with pytest.raises(GenericError, match="ExpiredToken"):
            whole(store)
    fault_proxy.calm()
    assert whole(store) == BYTES
    fault_proxy.weather = Weather({"access_denied": 1.0})
    with pytest.raises(PermissionDeniedError):
        whole(store)


def test_it_stops_whatever_hangs_in_it(filled: Bucket) -> None:
    before = threading.active_count()
    with FaultProxy(filled.server.endpoint) as proxy:
        proxy.plan("hang")
        with pytest.raises(GenericError):
            whole(filled.store(proxy.endpoint, retry_config=NO_RETRIES, client_options={"timeout": "300ms"}))
        proxy.plan("hang")
        proxy.weather = Weather(latency_seconds=600.0)
        connections = [http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc) for _ in range(3)]
        for connection in connections:
            connection.request("GET", f"/{filled.name}/a/x")
        deadline = time.monotonic() + 10
        while proxy.log.in_flight < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    for connection in connections:
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            connection.getresponse()
        connection.close()
    assert threading.active_count() == before
    with pytest.raises(OSError, match="refused"):
        http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc).connect()


def test_a_store_that_is_gone_is_a_bad_gateway() -> None:
    with FaultProxy("http://127.0.0.1:1") as proxy:
        connection = http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc)
        connection.request("PUT", "/bucket/key", b"123")
        assert connection.getresponse().status == 502
        connection.close()


def test_a_mistake_of_its_own_is_not_taken_for_the_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = FaultProxy("http://127.0.0.1:1").start()
    monkeypatch.setattr(proxy, "draw", {}.__getitem__)
    connection = http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc)
    connection.request("GET", "/bucket/key")
    with pytest.raises(ConnectionError):
        connection.getresponse()
    connection.close()
    with pytest.raises(KeyError, match="Asked"):
        proxy.stop()


def test_signatures_and_policies_hold_through_it(guarded_s3: S3Server) -> None:
    bucket = guarded_s3.make_bucket()
    bucket.put("in/x", BYTES)
    resource = f"arn:aws:s3:::{bucket.name}/in/*"
    policy = [{"Effect": "Allow", "Action": "s3:GetObject", "Resource": resource}]
    user = guarded_s3.with_policy({"Version": "2012-10-17", "Statement": policy})
    with FaultProxy(guarded_s3.endpoint) as proxy:
        store = Bucket(user, bucket.name).store(proxy.endpoint)
        assert bytes(obstore.get(store, "in/x").bytes()) == BYTES
        assert len(obstore.get_range(store, "in/x", start=5, length=70)) == 70
        with pytest.raises(PermissionDeniedError, match="AccessDenied"):
            obstore.put(store, "in/y", b"")
        wrong = Bucket(user, bucket.name).store(proxy.endpoint, secret_access_key="wrong")  # noqa: S106
        with pytest.raises(PermissionDeniedError, match="SignatureDoesNotMatch"):
            obstore.get(wrong, "in/x")
        assert proxy.log.count(status=403) == 2
    assert bucket.keys() == ["in/x"]


def test_googles_dialect_is_understood(
    moto: S3Server, loopback_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a token its client would ask the metadata service for one.
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", TOKEN)
    bucket = moto.make_bucket()
    with FaultProxy(moto.endpoint, speaks_gcs=True) as proxy:
        store = GCSStore(bucket.name, base_url=proxy.endpoint, client_options={"allow_http": True})
        obstore.put(store, "a/x", BYTES, mode="create")
        with pytest.raises(AlreadyExistsError):
            obstore.put(store, "a/x", b"2", mode="create")
        assert (whole(store), part(store), listed(store)) == (BYTES, BYTES[1000:201_000], ["a/x"])
        obstore.put(store, "large", os.urandom(6 * 2**20))
        assert bucket.sizes() == {"a/x": 300_000, "large": 6 * 2**20}
        obstore.delete(store, ["large"])
        proxy.plan("list_drops")
        assert listed(store) == []


@pytest.mark.slow
def test_azures_store_works_through_it(azurite: AzureServer) -> None:
    container = azurite.make_container()
    with FaultProxy(azurite.endpoint, bucket_parts=2) as proxy:
        store = azurite.store(container, proxy.endpoint)
        obstore.put(store, "a/x", BYTES, mode="create")
        with pytest.raises(AlreadyExistsError):
            obstore.put(store, "a/x", b"2", mode="create")
        assert (whole(store), part(store), listed(store)) == (BYTES, BYTES[1000:201_000], ["a/x"])
        obstore.put(store, "large", os.urandom(6 * 2**20))
        assert obstore.head(store, "large")["size"] == 6 * 2**20
        obstore.delete(store, "large")
        assert proxy.log.count("GET", "a/x") == 2
        proxy.plan("list_drops")
        assert listed(store) == []
        with pytest.raises(PermissionDeniedError):
            whole(azurite.store(container, proxy.endpoint, account_key="d3Jvbmc="))
