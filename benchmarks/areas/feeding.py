"""A trainer that takes a batch every t ms: the share of its time that it waits for patches.

The trainer sleeps for t between its batches. That is what a process does whose GPU computes: its cores are
free for the stream. Computing on the CPU instead would measure how two threads share a core, and a loop in
Python would hold the interpreter's lock as no training step does. t is given in multiples of what a batch
costs the stream itself (``decode``: the wall time per batch where nothing is done between them), so that the
rows mean the same on every machine.

What counts is all that a batch takes, from asking to having. Beside it: how much of it the stream was blocked
because a portion was not there, and all that a batch takes in the same loop over ready tensors, because a
process that has slept takes a while for a few calls of torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import Group, Row, Side

from areas import patch_stream

OPTIONS = {
    "shape": [64, 1024, 1024],
    "plane": [512, 512],
    "chunk": 512,
    "patch": 64,
    "batch": 16,
    "patches_per_chunk": 64,
    "multiples": [0.5, 1.0, 1.5, 2.0, 4.0, 8.0],
    "seconds": 4.0,
    "workers": 2,
}
GOAL = 0.05


def prepare(options: dict[str, Any], folder: Path) -> None:
    patch_stream.prepare(options, folder)


def groups(options: dict[str, Any], folder: Path) -> list[Group]:
    image = patch_stream.settings_of(options, folder, options["shape"])
    settings = image | {"multiples": options["multiples"], "seconds": options["seconds"]}
    sources = {
        "threads of the trainer": settings,
        f"Dask, {options['workers']} processes": settings | {"workers": options["workers"]},
    }
    return [_group(name, source, options["multiples"]) for name, source in sources.items()]


def _group(name: str, settings: dict[str, Any], multiples: list[float]) -> Group:
    rows = [
        Row("decode, ms per batch", "stream", quantity="decode_ms"),
        Row("wait for the first batch, ms", "stream", quantity="first_ms"),
    ]
    for multiple in multiples:
        goal = ("<=", GOAL) if multiple > 1 else None
        label = f"t = {multiple:g} times decode"
        rows += [
            Row(f"all that a batch takes, {label}", "stream", quantity=_takes(multiple), goal=goal),
            Row(f"of it blocked on a portion, {label}", "stream", quantity=_blocked(multiple)),
            Row(f"all for ready tensors, {label}", "stream", quantity=_ready(multiple)),
        ]
    return Group(name, [Side("stream", "feed", settings, warm_up=False, min_seconds=0)], rows)


def _blocked(multiple: float) -> str:
    return f"blocked at {multiple:g}"


def _takes(multiple: float) -> str:
    return f"takes at {multiple:g}"


def _ready(multiple: float) -> str:
    return f"ready at {multiple:g}"


def feed(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import torch

    import denoizarr

    torch.set_num_threads(1)
    image = denoizarr.open_image(settings["url"], axes=settings["axes"])
    index = denoizarr.build_index(image, settings["patch"])

    def work() -> dict[str, Any]:
        with _client(settings.get("workers")) as client:
            source = {} if client is None else {"client": client}
            # Like a trainer, it says that other epochs follow: their beginnings are read ahead.
            stream = denoizarr.PatchStream(
                image,
                index,
                batch_size=settings["batch"],
                patches_per_epoch=settings["patches"],
                num_epochs=10**9,
                **source,
            )
            train(stream, 0.0, settings["seconds"] / 4)  # compiles, starts threads, fills the file cache
            found = train(stream, 0.0, settings["seconds"])
            decode = found["wall"] / found["batches"]
            numbers = {
                "units": found["batches"],
                "decode_ms": 1e3 * decode,
                "first_ms": 1e3 * found["first"],
            }
            for multiple in settings["multiples"]:
                found = train(stream, multiple * decode, settings["seconds"])
                numbers[_takes(multiple)] = found["waited"] / found["wall"]
                numbers[_blocked(multiple)] = found["blocked"] / found["wall"]
                found = train(_Ready(), multiple * decode, settings["seconds"] / 4)
                numbers[_ready(multiple)] = found["waited"] / found["wall"]
            stream.close()
        return numbers

    return work


class _Ready:
    """Batches that are there already: what is left is what it costs a process to go on after a sleep."""

    statistics = {"seconds_waited": 0.0}  # noqa: RUF012, as of a stream

    def __init__(self) -> None:
        import numpy as np

        self._patches = np.zeros((2048, 1, 64, 64), np.float32)
        self._origins = np.zeros((2048, 3), np.int64)

    def __iter__(self) -> Iterator[Any]:
        import torch

        for k in range(0, 2048, 16):
            yield {
                "patch": torch.from_numpy(self._patches[k : k + 16]),
                "origin": torch.from_numpy(self._origins[k : k + 16]),
                "number": torch.arange(k, k + 16),
            }


@contextmanager
def _client(workers: int | None) -> Iterator[Any]:
    """Give a client of a cluster of worker processes of one thread each, or None."""
    if workers is None:
        yield None
        return
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def train(stream: Any, step_seconds: float, seconds: float) -> dict[str, float]:
    """Take batches for so long, epoch after epoch, and return what was waited.

    The clock starts at the first batch: what came before it is start-up, and told as ``first``. The ends of
    epochs are inside. A sleep that lasts longer than it should counts as computing.
    """
    started = time.perf_counter()
    first = begun = 0.0
    waited, batches, blocked_before = 0.0, 0, 0.0
    source = _epochs(stream)
    while True:
        asked = time.perf_counter()
        next(source)
        arrived = time.perf_counter()
        if not begun:
            first, begun = arrived - started, arrived
            blocked_before = stream.statistics["seconds_waited"]
        else:
            waited += arrived - asked
            batches += 1
        if arrived - begun >= seconds:
            source.close()
            found = {"waited": waited, "wall": arrived - begun, "batches": batches, "first": first}
            return found | {"blocked": stream.statistics["seconds_waited"] - blocked_before}
        if step_seconds:
            time.sleep(step_seconds)


def _epochs(stream: Any) -> Generator[Any]:
    while True:
        yield from stream
