"""What a job asks of a bucket, counted at the bucket, is at most what its plan states."""

from __future__ import annotations

from collections import Counter

import pytest

import denoizarr
from denoizarr.images.save import save_image
from denoizarr.pipeline.plan import plan
from denoizarr.pipeline.run import run_pipeline
from tests.end_to_end.jobs import scan_noise

STAGE = {"features": 4, "num_epochs": 1, "patches_per_epoch": 16, "patch_size": 32, "validation_patches": 4}
# Of S3's own price list: a look at an object costs what a get does, a listing what a put does.
KINDS = {"GET": "gets", "HEAD": "heads", "PUT": "puts", "DELETE": "deletes"}


def kind_of(request) -> str:
    """Return what a request is to a plan: a listing is a get of the bucket itself."""
    return "lists" if request.asked.is_listing else KINDS.get(request.method, request.method)


@pytest.mark.parametrize(
    ("shape", "layout", "looseness"),
    [
        ((1, 256, 256), {"chunks": (1, 128, 128), "shards": (1, 128, 128)}, 4),
        ((1, 256, 256), {"chunks": (1, 64, 64), "shards": (1, 256, 256)}, 6),
    ],
    ids=["chunks", "shards"],
)
def test_a_job_asks_for_no_more_than_its_plan_states(root, fault_proxy, shape, layout, looseness):
    source = f"{root}/in.ome.zarr"
    save_image(scan_noise(shape), source, levels=1, **layout)
    job = {
        "input": {"url": source},
        "output": {"url": f"{root}/run", **layout},
        "stage1": STAGE,
        "stage2": STAGE,
        "cluster": {"workers": 1},
    }
    stated = plan(job).requests
    fault_proxy.log.clear()
    summary = run_pipeline(job, progress=False)
    found = Counter(kind_of(request) for request in fault_proxy.log.requests)
    assert set(found) <= {*KINDS.values(), "lists"}
    for kind, count in found.items():
        assert count <= getattr(stated, kind), f"{kind}: {dict(found)}, stated {stated}"
    # Parts of a shard that are asked for together are counted one by one.
    assert stated.total <= looseness * found.total(), f"{dict(found)}, stated {stated}"
    # Of every chunk of the output: put once, and read back once.
    level0 = "run/denoised.ome.zarr/0/c/*"
    units = denoizarr.open_image(summary.destination).size // (layout["shards"][1] * layout["shards"][2])
    assert fault_proxy.log.count("PUT", level0) == units
