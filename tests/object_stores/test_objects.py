"""Objects in a bucket: replaced whole, claimed once, whatever happens to the answers on their way."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from denoizarr.engine.ledger import Ledger
from denoizarr.engine.retries import is_transient
from denoizarr.errors import (
    BadRequest,
    CredentialsExpired,
    ImageNotFound,
    LedgerMismatch,
    PermissionDenied,
    StoreUnavailable,
    UnsupportedStore,
)
from denoizarr.stores import attempts, locations, store_options
from denoizarr.stores.store_options import StoreOptions
from tests.servers.faults import Weather


def test_objects_come_and_go(root, bucket):
    url = locations.join(root, "a b", "ü=%")
    assert not locations.exists(url)
    assert not locations.exists(locations.parent_of(url))
    locations.put(url, b"one")
    locations.put(url, b"two!")
    assert locations.get(url) == b"two!"
    assert locations.get_range(url, 1, 2) == b"wo"
    assert locations.size(url) == 4
    assert locations.is_file(url)
    assert locations.exists(locations.parent_of(url))
    assert not locations.is_file(locations.parent_of(url))
    assert bucket.get(url.removeprefix(bucket.url + "/")) == b"two!"
    locations.put(locations.join(root, "a b", "c", "d"), b"12345")
    assert locations.list_names(locations.join(root, "a b")) == ["c", "ü=%"]
    assert locations.sizes_of(locations.join(root, "a b"), ["ü=%", "none", "c"]) == [4, 0, 0]
    assert locations.stored_bytes(root) == 9
    stamp = locations.listing_stamp(root)
    assert locations.last_write(locations.join(root, "a b"), apart_from="none") > 0
    assert locations.matching(f"{root}/a*/[c-e]/*") == [f"{root}/a b/c/d"]
    locations.delete_prefix(locations.join(root, "a b", "c"))
    locations.delete(locations.join(root, "never", "was"))
    assert locations.listing_stamp(root) != stamp
    assert bucket.keys() == ["a b/ü=%"]


def test_a_prefix_is_not_the_beginning_of_a_name(root, bucket):
    for key in ("run/x", "run2/x", "run"):
        bucket.put(key, b"1")
    assert locations.list_names(f"{root}/run") == ["x"]
    locations.delete_prefix(f"{root}/run")
    assert bucket.keys() == ["run2/x"]
    with pytest.raises(PermissionDenied, match="whole bucket"):
        locations.delete_prefix(root)


def test_only_one_of_many_creates_an_object(root):
    url = f"{root}/claim"
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: locations.create(url, b"%d" % n), range(16)))
    assert won.count(True) == 1
    assert locations.get(url) == b"%d" % won.index(True)


@pytest.mark.parametrize("fault", ["lost_response", "slow_down"])
def test_a_claim_whose_answer_was_lost_is_still_ones_own(root, fault_proxy, bucket, fault):
    fault_proxy.plan(fault, "PUT", "claim")
    assert locations.create(f"{root}/claim", b"mine")
    assert bucket.get("claim") == b"mine"
    # And it is not where somebody else was faster.
    bucket.put("other", b"theirs")
    fault_proxy.plan(fault, "PUT", "other")
    assert not locations.create(f"{root}/other", b"mine")
    assert bucket.get("other") == b"theirs"


def test_an_object_is_replaced_only_as_it_was(root, fault_proxy, bucket):
    url = f"{root}/state"
    locations.put(url, b"a")
    assert locations.replace(url, b"a", b"b")
    assert not locations.replace(url, b"a", b"c")
    assert locations.get(url) == b"b"
    fault_proxy.plan("lost_response", "PUT", "state")
    assert locations.replace(url, b"b", b"c")
    assert bucket.get("state") == b"c"


def test_another_drivers_change_is_not_overwritten(root, fault_proxy, bucket, monkeypatch):
    locations.put(f"{root}/state", b"c")
    # It comes while this one waits for its second try.
    fault_proxy.plan("lost_request", "PUT", "state")
    monkeypatch.setattr(attempts.time, "sleep", lambda _: bucket.put("state", b"theirs"))
    assert not locations.replace(f"{root}/state", b"c", b"d")
    assert bucket.get("state") == b"theirs"


@pytest.mark.parametrize(
    "fault", ["slow_down", "internal_error", "too_many", "reset", "cut", "lost_request", "lost_response"]
)
def test_passing_faults_pass_and_are_counted(root, fault_proxy, fault):
    url, data = f"{root}/object", bytes(range(256)) * 400
    fault_proxy.plan(fault, times=2)
    attempts.take_counts()
    locations.put(url, data)
    assert locations.get(url) == data
    assert locations.get_range(url, 100, 5000) == data[100:5100]
    assert locations.list_names(root) == ["object"]
    requests, retries = attempts.take_counts()
    assert (requests, retries) == (len(fault_proxy.log.requests), sum(fault_proxy.log.faults().values()))
    assert retries >= 1


def test_a_short_range_is_not_taken_for_the_whole(root, fault_proxy):
    locations.put(f"{root}/object", bytes(5000))
    fault_proxy.plan("short_range", "GET", "object")
    assert len(locations.get_range(f"{root}/object", 100, 2000)) == 2000
    assert fault_proxy.log.faults()["short_range"] == 1


def test_a_store_that_stays_away_is_given_up_by_name(root, fault_proxy):
    store_options.use(None, StoreOptions(tries=3, first_wait_seconds=0.001))
    fault_proxy.plan("slow_down", times=None)
    with pytest.raises(StoreUnavailable, match="got SlowDown"):
        locations.get(f"{root}/object")
    assert len(fault_proxy.log.requests) == 3


def test_a_store_that_never_answers_is_given_up_too(root, fault_proxy):
    store_options.use(None, StoreOptions(tries=2, first_wait_seconds=0.001, request_seconds=0.3))
    fault_proxy.plan("hang", times=None)
    with pytest.raises(StoreUnavailable, match="no answer"):
        locations.get(f"{root}/object")


@pytest.mark.parametrize("fault", ["access_denied", "wrong_signature", "unauthorized"])
def test_refused_access_is_not_asked_for_again(root, fault_proxy, fault):
    fault_proxy.plan(fault, times=None)
    for ask in (
        lambda: locations.get(f"{root}/object"),
        lambda: locations.put(f"{root}/object", b"1"),
        lambda: locations.create(f"{root}/object", b"1"),
        lambda: locations.list_names(root),
        lambda: locations.exists(f"{root}/object"),
        lambda: locations.delete(f"{root}/object"),
    ):
        fault_proxy.log.clear()
        with pytest.raises(PermissionDenied, match="check the credentials"):
            ask()
        assert len(fault_proxy.log.requests) <= 2


@pytest.mark.parametrize("fault", ["expired_token", "expired_forbidden"])
def test_expired_credentials_have_a_name(root, fault_proxy, fault):
    locations.put(f"{root}/object", b"1")
    fault_proxy.plan(fault, times=None)
    fault_proxy.log.clear()
    with pytest.raises(CredentialsExpired, match="renew them and run the same job again"):
        locations.get(f"{root}/object")
    assert len(fault_proxy.log.requests) == 1


def test_no_such_bucket_is_not_an_empty_one(root):
    other = root + "-that-is-not"
    for ask in (
        lambda: locations.get(f"{other}/object"),
        lambda: locations.put(f"{other}/object", b"1"),
        lambda: locations.list_names(other),
        lambda: locations.exists(f"{other}/object"),
        lambda: locations.delete(f"{other}/object"),
        lambda: locations.open_group(f"{other}/image"),
    ):
        with pytest.raises(ImageNotFound, match="no such bucket"):
            ask()


def test_no_credentials_are_said_to_be_missing(root, bucket, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    store_options.use(None, StoreOptions(tries=2, first_wait_seconds=0.001))
    with pytest.raises(PermissionDenied, match="no credentials"):
        locations.get(f"{root}/object")
    # And none are needed where everybody may.
    store_options.use(None, StoreOptions(anonymous=True))
    bucket.put("object", b"1")
    with pytest.raises(PermissionDenied, match="refuses access"):
        locations.get(f"{root}/object")
    if bucket.server.name == "moto":  # the other one knows no public objects
        bucket.client.put_object_acl(Bucket=bucket.name, Key="object", ACL="public-read")
        assert locations.get(f"{root}/object") == b"1"


def test_a_listing_that_lies_loses_nothing(root, fault_proxy, bucket):
    """What is there is asked for by its name: a listing without it changes nothing."""
    fault_proxy.weather = Weather({"list_drops": 1.0})
    locations.put(f"{root}/image/zarr.json", b"{}")
    assert locations.exists(f"{root}/image")
    ledger = Ledger.claim(f"{root}/image.ledger", {"job": 1})
    ledger.begin_step("level-0", 3, 1)
    for batch in (0, 2):
        ledger.put("level-0", batch, {"batch": batch, "blocks": [batch, batch + 1], "results": []})
    assert list(ledger.done("level-0", 3)) == [1, 0, 1]
    assert bucket.keys("image.ledger/level-0")


def test_a_store_that_ignores_conditions_is_refused(root, monkeypatch):
    """Such a store would give one output to two drivers."""
    import obstore

    real = obstore.put

    def careless(store, key, data, **settings):
        settings.pop("mode", None)
        return real(store, key, data, **settings)

    Ledger.claim(f"{root}/careful.ledger", {"job": 1})
    monkeypatch.setattr(obstore, "put", careless)
    with pytest.raises(UnsupportedStore, match="conditional puts"):
        Ledger.claim(f"{root}/careless.ledger", {"job": 1})


def test_a_web_server_is_not_written(root, bucket, fault_proxy):
    url = f"{fault_proxy.endpoint}/{bucket.name}/object"
    for ask in (
        lambda: locations.put(url, b"1"),
        lambda: locations.create(url, b"1"),
        lambda: locations.delete(url),
        lambda: locations.delete_prefix(url),
        lambda: locations.zarr_store(url, create=True),
    ):
        with pytest.raises(UnsupportedStore, match="read only"):
            ask()
    assert not fault_proxy.log.requests


def test_a_url_with_a_password_reaches_nobody(root, fault_proxy):
    with pytest.raises(BadRequest, match="carries a user"):
        locations.get(f"s3://someone:hunter2@{root[5:]}/object")
    assert not fault_proxy.log.requests


@pytest.mark.parametrize("name", ["run 488 Alexa", "status/403", "latest/api/token"])
def test_a_name_is_no_status(root, fault_proxy, name):
    """Whether a failure may pass is told by what the server said, never by what the object is called."""
    store_options.use(None, StoreOptions(tries=2, first_wait_seconds=0.001))
    fault_proxy.plan("lost_request", "GET", times=2)
    with pytest.raises(StoreUnavailable, match="no answer") as caught:
        locations.get(f"{root}/{name}/object")
    assert is_transient(pickle.loads(pickle.dumps(caught.value)))  # noqa: S301  # as from a worker
    assert caught.value.__context__ is None, "what the server said does not come along"
    store_options.use(None, StoreOptions(encryption="AES256"))
    assert not is_transient(pickle.loads(pickle.dumps(PermissionDenied("x"))))  # noqa: S301


def test_mistakes_are_not_tried_again(root):
    attempts.take_counts()
    with pytest.raises(TypeError):
        locations.put(f"{root}/object", 3)  # type: ignore[arg-type]
    assert attempts.take_counts()[1] == 0


def test_a_record_that_a_listing_left_out_vouches_for_nothing(root):
    """Over an output that was deleted, the same job begins anew, whatever was overlooked."""
    ledger = Ledger.claim(f"{root}/ledger", {"job": 1})
    ledger.begin_step("level-0", 1, 1)
    ledger.put("level-0", 0, {"batch": 0, "blocks": [0, 1], "results": []})
    locations.delete(f"{root}/ledger/job.json")
    begun = Ledger.claim(f"{root}/ledger", {"job": 1}, anew=True)
    with pytest.raises(LedgerMismatch):
        begun.get("level-0", 0)
    # And goes on as itself.
    assert Ledger.claim(f"{root}/ledger", {"job": 1}) == begun
