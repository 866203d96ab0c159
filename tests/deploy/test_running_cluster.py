"""The manifests at work: their commands and variables as processes, with TLS, on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from distributed import Client
from distributed.security import Security

from denoizarr.images.save import save_image
from denoizarr.inference.devices import place_of
from denoizarr.stores.images import open_image
from tests.loopback_ports import free_ports

from .manifests import DEPLOY, documents

pytest.importorskip("dask_kubernetes", reason="the operator's own functions: pip install '.[kubernetes]'")
if shutil.which("openssl") is None:
    pytest.skip("openssl makes the certificates", allow_module_level=True)

from . import container_programs
from .cluster_processes import (
    Container,
    Machine,
    machine,
    make_certificates,
    of_compose,
    of_kubernetes,
)

# The manifests without GPUs are made alike; theirs is a slow test for the seconds that each cluster takes.
KINDS = ("compose", "gpu", pytest.param("cpu", marks=pytest.mark.slow))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder / "ours")
    make_certificates(folder / "theirs")
    return folder


@pytest.fixture(scope="module", params=KINDS)
def cluster(
    request: pytest.FixtureRequest, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Machine, dict[str, Container]]]:
    """A scheduler and two workers, and a third without a GPU beside those that say that they have one."""
    if request.param == "compose":
        containers = of_compose(documents((DEPLOY / "compose.yaml").read_text())[0])
    else:
        containers = of_kubernetes(request.param)
    with machine(certificates / "ours", tmp_path_factory.mktemp("machine")) as here:
        here.start("scheduler", containers["scheduler"])
        for number in (1, 2):
            worker = containers["worker"]
            words = [f"--name=worker-{number}" if "--name" in word else word for word in worker.command]
            here.start(f"worker {number}", replace(worker, command=words))
        if "worker-1" in containers:
            here.start("worker 3", containers["worker-1"])
        yield request.param, here, containers


def wait_command(kind: str, containers: dict[str, Container]) -> list[str]:
    """The job's own waiting, with as many workers as there are here."""
    command = containers["driver"].init or ["python", "/opt/container/wait_for_workers.py", "2"]
    command = ["2" if word.isdecimal() else word for word in command]
    return [word for word in command if not word.startswith("--timeout")] + ["--timeout=60"]


def security(folder: Path, role: str = "client") -> Security:
    return Security(
        tls_ca_file=str(folder / "ca.pem"),
        tls_client_cert=str(folder / f"{role}.pem"),
        tls_client_key=str(folder / f"{role}-key.pem"),
        require_encryption=True,
    )


def ready(kind: str, here: Machine, containers: dict[str, Container]) -> None:
    driver = containers["driver"]
    address = {"DASK_SCHEDULER_ADDRESS": here.scheduler}
    driver = replace(driver, environment={**driver.environment, **address})
    done = here.run(driver, wait_command(kind, containers))
    assert done.returncode == 0, done.stderr + here.logs()


def test_a_verb_runs_on_it(cluster: tuple[str, Machine, dict[str, Container]], tmp_path: Path) -> None:
    kind, here, containers = cluster
    ready(kind, here, containers)
    image = np.random.default_rng(0).integers(0, 999, (4, 64, 64), dtype=np.uint16)
    np.save(tmp_path / "in.npy", image)
    names = str(tmp_path / "in.npy"), str(tmp_path / "out.ome.zarr")
    command = ["denoizarr", "convert", *names, "--axes=zyx", f"--cluster={here.scheduler}"]
    done = here.run(containers["driver"], command)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(open_image(tmp_path / "out.ome.zarr").values, image)


