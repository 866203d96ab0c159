"""The whole job, in order, each step resumable: run again with the same file to go on.

::

    images -> less their periodic lines -> statistics and filter maps -> index -> stage 1
           -> noise kernel -> index -> stage 2 -> tiled inference -> OME-Zarr pyramid -> report

A step is done when its last, atomic write is there: a record, a model file, a state "complete".
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoizarr.engine.cluster import ClusterSettings, open_client, usable_cores
from denoizarr.engine.driver_lock import only_driver
from denoizarr.engine.ledger import Ledger
from denoizarr.engine.metrics_file import MetricsFile
from denoizarr.engine.summary import RunSummary, added, smaller_tiles_in_words
from denoizarr.errors import BadRequest, DegenerateData, ImageNotFound, MetadataError
from denoizarr.images.output import is_complete
from denoizarr.images.periodic_record import images_of_record, periodic_record
from denoizarr.inference.devices import visible_gpus
from denoizarr.inference.predict import predict
from denoizarr.report.page import write_report
from denoizarr.selection.image_scores import ImageScores, score_image
from denoizarr.selection.image_statistics import ImageStatistics
from denoizarr.selection.index_builder import index_of
from denoizarr.selection.patch_index import PatchIndex
from denoizarr.stores import locations, records
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.noise_kernel import NoiseKernel, extract_noise_kernel
from denoizarr.training.normalisation import Normalisation
from denoizarr.training.options import TrainingOptions
from denoizarr.training.trainer import train

from .blind_spots import fitting_blind_spots, kernel_in_words, planes_of
from .checked_job import (
    CheckedJob,
    check_job,
    destination_of,
    identity_of,
    ledger_of,
    output_options,
    reader_identities,
)
from .config import JobConfig
from .job_cost import allowed_cost
from .run_counters import check_metrics_file, counted_run
from .where_to_look import places_of

_LOG = logging.getLogger(__name__)
_PACKAGES = ("denoizarr", "torch", "zarr", "dask", "distributed", "numpy", "numba", "obstore")


@dataclass(slots=True)
class _Run:
    """A run folder, what is known of its job so far, and the table of its steps."""

    checked: CheckedJob
    progress: bool
    client_of: Callable[[], Any]
    metrics: MetricsFile
    warnings: list[str] = field(default_factory=list)
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, list[ImageScores]] = field(default_factory=dict)
    periods: tuple[float, ...] = ()

    @property
    def job(self) -> JobConfig:
        return self.checked.job

    def path(self, *parts: str) -> str:
        return locations.join(self.job.output.url, *parts)

    def reading_client(self) -> Any:
        """Return the client of a cluster that looks at images, too; None where threads of this process do."""
        return self.client_of() if self.job.cluster.settings().reads_images else None

    @contextmanager
    def step(self, name: str, *, done: bool = False) -> Iterator[dict[str, Any]]:
        """Time a step and write the table after it; ``done`` is a step that an earlier run finished."""
        entry = self.steps.setdefault(name, {"name": name, "seconds": 0.0, "resumed": False, "note": ""})
        # A step that was cut short and is entered again, or found finished, was resumed.
        entry["resumed"] = entry["resumed"] or done or bool(entry.get("begun"))
        entry["begun"] = True
        if not done:
            self.metrics.counters.begin_step(name)
            _LOG.info("%s", name)
            self.write_table()
        started = time.monotonic()
        yield entry
        if not done:
            entry["seconds"] = round(entry["seconds"] + time.monotonic() - started, 2)
            self.metrics.counters.begin_step("")
            self.metrics.write()
        self.write_table()

    def write_table(self, **more: Any) -> None:
        """Write the table of steps, replacing the last one."""
        records.write_json(self.path("summary.json"), {"steps": list(self.steps.values()), **more})


def run_pipeline(
    config: JobConfig | Mapping[str, Any] | str | Path,
    *,
    progress: bool = True,
    prices: str | Path | Mapping[str, Any] | None = None,
    max_cost: float | None = None,
    metrics_file: str | Path | None = None,
) -> RunSummary:
    """Run a whole job, or go on with it.

    Parameters
    ----------
    config : JobConfig, dict or path of a YAML file
    progress : bool
        Show bars or log lines.
    prices : str, Path or mapping, optional
        A YAML file of prices, or the same as a mapping, in place of the job's ``cost.prices``.
    max_cost : float, optional
        In place of the job's ``cost.max_cost``: a job that may cost more is refused, and leaves nothing.
    metrics_file : str or Path, optional
        Gets the counters of the run as well, every 15 s; the run folder has them as ``metrics.prom``.

    Returns
    -------
    RunSummary
        Of the denoised image; several images are added up.

    Raises
    ------
    BadRequest, MissingChunk, CorruptChunk, NonFiniteData, DegenerateData
        Before any work, where it can be told before.
    OutputExists, LedgerMismatch
        The run folder holds something else, or another job.
    BlockFailed, ClusterLost, NoSpace
        Run again when the cause is mended.
    """
    started = time.monotonic()
    _refuse_several_processes()
    check_metrics_file(metrics_file)
    job = JobConfig.load(config)
    job.reach_stores()
    checked = check_job(job)
    cost = allowed_cost(checked, prices, max_cost)
    ledger = Ledger.claim(ledger_of(checked.job), identity_of(checked))
    with (
        only_driver(ledger.url),
        counted_run(checked, ledger, cost, metrics_file) as metrics,
        _lazy_client(_cluster_of(checked)) as client_of,
    ):
        run = _open_run(checked, progress, client_of, metrics)
        summary = _run_steps(run)
        summary = replace(summary, seconds=round(time.monotonic() - started, 3))
        _finish(run, summary)
    return summary


def _refuse_several_processes() -> None:
    """Refuse torchrun: its other processes would wait for ever, or write the same run folder."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1":
        raise BadRequest(
            "a job runs in one process, and on a cluster from there",
            where="WORLD_SIZE",
            got=count,
            remedy="start it without torchrun; train with several GPUs by denoizarr train, then predict",
        )


