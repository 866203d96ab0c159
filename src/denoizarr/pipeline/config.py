"""The job file: the only pydantic models of the package. Validated once, at the border."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from denoizarr.errors import ConfigError, ImageNotFound
from denoizarr.stores import locations

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class InputSettings(_Section):
    """What to denoise: ``url`` (a path, or a glob of several images) or ``urls``."""

    url: str | None = None
    urls: tuple[str, ...] | None = None
    level: Annotated[int, Field(ge=0)] = 0
    axes: str | None = None
    missing: Literal["error", "fill"] = "error"

    @model_validator(mode="after")
    def _one_of(self) -> InputSettings:
        if (self.url is None) == (not self.urls):
            raise ValueError("give either url or urls")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """The URLs as given, globs unexpanded."""
        return self.urls or ((self.url,) if self.url is not None else ())


class OutputSettings(_Section):
    """Where the run folder lies and how the denoised image in it is laid out."""

    url: str
    dtype: str = "same"
    ome_version: Literal["0.5", "0.4"] = "0.5"
    chunks: Literal["auto"] | tuple[Positive, ...] = "auto"
    shards: Literal["auto"] | tuple[Positive, ...] = "auto"
    levels: Literal["auto"] | Positive = "auto"
    keep_stage1: bool = False


class PatchFilterSettings(_Section):
    """Which cells count as background and how often they are drawn all the same."""

    name: Literal["shannon", "max", "mean_std", "mask", "none"] = "shannon"
    threshold: Literal["auto"] | float = "auto"
    std_threshold: float | None = None
    filtered_patch_prob: Fraction = 0.1
    ref_channel: Annotated[int, Field(ge=0)] = 0
    coverage: Fraction | None = None
    mask: str | tuple[str, ...] | None = None
    mask_coverage: Fraction | None = None
    mask_missing: Literal["error", "fill"] = "error"

    @property
    def masks(self) -> tuple[str, ...]:
        """The masks, one per image."""
        return (self.mask,) if isinstance(self.mask, str) else self.mask or ()

    @model_validator(mode="after")
    def _settings_of_their_filter(self) -> PatchFilterSettings:
        if self.std_threshold is not None and self.name != "mean_std":
            raise ValueError("std_threshold belongs to the filter mean_std")
        if self.coverage is not None and self.name != "max":
            raise ValueError("coverage belongs to the filter max; that of a mask is mask_coverage")
        if self.name in ("mask", "none") and self.threshold != "auto":
            raise ValueError("threshold belongs to a filter with scores: shannon, max, mean_std")
        if self.name == "mask" and self.mask is None:
            raise ValueError("the filter mask needs mask: a path or a list of them")
        if self.mask is None and (self.mask_coverage is not None or self.mask_missing != "error"):
            raise ValueError("mask_coverage and mask_missing need mask: a path or a list of them")
        return self


class StageSettings(_Section):
    """How one stage is trained."""

    patch_size: Annotated[int, Field(ge=8)] | tuple[Positive, Positive] = 64
    batch_size: Positive = 8
    num_epochs: Positive = 10
    patches_per_epoch: Positive | None = 2048
    mask_percentage: Annotated[float, Field(gt=0, le=50)] = 1.5
    masking_strategy: Literal["uniform", "median", "mean", "zero", "random", 0, 1, 2] = "uniform"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    features: Positive = 32
    num_layers: Annotated[int, Field(ge=1, le=6)] = 2
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["float32", "bfloat16"] = "float32"

    @field_validator("patch_size", mode="before")
    @classmethod
    def _planar(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and len(value) == 3:
            raise ValueError("3D patches are not trained on in this version: one int, or y and x")
        return value

    use_roi: bool = False
    select_background: bool = True
    roi_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    scale_factor: Annotated[float, Field(gt=0, le=1)] = 0.25
    roi_sigma: Annotated[float, Field(ge=0)] = 300.0
    roi_equalize: Literal["global", "adaptive", "none"] = "global"
    roi_overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    roi_background: Literal["dark", "bright"] = "dark"

    @property
    def patch_shape(self) -> tuple[int, int]:
        """The patch as (y, x)."""
        return (self.patch_size, self.patch_size) if isinstance(self.patch_size, int) else self.patch_size


class Stage2Settings(StageSettings):
    """How stage 2 is trained, and where its blind-spot kernel comes from."""

    select_background: bool = False
    mask_source: Literal["auto", "stage1", "extractor", "file"] = "auto"
    mask_file_path: str | None = None

    @model_validator(mode="after")
    def _file_has_path(self) -> Stage2Settings:
        if (self.mask_source == "file") != (self.mask_file_path is not None):
            raise ValueError("mask_source: file and mask_file_path go together")
        return self


class ExtractorSettings(_Section):
    """How the shape of structured noise is measured."""

    method: Literal["significance"] = "significance"


class ClusterJobSettings(_Section):
    """Who runs the network over the image."""

    kind: Literal["local", "address"] = "local"
    workers: Literal["auto"] | Positive = "auto"
    memory_limit: str | int = "2GiB"
    address: str | None = None

    @model_validator(mode="after")
    def _address_has_kind(self) -> ClusterJobSettings:
        if (self.kind == "address") != (self.address is not None):
            raise ValueError("kind: address and address go together")
        return self


class JobConfig(_Section):
    """One whole job. ``input`` and ``output`` alone are a complete job file."""

    input: InputSettings
    output: OutputSettings
    run_stage1: bool = True
    run_stage2: bool = True
    patch_filter: PatchFilterSettings = PatchFilterSettings()
    stage1: StageSettings = StageSettings()
    stage2: Stage2Settings = Stage2Settings()
    extractor: ExtractorSettings = ExtractorSettings()
    cluster: ClusterJobSettings = ClusterJobSettings()

    @field_validator("input", "output", mode="before")
    @classmethod
    def _bare_url(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _something_to_do(self) -> JobConfig:
        if not (self.run_stage1 or self.run_stage2):
            raise ValueError("run_stage1 and run_stage2 are both off: nothing to do")
        if self.stage2.mask_source == "stage1" and self.run_stage2 and not self.run_stage1:
            raise ValueError("stage2.mask_source: stage1 needs run_stage1")
        return self

    @classmethod
    def load(cls, config: JobConfig | Mapping[str, Any] | str | Path) -> JobConfig:
        """Return a validated job from a dict, a YAML file or a job that is one already.

        Relative paths count from the job file; in a dict, from the working directory.

        Raises
        ------
        ConfigError
            One line: which key, what it holds and may hold; for an unknown key, the nearest known one.
        """
        if isinstance(config, JobConfig):
            return config
        if isinstance(config, Mapping):
            return cls._validated(dict(config), "job", Path.cwd())
        path = locations.local_path(config)
        if path.is_dir():
            raise ConfigError("a folder, not a job file", where=str(config))
        try:
            text = locations.get(config)
        except ImageNotFound as error:
            raise ConfigError("no such job file", where=str(config), remedy="check the path") from error
        try:
            data = yaml.safe_load(text.decode("utf-8"))
        except (
            yaml.YAMLError,
            ValueError,
            RecursionError,
        ) as error:  # a date like 2024-13-45 is a ValueError
            raise ConfigError(
                "the job file is not YAML", where=str(config), got=_yaml_problem(error)
            ) from error
        if not isinstance(data, dict):
            raise ConfigError(
                "a job file is a mapping",
                where=str(config),
                got=type(data).__name__,
                expected="input: and output:",
            )
        return cls._validated(data, str(config), path.parent)

    @classmethod
    def _validated(cls, data: dict[Any, Any], where: str, base: Path) -> JobConfig:
        try:
            job = cls.model_validate(data)
        except ValidationError as error:
            raise _as_config_error(error, where) from error
        return job.resolved(base)

    def resolved(self, base: Path) -> JobConfig:
        """Return the job with every path made absolute, counted from ``base``."""
        given = self.input.model_dump()
        given["url"] = None if self.input.url is None else _absolute(self.input.url, base)
        given["urls"] = (
            None if self.input.urls is None else tuple(_absolute(u, base) for u in self.input.urls)
        )
        mask = self.stage2.mask_file_path
        masks = self.patch_filter.mask
        absolute = (
            _absolute(masks, base)
            if isinstance(masks, str)
            else masks and tuple(_absolute(m, base) for m in masks)
        )
        return self.model_copy(
            update={
                "patch_filter": self.patch_filter.model_copy(update={"mask": absolute}),
                "input": InputSettings(**given),
                "output": self.output.model_copy(update={"url": _absolute(self.output.url, base)}),
                "stage2": self.stage2.model_copy(
                    update={"mask_file_path": None if mask is None else _absolute(mask, base)}
                ),
            }
        )

    def to_yaml(self) -> str:
        """Return the whole job, defaults included, as a job file."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        return text

    def identity(self) -> dict[str, Any]:
        """Return what of the job decides the bytes of its outputs: all but who does the work."""
        body = self.model_dump(mode="json", exclude={"cluster": {"kind", "workers", "address"}})
        body["output"].pop("url")
        return body


