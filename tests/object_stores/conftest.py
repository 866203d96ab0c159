"""What the tests of buckets share: quick tries, and options that end with the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from denoizarr.stores import backends, store_options
from denoizarr.stores.store_options import StoreOptions


@pytest.fixture(autouse=True)
def quick_tries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Requests are tried again at once; what a test sets ends with it, and so do its connections."""
    monkeypatch.setattr(store_options, "_used", {})
    store_options.use(None, StoreOptions(first_wait_seconds=0.005, request_seconds=20.0))
    backends.open_store.cache_clear()
    yield
    backends.open_store.cache_clear()


@pytest.fixture
def root(bucket, s3_environment) -> str:
    """A fresh bucket's URL, asked through the proxy."""
    return bucket.url
