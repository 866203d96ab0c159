"""The counters of a run: what they are of, and where they are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from denoizarr.engine.counters import Counters, counting
from denoizarr.engine.ledger import Ledger
from denoizarr.engine.metrics_file import MetricsFile
from denoizarr.errors import BadRequest
from denoizarr.stores import locations
from denoizarr.stores.urls import is_remote

from .checked_job import CheckedJob
from .cost import JobCost

METRICS = "metrics.prom"
_KINDS = ("gets", "heads", "puts", "lists", "deletes")


def check_metrics_file(path: str | Path | None) -> None:
    """Refuse a place for counters that cannot be meant, before a run claims anything.

    Raises
    ------
    BadRequest
        It is no path of this machine, or in a folder that is not there.
    """
    if path is None:
        return
    where, remedy = locations.redact(str(path)), "leave it out: the run folder has them as metrics.prom"
    if is_remote(path):
        what = "counters are written to a path of this machine, every few seconds"
        raise BadRequest(what, where="metrics_file", got=where, remedy=remedy)
    if not locations.local_path(path).parent.is_dir():
        raise BadRequest("no such folder for counters", where="metrics_file", got=where, remedy=remedy)


@contextmanager
def counted_run(
    checked: CheckedJob, ledger: Ledger, cost: JobCost | None, metrics_file: str | Path | None
) -> Iterator[MetricsFile]:
    """Count a run, and keep its counters in the run folder and where else they are wanted.

    Parameters
    ----------
    checked : CheckedJob
    ledger : Ledger
        Of the run folder.
    cost : JobCost, optional
        What was planned, where that is known.
    metrics_file : str or Path, optional
        Written every few seconds, and so is the run folder's where it lies on a disk; in a bucket, which
        charges for each, after every step.

    Raises
    ------
    BadRequest
        They cannot be written there.
    """
    planned = {} if cost is None else {kind: int(getattr(cost.requests, kind)) for kind in _KINDS}
    money = None if cost is None else (cost.money, cost.prices.currency)
    counters = Counters(ledger.job, requests_planned=planned, cost_planned=money)
    url = checked.job.output.url
    places: list[str | Path] = [locations.join(url, METRICS)]
    often: list[str | Path] = [] if is_remote(url) else [*places]
    if metrics_file is not None:
        places.append(metrics_file)
        often.append(metrics_file)
    with counting(counters), MetricsFile(counters, places, often) as metrics:
        yield metrics
