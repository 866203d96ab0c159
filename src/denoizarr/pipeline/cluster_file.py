"""Who does the work, as the command line says it: a word, an address, or a file with a job's keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml
from pydantic import ValidationError

from denoizarr.engine.cluster_settings import ClusterSettings
from denoizarr.errors import BadRequest, ConfigError

from .config_errors import as_config_error, yaml_problem
from .config_machines import ClusterJobSettings

_MOST_BYTES = 2**20


def cluster_of(
    text: str | None,
    *,
    workers: int | None = None,
    memory_limit_bytes: int | None = None,
    insecure: bool = False,
) -> ClusterSettings:
    """Return the cluster that the options of the command line describe.

    Parameters
    ----------
    text : str or None
        "local" (as None), the address of a scheduler, or the path of a YAML file.
    workers : int, optional
        In place of the file's, or of one per core.
    memory_limit_bytes : int, optional
        In place of the file's, or of 2 GiB.
    insecure : bool
        Whether an address without TLS on another machine may be used.

    Raises
    ------
    BadRequest
    """
    if text is None or text == "local":
        found = ClusterSettings()
    elif text.endswith((".yaml", ".yml")):
        found = load_cluster(Path(text)).settings()
    elif text in ("slurm", "kubernetes", "address"):
        raise BadRequest(
            f"kind {text} has settings of its own", where="--cluster", expected="a YAML file that has them"
        )
    else:
        found = ClusterSettings("address", address=text)
    if workers is not None:
        if found.kind == "address":
            raise BadRequest("a scheduler that runs already has its own workers", where="--workers")
        found = replace(found, workers=workers, minimum=None, maximum=None)
    if memory_limit_bytes is not None:
        found = replace(found, memory_limit_bytes=memory_limit_bytes)
    if insecure:
        found = replace(found, insecure=True)
    found.check()
    return found


def load_cluster(path: Path) -> ClusterJobSettings:
    """Return what a file says; paths of certificates in it count from it.

    Raises
    ------
    ConfigError
    """
    try:
        with path.open("rb") as file:
            data = yaml.safe_load(file.read(_MOST_BYTES).decode("utf-8"))
    except OSError as error:
        raise ConfigError("no such cluster file", where=str(path), got=error.strerror) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError("not YAML", where=str(path), got=yaml_problem(error)) from error
    try:
        return ClusterJobSettings.model_validate(data).resolved(path.absolute().parent)
    except ValidationError as error:
        raise as_config_error(error, str(path), ClusterJobSettings) from error
