"""An image less the waves that run through it, read lazily: any box equals that part of the whole.

What is subtracted is a formula in the image's own coordinates, with one small table of frequencies,
amplitudes and phases for every plane; so neither chunks nor blocks nor workers can show in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np

from denoizarr.errors import BadRequest
from denoizarr.geometry.boxes import Box
from denoizarr.kernels.waves import Frequency, Wave, less_waves

from .records import digest
from .sources import Array, Carried, ImageReader

_NUMBERS = 4


@dataclass(frozen=True, slots=True)
class WaveTable:
    """The waves of an image's planes.

    Attributes
    ----------
    frequencies : tuple of (fy, fx)
        Looked for, in cycles per pixel.
    leading : tuple of int
        Extents of the image before y and x.
    numbers : bytes
        float64, for every plane and frequency: fy and fx as they are in that plane, amplitude (0: not there)
        and phase at the plane's first pixel.
    """

    frequencies: tuple[Frequency, ...]
    leading: tuple[int, ...]
    numbers: bytes

    @staticmethod
    def of(
        frequencies: Sequence[Frequency], leading: Sequence[int], waves: Sequence[Sequence[Wave]]
    ) -> WaveTable:
        """Return the table of all planes' waves, planes in C order."""
        numbers = [[(*w.frequency, w.amplitude, w.phase) for w in of_plane] for of_plane in waves]
        return WaveTable(tuple(frequencies), tuple(leading), np.array(numbers, np.float64).tobytes())

    def array(self) -> Array:
        """Return the numbers, (*leading, frequencies, 4)."""
        return np.frombuffer(self.numbers).reshape(*self.leading, len(self.frequencies), _NUMBERS)

    def waves(self, plane: Sequence[int]) -> tuple[Wave, ...]:
        """Return the waves that are in one plane."""
        first = int(np.ravel_multi_index(tuple(plane), self.leading)) if self.leading else 0
        size = len(self.frequencies) * _NUMBERS
        rows = np.frombuffer(self.numbers, count=size, offset=8 * first * size).reshape(-1, _NUMBERS)
        return tuple(Wave((float(r[0]), float(r[1])), float(r[2]), float(r[3])) for r in rows if r[2] > 0.0)

    @property
    def is_empty(self) -> bool:
        """Whether no plane has any wave."""
        return not (self.array()[..., 2] > 0.0).any() if self.numbers else True

    @property
    def largest(self) -> tuple[float, ...]:
        """Largest amplitude of every frequency over all planes, in the image's intensities."""
        planes = self.array().reshape(-1, len(self.frequencies), _NUMBERS)
        return tuple(float(a) for a in planes[:, :, 2].max(axis=0))

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON-able data."""
        return {
            "frequencies": [list(f) for f in self.frequencies],
            "leading": list(self.leading),
            "waves": np.frombuffer(self.numbers).tolist(),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> WaveTable:
        """Return the table that ``to_json`` wrote.

        Raises
        ------
        KeyError, TypeError, ValueError
            It is none.
        """
        frequencies = tuple((float(fy), float(fx)) for fy, fx in data["frequencies"])
        leading = tuple(int(n) for n in data["leading"])
        numbers = np.array(data["waves"], np.float64)
        sizes = (0, prod(leading) * len(frequencies) * _NUMBERS)  # none: planes too small to measure
        if numbers.size not in sizes or not np.isfinite(numbers).all():
            raise ValueError("not a table of waves")
        return WaveTable(frequencies, leading, numbers.tobytes())

    @property
    def digest(self) -> str:
        """Names what is subtracted."""
        return digest(self.to_json())


@dataclass(frozen=True, slots=True)
class PeriodicSource:
    """An image less its waves, or a box of it: what a task needs to read it.

    Attributes
    ----------
    base : ImageReader
        Of the whole image as it is stored; travels as its own source.
    table : WaveTable
    box, dropped
        As in ``ImageSource``.
    """

    base: ImageReader
    table: WaveTable
    box: Box | None = None
    dropped: tuple[str, ...] = ()

    @property
    def missing(self) -> str:
        """What an absent chunk means."""
        return str(getattr(self.base.source, "missing", "error"))


@lru_cache(maxsize=64)
def open_periodic(source: PeriodicSource) -> ImageReader:
    """Open an image less its waves, or a box of it; once per process."""
    whole = _corrected(source.base, source.table)
    if source.box is None:
        return whole
    return whole.part(source.box, source.dropped, source)


def corrected_reader(base: ImageReader, table: WaveTable) -> ImageReader:
    """Return the reader of an image less its waves, as float32; ``base`` itself where it has none.

    Raises
    ------
    BadRequest
        The table is of an image of other extents.
    """
    if table.is_empty:
        return base
    if table.leading != base.shape[:-2]:
        raise BadRequest(
            "the waves are of another image", where=base.name, got=base.shape[:-2], expected=table.leading
        )
    if base.source is None:
        return _corrected(base, table)
    return open_periodic(PeriodicSource(base, table))


def _corrected(base: ImageReader, table: WaveTable) -> ImageReader:
    lead = len(base.shape) - 2
    plane = base.shape[lead:]

    def fetch(box: Box) -> Array:
        raw = base.read(box)
        result = np.empty(raw.shape, np.float32)
        for at in product(*(range(n) for n in box.shape[:lead])):
            waves = table.waves(tuple(a + i for a, i in zip(box.start[:lead], at, strict=True)))
            less_waves(raw[at], waves, plane, box.start[lead:], result[at])
        if getattr(base.source, "missing", "error") == "fill":
            for part in _absent_parts(base, box):  # what is not there has no lines
                there = part.relative_to(box.start).slices
                result[there] = raw[there]
        return result

    reader = ImageReader(
        fetch,
        dims=base.dims,
        shape=base.shape,
        dtype=np.dtype(np.float32),
        chunks=base.chunks,
        identity=lambda: {**base.identity, "periodic": table.digest},
        name=base.name,
        source=None if base.source is None else PeriodicSource(base, table),
        reopen=open_periodic,
        absent=base.absent_in,
        urls=base.urls,
        offset=base.offset,
        of_graph=base.of_graph,
        rebuild=None if base.rebuild is None else lambda: (_corrected_of, (Carried(base), table)),
    )
    reader.uncorrected, reader.periodic = base, table.frequencies
    return reader


def _absent_parts(base: ImageReader, box: Box) -> Iterator[Box]:
    """Yield the parts of a box that lie in chunks which the store lacks."""
    if not base.absent_in(box):
        return
    spans = []
    for start, stop, chunk, offset in zip(box.start, box.stop, base.chunks, base.offset, strict=True):
        first = start - (start + offset) % chunk + chunk
        spans.append(list(pairwise([start, *range(first, stop, chunk), stop])))
    for bounds in product(*spans):
        part = Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))
        if base.absent_in(part):
            yield part


def _corrected_of(base: Carried, table: WaveTable) -> ImageReader:
    return _corrected(base.reader, table)
