"""One SLURM for all tests of a process, and none of their jobs left for the next test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .slurm_site import Site, problem, running_site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A SLURM of two nodes."""
    if why_not := problem():
        pytest.skip(why_not)
    with running_site(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture
def slurm(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    """The same, as the SLURM that this process and its programs find; jobs write into the test's folder."""
    monkeypatch.setenv("SLURM_CONF", site.environment["SLURM_CONF"])
    # The programs of this environment first: where it is not activated, too.
    path = [str(Path(sys.executable).parent), site.environment["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    # Jobs have the environment of who submits them: what is tested here is this working copy.
    source = str(Path(__file__).parents[2] / "src")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    # Where certificates of runs lie: those of this test alone, whatever other processes do.
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield Site(site.folder, {**os.environ})
    site.cancel_all()
