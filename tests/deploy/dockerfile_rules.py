"""Rules of our own for a Dockerfile, beside hadolint's."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from docker.utils.build import exclude_paths
from dockerfile_parse import DockerfileParser

# A tag for people, which says a version to the last digit, and a digest for the engine.
_PINNED = re.compile(r":\d+\.\d+\.\d+[^@]*@sha256:[0-9a-f]{64}$")


@dataclass
class Stage:
    """One FROM and what follows it: pairs of an instruction and its text."""

    name: str
    image: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages_of(text: str) -> dict[str, Stage]:
    """Return the stages of a Dockerfile by name, in their order."""
    found: dict[str, Stage] = {}
    for step in DockerfileParser(fileobj=io.BytesIO(text.encode())).structure:
        word, value = step["instruction"], step["value"]
        if word == "FROM":
            image, _, name = re.sub(r"--\S+\s+", "", value).partition(" ")
            name = name.removeprefix("AS ").removeprefix("as ").strip() or str(len(found))
            stage = found[name] = Stage(name, image)
        elif word != "COMMENT" and found:
            stage.steps.append((word, value))
    return found


def _line_of(stages: dict[str, Stage], name: str) -> Iterator[Stage]:
    """Yield a stage and those that it is built upon."""
    while name in stages:
        yield stages[name]
        name = stages[name].image


def last(stages: dict[str, Stage], name: str, word: str) -> str | None:
    """Return the text of an instruction that holds at the end of a stage."""
    for stage in _line_of(stages, name):
        for found, value in reversed(stage.steps):
            if found == word:
                return value
    return None


def copied(value: str) -> tuple[list[str], str | None]:
    """Return the sources of a COPY, and the stage that they come from, if any."""
    words = shlex.split(value)
    stage = next((word.partition("=")[2] for word in words if word.startswith("--from=")), None)
    return [word for word in words if not word.startswith("--")][:-1], stage


def problems_of(text: str, context: Path, targets: tuple[str, ...]) -> list[str]:
    """Return what breaks a rule in a Dockerfile.

    Parameters
    ----------
    text : str
    context : Path
        The folder that it is built in, with its ``.dockerignore``.
    targets : tuple of str
        The stages that images are made of.
    """
    stages = stages_of(text)
    problems = [f"no target {name}" for name in targets if name not in stages]
    ignore = (context / ".dockerignore").read_text().splitlines()
    patterns = [line for line in ignore if line.strip() and not line.startswith("#")]
    seen = exclude_paths(str(context), patterns)
    for stage in stages.values():
        if stage.image not in stages and not _PINNED.search(stage.image):
            problems.append(f"{stage.name}: {stage.image} is not pinned")
        for word, value in stage.steps:
            if word == "ADD":
                problems.append(f"{stage.name}: ADD, which fetches and unpacks; COPY does not")
            elif word == "COPY":
                sources, origin = copied(value)
                if origin is not None:
                    problems += [f"{stage.name}: no stage {origin}"] if origin not in stages else []
                    continue
                for source in sources:
                    if source in (".", "./", "/"):
                        problems.append(f"{stage.name}: COPY of everything")
                    elif not (context / source).exists():
                        problems.append(f"{stage.name}: {source} is not there")
                    elif not any(one == source or one.startswith(source.rstrip("/") + "/") for one in seen):
                        problems.append(f"{stage.name}: {source} is ignored")
            elif word in ("ENV", "ARG") and re.search(r"(?i)(passw|secret|token|api_?key)\w*=\S", value):
                problems.append(f"{stage.name}: a secret in {word}")
    for name in targets:
        user = (last(stages, name, "USER") or "root").partition(":")[0]
        if not user.isdecimal() or int(user) == 0:
            problems.append(f"{name}: runs as {user}")
        if (last(stages, name, "HEALTHCHECK") or "NONE") == "NONE":
            problems.append(f"{name}: no health check")
    return problems
