"""Dask workers in processes of their own, forked from this one so that torch is imported once.

    python forked_workers.py SCHEDULER HOST [FAILPOINT ...]

HOST is the address at which they listen. A line on standard input says how many there are to be; one that
dies is replaced. The first ones die at the failpoints given, one each. At the end of the input all are
killed, and how many had died is printed.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import threading

import torch._dynamo  # noqa: F401 - the network would import it in every process
from distributed import Worker

from denoizarr.engine import failpoints
from denoizarr.inference import predict  # noqa: F401 - and all that a block needs


async def work(scheduler: str, host: str) -> None:
    async with Worker(scheduler, nthreads=1, host=host, memory_limit=0) as worker:
        await worker.finished()


def fork(scheduler: str, host: str, fail_at: str | None) -> int:
    assert threading.active_count() == 1, "what is forked has no other thread"
    process = os.fork()
    if process == 0:
        try:
            failpoints.arm(fail_at)
            asyncio.run(work(scheduler, host))
        finally:
            os._exit(0)
    return process


def main() -> None:
    scheduler, host, *points = sys.argv[1:]
    wanted, died, living = 0, 0, set[int]()
    while True:
        while len(living) < wanted:
            living.add(fork(scheduler, host, points.pop(0) if points else None))
        # A process that died shows at the next look.
        if select.select([sys.stdin], [], [], 0.02)[0]:
            line = sys.stdin.readline()
            if not line:
                break
            wanted = int(line)
        while ended := os.waitpid(-1, os.WNOHANG)[0] if living else 0:
            living.remove(ended)
            died += 1
    for process in living:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    print(died)  # noqa: T201


main()