def _run_steps(run: _Run) -> RunSummary:
    _take_lines_away(run)
    normalisation = _normalisation(run, _scores_of(run, next(iter(run.checked.looks))))
    stage1 = _stage1(run, normalisation)
    kernel = _noise_kernel(run, stage1)
    stage2 = _stage2(run, normalisation, kernel)
    final = stage2 or stage1
    if final is None:  # stage 2 alone, and nothing structured was found: a single-pixel blind spot is stage 1
        assert run.checked.stage2 is not None, "a job has a stage"
        final = _train(run, "stage2", run.checked.stage2, normalisation, None)
    return _infer(run, stage1 if stage2 is not None else None, final)


def _open_run(
    checked: CheckedJob, progress: bool, client_of: Callable[[], Any], metrics: MetricsFile
) -> _Run:
    """Write down what the job is, or find what an earlier run of it wrote."""
    job = checked.job
    locations.put(locations.join(job.output.url, "job.yaml"), job.to_yaml().encode())
    provenance = _found(locations.join(job.output.url, "provenance.json"))
    if not provenance:
        provenance = _provenance(checked)
        records.write_json(locations.join(job.output.url, "provenance.json"), provenance)
    # The number of threads decides a model's last bits: a resumed run trains with those it began with.
    threads = int(provenance["cores"])
    stage1, stage2 = (o and replace(o, threads=threads) for o in (checked.stage1, checked.stage2))
    run = _Run(replace(checked, stage1=stage1, stage2=stage2), progress, client_of, metrics)
    run.steps = {step["name"]: step for step in _found(run.path("summary.json")).get("steps", [])}
    return run


def _found(url: str) -> dict[str, Any]:
    """Return a record of an earlier run; nothing where there is none, or only what a power cut left of it."""
    try:
        return records.read_json(url)
    except (ImageNotFound, MetadataError):
        return {}


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


# ---- periodic lines


def _take_lines_away(run: _Run) -> None:
    """Go on with the images less their periodic lines; measured once for all steps, and kept."""
    if run.job.periodic == "off":
        return
    url = run.path("periodic.json")
    done = locations.exists(url)
    with run.step("periodic lines", done=done) as entry:
        if not done:
            client = run.reading_client()
            found = periodic_record(run.checked.images, run.checked.names, client=client)
            records.write_json(url, found)
            entry["note"] = str(found["note"])
            _LOG.info("periodic lines: %s", entry["note"])
        images, run.periods = images_of_record(records.read_json(url), run.checked.images)
        run.checked = replace(run.checked, images=images)


# ---- statistics, maps, index


def _scores_of(run: _Run, stage: str) -> list[ImageScores]:
    """Measure every image for the index of a stage; what the first stage has measured is not done again."""
    if stage in run.scores:
        return run.scores[stage]
    job, checked, settings = run.job, run.checked, run.checked.looks[stage]
    first = next(iter(checked.looks.values()))
    with run.step(f"where to look for {stage}"):
        run.scores[stage] = [
            score_image(
                image,
                settings,
                number,
                places=places_of(job, checked.names, name, settings, first),
                statistics=True,
                client=run.reading_client(),
                threads=usable_cores(),
                progress=run.progress,
            )
            for number, (image, name) in enumerate(zip(checked.images, checked.names, strict=True))
        ]
    return run.scores[stage]


def _normalisation(run: _Run, scores: list[ImageScores]) -> Normalisation:
    """Return mean and standard deviation of all images together, and write their statistics down."""
    statistics = [s.statistics for s in scores if s.statistics is not None]
    named = zip(run.checked.names, statistics, strict=True)
    records.write_json(
        run.path("statistics.json"), {"images": [{"name": n, **s.to_json()} for n, s in named]}
    )
    merged = ImageStatistics.merged(statistics)
    return Normalisation(tuple(c.mean for c in merged.channels), tuple(c.std for c in merged.channels))


def _index(run: _Run, stage: str) -> PatchIndex:
    """Return the stage's index, saved in the run folder."""
    url = run.path(stage, "index.zarr")
    scores = _scores_of(run, stage)
    with run.step(f"index of {stage}") as entry:
        index = index_of(scores, run.checked.looks[stage])
        index.save(url)
        entry["note"] = index.summary()
    return index


