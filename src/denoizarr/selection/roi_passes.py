"""The passes over the coarse level: extremes, equalisation, scores, exact quantiles, window means.

Each is a step of blocks that can be resumed. Only the first of all, in :mod:`.roi_level`, reads the image.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from denoizarr.engine.runner import Record
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import Grid
from denoizarr.kernels import equalize as kernel
from denoizarr.kernels.box_means import window_means
from denoizarr.kernels.statistics import (
    Moments,
    locate_quantile,
    locate_rank,
    moments_of,
    refined_histogram,
    refined_value,
)

from .roi_criteria import Criterion, Expression
from .roi_level import BLOCK_SIDE, Level
from .roi_window_axes import WindowAxis

Extremes = NDArray[np.float64]
Grey = NDArray[np.uint16]
Runner = Callable[
    [str, Callable[[Any, int], Record], Any, int, Callable[[list[Record]], Record] | None], list[Any]
]


@dataclass(frozen=True, slots=True)
class Prepared:
    """The level as windows see it: equalised, or scored.

    Attributes
    ----------
    level : Level
    equalize : {"global", "adaptive", "none"}
        Not looked at where there is an expression.
    expression : Expression or None
    low, high : float
        Extremes of the level over the whole image, in intensity units.
    quantiles : tuple
        Those that the expression's criteria need: ((criterion, fraction), value).
    """

    level: Level
    equalize: str
    expression: Expression | None
    low: float
    high: float
    quantiles: tuple[tuple[tuple[Criterion, float], float], ...] = ()

    def read(self, box: Box) -> NDArray[np.float64]:
        """Return the equalised or scored level in a box of coarse pixels."""
        if self.expression is not None:
            known = dict(self.quantiles)
            expression = self.expression
            return self.scored(box, expression.reach(), lambda part: expression.values(part, known))
        values = self.level.read(box)
        if self.equalize == "global":
            counts = np.asarray(self.level.array("counts")[:])
            return kernel.Equalisation.of_counts(counts, self.low, self.high).apply(values)
        scaled = self.scaled(values)
        if self.equalize == "none":
            return np.asarray(scaled)
        extremes = self.level.leading_part("brightness", box)
        for index, grey in self.adapted(scaled, box):
            darkest, brightest = extremes[index]
            levels = grey.astype(np.float64)
            # A plane that came out as one level is left as scikit-image leaves it: clipped to 0..1.
            scaled[index] = (
                (levels - darkest) / (brightest - darkest) if brightest > darkest else np.clip(levels, 0, 1)
            )
        return np.asarray(scaled)

    def scaled(self, values: Any) -> Any:
        """Return intensities scaled to 0..1 by the extremes of the level."""
        return (values - self.low) / (self.high - self.low)

    def scored(
        self, box: Box, reach: int, score: Callable[[NDArray[np.float64]], NDArray[Any]]
    ) -> NDArray[np.float64]:
        """Return ``score`` of every plane of a box; it sees ``reach`` pixels more on every side."""
        lead = len(self.level.leading)
        wide = box.grow((0,) * lead + (reach,) * self.level.n_axes).clip(self.level.coarse_shape)
        values = self.scaled(self.level.read(wide))
        inner = box.relative_to(wide.start).slices[lead:]
        found = np.empty(box.shape)
        for index in self.level.planes_of(box):
            found[index] = score(values[index])[inner]
        return found

    def grey(self, scaled: NDArray[np.float64], box: Box) -> Iterator[tuple[tuple[int, ...], Grey]]:
        """Yield the 14-bit grey levels of every plane of a box, and its index in the box."""
        extremes = self.scaled(self.level.leading_part("planes", box))
        for index in self.level.planes_of(box):
            low, high = extremes[index]
            yield index, kernel.grey_levels(scaled[index], float(low), float(high))

    def adapted(self, scaled: NDArray[np.float64], box: Box) -> Iterator[tuple[tuple[int, ...], Grey]]:
        """Yield the equalised grey levels of every plane of a box, and its index in the box."""
        lead = len(self.level.leading)
        maps = self.level.leading_part("maps", box)
        for index, grey in self.grey(scaled, box):
            yield (
                index,
                kernel.apply_tile_maps(grey, maps[index], box.start[lead:], self.level.coarse_shape[lead:]),
            )


# Global equalisation.


def count_block(prepared: Prepared, block: int) -> Record:
    """Count the values of one block of the level in 65,536 bins between its extremes."""
    values = prepared.level.read(prepared.level.blocks().box(block))
    return {"counts": pack(kernel.counts_between(values, prepared.low, prepared.high))}


def add_counts(results: list[Record]) -> Record:
    """Merge within a batch."""
    return {"counts": pack(total_of(results))}


def total_of(results: Iterable[Record]) -> NDArray[np.int64]:
    """Return the sum of the counts of some blocks or batches."""
    total = np.zeros(kernel.N_BINS, np.int64)
    for result in results:
        total += unpack(result["counts"])
    return total


# Adaptive equalisation.


def tile_block(prepared: Prepared, block: int) -> Record:
    """Count the grey levels of one block, tile by tile, for each plane."""
    level = prepared.level
    box, lead = level.blocks().box(block), len(level.leading)
    scaled = prepared.scaled(level.read(box))
    found = []
    for index, grey in prepared.grey(scaled, box):
        plane = [a + i for a, i in zip(box.start[:lead], index, strict=True)]
        first, counts = kernel.tile_counts(grey, box.start[lead:], level.coarse_shape[lead:])
        found.append({"plane": plane, "first": first, "shape": counts.shape, "counts": pack(counts)})
    return {"tiles": found}


def store_maps(level: Level, results: Iterable[Record]) -> None:
    """Add up the tiles' counts plane by plane, in the order of the blocks, and store the tiles' maps."""
    shape = level.coarse_shape[len(level.leading) :]
    maps = level.array("maps")
    current: tuple[int, ...] | None = None
    total = np.zeros((*kernel.tile_counts_shape(shape), kernel.TILE_BINS), np.int64)
    for part in (part for result in results for part in result["tiles"]):
        if current is not None and current != tuple(part["plane"]):
            maps[current] = kernel.tile_maps(total, shape)
            total[:] = 0
        current = tuple(part["plane"])
        extent = tuple(part["shape"])
        place = tuple(slice(a, a + n) for a, n in zip(part["first"], extent[:-1], strict=True))
        total[place] += unpack(part["counts"]).reshape(extent)
    if current is not None:
        maps[current] = kernel.tile_maps(total, shape)


def brightness_block(prepared: Prepared, block: int) -> Record:
    """Return the extremes of the equalised grey levels of each plane in one block."""
    box = prepared.level.blocks().box(block)
    scaled = prepared.scaled(prepared.level.read(box))
    return {"planes": [[float(g.min()), float(g.max())] for _, g in prepared.adapted(scaled, box)]}


def plane_extremes(level: Level, grid: Grid, results: Sequence[Record]) -> Extremes:
    """Return (darkest, brightest) of every plane, leading dims first, from the "planes" of all blocks."""
    lead = len(level.leading)
    found = np.empty((*level.leading, 2))
    found[..., 0], found[..., 1] = np.inf, -np.inf
    for number, result in enumerate(results):
        box = grid.box(number)
        part = found[box.slices[:lead]]
        new = np.asarray(result["planes"]).reshape((*box.shape[:lead], 2))
        part[..., 0] = np.minimum(part[..., 0], new[..., 0])
        part[..., 1] = np.maximum(part[..., 1], new[..., 1])
    return found


# Exact quantiles.


@dataclass(frozen=True, slots=True)
class Counting:
    """What a task that counts scores gets.

    Attributes
    ----------
    prepared : Prepared
    sources : tuple of Criterion or None
        Whose bare scores are counted; None is the level as windows see it.
    bins : tuple of (source, bin), optional
        The bins of the first pass that the second one looks into.
    """

    prepared: Prepared
    sources: tuple[Criterion | None, ...]
    bins: tuple[tuple[int, int], ...] = ()

    def values(self, source: int, box: Box) -> NDArray[np.float32]:
        """Return the scores in a box, rounded to float32."""
        criterion = self.sources[source]
        if criterion is None:
            return self.prepared.read(box).astype(np.float32)
        return self.prepared.scored(box, criterion.halo, criterion.scores).astype(np.float32)


def score_counts_block(work: Counting, block: int) -> Record:
    """Count the top 16 bits of the scores' keys in one block."""
    box = work.prepared.level.blocks().box(block)
    return {"moments": [moments_of(work.values(i, box)).to_json() for i in range(len(work.sources))]}


