"""What is wrong with a job file, in one line: the key, what it holds, what it may hold."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import get_args

from pydantic import BaseModel, ValidationError

from denoizarr.errors import ConfigError

_LEFT_OUT = "leave it out: credentials come from the environment, from storage.profile or the machine's role"
_NOT_OF_A_JOB = {
    **dict.fromkeys(
        (
            *(
                "access_key_id",
                "secret_access_key",
                "session_token",
                "access_key",
                "secret_key",
                "account_key",
            ),
            *("key", "secret", "token", "password", "sas_token", "credentials", "aws_access_key_id"),
            *("aws_secret_access_key", "aws_session_token"),
        ),
        _LEFT_OUT,
    ),
    "device": "leave it out: a job takes the GPU by itself where the machine has one, and the CPU where not",
}

# Where people put keys and passwords by mistake: what lies there is not repeated.
_MAY_BE_SECRET = {"tls", "prologue", "address"}


def as_config_error(error: ValidationError, where: str, job: type[BaseModel]) -> ConfigError:
    """Turn pydantic's first finding into one line of ours.

    Parameters
    ----------
    error : ValidationError
    where : str
        The job file.
    job : type of BaseModel
        The model of a whole job, or of the section that the file is: what keys there are.
    """
    finding = error.errors(include_url=False)[0]
    place = [
        str(part)
        for part in finding["loc"]
        if not str(part).startswith(("literal[", "constrained-", "function-"))
    ]
    dotted = ".".join(place)
    if finding["type"] == "extra_forbidden" and place[-1] in _NOT_OF_A_JOB:
        return ConfigError(f"unknown key {dotted!r}", where=where, remedy=_NOT_OF_A_JOB[place[-1]])
    if finding["type"] == "extra_forbidden":
        known = _keys_at(job, place[:-1])
        exact = [] if place[-1] not in _keys_anywhere(job) else _near_elsewhere(job, place[-1])
        near = exact or difflib.get_close_matches(place[-1], known, 1, cutoff=0.5)
        near = near or _near_elsewhere(job, place[-1])
        return ConfigError(
            f"unknown key {dotted!r}",
            where=where,
            expected=None if near else f"one of {', '.join(known)}",
            remedy=f"did you mean {near[0]!r}?" if near else None,
        )
    if finding["type"] == "missing":
        return ConfigError(
            f"the key {dotted!r} is missing", where=where, remedy="a job needs input.url and output.url"
        )
    message = finding["msg"].removeprefix("Value error, ")
    value = finding.get("input")
    is_shown = not isinstance(value, dict | BaseModel) and not _MAY_BE_SECRET & set(place)
    shown = repr(value) if is_shown else None
    return ConfigError(f"{dotted}: {message}" if dotted else message, where=where, got=shown)


def _section_at(job: type[BaseModel], place: Sequence[str]) -> type[BaseModel] | None:
    model = job
    for part in place:
        field = model.model_fields.get(part)
        kinds = [] if field is None else [field.annotation, *get_args(field.annotation)]
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not sections:
            return None
        model = sections[0]
    return model


def _keys_at(job: type[BaseModel], place: Sequence[str]) -> list[str]:
    section = _section_at(job, place)
    return [] if section is None else list(section.model_fields)


def _keys_anywhere(job: type[BaseModel]) -> set[str]:
    return {key for section in job.model_fields for key in _keys_at(job, [section])}


def _near_elsewhere(job: type[BaseModel], name: str) -> list[str]:
    """Return the dotted name of the nearest key of any section."""
    sections = reversed(job.model_fields)
    dotted = {key: f"{section}.{key}" for section in sections for key in _keys_at(job, [section])}
    dotted |= {name: name for name in job.model_fields}
    return [dotted[near] for near in difflib.get_close_matches(name, dotted, 1)]


def yaml_problem(error: Exception) -> str:
    """Return what keeps a text from being YAML, with its place."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return problem if mark is None else f"{problem} in line {mark.line + 1}, column {mark.column + 1}"
