"""Overwriting an output that is being written, or whose deletion was cut short; and who comes late to it."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from denoizarr.engine.ledger import Ledger
from denoizarr.engine.runner import Step, run_step
from denoizarr.errors import LedgerMismatch, OutputExists, OutputLocked
from denoizarr.images.save import save_image
from denoizarr.pipeline.verify import verify
from denoizarr.stores import locations
from denoizarr.stores.images import open_image

VALUES = np.random.default_rng(0).integers(0, 9999, (6, 64, 64), dtype="u2")
HOW: dict[str, Any] = {"chunks": (1, 32, 32), "shards": (1, 64, 64), "levels": 2}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_a_living_driver_writes_is_not_deleted_under_it(tmp_path: Path, living: dict[str, Any]) -> None:
    out = tmp_path / "out.ome.zarr"
    save_image(VALUES, out, **HOW)
    note = tmp_path / "out.ome.zarr.ledger" / "driver.json"
    note.write_text(json.dumps(living))
    before = tree(tmp_path)
    for overwrite in (True, False):
        with pytest.raises(OutputLocked):
            save_image(VALUES + 1, out, overwrite=overwrite, **HOW)
    assert tree(tmp_path) == before
    note.unlink()
    save_image(VALUES + 1, out, overwrite=True, **HOW)
    assert np.array_equal(open_image(out).values, VALUES + 1)
    assert not note.exists()


@pytest.fixture
def living() -> Any:
    import socket
    import subprocess
    import sys

    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield {"host": socket.gethostname(), "process": process.pid}
    process.communicate(b"\n")


def test_nothing_vouches_for_what_an_overwrite_had_deleted_when_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete_prefix = locations.delete_prefix
    moment = 0
    while True:
        out = tmp_path / str(moment) / "out.ome.zarr"
        save_image(VALUES, out, **HOW)
        left = [moment]

        def killed(url: str, left: list[int] = left) -> None:
            left[0] -= 1
            root = Path(url)
            if left[0] == 0 and (root / "0" / "c").exists():  # in the middle of a tree, in any order
                delete_prefix(root / "0" / "c" / "3")
            if left[0] <= 0:
                raise KeyboardInterrupt
            delete_prefix(url)

        with monkeypatch.context() as patched:
            patched.setattr(locations, "delete_prefix", killed)
            try:
                save_image(VALUES, out, overwrite=True, **HOW)
            except KeyboardInterrupt:
                was_killed = True
            else:
                was_killed = False
        try:
            save_image(VALUES, out, **HOW)
        except OutputExists:
            save_image(VALUES, out, overwrite=True, **HOW)
        assert verify(out, progress=False).problems == ()
        assert np.array_equal(open_image(out).values, VALUES)
        if moment and not was_killed:
            break
        moment += 1
    assert moment > 4


def test_who_comes_late_writes_nothing_into_the_next_jobs_output(tmp_path: Path) -> None:
    began, go_on, done = threading.Event(), threading.Event(), []

    def task(spec: str, block: int) -> dict[str, Any]:
        if spec == "old" and block == 0:
            began.set()
            go_on.wait(30)  # as a share of a job array does that was suspended
        done.append((spec, block))
        return {"by": spec}

    url = str(tmp_path / "l")
    old = Ledger.claim(url, {"job": "old"})
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(run_step, Step("s", task, "old", 12, 3), ledger=old, progress=False)
        assert began.wait(30)
        locations.delete_prefix(url)
        new = Ledger.claim(url, {"job": "new"})
        run_step(Step("s", task, "new", 12, 3), ledger=new, progress=False)
        threading.Event().wait(1.1)
        go_on.set()
        with pytest.raises(LedgerMismatch, match="given to another job"):
            late.result(timeout=30)
    assert [block for by, block in done if by == "old"] == [0]
    assert all(x["by"] == "new" for r in new.records("s", 4) for x in (r or {})["results"])


def test_a_ledger_that_was_deleted_under_a_job_stops_it(tmp_path: Path) -> None:
    url = str(tmp_path / "l")
    ledger = Ledger.claim(url, {})
    ledger.check_claim()
    locations.delete_prefix(url)
    with pytest.raises(LedgerMismatch, match="got job nobody"):
        ledger.check_claim()
