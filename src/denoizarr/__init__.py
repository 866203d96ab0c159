"""Denoise image stacks that do not fit in memory: self-supervised, seamless, resumable.

Every public name is importable from here and nothing else is public. Names are loaded on first use, so that
``import denoizarr`` is quick and loads neither torch nor distributed.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Before torch is imported anywhere: threads that spin at OpenMP's barriers make training 2 to 5 times slower
# on cores that other work shares (measured), and gain little on cores that are free.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0.dev0"

_HOMES: dict[str, tuple[str, ...]] = {
    "stores.images": ("open_image",),
    "stores.describe": ("info",),
    "images.save": ("save_image",),
    "images.convert": ("convert",),
    "selection.filters": ("MaskPatchFilter", "MaxPatchFilter", "MeanStdPatchFilter", "ShannonPatchFilter"),
    "selection.regions_of_interest": (
        "Criterion",
        "Quantile",
        "RegionOfInterest",
        "find_roi_patches",
        "plot_roi_patches",
    ),
    "selection.index_builder": ("build_index",),
    "selection.on_disk": ("open_filter_map",),
    "selection.patch_index": ("PatchIndex",),
    "training.patch_stream": ("PatchStream",),
    "training.structure": ("StructuralNoiseExtractor",),
    "training.noise_kernel": ("NoiseKernel", "extract_noise_kernel"),
    "figures.mask_comparison": ("compare_masks",),
    "training.options": ("TrainingOptions",),
    "training.trainer": ("train",),
    "training.losses": ("StepReport",),
    "training.training_record": ("EpochReport",),
    "training.normalisation": ("Normalisation",),
    "training.denoiser": ("Denoiser",),
    "inference.predict": ("predict",),
    "diffusion.patch2self": ("patch2self",),
    "engine.summary": ("RunSummary",),
    "report.page": ("write_report",),
    "pipeline.config": ("JobConfig",),
    "pipeline.plan": ("Plan", "plan"),
    "pipeline.run": ("run_pipeline",),
    "pipeline.demo": ("demo",),
    "pipeline.verify": ("verify",),
    "pipeline.verify_report": ("VerifyReport",),
    "errors": (
        "BadRequest",
        "BlockFailed",
        "ClusterLost",
        "ConfigError",
        "CorruptChunk",
        "CredentialsExpired",
        "DegenerateData",
        "DenoizarrError",
        "EmptyIndex",
        "ImageNotFound",
        "IncompleteOutput",
        "LedgerMismatch",
        "MemoryLimitTooSmall",
        "MetadataError",
        "MisalignedGrid",
        "MissingChunk",
        "ModelError",
        "NoSpace",
        "NonFiniteData",
        "NotOmeZarr",
        "OutputExists",
        "OutputLocked",
        "PatchTooLarge",
        "PermissionDenied",
        "StoreUnavailable",
        "UnsupportedStore",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)

if TYPE_CHECKING:
    from denoizarr.engine.summary import RunSummary as RunSummary
    from denoizarr.errors import BadRequest as BadRequest
    from denoizarr.errors import BlockFailed as BlockFailed
    from denoizarr.errors import ClusterLost as ClusterLost
    from denoizarr.errors import ConfigError as ConfigError
    from denoizarr.errors import CorruptChunk as CorruptChunk
    from denoizarr.errors import CredentialsExpired as CredentialsExpired
    from denoizarr.errors import DegenerateData as DegenerateData
    from denoizarr.errors import DenoizarrError as DenoizarrError
    from denoizarr.errors import EmptyIndex as EmptyIndex
    from denoizarr.errors import ImageNotFound as ImageNotFound
    from denoizarr.errors import IncompleteOutput as IncompleteOutput
    from denoizarr.errors import LedgerMismatch as LedgerMismatch
    from denoizarr.errors import MemoryLimitTooSmall as MemoryLimitTooSmall
    from denoizarr.errors import MetadataError as MetadataError
    from denoizarr.errors import MisalignedGrid as MisalignedGrid
    from denoizarr.errors import MissingChunk as MissingChunk
    from denoizarr.errors import ModelError as ModelError
    from denoizarr.errors import NonFiniteData as NonFiniteData
    from denoizarr.errors import NoSpace as NoSpace
    from denoizarr.errors import NotOmeZarr as NotOmeZarr
    from denoizarr.errors import OutputExists as OutputExists
    from denoizarr.errors import OutputLocked as OutputLocked
    from denoizarr.errors import PatchTooLarge as PatchTooLarge
    from denoizarr.errors import PermissionDenied as PermissionDenied
    from denoizarr.errors import StoreUnavailable as StoreUnavailable
    from denoizarr.errors import UnsupportedStore as UnsupportedStore
    from denoizarr.figures.mask_comparison import compare_masks as compare_masks
    from denoizarr.images.convert import convert as convert
    from denoizarr.images.save import save_image as save_image
    from denoizarr.inference.predict import predict as predict
    from denoizarr.pipeline.config import JobConfig as JobConfig
    from denoizarr.pipeline.demo import demo as demo
    from denoizarr.pipeline.plan import Plan as Plan
    from denoizarr.pipeline.plan import plan as plan
    from denoizarr.pipeline.run import run_pipeline as run_pipeline
    from denoizarr.pipeline.verify import verify as verify
    from denoizarr.pipeline.verify_report import VerifyReport as VerifyReport
    from denoizarr.report.page import write_report as write_report
    from denoizarr.selection.filters import MaskPatchFilter as MaskPatchFilter
    from denoizarr.selection.filters import MaxPatchFilter as MaxPatchFilter
    from denoizarr.selection.filters import MeanStdPatchFilter as MeanStdPatchFilter
    from denoizarr.selection.filters import ShannonPatchFilter as ShannonPatchFilter
    from denoizarr.selection.index_builder import build_index as build_index
    from denoizarr.selection.on_disk import open_filter_map as open_filter_map
    from denoizarr.selection.patch_index import PatchIndex as PatchIndex
    from denoizarr.selection.regions_of_interest import Criterion as Criterion
    from denoizarr.selection.regions_of_interest import Quantile as Quantile
    from denoizarr.selection.regions_of_interest import RegionOfInterest as RegionOfInterest
    from denoizarr.selection.regions_of_interest import find_roi_patches as find_roi_patches
    from denoizarr.selection.regions_of_interest import plot_roi_patches as plot_roi_patches
    from denoizarr.stores.describe import info as info
    from denoizarr.stores.images import open_image as open_image
    from denoizarr.training.denoiser import Denoiser as Denoiser
    from denoizarr.training.losses import StepReport as StepReport
    from denoizarr.training.noise_kernel import NoiseKernel as NoiseKernel
    from denoizarr.training.noise_kernel import extract_noise_kernel as extract_noise_kernel
    from denoizarr.training.normalisation import Normalisation as Normalisation
    from denoizarr.training.options import TrainingOptions as TrainingOptions
    from denoizarr.training.patch_stream import PatchStream as PatchStream
    from denoizarr.training.structure import StructuralNoiseExtractor as StructuralNoiseExtractor
    from denoizarr.training.trainer import train as train
    from denoizarr.training.training_record import EpochReport as EpochReport


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'denoizarr' has no attribute {name!r}")
    return getattr(import_module(f"denoizarr.{home}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
