"""The layout: units that fit each other, levels that stop, an identity that says all that decides bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.errors import BadRequest, MisalignedGrid
from denoizarr.images.layout import OutputLayout, plan_layout


def _plan(shape: tuple[int, ...] = (3, 700, 900), **options: Any) -> OutputLayout:
    dims = tuple("tczyx"[-len(shape) :])
    given: dict[str, Any] = {
        "dims": dims, "dtype": np.dtype("u2"), "scale": [1.0] * len(shape), "translation": [0.0] * len(shape),
        "units": [None] * len(shape),
    }  # fmt: skip
    return plan_layout("/nowhere", shape=shape, **(given | options))


@settings(max_examples=80)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 5000), st.integers(1, 5000)),
    st.tuples(st.integers(1, 3), st.integers(1, 700), st.integers(1, 700)) | st.none(),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)) | st.none(),
    st.tuples(*[st.floats(0.05, 9)] * 3),
)
def test_laws(shape: Any, chunks: Any, per_shard: Any, scale: Any) -> None:
    shards = (
        None
        if chunks is None or per_shard is None
        else [c * n for c, n in zip(chunks, per_shard, strict=True)]
    )
    layout = _plan(shape, chunks=chunks, shards=shards, scale=scale)
    for finer, coarser in zip(layout.levels, layout.levels[1:], strict=False):
        assert coarser.shape == tuple(-(-n // f) for n, f in zip(finer.shape, coarser.factors, strict=True))
        assert set(coarser.factors) <= {1, 2}
        assert max(coarser.factors) == 2
        halves_z = finer.scale[0] <= 2 * max(finer.scale[1:]) and finer.shape[0] > 1
        assert (coarser.factors[0] == 2) == halves_z
    for level in layout.levels:
        assert all(s % c == 0 for s, c in zip(level.shards or (), level.chunks, strict=False)), (
            "P3 rests on this"
        )
        assert all(1 <= c <= n for c, n in zip(level.chunks, level.shape, strict=True))
    assert max(layout.levels[-1].shape[1:]) <= 256
    assert all(max(level.shape[1:]) > 256 for level in layout.levels[:-1])
    assert [level.path for level in layout.levels] == [str(n) for n in range(len(layout.levels))]


def test_translations_are_of_voxel_centres() -> None:
    layout = _plan((4, 2048, 2048), scale=[1.0, 0.5, 0.5], translation=[0.0, 10.0, 0.0])
    assert [level.scale for level in layout.levels] == [(1, 0.5, 0.5), (2, 1, 1), (4, 2, 2), (4, 4, 4)]
    # The first voxel of a level is the mean of voxels 0 .. k-1, whose centre lies at (k - 1) / 2 voxels.
    assert [level.translation[1] for level in layout.levels] == [10.0, 10.25, 10.75, 11.75]
    assert [level.translation[0] for level in layout.levels] == [0.0, 0.5, 1.5, 1.5]


def test_shards_that_fit_the_asked_chunks_are_taken_for_small_images_too() -> None:
    level = _plan((3, 300, 300), chunks=(1, 512, 512), shards=(1, 1024, 1024)).levels[0]
    assert (level.chunks, level.shards) == ((1, 300, 300), (1, 300, 300))
    level = _plan((3, 300, 300), shards=(1, 1024, 1024)).levels[0]
    assert level.shards is not None


@settings(max_examples=80)
@given(
    st.tuples(st.integers(1, 200), st.integers(1, 20000), st.integers(1, 20000)),
    st.sampled_from(
        [(1, 512, 512), (1, 16, 20000), (1, 20000, 20000), (64, 64, 64), (1, 100, 300), (1, 1, 1)]
    ),
    st.tuples(*[st.sampled_from([0.1, 1.0, 3.0])] * 3),
)
def test_no_box_that_a_source_decodes_at_once_is_cut_where_it_fits(
    shape: Any, decoded: Any, scale: Any
) -> None:
    decoded = tuple(map(min, decoded, shape))
    level = _plan(shape, decoded=decoded, scale=scale).levels[0]
    shards = level.shards or ()
    assert np.prod(shards) <= 2 * 2**24
    least = [-(-d // c) * c for d, c in zip(decoded, level.chunks, strict=True)]
    smallest = [max(a, min(512, n)) for a, n in zip(least, shape, strict=True)]
    if np.prod([max(a, s) for a, s in zip(least, (1, *smallest[1:]), strict=True)]) <= 2**24:
        assert all(s >= d for s, d in zip(shards, decoded, strict=True))


@pytest.mark.parametrize(
    ("decoded", "expected", "along"),
    [
        (None, (4, 2048, 2048), 2),
        ((1, 512, 512), (4, 2048, 2048), 2),  # tiles
        ((1, 16, 10240), (2, 1024, 10240), 1),  # strips: the widest shards have a level above them
        ((1, 10240, 10240), (4, 2048, 2048), 2),  # a page in one strip, too large for a worker
    ],
)
def test_default_shards_of_a_large_image(decoded: Any, expected: Any, along: int) -> None:
    layout = _plan((100, 10240, 10240), decoded=decoded)
    assert (layout.levels[0].shards, layout.along) == (expected, along)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"chunks": (1, 64, 64), "shards": (1, 100, 128)}, MisalignedGrid),
        ({"shards": (1, 1000, 1024)}, MisalignedGrid),
        ({"chunks": (64, 64)}, BadRequest),
        ({"chunks": (1, 0, 64)}, BadRequest),
        ({"shards": (1, -512, 512)}, BadRequest),
        ({"levels": 0}, BadRequest),
        ({"ome_version": "0.3"}, BadRequest),
        ({"ome_version": "0.4", "shards": (1, 512, 512)}, BadRequest),
    ],
)
def test_what_cannot_be_laid_out(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        _plan(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": [2.0, 1.0, 1.0]},
        {"translation": [0.0, 1.0, 0.0]},
        {"units": ["micrometer", None, None]},
        {"dtype": np.dtype("u1")},
        {"chunks": (1, 64, 64)},
        {"levels": 1},
        {"ome_version": "0.4"},
        {"omero": {"channels": [{"label": "DAPI"}]}},
    ],
)
def test_the_identity_holds_all_that_decides_the_bytes(options: dict[str, Any]) -> None:
    # Else a finished output would be taken for this job's, and would keep the other's voxel size.
    assert _plan(**options).identity() != _plan().identity()
    assert _plan(**options).identity() == _plan(**options).identity()