def merge_score_counts(results: list[Record]) -> Record:
    """Merge within a batch, in block order."""
    return {"moments": [m.to_json() for m in merged_moments(results)]}


def merged_moments(results: Iterable[Record]) -> list[Moments]:
    """Return the moments of every source, of all blocks or batches together."""
    decoded = ([Moments.from_json(m) for m in result["moments"]] for result in results)
    return reduce(lambda a, b: [x.merge(y) for x, y in zip(a, b, strict=True)], decoded)


def score_bits_block(work: Counting, block: int) -> Record:
    """Count the low 16 bits of the scores' keys in one block, in the bins asked for."""
    box = work.prepared.level.blocks().box(block)
    values = {source: work.values(source, box) for source in {s for s, _ in work.bins}}
    return {"counts": [pack(refined_histogram(values[s], b)) for s, b in work.bins]}


def merge_score_bits(results: list[Record]) -> Record:
    """Merge within a batch."""
    parts = zip(*(result["counts"] for result in results), strict=True)
    return {"counts": [pack(np.sum([unpack(p) for p in part], axis=0)) for part in parts]}


def exact_quantiles(
    prepared: Prepared, wanted: Sequence[tuple[Criterion | None, float]], run: Runner, name: str
) -> list[float]:
    """Return quantiles of scores over the whole image, exact for scores rounded to float32, in two passes.

    Parameters
    ----------
    prepared : Prepared
    wanted : sequence of (criterion or None, fraction)
    run : callable
        Runs a step over the level's blocks.
    name : str
        Of the steps.
    """
    sources = tuple(dict.fromkeys(source for source, _ in wanted))
    work = Counting(prepared, sources)
    n_blocks = len(prepared.level.blocks())
    found = merged_moments(run(f"{name}-counts", score_counts_block, work, n_blocks, merge_score_counts))
    places = [
        (number, *locate_quantile(found[number].histogram, q))
        for number, q in ((sources.index(source), q) for source, q in wanted)
    ]
    work = replace(work, bins=tuple((number, b) for number, b, _ in places))
    records = run(f"{name}-bits", score_bits_block, work, n_blocks, merge_score_bits)
    bits = [unpack(text) for text in merge_score_bits(records)["counts"]]
    return [
        refined_value(b, locate_rank(counts, rank)[0])
        for (_, b, rank), counts in zip(places, bits, strict=True)
    ]


