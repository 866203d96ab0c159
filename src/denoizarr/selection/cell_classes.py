"""The class of very many cells, four to a byte: what makes an index of a terabyte fit a laptop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Classes = NDArray[np.uint8]
# Two bits a cell.
N_CLASSES = 4
# What an index calls its cells: not kept by filter or mask, kept, outside the regions of interest.
BACKGROUND, SIGNAL, OUTSIDE = range(3)
_PIECE = 1 << 17  # cells at once: a megabyte of scores, and some temporaries of that size
# The four cells of every byte.
_UNPACKED = (np.arange(256)[:, np.newaxis] >> np.array([0, 2, 4, 6]) & 3).astype(np.uint8)


class CellClasses:
    """The classes of the cells of one image: read like a uint8 array, kept packed.

    Attributes
    ----------
    shape : tuple of int
        Cells along every dim.
    packed : uint8 array (ceil(size / 4),)
        Cell ``i`` in C order is in bits ``2 (i % 4)`` and up of byte ``i // 4``.
    """

    __slots__ = ("packed", "shape")

    def __init__(self, shape: tuple[int, ...], packed: Classes) -> None:
        self.shape, self.packed = tuple(int(n) for n in shape), packed

    @classmethod
    def of_pieces(cls, shape: tuple[int, ...], pieces: Iterable[Classes]) -> Self:
        """Return the classes that are in these pieces, one after the other in C order, packed."""
        packed = np.zeros(-(-prod(shape) // 4), np.uint8)
        filled, rest = 0, np.empty(0, np.uint8)
        for piece in pieces:
            flat = np.concatenate([rest, piece.reshape(-1)])
            whole = flat.size - flat.size % 4
            packed[filled : filled + whole // 4] = _packed(flat[:whole])
            filled, rest = filled + whole // 4, flat[whole:]
        if rest.size:
            packed[filled] = _packed(np.append(rest, np.zeros(4 - rest.size, np.uint8)))[0]
        return cls(shape, packed)

    @classmethod
    def of(cls, classes: Classes) -> Self:
        """Return an array of classes, packed."""
        flat = np.ascontiguousarray(classes, np.uint8).reshape(-1)
        return cls.of_pieces(classes.shape, (flat[i : i + _PIECE] for i in range(0, flat.size, _PIECE)))

    @property
    def size(self) -> int:
        """Number of cells."""
        return prod(self.shape)

    @property
    def ndim(self) -> int:
        """Number of dims."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """What reading gives: uint8."""
        return np.dtype(np.uint8)

    @property
    def nbytes(self) -> int:
        """Memory that the classes take."""
        return int(self.packed.nbytes)

    def run(self, first: int, stop: int) -> Classes:
        """Return cells ``first .. stop - 1`` in C order, unpacked."""
        low = first // 4
        four = _UNPACKED[self.packed[low : -(-stop // 4)]]
        return np.asarray(four.reshape(-1)[first - 4 * low : stop - 4 * low], np.uint8)

    def pieces(self) -> Iterator[Classes]:
        """Yield all cells in C order, a hundred thousand at a time."""
        for first in range(0, self.size, _PIECE):
            yield self.run(first, min(first + _PIECE, self.size))

    def rows(self, first: int, stop: int) -> Classes:
        """Return the leading indices ``first .. stop - 1`` of the array with all but two axes made one."""
        plane = self.shape[-2] * self.shape[-1]
        return self.run(first * plane, stop * plane).reshape(-1, *self.shape[-2:])

    def __getitem__(self, index: Any) -> Any:
        """Return what numpy's basic indexing gives; a small box costs what it holds."""
        axes = index if isinstance(index, tuple) else (index,)
        if Ellipsis in axes or len(axes) < self.ndim:
            return np.asarray(self)[index]
        numbers = np.zeros((1,) * self.ndim, np.int64)
        for axis, (n, part) in enumerate(zip(self.shape, axes, strict=True)):
            along = np.arange(n)[part if isinstance(part, slice) else slice(part, part + 1 or None)]
            others = tuple(a for a in range(self.ndim) if a != axis)
            numbers = numbers + np.expand_dims(along * prod(self.shape[axis + 1 :]), others)
        numbers = numbers[tuple(slice(None) if isinstance(part, slice) else 0 for part in axes)]
        return (self.packed[numbers >> 2] >> (2 * (numbers & 3)).astype(np.uint8)) & np.uint8(3)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return all cells, unpacked."""
        if copy is False:
            raise ValueError("packed classes cannot be had without a copy")
        whole = self.run(0, self.size).reshape(self.shape)
        return whole if dtype is None else whole.astype(dtype)


def _packed(cells: Classes) -> Classes:
    four = cells.reshape(-1, 4)
    return np.asarray(four[:, 0] | four[:, 1] << 2 | four[:, 2] << 4 | four[:, 3] << 6, np.uint8)


def piece_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the extents of boxes of about a hundred thousand cells: whole trailing dims first.

    Such boxes, in C order, are runs of cells in C order.
    """
    step, room = [], _PIECE
    for size in reversed(shape):
        step.append(max(min(size, room), 1))
        room = room // step[-1] if step[-1] == size else 1
    return tuple(reversed(step))
