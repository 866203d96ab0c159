"""The counters of a run as a small file that a cluster's monitoring collects: no server, no open port.

The text exposition format of Prometheus, version 0.0.4, for the textfile collector of its node exporter. The
file is replaced whole, so that a collector never sees half of one.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from denoizarr.errors import BadRequest, DenoizarrError, Stopped
from denoizarr.stores import locations

from .counters import DONE, FAILED, STATES, STOPPED, Counted, Counters

_LOG = logging.getLogger(__name__)
_SECONDS = 15.0
Sample = tuple[Mapping[str, str], float]


class MetricsFile:
    """Writes counters to some places while a run goes on, at its end, and whenever it is told to.

    Parameters
    ----------
    counters : Counters
    places : sequence of str or Path
        All are written at the beginning, at the end and when :meth:`write` is called.
    often : sequence of str or Path
        Those of them that are also written every few seconds: local files, which cost nothing.
    seconds : float
        Between two of these.

    Raises
    ------
    BadRequest
        One of the places cannot be written to: known before the work, not hours into it.
    """

    def __init__(
        self,
        counters: Counters,
        places: Sequence[str | Path],
        often: Sequence[str | Path] = (),
        *,
        seconds: float = _SECONDS,
    ) -> None:
        self.counters, self._places, self._often = counters, tuple(places), tuple(often)
        self._seconds = seconds
        self._is_over = threading.Event()
        self._writing = threading.Lock()
        self._has_warned = False
        self._thread = threading.Thread(target=self._write_often, name="metrics", daemon=True)

    def __enter__(self) -> Self:
        text = metrics_text(self.counters.counted()).encode()
        for place in self._places:
            try:
                locations.put(place, text)
            except (DenoizarrError, OSError) as error:
                raise BadRequest(
                    "the counters cannot be written",
                    where=locations.redact(str(place)),
                    got=type(error).__name__,
                    remedy="choose a path that can be written",
                ) from error
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        stopped = isinstance(error, Stopped | KeyboardInterrupt | SystemExit)
        self.counters.end(DONE if error is None else STOPPED if stopped else FAILED)
        self.write()

    def write(self) -> None:
        """Write all places anew. What cannot be written is said once, and ends no run."""
        self._write(self._places)

    def _write_often(self) -> None:
        while not self._is_over.wait(self._seconds):
            self._write(self._often)

    def _write(self, places: Sequence[str | Path]) -> None:
        text = metrics_text(self.counters.counted()).encode()
        with self._writing:
            for place in places:
                try:
                    locations.put(place, text)
                except (DenoizarrError, OSError) as error:
                    if not self._has_warned:
                        _LOG.warning("the counters are not written any more: %s", error)
                    self._has_warned = True


def metrics_text(counted: Counted, now: float | None = None) -> str:
    """Return counters in the text format.

    Parameters
    ----------
    counted : Counted
    now : float, optional
        Seconds since 1970; the clock's.
    """
    job = {"job": counted.job}
    families: list[tuple[str, str, str, list[Sample]]] = [
        ("run_state", "gauge", "1 for the state that the run is in.", _states(counted)),
        ("blocks", "gauge", "Blocks of a part of a step, done before or not.", _blocks(counted, "planned")),
        ("blocks_done_total", "counter", "Blocks done by this run.", _blocks(counted, "done")),
        ("blocks_failed_total", "counter", "Blocks of batches that failed.", _blocks(counted, "failed")),
        ("blocks_skipped_total", "counter", "Blocks done by an earlier run.", _blocks(counted, "skipped")),
        ("read_bytes_total", "counter", "Voxels read, decoded.", _blocks(counted, "read_bytes")),
        ("written_bytes_total", "counter", "Voxels written, as stored.", _blocks(counted, "written_bytes")),
        ("retries_total", "counter", "Tries beyond the first.", _blocks(counted, "retries")),
        ("batches_in_flight", "gauge", "Batches that are out.", [(job, counted.batches_in_flight)]),
        ("peak_bytes", "gauge", "Largest memory of a process.", _blocks(counted, "peak_bytes")),
        (
            "step_seconds_total",
            "counter",
            "Wall time of a step.",
            [({**job, "step": step}, seconds) for step, seconds in counted.step_seconds.items()],
        ),
        (
            "requests_planned",
            "gauge",
            "Requests to stores, at most.",
            [({**job, "kind": kind}, count) for kind, count in counted.requests_planned.items()],
        ),
        ("cost_planned", "gauge", "What the run may cost.", _cost(counted)),
        ("updated_timestamp_seconds", "gauge", "When this was written.", [(job, now or time.time())]),
    ]
    return "".join(
        line for name, kind, about, samples in families for line in _family(name, kind, about, samples)
    )


def _family(name: str, kind: str, about: str, samples: Sequence[Sample]) -> Iterator[str]:
    if not samples:
        return
    name = f"denoizarr_{name}"
    yield f"# HELP {name} {about}\n"
    yield f"# TYPE {name} {kind}\n"
    for labels, value in samples:
        text = ",".join(f'{label}="{_escaped(word)}"' for label, word in labels.items())
        yield f"{name}{{{text}}} {_number(value)}\n"


def _escaped(word: str) -> str:
    return word.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _states(counted: Counted) -> list[Sample]:
    return [({"job": counted.job, "state": state}, float(state == counted.state)) for state in STATES]


def _blocks(counted: Counted, name: str) -> list[Sample]:
    return [
        ({"job": counted.job, "step": step, "part": part}, float(getattr(counts, name)))
        for (step, part), counts in counted.parts.items()
    ]


def _cost(counted: Counted) -> list[Sample]:
    if counted.cost_planned is None:
        return []
    money, currency = counted.cost_planned
    return [({"job": counted.job, "currency": currency}, money)]
