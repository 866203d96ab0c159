"""The one way in which a whole image is written: claim, blocks, pyramid, finished mark."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from denoizarr.engine.driver_lock import only_driver
from denoizarr.engine.runner import Step, Task, run_step
from denoizarr.engine.summary import RunSummary, Tally
from denoizarr.stores.sources import ImageReader

from .layout import OutputLayout
from .output import begin_output, check_apart, finish_output, reopen_output
from .pyramid import blocks_per_batch, build_pyramid, pyramid_steps


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
    """

    reader: ImageReader
    layout: OutputLayout
    identity: dict[str, Any]
    task: Task
    spec: Any
    batch_voxels: int
    label: str
    changes: tuple[str, ...] = ()

    @property
    def level_0(self) -> Step:
        """The step that writes the finest level."""
        units = self.layout.levels[0].write_units
        size = blocks_per_batch(units.box(0).size, self.batch_voxels)
        return Step("level-0", self.task, self.spec, len(units), size)


def write_image(
    job: ImageJob,
    *,
    overwrite: bool = False,
    client: Any = None,
    threads: int = 1,
    progress: bool = False,
    prepare: Callable[[], None] | None = None,
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
    ledger = begin_output(layout, {"input": job.reader.identity, **job.identity}, overwrite=overwrite)
    with only_driver(ledger.url):
        if prepare is not None:
            prepare()
        step = job.level_0
        reopen_output(layout, ledger, [step, *pyramid_steps(layout)])
        who: dict[str, Any] = {"ledger": ledger, "client": client, "threads": threads, "progress": progress}
        tally = Tally()
        run_step(step, **who, label=job.label, fold=tally.add)
        build_pyramid(layout, **who, fold=tally.add)
        finish_output(layout)
    return tally.summary(layout.url, seconds=time.monotonic() - started, changes=job.changes)
