"""Filter maps from Zarr against only reading and decoding the array, and how often each chunk is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import Group, Row, Side

OPTIONS = {"shape": [79, 1024, 1024], "patch": 64}

FILTERS = {"mean_std": "MeanStdPatchFilter", "shannon": "ShannonPatchFilter", "max": "MaxPatchFilter"}
GOALS = {"mean_std": 1.25, "shannon": 2.5, "max": 4.0}
_BOX_BYTES = 8 * 2**20
# Name: chunks and shards, (z, y, x).
LAYOUTS = {
    "planes": ((1, 512, 512), None),
    "planes in shards": ((1, 512, 512), (16, 1024, 1024)),
    "cubes": ((64, 64, 64), None),
}


def prepare(options: dict[str, Any], folder: Path) -> None:
    import microscope
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    missing = [name for name in LAYOUTS if not _store(folder, name, options).exists()]
    if not missing:
        return
    image = microscope.light_sheet(tuple(options["shape"]))
    for name in missing:
        chunks, shards = LAYOUTS[name]
        path = _store(folder, name, options)
        begun = path.with_suffix(".begun")
        array = zarr.create_array(
            str(begun),
            shape=image.shape,
            chunks=chunks,
            shards=shards,
            dtype="uint16",
            compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"), Crc32cCodec()],
            dimension_names=("z", "y", "x"),
            overwrite=True,
        )
        array[:] = image
        begun.rename(path)


def _store(folder: Path, layout: str, options: dict[str, Any]) -> Path:
    return folder / f"{layout.replace(' ', '-')}-{'x'.join(map(str, options['shape']))}.zarr"


def groups(options: dict[str, Any], folder: Path) -> list[Group]:
    return [_group(layout, options, folder) for layout in LAYOUTS]


def _group(layout: str, options: dict[str, Any], folder: Path) -> Group:
    settings = {"url": str(_store(folder, layout, options)), "patch": options["patch"]}
    sides = [
        Side("plain zarr", "read", settings | {"plain": True}),
        Side("read", "read", settings | {"plain": False}),
    ]
    rows = [
        Row("our reader: times the time of plain zarr", "read", "plain zarr"),
        Row("our reader: chunk reads per chunk", "read", quantity="chunk_reads", goal=("<=", 1.1)),
    ]
    for name, chosen in FILTERS.items():
        sides.append(Side(name, "filter_map", settings | {"filter": chosen}))
        rows.append(Row(f"{name}: times the time of reading", name, "read", goal=("<=", GOALS[name])))
        rows.append(Row(f"{name}: chunk reads per chunk", name, quantity="chunk_reads", goal=("<=", 1.1)))
    sides.append(Side("survey", "one_survey", settings))
    rows.append(Row("all three and the statistics: times the time of reading", "survey", "read"))
    rows.append(
        Row(
            "all three and the statistics: chunk reads per chunk",
            "survey",
            quantity="chunk_reads",
            goal=("<=", 1.1),
        )
    )
    return Group(layout, sides, rows)


class ChunkReads:
    """Counts the chunks that are fetched from object stores in this process, also out of shards."""

    def __init__(self, url: str) -> None:
        import zarr
        from zarr.storage import ObjectStore

        array = zarr.open_array(url, mode="r")
        self.n_chunks = int(np.prod([-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)]))
        inner = int(np.prod(array.shards or array.chunks) / np.prod(array.chunks))
        self.counts: Counter[str] = Counter()
        fetch = ObjectStore.get

        async def counted(store: Any, key: str, prototype: Any, byte_range: Any = None) -> Any:
            found = await fetch(store, key, prototype, byte_range)
            # A suffix of a shard is its index, which is no chunk.
            if "/c/" in f"/{key}" and type(byte_range).__name__ != "SuffixByteRequest":
                whole = byte_range is None and array.shards is not None
                self.counts[f"{key} {byte_range}"] += inner if whole else 1
            return found

        ObjectStore.get = counted  # type: ignore[method-assign]

    def per_chunk(self) -> float:
        """Return the reads since the last call, per chunk of the array."""
        total = sum(self.counts.values())
        self.counts.clear()
        return total / self.n_chunks


def read(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import zarr

    import denoizarr
    from denoizarr.geometry.boxes import Box
    from denoizarr.stores.images import reader_of

    image = denoizarr.open_image(settings["url"], axes="zyx")
    array, reader = zarr.open_array(settings["url"], mode="r"), reader_of(image)
    step = _reading_step(array.shape, array.chunks, array.dtype.itemsize)
    reads = ChunkReads(settings["url"])

    def work() -> dict[str, Any]:
        for index in np.ndindex(*(-(-n // s) for n, s in zip(image.shape, step, strict=True))):
            start = tuple(i * s for i, s in zip(index, step, strict=True))
            box = Box(start, tuple(min(a + s, n) for a, s, n in zip(start, step, image.shape, strict=True)))
            if settings["plain"]:
                array[box.slices]
            else:
                reader.read(box)
        return {"units": image.size, "chunk_reads": reads.per_chunk()}

    return work


def _reading_step(shape: tuple[int, ...], chunks: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return boxes of whole chunks, as wide as the image, of about 8 MiB: none reads faster."""
    depth, rows, width = chunks[0], chunks[1], shape[2]
    fits = max(_BOX_BYTES // (itemsize * depth * rows * width), 1)
    whole = -(-shape[1] // rows)
    if fits < whole:
        return depth, rows * fits, width
    return depth * max(fits // whole, 1), shape[1], width


def filter_map(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import denoizarr

    chosen, reads = getattr(denoizarr, settings["filter"]), ChunkReads(settings["url"])
    image = denoizarr.open_image(settings["url"], axes="zyx")

    def work() -> dict[str, Any]:
        chosen.filter_map(image, settings["patch"]).compute(scheduler="synchronous")
        return {"units": image.size, "chunk_reads": reads.per_chunk()}

    return work


def one_survey(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import denoizarr

    # What `denoizarr run` and `denoizarr index` read an image with.
    from denoizarr.selection.survey import survey

    image = denoizarr.open_image(settings["url"], axes="zyx")
    reads = ChunkReads(settings["url"])

    def work() -> dict[str, Any]:
        survey(image, patch_size=settings["patch"], names=tuple(FILTERS), progress=False)
        return {"units": image.size, "chunk_reads": reads.per_chunk()}

    return work
