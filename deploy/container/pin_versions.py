"""Print the exact versions that an image gets: what is installed here of all that denoizarr needs.

Run it in an environment whose tests passed, and keep what it prints::

    python deploy/container/pin_versions.py > deploy/container/constraints.txt
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# The package with what reads NIfTI, the dashboard's drawing library, and what builds the wheel.
WANTED = ("denoizarr[nifti]", "bokeh", "hatchling")
# What comes with a CUDA build of torch, which pins it exactly: not there beside a build for CPUs.
WITH_CUDA = re.compile(r"nvidia-|cuda-|triton$")
HEADER = """\
# Exact versions of everything in the images, from an environment whose tests passed.
# torch pins its own CUDA packages exactly. Written by deploy/container/pin_versions.py."""


def closure(wanted: tuple[str, ...]) -> dict[str, str]:
    """Return the version of every package that ``wanted`` needs on this machine, by canonical name.

    Parameters
    ----------
    wanted : tuple of str
        Requirements, with extras where they are wanted.

    Raises
    ------
    PackageNotFoundError
        One of them is not installed.
    """
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = [Requirement(one) for one in wanted]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if WITH_CUDA.match(name):
            continue
        found[name] = version(name).partition("+")[0]
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in requires(name) or ():
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    queue.append(needed)
    found.pop("denoizarr", None)
    return found


def main() -> int:
    """Print the constraints, or say which package is missing."""
    try:
        found = closure(WANTED)
    except PackageNotFoundError as error:
        sys.stderr.write(f"pin_versions: {error.name} is not installed here; pip install {error.name}\n")
        return 1
    lines = [HEADER, *(f"{name}=={found[name]}" for name in sorted(found))]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