def _absolute(url: str, base: Path) -> str:
    return url if "://" in url else str((base / Path(url).expanduser()).absolute())


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return problem if mark is None else f"{problem} in line {mark.line + 1}, column {mark.column + 1}"


def _as_config_error(error: ValidationError, where: str) -> ConfigError:
    """Turn pydantic's first finding into one line of ours."""
    finding = error.errors(include_url=False)[0]
    place = [
        str(part)
        for part in finding["loc"]
        if not str(part).startswith(("literal[", "constrained-", "function-"))
    ]
    dotted = ".".join(place) or "the job"
    if finding["type"] == "extra_forbidden":
        known = _keys_at(place[:-1])
        exact = [] if place[-1] not in _keys_anywhere() else _near_elsewhere(place[-1])
        near = exact or difflib.get_close_matches(place[-1], known, 1, cutoff=0.5)
        near = near or _near_elsewhere(place[-1])
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
    shown = None if isinstance(value, dict | BaseModel) else repr(value)
    return ConfigError(f"{dotted}: {message}", where=where, got=shown)


def _section_at(place: Sequence[str]) -> type[BaseModel] | None:
    model: type[BaseModel] = JobConfig
    for part in place:
        field = model.model_fields.get(part)
        if field is None or not (
            isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        ):
            return None
        model = field.annotation
    return model


def _keys_at(place: Sequence[str]) -> list[str]:
    section = _section_at(place)
    return [] if section is None else list(section.model_fields)


def _keys_anywhere() -> set[str]:
    return {key for section in JobConfig.model_fields for key in _keys_at([section])}


def _near_elsewhere(name: str) -> list[str]:
    """Return the dotted name of the nearest key of any section."""
    dotted = {
        key: f"{section}.{key}" for section in reversed(JobConfig.model_fields) for key in _keys_at([section])
    }
    dotted |= {name: name for name in JobConfig.model_fields}
    return [dotted[near] for near in difflib.get_close_matches(name, dotted, 1)]
