"""How far a run or an output has come, and what to do next: of a job that runs, died or is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from denoizarr.engine.ledger import Ledger
from denoizarr.engine.ledger_status import LedgerStatus, driver_state, ledger_status
from denoizarr.errors import ImageNotFound, MetadataError
from denoizarr.images.output import is_complete, ledger_url
from denoizarr.stores import locations, records


@dataclass(frozen=True, slots=True)
class OutputStatus:
    """One output of a job: its path, whether it is marked complete, and its ledger."""

    url: str
    is_complete: bool
    ledger: LedgerStatus


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A run folder, or a single output.

    Attributes
    ----------
    url : str
    is_complete : bool
    driver : str
        "running", "elsewhere" or "none"; see ``LedgerStatus``.
    driver_process : str
    run_steps : tuple of dict
        Of a run folder: name, seconds, note, as its table has them.
    outputs : tuple of OutputStatus
    next_step : str
        What to do, in a sentence.
    """

    url: str
    is_complete: bool
    driver: str
    driver_process: str
    run_steps: tuple[dict[str, Any], ...]
    outputs: tuple[OutputStatus, ...]
    next_step: str

    def to_json(self) -> dict[str, Any]:
        """Return the status as JSON-able data."""
        return asdict(self)

    def in_words(self) -> str:
        """Return the status in lines."""
        lines = [f"{self.url}: {'complete' if self.is_complete else 'not complete'}"]
        if self.driver != "none":
            may = "" if self.driver == "running" else ", which cannot be seen from here"
            lines.append(f"driver: {self.driver_process}{may}")
        lines += [
            f"step {step['name']}: {step.get('seconds', 0):g} s{_after(', ', step.get('note'))}"
            for step in self.run_steps
        ]
        for output in self.outputs:
            name = output.url if len(self.outputs) > 1 or self.run_steps else "output"
            lines.append(f"{name}: {'complete' if output.is_complete else 'not complete'}")
            lines += [
                f"  {step.name}: {step.batches_done} of {step.batches} batches ({step.blocks} blocks)"
                for step in output.ledger.steps
            ]
            if output.ledger.last_record is not None:
                lines.append(f"  last record {output.ledger.last_record}")
        return "\n".join([*lines, f"next: {self.next_step}"])


def job_status(url: str) -> JobStatus:
    """Return how far the job at ``url``, a run folder or an output, has come. Changes nothing.

    Raises
    ------
    ImageNotFound
        No job of this package has begun there.
    """
    where = locations.join(url).rstrip("/").removesuffix(".ledger")
    own = locations.join(where, "ledger")
    if Ledger.is_begun(own):
        return _of_run(where, own)
    if not Ledger.is_begun(ledger_url(where)) and (measured := _measurements(where)):
        return _of_measurements(where, measured)
    if not Ledger.is_begun(ledger_url(where)):
        raise ImageNotFound(
            "no job has begun here",
            where=locations.redact(where),
            expected="a run folder, or an image, a filter map or an index with its ledger beside it",
        )
    output = _of_output(where)
    state, named = output.ledger.driver, output.ledger.driver_process
    advice = _next(output.is_complete, state, "the same command again")
    return JobStatus(where, output.is_complete, state, named, (), (output,), advice)


def _of_output(url: str) -> OutputStatus:
    return OutputStatus(url, is_complete(url), ledger_status(ledger_url(url)))


def _measurements(where: str) -> list[str]:
    """Return what an index or a filter map at ``where`` is measured into, by image, as far as begun."""
    beside = ledger_url(where)
    images = [n for n in locations.list_names(beside) if n.isdecimal()]
    folders = [locations.join(beside, n) for n in sorted(images, key=int)]
    found = [(folder, name) for folder in folders for name in locations.list_names(folder)]
    measured = [locations.join(folder, name) for folder, name in found if name.endswith(".zarr.ledger")]
    return [url.removesuffix(".ledger") for url in measured if Ledger.is_begun(url)]


def _of_measurements(where: str, measured: list[str]) -> JobStatus:
    """Return the status of an index or a filter map: it is written last, when all is measured."""
    outputs = []
    for url in measured:
        found = ledger_status(ledger_url(url))
        done = bool(found.steps) and all(s.batches_done == s.batches for s in found.steps)
        outputs.append(OutputStatus(url, done, found))
    driver, named = driver_state(ledger_url(where))
    done = is_complete(where) and all(output.is_complete for output in outputs)
    advice = _next(done, driver, "the same command again")
    return JobStatus(where, done, driver, named, (), tuple(outputs), advice)


def _of_run(where: str, own: str) -> JobStatus:
    driver = ledger_status(own)
    try:
        table = records.read_json(locations.join(where, "summary.json"))
    except (ImageNotFound, MetadataError):  # nothing yet, or what a power cut left of it
        table = {}
    found = []
    for folder in (where, locations.join(where, "denoised"), locations.join(where, "stage1")):
        names = [n for n in locations.list_names(folder) if n.endswith(".ome.zarr.ledger")]
        found += [_of_output(locations.join(folder, n.removesuffix(".ledger"))) for n in names]
    done = "destination" in table and all(output.is_complete for output in found)
    steps = tuple(table.get("steps", ()))
    advice = _next(done, driver.driver, "denoizarr run with the same job file")
    return JobStatus(where, done, driver.driver, driver.driver_process, steps, tuple(found), advice)


def _next(done: bool, driver: str, command: str) -> str:
    if done:
        return "nothing, it is finished"
    if driver == "running":
        return "wait; it is running on this machine"
    if driver == "elsewhere":
        return f"if that driver is no more: {command}; what is done is not done again"
    return f"{command}; what is done is not done again"


def _after(before: str, text: Any) -> str:
    return f"{before}{text}" if text else ""
