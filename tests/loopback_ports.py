"""Ports of loopback for programs that must be told theirs before they start."""

from __future__ import annotations

import socket
from pathlib import Path
from random import SystemRandom

_LOWEST, _HIGHEST = 20000, 32768


def free_ports(count: int) -> list[int]:
    """Return ports that nobody has, below those that the system deals out by itself.

    A port that the system has just dealt out can go to somebody else in the seconds that a program takes to
    start: to whichever connection or server of this machine asks for any.
    """
    dealt = Path("/proc/sys/net/ipv4/ip_local_port_range")
    highest = min(_HIGHEST, int(dealt.read_text().split()[0])) if dealt.exists() else _HIGHEST
    candidates = SystemRandom().sample(range(_LOWEST, highest), highest - _LOWEST)
    found: list[int] = []
    for port in candidates:
        with socket.socket() as tried:
            # As servers do, so that what is left of a closed connection keeps nobody out.
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"{len(found)} free ports from {_LOWEST} to {highest}, expected {count}")