@pytest.mark.slow
def test_a_whole_job_runs_on_it(cluster: tuple[str, Machine, dict[str, Container]], tmp_path: Path) -> None:
    kind, here, containers = cluster
    ready(kind, here, containers)
    image = np.random.default_rng(0).poisson(200, (2, 256, 256)).astype(np.uint16)
    save_image(image, tmp_path / "in.ome.zarr", levels=1)
    stage = {"features": 4, "num_epochs": 1, "patches_per_epoch": 32, "patch_size": 32}
    job = {
        "input": {"url": "in.ome.zarr"},
        "output": {"url": "run", "levels": 2},
        "run_stage2": False,
        "stage1": stage,
        "cluster": {"kind": "address", "address": here.scheduler},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    driver = containers["driver"]
    assert driver.command[-1] == "/job/job.yaml"
    command = [*driver.command[:-1], str(tmp_path / "job.yaml"), "--json"]
    done = here.run(driver, command)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["blocks_done"] == summary["blocks_total"] > 0
    assert (tmp_path / "run" / "denoised.ome.zarr").is_dir()


def test_probes_find_it_well(cluster: tuple[str, Machine, dict[str, Container]]) -> None:
    kind, here, containers = cluster
    ready(kind, here, containers)
    for name in here.processes:
        role = name.split()[0]
        done = here.health(name, containers[role])
        assert done.returncode == 0, done.stderr


def test_what_the_containers_are_told_arrives(cluster: tuple[str, Machine, dict[str, Container]]) -> None:
    kind, here, containers = cluster
    ready(kind, here, containers)

    def told(name: str) -> Any:
        import dask

        return dask.config.get(name)

    def threads() -> tuple[str | None, str | None, bool]:
        import sys

        loaded = "denoizarr.engine.worker_signals" in sys.modules
        return os.environ.get("OMP_NUM_THREADS"), os.environ.get("MALLOC_ARENA_MAX"), loaded

    with Client(here.scheduler, security=security(here.certificates), set_as_default=False) as client:
        assert client.run_on_scheduler(told, "distributed.scheduler.no-workers-timeout") == "300s"
        assert client.run_on_scheduler(told, "distributed.scheduler.allowed-failures") == 10
        assert set(client.run(threads).values()) == {("1", "1", True)}
        addresses = client.scheduler_info(n_workers=-1)["workers"]
        assert all(address.startswith("tls://") for address in addresses)
        place = place_of(client)
        assert place.resources == ({"GPU": 1} if kind == "gpu" else None)
        assert len(addresses) == (3 if kind == "gpu" else 2)


def test_who_has_no_certificate_of_ours_is_refused(
    cluster: tuple[str, Machine, dict[str, Container]], certificates: Path
) -> None:
    kind, here, containers = cluster
    ready(kind, here, containers)
    with pytest.raises(OSError, match=r"(?i)timed out|connect"):
        Client(here.scheduler.replace("tls", "tcp"), timeout="3s", set_as_default=False)
    with pytest.raises(OSError, match=r"(?i)timed out|connect|certificate"):
        Client(here.scheduler, security=security(certificates / "theirs"), timeout="3s", set_as_default=False)
    with Client(here.scheduler, security=security(here.certificates), timeout="20s", set_as_default=False):
        pass  # the same with ours


def test_probes_find_it_unwell(certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    containers = of_kubernetes("cpu")
    with machine(certificates / "ours", tmp_path) as here:
        here.start("scheduler", containers["scheduler"])
        here.start("worker", containers["worker"])
        one = [word if word != "2" else "1" for word in wait_command("cpu", containers)]
        assert here.run(containers["driver"], one).returncode == 0
        assert here.health("worker", containers["worker"]).returncode == 0
        # Frozen: it still takes connections, and answers none.
        here.processes["scheduler"].send_signal(signal.SIGSTOP)
        monkeypatch.setattr(container_programs.health, "PATIENCE_SECONDS", 0.5)
        wrong = container_programs.health.complaint("scheduler", here.ports["8787"], None)
        assert "no answer" in wrong
        # A worker that answers, and belongs to no scheduler that is there.
        elsewhere = f"tls://127.0.0.1:{free_ports(1)[0]}"
        wrong = container_programs.health.complaint("worker", here.ports["worker health"], elsewhere)
        assert wrong == f"no connection to the scheduler {elsewhere}"
        wrong = container_programs.health.complaint("worker", here.ports["worker health"], None)
        assert "DASK_SCHEDULER_ADDRESS is not set" in wrong
        here.stop("scheduler")
        for name in ("scheduler", "worker"):
            done = here.health(name, containers[name])
            assert done.returncode == 1
            assert done.stderr.startswith(f"unhealthy: {name}: no ")
        # And nobody waits for ever for workers that do not come.
        done = here.run(containers["driver"], [*one[:-1], "--timeout=0"])
        assert done.returncode == 1
        assert "no scheduler answers" in done.stderr
        assert "gave up after 0 s" in done.stderr
        nowhere = replace(containers["driver"], environment={})
        assert "DASK_SCHEDULER_ADDRESS is not set" in here.run(nowhere, one).stderr


@pytest.mark.parametrize(
    ("command", "role"),
    [
        (["dask", "scheduler", "--port", "8786"], "scheduler"),
        (
            ["/sbin/docker-init", "--", "/opt/denoizarr/bin/python", "/opt/denoizarr/bin/dask", "worker"],
            "worker",
        ),
        (["denoizarr", "run", "/job/job.yaml"], None),
        (["denoizarr", "info", "worker"], None),
        (["dask"], None),
    ],
)
def test_a_role_is_read_from_the_command(command: list[str], role: str | None) -> None:
    assert container_programs.health.role_of(command) == role
    assert container_programs.health.complaint(None, None, None) is None
