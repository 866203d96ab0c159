"""The compose file beside the specification's schema and rules of our own; broken copies must fail."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from .manifests import DEPLOY, ROOT, changed, documents

_SCHEMA = "builtin_schemas/vendor/compose-spec.json"
(COMPOSE,) = documents((DEPLOY / "compose.yaml").read_text())
SERVICES = {"scheduler": "SCHEDULER", "worker": "WORKER", "driver": "CLIENT"}


@pytest.fixture(scope="module")
def validator() -> jsonschema.protocols.Validator:
    spec = find_spec("check_jsonschema")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("check-jsonschema has the compose specification's schema: pip install '.[test]'")
    schema = json.loads(Path(spec.submodule_search_locations[0], _SCHEMA).read_text())
    return jsonschema.validators.validator_for(schema)(schema)


def test_the_specification_takes_it(validator: jsonschema.protocols.Validator) -> None:
    assert [error.message for error in validator.iter_errors(COMPOSE)] == []


@pytest.mark.parametrize(
    ("way", "value"),
    [
        ("services/worker/comand", ["dask"]),
        ("services/worker/read_only", ["yes"]),
        ("services/worker/deploy/replicas", [2]),
        ("services/worker/depends_on/scheduler", {}),
        ("services/scheduler/healthcheck/tests", ["CMD", "true"]),
        ("services/scheduler/ports", "8787:8787"),
        ("secret", {}),
        ("services/bad name", {"image": "x"}),
    ],
)
def test_the_specification_refuses_a_broken_copy(
    validator: jsonschema.protocols.Validator, way: str, value: object
) -> None:
    assert list(validator.iter_errors(changed(COMPOSE, way, value)))


def problems_of(compose: dict[str, Any]) -> Iterator[str]:
    """Yield which of our rules it breaks."""
    if any(set(secret) != {"file"} for secret in compose["secrets"].values()):
        yield "a secret that is not a file"
    for name, service in compose["services"].items():
        if re.match(r"\$\{\w+:-0\}|0\b|root", service.get("user", "root")):
            yield f"{name}: root"
        if service.get("read_only") is not True or service.get("privileged") or service.get("network_mode"):
            yield f"{name}: privileges"
        if service.get("cap_drop") != ["ALL"] or service.get("cap_add"):
            yield f"{name}: capabilities"
        if "no-new-privileges:true" not in service.get("security_opt", ()):
            yield f"{name}: new privileges"
        if not {"cpus", "memory"} <= set(service.get("deploy", {}).get("resources", {}).get("limits", {})):
            yield f"{name}: resources"
        if not all(str(port).startswith("127.0.0.1:") for port in service.get("ports", ())):
            yield f"{name}: a port that others see"
        if any(str(port).rpartition(":")[2] != "8787" for port in service.get("ports", ())):
            yield f"{name}: a port that is not the dashboard's"
        if any("docker.sock" in str(volume) for volume in service.get("volumes", ())):
            yield f"{name}: the engine's socket"
        if name != "driver" and "healthcheck" not in service:
            yield f"{name}: health"
        environment = service["environment"]
        for key, value in environment.items():
            if re.search("SECRET|TOKEN|ACCESS_KEY|PASSW", key) and value is not None:
                yield f"{name}: {key} has a value"
        if environment.get("DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION") != "true":
            yield f"{name}: plain connections are taken"
        role = f"DASK_DISTRIBUTED__COMM__TLS__{SERVICES[name]}__"
        for key in ("DASK_DISTRIBUTED__COMM__TLS__CA_FILE", f"{role}CERT", f"{role}KEY"):
            folder, _, file = str(environment.get(key)).rpartition("/")
            if folder != "/run/secrets" or file not in service["secrets"] or file not in compose["secrets"]:
                yield f"{name}: {key}"


def test_our_rules_find_nothing() -> None:
    assert list(problems_of(COMPOSE)) == []


@pytest.mark.parametrize(
    ("way", "value", "says"),
    [
        ("services/worker/user", ..., "root"),
        ("services/worker/user", "0:0", "root"),
        ("services/worker/user", "${DENOIZARR_UID:-0}", "root"),
        ("services/worker/read_only", False, "privileges"),
        ("services/driver/privileged", True, "privileges"),
        ("services/driver/network_mode", "host", "privileges"),
        ("services/driver/cap_add", ["SYS_ADMIN"], "capabilities"),
        ("services/driver/cap_drop", ..., "capabilities"),
        ("services/driver/security_opt", ..., "new privileges"),
        ("services/worker/deploy/resources", ..., "resources"),
        ("services/scheduler/ports/0", "8787:8787", "others see"),
        ("services/scheduler/ports/0", "127.0.0.1:8786:8786", "not the dashboard"),
        ("services/driver/volumes", ["/var/run/docker.sock:/x"], "socket"),
        ("services/worker/healthcheck", ..., "health"),
        ("services/worker/environment/AWS_SECRET_ACCESS_KEY", "abc", "has a value"),
        ("services/scheduler/environment/DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION", "false", "plain"),
        ("services/scheduler/environment/DASK_DISTRIBUTED__COMM__TLS__CA_FILE", "/tmp/ca.pem", "CA_FILE"),  # noqa: S108
        ("services/worker/secrets", ["ca.pem"], "CERT"),
        ("secrets/ca.pem", {"environment": "CA"}, "not a file"),
    ],
)
def test_our_rules_find_a_fault(way: str, value: object, says: str) -> None:
    assert any(says in one for one in problems_of(changed(COMPOSE, way, value)))


def test_the_parts_fit_each_other() -> None:
    services = COMPOSE["services"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for service in services.values():
        assert service["image"] == f"${{DENOIZARR_IMAGE:-denoizarr:{version}-cpu}}"
    assert services["driver"]["profiles"] == ["run"]
    assert services["worker"]["environment"]["DASK_SCHEDULER_ADDRESS"] == "tls://scheduler:8786"
    assert services["scheduler"]["command"][2:6] == ["--protocol", "tls", "--port", "8786"]
    # What is mounted nowhere would be given to a container in vain.
    assert {name for service in services.values() for name in service["secrets"]} == set(COMPOSE["secrets"])


def test_nothing_of_it_is_in_the_repository() -> None:
    """Certificates and jobs are put beside the file by who runs it: what Git sees of them would be a leak."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "deploy"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a clone")
    assert [name for name in done.stdout.split() if name.endswith(".pem")] == []
