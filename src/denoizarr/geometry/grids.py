"""A regular grid of boxes over an image: chunks, write units, blocks and cells alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from .boxes import Box


def ceil_div(a: int, b: int) -> int:
    """Return ``a / b`` rounded up, for non-negative integers."""
    return -(-a // b)


def round_up(n: int, step: int) -> int:
    """Return the smallest multiple of ``step`` that is at least ``n``."""
    return ceil_div(n, step) * step


@dataclass(frozen=True, slots=True)
class Grid:
    """Boxes of one ``step`` that cover an image of ``shape`` exactly once; the last ones may be short.

    Boxes are numbered in C order, the last axis fastest, so a number and the grid name a box on any machine.

    Attributes
    ----------
    shape, step : tuple of int
        In voxels, one per axis.
    """

    shape: tuple[int, ...]
    step: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.shape) == len(self.step), f"{self}: one step per axis"
        assert all(s > 0 for s in self.step), f"{self}: steps are positive"

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of boxes along every axis."""
        return tuple(ceil_div(n, s) for n, s in zip(self.shape, self.step, strict=True))

    def __len__(self) -> int:
        return prod(self.counts)

    def index(self, number: int) -> tuple[int, ...]:
        """Return the position on the grid of box ``number``."""
        assert 0 <= number < len(self), f"box {number} of {len(self)}"
        position = []
        for count in reversed(self.counts):
            number, along = divmod(number, count)
            position.append(along)
        return tuple(reversed(position))

    def number(self, index: Sequence[int]) -> int:
        """Return the number of the box at this position on the grid."""
        number = 0
        for along, count in zip(index, self.counts, strict=True):
            assert 0 <= along < count, f"{tuple(index)} on a grid of {self.counts}"
            number = number * count + along
        return number

    def box(self, number: int) -> Box:
        """Return box ``number``, cropped at the image's far end."""
        index = self.index(number)
        start = tuple(i * s for i, s in zip(index, self.step, strict=True))
        stop = tuple(min(a + s, n) for a, s, n in zip(start, self.step, self.shape, strict=True))
        return Box(start, stop)

    def __iter__(self) -> Iterator[Box]:
        return (self.box(i) for i in range(len(self)))

    def covering(self, box: Box) -> Iterator[int]:
        """Yield the numbers of the boxes that share a voxel with ``box``, in order."""
        inside = box.clip(self.shape)
        if inside.size == 0:
            return
        ranges = [
            range(a // s, ceil_div(b, s))
            for a, b, s in zip(inside.start, inside.stop, self.step, strict=True)
        ]
        inner = Grid(tuple(len(r) for r in ranges), (1,) * len(ranges))
        for i in range(len(inner)):
            yield self.number([r[k] for r, k in zip(ranges, inner.index(i), strict=True)])


def batch_of(batch: int, n_blocks: int, blocks_per_batch: int) -> range:
    """Return the blocks of one batch: consecutive numbers, the last batch perhaps short."""
    return range(batch * blocks_per_batch, min((batch + 1) * blocks_per_batch, n_blocks))
