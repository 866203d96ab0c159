"""Install the pinned peers, each into an environment of its own.

    python benchmarks/install_peers.py [PEER ...] [--into DIR] [--fresh]

A peer is ``peers/NAME.txt``, installed with what it depends on, then ``peers/NAME-no-deps.txt``, installed
without. Packages come from wherever pip is set up to take them.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent


def install(peer: str, into: Path, *, fresh: bool) -> None:
    environment = into / peer
    if fresh and environment.exists():
        shutil.rmtree(environment)
    if not environment.exists():
        venv.create(environment, with_pip=True, symlinks=True)
    python = str(environment / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(HERE / "peers" / f"{peer}.txt")], check=True)
    bare = HERE / "peers" / f"{peer}-no-deps.txt"
    if bare.exists():
        subprocess.run([*pip, "--no-deps", "-r", str(bare)], check=True)
    loader = HERE / "peers" / f"load_{peer}.py"
    if loader.exists():
        subprocess.run([python, str(loader)], check=True)
    print(f"{peer}: {environment}")


def main() -> None:
    known = sorted(p.stem for p in (HERE / "peers").glob("*.txt") if not p.stem.endswith("-no-deps"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(known)}; all without")
    parser.add_argument("--into", type=Path, default=HERE / ".peers")
    parser.add_argument("--fresh", action="store_true", help="delete what is installed there first")
    arguments = parser.parse_args()
    unknown = set(arguments.peers) - set(known)
    if unknown:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    arguments.into.mkdir(parents=True, exist_ok=True)
    for peer in arguments.peers or known:
        install(peer, arguments.into.absolute(), fresh=arguments.fresh)


if __name__ == "__main__":
    sys.exit(main())
