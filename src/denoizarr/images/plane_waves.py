"""The waves of an image's planes, measured in one pass: every chunk is read once, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np

from denoizarr.engine.cluster import usable_cores
from denoizarr.engine.remote_calls import RemoteCalls, threads_of
from denoizarr.errors import NonFiniteData
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import ceil_div, round_up
from denoizarr.kernels.cell_sums import CellSums, Edges, cell_edges
from denoizarr.kernels.wave_fit import fit_waves
from denoizarr.kernels.waves import Frequency, Wave
from denoizarr.stores.periodic import WaveTable
from denoizarr.stores.sources import Array, ImageReader

# What is read at once; and rows, so that bands of small chunks are no crumbs.
_PIECE_BYTES = 64 * 2**20
# What all threads keep together, and what one group of planes keeps where it can be cut.
_SUMS_BYTES, _GROUP_BYTES = 512 * 2**20, 128 * 2**20
_LEAST_ROWS = 256


def measure_waves(reader: ImageReader, frequencies: Sequence[Frequency], *, client: Any = None) -> WaveTable:
    """Fit waves near some frequencies to every plane of an image.

    Every chunk is read once; those of more planes than can be measured together in bounded memory, as of deep
    chunks of a huge plane, once for each group of planes.

    Parameters
    ----------
    reader : ImageReader
    frequencies : sequence of (fy, fx)
        In cycles per pixel, right to 1/512.
    client : distributed.Client, optional
        Planes are measured by its workers, else in threads of this process.

    Returns
    -------
    WaveTable
        The same to the last bit for any chunks, threads and workers. Empty where a plane is too small to
        measure: under 128 pixels.

    Raises
    ------
    NonFiniteData, MissingChunk, CorruptChunk, StoreUnavailable, ClusterLost
    """
    leading, plane = reader.shape[:-2], reader.shape[-2:]
    if not frequencies or any(cell_edges(n) is None for n in plane):
        return WaveTable(tuple(frequencies), leading, b"")
    wanted = tuple(frequencies)
    boxes = list(_leading_boxes(reader, max(_GROUP_BYTES // _sums_bytes(plane, len(wanted)), 1)))
    if client is not None and reader.source is not None and len(boxes) > 1:
        calls = RemoteCalls(client, min(threads_of(client) + 1, 16))
        try:
            futures = [calls.submit(_measured, reader, wanted, box, finish=_same) for box in boxes]
            parts = [future.result() for future in futures]
        finally:
            calls.close()
    else:
        with ThreadPoolExecutor(_threads(boxes, plane, len(wanted))) as pool:
            parts = list(pool.map(lambda box: _measured(reader, wanted, box), boxes))
    table = np.empty((*leading, len(wanted), 4))
    for box, part in zip(boxes, parts, strict=True):
        table[box.slices] = part
    return WaveTable(wanted, leading, table.tobytes())


def _threads(boxes: Sequence[Box], plane: Sequence[int], frequencies: int) -> int:
    """Return how many groups of planes are measured at a time: their sums are bounded, too."""
    sums_bytes = max(box.size for box in boxes) * _sums_bytes(plane, frequencies)
    return max(1, min(usable_cores(), len(boxes), _SUMS_BYTES // (sums_bytes + 2 * _PIECE_BYTES)))


def _sums_bytes(plane: Sequence[int], frequencies: int) -> int:
    cells = prod(len(edges) for n in plane if (edges := cell_edges(n)) is not None)
    return cells * (frequencies + 1) * 4 * 16


def _same(part: Array) -> Array:
    return part


def _measured(reader: ImageReader, frequencies: tuple[Frequency, ...], leading: Box) -> Array:
    """Return the waves of some planes that share chunks, (*leading, frequencies, 4)."""
    shape = (reader.shape[-2], reader.shape[-1])
    sums = {at: CellSums(shape, frequencies) for at in np.ndindex(*leading.shape)}
    for first, piece in _cells_in_pieces(reader, leading):
        for at, of_plane in sums.items():
            of_plane.add(first, piece[at])
    waves = [
        [(*wave.frequency, wave.amplitude, wave.phase) for wave in fit_waves(of_plane)]
        for of_plane in sums.values()
    ]
    return np.array(waves).reshape(*leading.shape, len(frequencies), 4)


def spans_read(reader: ImageReader, frequencies: int) -> list[list[tuple[int, int]]]:
    """Return the spans along every axis of which all combinations are read to measure so many waves.

    Empty where a plane is too small to measure.
    """
    plane = reader.shape[-2:]
    columns = cell_edges(plane[1])
    if columns is None or cell_edges(plane[0]) is None:
        return []
    leading = _leading_spans(reader, max(_GROUP_BYTES // _sums_bytes(plane, frequencies), 1))
    thickest = tuple(max(b - a for a, b in spans) for spans in leading)
    pieces = _column_pieces(reader, Box((0,) * len(thickest), thickest), columns)
    return [*leading, list(_bands(reader)), [(int(columns[a]), int(columns[b])) for a, b in pieces]]


def _leading_boxes(reader: ImageReader, most: int) -> Iterator[Box]:
    """Yield boxes of planes, ``most`` at a time, that lie in the same chunks: these are decoded once."""
    for bounds in product(*_leading_spans(reader, most)):
        yield Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))


def _leading_spans(reader: ImageReader, most: int) -> list[list[tuple[int, int]]]:
    parts = []
    for n, chunk, offset in zip(reader.shape[:-2], reader.chunks[:-2], reader.offset[:-2], strict=True):
        edges = [0, *range(chunk - offset, n, chunk), n]
        step = min(chunk, most)
        most = max(most // step, 1)
        spans = ((a, b) for a, b in pairwise(edges) if b > a)
        parts.append([(at, min(at + step, b)) for a, b in spans for at in range(a, b, step)])
    return parts


def _cells_in_pieces(reader: ImageReader, leading: Box) -> Iterator[tuple[tuple[int, int], Array]]:
    """Yield the voxels of some planes in whole cells, with the numbers of the first: each chunk is read once.

    What a band of chunks holds of cells that end in the next one is kept till then::

        +------ chunk ------+------
        |  cells  |  cells  |
        |- - - - - - - - - -|- - -     kept: fewer rows than two cells
        +-------------------+------
    """
    height, width = reader.shape[-2:]
    rows, columns = cell_edges(height), cell_edges(width)
    assert rows is not None, "planes that can be measured"
    assert columns is not None, "planes that can be measured"
    for left, right in _column_pieces(reader, leading, columns):
        x = (int(columns[left]), int(columns[right]))
        kept: Array = np.empty((*leading.shape, 0, x[1] - x[0]), reader.dtype)
        done = 0
        for top, bottom in _bands(reader):
            box = Box((*leading.start, top, x[0]), (*leading.stop, bottom, x[1]))
            band = np.concatenate([kept, _finite(reader, box)], axis=-2)
            stop = int(np.searchsorted(rows, bottom, side="right")) - 1
            end = int(rows[stop]) - int(rows[done])
            if stop > done:
                yield (done, left), band[..., :end, :]
                kept, done = band[..., end:, :].copy(), stop
            else:
                kept = band


def _bands(reader: ImageReader) -> Iterator[tuple[int, int]]:
    """Yield bands of rows that end where chunks end, 256 rows or more."""
    height, chunk, offset = reader.shape[-2], reader.chunks[-2], reader.offset[-2]
    step = chunk * ceil_div(_LEAST_ROWS, chunk)
    edges = [0, *range(step - offset, height, step), height]
    yield from pairwise(edges)


def _column_pieces(reader: ImageReader, leading: Box, columns: Edges) -> Iterator[tuple[int, int]]:
    """Yield ranges of cells along x, whole chunks wide where chunks are whole cells, that fit in memory."""
    cells, side = len(columns) - 1, int(columns[1])
    chunk, offset = reader.chunks[-1], reader.offset[-1]
    row_bytes = prod(leading.shape) * reader.dtype.itemsize * (max(reader.chunks[-2], _LEAST_ROWS) + 2 * side)
    fitting = max(_PIECE_BYTES // row_bytes, 2 * side)
    if chunk % side == 0 and offset % side == 0:
        first, step = (round_up(fitting, chunk) - offset) // side, round_up(fitting, chunk) // side
    else:  # a chunk on a border is read twice
        first = step = round_up(max(fitting, 4 * chunk), side) // side
    edges = [0, *range(first, cells, step), cells]
    yield from ((a, b) for a, b in pairwise(edges) if b > a)


def _finite(reader: ImageReader, box: Box) -> Array:
    voxels = reader.read(box)
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        place = np.argwhere(~np.isfinite(voxels))[0]
        raise NonFiniteData(
            "the image holds NaN or infinity",
            where=f"{reader.name} {tuple(int(a) + int(i) for a, i in zip(box.start, place, strict=True))}",
            remedy="replace it, then run again",
        )
    return voxels


def waves_of_plane(reader: ImageReader, frequencies: Sequence[Frequency], plane: Box) -> tuple[Wave, ...]:
    """Return the waves near some frequencies in one plane, given by its place along the leading dims."""
    if any(cell_edges(n) is None for n in reader.shape[-2:]):
        return tuple(Wave(frequency, 0.0, 0.0) for frequency in frequencies)
    rows = _measured(reader, tuple(frequencies), plane).reshape(-1, 4)
    return tuple(Wave((float(r[0]), float(r[1])), float(r[2]), float(r[3])) for r in rows)