# Windows.


@dataclass(frozen=True, slots=True)
class WindowWork:
    """What a task that averages windows gets."""

    prepared: Prepared
    axes: tuple[WindowAxis, ...]

    @property
    def grid(self) -> Grid:
        """The blocks, in windows: about a block of coarse pixels each, and a chunk of "means"."""
        side = BLOCK_SIDE[len(self.axes)]
        fits = tuple(max((side - a.width) // a.stride + 1, 1) for a in self.axes)
        return self.prepared.level.blocks(tuple(a.count for a in self.axes), fits)


def window_block(work: WindowWork, block: int) -> Record:
    """Average the windows of one block and store the means."""
    level = work.prepared.level
    core, lead = work.grid.box(block), len(level.leading)
    starts = [
        axis.coarse_origins(a, b)
        for axis, a, b in zip(work.axes, core.start[lead:], core.stop[lead:], strict=True)
    ]
    box = Box(
        core.start[:lead] + tuple(int(s[0]) for s in starts),
        core.stop[:lead] + tuple(int(s[-1]) + axis.width for s, axis in zip(starts, work.axes, strict=True)),
    )
    values = work.prepared.read(box)
    means = np.empty(core.shape)
    inside = tuple(s - s[0] for s in starts)
    for index in level.planes_of(box):
        means[index] = window_means(values[index], inside, tuple(a.width for a in work.axes))
    level.array("means")[core.slices] = means
    return {}


def pack(counts: NDArray[np.int64]) -> str:
    """Return counts as text."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(counts, "<i8").tobytes(), 6)).decode("ascii")


def unpack(text: str) -> NDArray[np.int64]:
    """Return what :func:`pack` wrote, flat."""
    return cast(
        "NDArray[np.int64]", np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8").astype(np.int64)
    )
