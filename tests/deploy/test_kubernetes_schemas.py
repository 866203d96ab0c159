"""The manifests beside the schemas of Kubernetes and of the Dask operator; broken copies must fail."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from denoizarr.errors import ConfigError
from denoizarr.pipeline.config import ClusterJobSettings, JobConfig

from .manifests import JOBS, KUBERNETES, changed, documents, objects, only, pods_of

pytest.importorskip("kubernetes_validate", reason="has Kubernetes' schemas: pip install '.[test]'")
pytest.importorskip("dask_kubernetes", reason="has the operator's schemas: pip install '.[kubernetes]'")

from .operator_pods import made_by_operator
from .schemas import kubernetes_problems, problems_of

ALL = [
    pytest.param(one, id=f"{path.parent.name}-{one['metadata']['name']}-{one['kind']}")
    for path, one in objects()
]


@pytest.mark.parametrize("thing", ALL)
def test_a_strict_api_server_takes_it(thing: dict) -> None:
    assert problems_of(thing) == []


@pytest.mark.parametrize("thing", [one for one in ALL if pods_of(one.values[0])])
def test_kubernetes_takes_the_pods_inside(thing: dict) -> None:
    for name, spec in pods_of(thing).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        assert kubernetes_problems(pod) == []


@pytest.mark.parametrize("job", JOBS)
def test_kubernetes_takes_what_the_operator_makes_of_it(job: str) -> None:
    groups = [one for _, one in objects(KUBERNETES / job) if one["kind"] == "DaskWorkerGroup"]
    made = made_by_operator(only("DaskJob", f"denoizarr-{job}"), tuple(groups))
    assert {one["kind"] for one in made.values()} == {"Deployment", "Service", "Pod"}
    assert len(made) == 4 + len(groups)
    for one in made.values():
        assert kubernetes_problems(one) == []


WORKER = "spec/cluster/spec/worker/spec/containers/0"


@pytest.mark.parametrize(
    ("kind", "name", "way", "value", "says"),
    [
        # misspelt
        ("DaskJob", "denoizarr-cpu", f"{WORKER}/securityContxt", {}, "securityContxt"),
        ("DaskJob", "denoizarr-gpu", "spec/job/spec/nodeSelectr", {}, "nodeSelectr"),
        ("DaskJob", "denoizarr-cpu", "spec/clustr", {}, "clustr"),
        ("DaskWorkerGroup", "denoizarr-gpu-scorers", "spec/worker/replica", 2, "replica"),
        ("NetworkPolicy", "denoizarr-nothing-else", "spec/policyType", ["Egress"], "policyType"),
        ("ServiceAccount", "denoizarr", "automountServiceAccountTokn", False, "automountServiceAccountTokn"),
        # of another type
        ("DaskJob", "denoizarr-cpu", "spec/cluster/spec/worker/replicas", "four", "four"),
        ("DaskJob", "denoizarr-cpu", f"{WORKER}/args", "dask worker", "dask worker"),
        ("DaskJob", "denoizarr-cpu", f"{WORKER}/securityContext/runAsNonRoot", "yes", "yes"),
        ("NetworkPolicy", "denoizarr-names", "spec/egress/0/ports/0/endPort", "53", "53"),
        ("ConfigMap", "denoizarr-cpu-job", "data/job.yaml", {"input": 1}, "input"),
        ("PodDisruptionBudget", "denoizarr-cpu-driver", "spec/selector", "all", "all"),
        # missing
        ("DaskJob", "denoizarr-cpu", "spec/cluster/spec/scheduler/service", ..., "'service' is a required"),
        ("DaskJob", "denoizarr-gpu", "spec/job", ..., "'job' is a required"),
        ("DaskJob", "denoizarr-cpu", f"{WORKER}/name", ..., "'name' is a required"),
        ("DaskWorkerGroup", "denoizarr-gpu-scorers", "spec/cluster", ..., "'cluster' is a required"),
        (
            "NetworkPolicy",
            "denoizarr-object-store",
            "spec/egress/0/to/0/ipBlock/cidr",
            ...,
            "'cidr' is a required",
        ),
        # of an API that is not there
        ("DaskJob", "denoizarr-cpu", "apiVersion", "kubernetes.dask.org/v2", "v1"),
    ],
)
def test_a_broken_copy_is_refused(kind: str, name: str, way: str, value: object, says: str) -> None:
    found = problems_of(changed(only(kind, name), way, value))
    assert found
    assert any(says in one for one in found)


def test_an_open_schema_would_not_see_a_misspelt_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why the operator's definition is closed before it is used."""
    from . import schemas

    broken = changed(only("DaskJob", "denoizarr-cpu"), f"{WORKER}/securityContxt", {})
    assert schemas.operator_problems(broken)
    schemas.operator_schema.cache_clear()
    monkeypatch.setattr(schemas, "closed", lambda schema: schema)
    assert schemas.operator_problems(broken) == []
    schemas.operator_schema.cache_clear()


