"""Google's and Azure's stores: the same images, claims and records as in S3."""

from __future__ import annotations

import numpy as np
import pytest

import denoizarr
from denoizarr.engine.ledger import Ledger
from denoizarr.errors import ImageNotFound
from denoizarr.inference import predict as inference
from denoizarr.stores import locations
from tests.end_to_end.predictions import OPTIONS, Case
from tests.servers.canary import TOKEN
from tests.servers.fault_proxy import FaultProxy
from tests.servers.faults import Weather

_FAULTS = ("slow_down", "reset", "lost_request", "lost_response")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(tmp_path_factory.mktemp("case"))


def _work(case, root, proxy):
    """Predict through faults, into what a second driver finds taken; look at all of it again."""
    source, output = f"{root}/a b/in.ome.zarr", f"{root}/out.ome.zarr"
    proxy.weather = Weather.mixed(0.1, *_FAULTS)
    denoizarr.save_image(denoizarr.open_image(case.source), source, levels=1)
    inference.predict(case.model, source, output, progress=False, **OPTIONS)
    proxy.calm()
    for level in range(3):
        here = denoizarr.open_image(case.undisturbed, level=level).values
        np.testing.assert_array_equal(denoizarr.open_image(output, level=level).values, here)
    assert denoizarr.verify(output).ok
    assert locations.create(f"{root}/claim", b"1")
    assert not locations.create(f"{root}/claim", b"2")
    assert locations.replace(f"{root}/claim", b"1", b"3")
    assert not locations.replace(f"{root}/claim", b"1", b"4")
    Ledger.claim(f"{root}/ledger", {"job": 1})
    assert locations.list_names(root) == ["a b", "claim", "ledger", "out.ome.zarr", "out.ome.zarr.ledger"]
    locations.delete_prefix(f"{root}/a b")
    assert not locations.exists(source)
    with pytest.raises(ImageNotFound, match="no such bucket"):
        locations.list_names(f"{root}none")


def test_google(case, moto, loopback_only, monkeypatch):
    """Through Google's dialect of S3's language, which is what its client speaks to a bucket."""
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", TOKEN)
    bucket = moto.make_bucket()
    with FaultProxy(moto.endpoint, speaks_gcs=True) as proxy:
        monkeypatch.setenv("GOOGLE_BASE_URL", proxy.endpoint)
        _work(case, f"gs://{bucket.name}", proxy)


@pytest.mark.slow
def test_azure(case, azurite, loopback_only, monkeypatch):
    container = azurite.make_container()
    with FaultProxy(azurite.endpoint, bucket_parts=2) as proxy:
        for name, value in azurite.environment(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        _work(case, f"az://{container}", proxy)
