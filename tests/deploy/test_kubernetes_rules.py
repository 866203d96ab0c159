"""Rules of our own for the manifests: no root, no secrets, limits, versions, TLS, who talks to whom."""

from __future__ import annotations

import re
import tomllib

import pytest

from .manifests import JOBS, KUBERNETES, ROOT, changed, environment_of, objects, only, pods_of

pytest.importorskip("dask_kubernetes", reason="the operator's own functions: pip install '.[kubernetes]'")

from .network_rules import Pod, may_talk
from .operator_pods import NAMESPACE, made_by_operator, pod_of
from .pod_rules import (
    ROLES,
    container_problems,
    containers,
    memory_problems,
    pod_problems,
    service_problems,
    text_problems,
    tls_problems,
)

PODS = [
    pytest.param(role, pod, id=f"{one['metadata']['name']}-{role}")
    for _, one in objects()
    for role, pod in pods_of(one).items()
]
CPU = pods_of(only("DaskJob", "denoizarr-cpu"))


def certificates_of(container: dict) -> set[str]:
    return {one["mountPath"] for one in container["volumeMounts"] if one["name"] == "certificates"}


@pytest.mark.parametrize(("role", "pod"), PODS)
def test_the_pod_is_safe(role: str, pod: dict) -> None:
    assert list(pod_problems(pod)) == []
    for container in containers(pod):
        assert list(tls_problems(role, container, certificates_of(container))) == []
    if role == "worker":
        assert list(memory_problems(pod["containers"][0])) == []


@pytest.mark.parametrize(
    ("way", "value", "says"),
    [
        ("securityContext/runAsNonRoot", False, "root"),
        ("securityContext/runAsUser", 0, "root"),
        ("securityContext/runAsUser", ..., "root"),
        ("securityContext/seccompProfile", ..., "seccomp"),
        ("automountServiceAccountToken", True, "token"),
        ("hostNetwork", True, "hostNetwork"),
        ("volumes/0", {"name": "host", "hostPath": {"path": "/"}}, "volume host"),
        ("volumes/1/emptyDir", {}, "without a limit"),
        ("containers/0/securityContext/runAsUser", 0, "root"),
        ("containers/0/securityContext/allowPrivilegeEscalation", ..., "privileges"),
        ("containers/0/securityContext/privileged", True, "privileges"),
        ("containers/0/securityContext/readOnlyRootFilesystem", False, "written"),
        ("containers/0/securityContext/capabilities/add", ["NET_ADMIN"], "capabilities"),
        ("containers/0/securityContext/capabilities", {"drop": ["NET_RAW"]}, "capabilities"),
        ("containers/0/resources/requests/memory", "1Gi", "resources"),
        ("containers/0/resources", ..., "resources"),
        ("containers/0/image", "registry.example.org/denoizarr", "image"),
        ("containers/0/image", "registry.example.org/denoizarr:latest", "image"),
        ("containers/0/image", "registry.example.org:5000/denoizarr", "image"),
        ("containers/0/ports/0/hostPort", 8790, "port of the host"),
        ("containers/0/env/0", {"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"}, "a secret"),
        ("containers/0/env/0", {"name": "HARMLESS", "value": "AKIA" + "A" * 16}, "a secret"),
        (
            "containers/0/env/0",
            {"name": "ENDPOINT", "value": "https://me:mine@store.example.org"},
            "a secret",
        ),
    ],
)
def test_an_unsafe_pod_is_found(way: str, value: object, says: str) -> None:
    assert any(says in one for one in pod_problems(changed(CPU["worker"], way, value)))


@pytest.mark.parametrize(
    ("way", "value", "says"),
    [
        ("env/0/value", "tcp://denoizarr-cpu-scheduler:8786", "address"),
        ("env/1/value", "false", "plain connections"),
        ("env/1", {"name": "X", "value": "true"}, "plain connections"),
        ("env/2/value", "/tmp/ca.pem", "CA_FILE"),  # noqa: S108 - not where a Secret is mounted
        ("env/4/name", "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY", "WORKER__KEY"),
        ("args/3", "--protocol=tcp", "--protocol"),
    ],
)
def test_a_worker_without_tls_is_found(way: str, value: object, says: str) -> None:
    worker = CPU["worker"]["containers"][0]
    assert worker["args"][3] == "--protocol=tls"
    found = list(tls_problems("worker", changed(worker, way, value), certificates_of(worker)))
    assert any(says in one for one in found)


