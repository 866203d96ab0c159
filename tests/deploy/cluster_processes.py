"""The containers of our manifests as processes on loopback, with their own commands and variables."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.loopback_ports import free_ports

from .container_programs import FOLDER
from .manifests import KUBERNETES, ROOT, objects, only
from .operator_pods import made_by_operator, pod_of

_MOUNTS = re.compile(r"/(?:certificates|run/secrets)/")
_PROGRAMS = {"python": [sys.executable], "dask": [sys.executable, "-m", "dask"]}
_PROGRAMS["denoizarr"] = [sys.executable, "-m", "denoizarr.cli"]


@dataclass(frozen=True)
class Container:
    """What a manifest says of one container."""

    command: list[str]
    environment: dict[str, str]
    probe: list[str] | None = None
    init: list[str] | None = None


def of_kubernetes(job: str) -> dict[str, Container]:
    """Return the containers that the operator makes of a job's manifests, by role."""
    groups = tuple(one for _, one in objects(KUBERNETES / job) if one["kind"] == "DaskWorkerGroup")
    made = made_by_operator(only("DaskJob", f"denoizarr-{job}"), groups)
    found = {}
    for role, one in made.items():
        if one["kind"] == "Service":
            continue
        _, pod = pod_of(one)
        (container,) = pod["containers"]
        values = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
        command = [
            re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], word)  # noqa: B023 - used at once
            for word in container["args"]
        ]
        found[role] = Container(
            command,
            values,
            container.get("livenessProbe", {}).get("exec", {}).get("command"),
            next((first["args"] for first in pod.get("initContainers", ())), None),
        )
    return found


def of_compose(compose: dict[str, Any]) -> dict[str, Container]:
    """Return the containers of the compose file, by service; variables without a value are left out."""
    found = {}
    for name, service in compose["services"].items():
        values = {
            key: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value)
            for key, value in service["environment"].items()
            if value
        }
        probe = service.get("healthcheck", {}).get("test")
        found[name] = Container(service["command"], values, probe[1:] if probe else None)
    return found


def _ports(*of_containers: str) -> dict[str, int]:
    return dict(zip(of_containers, free_ports(len(of_containers)), strict=True))


@dataclass
class Machine:
    """Where the containers run instead: this machine's loopback, and a folder of certificates."""

    certificates: Path
    folder: Path
    ports: dict[str, int] = field(default_factory=lambda: _ports("8786", "8787"))
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def scheduler(self) -> str:
        return f"tls://127.0.0.1:{self.ports['8786']}"

    def translated(self, text: str, ports: dict[str, int]) -> str:
        """Return a word of a manifest as it reads on this machine."""
        text = _MOUNTS.sub(f"{self.certificates}/", text).replace("/opt/container/", f"{FOLDER}/")
        text = re.sub(r"tls://[\w-]+:", "tls://127.0.0.1:", text)
        for port, here in ports.items():
            text = re.sub(rf"(?<!\d){port}\b", str(here), text)
        # Published to loopback by the engine; here there is no engine between.
        return re.sub(r"^:(?=\d)", "127.0.0.1:", text)

    def environment(self, container: Container) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("DASK_")}
        given = {key: self.translated(value, self.ports) for key, value in container.environment.items()}
        places = {"PYTHONPATH": str(ROOT / "src"), "DASK_ROOT_CONFIG": str(FOLDER), "HOME": str(self.folder)}
        return {**kept, **places, "TMPDIR": str(self.folder), **given}

    def words(self, command: list[str], ports: dict[str, int] | None = None) -> list[str]:
        program, *rest = command
        return _PROGRAMS[program] + [self.translated(one, ports or self.ports) for one in rest]

    def start(self, name: str, container: Container) -> None:
        """Start a scheduler or a worker; a worker with ports of its own."""
        ports = dict(self.ports)
        if container.command[1] == "worker":
            ports |= _ports("8788", "8790", "8791")
            self.ports[f"{name} health"] = ports["8788"]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [*self.words(container.command, ports), "--host=127.0.0.1"],
                env=self.environment(container),
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )

    def run(self, container: Container, command: list[str], *more: str) -> subprocess.CompletedProcess[str]:
        """Run a program in a container's environment to its end."""
        return subprocess.run(
            [*self.words(command), *more],
            env=self.environment(container),
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            cwd=self.folder,
        )

    def health(self, name: str, container: Container) -> subprocess.CompletedProcess[str]:
        """Run a container's own probe."""
        assert container.probe is not None
        port = self.ports.get(f"{name} health", self.ports["8787"])
        return self.run(container, container.probe, f"--port={port}")

    def logs(self) -> str:
        """Return what each process that was started says of itself, and whether it still runs."""
        return "\n".join(
            f"== {name}: {'runs' if process.poll() is None else f'ended, {process.returncode}'}\n"
            + (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]
            for name, process in self.processes.items()
        )

    def stop(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def machine(certificates: Path, folder: Path) -> Iterator[Machine]:
    """Yield a machine, and stop what was started on it: workers first."""
    here = Machine(certificates, folder)
    try:
        yield here
    finally:
        for name in reversed(list(here.processes)):
            here.stop(name)


def make_certificates(folder: Path, roles: tuple[str, ...] = ("scheduler", "worker", "client")) -> None:
    """Make a private CA and a certificate for each role, with OpenSSL."""
    folder.mkdir(parents=True)

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        "req", "-x509", *key, "-days", "2", "-subj", "/CN=a CA", "-keyout", "ca-key.pem", "-out", "ca.pem"
    )
    for role in roles:
        openssl("req", *key, "-subj", f"/CN={role}", "-keyout", f"{role}-key.pem", "-out", f"{role}.csr")
        signing = ("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2")
        openssl("x509", "-req", "-in", f"{role}.csr", *signing, "-out", f"{role}.pem")
