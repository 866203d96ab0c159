"""What the Dockerfile's steps do, without a container engine: run as they stand, in a folder of this machine.

Its copies are made and its commands run, with the image's own paths moved into the folder. What comes out
then runs as the image's user, on a file system that cannot be written but for ``/tmp``. The base image is not
part of it: Python and libraries are this machine's.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packaging.utils import canonicalize_name

from denoizarr.images.save import save_image

from .container_programs import pin_versions
from .manifests import DEPLOY, ROOT

pytest.importorskip("dockerfile_parse", reason="reads Dockerfiles: pip install '.[test]'")

from .dockerfile_rules import Stage, copied, stages_of

pytestmark = pytest.mark.slow
STAGES = stages_of((DEPLOY / "Dockerfile").read_text())
# The image's own paths.
OURS = ("/opt/denoizarr", "/opt/container", "/container/", "/etc/dask", "/wheels", "/source")


class Image:
    """A folder in which an image's own paths lie, and an interpreter for its base's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables: dict[str, str] = {}
        self.workdir = folder
        subprocess.run([sys.executable, "-m", "venv", str(folder / "base")], check=True)

    def moved(self, text: str) -> str:
        """Return a text with the image's own paths where they are on this machine."""
        return re.sub("|".join(OURS), lambda match: f"{self.folder}{match[0]}", text)

    def step(self, word: str, value: str) -> None:
        """Do what one instruction says."""
        if word in ("ENV", "ARG"):
            given = dict(pair.split("=", 1) for pair in shlex.split(value.replace("\\\n", " ")))
            path = f"{self.folder / 'base' / 'bin'}:{os.environ['PATH']}"
            self.variables |= {key: self.moved(one).replace("$PATH", path) for key, one in given.items()}
        elif word == "WORKDIR":
            self.workdir = Path(self.moved(value))
            self.workdir.mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            sources, stage = copied(value)
            target = Path(self.workdir, self.moved(shlex.split(value)[-1]))
            for source in sources if stage is None else ():
                if (ROOT / source).is_dir():  # its content, not itself
                    shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
                    continue
                file = target / Path(source).name if value.endswith("/") else target
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / source, file)
        elif word == "RUN":
            path = f"{self.folder / 'base' / 'bin'}:{os.environ['PATH']}"
            done = subprocess.run(
                ["sh", "-c", self.moved(value)],
                cwd=self.workdir,
                env={**os.environ, "PATH": path, **self.variables},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{value}\n{done.stdout}\n{done.stderr}"

    def build(self, stage: Stage) -> None:
        """Run a stage's steps; users are the engine's to make, and are not made here."""
        self.variables = {}
        for word, value in [*STAGES["base"].steps, *stage.steps]:
            if not (word == "RUN" and value.startswith("groupadd")):
                self.step(word, value)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    built = Image(tmp_path_factory.mktemp("image"))
    for name in ("wheel", "environment-cpu", "runtime"):
        built.build(STAGES[name])
    return built


def test_what_is_installed_is_what_is_pinned(image: Image) -> None:
    freeze = [str(image.folder / "opt/denoizarr/bin/pip"), "freeze", "--all"]
    done = subprocess.run(freeze, capture_output=True, text=True, check=True)
    pairs = [line.split("==") for line in done.stdout.split() if "==" in line]
    installed = {canonicalize_name(name): version.partition("+")[0] for name, version in pairs}
    lines = (DEPLOY / "container" / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    # pip is the interpreter's; torch pins what comes with CUDA.
    others = {name for name in installed if name == "pip" or pin_versions.WITH_CUDA.match(name)}
    assert installed.keys() - others <= pins.keys()
    assert {name: pins[name] for name in installed.keys() - others} == {
        name: installed[name] for name in installed.keys() - others
    }


def shown(path: Path, below: Path) -> list[str]:
    """Return what shows a folder to any user, read-only, in a new file system at one that it lies below."""
    parents = [one for one in reversed(path.parents) if below in one.parents]
    made = [word for one in parents for word in ("--perms", "0755", "--dir", str(one))]
    return [*made, "--ro-bind", str(path), str(path)]


def as_in_a_container(image: Image, job: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command as user 10001 with the image's variables; it can write ``/tmp`` and the job's folder."""
    if shutil.which("bwrap") is None or os.geteuid() != 0:
        pytest.skip("a file system that cannot be written needs bubblewrap, and root to change users")
    environment = {
        "PATH": f"{image.folder / 'opt/denoizarr/bin'}:/usr/bin:/bin",
        **{name: value for name, value in image.variables.items() if name != "PATH"},
        "DASK_ROOT_CONFIG": str(image.folder / "etc/dask"),
    }
    image.folder.chmod(0o755)
    place = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-pid", "--die-with-parent"]
    # Engines give each container one; Dask's nannies need it, for semaphores.
    place += ["--perms", "1777", "--tmpfs", "/dev/shm"]  # noqa: S108
    # An interpreter in somebody's home is not for others: its folders are made anew above it.
    prefix = Path(sys.base_prefix)
    closed = next((one for one in reversed(prefix.parents) if not one.stat().st_mode & 0o001), None)
    if closed is not None:
        place += ["--perms", "0755", "--tmpfs", str(closed), *shown(prefix, closed)]
    place += ["--perms", "1777", "--tmpfs", "/tmp", *shown(image.folder, Path("/tmp"))]  # noqa: S108
    place += ["--bind", str(job), str(job), "--chdir", str(job), "--clearenv"]
    place += [word for pair in environment.items() for word in ("--setenv", *pair)]
    user = ["setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", "--no-new-privs"]
    return subprocess.run(["bwrap", *place, *user, *words], capture_output=True, text=True, check=False)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).poisson(200, (2, 256, 256)).astype(np.uint16)
    save_image(values, tmp_path / "in.ome.zarr", levels=1)
    tmp_path.chmod(0o777)
    return tmp_path


def test_the_file_system_cannot_be_written(image: Image, job: Path) -> None:
    """What the next test relies on."""
    for place in (image.folder, "/etc", "/usr/local"):
        done = as_in_a_container(image, job, "touch", f"{place}/x")
        assert done.returncode == 1
        assert "Read-only" in done.stderr or "Permission denied" in done.stderr
    assert as_in_a_container(image, job, "touch", "/tmp/x").returncode == 0  # noqa: S108
    assert as_in_a_container(image, job, "id", "-u").stdout.strip() == "10001"


def test_it_works_without_writing_but_below_tmp(image: Image, job: Path) -> None:
    stage = "{features: 4, num_epochs: 1, patches_per_epoch: 32, patch_size: 32}"
    (job / "job.yaml").write_text(
        f"input: in.ome.zarr\noutput: run\nrun_stage2: false\nstage1: {stage}\ncluster: {{workers: 1}}\n"
    )
    # Kernels are compiled, figures drawn, a cluster started: each keeps something somewhere.
    script = "denoizarr run job.yaml && ls -d /tmp/numba /tmp/matplotlib /tmp/dask"
    done = as_in_a_container(image, job, "sh", "-c", script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(done.stdout.split()[-3:]) == {"/tmp/numba", "/tmp/matplotlib", "/tmp/dask"}  # noqa: S108
    assert (job / "run" / "report.html").is_file()
    assert "Warning" not in done.stderr
    health = str(image.folder / "opt/container/health.py")
    assert as_in_a_container(image, job, "python", "-I", health).returncode == 0
    assert as_in_a_container(image, job, "python", "-I", health, "worker").returncode == 1
