"""Filter maps in memory against CAREamics' own: speed, and equality inside the image."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import HERE, Group, Row, Side

OPTIONS = {"shape": [79, 1024, 1024], "patch": 64, "peer_planes": 2}

IMAGES = {"light-sheet-like": "light_sheet", "full-range 16-bit noise": "full_range"}
GOALS = {
    "light-sheet-like": {"mean_std": 100, "shannon": 40, "max": 15},
    "full-range 16-bit noise": {"mean_std": 100, "shannon": 20, "max": 15},
}
FILTERS = {
    "mean_std": "MeanStdPatchFilter",
    "shannon": "ShannonPatchFilter",
    "max": "MaxPatchFilter",
    "mask": "MaskPatchFilter",
}
# Shapes that are multiples of the patch, that are not, and one short of a multiple, where CAREamics has one
# region more; (image, patch).
EQUAL = (
    ((256, 320), (32, 32)),
    ((201, 333), (32, 32)),
    ((190, 255), (16, 32)),
    ((127, 257), (32, 17)),
    ((40, 70, 66), (8, 16, 16)),
    ((33, 63, 65), (7, 16, 15)),
)


def prepare(options: dict[str, Any], folder: Path) -> None:
    import microscope

    for title, maker in IMAGES.items():
        path = _image(folder, title, options)
        if not path.exists():
            np.save(path, getattr(microscope, maker)(tuple(options["shape"])))


def _image(folder: Path, title: str, options: dict[str, Any]) -> Path:
    return folder / f"{IMAGES[title]}-{'x'.join(map(str, options['shape']))}.npy"


def groups(options: dict[str, Any], folder: Path) -> list[Group]:
    found = [
        _speed(title, name, options, folder) for title in IMAGES for name in ("mean_std", "shannon", "max")
    ]
    return [*found, *(_equality(dims, folder) for dims in ("2D", "3D"))]


def _speed(title: str, name: str, options: dict[str, Any], folder: Path) -> Group:
    settings = {
        "image": str(_image(folder, title, options)),
        "filter": FILTERS[name],
        "patch": options["patch"],
    }
    theirs = settings | {"planes": options["peer_planes"]}
    return Group(
        f"{name}, {title}",
        [
            Side("ours", "ours", settings),
            Side("CAREamics", "careamics", theirs, peer="careamics", min_seconds=0.1),
        ],
        [Row("times CAREamics' speed", "ours", "CAREamics", goal=(">=", GOALS[title][name]), faster=True)],
    )


def _equality(dims: str, folder: Path) -> Group:
    settings = {"folder": str(folder), "cases": [c for c in EQUAL if len(c[0]) == int(dims[0])]}
    alone = {"warm_up": False, "min_seconds": 0}
    sides = [Side("CAREamics", "careamics_maps", settings, peer="careamics", **alone)]
    rows = []
    for name in FILTERS:
        sides.append(Side(name, "compare_maps", settings | {"filter": name}, **alone))
        rows += [
            Row(f"{name}: interior cells that differ", name, quantity="interior differ", goal=("<=", 0)),
            Row(f"{name}: interior cells compared", name, quantity="interior"),
            Row(f"{name}: border cells that differ", name, quantity="border differ"),
            Row(f"{name}: border cells compared", name, quantity="border"),
        ]
    return Group(f"equality in {dims}", sides, rows)


def ours(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import denoizarr

    image = np.load(settings["image"])
    chosen = getattr(denoizarr, settings["filter"])

    def work() -> dict[str, Any]:
        chosen.filter_map(image, settings["patch"]).compute(scheduler="synchronous")
        return {"units": image.size}

    return work


def careamics(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    image = np.load(settings["image"], mmap_mode="r")
    # Planes from the whole depth; its rate does not depend on how many there are.
    planes = [
        np.array(image[z]) for z in np.linspace(0, len(image) - 1, settings["planes"]).round().astype(int)
    ]
    chosen = getattr(_careamics(), settings["filter"])
    patch = (settings["patch"],) * 2

    def work() -> dict[str, Any]:
        for plane in planes:
            chosen.filter_map(plane, patch)
        return {"units": sum(plane.size for plane in planes)}

    return work


def _careamics() -> Any:
    sys.path.insert(1, str(HERE / "peers"))
    from load_careamics import patch_filters

    return patch_filters()


def _cases(settings: dict[str, Any]) -> Iterator[tuple[str, np.ndarray[Any, Any], tuple[int, ...]]]:
    """Yield integer images of several kinds; the same in both environments, whatever their numpy."""
    for number, (shape, patch) in enumerate(settings["cases"]):
        position = np.arange(np.prod(shape), dtype=np.uint64).reshape(shape)
        noise = (position * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(48)
        bright = np.indices(shape).sum(axis=0) // 40 % 2 == 0
        yield f"{number}-full", noise.astype(np.uint16), tuple(patch)
        yield f"{number}-camera", (90 + noise % 37 + bright * (noise % 3000)).astype(np.uint16), tuple(patch)
        yield f"{number}-mask", ((noise % 5 == 0) & bright).astype(np.uint8), tuple(patch)


def _wanted(case: str) -> list[str]:
    return ["mask"] if case.endswith("mask") else ["mean_std", "shannon", "max"]


def careamics_maps(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    filters = _careamics()
    from careamics.dataset.patch_filter.filtermap_utils import create_filter_map

    def work() -> dict[str, Any]:
        maps = {}
        for case, image, patch in _cases(settings):
            for name in _wanted(case):
                found = getattr(filters, FILTERS[name]).filter_map(image, patch)
                maps[f"{case} {name}"] = _cells(found, patch)
            if "mean_std" in _wanted(case):
                # Its regions and its map, with statistics in float64: its own are rounded to float32.
                exact = [
                    create_filter_map(image, lambda r, f=f: float(f(r.astype(np.float64))), patch)
                    for f in (np.mean, np.std)
                ]
                maps[f"{case} exact"] = _cells(np.stack(exact), patch)
        np.savez(Path(settings["folder"]) / _name(settings), **maps)
        return {"units": 1}

    return work


def _name(settings: dict[str, Any]) -> str:
    return f"careamics-{len(settings['cases'][0][0])}d.npz"


def _cells(found: np.ndarray[Any, Any], patch: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return one value per cell of a map that has one per voxel."""
    return found[(..., *(slice(None, None, p) for p in patch))]


