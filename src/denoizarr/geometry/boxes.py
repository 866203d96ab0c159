"""A box of voxels: half-open on every axis, in the order of the image's dims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class Box:
    """The voxels ``start[i] <= index[i] < stop[i]`` on every axis ``i``.

    Attributes
    ----------
    start, stop : tuple of int
        In voxels, in the order of the image's dims. ``start`` may be negative for a box that reaches
        beyond the image; it is an error for ``stop`` to lie before ``start``.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.start) == len(self.stop), "a box needs as many starts as stops"
        assert all(a <= b for a, b in zip(self.start, self.stop, strict=True)), (
            f"{self} ends before it starts"
        )

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """Return the box of a whole image of this shape."""
        return cls((0,) * len(shape), tuple(int(n) for n in shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent on every axis, in voxels."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of voxels."""
        return prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index into an array."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def grow(self, margin: Sequence[int]) -> Box:
        """Return the box with ``margin[i]`` voxels more on both sides of axis ``i``."""
        return Box(
            tuple(a - m for a, m in zip(self.start, margin, strict=True)),
            tuple(b + m for b, m in zip(self.stop, margin, strict=True)),
        )

    def clip(self, shape: Sequence[int]) -> Box:
        """Return the part of the box inside an image of this shape; empty axes end where they start."""
        start = tuple(min(max(a, 0), n) for a, n in zip(self.start, shape, strict=True))
        stop = tuple(max(min(b, n), a) for a, b, n in zip(start, self.stop, shape, strict=True))
        return Box(start, stop)

    def intersection(self, other: Box) -> Box:
        """Return the voxels that both boxes have; an axis without any ends where it starts."""
        start = tuple(max(a, c) for a, c in zip(self.start, other.start, strict=True))
        stop = tuple(max(min(b, d), a) for a, b, d in zip(start, self.stop, other.stop, strict=True))
        return Box(start, stop)

    def shift(self, offset: Sequence[int]) -> Box:
        """Return the box moved by ``offset`` voxels."""
        return Box(
            tuple(a + o for a, o in zip(self.start, offset, strict=True)),
            tuple(b + o for b, o in zip(self.stop, offset, strict=True)),
        )

    def relative_to(self, origin: Sequence[int]) -> Box:
        """Return the box as seen from ``origin``: its place inside an array that was cut out there."""
        return self.shift(tuple(-o for o in origin))

    def contains(self, other: Box) -> bool:
        """Tell whether every voxel of ``other`` lies in this box."""
        return all(a <= c for a, c in zip(self.start, other.start, strict=True)) and all(
            d <= b for b, d in zip(self.stop, other.stop, strict=True)
        )

    def overlaps(self, other: Box) -> bool:
        """Tell whether the two boxes share a voxel."""
        return all(
            max(a, c) < min(b, d)
            for a, b, c, d in zip(self.start, self.stop, other.start, other.stop, strict=True)
        )