# ---- training


def _stage1(run: _Run, normalisation: Normalisation) -> Denoiser | None:
    options = run.checked.stage1
    return None if options is None else _train(run, "stage1", options, normalisation, None)


def _stage2(run: _Run, normalisation: Normalisation, kernel: NoiseKernel | None) -> Denoiser | None:
    options = run.checked.stage2
    if options is None or kernel is None or kernel.is_single_pixel:
        return None
    fitting = fitting_blind_spots(kernel, options)
    if fitting.is_single_pixel:
        return None
    run.warnings += fitting.warnings
    return _train(run, "stage2", fitting.options, normalisation, fitting.mask)


def _train(
    run: _Run,
    stage: str,
    options: TrainingOptions,
    normalisation: Normalisation,
    blind_spot: NDArray[np.bool_] | None,
) -> Denoiser:
    url = run.path(stage, "model.safetensors")
    if locations.exists(url):
        with run.step(f"training of {stage}", done=True):
            return Denoiser.load(url)
    index = _index(run, stage)
    with run.step(f"training of {stage}") as entry:
        denoiser = train(
            list(run.checked.images),
            index,
            target=list(run.checked.targets) or None,
            blind_spot=blind_spot,
            options=options,
            checkpoint=run.path(stage, "checkpoints"),
            log=run.path(stage, "train.csv"),
            samples=run.path(stage, "samples"),
            normalisation=normalisation,
            periodic="off",  # the images are less their lines already
            progress=run.progress,
        )
        denoiser.save(url)
        entry["note"] = f"{denoiser.training['epochs']} epochs"
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
            kernel = _measured_kernel(run, stage1)
        if run.periods:
            kernel = replace(kernel, periods=tuple(sorted({*run.periods, *kernel.periods})))
        kernel.save(url)
        entry["note"] = kernel_in_words(kernel)
        _LOG.info("noise kernel: %s", entry["note"])
    return kernel


def _measured_kernel(run: _Run, stage1: Denoiser | None) -> NoiseKernel:
    job = run.job
    try:
        return extract_noise_kernel(
            list(run.checked.images),
            mask_source=job.stage2.mask_source,
            denoiser=stage1,
            extractor=job.extractor.extractor(),
            planes=planes_of(job.stage2.patch_shape),
            seed=job.stage2.seed,
            verbose=True,
        )
    except (BadRequest, DegenerateData) as error:
        # A small image has too few windows to measure noise on; that must not end a job that has a stage 1.
        run.warnings.append(f"The noise was not measured: {error}.")
        return replace(NoiseKernel.from_mask([[1]]), source="extractor", note=str(error))


# ---- inference


def _infer(run: _Run, stage1: Denoiser | None, final: Denoiser) -> RunSummary:
    """Run the networks over every image on the job's cluster; returns the denoised images' summary."""
    if run.job.output.keep_stage1 and stage1 is not None:
        _apply(run, "inference of stage1", stage1, "stage1")
    return _apply(run, "inference", final, "denoised")


def _cluster_of(checked: CheckedJob) -> tuple[ClusterSettings, int]:
    """Return the job's cluster and the number of workers that it can use."""
    return checked.job.cluster.settings(), sum(planned.batches for planned in checked.predictions)


@contextmanager
def _lazy_client(cluster: tuple[ClusterSettings, int]) -> Iterator[Callable[[], Any]]:
    """Yield what starts the cluster at its first call and hands the same client out after.

    A cluster that runs already is called at once: that it is gone must be known before hours of training.
    """
    settings, at_most = cluster
    with ExitStack() as stack:
        opened: list[Any] = []

        def client_of() -> Any:
            if not opened:
                opened.append(
                    stack.enter_context(open_client(settings, at_most=at_most, gpus=visible_gpus()))
                )
            return opened[0]

        if settings.kind == "address":
            client_of()
        yield client_of


def _apply(run: _Run, label: str, denoiser: Denoiser, kind: str) -> RunSummary:
    summaries = []
    with run.step(label) as entry:
        for image, name in zip(run.checked.images, run.checked.names, strict=True):
            destination = destination_of(run.job, run.checked.names, name, kind)
            summaries.append(
                predict(
                    denoiser,
                    image,
                    destination,
                    client=None if is_complete(destination) else run.client_of(),
                    missing=run.job.input.missing,
                    precision=run.job.output.precision,
                    progress=run.progress,
                    **output_options(run.job),
                )
            )
        total = summaries[0] if len(summaries) == 1 else added(run.path(kind), summaries)
        if total.blocks_in_smaller_tiles:
            run.warnings.append(smaller_tiles_in_words(total))
        entry["note"] = (
            f"{total.blocks_done} of {total.blocks_total} blocks, {total.blocks_skipped} done before"
        )
    return total


def _finish(run: _Run, summary: RunSummary) -> None:
    """Write the summary and the report."""
    facts = {
        **summary.to_json(),
        "warnings": run.warnings,
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
