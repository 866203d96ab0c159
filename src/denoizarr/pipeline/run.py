"""The whole job, in order, each step resumable: run again with the same file to go on.

::

    images -> statistics and filter maps -> index -> stage 1 -> noise kernel -> index -> stage 2
           -> tiled inference -> OME-Zarr pyramid -> report

A step is done when its last, atomic write is there: a record, a model file, a state "complete".
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from denoizarr.engine.cluster import ClusterSettings, open_client, usable_cores
from denoizarr.engine.ledger import Ledger
from denoizarr.engine.summary import RunSummary, added
from denoizarr.errors import ImageNotFound, OutputExists
from denoizarr.images.output import is_complete
from denoizarr.inference.predict import parse_bytes, predict
from denoizarr.kernels.blindspot import largest_percentage
from denoizarr.report.page import write_report
from denoizarr.selection.filters import MaxPatchFilter, MeanStdPatchFilter, ShannonPatchFilter
from denoizarr.selection.image_statistics import ImageStatistics
from denoizarr.selection.patch_index import PatchIndex, index_from_maps
from denoizarr.selection.survey import Survey, survey
from denoizarr.stores import locations, records
from denoizarr.stores.images import reader_of
from denoizarr.training.denoiser import Denoiser, Normalisation
from denoizarr.training.noise_kernel import NoiseKernel, extract_noise_kernel
from denoizarr.training.options import TrainingOptions
from denoizarr.training.structure import StructuralNoiseExtractor
from denoizarr.training.trainer import train

from .config import JobConfig
from .plan import CheckedJob, check_job, destination_of, output_options, reader_identities

_LOG = logging.getLogger(__name__)
_PACKAGES = ("denoizarr", "torch", "zarr", "dask", "distributed", "numpy", "numba", "obstore")


@dataclass(slots=True)
class _Run:
    """A run folder, what is known of its job so far, and the table of its steps."""

    checked: CheckedJob
    progress: bool
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def job(self) -> JobConfig:
        return self.checked.job

    def path(self, *parts: str) -> str:
        return locations.join(self.job.output.url, *parts)

    @contextmanager
    def step(self, name: str, *, done: bool = False) -> Iterator[dict[str, Any]]:
        """Time a step and write the table after it; ``done`` is a step that an earlier run finished."""
        entry = self.steps.setdefault(name, {"name": name, "seconds": 0.0, "resumed": False, "note": ""})
        # A step that was cut short and is entered again, or found finished, was resumed.
        entry["resumed"] = entry["resumed"] or done or bool(entry.get("begun"))
        entry["begun"] = True
        if not done:
            _LOG.info("%s", name)
            self.write_table()
        started = time.monotonic()
        yield entry
        if not done:
            entry["seconds"] = round(entry["seconds"] + time.monotonic() - started, 2)
        self.write_table()

    def write_table(self, **more: Any) -> None:
        """Write the table of steps, replacing the last one."""
        records.write_json(self.path("summary.json"), {"steps": list(self.steps.values()), **more})


def run_pipeline(config: JobConfig | Mapping[str, Any] | str | Path, *, progress: bool = True) -> RunSummary:
    """Run a whole job, or go on with it.

    Parameters
    ----------
    config : JobConfig, dict or path of a YAML file
    progress : bool
        Show bars or log lines.

    Returns
    -------
    RunSummary
        Of the denoised image; several images are added up.

    Raises
    ------
    BadRequest, BadData
        Before any work, where it can be told before.
    OutputExists, LedgerMismatch
        The run folder holds something else, or another job.
    BlockFailed, ClusterLost, NoSpace
        Run again when the cause is mended.
    """
    started = time.monotonic()
    checked = check_job(JobConfig.load(config))
    run = _open_run(checked, progress)
    surveys = _survey_images(run)
    normalisation = _normalisation(surveys)
    stage1 = _stage1(run, surveys, normalisation)
    kernel = _noise_kernel(run, stage1)
    stage2 = _stage2(run, surveys, normalisation, kernel)
    final = stage2 or stage1
    if final is None:  # stage 2 alone, and nothing structured was found: a single-pixel blind spot is stage 1
        assert checked.stage2 is not None, "a job has a stage"
        final = _train(run, "stage2", checked.stage2, surveys, normalisation, None)
    summary = _infer(run, stage1 if stage2 is not None else None, final)
    summary = replace(summary, seconds=round(time.monotonic() - started, 3))
    _finish(run, summary, kernel, skipped=checked.stage2 is not None and stage2 is None)
    return summary


def _open_run(checked: CheckedJob, progress: bool) -> _Run:
    """Claim the run folder for this job and write down what the job is."""
    job = checked.job
    folder = job.output.url
    ledger = locations.join(folder, "ledger")
    if locations.exists(folder) and locations.list_names(folder) and not Ledger.is_begun(ledger):
        raise OutputExists(
            "the run folder holds something else", where=folder, remedy="choose an empty or new folder"
        )
    Ledger.claim(ledger, {"job": job.identity(), "inputs": reader_identities(checked.images)})
    locations.put(locations.join(folder, "job.yaml"), job.to_yaml().encode())
    run = _Run(checked, progress)
    try:
        found = records.read_json(run.path("summary.json"))
    except ImageNotFound:
        found = {"steps": []}
    run.steps = {step["name"]: step for step in found["steps"]}
    if not locations.exists(run.path("provenance.json")):
        records.write_json(run.path("provenance.json"), _provenance(checked))
    return run


def _provenance(checked: CheckedJob) -> dict[str, Any]:
    return {
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": usable_cores(),
        "packages": {name: version(name) for name in _PACKAGES},
        "inputs": [
            {"name": name, **identity}
            for name, identity in zip(checked.names, reader_identities(checked.images), strict=True)
        ],
    }


# ---- statistics, maps, index


def _survey_images(
    run: _Run, patch_size: tuple[int, int] | None = None, label: str = "filter_map"
) -> list[Survey]:
    """Score every image once, for statistics and filter maps at one patch size."""
    job = run.job
    options = run.checked.stage1 or run.checked.stage2
    assert options is not None, "a job has a stage"
    size = patch_size or _pair(options.patch_size)
    names = () if job.patch_filter.name == "none" else (job.patch_filter.name,)
    surveys = []
    with run.step(
        "statistics and filter maps" if label == "filter_map" else f"filter maps for {size[0]} x {size[1]}"
    ):
        for image, name in zip(run.checked.images, run.checked.names, strict=True):
            where = (
                run.path(f"{label}.zarr") if len(run.checked.names) == 1 else run.path(label, f"{name}.zarr")
            )
            surveys.append(
                survey(
                    image,
                    patch_size=size,
                    names=names,
                    coverage=job.patch_filter.coverage,
                    destination=where,
                    ledger=Ledger.claim(
                        f"{where}.ledger",
                        {
                            "kind": "survey",
                            "input": reader_of(image).identity,
                            "patch_size": list(size),
                            "names": list(names),
                            "coverage": job.patch_filter.coverage,
                        },
                    ),
                    threads=usable_cores(),
                    progress=run.progress,
                )
            )
    if label == "filter_map":
        found = [
            {"name": n, **s.statistics.to_json()} for n, s in zip(run.checked.names, surveys, strict=True)
        ]
        records.write_json(run.path("statistics.json"), {"images": found})
    return surveys


def _normalisation(surveys: list[Survey]) -> Normalisation:
    merged = ImageStatistics.merged([s.statistics for s in surveys])
    return Normalisation(tuple(c.mean for c in merged.channels), tuple(c.std for c in merged.channels))


def _pair(patch_size: int | tuple[int, int]) -> tuple[int, int]:
    return patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)


def _index(run: _Run, stage: str, options: TrainingOptions, surveys: list[Survey]) -> PatchIndex:
    """Return the stage's index, from the survey's maps, saved in the run folder."""
    url = run.path(stage, "index.zarr")
    with run.step(f"index of {stage}") as entry:
        settings = run.job.patch_filter
        maps = None if settings.name == "none" else [s.maps[settings.name] for s in surveys]
        index = index_from_maps(
            list(run.checked.images),
            maps,
            _pair(options.patch_size),
            patch_filter=_filter_of(run.job),
            filtered_patch_prob=settings.filtered_patch_prob,
        )
        index.save(url)
        entry["note"] = index.summary()
    return index


def _filter_of(job: JobConfig) -> MaxPatchFilter | MeanStdPatchFilter | ShannonPatchFilter | None:
    settings = job.patch_filter
    threshold = None if settings.threshold == "auto" else float(settings.threshold)
    channel = settings.ref_channel
    if settings.name == "shannon":
        return ShannonPatchFilter(threshold=threshold, ref_channel=channel)
    if settings.name == "max":
        coverage = {} if settings.coverage is None else {"coverage": settings.coverage}
        return MaxPatchFilter(threshold=threshold, ref_channel=channel, **coverage)
    if settings.name == "mean_std":
        return MeanStdPatchFilter(
            mean_threshold=threshold, std_threshold=settings.std_threshold, ref_channel=channel
        )
    return None


# ---- training


def _stage1(run: _Run, surveys: list[Survey], normalisation: Normalisation) -> Denoiser | None:
    options = run.checked.stage1
    return None if options is None else _train(run, "stage1", options, surveys, normalisation, None)


def _stage2(
    run: _Run, surveys: list[Survey], normalisation: Normalisation, kernel: NoiseKernel | None
) -> Denoiser | None:
    options = run.checked.stage2
    if options is None or kernel is None or kernel.is_single_pixel:
        return None
    if run.checked.stage1 is not None and _pair(options.patch_size) != _pair(run.checked.stage1.patch_size):
        surveys = _survey_images(run, _pair(options.patch_size), "filter_map_stage2")
    most = largest_percentage(kernel.mask)
    if options.mask_percentage > most:
        # More would hide over half of a patch; a measured kernel must not end a job that has come this far.
        _LOG.info(
            "stage 2 predicts %.3g %% of the pixels, not %.3g: the kernel is large",
            most,
            options.mask_percentage,
        )
        options = replace(options, mask_percentage=most)
    return _train(run, "stage2", options, surveys, normalisation, kernel)


def _train(
    run: _Run,
    stage: str,
    options: TrainingOptions,
    surveys: list[Survey],
    normalisation: Normalisation,
    kernel: NoiseKernel | None,
) -> Denoiser:
    url = run.path(stage, "model.safetensors")
    if locations.exists(url):
        with run.step(f"training of {stage}", done=True):
            return Denoiser.load(url)
    index = _index(run, stage, options, surveys)
    with run.step(f"training of {stage}") as entry:
        denoiser = train(
            list(run.checked.images),
            index,
            blind_spot=None if kernel is None else kernel.mask,
            options=options,
            checkpoint=run.path(stage, "checkpoints"),
            log=run.path(stage, "train.csv"),
            normalisation=normalisation,
            progress=run.progress,
        )
        denoiser.save(url)
        entry["note"] = f"{options.num_epochs} epochs"
    return denoiser


def _noise_kernel(run: _Run, stage1: Denoiser | None) -> NoiseKernel | None:
    """Return the blind-spot kernel of stage 2: measured, or from a file; None where stage 2 does not run."""
    job = run.job
    if not job.run_stage2:
        return None
    url = run.path("noise_kernel.json")
    if locations.exists(url):
        with run.step("noise kernel", done=True):
            return NoiseKernel.load(url)
    with run.step("noise kernel") as entry:
        kernel = run.checked.kernel
        if kernel is None:
            kernel = extract_noise_kernel(
                list(run.checked.images),
                mask_source=job.stage2.mask_source,
                denoiser=stage1,
                extractor=StructuralNoiseExtractor(method=job.extractor.method),
                seed=job.stage2.seed,
            )
        kernel.save(url)
        rows, columns = kernel.mask.shape
        entry["note"] = (
            "a single pixel: no structured noise" if kernel.is_single_pixel else f"{rows} x {columns} (y x x)"
        )
        _LOG.info("noise kernel: %s", entry["note"])
    return kernel


# ---- inference


def _infer(run: _Run, stage1: Denoiser | None, final: Denoiser) -> RunSummary:
    """Run the networks over every image on the job's cluster; returns the denoised images' summary."""
    job = run.job
    settings = ClusterSettings(
        job.cluster.kind, job.cluster.workers, parse_bytes(job.cluster.memory_limit), job.cluster.address
    )
    at_most = sum(planned.batches for planned in run.checked.predictions)
    with _lazy_client(settings, at_most) as client_of:
        if job.output.keep_stage1 and stage1 is not None:
            _apply(run, "inference of stage1", stage1, "stage1", client_of)
        return _apply(run, "inference", final, "denoised", client_of)


@contextmanager
def _lazy_client(settings: ClusterSettings, at_most: int) -> Iterator[Callable[[], Any]]:
    """Yield what starts the cluster at its first call and hands the same client out after."""
    opened: list[Any] = []
    context: Any = nullcontext()

    def client_of() -> Any:
        nonlocal context
        if not opened:
            context = open_client(settings, at_most=at_most)
            opened.append(context.__enter__())
        return opened[0]

    try:
        yield client_of
    finally:
        if opened:
            context.__exit__(None, None, None)


def _apply(run: _Run, label: str, denoiser: Denoiser, kind: str, client_of: Callable[[], Any]) -> RunSummary:
    summaries = []
    with run.step(label) as entry:
        for image, name in zip(run.checked.images, run.checked.names, strict=True):
            destination = destination_of(run.job, run.checked.names, name, kind)
            summaries.append(
                predict(
                    denoiser,
                    image,
                    destination,
                    client=None if is_complete(destination) else client_of(),
                    missing=run.job.input.missing,
                    progress=run.progress,
                    **output_options(run.job),
                )
            )
        total = summaries[0] if len(summaries) == 1 else added(run.path(kind), summaries)
        entry["note"] = (
            f"{total.blocks_done} of {total.blocks_total} blocks, {total.blocks_skipped} done before"
        )
    return total


def _finish(run: _Run, summary: RunSummary, kernel: NoiseKernel | None, *, skipped: bool) -> None:
    """Write the summary and the report."""
    facts = {
        **summary.to_json(),
        "stage2_skipped": skipped,
        "single_pixel_kernel": kernel is not None and kernel.is_single_pixel,
        "images": [
            {
                "name": name,
                "url": str(image.attrs["url"]),
                "destination": destination_of(run.job, run.checked.names, name),
            }
            for image, name in zip(run.checked.images, run.checked.names, strict=True)
        ],
    }
    with run.step("report"):
        run.write_table(**facts)  # the report reads it
        write_report(run.job.output.url)
    run.write_table(**facts)
