"""The job file: with its sections beside it all pydantic models there are. Validated once, at the border."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from denoizarr.errors import ConfigError, ImageNotFound
from denoizarr.stores import locations, store_options
from denoizarr.training.structure import StructuralNoiseExtractor, method_of

from .config_errors import as_config_error, yaml_problem
from .config_machines import ClusterJobSettings, CostSettings, StorageSettings
from .config_section import Fraction, Positive, Section


class InputSettings(Section):
    """What to denoise, or what to learn from: ``url`` (a path, or a glob of several images) or ``urls``."""

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

    def resolved(self, base: str | Path) -> InputSettings:
        """Return the same with absolute paths, counted from ``base``."""
        return self.model_copy(
            update={
                "url": None if self.url is None else locations.absolute(self.url, base),
                "urls": self.urls and tuple(locations.absolute(url, base) for url in self.urls),
            }
        )


class OutputSettings(Section):
    """Where the run folder lies and how the denoised image in it is laid out."""

    url: str
    dtype: str = "same"
    ome_version: Literal["0.5", "0.4"] = "0.5"
    chunks: Literal["auto"] | tuple[Positive, ...] = "auto"
    shards: Literal["auto"] | tuple[Positive, ...] = "auto"
    levels: Literal["auto"] | Positive = "auto"
    keep_stage1: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"


class PatchFilterSettings(Section):
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


class StageSettings(Section):
    """How one stage is trained: the trainer's options, and where it draws its patches."""

    patch_size: int | tuple[int, ...] = 64
    batch_size: Positive = 8
    num_epochs: Positive = 10
    patches_per_epoch: Positive | None = 2048
    patches_per_image: Positive | None = None
    mask_percentage: Annotated[float, Field(gt=0, le=50)] | None = None
    masking_strategy: Literal["uniform", "median", "mean", "zero", "random", 0, 1, 2] = "uniform"
    separate_masks: bool = False
    loss: Literal["mse", "mae"] = "mse"
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    early_stopping: Positive | None = None
    features: Positive = 32
    num_layers: Annotated[int, Field(ge=1, le=6)] = 2
    norm: Literal["batch", "none"] = "none"
    upsampling: Literal["nearest", "transposed"] = "nearest"
    n2v2: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    augment: bool = True
    validation_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    validation_patches: Positive = 128
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    compile: bool = False
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10.0
    use_centre: bool = True

    use_roi: bool = False
    select_background: bool = True
    roi_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    scale_factor: Annotated[float, Field(gt=0, le=1)] = 0.25
    roi_sigma: Annotated[float, Field(ge=0)] = 300.0
    roi_equalize: Literal["global", "adaptive", "none"] = "global"
    roi_overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    roi_background: Literal["dark", "bright"] = "dark"

    @field_validator("patch_size", mode="before")
    @classmethod
    def _one_two_or_three(cls, value: Any) -> Any:
        sizes = value if isinstance(value, list | tuple) and len(value) in (2, 3) else (value,)
        if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes):
            raise ValueError("in voxels: one int, or y and x, or z, y and x")
        return value

    @model_validator(mode="before")
    @classmethod
    def _patches_by_image(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("patches_per_image") is None:
            return data
        if data.get("patches_per_epoch") is not None:
            raise ValueError("patches_per_image and patches_per_epoch both say how long an epoch is")
        return {**data, "patches_per_epoch": None}

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """The patch as (y, x) or (z, y, x)."""
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


class ExtractorSettings(Section):
    """How the shape of structured noise is measured; a setting that is left out has its method's default."""

    method: Literal["significance", "rings"] = "significance"
    center_size: Annotated[int, Field(ge=2, le=127)] | None = None
    max_true_pixels: Positive | None = None
    minimum_windows: Annotated[int, Field(ge=3)] | None = None

    floor: float | None = None
    relative_floor: float | None = None
    false_alarm: float | None = None

    norm_autocorr: bool | None = None
    log_autocorr: bool | None = None
    crop_autocorr: bool | None = None
    adapt_autocorr: bool | None = None
    adapt_CB: float | None = None  # noqa: N815  # the documented name
    adapt_DF: float | None = None  # noqa: N815
    base_percentile: float | None = None
    percentile_decay: float | None = None
    center_ratio_threshold: float | None = None
    use_center_proximity: bool | None = None
    center_proximity_threshold: float | None = None
    keep_center_component_only: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _method_of_its_settings(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("method") is not None:
            return data
        known = {name for name in data if name in cls.model_fields and data[name] is not None}
        return {**data, "method": method_of(None, known - {"method"})}

    @model_validator(mode="after")
    def _settings_of_their_method(self) -> ExtractorSettings:
        self.extractor()
        return self

    def extractor(self) -> StructuralNoiseExtractor:
        """Return the extractor; ``BadRequest`` where a setting is out of range or of the other method."""
        return StructuralNoiseExtractor(**self.model_dump(exclude_none=True))


class JobConfig(Section):
    """One whole job. ``input`` and ``output`` alone are a complete job file."""

    input: InputSettings
    output: OutputSettings
    target: InputSettings | None = None
    run_stage1: bool = True
    run_stage2: bool = True
    periodic: Literal["auto", "off"] = "auto"
    patch_filter: PatchFilterSettings = PatchFilterSettings()
    stage1: StageSettings = StageSettings()
    stage2: Stage2Settings = Stage2Settings()
    extractor: ExtractorSettings = ExtractorSettings()
    cluster: ClusterJobSettings = ClusterJobSettings()
    storage: StorageSettings = StorageSettings()
    cost: CostSettings = CostSettings()

    @model_validator(mode="before")
    @classmethod
    def _one_stage_with_a_target(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("target") is None:
            return data
        if data.get("run_stage2"):
            raise ValueError("a target trains one stage, without blind spots: leave run_stage2 out")
        if data.get("run_stage1") is False:
            raise ValueError("a target trains stage 1: leave run_stage1 on")
        return {**data, "run_stage2": False}

    @field_validator("input", "output", "target", mode="before")
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
        where = locations.redact(str(config))
        if not locations.is_remote(config) and locations.local_path(config).is_dir():
            raise ConfigError("a folder, not a job file", where=where)
        try:
            text = locations.get(config)
        except ImageNotFound as error:
            raise ConfigError("no such job file", where=where, remedy="check the path") from error
        try:
            data = yaml.safe_load(text.decode("utf-8"))
        except (
            yaml.YAMLError,
            ValueError,
            RecursionError,
        ) as error:  # a date like 2024-13-45 is a ValueError
            raise ConfigError("the job file is not YAML", where=where, got=yaml_problem(error)) from error
        if not isinstance(data, dict):
            raise ConfigError(
                "a job file is a mapping",
                where=where,
                got=type(data).__name__,
                expected="input: and output:",
            )
        return cls._validated(data, where, locations.parent_of(config))

    @classmethod
    def _validated(cls, data: dict[Any, Any], where: str, base: str | Path) -> JobConfig:
        try:
            job = cls.model_validate(data)
        except ValidationError as error:
            raise as_config_error(error, where, cls) from error
        return job.resolved(base)

    def resolved(self, base: str | Path) -> JobConfig:
        """Return the job with every path made absolute, counted from ``base``."""
        mask = self.stage2.mask_file_path
        masks = self.patch_filter.mask
        absolute = (
            locations.absolute(masks, base)
            if isinstance(masks, str)
            else masks and tuple(locations.absolute(m, base) for m in masks)
        )
        return self.model_copy(
            update={
                "patch_filter": self.patch_filter.model_copy(update={"mask": absolute}),
                "input": self.input.resolved(base),
                "target": None if self.target is None else self.target.resolved(base),
                "cost": self.cost.resolved(base),
                "output": self.output.model_copy(update={"url": locations.absolute(self.output.url, base)}),
                "cluster": self.cluster.resolved(base),
                "stage2": self.stage2.model_copy(
                    update={"mask_file_path": None if mask is None else locations.absolute(mask, base)}
                ),
            }
        )

    def reach_stores(self) -> None:
        """Have the job's buckets reached as it says, in this process and by the tasks that it sends."""
        if any(map(locations.is_remote, self._urls())):
            store_options.take(())
            for url, options in self.storage.by_bucket().items():
                store_options.use(url or None, options)

    def _urls(self) -> tuple[str, ...]:
        target = () if self.target is None else self.target.sources
        kernel = self.stage2.mask_file_path
        return (
            *(*self.input.sources, self.output.url, *target, *self.patch_filter.masks),
            *((kernel,) if kernel else ()),
        )

    def to_yaml(self) -> str:
        """Return the whole job, defaults included, as a job file."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        return text

    def identity(self) -> dict[str, Any]:
        """Return what of the job decides the bytes of its outputs: all but who does the work, and when."""
        body = self.model_dump(mode="json", exclude={"cluster", "storage", "cost"})
        body["cluster"] = {"memory_limit": self.cluster.memory_limit}
        body["output"].pop("url")
        for stage in ("stage1", "stage2"):
            body[stage].pop("checkpoint_minutes")
        return body
