import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.selection.index_builder import build_index
from denoizarr.training import block_layout, epoch_plan
from denoizarr.training.block_layout import ChunkGrid, block_weights, cut_axis, cut_chunks, layout_of
from denoizarr.training.epoch_plan import EpochPlan, systematic_quotas


@given(st.integers(1, 300), st.integers(1, 80), st.integers(1, 5), st.data())
def test_blocks_cover_an_axis_on_chunk_borders(size, chunk, per_block, data):
    smallest = data.draw(st.integers(1, size))
    shift = data.draw(st.integers(0, per_block - 1))
    offset = data.draw(st.integers(0, chunk - 1))
    cuts = cut_axis(size, chunk, per_block, shift, smallest, offset)
    assert cuts[0] == 0
    assert cuts[-1] == size
    assert (np.diff(cuts) >= smallest).all()
    assert ((cuts[1:-1] + offset) % chunk == 0).all()


@given(
    st.lists(st.sampled_from([0.0, 0.1, 1.0, 7.0]), min_size=1, max_size=20),
    st.integers(1, 200),
    st.integers(1, 9),
)
def test_quotas_are_within_a_portion_of_their_share(weights, n, grain):
    weights = np.array([*weights, 1.0])
    quotas = systematic_quotas(weights, n, grain, 0.37)
    assert quotas.sum() == n
    assert (quotas[weights == 0] == 0).all()
    # Against the marks' exact share: the last portion may be smaller than a full one.
    marks = -(-n // grain)
    assert (np.abs(quotas - marks * grain * weights / weights.sum()) < 2 * grain).all()


def test_quotas_equal_their_share_in_expectation():
    weights = np.array([1.0, 0.1, 0.5, 2.0, 0.1])
    total = sum(systematic_quotas(weights, 30, 5, (k + 0.5) / 500) for k in range(500))
    np.testing.assert_allclose(total / 500, 30 * weights / weights.sum(), rtol=0.02)


def grid(chunks, voxel_bytes=2):
    return ChunkGrid(tuple(chunks), (0,) * len(chunks), voxel_bytes)


@settings(max_examples=60)
@given(
    st.tuples(st.integers(4, 20), st.integers(8, 90), st.integers(8, 90)),
    st.tuples(st.integers(1, 7), st.integers(3, 50), st.integers(3, 50)),
    st.one_of(
        st.tuples(st.integers(2, 8), st.integers(2, 8)),
        st.tuples(st.integers(1, 4), st.integers(2, 8), st.integers(2, 8)),
    ),
    st.tuples(*[st.integers(0, 60)] * 3),
    st.integers(1, 500),
    st.integers(0, 3),
)
def test_patches_lie_in_their_block_near_a_cell(shape, chunks, patch, offset, n, epoch):
    index = build_index(np.zeros(shape, np.uint8), patch)
    offset = tuple(o % c for o, c in zip(offset, chunks, strict=True))
    plan = EpochPlan(index, [ChunkGrid(chunks, offset, 2)], n, 5, epoch, 4)
    assert sum(v.quota for v in plan.visits) == n
    assert len({v.block for v in plan.visits}) == len(plan.visits), "no block is visited twice"
    extent = np.array((1,) * (3 - len(patch)) + patch)
    seen = 0
    for group in plan.groups:
        assert group.before == seen
        draws = plan.draws(group)
        assert draws.visit.size == group.size
        seen += draws.visit.size
        for k, origin in enumerate(draws.origin):
            block = draws.visits[draws.visit[k]].block
            box = plan.layouts[0].voxel_box(block)
            assert (origin >= box.start).all()
            assert (origin + extent <= np.array(box.stop)).all()
            cells = plan.layouts[0].cell_box(block)
            for axis in range(3 - len(patch), 3):
                starts = np.arange(cells.start[axis], cells.stop[axis]) * extent[axis]
                assert np.abs(starts - origin[axis]).min() <= extent[axis], "within the guard of a split"
    assert seen == n


@pytest.mark.parametrize("chunk", [16, 20, 24, 37])
@pytest.mark.parametrize("patch", [8, 7])
def test_patches_do_not_pile_up_at_the_borders_of_blocks(chunk, patch):
    """Moved there from beyond, patches would begin at the few places at a border again and again."""
    size = 200
    index = build_index(np.zeros((size, size), np.uint8), patch)
    counts = np.zeros(size - patch + 1)
    for epoch in range(300):
        plan = EpochPlan(index, [grid((chunk, chunk))], 600, 1, epoch, 8)
        for group in plan.groups:
            np.add.at(counts, plan.draws(group).origin[:, 0], 1)
    inside = counts[patch : size - 2 * patch]
    assert inside.max() < 2.2 * inside.mean()
    assert inside.min() > 0.3 * inside.mean()


def test_a_block_with_more_patches_than_memory_holds_is_visited_again(monkeypatch):
    index = build_index(np.zeros((64, 64), np.uint8), 8)
    monkeypatch.setattr(epoch_plan, "_GROUP_PATCH_BYTES", 100 * 64)
    plan = EpochPlan(index, [ChunkGrid((64, 64), (0, 0), 1)], 1000, 0, 0, 16)
    assert sum(v.quota for v in plan.visits) == 1000
    assert max(v.quota for v in plan.visits) == 100
    assert max(group.size for group in plan.groups) <= 200
    drawn = np.concatenate([plan.draws(g).origin for g in plan.groups])
    assert len(np.unique(drawn, axis=0)) > 500, "the second visit draws other patches"


@settings(max_examples=30)
@given(
    st.tuples(st.integers(1, 6), st.integers(8, 90), st.integers(8, 90)),
    st.tuples(st.integers(1, 4), st.integers(3, 50), st.integers(3, 50)),
    st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
)
def test_every_cell_belongs_to_one_block(shape, chunks, uniform):
    index = build_index(np.zeros(shape, np.uint8), (5, 7))
    layout = layout_of(index, 0, grid(chunks), np.array(uniform))
    owners = np.zeros(index.classes[0].shape, int)
    for block in np.ndindex(layout.counts):
        owners[layout.cell_box(block).slices] += 1
    assert (owners == 1).all()
    weights = block_weights(index, 0, layout)
    for block in np.ndindex(layout.counts):
        assert weights[block] == layout.cell_box(block).size


@pytest.mark.parametrize("n", [100, 4000])
def test_an_epoch_is_a_function_of_seed_and_epoch(n):
    index = build_index(np.zeros((9, 200, 200), np.uint8), 10)

    def origins(seed, epoch):
        plan = EpochPlan(index, [grid((1, 40, 40))], n, seed, epoch, 4)
        return np.concatenate([plan.draws(g).origin for g in plan.groups])

    np.testing.assert_array_equal(origins(1, 2), origins(1, 2))
    assert not np.array_equal(origins(1, 2), origins(1, 3))
    assert not np.array_equal(origins(1, 2), origins(2, 2))


@pytest.mark.parametrize(
    ("shape", "chunks", "voxel_bytes", "thickness", "wide"),
    [
        ((64, 4096, 4096), (64, 256, 256), 2, (64,), (2, 2)),  # 32 MiB: as it is
        ((400, 8192, 8192), (200, 2048, 2048), 2, (8,), (2, 2)),
        ((3, 400, 8192, 8192), (3, 200, 2048, 2048), 2, (1, 8), (2, 2)),
        ((4, 40000, 40000), (1, 8192, 8192), 4, (1,), (1, 1)),
        ((4, 40000, 40000), (1, 8000, 8001), 2, (1,), (2, 1)),  # the longer side alone is enough
        ((4, 40000, 40000), (1, 64, 40000), 1, (1,), (4, 2)),  # four patches across, whatever the chunks
    ],
)
def test_a_block_is_cut_to_a_bearable_size(shape, chunks, voxel_bytes, thickness, wide, monkeypatch):
    monkeypatch.setattr(block_layout, "BLOCK_BYTES", 256 * 2**20)
    assert block_layout.block_extent(shape, chunks, (64, 64), voxel_bytes) == (thickness, wide)


@given(st.integers(1, 300), st.integers(1, 80), st.integers(1, 80))
def test_thin_blocks_never_reach_into_a_second_chunk(size, chunk, thickness):
    cuts = cut_chunks(size, chunk, min(chunk, thickness))
    assert (cuts[0], cuts[-1]) == (0, size)
    assert (np.diff(cuts) > 0).all()
    assert (np.diff(cuts) <= thickness).all()
    assert (cuts[:-1] // chunk == (cuts[1:] - 1) // chunk).all()


def test_huge_chunks_give_small_blocks_and_every_patch_is_still_possible(monkeypatch):
    shape, chunks = (7, 96, 128), (7, 32, 64)
    index = build_index(np.zeros(shape, np.uint8), 8)
    monkeypatch.setattr(block_layout, "BLOCK_BYTES", 6000)
    seen = np.zeros((shape[1], shape[2]), bool)
    for epoch in range(40):
        plan = EpochPlan(index, [grid(chunks)], 400, 5, epoch, 4)
        for group in plan.groups:
            draws = plan.draws(group)
            for visit in draws.visits:
                box = plan.layouts[0].voxel_box(visit.block)
                assert box.size * 2 <= 1.5 * 6000, "a border's remainder may add half a block"
            seen[draws.origin[:, 1], draws.origin[:, 2]] = True
    assert seen[25:32, :100].any(), "patches across the chunks' borders in y"
    assert seen[:80, 57:64].any(), "patches across the chunks' borders in x"
