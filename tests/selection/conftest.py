"""Blocks and slabs of a few cells, so that their seams matter; the usual ones hold a whole test image."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from denoizarr.selection import sweeps


def _shrink(patch: pytest.MonkeyPatch, *, plane: int, volume: int, block: int, group: int) -> None:
    patch.setattr(sweeps, "_WHOLE_BYTES", plane)
    patch.setattr(sweeps, "_SLAB_BYTES", plane)
    patch.setattr(sweeps, "_VOLUME_SLAB_BYTES", volume)
    patch.setattr(sweeps, "_SMALLEST_BLOCK_BYTES", block)
    patch.setattr(sweeps, "_LARGEST_BLOCK_BYTES", block)
    patch.setattr(sweeps, "_GROUP_BYTES", group)
    patch.setattr(sweeps, "_SHORTEST_SWEEP", 1)


@pytest.fixture
def small_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks and slabs."""
    _shrink(monkeypatch, plane=1500, volume=3000, block=4000, group=1500)


@pytest.fixture
def set_sweeps() -> Iterator[Callable[..., None]]:
    """``set_sweeps(plane=, volume=, block=, group=)`` in bytes; may be called anew for every example."""
    with pytest.MonkeyPatch.context() as patch:
        yield lambda **sizes: _shrink(patch, **sizes)
