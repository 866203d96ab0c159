"""A network over an image in a bucket: the same bytes as on a disk, whatever happens on the way."""

from __future__ import annotations

import pytest

from denoizarr.errors import CredentialsExpired, ImageNotFound, PermissionDenied
from denoizarr.images.save import save_image
from denoizarr.inference import predict as inference
from denoizarr.stores import locations, store_options
from denoizarr.stores.images import open_image
from denoizarr.stores.store_options import StoreOptions
from tests.end_to_end.predictions import CHUNKS, OPTIONS, Case
from tests.servers.faults import Weather

FAULTS = (
    *("slow_down", "internal_error", "too_many", "reset", "cut", "short_range"),
    *("lost_request", "lost_response"),
)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(tmp_path_factory.mktemp("case"))


class InBucket:
    """The case's model and image in a bucket, and what a disk holds of its prediction."""

    def __init__(self, case, root, bucket):
        self.root, self.bucket = root, bucket
        self.model, self.source, self.output = (
            f"{root}/{name}" for name in ("model.safetensors", "in.zarr", "out.zarr")
        )
        locations.put(self.model, locations.get(case.model))
        save_image(open_image(case.source), self.source, levels=1, chunks=CHUNKS)
        files = [path for path in case.undisturbed.rglob("*") if path.is_file()]
        self.expected = {path.relative_to(case.undisturbed).as_posix(): path.read_bytes() for path in files}

    def predict(self, **settings):
        return inference.predict(
            self.model, self.source, self.output, progress=False, **{**OPTIONS, **settings}
        )

    def written(self):
        found = self.bucket.contents("out.zarr/")
        return {key.removeprefix("out.zarr/"): data for key, data in found.items()}

    def clear(self):
        self.bucket.delete_all("out.zarr")


@pytest.fixture
def there(case, root, bucket):
    return InBucket(case, root, bucket)


def _stormy(there, proxy, seed):
    """Predict while a fifth of the requests fails; returns what the summary and the proxy count."""
    there.clear()
    proxy.restart(seed, Weather.mixed(0.2, *FAULTS))
    summary = there.predict()
    proxy.calm()
    return summary, sum(proxy.log.faults().values())


def _check_seeds(there, proxy, seeds):
    faults = retries = 0
    for seed in seeds:
        summary, injected = _stormy(there, proxy, seed)
        assert there.written() == there.expected, f"seed {seed}"
        assert summary.missing_chunks == 0
        assert summary.blocks_done == summary.blocks_total
        assert summary.retries <= injected
        faults, retries = faults + injected, retries + summary.retries
    assert retries > faults / 3, "the tries of the blocks are counted, those of the driver not"


def test_the_same_bytes_through_faults(there, fault_proxy):
    _check_seeds(there, fault_proxy, range(3))


@pytest.mark.slow
def test_the_same_bytes_through_a_hundred_storms(there, fault_proxy):
    _check_seeds(there, fault_proxy, range(100))


def test_calm_weather_takes_no_second_try(there, fault_proxy):
    summary = there.predict()
    assert there.written() == there.expected
    assert summary.retries == 0
    assert 0 < summary.requests <= len(fault_proxy.log.requests)


@pytest.mark.parametrize("fault", ["expired_token", "access_denied"])
@pytest.mark.parametrize("after", [5, 40, 120])
def test_what_is_done_outlives_the_credentials(there, fault_proxy, fault, after):
    error = CredentialsExpired if fault == "expired_token" else PermissionDenied
    fault_proxy.plan(fault, after=after, times=None)
    with pytest.raises(error) as caught:
        there.predict()
    assert "s3://" in str(caught.value)
    fault_proxy.calm()
    summary = there.predict()
    assert there.written() == there.expected
    assert summary.blocks_done + summary.blocks_skipped == summary.blocks_total


def test_no_such_bucket_is_found_before_any_work(there, fault_proxy):
    there.output = there.root + "-none/out.zarr"
    fault_proxy.log.clear()
    with pytest.raises(ImageNotFound, match="no such bucket"):
        there.predict()
    assert fault_proxy.log.count("GET", "in.zarr/0/c/*") == 0


def test_a_refused_destination_is_found_before_any_work(there, fault_proxy):
    fault_proxy.plan("access_denied", "PUT", times=None)
    fault_proxy.log.clear()
    with pytest.raises(PermissionDenied):
        there.predict()
    assert fault_proxy.log.count("GET", "in.zarr/0/c/*") == 0
    assert fault_proxy.log.count("PUT") <= 2


def test_encryption_is_asked_for_with_every_put(there, fault_proxy):
    store_options.use(None, StoreOptions(encryption="AES256", first_wait_seconds=0.005))
    there.predict()
    head = there.bucket.client.head_object(Bucket=there.bucket.name, Key="out.zarr/zarr.json")
    assert head["ServerSideEncryption"] == "AES256"
    assert there.written() == there.expected


def test_a_plan_counts_what_a_bucket_has_in_flight(there, case, fault_proxy):
    """From a bucket more chunks are held at a time than from a disk, and the plan says so."""
    from denoizarr.inference.prediction import plan_prediction
    from denoizarr.training.denoiser import Denoiser

    denoiser, kept = Denoiser.load(case.model), {"chunks": CHUNKS, "shards": OPTIONS["shards"], "levels": 1}
    disk, bucket = (
        plan_prediction(denoiser, open_image(url), f"{there.root}/none.zarr", **kept).bytes_per_worker
        for url in (case.source, there.source)
    )
    assert bucket > disk
