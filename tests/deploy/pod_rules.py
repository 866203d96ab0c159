"""Rules of our own for pods, services and job files, each as a function that returns what breaks it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from dask.utils import parse_bytes

from .manifests import environment_of

# A name that says secret, and a value that looks like one whatever its name.
_SECRET_NAME = re.compile(r"SECRET|PASSW|TOKEN|CREDENTIAL|ACCESS_KEY|API_?KEY|SAS", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN|://[^/\s:@]+:[^/\s@]+@|eyJ[\w-]{10,}\.|AccountKey=")
_TLS = "DASK_DISTRIBUTED__COMM__TLS__"
ROLES = {"driver": "CLIENT", "scheduler": "SCHEDULER", "worker": "WORKER"}


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def has_tag(image: str) -> bool:
    """Tell whether an image is pinned: by a digest, or a tag that says a version."""
    _, _, last = image.rpartition("/")
    return "@sha256:" in last or re.search(r":v?\d+\.\d+", last) is not None


def pod_problems(pod: dict[str, Any]) -> Iterator[str]:
    """Yield which of the rules for a safe pod it breaks."""
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "root"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "no seccomp profile"
    if pod.get("automountServiceAccountToken") is not False:
        yield "a token of the Kubernetes API"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield key
    for volume in pod.get("volumes", ()):
        if not {"secret", "configMap", "emptyDir", "persistentVolumeClaim", "projected"} & set(volume):
            yield f"volume {volume['name']}"
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']} without a limit"
    for container in containers(pod):
        yield from container_problems(container)


def container_problems(container: dict[str, Any]) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False:
        yield "root"
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield "privileges"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "a root file system that is written"
    capabilities = context.get("capabilities", {})
    if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
        yield "capabilities"
    resources = container.get("resources", {})
    limits = resources.get("limits", {})
    if not {"cpu", "memory"} <= set(limits) or resources.get("requests") != limits:
        yield "resources"
    if not has_tag(container["image"]):
        yield f"image {container['image']}"
    if any("hostPort" in port for port in container.get("ports", ())):
        yield "a port of the host"
    for name, value in environment_of(container).items():
        if _SECRET_VALUE.search(value) or (_SECRET_NAME.search(name) and not value.startswith("/")):
            yield f"a secret in {name}"


def text_problems(text: str) -> Iterator[str]:
    """Yield what looks like a secret in a text, such as a job file."""
    if found := _SECRET_VALUE.search(text):
        yield f"a secret: {found[0][:4]}..."


def tls_problems(role: str, container: dict[str, Any], mounted: set[str]) -> Iterator[str]:
    """Yield what a container lacks to speak TLS and nothing else.

    Parameters
    ----------
    role : {"driver", "scheduler", "worker"}
    container : dict
    mounted : set of str
        Folders that a Secret is mounted to.
    """
    values = environment_of(container)
    if values.get("DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION") != "true":
        yield "plain connections are taken"
    for key in (f"{_TLS}CA_FILE", f"{_TLS}{ROLES[role]}__CERT", f"{_TLS}{ROLES[role]}__KEY"):
        path = values.get(key)
        if path is None or str(PurePosixPath(path).parent) not in mounted:
            yield f"no {key}"
    words = container.get("args", ())
    if list(words[:1]) == ["dask"] and "--protocol=tls" not in words:
        yield "--protocol"
    if role != "scheduler" and not values.get("DASK_SCHEDULER_ADDRESS", "").startswith("tls://"):
        yield "the scheduler's address"


def service_problems(service: dict[str, Any]) -> Iterator[str]:
    """Yield how a scheduler's service is reached from outside, or shows more than its port."""
    if service.get("type") != "ClusterIP" or service.get("externalIPs"):
        yield "exposed"
    if [port["port"] for port in service["ports"]] != [8786] or any(
        "nodePort" in port for port in service["ports"]
    ):
        yield "ports"


def memory_problems(worker: dict[str, Any]) -> Iterator[str]:
    """Yield whether a worker's own limit leaves the container no room for what is not the worker."""
    (text,) = [word.partition("=")[2] for word in worker["args"] if word.startswith("--memory-limit=")]
    room = parse_bytes(worker["resources"]["limits"]["memory"] + "B") - parse_bytes(text)
    if room < 2**29:
        yield f"{room} bytes beside --memory-limit"
