"""Kubernetes' own schemas and the Dask operator's, as a strict API server applies them."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

# From the oldest release that the folder's README names to the newest that the package knows.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
_CRDS = "operator/deployment/helm/dask-kubernetes-operator/crds"


def kubernetes_problems(thing: dict[str, Any]) -> list[str]:
    """Return what Kubernetes has against an object of its own, in every version; unknown fields too."""
    problems = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(thing, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            problems.append(f"{version}: {'/'.join(map(str, error.path))}: {error.message}")
    return problems


def closed(schema: Any) -> Any:
    """Return an OpenAPI schema as a strict JSON schema.

    A definition of a resource says nothing on fields that it does not name, and the API server takes them
    out in silence: a misspelt ``securityContext`` would be a pod without one.
    """
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
    kind = found.get("type")
    if schema.get("nullable") and isinstance(kind, str):
        found["type"] = [kind, "null"]
    names_fields = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if names_fields and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


@cache
def operator_schema(kind: str) -> dict[str, Any]:
    """Return the strict schema of one of the Dask operator's kinds, from what it is installed with."""
    spec = find_spec("dask_kubernetes")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0], _CRDS, f"{kind.lower()}.yaml")
    definition = yaml.safe_load(path.read_text())
    (version,) = definition["spec"]["versions"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"] |= {
        "apiVersion": {"const": f"{definition['spec']['group']}/{version['name']}"},
        "kind": {"const": definition["spec"]["names"]["kind"]},
        "metadata": {"type": "object", "required": ["name"]},
    }
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema  # type: ignore[no-any-return]


def without_nulls(thing: Any) -> Any:
    """Return a copy without keys that have no value: the API server takes them for absent."""
    if isinstance(thing, dict):
        return {key: without_nulls(value) for key, value in thing.items() if value is not None}
    if isinstance(thing, list):
        return [without_nulls(one) for one in thing]
    return thing


def operator_problems(thing: dict[str, Any]) -> list[str]:
    """Return what the definition of the Dask operator's resources has against an object."""
    validator = jsonschema.Draft202012Validator(operator_schema(thing["kind"]))
    errors = validator.iter_errors(without_nulls(thing))
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in errors]


def problems_of(thing: dict[str, Any]) -> list[str]:
    """Return what the API server would have against an object, of whichever kind."""
    if thing["apiVersion"].startswith("kubernetes.dask.org/"):
        return operator_problems(thing)
    return kubernetes_problems(thing)