def test_a_key_that_is_there_twice_is_refused() -> None:
    with pytest.raises(Exception, match="replicas twice"):
        documents("spec: {replicas: 2, name: a, replicas: 3}")


@pytest.mark.parametrize("job", JOBS)
def test_the_job_file_is_one(job: str) -> None:
    if "tls" not in ClusterJobSettings.model_fields:
        pytest.skip("this version's cluster section has no key tls yet")
    text = only("ConfigMap", f"denoizarr-{job}-job")["data"]["job.yaml"]
    (read,) = documents(text)
    assert JobConfig.load(read).cluster.kind == "address"
    with pytest.raises(ConfigError, match="adress"):
        JobConfig.load(changed(read, "cluster/adress", "tls://there:8786"))


@pytest.mark.parametrize("job", JOBS)
def test_the_job_file_and_the_manifest_say_the_same(job: str) -> None:
    name = f"denoizarr-{job}"
    (read,) = documents(only("ConfigMap", f"{name}-job")["data"]["job.yaml"])
    made = made_by_operator(only("DaskJob", name))
    service = made["service"]
    assert (
        read["cluster"]["address"]
        == f"tls://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    )
    driver = made["driver"]["spec"]["containers"][0]
    folders = [one["mountPath"] for one in driver["volumeMounts"] if one["name"] == "certificates"]
    assert {str(Path(path).parent) for path in read["cluster"]["tls"].values()} == set(folders)
    assert driver["args"][-1] == "/job/job.yaml"
    worker = made["worker"]["spec"]["template"]["spec"]["containers"][0]
    assert f"--memory-limit={read['cluster']['memory_limit']}" in worker["args"]


def kustomized(folder: Path) -> list[dict]:
    """What ``kubectl apply -k`` would send."""
    program = next((one for one in ("kustomize", "kubectl") if shutil.which(one)), None)
    if program is None:
        pytest.skip("neither kustomize nor kubectl is installed")
    words = [program, "build", str(folder)] if program == "kustomize" else [program, "kustomize", str(folder)]
    # It needs no cluster, and must not look for one.
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "KUBECONFIG": os.devnull}
    )
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


@pytest.mark.parametrize("job", JOBS)
def test_kustomize_makes_one_job_of_it(job: str, tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "k")
    settings = tmp_path / "k" / job / "kustomization.yaml"
    text = settings.read_text()
    settings.write_text(
        text.replace("newName: registry.example.org", "newName: elsewhere.example.org").replace(
            f"newTag: 0.1.0.dev0-{job}", f"newTag: 9.9-{job}"
        )
    )
    made = kustomized(tmp_path / "k" / job)
    assert [problem for one in made for problem in problems_of(one)] == []
    (daskjob,) = [one for one in made if one["kind"] == "DaskJob"]
    images = {
        container["image"]
        for pod in pods_of(daskjob).values()
        for container in [*pod.get("initContainers", ()), *pod["containers"]]
    }
    # One place says where the image is, for the operator's resources too.
    assert images == {f"elsewhere.example.org/denoizarr:9.9-{job}"}
    assert {one["metadata"]["namespace"] for one in made if one["kind"] != "Namespace"} == {"denoizarr"}


def test_every_manifest_is_in_a_kustomization_or_says_why_not() -> None:
    for folder in (KUBERNETES / "common", *(KUBERNETES / job for job in JOBS)):
        (listed,) = documents((folder / "kustomization.yaml").read_text())
        named = {Path(one).name for one in listed["resources"]} - {"common"}
        there = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert there - named == ({"cpu-workers.yaml"} if folder.name == "gpu" else set())
        assert named <= there
