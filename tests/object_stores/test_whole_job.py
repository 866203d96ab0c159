"""A whole job with everything in a bucket: the voxels of a disk, and nowhere the secret that it was given."""

from __future__ import annotations

import json
import logging
import traceback
from pathlib import Path

import numpy as np
import pytest
import yaml

import denoizarr
from denoizarr.engine.cluster import ClusterSettings, open_client
from denoizarr.errors import DenoizarrError
from denoizarr.images.save import save_image
from denoizarr.inference import predict as inference
from denoizarr.inference import prediction
from denoizarr.pipeline.run import run_pipeline
from tests.end_to_end.jobs import run_cli, scan_noise, write_job
from tests.end_to_end.predictions import OPTIONS, Case
from tests.servers.canary import SECRET, secrets_in

_SHAPE = (4, 512, 512)
_LAYOUT = {"shards": [1, 256, 256], "chunks": [1, 128, 128], "levels": 3}
_SHORT = {"features": 4, "num_epochs": 1, "patches_per_epoch": 32, "patch_size": 32}


def test_the_same_voxels_as_on_a_disk(root, bucket, tmp_path, caplog, monkeypatch):
    image = scan_noise(_SHAPE)
    settings = {"stage1": {**_SHORT, "use_centre": False}, "stage2": _SHORT, "cluster": {"workers": 2}}
    local = write_job(tmp_path, image, output={"url": "run", **_LAYOUT}, **settings)
    on_disk = run_pipeline(local, progress=False)
    save_image(image, f"{root}/data/in.ome.zarr", levels=1)
    job = {
        "input": {"url": "../data/in.ome.zarr"},
        "output": {"url": "run", **_LAYOUT},
        **settings,
        "storage": {"request_seconds": 60, "buckets": {root: {"region": "us-east-1", "tries": 6}}},
    }
    bucket.put("jobs/job.yaml", yaml.safe_dump(job).encode())
    for module in (inference, prediction):
        monkeypatch.setattr(module, "PREDICTION_BATCH_VOXELS", 2 * 256 * 256)
    with caplog.at_level(logging.INFO):
        summary = run_pipeline(f"{root}/jobs/job.yaml", progress=False).to_json()
    assert "2 local workers" in caplog.text
    assert summary["destination"] == f"{root}/jobs/run/denoised.ome.zarr"
    assert summary["requests"] > 0
    for level in range(3):
        here = denoizarr.open_image(on_disk.destination, level=level).values
        np.testing.assert_array_equal(denoizarr.open_image(summary["destination"], level=level).values, here)
    assert denoizarr.verify(summary["destination"]).ok
    # Again, by a process that has all that it needs from its environment: nothing is left to do. And nothing
    # in the bucket, in a log or in the page knows the secret.
    again = run_cli("run", f"{root}/jobs/job.yaml", "--json")
    assert json.loads(again.stdout.splitlines()[-1])["blocks_done"] == 0
    contents = bucket.contents()
    assert any(key.endswith("report.html") for key in contents)
    assert [key for key, data in contents.items() if secrets_in(data)] == []
    for text in (caplog.text, again.stdout, again.stderr):
        assert secrets_in(text) == []
    assert secrets_in(f"the control {SECRET}") == [SECRET]


@pytest.mark.slow
def test_the_demo_in_a_bucket(root, bucket, tmp_path):
    """The README's demo, twice: on a disk, and with input, run folder and output in a bucket."""
    here, there = run_cli("demo", "--out", str(tmp_path / "demo")), run_cli("demo", "--out", f"{root}/demo")
    assert here.returncode == there.returncode == 0, there.stderr
    name = "run/denoised.ome.zarr"
    local = denoizarr.open_image(tmp_path / "demo" / name).values
    np.testing.assert_array_equal(denoizarr.open_image(f"{root}/demo/{name}").values, local)
    scores = json.loads((tmp_path / "demo" / "scores.json").read_text())["scores"]
    assert json.loads(bucket.get("demo/scores.json"))["scores"] == scores


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(tmp_path_factory.mktemp("case"))


def test_nothing_on_a_cluster_knows_the_secret(
    case, root, bucket, s3_environment, tmp_path, caplog, monkeypatch
):
    """Neither the tasks that are sent, nor what scheduler and workers write of themselves, nor an error."""
    source, output, second = (f"{root}/{name}.zarr" for name in ("in", "out", "second"))
    save_image(denoizarr.open_image(case.source), source, levels=1)
    sent = []
    for name in ("botocore", "boto3", "urllib3"):  # the bucket's administrator, who is no part of this
        monkeypatch.setattr(logging.getLogger(name), "level", logging.WARNING)
    with caplog.at_level(logging.DEBUG), open_client(ClusterSettings(workers=2)) as client:
        submit = client.submit

        def watched(*arguments, **settings):
            from distributed.protocol import serialize

            sent.append(b"".join(bytes(frame) for frame in serialize(arguments)[1]))
            return submit(*arguments, **settings)

        client.submit = watched
        inference.predict(case.model, source, output, client=client, progress=False, **OPTIONS)
        client.dump_cluster_state(str(tmp_path / "dump"))
        bucket.delete(next(key for key in bucket.keys("in.zarr/0/c")))
        with pytest.raises(DenoizarrError) as caught:
            inference.predict(case.model, source, second, client=client, progress=False, **OPTIONS)
    assert sent
    dump = next(Path(tmp_path).glob("dump*")).read_bytes()
    told = [*sent, dump, caplog.text, "".join(traceback.format_exception(caught.value)), repr(caught.value)]
    assert [secrets_in(text) for text in told if secrets_in(text)] == []
    assert [key for key, data in bucket.contents().items() if secrets_in(data)] == []
    # The control: the workers do have it, or they could not have read a voxel.
    assert secrets_in(json.dumps(s3_environment))
