"""What a run left behind, read with patience: a missing piece becomes a sentence, not an error."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from denoizarr.errors import BadRequest, DenoizarrError, ImageNotFound
from denoizarr.selection.patch_index import PatchIndex
from denoizarr.stores import locations
from denoizarr.stores.records import read_json
from denoizarr.training.noise_kernel import NoiseKernel

T = TypeVar("T")

STAGE_TITLES = {"stage1": "Stage 1: random noise", "stage2": "Stage 2: structured noise"}
_TARGET_TITLE = "Training with a target"
_SECRET = ("secret", "token", "password", "credential", "access_key", "account_key")


@dataclass(frozen=True, slots=True)
class Stage:
    """One training.

    Attributes
    ----------
    name, title : str
        Folder, and what people call it.
    rows : list of dict
        ``train.csv`` as text.
    index : PatchIndex or None
        Where its patches came from.
    samples : tuple of str
        Pictures of sample predictions, the first epoch's and the last's.
    """

    name: str
    title: str
    rows: list[dict[str, str]]
    index: PatchIndex | None
    samples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The records of a run; empty where they are absent, with the reason in ``missing``.

    Attributes
    ----------
    url : str
    job, provenance, summary, statistics : dict
        ``job.yaml``, ``provenance.json``, ``summary.json``, ``statistics.json``; URLs without credentials.
    stages : tuple of Stage
        Those that ran, in order.
    kernel : NoiseKernel or None
    periodic : dict
        ``periodic.json``: the lines that were taken away, and what takes them away. Empty where nothing was.
    missing : dict of str to str
        Piece, and a sentence saying that it is left out and why.
    """

    url: str
    job: dict[str, Any]
    provenance: dict[str, Any]
    summary: dict[str, Any]
    statistics: dict[str, Any]
    stages: tuple[Stage, ...]
    kernel: NoiseKernel | None
    missing: dict[str, str] = field(default_factory=dict)
    periodic: dict[str, Any] = field(default_factory=dict)

    @property
    def has_target(self) -> bool:
        """Whether the network was trained to predict a target, not from the noisy image alone."""
        return bool(self.job.get("target"))

    def stage(self, name: str) -> Stage | None:
        """Return a stage by its folder's name, or None if it did not run."""
        return next((stage for stage in self.stages if stage.name == name), None)


def open_run(url: str | Path) -> RunFolder:
    """Read the records of a run.

    Parameters
    ----------
    url : str or Path
        The run folder.

    Raises
    ------
    ImageNotFound
        When nothing lies there.
    BadRequest
        When what lies there is no run folder: it has no job and no summary.
    """
    where = locations.join(url)
    if not locations.exists(where):
        raise ImageNotFound("no run here", where=locations.redact(where), remedy="check the path")
    missing: dict[str, str] = {}
    job = attempt(
        missing, "job", "The settings (job.yaml)", lambda: _read_yaml(locations.join(where, "job.yaml"))
    )
    records = {name: _record(where, name, missing) for name in ("provenance", "summary", "statistics")}
    if job is None and records["summary"] is None:
        raise BadRequest(
            "not a run folder", where=locations.redact(where), expected="job.yaml or summary.json in it"
        )
    titles = STAGE_TITLES | ({"stage1": _TARGET_TITLE} if job and job.get("target") else {})
    stages = [_stage(where, name, title, missing) for name, title in titles.items()]
    periodic = None
    if locations.exists(locations.join(where, "periodic.json")):
        periodic = _record(where, "periodic", missing)
    kernel_url = locations.join(where, "noise_kernel.json")
    kernel = None
    if locations.exists(kernel_url):
        kernel = attempt(missing, "kernel", "The noise kernel", lambda: NoiseKernel.load(kernel_url))
    return RunFolder(
        url=where,
        job=without_secrets(job or {}),
        provenance=without_secrets(records["provenance"] or {}),
        summary=without_secrets(records["summary"] or {}),
        statistics=records["statistics"] or {},
        stages=tuple(stage for stage in stages if stage is not None),
        kernel=kernel,
        missing=missing,
        periodic=periodic or {},
    )


def attempt(missing: dict[str, str], key: str, what: str, read: Callable[[], T]) -> T | None:
    """Read an optional piece; note in ``missing`` why it is left out."""
    try:
        return read()
    except ImageNotFound:
        missing[key] = f"{what} is left out: the run has none."
    except (DenoizarrError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        missing[key] = f"{what} is left out: it could not be read ({first})."
    return None


def without_secrets(data: Any) -> Any:
    """Return a copy with credentials taken out of URLs, and out of what is named like one."""
    if isinstance(data, Mapping):
        return {
            str(key): "(hidden)"
            if any(word in str(key).lower() for word in _SECRET)
            else without_secrets(value)
            for key, value in data.items()
        }
    if isinstance(data, str):
        return locations.redact(data)
    if isinstance(data, Sequence):
        return [without_secrets(item) for item in data]
    return data


def number_in(data: Mapping[str, Any], key: str) -> float | None:
    """Return a number of a record, or None where there is none."""
    value = data.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _read_yaml(url: str) -> dict[str, Any]:
    data = yaml.safe_load(locations.get(url))
    if not isinstance(data, dict):
        raise BadRequest("not a mapping", where=url, got=type(data).__name__)
    return data


def _record(where: str, name: str, missing: dict[str, str]) -> dict[str, Any] | None:
    return attempt(missing, name, f"{name}.json", lambda: read_json(locations.join(where, f"{name}.json")))


def _stage(where: str, name: str, title: str, missing: dict[str, str]) -> Stage | None:
    folder = locations.join(where, name)
    if not locations.exists(folder):
        return None
    rows = attempt(
        missing,
        f"{name}.train",
        f"The training log of {name}",
        lambda: _rows(locations.join(folder, "train.csv")),
    )
    index = attempt(
        missing,
        f"{name}.index",
        f"The patch index of {name}",
        lambda: PatchIndex.open(locations.join(folder, "index.zarr")),
    )
    return Stage(name, title, rows or [], index, _samples(locations.join(folder, "samples")))


def _samples(folder: str) -> tuple[str, ...]:
    names = sorted(name for name in locations.list_names(folder) if name.endswith(".png"))
    return tuple(locations.join(folder, name) for name in dict.fromkeys(names[:1] + names[-1:]))


def _rows(url: str) -> list[dict[str, str]]:
    text = locations.get(url).decode("utf-8", errors="replace")
    return [{str(key): str(value) for key, value in row.items()} for row in csv.DictReader(io.StringIO(text))]
