"""Packed classes read like the array that they were made of, at a quarter of its memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.selection import cell_classes
from denoizarr.selection.cell_classes import N_CLASSES, CellClasses, piece_shape

shapes = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple)


@settings(max_examples=60)
@given(shapes, st.integers(0, 99), st.data())
def test_packed_classes_read_like_their_array(shape, seed, data):
    array = np.random.default_rng(seed).integers(0, N_CLASSES, shape).astype(np.uint8)
    packed = CellClasses.of(array)
    np.testing.assert_array_equal(np.asarray(packed), array)
    first = data.draw(st.integers(0, array.size))
    stop = data.draw(st.integers(first, array.size))
    np.testing.assert_array_equal(packed.run(first, stop), array.reshape(-1)[first:stop])
    index = tuple(
        data.draw(
            st.one_of(st.integers(-n, n - 1), st.slices(n).filter(lambda s: s.step is None or s.step > 0))
        )
        for n in shape
    )
    np.testing.assert_array_equal(packed[index], array[index])
    np.testing.assert_array_equal(packed[..., 0], array[..., 0])
    assert packed.nbytes == -(-array.size // 4)


@settings(max_examples=40)
@given(shapes, st.lists(st.integers(1, 7), min_size=1, max_size=40))
def test_pieces_of_any_length_are_packed_alike(shape, lengths):
    array = np.arange(np.prod(shape)).reshape(shape) % N_CLASSES
    flat, pieces, start = array.astype(np.uint8).reshape(-1), [], 0
    for length in lengths:
        pieces.append(flat[start : start + length])
        start += length
    pieces.append(flat[start:])
    np.testing.assert_array_equal(np.asarray(CellClasses.of_pieces(shape, pieces)), array)


@given(shapes, st.integers(1, 50))
def test_boxes_of_a_piece_are_runs_in_c_order(shape, cells):
    numbers = np.arange(np.prod(shape)).reshape(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cell_classes, "_PIECE", cells)
        step = piece_shape(shape)
    boxes = np.ndindex(*(-(-n // s) for n, s in zip(shape, step, strict=True)))
    order = [
        numbers[tuple(slice(i * s, (i + 1) * s) for i, s in zip(box, step, strict=True))].reshape(-1)
        for box in boxes
    ]
    np.testing.assert_array_equal(np.concatenate(order), np.arange(numbers.size))
    assert np.prod(step) <= cells
