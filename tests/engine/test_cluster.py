"""What a local cluster is made of, where there are fewer batches than cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from denoizarr.engine.cluster import ClusterSettings, open_client
from denoizarr.engine.cluster_settings import KubernetesSettings
from denoizarr.engine.runner import Step, run_step
from denoizarr.errors import BadRequest
from denoizarr.inference.tile_threads import cores_of_process
from tests.dask_processes import wait_until

from .block_tasks import wait_for_others


def arena_limit() -> str | None:
    """Return what malloc was told when the worker began."""
    return os.environ.get("MALLOC_ARENA_MAX")


def test_workers_that_are_not_there_leave_their_threads_and_memory_to_those_that_are() -> None:
    settings = ClusterSettings(workers=7, memory_limit_bytes=2**28)
    with open_client(settings, at_most=2) as client:
        workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
        assert [w["nthreads"] for w in workers.values()] == [3, 3]
        assert [w["memory_limit"] for w in workers.values()] == [3 * 2**28] * 2
        assert client.submit(cores_of_process, pure=False).result() == 3, "a block alone has all of them"
        assert client.submit(arena_limit, pure=False).result() == "1", "or a worker keeps no freed memory"


def test_a_cluster_of_no_workers_is_refused() -> None:
    with pytest.raises(BadRequest, match="a cluster needs a worker"), open_client(ClusterSettings(workers=0)):
        pass


def what_it_sees() -> str | None:
    """Return the GPUs that a worker was given."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_each_gpu_has_a_worker_that_sees_it_alone_and_declares_it() -> None:
    settings = ClusterSettings(workers=6, memory_limit_bytes=2**28)
    with open_client(settings, gpus=("4", "GPU-5f")) as client:
        workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
        assert [w["resources"] for w in workers.values()] == [{"GPU": 1}] * 2
        assert [w["nthreads"] for w in workers.values()] == [3, 3]
        assert sorted(client.run(what_it_sees).values()) == ["4", "GPU-5f"]
    with open_client(settings, at_most=1, gpus=("4", "GPU-5f")) as client:
        assert sorted(client.run(what_it_sees).values()) == ["4"]


def test_without_gpus_workers_declare_none_and_see_what_this_process_sees() -> None:
    with open_client(ClusterSettings(workers=1, memory_limit_bytes=2**28)) as client:
        workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
        assert [w["resources"] for w in workers.values()] == [{}]
        assert list(client.run(what_it_sees).values()) == [what_it_sees()]


def test_workers_come_with_work_and_leave_after_it() -> None:
    settings = ClusterSettings(minimum=1, maximum=3, memory_limit_bytes=2**30)
    with open_client(settings) as client:
        assert len(client.nthreads()) == 1
        records = run_step(Step("s", wait_for_others, 3, 3, 1), client=client, progress=False)
        assert {r["results"][0]["workers"] for r in records} == {3}, "as many as there was work for"
        wait_until(lambda: len(client.nthreads()) == 1, "they leave")


@pytest.mark.parametrize(
    ("settings", "package", "extra"),
    [
        (ClusterSettings("slurm", 1), "dask_jobqueue", "slurm"),
        (
            ClusterSettings("kubernetes", 1, insecure=True, kubernetes=KubernetesSettings("image")),
            "dask_kubernetes.operator",
            "kubernetes",
        ),
    ],
)
def test_an_extra_that_is_not_installed_is_named(
    settings: ClusterSettings,
    package: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadRequest, match=rf"pip install 'denoizarr\[{extra}\]'"), open_client(settings):
        pass


def test_without_sbatch_there_is_no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(BadRequest, match="this machine has no sbatch"),
        open_client(ClusterSettings("slurm", 1)),
    ):
        pass


def test_a_certificate_of_one_run_needs_cryptography(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from denoizarr.engine.cluster_security import temporary_files

    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(BadRequest, match="without the package cryptography"), temporary_files(str(tmp_path)):
        pass


def test_pods_have_what_was_asked_for() -> None:
    pytest.importorskip("dask_kubernetes")
    from denoizarr.engine.kubernetes_cluster import cluster_object

    wanted = KubernetesSettings("registry/denoizarr:1", cores=4, gpus=1)
    settings = ClusterSettings("kubernetes", 3, 2**30, insecure=True, kubernetes=wanted)
    spec = cluster_object(settings, "name", at_most=2)["spec"]
    assert spec["worker"]["replicas"] == 2
    (worker,) = spec["worker"]["spec"]["containers"]
    (scheduler,) = spec["scheduler"]["spec"]["containers"]
    assert worker["image"] == scheduler["image"] == "registry/denoizarr:1"
    command = " ".join(worker["args"])
    assert "--nthreads 4 --memory-limit 4294967296B --resources GPU=1" in command
    assert worker["resources"]["limits"] == {"cpu": "4", "memory": "4608Mi", "nvidia.com/gpu": "1"}
    assert "nvidia.com/gpu" not in scheduler["resources"]["limits"]
    told = {variable["name"]: variable["value"] for variable in worker["env"]}
    assert told["DASK_DISTRIBUTED__WORKER__MEMORY__SPILL"] == "False"


def test_the_operator_would_take_the_object() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    operator = pytest.importorskip("dask_kubernetes.operator")
    from denoizarr.engine.kubernetes_cluster import cluster_object

    definitions = Path(operator.__file__).parent / "deployment/helm/dask-kubernetes-operator/crds"
    definition = yaml.safe_load((definitions / "daskcluster.yaml").read_text())
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    wanted = KubernetesSettings("registry/denoizarr:1", cores=4, gpus=1)
    made = cluster_object(ClusterSettings("kubernetes", 3, insecure=True, kubernetes=wanted), "name")
    jsonschema.validate(made, schema)
    del made["spec"]["worker"]["spec"]["containers"][0]["name"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(made, schema)


def test_without_kubernetes_there_is_an_error_with_a_name(tmp_path: Path) -> None:
    pytest.importorskip("dask_kubernetes")
    program = (
        "from denoizarr.engine.cluster import ClusterSettings, open_client\n"
        "from denoizarr.engine.cluster_settings import KubernetesSettings\n"
        "pods = KubernetesSettings('image')\n"
        "with open_client(ClusterSettings('kubernetes', 1, insecure=True, kubernetes=pods)): pass\n"
    )
    nowhere = {"KUBECONFIG": str(tmp_path / "absent"), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **nowhere},
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    assert "ClusterLost: Kubernetes gives no cluster" in done.stderr


def test_workers_that_cannot_start_are_told_of_at_once(tmp_path: Path) -> None:
    """As where a script that starts a cluster has no ``if __name__ == "__main__":``."""
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from denoizarr.engine.cluster import ClusterSettings, open_client\n"
        "with open_client(ClusterSettings(workers=1)) as client: print('unreachable')\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "unreachable" not in done.stdout
