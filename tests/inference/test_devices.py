"""Workers that declare a GPU do the blocks, one batch at a time each; which device is asked of a worker."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from block_tasks import count_beside
from distributed import Client, LocalCluster

from denoizarr.engine.crews import Workers
from denoizarr.engine.runner import Step, run_step
from denoizarr.errors import ClusterLost
from denoizarr.geometry.grids import Grid
from denoizarr.images.save import save_image
from denoizarr.inference.devices import GPU, Place, batch_voxels, place_of
from denoizarr.inference.predict import predict
from denoizarr.kernels.unet import NetworkShape, build_network
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.normalisation import Normalisation


@pytest.fixture(scope="module")
def declaring() -> Iterator[Any]:
    """A client of one worker of two threads that says that it has a GPU."""
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            resources={GPU: 1},
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.parametrize(("resources", "most"), [({GPU: 1}, 1), (None, 2)])
def test_a_gpu_does_one_batch_at_a_time(
    declaring: Any, tmp_path: Path, resources: dict[str, float] | None, most: int
) -> None:
    step = Step("s", count_beside, str(tmp_path), 12, 1, resources=resources)
    records = run_step(step, client=declaring, progress=False)
    assert max(result["most"] for record in records for result in record["results"]) == most


def test_only_as_many_batches_are_handed_out_as_gpus_can_have(declaring: Any) -> None:
    assert Workers(declaring, "s").room() == 4
    assert Workers(declaring, "s", {GPU: 1}).room() == 2


def test_workers_without_one_do_no_blocks(client: Any) -> None:
    assert Workers(client, "s", {GPU: 1}).places() == {}
    assert Workers(client, "s", {GPU: 1})._slots() == {}


def test_where_blocks_are_computed_is_asked_of_who_does_them(
    declaring: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place_of(declaring) == Place("cpu", {GPU: 1})
    assert place_of(client) == Place("cpu", None)
    # This process may have what the workers do not.
    monkeypatch.setattr("denoizarr.inference.devices.torch.cuda.is_available", lambda: True)
    assert place_of(None) == Place("cuda", None)
    assert place_of(client) == Place("cpu", None)


def test_a_prediction_by_declared_gpus_has_the_same_bytes(declaring: Any, tmp_path: Path) -> None:
    shape = NetworkShape(features=4, depth=1, norm="none")
    model = Denoiser(shape, build_network(shape, seed=0).state_dict(), Normalisation((100.0,), (20.0,)))
    image = np.random.default_rng(0).normal(100, 20, (2, 96, 96)).astype("uint16")
    save_image(image, tmp_path / "in.ome.zarr", levels=1)
    how = {"shards": (1, 48, 48), "chunks": (1, 48, 48), "progress": False}
    for name, who in (("here", None), ("there", declaring)):
        predict(model, tmp_path / "in.ome.zarr", tmp_path / name, client=who, **how)
    files = [p.relative_to(tmp_path / "here") for p in (tmp_path / "here").rglob("*") if p.is_file()]
    assert len(files) > 8
    assert all((tmp_path / "here" / f).read_bytes() == (tmp_path / "there" / f).read_bytes() for f in files)


def test_a_scheduler_that_is_gone_is_a_lost_cluster() -> None:
    class Gone:
        def scheduler_info(self, **_: Any) -> None:
            raise OSError("closed")

    with pytest.raises(ClusterLost, match="does not answer"):
        place_of(Gone())


def test_batches_are_longer_where_blocks_are_many_and_on_a_gpu() -> None:
    few, many = Grid((100, 2048, 2048), (1, 2048, 2048)), Grid((125_000, 2048, 2048), (1, 2048, 2048))
    block, least = 2048**2, 2 * 2**20
    assert batch_voxels("cpu", few, least) == least
    assert batch_voxels("cpu", many, least) == 4 * block
    assert batch_voxels("cuda", few, least) == 1 * block
    assert batch_voxels("cuda", many, least) == 128 * block


class OneGone:
    """A cluster of which so many workers are gone by the time that they are asked."""

    def __init__(self, gone: int) -> None:
        self.gone, self.waited = gone, 0

    def scheduler_info(self, **_: Any) -> dict[str, Any]:
        return {"workers": {f"w{self.waited}": {"resources": {GPU: 1}}}}

    def run(self, _: Any, *, workers: list[str], on_error: str) -> dict[str, Any]:
        assert on_error == "return"
        return {workers[0]: OSError("closed") if self.waited < self.gone else True}

    def wait_for_workers(self, *_: Any, **__: Any) -> None:
        self.waited += 1


def test_a_worker_that_has_left_is_not_the_cluster() -> None:
    assert place_of(OneGone(3)) == Place("cuda", {GPU: 1})
    with pytest.raises(ClusterLost, match="does not answer: got nothing from w3"):
        place_of(OneGone(4))
