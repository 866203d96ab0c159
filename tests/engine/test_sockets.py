"""Who can reach a job that runs on this machine: nobody from elsewhere."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import psutil
import pytest

from denoizarr.engine.cluster import ClusterSettings, open_client
from tests.dask_processes import wait_until

LISTENS = "0A"

pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="there is no /proc/net/tcp here")


def listening(process: int) -> set[tuple[IPv4Address | IPv6Address, int]]:
    """Return address and port of every socket at which a process and all that came of it listen."""
    tree = [psutil.Process(process), *psutil.Process(process).children(recursive=True)]
    sockets = set()
    for each in tree:
        with suppress(OSError):  # a process that has ended meanwhile
            for link in Path(f"/proc/{each.pid}/fd").iterdir():
                with suppress(OSError):  # a file that was closed meanwhile, as the one of this loop is
                    sockets |= set(re.findall(r"^socket:\[(\d+)\]$", str(link.readlink())))
    found = set()
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net") / table
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] == LISTENS and fields[9] in sockets:
                host, _, port = fields[1].partition(":")
                # Words of four bytes, each in the machine's own order.
                words = [bytes.fromhex(host[i : i + 8])[::-1] for i in range(0, len(host), 8)]
                found.add((ip_address(b"".join(words)), int(port, 16)))
    return found


def from_elsewhere(process: int) -> set[tuple[IPv4Address | IPv6Address, int]]:
    return {(host, port) for host, port in listening(process) if not host.is_loopback}


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104
def test_the_checker_sees_a_socket_that_others_can_reach(host: str) -> None:
    mine = os.getpid()
    before = from_elsewhere(mine)
    program = (
        "import socket, sys\n"
        "s = socket.create_server((sys.argv[1], 0), family=int(sys.argv[2]))\n"
        "print(s.getsockname()[1], flush=True); sys.stdin.read()\n"
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if family == socket.AF_INET6 and not socket.has_ipv6:
        pytest.skip("there is no IPv6 here")
    with subprocess.Popen(
        [sys.executable, "-c", program, host, str(int(family))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        line = other.stdout.readline()
        assert line, "it listens"
        assert from_elsewhere(mine) - before == {(ip_address(host), int(line))}, "in a child, too"
        other.communicate("")
    with socket.create_server(("127.0.0.1", 0)) as own:
        assert (ip_address("127.0.0.1"), own.getsockname()[1]) in listening(mine)
        assert from_elsewhere(mine) == before


def test_a_local_cluster_listens_on_loopback_only() -> None:
    mine = os.getpid()
    before = listening(mine)
    with open_client(ClusterSettings(workers=2, memory_limit_bytes=2**30)) as client:
        assert client.submit(sum, [1, 2], pure=False).result() == 3
        found = listening(mine) - before
        # Scheduler, its dashboard, and of each worker the nanny and itself.
        assert len(found) >= 6
        assert {str(host) for host, _ in found} == {"127.0.0.1"}


def test_a_whole_job_from_the_command_line_listens_on_loopback_only(tmp_path: Path) -> None:
    from tests.end_to_end.jobs import command, environment, scan_noise, write_job

    stage = {"features": 4, "num_epochs": 1, "patches_per_epoch": 32, "patch_size": 32}
    job = write_job(tmp_path, scan_noise((2, 128, 128)), run_stage2=False, stage1=stage)
    log = tmp_path / "run.log"
    found: set[tuple[IPv4Address | IPv6Address, int]] = set()
    with (
        log.open("w") as out,
        subprocess.Popen(command("run", str(job)), stdout=out, stderr=out, env=environment()) as run,
    ):

        def ended() -> bool:
            if run.poll() is None:
                try:
                    found.update(listening(run.pid))
                except psutil.NoSuchProcess:
                    return False
            return run.poll() is not None

        wait_until(ended, "the job has ended", 300)
    assert run.returncode == 0, log.read_text()
    assert len(found) >= 4, "it was looked at while its cluster ran"
    assert all(host.is_loopback for host, _ in found)
