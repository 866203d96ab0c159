"""A SLURM of two nodes on this machine: munged, slurmctld and two slurmd of the system's packages, as root.

Everything lies in one folder and listens on free ports; each program runs in the foreground and is ended by
its process id. Nodes claim two cores each, whatever the machine has: what is tested is who gets which job.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.loopback_ports import free_ports

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo", "scontrol")
LIMIT_SECONDS = 120

_CONFIGURATION = """
ClusterName=denoizarr
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
AuthType=auth/munge
# A requeued job begins when the credential of its last run is too old to be taken: by default in two minutes.
AuthInfo=cred_expire=5,socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SchedulerTimeSlice=5
KillWait=5
MinJobAge=300
ReturnToService=2
{nodes}
PartitionName=test Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""


def problem() -> str | None:
    """Return why SLURM cannot be started here, if it cannot."""
    if missing := [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]:
        return f"SLURM's programs are not installed: {', '.join(missing)}"
    return None if os.geteuid() == 0 else "SLURM's daemons are started by root only"


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


def wait_until(
    true: Callable[[], object], what: str, seconds: float = LIMIT_SECONDS, *, pause: float = 0.1
) -> None:
    """Look again and again until something is so; fail where it is not in time."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not in {seconds:.0f} s: {what}"
        threading.Event().wait(pause)


@dataclass(frozen=True)
class Site:
    """A SLURM that runs, and the environment in which its programs find it."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        """Run a program and return what it prints."""
        done = subprocess.run(
            command, env=self.environment, check=False, capture_output=True, text=True, cwd=cwd, timeout=60
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def states(self) -> dict[str, str]:
        """Return the states of all jobs by number, also of those that ended a while ago."""
        lines = self.run("squeue", "--noheader", "--states=all", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def living(self, name: str = "") -> list[str]:
        """Return the numbers of the jobs that run, of that name where there is one."""
        named = (f"--name={name}",) if name else ()
        return self.run("squeue", "--noheader", "--states=running", "--format=%i", *named).split()

    def state(self, job: str) -> str:
        """Return the state of a job."""
        return self.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T", check=False)

    def wait_for(self, job: str, *states: str, seconds: float = LIMIT_SECONDS) -> str:
        """Wait until a job, or all of an array, is in one of these states; returns it."""
        wait_until(lambda: set(self.state(job).split()) <= set(states) != set(), f"{job}: {states}", seconds)
        return self.state(job).split()[0]

    def cancel_all(self) -> None:
        """Cancel every job, and wait for the last to end."""
        self.run("scancel", "--user=root")
        wait_until(lambda: not self.run("squeue", "--noheader"), "all jobs have ended")


def _configuration(folder: Path) -> str:
    host = socket.gethostname().split(".")[0]
    controller, *ports = free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=8000 "
        "Gres=gpu:1"
        for node, port in zip(NODES, ports, strict=True)
    )
    return _CONFIGURATION.format(host=host, controller_port=controller, folder=folder, nodes=nodes)


@contextmanager
def running_site(folder: Path) -> Iterator[Site]:
    """Start SLURM in an empty folder of ours, and end it."""
    folder.chmod(0o700)
    (folder / "state").mkdir()
    for node in NODES:
        (folder / f"spool-{node}").mkdir()
    (folder / "slurm.conf").write_text(_configuration(folder))
    # A device that is a GPU to SLURM and nobody else.
    (folder / "gres.conf").write_text("".join(f"NodeName={n} Name=gpu File=/dev/null\n" for n in NODES))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}
    site = Site(folder, environment)
    with ExitStack() as running:

        def start(name: str, *command: str) -> subprocess.Popen[bytes]:
            log = running.enter_context((folder / f"{name}.out").open("wb"))
            program = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            running.callback(_end, program)
            return program

        munged = [
            f"--{option}={folder}/munge.{option.split('-')[0]}"
            for option in ("socket", "key-file", "pid-file", "log-file", "seed-file")
        ]
        start("munged", "munged", "--foreground", "--force", *munged)
        wait_until((folder / "munge.socket").exists, "munged")
        start("slurmctld", "slurmctld", "-D", "-f", str(folder / "slurm.conf"))
        for node in NODES:
            start(node, "slurmd", "-D", "-N", node, "-f", str(folder / "slurm.conf"))

        def ready() -> bool:
            return site.run("sinfo", "--noheader", "--format=%T %D", check=False) == f"idle {len(NODES)}"

        wait_until(ready, "both nodes are idle")
        try:
            yield site
        finally:
            with suppress(AssertionError):
                site.cancel_all()


def _end(program: subprocess.Popen[bytes]) -> None:
    """End a daemon in its own way, and in ours where it does not."""
    program.send_signal(signal.SIGTERM)
    try:
        program.wait(10)
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()
