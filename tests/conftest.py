"""Fixtures that several packages' tests share: kinds of stores as data, real images, a local cluster."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from hypothesis import settings

from tests.servers.canary import LOOPBACK_ONLY
from tests.servers.fixtures import (  # noqa: F401  # fixtures: found by their names here
    azurite,
    bucket,
    fault_proxy,
    guarded_s3,
    loopback_only,
    ministack,
    moto,
    s3_environment,
    s3_server,
)

# No test asks a metadata service for credentials, nor reads those of whoever runs it.
os.environ.update(LOOPBACK_ONLY)

# How long an example takes is no property: the first one compiles, and neighbours compute.
settings.register_profile("untimed", settings(settings.default, deadline=None))
settings.load_profile("untimed")

# Several processes of tests, each with a thread for every core, would wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Worker processes inherit sys.path: the tasks that tests run on them must be importable there.
sys.path.append(str(Path(__file__).parent / "engine"))

for _name in ("distributed", "tifffile", "PIL"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class StoreKind:
    """How a store is laid out: what readers must not notice."""

    name: str
    zarr_format: Literal[2, 3]
    ome_version: str | None
    sharded: bool


STORE_KINDS = (
    StoreKind("ome-0.4", 2, "0.4", sharded=False),
    StoreKind("ome-0.5", 3, "0.5", sharded=False),
    StoreKind("ome-0.5-sharded", 3, "0.5", sharded=True),
    StoreKind("plain-v2", 2, None, sharded=False),
    StoreKind("plain-v3", 3, None, sharded=False),
)
_TYPE = {"t": "time", "c": "channel"}


def _write_store(
    path: Path,
    values: np.ndarray[Any, Any],
    dims: str,
    kind: StoreKind,
    *,
    chunks: Sequence[int],
    scale: Sequence[float] | None = None,
    translation: Sequence[float] | None = None,
    unit: str | None = "micrometer",
    level: str = "s0",
) -> str:
    """Write an image with zarr alone, as a foreign writer would: nothing of this package is used."""
    shards = tuple(2 * c for c in chunks) if kind.sharded else None
    common: dict[str, Any] = {
        "shape": values.shape,
        "dtype": values.dtype,
        "chunks": tuple(chunks),
        "shards": shards,
    }
    if kind.ome_version is None:
        array = zarr.create_array(str(path), zarr_format=kind.zarr_format, **common)
        array[:] = values
        return str(path)
    group = zarr.open_group(str(path), mode="w", zarr_format=kind.zarr_format)
    if kind.zarr_format == 2:
        common["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    group.create_array(level, **common)[:] = values
    transforms: list[dict[str, Any]] = [{"type": "scale", "scale": list(scale or [1.0] * len(dims))}]
    if translation is not None:
        transforms.append({"type": "translation", "translation": list(translation)})
    axes: list[Any] = [
        {"name": d, "type": _TYPE.get(d, "space")} | ({"unit": unit} if unit and d in "zyx" else {})
        for d in dims
    ]
    multiscale: dict[str, Any] = {
        "axes": axes,
        "datasets": [{"path": level, "coordinateTransformations": transforms}],
        "name": "n",
    }
    if kind.ome_version == "0.5":
        group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
    else:
        group.attrs["multiscales"] = [multiscale | {"version": "0.4"}]
    return str(path)


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """A level that a test, or a program that it runs in this process, sets for our logs ends with it."""
    ours = logging.getLogger("denoizarr")
    before = ours.level
    yield
    ours.setLevel(before)


@pytest.fixture(scope="session")
def write_store() -> Callable[..., str]:
    """``write_store(path, values, dims, kind, chunks=, ...) -> url``."""
    return _write_store


@pytest.fixture(params=STORE_KINDS, ids=lambda kind: kind.name)
def store_kind(request: pytest.FixtureRequest) -> StoreKind:
    """Every kind of store in turn."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def store_kinds() -> dict[str, StoreKind]:
    """Kinds of stores by name."""
    return {kind.name: kind for kind in STORE_KINDS}


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real noisy images, where there is one."""
    found = os.environ.get("DENOIZARR_DATA")
    if not found:
        pytest.skip("real images are not here: set DENOIZARR_DATA to their folder")
    return Path(found)


@pytest.fixture(scope="session")
def client() -> Iterator[Any]:
    """A client of two worker processes on this machine, started by the first test that asks."""
    from denoizarr.engine.cluster import ClusterSettings, open_client

    with open_client(ClusterSettings(workers=2, memory_limit_bytes=2**30)) as found:
        yield found
