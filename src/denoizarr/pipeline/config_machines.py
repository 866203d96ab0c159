"""The sections of the job file that say who works, where bytes lie, what it may cost: none decides a byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from denoizarr.engine.cluster_settings import (
    ClusterSettings,
    KubernetesSettings,
    SlurmSettings,
    TLSFiles,
)
from denoizarr.engine.memory_limits import parse_bytes
from denoizarr.stores import locations
from denoizarr.stores.store_options import StoreOptions

from .config_section import Positive, Section


class TLSJobSettings(Section):
    """Where certificates lie: paths, counted from the job file."""

    ca: str
    certificate: str
    key: str


class SlurmJobSettings(Section):
    """How workers are asked of SLURM: each is one job."""

    queue: str | None = None
    account: str | None = None
    walltime: str = "01:00:00"
    cores: Positive = 1
    gres: str | None = None
    directives: tuple[str, ...] = ()
    interface: str | None = None
    prologue: tuple[str, ...] = ()
    local_directory: str | None = None
    log_directory: str | None = None
    shared_directory: str | None = None
    python: str | None = None
    wait_hours: Annotated[float, Field(gt=0)] = 24.0


class KubernetesJobSettings(Section):
    """How workers are asked of the Dask operator."""

    image: str
    namespace: str | None = None
    cores: Positive = 1
    gpus: Literal[0, 1] = 0


class ClusterJobSettings(Section):
    """Who runs the network over the image."""

    kind: Literal["local", "address", "slurm", "kubernetes"] = "local"
    workers: Literal["auto"] | Positive = "auto"
    memory_limit: str | int = "2GiB"
    address: str | None = None
    minimum: Positive | None = None
    maximum: Positive | None = None
    insecure: bool = False
    tls: TLSJobSettings | None = None
    slurm: SlurmJobSettings | None = None
    kubernetes: KubernetesJobSettings | None = None

    @model_validator(mode="after")
    def _settings_of_their_kind(self) -> ClusterJobSettings:
        # An amount of memory that is none is the plan's to report, beside one that is too small.
        self._settings(memory_limit_bytes=0).check()
        return self

    def settings(self) -> ClusterSettings:
        """Return the cluster; ``BadRequest`` where a setting is out of range."""
        return self._settings(parse_bytes(self.memory_limit))

    def _settings(self, memory_limit_bytes: int) -> ClusterSettings:
        given = self.model_dump(exclude={"memory_limit", "tls", "slurm", "kubernetes"})
        pods = self.kubernetes
        return ClusterSettings(
            **given,
            memory_limit_bytes=memory_limit_bytes,
            tls=None if self.tls is None else TLSFiles(**self.tls.model_dump()),
            slurm=None if self.slurm is None else SlurmSettings(**self.slurm.model_dump()),
            kubernetes=None if pods is None else KubernetesSettings(**pods.model_dump()),
        )

    def resolved(self, base: str | Path) -> ClusterJobSettings:
        """Return the same with absolute paths of certificates, counted from ``base``."""
        if self.tls is None:
            return self
        paths = {name: locations.absolute(path, base) for name, path in self.tls.model_dump().items()}
        return self.model_copy(update={"tls": TLSJobSettings(**paths)})


class BucketSettings(Section):
    """How a bucket is reached: see :class:`denoizarr.stores.store_options.StoreOptions`. Never a secret."""

    endpoint: str | None = None
    region: str | None = None
    anonymous: bool = False
    requester_pays: bool = False
    profile: str | None = None
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse", "customer"] | None = None
    kms_key: str | None = None
    customer_key_variable: str | None = None
    allow_http: bool = False
    connect_seconds: Annotated[float, Field(gt=0)] = 10.0
    request_seconds: Annotated[float, Field(gt=0)] = 120.0
    tries: Positive = 8
    first_wait_seconds: Annotated[float, Field(gt=0)] = 0.1
    total_seconds: Annotated[float, Field(gt=0)] = 180.0
    concurrency: Positive = 32

    @model_validator(mode="after")
    def _options_that_fit(self) -> BucketSettings:
        self.options()
        return self

    def options(self) -> StoreOptions:
        """Return the options; ``BadRequest`` where they do not fit each other."""
        return StoreOptions(**self.model_dump(exclude={"buckets"}))


class StorageSettings(BucketSettings):
    """How all buckets of the job are reached, and ``buckets``, by URL, that differ in some of it."""

    buckets: dict[str, BucketSettings] = Field(default_factory=dict)

    def by_bucket(self) -> dict[str, StoreOptions]:
        """Return the options by URL, those of all others under "": what a bucket leaves out is theirs."""
        general = self.options()
        return {
            "": general,
            **{
                url: replace(general, **{name: getattr(given, name) for name in given.model_fields_set})
                for url, given in self.buckets.items()
            },
        }

    @model_validator(mode="after")
    def _buckets_that_fit(self) -> StorageSettings:
        self.by_bucket()
        return self

    @field_validator("buckets")
    @classmethod
    def _urls_of_buckets(cls, value: dict[str, BucketSettings]) -> dict[str, BucketSettings]:
        for url in value:
            if not locations.is_remote(url):
                raise ValueError(f"{locations.redact(url)!r} is no bucket: s3://name, gs://name, az://name")
            locations.join(url)
        return value


class CostSettings(Section):
    """What the job may cost, and by which prices. None of it decides a byte of the output."""

    prices: str | dict[str, str | float] | None = None
    currency: str | None = None
    max_cost: Annotated[float, Field(ge=0)] | None = None
    storage_months: Annotated[float, Field(ge=0)] = 1.0
    charge_local: bool = False
    processor: Literal["auto", "cpu", "gpu"] = "auto"
    gpu_voxels_per_second: Annotated[float, Field(gt=0)] = 20e6

    def resolved(self, base: str | Path) -> CostSettings:
        """Return the same with an absolute path of a price file, counted from ``base``."""
        if not isinstance(self.prices, str):
            return self
        return self.model_copy(update={"prices": locations.absolute(self.prices, base)})
