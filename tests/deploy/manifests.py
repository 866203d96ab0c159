"""What lies under ``deploy/``, read as a cluster would read it, and broken copies of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
JOBS = ("cpu", "gpu")


class _OnceOnly(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys in silence; Kubernetes refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} twice", node.start_mark)
        return super().construct_mapping(node, deep)


def documents(text: str) -> list[Any]:
    """Return the documents of a YAML text; a key that is there twice is an error."""
    return [one for one in yaml.load_all(text, _OnceOnly) if one is not None]


def objects(folder: Path = KUBERNETES) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield every Kubernetes object in a folder, with its file; kustomizations are not for the cluster."""
    for path in sorted(folder.rglob("*.yaml")):
        for one in documents(path.read_text()):
            if one["kind"] != "Kustomization":
                yield path, one


def only(kind: str, name: str) -> dict[str, Any]:
    """Return the one object of a kind and name."""
    (found,) = [one for _, one in objects() if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def changed(thing: Any, way: str, value: Any = ...) -> Any:
    """Return a copy with what lies at ``a/0/b`` replaced, or taken out where no value is given."""
    thing = copy.deepcopy(thing)
    *steps, last = [int(step) if step.isdigit() else step for step in way.replace("|", "\0").split("/")]
    steps = [step.replace("\0", "/") if isinstance(step, str) else step for step in steps]
    last = last.replace("\0", "/") if isinstance(last, str) else last
    inner = thing
    for step in steps:
        inner = inner[step]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return thing


def pods_of(thing: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the pod specs in an object of the Dask operator, by what they are for."""
    match thing["kind"]:
        case "DaskJob":
            cluster = thing["spec"]["cluster"]["spec"]
            return {
                "driver": thing["spec"]["job"]["spec"],
                "scheduler": cluster["scheduler"]["spec"],
                "worker": cluster["worker"]["spec"],
            }
        case "DaskWorkerGroup":
            return {"worker": thing["spec"]["worker"]["spec"]}
    return {}


def environment_of(container: dict[str, Any]) -> dict[str, str]:
    """Return the variables of a container that have a plain value."""
    return {one["name"]: one["value"] for one in container.get("env", ()) if "value" in one}
