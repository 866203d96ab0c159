"""The one way in which a whole image is written: claim, blocks, pyramid, finished mark."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from denoizarr.engine import failpoints
from denoizarr.engine.driver_lock import only_driver
from denoizarr.engine.ledger import Ledger
from denoizarr.engine.runner import Step, Task, is_done, run_step
from denoizarr.engine.shares import Share
from denoizarr.engine.summary import RunSummary, Tally
from denoizarr.errors import BadRequest
from denoizarr.stores.sources import ImageReader

from .layout import OutputLayout
from .output import begin_output, check_apart, check_free, finish_output, ledger_url, reopen_output
from .pyramid import blocks_per_batch, build_pyramid, pyramid_steps
from .shared import begin_shared

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Survey:
    """A pass over the input before the first voxel is written: it may decide what is written.

    Attributes
    ----------
    name : str
        Of its step in the ledger.
    task : callable
        ``task(spec, block)``, as of any step; a batch is one block.
    n_blocks : int
    conclude : callable
        ``conclude(ledger, spec)`` returns the spec of what comes after, once every block is done; again the
        same from the same records.
    """

    name: str
    task: Task
    n_blocks: int
    conclude: Callable[[Ledger, Any], Any]

    def step(self, spec: Any) -> Step:
        """Return the step that does it."""
        return Step(self.name, self.task, spec, self.n_blocks, 1)


@dataclass(frozen=True, slots=True)
class ImageJob:
    """An image that is to be computed from another, write unit by write unit.

    Attributes
    ----------
    reader : ImageReader
        Of the input.
    layout : OutputLayout
    identity : dict
        All that decides the output's bytes besides the input and the layout.
    task : callable
        ``task(spec, block)`` writes one write unit of the finest level; its result may hold the names of
        absent input chunks under ``missing_chunks``.
    spec : object
    batch_voxels : int
        Voxels that make a task last some seconds.
    label : str
        What the log calls it.
    changes : tuple of str
        What of the input does not survive.
    resources : mapping, optional
        What a batch of the finest level needs of a Dask worker, such as ``{"GPU": 1}``.
    surveys : tuple of Survey
        In order; the spec of each is what the one before it concluded.
    """

    reader: ImageReader
    layout: OutputLayout
    identity: dict[str, Any]
    task: Task
    spec: Any
    batch_voxels: int
    label: str
    changes: tuple[str, ...] = ()
    resources: Mapping[str, float] | None = None
    surveys: tuple[Survey, ...] = ()

    @property
    def level_0(self) -> Step:
        """The step that writes the finest level."""
        units = self.layout.levels[0].write_units
        size = blocks_per_batch(units.box(0).size, self.batch_voxels)
        return Step("level-0", self.task, self.spec, len(units), size, resources=self.resources)


def write_image(
    job: ImageJob,
    *,
    overwrite: bool = False,
    client: Any = None,
    threads: int = 1,
    progress: bool = False,
    prepare: Callable[[], None] | None = None,
    share: Share | None = None,
) -> RunSummary:
    """Write the image of ``job``, or go on with it, and mark it finished.

    Parameters
    ----------
    job : ImageJob
    overwrite : bool
        Delete what lies at the destination first.
    client : distributed.Client, optional
        Without one, ``threads`` threads of this process.
    threads : int
    progress : bool
    prepare : callable, optional
        Called once the destination is claimed and before the first block; idempotent.
    share : Share, optional
        Write this share of the finest level and no more, beside other processes that write theirs. A call
        without it, when all are done, does what is left, builds the pyramid and marks the image finished.

    Raises
    ------
    BadRequest
        The output overlaps the input, or only this process has the input and a client was given.
    OutputExists, LedgerMismatch, BlockFailed, ClusterLost, ...
    """
    started = time.monotonic()
    layout = job.layout
    check_apart(layout.url, job.reader.urls)
    if client is not None:
        pickle.dumps(
            job.reader
        )  # refused here, before anything is begun, where only this process has the image
    identity = {"input": job.reader.identity, **job.identity}
    step, tally = job.level_0, Tally()
    who: dict[str, Any] = {"client": client, "threads": threads, "progress": progress}
    if share is not None:
        _check_alone(share, client, overwrite)
        ledger = begin_shared(layout, identity)
        if prepare is not None:
            prepare()
        reopen_output(layout, ledger, [step])
        surveyed = _survey(job, ledger, who, share)
        if surveyed is None:
            _LOG.info("%s: its share of the first pass is done; run it again once all shares are", job.label)
            return tally.summary(layout.url, seconds=time.monotonic() - started, changes=job.changes)
        run_step(surveyed.level_0, ledger=ledger, **who, label=job.label, fold=tally.add, share=share)
        return tally.summary(layout.url, seconds=time.monotonic() - started, changes=job.changes)
    check_free(layout.url, overwrite=overwrite)
    # Before anything is deleted or claimed: it may be another driver's, in the middle of its work.
    with only_driver(ledger_url(layout.url)):
        failpoints.reach("held")
        ledger = begin_output(layout, identity, overwrite=overwrite)
        if prepare is not None:
            prepare()
        failpoints.reach("prepared")
        reopen_output(layout, ledger, [step, *pyramid_steps(layout)])
        surveyed = _survey(job, ledger, who, None)
        assert surveyed is not None, "only shares wait for others"
        run_step(surveyed.level_0, ledger=ledger, **who, label=job.label, fold=tally.add)
        build_pyramid(layout, ledger, **who, fold=tally.add)
        finish_output(layout)
        failpoints.reach("marked")
    return tally.summary(layout.url, seconds=time.monotonic() - started, changes=job.changes)


def _survey(job: ImageJob, ledger: Ledger, who: dict[str, Any], share: Share | None) -> ImageJob | None:
    """Do the passes before the first voxel; return the job as they leave it, None where they are not done."""
    for survey in job.surveys:
        step = survey.step(job.spec)
        run_step(
            step, ledger=ledger, **who, label=f"{job.label}, {survey.name}", fold=lambda _: None, share=share
        )
        if share is not None and not is_done(step, ledger):
            return None
        job = replace(job, spec=survey.conclude(ledger, job.spec))
    return job


def _check_alone(share: Share, client: Any, overwrite: bool) -> None:
    where = f"blocks {share.number}/{share.count}"
    if client is not None:
        raise BadRequest("a share is for one process", where=where, got="a cluster", remedy="leave one out")
    if overwrite:
        raise BadRequest(
            "overwrite would delete what other shares wrote", where=where, remedy="delete the output yourself"
        )
