"""The house: who may import whom, how long a module may be, and what starting costs."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import denoizarr.errors

HOUSE = Path(denoizarr.errors.__file__).parent
# Rows of the design: a module imports from lower rows or its own package, never upward or sideways.
ROWS = {
    "errors": 0,
    "geometry": 1,
    "kernels": 1,
    "figures": 1,
    "stores": 2,
    "engine": 3,
    "images": 4,
    "selection": 5,
    "training": 6,
    "inference": 7,
    "diffusion": 7,
    "report": 8,
    "pipeline": 9,
    "cli": 10,
}
# What the two pure packages may import; torch only in the modules of networks and blind spots.
PURE = {"numpy", "scipy", "numba", "skimage", *sys.stdlib_module_names}
NETWORKS = {
    "unet.py",
    "blindspot.py",
    "blind_spot_centres.py",
    "blind_spot_fill.py",
    "blind_spot_layout.py",
    "centre_weights.py",
    "hashed_draws.py",
    "separate_centres.py",
    "symmetries.py",
}
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc"}


def imports_of(path: Path, house: Path) -> set[str]:
    """Dotted names that a module imports anywhere in it, relative ones resolved; type-checking blocks too."""
    package = ["denoizarr", *path.relative_to(house).parent.parts]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{stem}.{alias.name}" for alias in node.names} | {stem}
    return found


def problems_of(house: Path) -> list[str]:
    """Everything in a source tree that breaks a rule of the house."""
    problems: list[str] = []
    modules = {p for p in house.rglob("*.py") if "__pycache__" not in p.parts}
    for path in sorted(modules):
        name = str(path.relative_to(house))
        inside = path.relative_to(house).parts[0].removesuffix(".py")
        n_lines = len(path.read_text(encoding="utf-8").splitlines())
        if n_lines > 500:
            problems.append(f"{name}: {n_lines} lines, at most 500")
        if {part.removesuffix(".py") for part in path.relative_to(house).parts} & FORBIDDEN_NAMES:
            problems.append(f"{name}: a name that says nothing")
        if inside == "__init__":
            continue  # the front door names everything, lazily: its own test is below
        if inside not in ROWS:
            problems.append(f"{name}: no row in the design")
            continue
        for target in imports_of(path, house):
            root, _, rest = target.partition(".")
            if root == "denoizarr":
                other = rest.partition(".")[0]
                if other and other in ROWS and other != inside and ROWS[other] >= ROWS[inside]:
                    problems.append(f"{name}: imports {other}, which is not below {inside}")
            elif inside in ("kernels", "geometry") and root and root not in PURE:
                if not (root == "torch" and path.name in NETWORKS):
                    problems.append(f"{name}: imports {root}, and {inside} is pure")
            elif inside == "selection" and root == "torch":
                problems.append(f"{name}: selection knows nothing of torch")
            elif inside == "training" and root in ("dask", "distributed"):
                problems.append(f"{name}: training reaches dask only through engine")
    return list(dict.fromkeys(problems)) + _cycles(house, modules)


def _cycles(house: Path, modules: set[Path]) -> list[str]:
    """Cycles among modules, by imports at the top of a module or anywhere in it."""
    names = {
        ".".join(["denoizarr", *p.relative_to(house).with_suffix("").parts]).removesuffix(".__init__"): p
        for p in modules
    }
    front = {"denoizarr"}
    graph = {
        n: {t for t in imports_of(p, house) if t in names and t != n} - front
        for n, p in names.items()
        if n not in front
    }
    # ``from . import module`` names the package as well: its empty __init__ closes no cycle.
    done: set[str] = set()
    problems: list[str] = []

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            problems.append("cycle: " + " -> ".join([*way[way.index(name) :], name]))
            return
        if name in done:
            return
        for target in sorted(graph.get(name, ())):
            visit(target, [*way, name])
        done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return problems


def test_the_house_is_in_order() -> None:
    assert problems_of(HOUSE) == []


@pytest.mark.parametrize(
    ("name", "source", "says"),
    [
        ("geometry/bad.py", "from denoizarr.stores import locations", "not below geometry"),
        ("geometry/bad.py", "from denoizarr.kernels.pooling import mean_pool", "not below geometry"),
        ("stores/bad.py", "def f():\n    from denoizarr.engine.runner import Step", "not below stores"),
        ("stores/bad.py", "from ..engine import runner", "not below stores"),
        ("stores/bad.py", "from denoizarr import pipeline", "not below stores"),
        ("errors.py", "import denoizarr.geometry.boxes", "not below errors"),
        ("inference/bad.py", "import denoizarr.diffusion.patch2self", "not below inference"),
        ("kernels/bad.py", "import zarr", "pure"),
        ("kernels/bad.py", "import torch.nn", "pure"),
        ("selection/bad.py", "import torch", "nothing of torch"),
        ("training/bad.py", "from dask import array", "through engine"),
        ("stores/utils.py", "", "says nothing"),
        ("kernels/bad.py", "x = 1\n" * 501, "501 lines"),
        ("novel/bad.py", "", "no row"),
        ("stores/a.py", "from .b import x", "cycle"),
        ("stores/a.py", "from . import b", "cycle"),
    ],
)
def test_the_checker_finds_a_bad_module(tmp_path: Path, name: str, source: str, says: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "stores").mkdir(exist_ok=True)
    (tmp_path / "stores" / "b.py").write_text("def f():\n    from denoizarr.stores.a import y\n")
    assert problems_of(tmp_path) == []
    path.write_text(source)
    found = problems_of(tmp_path)
    assert len(found) == 1
    assert says in found[0]


def test_the_checker_lets_good_modules_pass(tmp_path: Path) -> None:
    for name, source in {
        "kernels/unet.py": "import torch",
        "stores/a.py": "import zarr\nfrom denoizarr.geometry.boxes import Box",
        "pipeline/run.py": "from denoizarr.stores import a\nfrom denoizarr.report.page import write_report",
        "cli/jobs.py": "import denoizarr",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    assert problems_of(tmp_path) == []


def _seconds(statement: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - started


def test_the_front_door_is_light() -> None:
    program = (
        "import sys, denoizarr\n"
        "heavy = {'torch', 'distributed', 'dask', 'zarr', 'xarray', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Against a bare interpreter, best of three each: what is left is our own.
    bare = min(_seconds("pass") for _ in range(3))
    assert min(_seconds("import denoizarr") for _ in range(3)) - bare < 0.3


def test_opening_an_image_loads_neither_torch_nor_distributed() -> None:
    program = (
        "import sys, denoizarr.stores.images, denoizarr.images.save\n"
        "assert not {'torch', 'distributed'} & set(sys.modules), 'heavy'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