def compare_maps(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import denoizarr

    name = settings["filter"]
    chosen = getattr(denoizarr, FILTERS[name])

    def work() -> dict[str, Any]:
        theirs = np.load(Path(settings["folder"]) / _name(settings))
        found = dict.fromkeys(("interior", "interior differ", "border", "border differ"), 0)
        for case, image, patch in _cases(settings):
            if name not in _wanted(case):
                continue
            own = np.asarray(chosen.filter_map(image, patch).compute(scheduler="synchronous"))
            other = theirs[f"{case} {name}"]
            if own.shape != other.shape:
                raise SystemExit(f"{case} {name}: {own.shape} cells, CAREamics has {other.shape}")
            differ = ~_equal(name, own, other, theirs.get(f"{case} exact"))
            inside = np.broadcast_to(_interior(own.shape[-image.ndim :], image.shape, patch), own.shape)
            for part, shown in (("interior", inside), ("border", ~inside)):
                found[part] += int(shown.sum())
                found[f"{part} differ"] += int((differ & shown).sum())
        return {"units": 1, **found}

    return work


def _equal(
    name: str, own: np.ndarray[Any, Any], other: np.ndarray[Any, Any], exact: np.ndarray[Any, Any] | None
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Tell which cells agree as closely as CAREamics' own arithmetic allows."""
    if name == "mean_std":
        # To float32's rounding with its own functions, to 1e-12 with float64 statistics in its regions.
        assert exact is not None, "no exact statistics"
        return np.isclose(own, other, rtol=1e-6, atol=0) & np.isclose(own, exact, rtol=1e-12, atol=0)
    return np.isclose(own, other, rtol=0, atol=1e-10) if name == "shannon" else own == other


def _interior(
    counts: tuple[int, ...], shape: tuple[int, ...], patch: tuple[int, ...]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return the cells all of whose regions (two patches from a multiple of the patch) lie in the image."""
    along = [(np.arange(count) + 2) * p <= n for count, n, p in zip(counts, shape, patch, strict=True)]
    inside = np.ones(counts, bool)
    for axis, good in enumerate(along):
        inside &= good.reshape([-1 if a == axis else 1 for a in range(len(counts))])
    return inside