def test_a_worker_that_may_fill_its_container_is_found() -> None:
    worker = CPU["worker"]["containers"][0]
    assert list(memory_problems(changed(worker, "resources/limits/memory", "3Gi")))


def test_no_object_is_a_secret_and_no_text_holds_one() -> None:
    for path, one in objects():
        assert one["kind"] != "Secret"
        assert list(text_problems(path.read_text())) == []
    for text in (
        "s3://key:word@bucket/x",
        "AKIA" + "Z" * 16,
        "-----BEGIN PRIVATE KEY-----",
        "AccountKey=abc",
    ):
        assert list(text_problems(text))


@pytest.mark.parametrize("job", JOBS)
def test_images_are_of_this_version(job: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for _, one in objects(KUBERNETES / job):
        for pod in pods_of(one).values():
            assert {container["image"].rpartition(":")[2] for container in containers(pod)} == {
                f"{version}-{job}"
            }


@pytest.mark.parametrize("job", JOBS)
def test_the_schedulers_port_is_for_the_cluster_alone(job: str) -> None:
    service = made_by_operator(only("DaskJob", f"denoizarr-{job}"))["service"]["spec"]
    assert list(service_problems(service)) == []
    for way, value in (("type", "LoadBalancer"), ("type", "NodePort"), ("externalIPs", ["192.0.2.1"])):
        assert list(service_problems(changed(service, way, value))) == ["exposed"]
    dashboard = {"name": "http-dashboard", "port": 8787}
    assert list(service_problems({**service, "ports": [*service["ports"], dashboard]})) == ["ports"]


@pytest.mark.parametrize("job", JOBS)
def test_the_operator_leaves_the_address_with_tls(job: str) -> None:
    """It sets tcp:// where there is none, and a scheduler with TLS hangs up on that."""
    daskjob = only("DaskJob", f"denoizarr-{job}")
    made = made_by_operator(daskjob)
    for role in ("driver", "worker"):
        _, pod = pod_of(made[role])
        addresses = [
            one["value"] for one in pod["containers"][0]["env"] if one["name"] == "DASK_SCHEDULER_ADDRESS"
        ]
        assert addresses == [f"tls://{made['service']['metadata']['name']}:8786"]
    bare = changed(daskjob, "spec/cluster/spec/worker/spec/containers/0/env", [])
    _, pod = pod_of(made_by_operator(bare)["worker"])
    assert environment_of(pod["containers"][0])["DASK_SCHEDULER_ADDRESS"].startswith("tcp://")


@pytest.mark.parametrize("job", JOBS)
def test_gpus_are_asked_for_where_there_are_any(job: str) -> None:
    for role, pod in pods_of(only("DaskJob", f"denoizarr-{job}")).items():
        limits = pod["containers"][0]["resources"]["limits"]
        has = job == "gpu" and role != "scheduler"
        assert ("nvidia.com/gpu" in limits) == has
        assert ("nodeSelector" in pod) == ("tolerations" in pod) == has
        if role == "worker":
            # Without the word any worker would run the network: denoizarr.inference.devices.
            assert ("--resources=GPU=1" in pod["containers"][0]["args"]) == has
    for _, one in objects(KUBERNETES / job):
        if one["kind"] == "DaskWorkerGroup":
            assert "--resources=GPU=1" not in one["spec"]["worker"]["spec"]["containers"][0]["args"]
            assert one["spec"]["cluster"] == f"denoizarr-{job}"


@pytest.mark.parametrize("job", JOBS)
def test_the_driver_waits_for_the_workers_of_the_job(job: str) -> None:
    daskjob = only("DaskJob", f"denoizarr-{job}")
    (wait,) = pods_of(daskjob)["driver"]["initContainers"]
    assert wait["args"][2] == str(daskjob["spec"]["cluster"]["spec"]["worker"]["replicas"])
    assert ("--resource=GPU" in wait["args"]) == (job == "gpu")


def everyone(job: str) -> dict[str, Pod]:
    """The pods of a job, as the operator labels them."""
    groups = tuple(one for _, one in objects(KUBERNETES / job) if one["kind"] == "DaskWorkerGroup")
    made = made_by_operator(only("DaskJob", f"denoizarr-{job}"), groups)
    return {name: Pod(pod_of(one)[0]) for name, one in made.items() if one["kind"] != "Service"}


POLICIES = [one for _, one in objects() if one["kind"] == "NetworkPolicy"]
DNS = Pod({"k8s-app": "kube-dns"}, "kube-system")
STORE, NODES_CREDENTIALS = "198.51.100.7", "169.254.169.254"


@pytest.mark.parametrize("job", JOBS)
def test_a_jobs_pods_can_do_their_work(job: str) -> None:
    pods = everyone(job)
    workers = [pod for name, pod in pods.items() if name.startswith("worker")]
    assert len(workers) == (2 if job == "gpu" else 1)
    for worker in workers:
        assert may_talk(POLICIES, worker, pods["scheduler"], 8786)
        assert may_talk(POLICIES, worker, STORE, 443)
        for port in (8790, 8791):
            assert may_talk(POLICIES, pods["scheduler"], worker, port)
            assert may_talk(POLICIES, workers[0], worker, port)
    assert may_talk(POLICIES, pods["driver"], pods["scheduler"], 8786)
    assert may_talk(POLICIES, pods["driver"], STORE, 443)
    for pod in pods.values():
        assert may_talk(POLICIES, pod, DNS, 53)


def test_nobody_else_gets_to_a_jobs_pods_and_they_get_nowhere_else() -> None:
    cpu, gpu = everyone("cpu"), everyone("gpu")
    stranger = Pod({"app": "stranger"})
    impostor = Pod(cpu["worker"].labels, namespace="elsewhere")
    for source in (stranger, impostor, *gpu.values(), "203.0.113.5"):
        for target, port in ((cpu["scheduler"], 8786), (cpu["scheduler"], 8787), (cpu["worker"], 8790)):
            assert not may_talk(POLICIES, source, target, port)
    for pod in cpu.values():
        assert not may_talk(POLICIES, pod, stranger, 443)
        assert not may_talk(POLICIES, pod, NODES_CREDENTIALS, 80)
        assert not may_talk(POLICIES, pod, NODES_CREDENTIALS, 443)
        assert not may_talk(POLICIES, pod, STORE, 22)
    assert not may_talk(POLICIES, cpu["scheduler"], STORE, 443)
    assert not may_talk(POLICIES, cpu["worker"], cpu["driver"], 8786)


def test_without_a_policy_the_pods_are_open() -> None:
    """Each of the checks above can fail."""
    cpu = everyone("cpu")
    stranger = Pod({"app": "stranger"})
    few = [one for one in POLICIES if not re.search("nothing-else|cpu-scheduler", one["metadata"]["name"])]
    assert may_talk(few, stranger, cpu["scheduler"], 8786)
    without_block = [one for one in POLICIES if one["metadata"]["name"] != "denoizarr-object-store"]
    open_store = changed(only("NetworkPolicy", "denoizarr-object-store"), "spec/egress/0/to/0/ipBlock/except")
    assert may_talk([*without_block, open_store], cpu["worker"], NODES_CREDENTIALS, 443)
    assert not may_talk(without_block, cpu["worker"], STORE, 443)


def test_roles_are_those_that_certificates_are_made_for() -> None:
    for _, one in objects():
        for role, pod in pods_of(one).items():
            (secret,) = [volume["secret"] for volume in pod["volumes"] if volume["name"] == "certificates"]
            assert secret["secretName"] == f"denoizarr-tls-{ROLES[role].lower()}"
    assert only("Namespace", "denoizarr")["metadata"]["name"] == NAMESPACE
    assert list(container_problems(CPU["worker"]["containers"][0])) == []
