"""Memory that a step frees stays with the process while it trains, and goes back afterwards."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from denoizarr.engine import freed_memory
from denoizarr.engine.freed_memory import freed_memory_kept

# In a process of its own, whose malloc has no history. Prints page faults per allocation of 8 MiB (2,048
# pages) inside and outside the block, and what the process holds after it.
PROGRAM = """
import resource
import numpy as np
from denoizarr.engine.freed_memory import freed_memory_kept

def faults():
    # All but one are freed while something above them lives, as the activations of a network are.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        arrays = [np.ones(2**20) for _ in range(8)]
        del arrays
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 160

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

with freed_memory_kept():
    faults()
    inside, before = faults(), held()
print(inside, faults(), held() < before - 8_000)
"""


@pytest.mark.skipif(freed_memory._glibc() is None, reason="malloc is not glibc's here")
def test_pages_are_not_faulted_in_again_and_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    inside, outside, given_back = done.stdout.split()
    assert float(inside) < 50
    assert float(outside) > 10 * float(inside)
    assert given_back == "True"


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(_: Any) -> Any:
        raise OSError

    monkeypatch.setattr(freed_memory.ctypes, "CDLL", without)
    with freed_memory_kept():
        pass
