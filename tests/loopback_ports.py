"""Ports of loopback for programs that must be told theirs before they start."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from random import SystemRandom

_LOWEST, _HIGHEST = 20000, 32768


def free_ports(count: int) -> list[int]:
    """Return ports that nobody has, below those that the system deals out by itself where it leaves any.

    A port that the system has just dealt out can go to somebody else in the seconds that a program takes to
    start: to whichever connection or server of this machine asks for any.
    """
    dealt = Path("/proc/sys/net/ipv4/ip_local_port_range")
    highest = min(_HIGHEST, int(dealt.read_text().split()[0])) if dealt.exists() else _HIGHEST
    below = range(_LOWEST, max(highest, _LOWEST))
    found: dict[int, None] = {}
    with ExitStack() as held:
        for port in (*SystemRandom().sample(below, len(below)), *[0] * count):
            tried = held.enter_context(socket.socket())
            # As servers do, so that what is left of a closed connection keeps nobody out.
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            found[tried.getsockname()[1]] = None
            if len(found) == count:
                return list(found)
    raise RuntimeError(f"{len(found)} free ports from {_LOWEST} to {highest}, expected {count}")
